"""What is inside of a stick that misbehaves: a folder shown through FUSE, whose files are slow, dead, or forget.

A loop device on such a file is to the kernel what a bad stick is: writes that take their time, errors on every access
once it was pulled out, and space that is not there though it says so.
"""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Inside:
    """``beneath`` is what really lies there, ``folder`` how it looks through the flaw."""

    folder: Path
    beneath: Path
    _knobs: Path
    _child: subprocess.Popen[bytes]

    def be(self, *, dead: bool = False, bytes_per_second: int = 0, forgets_from: int = 0) -> None:
        """From now on. With 0 it is as fast as it can be, and forgets nothing."""
        new = self._knobs.with_suffix(".new")
        new.write_text(json.dumps({"dead": dead, "rate": bytes_per_second, "forgets_from": forgets_from}))
        new.rename(self._knobs)

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Whoever reads or writes gets no answer meanwhile."""
        self._child.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._child.send_signal(signal.SIGCONT)


@contextmanager
def inside(folder: Path) -> Iterator[Inside]:
    shown, beneath, knobs = folder / "shown", folder / "beneath", folder / "knobs.json"
    for path in (shown, beneath):
        path.mkdir(parents=True)
    child = subprocess.Popen([sys.executable, "-m", "tests.odd_stick", shown, beneath, knobs])
    made = Inside(shown, beneath, knobs, child)
    made.be()
    try:
        patience = time.monotonic() + 20
        while not made.folder.is_mount():
            assert child.poll() is None and time.monotonic() < patience, "the inside was not mounted"
            time.sleep(0.02)
        yield made
    finally:
        subprocess.run(["fusermount3", "-u", "-z", made.folder], check=False)
        child.terminate()
        child.wait()


def _serve(folder: str, beneath: str, knobs: Path) -> None:
    import mfusepy

    def flaw() -> dict[str, Any]:
        return dict(json.loads(knobs.read_text()))

    def alive() -> dict[str, Any]:
        found = flaw()
        if found["dead"]:
            raise mfusepy.FuseOSError(errno.EIO)
        return found

    class Operations(mfusepy.Operations):  # type: ignore[misc]  # it has no types
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = Path(beneath + path).lstat()
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
            return {name: getattr(found, name) for name in names}

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *(p.name for p in Path(beneath + path).iterdir())]

        def open(self, path: str, flags: int) -> int:
            return os.open(beneath + path, os.O_RDWR)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            alive()
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            found = alive()
            if found["rate"]:
                time.sleep(len(data) / found["rate"])
                alive()
            if not 0 < found["forgets_from"] <= offset:
                os.pwrite(fh, data, offset)
            return len(data)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            alive()
            return 0

        def fallocate(self, *_: Any) -> int:
            raise mfusepy.FuseOSError(errno.EOPNOTSUPP)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

    mfusepy.FUSE(Operations(), folder, foreground=True, nothreads=True, direct_io=True, attr_timeout=0)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], Path(sys.argv[3]))

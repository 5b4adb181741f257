"""A disk that gives errors on demand: shows a folder through FUSE, and fails what it was told to.

Where a healthy disk cannot be made to fail: EIO on a read, a failing fsync, no space only at close.
"""

from __future__ import annotations

import errno
import fnmatch
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

needs_fuse = pytest.mark.skipif(
    not os.access("/dev/fuse", os.R_OK | os.W_OK) or shutil.which("fusermount3") is None,
    reason="/dev/fuse or fuse3 is missing; `make test` installs it for root",
)


@dataclass(frozen=True)
class Fault:
    """``operation`` (flush is what close calls) on files that fit ``name`` fails so many ``times``.

    The first ``but`` of them work. The name of the top folder is empty. ``at`` is the byte of the file that cannot be
    read; None for all of them. With ``after``, another operation, it works until that was seen on the file.
    """

    operation: str
    name: str
    number: int = errno.EIO
    times: int = 1_000_000
    but: int = 0
    at: int | None = None
    after: str = ""


@dataclass(frozen=True)
class FaultyDisk:
    """``folder`` fails, ``beneath`` is what it shows."""

    folder: Path
    beneath: Path
    _log: Path
    _process: int

    def failed(self) -> list[str]:
        """What failed so far, each as ``operation name``."""
        return self._log.read_text().splitlines()

    @contextmanager
    def hangs(self) -> Iterator[None]:
        """Meanwhile it answers nothing."""
        os.kill(self._process, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._process, signal.SIGCONT)


@contextmanager
def faulty_disk(folder: Path, *faults: Fault) -> Iterator[FaultyDisk]:
    shown, beneath, log = (folder / name for name in ("disk", "beneath", "failed"))
    for made in (shown, beneath):
        made.mkdir(parents=True, exist_ok=True)
    log.touch()
    told = json.dumps([asdict(f) for f in faults])
    child = subprocess.Popen([sys.executable, "-m", "tests.faulty_disk", shown, beneath, log, told])
    disk = FaultyDisk(shown, beneath, log, child.pid)
    try:
        patience = time.monotonic() + 20
        while not disk.folder.is_mount():
            assert child.poll() is None and time.monotonic() < patience, "the faulty disk was not mounted"
            time.sleep(0.02)
        yield disk
    finally:
        subprocess.run(["fusermount3", "-u", "-z", disk.folder], check=False)
        child.terminate()
        child.wait()


def _serve(folder: str, beneath: str, log: str, faults: list[Fault]) -> None:
    import mfusepy

    met = dict.fromkeys(faults, 0)
    seen: set[tuple[str, str]] = set()

    def there(operation: str, path: str, touched: range = range(sys.maxsize)) -> Path:
        """Where ``path`` really lies. Raises what was asked for."""
        for fault in faults:
            if fault.operation != operation or not fnmatch.fnmatch(Path(path).name, fault.name):
                continue
            if fault.at is not None and fault.at not in touched:
                continue
            if fault.after and (fault.after, path) not in seen:
                continue
            met[fault] += 1
            if fault.but < met[fault] <= fault.but + fault.times:
                with Path(log).open("a") as out:
                    out.write(f"{operation} {Path(path).name}\n")
                raise mfusepy.FuseOSError(fault.number)
        seen.add((operation, path))
        return Path(beneath + path)

    class Operations(mfusepy.Operations):  # type: ignore[misc]  # it has no types
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = there("getattr", path).lstat()
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
            times = {f"st_{t}time": getattr(found, f"st_{t}time_ns") for t in "amc"}
            return {name: getattr(found, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *(p.name for p in there("readdir", path).iterdir())]

        def open(self, path: str, flags: int) -> int:
            return os.open(there("open", path), flags)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(there("create", path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            there("read", path, range(offset, offset + size))
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            there("write", path)
            return os.pwrite(fh, data, offset)

        def fsync(self, path: str, datasync: int, fh: int) -> int:
            there("fsync", path)
            os.fsync(fh)
            return 0

        def fsyncdir(self, path: str, datasync: int, fh: int) -> int:
            there("fsyncdir", path)
            return 0

        def flush(self, path: str, fh: int) -> int:
            there("flush", path)
            return 0

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> int:
            os.truncate(there("truncate", path), length)
            return 0

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(there("statfs", path))
            return {name: getattr(found, name) for name in dir(found) if name.startswith("f_") and name != "f_fsid"}

        def mkdir(self, path: str, mode: int) -> int:
            there("mkdir", path).mkdir(mode)
            return 0

        def rmdir(self, path: str) -> int:
            there("rmdir", path).rmdir()
            return 0

        def unlink(self, path: str) -> int:
            there("unlink", path).unlink()
            return 0

        def rename(self, old: str, new: str) -> int:
            there("rename", old).rename(beneath + new)
            return 0

    # Without the page cache between: it would read again by itself, and keep what was read.
    mfusepy.FUSE(
        Operations(), folder, foreground=True, nothreads=True, direct_io=True, hard_remove=True, attr_timeout=0
    )


if __name__ == "__main__":
    _, at, shows, writes, told = sys.argv
    _serve(at, shows, writes, [Fault(**f) for f in json.loads(told)])

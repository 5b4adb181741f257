"""A disk that does not tell A from a, as those of macOS and Windows: shows a folder through FUSE."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any


@contextmanager
def caseless_disk(folder: Path) -> Iterator[Path]:
    shown, beneath = folder / "caseless", folder / "beneath"
    shown.mkdir()
    beneath.mkdir()
    child = subprocess.Popen([sys.executable, "-m", "tests.rescue.caseless_disk", shown, beneath])
    try:
        patience = time.monotonic() + 20
        while not shown.is_mount():
            assert child.poll() is None and time.monotonic() < patience, "the disk was not mounted"
            time.sleep(0.02)
        yield shown
    finally:
        subprocess.run(["fusermount3", "-u", "-z", shown], check=False)
        child.terminate()
        child.wait()


def _serve(folder: str, beneath: str) -> None:
    import mfusepy

    def there(path: str) -> Path:
        """Where ``path`` lies, whatever the case in which its parts are written there."""
        found = Path(beneath)
        for part in Path(path).parts[1:]:
            names = [p.name for p in found.iterdir()] if found.is_dir() else []
            found /= next((n for n in names if n.lower() == part.lower()), part)
        return found

    class Operations(mfusepy.Operations):  # type: ignore[misc]  # it has no types
        use_ns = True

        def getattr(self, path: str, fh: int | None = None) -> dict[str, int]:
            found = there(path).lstat()
            names = ("st_mode", "st_nlink", "st_uid", "st_gid", "st_size")
            times = {f"st_{t}time": getattr(found, f"st_{t}time_ns") for t in "amc"}
            return {name: getattr(found, name) for name in names} | times

        def readdir(self, path: str, fh: int) -> list[str]:
            return [".", "..", *(p.name for p in there(path).iterdir())]

        def open(self, path: str, flags: int) -> int:
            return os.open(there(path), flags)

        def create(self, path: str, mode: int, fi: Any = None) -> int:
            return os.open(there(path), os.O_RDWR | os.O_CREAT | os.O_EXCL, mode)

        def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
            return os.pread(fh, size, offset)

        def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
            return os.pwrite(fh, data, offset)

        def release(self, path: str, fh: int) -> int:
            os.close(fh)
            return 0

        def truncate(self, path: str, length: int, fh: int | None = None) -> None:
            os.truncate(there(path), length)

        def mkdir(self, path: str, mode: int) -> None:
            there(path).mkdir(mode)

        def unlink(self, path: str) -> None:
            there(path).unlink()

        def rename(self, old: str, new: str) -> None:
            there(old).rename(there(new))

        def link(self, target: str, source: str) -> None:
            os.link(there(source), there(target))

        def symlink(self, target: str, source: str) -> None:
            there(target).symlink_to(source)

        def readlink(self, path: str) -> str:
            return str(there(path).readlink())

        def chmod(self, path: str, mode: int) -> None:
            there(path).chmod(mode)

        def chown(self, path: str, uid: int, gid: int) -> None:
            os.lchown(there(path), uid, gid)

        def statfs(self, path: str) -> dict[str, int]:
            found = os.statvfs(beneath)
            return {name: getattr(found, name) for name in dir(found) if name.startswith("f_") and name != "f_fsid"}

    mfusepy.FUSE(Operations(), folder, foreground=True, nothreads=True, attr_timeout=0, entry_timeout=0)


if __name__ == "__main__":
    _serve(*sys.argv[1:])

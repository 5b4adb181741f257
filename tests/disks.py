"""Real filesystems in a file, and which of a file's blocks are its own. All of it needs root."""

from __future__ import annotations

import array
import fcntl
import struct
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def loop_disk(kind: str, folder: Path, size_bytes: int = 320 << 20) -> Iterator[Path]:
    """A fresh ext4, btrfs or XFS, mounted below ``folder`` while this lasts; its file takes what is written to it."""
    image, place = folder / f"{kind}.image", folder / kind
    with image.open("xb") as file:
        file.truncate(size_bytes)
    place.mkdir()
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True, capture_output=True)
    subprocess.run(["mount", "-o", "loop", image, place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)
        image.unlink()
        place.rmdir()


_FIEMAP = 0xC020660B
_SYNC = 1
_LAST, _SHARED = 0x1, 0x2000
_HEAD = struct.Struct("=QQLLLL")
_EXTENT = struct.Struct("=QQQQQLLLL")
_AT_ONCE = 500


def own_bytes(path: Path) -> int:
    """The bytes of a file that lie in blocks which it shares with no other.

    By FIEMAP, see Documentation/filesystems/fiemap.rst of Linux.
    """
    position = own = 0
    with path.open("rb") as file:
        while True:
            request = array.array("B", _HEAD.pack(position, 2**64 - 1 - position, _SYNC, 0, _AT_ONCE, 0))
            request.frombytes(bytes(_EXTENT.size * _AT_ONCE))
            fcntl.ioctl(file, _FIEMAP, request)
            flags = 0
            for number in range(_HEAD.unpack_from(request)[3]):
                start, _, length, _, _, flags, *_ = _EXTENT.unpack_from(request, _HEAD.size + number * _EXTENT.size)
                own += 0 if flags & _SHARED else length
                position = start + length
            if flags & _LAST or not _HEAD.unpack_from(request)[3]:
                return own

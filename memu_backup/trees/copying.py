"""Copies large files: by the kernel, which shares blocks where it can, or where that meets trouble by hand."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator

from memu_backup.files import Tick
from memu_backup.formats import hashing
from memu_backup.formats.hashing import HashThread
from memu_backup.formats.intake import ZEROS, Reading
from memu_backup.formats.tar import Header
from memu_backup.work import Stop

FULL = (errno.ENOSPC, errno.EDQUOT)
"""What says that a disk takes no more."""

_BLOCK = 8 * 1024 * 1024


class Unreadable(Exception):
    """The source, and not our own disk."""

    def __init__(self, error: OSError) -> None:
        super().__init__(str(error))
        self.error = error


class Copying:
    """``hasher`` takes the hashes meanwhile. Raises Interrupted."""

    def __init__(self, hasher: HashThread, stop: Stop, tick: Tick) -> None:
        self._hasher, self._stop, self._tick = hasher, stop, tick

    def copy(self, header: Header, source: int, reading: Reading, target: int) -> str:
        """From ``source``, which is what ``reading`` reads, into the empty file ``target``. Returns the SHA-256 of what
        is in it then, holes as zeros. Raises Unreadable, and OSError of the target.
        """
        if self._by_the_kernel(header, source, target):
            return self._hashed_back(header, target)
        return self._by_hand(header, reading, target)

    def _by_the_kernel(self, header: Header, source: int, target: int) -> bool:
        whole = ((0, header.size_bytes),)
        try:
            for start, length in whole if header.extents is None else header.extents:
                if not copy_range(source, target, start, length, self._stop):
                    return False
            os.ftruncate(target, header.size_bytes)
        except OSError as error:
            if error.errno in FULL:
                raise
            return False
        return True

    def _by_hand(self, header: Header, reading: Reading, target: int) -> str:
        """To the length in its header, whatever its owner does meanwhile."""
        hash_ = hashing.new()
        position = 0
        os.ftruncate(target, 0)
        for offset, data in _pieces(reading):
            self._hash_hole(hash_, offset - position)
            self._hasher.update(hash_, data)
            write(target, data, offset)
            position = offset + len(data)
            self._tick(len(data), 0, header.path)
        os.ftruncate(target, header.size_bytes)
        self._hash_hole(hash_, header.size_bytes - position)
        return self._hasher.digest(hash_).result()

    def _hashed_back(self, header: Header, target: int) -> str:
        """What was copied, and not what its owner made of it meanwhile."""
        hash_ = hashing.new()
        offset = 0
        while offset < header.size_bytes:
            self._stop.check()
            block = os.pread(target, _BLOCK, offset)
            self._hasher.update(hash_, block)
            offset += len(block)
            self._tick(len(block), 0, header.path)
        return self._hasher.digest(hash_).result()

    def hashed(self, header: Header, reading: Reading) -> str:
        """The SHA-256 of the source itself, where it may well be what the backup before has. Raises OSError."""
        hash_ = hashing.new()
        position = 0
        for offset, data in reading.placed_pieces():
            self._hash_hole(hash_, offset - position)
            self._hasher.update(hash_, data)
            position = offset + len(data)
        self._hash_hole(hash_, header.size_bytes - position)
        self._tick(header.size_bytes, 0, header.path)
        return self._hasher.digest(hash_).result()

    def _hash_hole(self, hash_: hashing.Hash, size_bytes: int) -> None:
        while size_bytes > 0:
            self._stop.check()
            part = ZEROS if size_bytes >= len(ZEROS) else ZEROS[:size_bytes]
            self._hasher.update(hash_, part)
            size_bytes -= len(part)


def _pieces(reading: Reading) -> Iterator[tuple[int, bytes]]:
    try:
        yield from reading.placed_pieces()
    except OSError as error:
        raise Unreadable(error) from error


def write(descriptor: int, data: bytes, offset: int | None = None) -> None:
    """All of it. Raises OSError."""
    view = memoryview(data)
    while view:
        written = os.write(descriptor, view) if offset is None else os.pwrite(descriptor, view, offset)
        view = view[written:]
        offset = None if offset is None else offset + written


def copy_range(source: int, target: int, start: int, length: int, stop: Stop | None = None) -> bool:
    """copy_file_range(2), which shares blocks where the filesystem can. False where the source ended before."""
    while length:
        if stop:
            stop.check()
        copied = os.copy_file_range(source, target, min(length, 64 * _BLOCK), start, start)
        if not copied:
            return False
        start, length = start + copied, length - copied
    return True

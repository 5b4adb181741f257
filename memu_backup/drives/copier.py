"""The program that writes one file to a drive and reads it back: a process of its own, which can be killed.

A drive that is pulled out of a buffered write gives no error at all: the writer hangs, and what waits in memory for a
drive that is gone slows the whole machine. So each block is brought to the drive before the next but one is written,
and whoever watches can end this.

    python -m memu_backup.drives.copier SOURCE FOLDER NAME DEVICE

SOURCE is the number of an open file or pipe, FOLDER that of an open directory, NAME what the copy is called, DEVICE the
drive's or empty.
Prints lines of JSON: {"written": N}, {"read": N}, at last {"sha256": ..., "parts": [[NAME, SIZE, SHA256], ...],
"write_seconds": ..., "read_seconds": ...} or {"failed": "source"|"drive"|"differs", "errno": ..., "what": ...}.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import stat
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress

from memu_backup.files import rename_without_replacing

BLOCK_BYTES = 16 * 1024 * 1024
_FLUSH_BUFFERS = 0x1261
"""BLKFLSBUF of linux/fs.h: the kernel forgets what it remembers of a device."""

_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_READ = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class _Failed(Exception):
    """``where`` is source, drive or differs."""

    def __init__(self, where: str, error: OSError | None = None) -> None:
        super().__init__(where)
        self.where, self.error = where, error


def partial_name(name: str, part: int) -> str:
    """What the ``part``-th piece of a copy is called until it is whole."""
    return f".{name}.{part:03}.partial"


class Copy:
    """One file on its way to a drive; what does not fit into one there goes on in a next part."""

    def __init__(self, source: int, folder: int, name: str) -> None:
        self._source, self._folder, self._name = source, folder, name
        self._parts = 0
        self._flushing: Future[None] | None = None
        self.sha256 = hashlib.sha256()

    def write(self) -> None:
        """All of it, onto the drive, under names that say that it is not whole. Raises _Failed."""
        with ThreadPoolExecutor(1) as reader, ThreadPoolExecutor(1) as flusher:
            descriptor = self._next_part()
            written = 0
            try:
                for block in _read_ahead(reader, self._source, self.sha256):
                    view = memoryview(block)
                    while view:
                        try:
                            view = view[os.write(descriptor, view) :]
                        except OSError as error:
                            if error.errno != errno.EFBIG or os.fstat(descriptor).st_size == 0:
                                raise
                            descriptor = self._end_part(descriptor)
                    # The drive begins with it at once, and not only when the one before has been confirmed.
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
                    # The block before this one has to be there by now: no more than two are ever on their way.
                    self._wait()
                    self._flushing = flusher.submit(os.fdatasync, descriptor)
                    written += len(block)
                    _say(written=written)
                self._wait()
                os.fsync(descriptor)
            except OSError as error:
                raise _Failed("drive", error) from error
            finally:
                with suppress(OSError):
                    os.close(descriptor)

    def _next_part(self) -> int:
        self._parts += 1
        try:
            return os.open(partial_name(self._name, self._parts), _NEW, 0o600, dir_fd=self._folder)
        except OSError as error:
            raise _Failed("drive", error) from error

    def _end_part(self, descriptor: int) -> int:
        self._wait()
        os.fsync(descriptor)
        os.close(descriptor)
        return self._next_part()

    def _wait(self) -> None:
        """The first error is final: after a failed fsync a later one may succeed, though pages were lost."""
        if self._flushing:
            self._flushing.result()
            self._flushing = None

    def publish(self) -> list[str]:
        """Give it its name, or names. Raises _Failed."""
        many = self._parts > 1
        names = [f"{self._name}.part{n:03}" if many else self._name for n in range(1, self._parts + 1)]
        try:
            for number, name in enumerate(names, 1):
                rename_without_replacing(partial_name(self._name, number), name, folder=self._folder)
            os.fsync(self._folder)
        except OSError as error:
            raise _Failed("drive", error) from error
        return names

    def read_back(self, names: list[str], device: str) -> list[tuple[str, int, str]]:
        """From the drive itself and not from memory. Raises _Failed."""
        whole = hashlib.sha256()
        found, read = [], 0
        with ThreadPoolExecutor(1) as reader:
            for name in names:
                alone = hashlib.sha256() if len(names) > 1 else whole
                size_bytes = 0
                try:
                    descriptor = os.open(name, _READ, dir_fd=self._folder)
                    try:
                        _forget(descriptor, device)
                        for block in _read_ahead(reader, descriptor, whole, on_drive=True):
                            if alone is not whole:
                                alone.update(block)
                            size_bytes += len(block)
                            _say(read=read + size_bytes)
                    finally:
                        os.close(descriptor)
                except OSError as error:
                    raise _Failed("drive", error) from error
                read += size_bytes
                found.append((name, size_bytes, alone.hexdigest()))
        if whole.digest() != self.sha256.digest():
            raise _Failed("differs")
        return found


def _forget(descriptor: int, device: str) -> None:
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    if device:  # a program that serves a filesystem reads its device through the kernel's memory, too
        with suppress(OSError):
            node = os.open(device, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                fcntl.ioctl(node, _FLUSH_BUFFERS)
            finally:
                os.close(node)


def _read_ahead(
    reader: ThreadPoolExecutor, descriptor: int, sha256: hashlib._Hash, *, on_drive: bool = False
) -> Iterator[memoryview]:
    """The blocks of a file, hashed; each is good until the next but one is asked for. Raises OSError, _Failed."""
    buffers = [memoryview(bytearray(BLOCK_BYTES)) for _ in range(3)]
    offset = turn = 0
    placed = stat.S_ISREG(os.fstat(descriptor).st_mode)

    def some(buffer: memoryview, at: int) -> int:
        return os.preadv(descriptor, [buffer], at) if placed else os.readv(descriptor, [buffer])

    def read(buffer: memoryview, at: int) -> memoryview:
        size = 0
        while size < len(buffer) and (more := some(buffer[size:], at + size)):
            size += more
        if placed:
            os.posix_fadvise(descriptor, at, size, os.POSIX_FADV_DONTNEED)
        sha256.update(buffer[:size])
        return buffer[:size]

    coming = reader.submit(read, buffers[0], 0)
    while True:
        try:
            block = coming.result()
        except OSError as error:
            if on_drive:
                raise
            raise _Failed("source", error) from error
        if not block:
            return
        offset, turn = offset + len(block), turn + 1
        coming = reader.submit(read, buffers[turn % 3], offset)
        yield block


def _say(**said: object) -> None:
    sys.stdout.write(f"{json.dumps(said)}\n")
    sys.stdout.flush()


def main(argv: list[str]) -> int:
    """See above."""
    source, folder, name, device = argv
    try:
        copy = Copy(int(source), int(folder), name)
        begun = time.monotonic()
        copy.write()
        names = copy.publish()
        written = time.monotonic()
        parts = copy.read_back(names, device)
        read = time.monotonic()
    except _Failed as failed:
        why = failed.error
        _say(failed=failed.where, errno=why.errno if why else 0, what=why.strerror if why else "")
        return 1
    seconds = {"write_seconds": round(written - begun, 3), "read_seconds": round(read - written, 3)}
    _say(sha256=copy.sha256.hexdigest(), parts=parts, **seconds)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

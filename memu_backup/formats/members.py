"""Streams of gzip members, made and read on all cores, in order."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Self

from memu_backup import files
from memu_backup.errors import DamagedArchive
from memu_backup.formats import gzip
from memu_backup.formats.gzip import Buffer
from memu_backup.work import Stop, be_gentle

_IOV_MAX = 1000
THREADS = min(os.cpu_count() or 1, 8)
_MOST_WAITING = 100
_MOST_WAITING_BYTES = (2 * THREADS + 1) * gzip.LARGE_CHUNK
_WRITE_BACK = 32 * 1024 * 1024


_Member = tuple[int, bytes, Future[bytes]]
"""Where it lies, its bytes, and its content."""


class Slot:
    """A member on its way. ``offset`` and ``end`` are known once it was written, and -1 before."""

    __slots__ = ("aligned", "end", "offset")

    def __init__(self, aligned: bool) -> None:
        self.aligned = aligned
        self.offset = self.end = -1


class MemberWriter:
    """Packs pieces in several threads and writes them in one more, in the order in which they came.

    ``folder`` is named in errors. Memory is bounded by the number of pieces under way. Use as a context manager, so
    that no thread outlives it.
    """

    def __init__(self, descriptor: int, folder: Path, stop: Stop, *, gentle: bool) -> None:
        self._offset = 0
        self._started = 0
        self._folder = folder
        self._descriptor = descriptor
        self._stop = stop
        self._under_way: deque[tuple[int, Future[None]]] = deque()
        self._waiting_bytes = 0
        gently = be_gentle if gentle else None
        self._packers = ThreadPoolExecutor(THREADS, "memu-pack", initializer=gently)
        self._writer = ThreadPoolExecutor(1, "memu-write", initializer=gently)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for pool in (self._packers, self._writer):
            pool.shutdown(wait=True, cancel_futures=True)

    def put(self, data: Buffer, *, aligned: bool = False) -> Slot:
        """Take one piece. ``aligned`` makes its member start at a multiple of ``gzip.ALIGNMENT``. Raises StoreError."""
        slot = Slot(aligned)
        packed = self._packers.submit(gzip.pack, data)
        self._submit(lambda: self._write_slot(slot, packed.result()), len(data))
        return slot

    def take(self, size_bytes: int, copy: Callable[[int, int], None]) -> Slot:
        """Members that are made already, aligned: ``copy`` brings all of them to a descriptor, at an offset.

        Raises StoreError, and what else ``copy`` raises, which may come out with a later call.
        """
        slot = Slot(aligned=True)
        self._submit(lambda: self._take(slot, size_bytes, copy))
        return slot

    def _submit(self, work: Callable[[], None], size_bytes: int = 0) -> None:
        self._stop.check()
        self._under_way.append((size_bytes, self._writer.submit(work)))
        self._waiting_bytes += size_bytes
        while len(self._under_way) > _MOST_WAITING or self._waiting_bytes > _MOST_WAITING_BYTES:
            self._wait()

    def _wait(self) -> None:
        size_bytes, written = self._under_way.popleft()
        self._waiting_bytes -= size_bytes
        written.result()

    def flush(self) -> int:
        """Write everything taken so far; the length of the archive up to here. Raises StoreError."""
        while self._under_way:
            self._wait()
        return self._offset

    def raw(self, member: bytes) -> None:
        """Write a member that is made already; what came before goes first. Raises StoreError."""
        self._submit(lambda: self._write([member]))
        self.flush()

    def _write_slot(self, slot: Slot, buffers: list[Buffer]) -> None:
        self._begin(slot)
        self._write(buffers)
        slot.end = self._offset
        self._start_disk()

    def _begin(self, slot: Slot) -> None:
        self._stop.check()
        if slot.aligned and (gap := gzip.padding(self._offset)):
            self._write([gap])
        slot.offset = self._offset

    def _take(self, slot: Slot, size_bytes: int, copy: Callable[[int, int], None]) -> None:
        self._begin(slot)
        end = slot.offset + size_bytes
        try:
            copy(self._descriptor, slot.offset)
            os.lseek(self._descriptor, end, os.SEEK_SET)
        except OSError as error:
            raise files.storing(error, self._folder) from error
        slot.end = self._offset = end

    def _start_disk(self) -> None:
        """Let the disk begin now: the kernel would wait for gigabytes, and the flush at the end for all of them.

        DONTNEED begins to write what is not on the disk yet, and forgets what is; proving reads from the disk anyhow.
        """
        if self._offset - self._started >= _WRITE_BACK:
            with suppress(OSError):  # the flush at the end tells of any trouble
                os.posix_fadvise(self._descriptor, 0, self._offset, os.POSIX_FADV_DONTNEED)
            self._started = self._offset

    def _write(self, buffers: list[Buffer]) -> None:
        for start in range(0, len(buffers), _IOV_MAX):
            waiting: list[Buffer] = list(buffers[start : start + _IOV_MAX])
            while waiting:
                try:
                    written = os.writev(self._descriptor, waiting)
                except OSError as error:
                    raise files.storing(error, self._folder) from error
                self._offset += written
                while waiting and written >= len(waiting[0]):
                    written -= len(waiting.pop(0))
                if written:
                    waiting[0] = memoryview(waiting[0])[written:]


def read_members(
    places: Iterator[tuple[int, int]], read: Callable[[int, int], bytes]
) -> Generator[tuple[bytes, bytes]]:
    """Read (offset, size) and inflate whole members on all cores; gives their bytes and their content, in order.

    One thread goes through ``places`` and reads, so that the disk is never waited for by who looks at the content.
    Raises DamagedArchive with the offset, and what ``places`` and ``read`` raise; what stands before is given first.
    """
    with ThreadPoolExecutor(THREADS, "memu-unpack") as unpackers, ThreadPoolExecutor(1, "memu-read") as reader:

        def read_next() -> _Member | None:
            place = next(places, None)
            if place is None:
                return None
            packed = read(*place)
            return place[0], packed, unpackers.submit(gzip.unpack, packed)

        under_way = deque(reader.submit(read_next) for _ in range(2 * THREADS + 1))
        try:
            while member := under_way.popleft().result():
                under_way.append(reader.submit(read_next))
                offset, packed, content = member
                try:
                    yield packed, content.result()
                except DamagedArchive as error:
                    raise DamagedArchive(f"{error}, at byte {offset:,} of the archive") from error
        finally:
            reader.shutdown(wait=True, cancel_futures=True)
            unpackers.shutdown(wait=True, cancel_futures=True)

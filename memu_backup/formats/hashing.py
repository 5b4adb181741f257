"""SHA-256 in a thread of its own, in order, while others read and write."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Protocol, Self

from memu_backup.work import be_gentle

_QUEUED = 4
"""Blocks that may wait: hashing is slower than a fast disk, and a film must not end up in memory."""

_TOGETHER_BYTES = 1024 * 1024
_TOGETHER = 200
"""What is small is hashed so much at a time: to hand over each file would take longer than to hash it."""


Data = bytes | memoryview


class Hash(Protocol):
    """What hashlib gives, as far as it is used here."""

    def update(self, data: Data, /) -> None: ...
    def hexdigest(self) -> str: ...


def new() -> Hash:
    return hashlib.sha256()


class Digest(Protocol):
    """A hash as hexadecimal digits, for which one may have to wait."""

    def result(self) -> str: ...


@dataclass(slots=True)
class Known:
    """One that was taken already."""

    digest: str

    def result(self) -> str:
        return self.digest


@dataclass(slots=True)
class _Batch:
    """Contents that are hashed in one go."""

    contents: list[bytes] = field(default_factory=list)
    size_bytes: int = 0
    digests: Future[list[str]] | None = None

    def hash(self) -> list[str]:
        digests = [hashlib.sha256(content).hexdigest() for content in self.contents]
        self.contents.clear()
        return digests


@dataclass(slots=True)
class _InBatch:
    hasher: HashThread
    batch: _Batch
    position: int

    def result(self) -> str:
        self.hasher.send(self.batch)
        assert self.batch.digests
        return self.batch.digests.result()[self.position]


class HashThread:
    """Use as a context manager. One thread, so that the blocks of one hash keep their order."""

    def __init__(self, *, gentle: bool = False) -> None:
        self._pool = ThreadPoolExecutor(1, "memu-hash", initializer=be_gentle if gentle else None)
        self._queued: deque[Future[Any]] = deque()
        self._batch = _Batch()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only after an error: what is queued at the end of a good pass belongs to the hash.
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def update(self, hash_: Hash, data: Data) -> None:
        """Add ``data``, which must not change any more; waits where too much is queued."""
        self._queue(self._pool.submit(hash_.update, data))

    def small(self, content: bytes) -> Digest:
        """The hash of something small; waits where too much is queued."""
        batch = self._batch
        found = _InBatch(self, batch, len(batch.contents))
        batch.contents.append(content)
        batch.size_bytes += len(content)
        if batch.size_bytes >= _TOGETHER_BYTES or len(batch.contents) >= _TOGETHER:
            self.send(batch)
        return found

    def send(self, batch: _Batch) -> None:
        """Hash what was collected so far, unless that is under way."""
        if batch.digests is None:
            self._batch = _Batch()
            batch.digests = self._pool.submit(batch.hash)
            self._queue(batch.digests)

    def _queue(self, work: Future[Any]) -> None:
        self._queued.append(work)
        if len(self._queued) > _QUEUED:
            self._queued.popleft().result()

    def digest(self, hash_: Hash) -> Digest:
        """The hash of all that was added up to now."""
        return self._pool.submit(hash_.hexdigest)

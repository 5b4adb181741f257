"""SHA-256 in a thread of its own, in order, while others read and write."""

from __future__ import annotations

import hashlib
from collections import deque
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Protocol, Self

from memu_backup.work import be_gentle

_QUEUED = 4
"""Blocks that may wait: hashing is slower than a fast disk, and a film must not end up in memory."""


class Hash(Protocol):
    """What hashlib gives, as far as it is used here."""

    def update(self, data: bytes | memoryview, /) -> None: ...
    def hexdigest(self) -> str: ...


def new() -> Hash:
    return hashlib.sha256()


def known(digest: str) -> Future[str]:
    """A hash that was taken already, among others that are under way."""
    found: Future[str] = Future()
    found.set_result(digest)
    return found


class HashThread:
    """Use as a context manager. One thread, so that the blocks of one hash keep their order."""

    def __init__(self, *, gentle: bool = False) -> None:
        self._pool = ThreadPoolExecutor(1, "memu-hash", initializer=be_gentle if gentle else None)
        self._queued: deque[Future[None]] = deque()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Only after an error: what is queued at the end of a good pass belongs to the hash.
        self._pool.shutdown(wait=True, cancel_futures=kind is not None)

    def update(self, hash_: Hash, data: bytes | memoryview) -> None:
        """Add ``data``, which must not change any more; waits where too much is queued."""
        self._queued.append(self._pool.submit(hash_.update, data))
        if len(self._queued) > _QUEUED:
            self._queued.popleft().result()

    def digest(self, hash_: Hash) -> Future[str]:
        """The hash of all that was added up to now."""
        return self._pool.submit(hash_.hexdigest)

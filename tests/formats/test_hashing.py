"""A hash that is taken beside the reading holds everything that was read."""

from __future__ import annotations

import time

from memu_backup.formats.hashing import HashThread


class Slow:
    """A hash that is slower than whoever feeds it."""

    def __init__(self) -> None:
        self.seen = b""

    def update(self, data: bytes | memoryview, /) -> None:
        time.sleep(0.02)
        self.seen += bytes(data)

    def hexdigest(self) -> str:
        return self.seen.hex()


def test_what_is_still_queued_at_the_end_belongs_to_it() -> None:
    """It was once dropped, and good archives got a wrong .sha256 on a busy machine."""
    hash_ = Slow()
    with HashThread() as hasher:
        for number in range(6):
            hasher.update(hash_, bytes([number]))
    assert hash_.seen == bytes(range(6))

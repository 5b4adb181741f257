"""What of the stored backups is to be re-read tonight, so that every byte is within the period, and how far that is.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from memu_backup.model import Coverage
from memu_backup.stores import Piece, Store

_SOON = 0.9
"""When this part of the period has passed a piece is due: nights in which the machine was off make nothing late."""

_SPREAD = 0.8
"""In this part of the nights everything could be read: each reads a little more than its share."""

_A_NIGHT = timedelta(hours=12)
_FAR_BEHIND = 1.5


@dataclass(frozen=True, slots=True)
class Stored:
    """A piece of what lies in ``store``, last read to its end at ``read_at``; ``again`` where that was in its turn."""

    store: Store
    piece: Piece
    read_at: datetime
    again: bool = False

    @property
    def key(self) -> str:
        return f"{self.store.directory}/{self.piece.name}"


def due(stored: Iterable[Stored], now: datetime, every_days: int) -> list[Stored]:
    """What is to be read ``now``, the longest unread first; ``every_days`` is 1 or more.

    No more than has to be: what can wait until tomorrow does, as long as the nights to come can read all of it in time
    with their share each. So a night reads at most its share and one piece, and where one piece is larger than a share,
    as much as that. What was read in the last hours counts as tonight's: asked again it goes on where it stopped.
    """
    by_age = sorted(stored, key=lambda s: (s.read_at, s.key))
    done = [s for s in by_age if s.again and timedelta() <= now - s.read_at < _A_NIGHT]
    waiting = [s for s in by_age if s not in done]
    sizes = [_size(s) for s in waiting]
    share = max(sum(map(_size, by_age)) / (_SPREAD * every_days), *map(_size, by_age), 1)
    needed = together = 0.0
    for one, size in zip(waiting, sizes, strict=True):
        together += size
        left = one.read_at + timedelta(days=_SOON * every_days) - now
        needed = max(needed, together - share * max(0, left.days))
    wanted, chosen = min(needed, share - sum(map(_size, done))), []
    for one, size in zip(waiting, sizes, strict=True):
        if wanted <= 0:
            break
        chosen.append(one)
        wanted -= size
    return chosen


def _size(one: Stored) -> int:
    return max(1, one.piece.size_bytes)


def coverage(stored: Sequence[Stored], now: datetime, every_days: int) -> Coverage:
    """How much of it was read within the period."""
    since = now - timedelta(days=every_days)
    oldest = min((s.read_at for s in stored), default=None)
    return Coverage(
        every_days=every_days,
        total_bytes=sum(s.piece.size_bytes for s in stored),
        read_bytes=sum(s.piece.size_bytes for s in stored if s.read_at >= since),
        oldest_at=oldest,
        behind=oldest is not None and now - oldest > _FAR_BEHIND * timedelta(days=every_days),
    )

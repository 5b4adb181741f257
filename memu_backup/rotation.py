"""Which backups have their turn to be tried, and which restore test is told of. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from memu_backup.model import CLOCK_SLACK, Drill, Tried

LATE = timedelta(weeks=3)
"""A restore test that is longer ago says little of the backups of today."""

_SELDOM = timedelta(weeks=4)
"""A drive is not there each time: one that was not tried for so long comes first."""

DECIDED = frozenset({Tried.WHOLE, Tried.FAILED})
"""What tells something of the backup."""

_TOLD = DECIDED | {Tried.UNTRIED}


@dataclass(frozen=True, slots=True)
class Candidate:
    """A backup that could be tried; ``lay_at`` is the drive that it lies on, empty for the place of its job."""

    name: str
    made_at: datetime
    lay_at: str = ""


def turn(candidates: Sequence[Candidate], drills: Sequence[Drill], now: datetime) -> list[Candidate]:
    """The newest backup, and of all others the one that was not tried for the longest time: it was proved when it was
    made, so that long-kept ones come again and again before those that go within days. ``now`` is aware; tests that a
    clock dated ahead do not count.
    """
    here = [c for c in candidates if not c.lay_at]
    believed = [c for c in here if c.made_at <= now + CLOCK_SLACK] or here
    newest = max(believed, key=lambda c: c.made_at, default=None)
    others = [c for c in candidates if c != newest]

    def waits(candidate: Candidate) -> tuple[bool, datetime]:
        since = max((candidate.made_at, *(d.created_at for d in drills if _is_of(d, candidate, now))))
        return not (candidate.lay_at and now - since > _SELDOM), since

    longest = min(others, key=waits, default=None)
    return [c for c in (newest, longest) if c]


def _is_of(drill: Drill, candidate: Candidate, now: datetime) -> bool:
    same = (drill.filename, drill.lay_at) == (candidate.name, candidate.lay_at)
    return same and drill.outcome in _TOLD and drill.created_at <= now


def telling(drills: Sequence[Drill]) -> Drill | None:
    """Of the tests of one job, newest first: one that failed, as long as no later one of that backup, or of a newer
    one, went well; else the newest. None where none has come to an end.
    """
    best: datetime | None = None
    for drill in drills:
        if drill.outcome is Tried.WHOLE:
            best = max(best or drill.made_at, drill.made_at)
        elif drill.outcome is Tried.FAILED and (best is None or best < drill.made_at):
            return drill
    return next((drill for drill in drills if drill.outcome in _TOLD), None)


def is_late(drills: Sequence[Drill], first_backup: datetime | None, now: datetime) -> bool:
    """Whether the last test that told anything is too long ago; where there is none, the first backup."""
    since = next((drill.created_at for drill in drills if drill.outcome in DECIDED), first_backup)
    return since is not None and now - since > LATE

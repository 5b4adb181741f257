"""Looks ahead, so that a family hears that the disk will be full while there is still time to do something about it.

Pure. Plays the coming backups through with the rules that will remove old ones: where a backup goes for each that
comes, the disk fills by the difference alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta, tzinfo
from itertools import pairwise
from statistics import median

from memu_backup.model import CLOCK_SLACK
from memu_backup.retention import (
    Candidate,
    Policy,
    Room,
    newly_taken,
    next_is_whole,
    next_size,
    plan,
    used_bytes,
)

_HORIZON = timedelta(days=60)
_MOST_RUNS = 120
_PRESENT = timedelta(days=30)
"""What is older than this says nothing about the present growth."""
_FEWEST = 3
_SHORTEST_SPAN = timedelta(days=2)
_SHORTEST_STEP = timedelta(hours=1)


@dataclass(frozen=True, slots=True)
class Outlook:
    """How long the disk will do for the backups of one job.

    ``free_bytes`` is what they may still take: what the policy wants to stay free counts as taken. ``fits`` says
    whether the next one does. ``days_left`` is in how many days one will not, at the present growth; None where that
    is more than 60 days or 120 backups off, or where too little is known: three complete backups, over at least two
    days.
    """

    free_bytes: int
    fits: bool
    days_left: int | None


@dataclass(frozen=True, slots=True)
class _Habit:
    """How often a backup comes, by how much each is larger than the one before, and what one takes of the disk that
    shares blocks; None where none does.
    """

    step: timedelta
    growth_bytes: int
    new_bytes: int | None


@dataclass(frozen=True, slots=True)
class _Disk:
    """What lies there, and what is free besides."""

    backups: tuple[Candidate, ...]
    free_bytes: int

    def without(self, names: Iterable[str]) -> _Disk:
        gone = frozenset(names)
        stay = tuple(b for b in self.backups if b.name not in gone)
        return _Disk(stay, self.free_bytes + used_bytes(self.backups) - used_bytes(stay))


def look_ahead(backups: Iterable[Candidate], policy: Policy, now: datetime, zone: tzinfo, free_bytes: int) -> Outlook:
    """What to expect ``now`` (aware) of a disk with ``free_bytes`` that holds these ``backups`` of one job.

    Only these are seen to grow: what else fills the disk comes as a surprise.
    """
    disk = _Disk(tuple(b for b in backups if b.created_at <= now + CLOCK_SLACK), free_bytes)
    left = max(0, free_bytes - (policy.min_free_bytes or 0))
    if _with_room(disk, policy, now, zone) is None:
        return Outlook(left, fits=False, days_left=0)
    habit = _habit(disk.backups, now)
    return Outlook(left, fits=True, days_left=_days_left(disk, habit, policy, now, zone) if habit else None)


def _habit(backups: Sequence[Candidate], now: datetime) -> _Habit | None:
    recent = sorted(
        (b for b in backups if not b.partial and now - b.created_at <= _PRESENT), key=lambda b: b.created_at
    )
    if len(recent) < _FEWEST or recent[-1].created_at - recent[0].created_at < _SHORTEST_SPAN:
        return None
    # The usual distance: rules that thin out leave longer ones, and backups made by hand shorter ones.
    distances = [(later.created_at - b.created_at).total_seconds() for b, later in pairwise(recent)]
    step = max(timedelta(seconds=median(distances)), _SHORTEST_STEP)
    steps = (recent[-1].created_at - recent[0].created_at) / step
    growth_bytes = max(0, round((recent[-1].size_bytes - recent[0].size_bytes) / steps))
    return _Habit(step, growth_bytes, newly_taken(backups, now))


def _days_left(disk: _Disk, habit: _Habit, policy: Policy, now: datetime, zone: tzinfo) -> int | None:
    at = max(now, max(b.created_at for b in disk.backups) + habit.step)
    for _ in range(_MOST_RUNS):
        if at - now > _HORIZON:
            break
        room = _with_room(disk, policy, at, zone)
        if room is None:
            return (at - now).days
        disk = _after_night(room, habit, policy, at, zone)
        at += habit.step
    return None


def _with_room(disk: _Disk, policy: Policy, at: datetime, zone: tzinfo) -> _Disk | None:
    """The disk when a run begins, after what ``clean.make_room`` does; None where the run is refused."""
    room = Room(next_size(disk.backups, at), policy.min_free_bytes or 0, disk.free_bytes)
    if not room.short_bytes:
        return disk
    verdicts = plan(disk.backups, policy, at, zone, room if policy.min_free_bytes else None)
    disk = disk.without(v.name for v in verdicts if not v.keep)
    return None if replace(room, free_bytes=disk.free_bytes).short_bytes else disk


def _after_night(disk: _Disk, habit: _Habit, policy: Policy, at: datetime, zone: tzinfo) -> _Disk:
    """The disk with one backup more, and without those that the rules then let go."""
    newest = max((b for b in disk.backups if not b.partial), key=lambda b: b.created_at)
    size_bytes = newest.size_bytes + habit.growth_bytes
    every = newest.whole_every
    made = Candidate(at.isoformat(), at, partial=False, verified=True, size_bytes=size_bytes, whole_every=every)
    if habit.new_bytes is not None and not next_is_whole(disk.backups, at):
        built_on = max((b for b in disk.backups if b.verified), key=lambda b: b.created_at)
        shared_bytes = max(0, size_bytes - habit.new_bytes)
        made = replace(made, nights_shared=built_on.nights_shared + 1, shared_bytes=shared_bytes)
    backups = (*disk.backups, made)
    disk = _Disk(backups, disk.free_bytes - made.taken_bytes)
    return disk.without(v.name for v in plan(backups, policy, at, zone) if not v.keep)

"""Decides which backups may go, and says why, so that ``clean --dry-run`` can be believed before anything is deleted.

Pure: nothing is read or deleted here; the present moment, the household's zone and the room on the disk are handed in.

1. A backup dated more than a day ahead of ``now`` stays and is not counted: a clock was wrong, not the backup.
2. A complete backup stays if any rule of the policy wants it. Days, weeks and months are the household's.
3. Incomplete ones are never counted in place of a complete one. Those newer than the oldest complete one of rule 2
   are judged by the same rules among themselves. Those older than it fill the places that the complete ones leave free
   in the rules: one complete backup does not push out all that there was before it.
4. What is pinned stays. So does the newest backup that was checked, a complete one before an incomplete one.
5. Then the maxima cut, and where a run asks for room, so does that: incomplete ones first, then the oldest; never
   those of rule 4, and never the newest of all. That newest, where it is incomplete, is not counted by the maxima.
   Where all jobs of one place have a maximum together, it cuts last, in the same order: never what rule 4 protects, nor
   the newest, of any of the jobs, nor anything of one of which rule 7 says that all stay.
6. Where the newest backup older than a week is more than half a year old, the clock may have jumped, and for now no
   such old one goes by its age.
7. While the newest backup is suspicious and nobody has said that it is as it should be, all stay: the others may be all
   that there is of what it lacks. Once a newer one is not, it counts as an incomplete one.

As time goes on and newer backups come, one that no rule wanted is wanted by none later. Three things can break that
for what counts (last, days, weeks, months, and which of a Sunday's), as they leave a gap among the newer ones: one is
removed by hand or by a maximum, one is found damaged, or the clock goes back. Age alone is broken by the clock only.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass, fields
from datetime import date, datetime, timedelta, tzinfo

from memu_backup import words
from memu_backup.model import CLOCK_SLACK

_PINNED = "It is pinned and stays until somebody lets it go: memu-backup keep --release"

_LONG_SILENCE = timedelta(days=180)
_CLOCK_TRUSTED_AFTER = timedelta(days=7)


@dataclass(frozen=True, slots=True)
class Policy:
    """Which backups of a job stay: those that any rule wants, within the maxima.

    ``keep_last``: the newest so many. ``daily``, ``weekly``, ``monthly``: the newest of each of the last so many days,
    ISO weeks and months that have one. ``within_days``: all of the last so many days, today being the first.
    ``then_weekday`` (Monday is 0) and ``until_days``: the newest of each such day among the last so many days. 0 and
    None are no rule; with no rule at all, or a number below 0, raises ValueError.

    ``max_backups`` and ``max_bytes`` hold for what stays in all. ``min_free_bytes`` shall stay free on the disk.
    ``max_in_place`` is for all jobs of the place together, and for ``within_place`` alone.
    """

    keep_last: int = 0
    daily: int = 0
    weekly: int = 0
    monthly: int = 0
    within_days: int = 0
    then_weekday: int | None = None
    until_days: int = 0
    max_backups: int | None = None
    max_bytes: int | None = None
    min_free_bytes: int | None = None
    max_in_place: int | None = None

    def __post_init__(self) -> None:
        if any(value is not None and value < 0 for value in (getattr(self, f.name) for f in fields(self))):
            raise ValueError("a number below 0 is no rule")
        by_weekday = self.until_days if self.then_weekday is not None else 0
        if not (self.keep_last or self.daily or self.weekly or self.monthly or self.within_days or by_weekday):
            raise ValueError("at least 1 backup has to be kept")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored backup in the eyes of retention.

    ``partial`` is true for one that lacks something, for one known to be damaged, and for a ``suspicious`` one: none
    may push out a good one. ``verified`` says that its bytes were once re-read and found right. ``nights_shared`` and
    ``shared_bytes`` are those of its manifest, ``whole_every`` is its store's.
    """

    name: str
    created_at: datetime
    partial: bool
    verified: bool
    size_bytes: int
    pinned: bool = False
    nights_shared: int = 0
    shared_bytes: int = 0
    whole_every: int | None = None
    suspicious: bool = False

    @property
    def taken_bytes(self) -> int:
        """What the disk lost by it when it was made."""
        return max(0, self.size_bytes - self.shared_bytes)


@dataclass(frozen=True, slots=True)
class Room:
    """What the next run needs of the disk: its own size, and what shall stay free besides."""

    next_bytes: int
    min_free_bytes: int
    free_bytes: int

    @property
    def short_bytes(self) -> int:
        """What is lacking; 0 where nothing is."""
        return max(0, self.next_bytes + self.min_free_bytes - self.free_bytes)


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backup stays; ``reason`` is a sentence for people."""

    name: str
    keep: bool
    reason: str


def plan(
    backups: Sequence[Candidate], policy: Policy, now: datetime, zone: tzinfo, room: Room | None = None
) -> list[Verdict]:
    """A verdict for each of the ``backups`` of one place and job, newest first, whatever order they come in.

    With ``room``, more go where the disk is short of it, but only if that is enough: nothing goes in vain.
    """
    newest_first = sorted(backups, key=_when, reverse=True)
    ahead = [b for b in newest_first if b.created_at > now + CLOCK_SLACK]
    present = newest_first[len(ahead) :]
    if asked := waits_for(present):
        return [Verdict(b.name, keep=True, reason=_waiting(asked)) for b in newest_first]

    safe = _safe(present)
    stays = safe | _wanted_by_rules(present, policy, now, zone) | {b.name: _PINNED for b in present if b.pinned}
    goes = {b.name: _let_go(b, policy) for b in present if b.name not in stays}
    staying = [b for b in present if b.name in stays]
    goes |= _cut_by_maxima(staying, safe.keys(), policy)
    if room:
        staying = [b for b in staying if b.name not in goes]
        short_bytes = room.short_bytes - (used_bytes(present) - used_bytes(staying))
        goes |= _cut_for_room(staying, safe.keys(), room, short_bytes)

    for b in ahead:
        stays[b.name] = "It is dated in the future, so a clock was wrong; it stays and is not counted."
    return [Verdict(b.name, b.name not in goes, goes.get(b.name) or stays[b.name]) for b in newest_first]


def within_place(
    verdicts: Sequence[Verdict], jobs: Sequence[Sequence[Candidate]], most: int, now: datetime
) -> list[Verdict]:
    """The ``verdicts`` of one job where ``most`` backups may lie in its place, whatever their job; at the end those of
    other jobs that have to go for it. ``jobs`` are the backups there, job by job, in any order.
    """
    gone = {v.name for v in verdicts if not v.keep}
    safe, staying = set[str](), list[Candidate]()
    for backups in jobs:
        present = [b for b in _present(backups, now) if b.name not in gone]
        safe |= _safe(present).keys() | {b.name for b in (present if waits_for(present) else present[:1])}
        staying += present
    goes: dict[str, str] = {}
    for b in sorted(staying, key=lambda b: (not b.partial, _when(b))):
        if len(staying) - len(goes) <= most:
            break
        if b.name not in safe:
            goes[b.name] = f"At most {most} backups may lie in this place, of all jobs together, and {_first_to_go(b)}."
    judged = [Verdict(v.name, v.name not in goes and v.keep, goes.get(v.name, v.reason)) for v in verdicts]
    mine = {v.name for v in verdicts}
    return judged + [Verdict(name, False, reason) for name, reason in goes.items() if name not in mine]


def waits_for(backups: Iterable[Candidate]) -> Candidate | None:
    """The newest of the ``backups``, none of which is from the future, where it is suspicious and nothing may go until
    somebody says that it is as it should be.
    """
    newest = max((b for b in backups if b.verified), key=_when, default=None)
    return newest if newest and newest.suspicious else None


def _waiting(asked: Candidate) -> str:
    return (
        f"{asked.name} looks wrong, and nothing goes until that is settled. Is it as it should be? memu-backup accept"
    )


def next_size(backups: Iterable[Candidate], now: datetime) -> int:
    """How many bytes of the disk the next backup may take: as many as the largest of the last three complete ones, or
    where it will share blocks, as those of them that did so newly took; 0 if there is none.
    """
    present = _present(backups, now)
    new_bytes = None if next_is_whole(present, now) else newly_taken(present, now)
    return max((b.size_bytes for b in _last(present)), default=0) if new_bytes is None else new_bytes


def newly_taken(backups: Iterable[Candidate], now: datetime) -> int | None:
    """The most that one of the last three complete backups took which shared blocks; None where none of them did."""
    return max((b.taken_bytes for b in _last(_present(backups, now)) if b.shared_bytes), default=None)


def next_is_whole(backups: Iterable[Candidate], now: datetime) -> bool:
    """Whether it is the turn of a backup that is written whole, sharing nothing."""
    built_on = next((b for b in _present(backups, now) if b.verified), None)
    if built_on is None:
        return True
    return built_on.whole_every is not None and built_on.nights_shared + 1 >= built_on.whole_every


def _present(backups: Iterable[Candidate], now: datetime) -> list[Candidate]:
    return sorted((b for b in backups if b.created_at <= now + CLOCK_SLACK), key=_when, reverse=True)


def _last(newest_first: Sequence[Candidate]) -> list[Candidate]:
    return [b for b in newest_first if not b.partial][:3]


def used_bytes(backups: Iterable[Candidate]) -> int:
    """What these take of the disk together: blocks that several share are there once, and stay until the last goes."""
    used, nights = 0, sys.maxsize
    for b in sorted(backups, key=_when):
        # The oldest of those in a row that build on each other holds all that it shared with one that is gone.
        used += b.taken_bytes if b.nights_shared > nights else b.size_bytes
        nights = b.nights_shared
    return used


def _when(backup: Candidate) -> tuple[datetime, str]:
    """For sorting: of two of the same moment one is the newer, always the same one."""
    return backup.created_at, backup.name


# --- what stays ------------------------------------------------------------------------------------------------------


def wanted(backups: Sequence[Candidate], policy: Policy, now: datetime, zone: tzinfo) -> dict[str, list[str]]:
    """What the rules say, "It is" left out, of each of the ``backups`` that they want, by name.

    The backups are newest first, and none is from the future.
    """
    said: dict[str, list[str]] = {}

    def want(backup: Candidate, phrase: str) -> None:
        said.setdefault(backup.name, []).append(phrase)

    for number, b in enumerate(backups[: policy.keep_last], 1):
        want(b, f"number {number} of the {policy.keep_last} newest" if policy.keep_last > 1 else "the newest")
    dated = [(b, b.created_at.astimezone(zone).date()) for b in backups]
    for unit, count, begin in (
        ("day", policy.daily, _same),
        ("week", policy.weekly, _monday),
        ("month", policy.monthly, _first),
    ):
        for number, (b, day) in enumerate(_newest_of_each(dated, begin)[:count], 1):
            want(b, f"the newest of {_period(unit, day)} ({unit} {number} of {count})")
    today = now.astimezone(zone).date()
    for b, day in dated:
        if (today - day).days < policy.within_days:
            want(b, f"from the last {_days(policy.within_days)}")
    if policy.then_weekday is not None:
        for b, day in _newest_of_each(dated, _same):
            if day.weekday() == policy.then_weekday and (today - day).days < policy.until_days:
                want(b, f"the newest of a {words.WEEKDAYS[day.weekday()]} in the last {_days(policy.until_days)}")
    return said


def _wanted_by_rules(present: Sequence[Candidate], policy: Policy, now: datetime, zone: tzinfo) -> dict[str, str]:
    """Rules 2, 3 and 6: names and reasons."""
    complete = [b for b in present if not b.partial]
    incomplete = [b for b in present if b.partial]
    doubtful = _of_doubtful_age(present, now) if policy.within_days or policy.until_days else frozenset[str]()

    reasons = {name: f"It is {_joined(said)}." for name, said in wanted(complete, policy, now, zone).items()}
    for b in complete:
        if b.name in doubtful:
            reasons.setdefault(b.name, "The clock may have jumped; for a week nothing as old as this goes by its age.")

    window = [b for b in complete if b.name in reasons]
    newer = [b for b in incomplete if window and _when(b) > _when(window[-1])]
    older = incomplete[len(newer) :]
    wanted_newer = wanted(newer, policy, now, zone)
    why = "but newer than the oldest complete backup that stays."
    reasons |= {b.name: f"It is {_lacking(b)}, {why}" for b in newer if b.name in wanted_newer}
    why = "but there are too few complete ones yet for all that the rules keep."
    fill = wanted([*window, *older], policy, now, zone).keys() | doubtful
    return reasons | {b.name: f"It is {_lacking(b)}, {why}" for b in older if b.name in fill}


def _safe(present: Sequence[Candidate]) -> dict[str, str]:
    """Rule 4: names and reasons."""
    reasons = {b.name: _PINNED for b in present if b.pinned}
    verified = sorted((b for b in present if b.verified), key=lambda b: b.partial)  # and newest first, as they came
    for b in verified[:1]:
        reasons.setdefault(b.name, "It is the newest backup that was checked and found whole; that one always stays.")
    return reasons


def _of_doubtful_age(present: Sequence[Candidate], now: datetime) -> AbstractSet[str]:
    """Rule 6: names."""
    older = [b for b in present if now - b.created_at > _CLOCK_TRUSTED_AFTER]
    silent_since = max((b.created_at for b in older), default=now)
    return frozenset(b.name for b in older) if now - silent_since > _LONG_SILENCE else frozenset()


# --- what goes -------------------------------------------------------------------------------------------------------


def _let_go(backup: Candidate, policy: Policy) -> str:
    if backup.partial:
        return f"It is {_lacking(backup)}, and enough newer backups are there."
    return f"It is none of those that the rules keep: {described(policy)}."


def _cut_by_maxima(staying: Sequence[Candidate], safe: AbstractSet[str], policy: Policy) -> dict[str, str]:
    counted = [b for b in staying if not (b.partial and b is staying[0])]
    goes: dict[str, str] = {}
    for b in _expendable(staying, safe):
        left = [c for c in counted if c.name not in goes]
        if policy.max_backups is not None and len(left) > policy.max_backups:
            limit = f"At most {policy.max_backups} backups may be there in all"
        elif policy.max_bytes is not None and used_bytes(left) > policy.max_bytes:
            limit = f"All backups together may take {words.size(policy.max_bytes)} at most"
        else:
            break
        goes[b.name] = f"{limit}, and {_first_to_go(b)}."
    return goes


def _cut_for_room(staying: Sequence[Candidate], safe: AbstractSet[str], room: Room, short_bytes: int) -> dict[str, str]:
    used, goes = used_bytes(staying), dict[str, str]()

    def enough() -> bool:
        return used - used_bytes(b for b in staying if b.name not in goes) >= short_bytes

    for b in _expendable(staying, safe):
        if enough():
            break
        goes[b.name] = (
            f"The next backup needs about {words.size(room.next_bytes)} and {words.size(room.min_free_bytes)} shall "
            f"stay free, but only {words.size(room.free_bytes)} are free, and {_first_to_go(b)}."
        )
    return goes if enough() else {}


def _expendable(staying: Sequence[Candidate], safe: AbstractSet[str]) -> list[Candidate]:
    """Rule 5: those that may go, in the order in which they do; ``staying`` is newest first."""
    oldest_first = [b for b in reversed(staying[1:]) if b.name not in safe]
    return sorted(oldest_first, key=lambda b: not b.partial)


def _first_to_go(backup: Candidate) -> str:
    if not backup.partial:
        return "it is the oldest that may go"
    return f"{'an' if _lacking(backup)[0] == 'i' else 'a'} {_lacking(backup)} one goes first"


def _lacking(backup: Candidate) -> str:
    return "damaged" if not backup.verified else "suspicious" if backup.suspicious else "incomplete"


# --- days, weeks and months, and how they are told -------------------------------------------------------------------


def _newest_of_each(
    dated: Sequence[tuple[Candidate, date]], begin: Callable[[date], date]
) -> list[tuple[Candidate, date]]:
    """The newest of each day, week or month, and its own day; newest first, as ``dated`` is."""
    newest: dict[date, tuple[Candidate, date]] = {}
    for b, day in dated:
        newest.setdefault(begin(day), (b, day))
    return list(newest.values())


def _same(day: date) -> date:
    return day


def _monday(day: date) -> date:
    return day - timedelta(days=day.weekday())


def _first(day: date) -> date:
    return day.replace(day=1)


def _period(unit: str, day: date) -> str:
    """26 Jan 2026, the week of 26 Jan 2026, Jan 2026."""
    if unit == "month":
        return f"{words.MONTHS[day.month - 1]} {day.year}"
    begin = _monday(day) if unit == "week" else day
    return f"{'the week of ' if unit == 'week' else ''}{begin.day} {words.MONTHS[begin.month - 1]} {begin.year}"


def described(policy: Policy) -> str:
    """Its rules as a phrase: one a day for 7 days and one a week for 4 weeks."""
    parts = []
    if policy.keep_last:
        parts.append(f"the {policy.keep_last} newest" if policy.keep_last > 1 else "the newest")
    for unit, count in (("day", policy.daily), ("week", policy.weekly), ("month", policy.monthly)):
        if count:
            parts.append(f"one a {unit} for {count} {unit}{'' if count == 1 else 's'}")
    if policy.within_days:
        parts.append(f"all of the last {_days(policy.within_days)}")
    if policy.then_weekday is not None:
        parts.append(f"one each {words.WEEKDAYS[policy.then_weekday]} of the last {_days(policy.until_days)}")
    return _joined(parts)


def _days(number: int) -> str:
    return f"{number} day{'' if number == 1 else 's'}"


def _joined(phrases: Sequence[str]) -> str:
    """one; one and two; one, two and three."""
    return " and ".join(filter(None, (", ".join(phrases[:-1]), phrases[-1])))

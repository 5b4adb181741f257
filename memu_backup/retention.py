"""Decides which backups may go, and says why, so that ``clean --dry-run`` can be believed before anything is deleted.

Pure: nothing is read or deleted here, and the present moment is handed in. The rules, for "keep the last N":

1. A backup dated more than a day ahead of ``now`` stays and is not counted: a clock was wrong, not the backup.
2. Of the complete backups the newest N stay. One that was never checked counts like any other, since where checking
   is switched off the disk would fill up otherwise ...
3. ... but the newest checked backup stays in any case, beyond the N if need be: N unchecked ones never push out the
   last of which we know that it can be read. Where no complete one was checked, that goes for an incomplete one.
4. Incomplete backups never count toward N. Those newer than the oldest complete one of rule 2 stay, the newest N of
   them. Of the others the newest fill the places that rule 2 leaves free: none once there are N complete ones, so one
   complete backup does not push out all that there was before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

CLOCK_SLACK = timedelta(days=1)
"""A backup dated further ahead than this was written while a clock was wrong."""


@dataclass(frozen=True, slots=True)
class KeepLast:
    """Keep the last ``count`` backups, at least 1; raises ValueError below that."""

    count: int

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"at least 1 backup has to be kept, not {self.count}")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A stored backup in the eyes of retention.

    ``partial`` is true for one that lacks something and for one known to be damaged: neither may push out a good
    one. ``verified`` says that its bytes were once re-read and found right.
    """

    name: str
    created_at: datetime
    partial: bool
    verified: bool
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """Whether a backup stays; ``reason`` is a sentence for people."""

    name: str
    keep: bool
    reason: str


def plan(backups: Sequence[Candidate], policy: KeepLast, now: datetime) -> list[Verdict]:
    """A verdict for each of the ``backups`` of one place and job, newest first, whatever order they come in."""
    newest_first = sorted(backups, key=lambda b: (b.created_at, b.name), reverse=True)
    present = [b for b in newest_first if b.created_at <= now + CLOCK_SLACK]
    complete = [b for b in present if not b.partial]
    incomplete = [b for b in present if b.partial]

    reasons = _kept(complete, incomplete, policy.count)
    proven = next((b for b in [*complete, *incomplete] if b.verified), None)
    if proven and proven.name not in reasons:
        reasons[proven.name] = "It is the newest backup that was checked and found whole; that one always stays."
    for ahead in newest_first[: len(newest_first) - len(present)]:
        reasons[ahead.name] = "It is dated in the future, so a clock was wrong; it stays and is not counted."

    return [Verdict(b.name, b.name in reasons, reasons.get(b.name) or _dropped(b, policy.count)) for b in newest_first]


def _kept(complete: Sequence[Candidate], incomplete: Sequence[Candidate], count: int) -> dict[str, str]:
    """Rules 2 and 4: names and reasons of what stays, both sequences being newest first."""
    window = complete[:count]
    reasons = {b.name: f"It is number {i} of the {count} newest complete backups." for i, b in enumerate(window, 1)}
    newer = [b for b in incomplete if window and b.created_at > window[-1].created_at]
    older = incomplete[len(newer) :]
    why = "It is incomplete, but newer than the oldest complete backup that stays."
    reasons |= {b.name: why for b in newer[:count]}
    why = "It is incomplete, but there is no complete backup yet."
    if window:
        are = "is" if len(window) == 1 else "are"
        why = f"It is incomplete, but only {len(window)} of {count} complete backups {are} there yet."
    return reasons | {b.name: why for b in older[: count - len(window)]}


def _dropped(backup: Candidate, count: int) -> str:
    if backup.partial:
        return "It is incomplete, and enough newer backups are there."
    return f"{count} newer complete backup{'' if count == 1 else 's'} {'is' if count == 1 else 'are'} there."

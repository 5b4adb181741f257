"""Judges from rows and files whether the family's data is safe, so that chat, command line and web all say the same.

Pure: nothing is read here, and the present moment is handed in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise

from memu_backup import rotation, words
from memu_backup.errors import MemuError
from memu_backup.model import (
    Backup,
    Drill,
    Problem,
    Run,
    SourceSummary,
    Status,
    StatusReport,
    Trigger,
)
from memu_backup.outlook import Outlook

OVERDUE_INTERVALS = 1.5
"""So many intervals without a good backup are too many: a late run is no alarm, a missed one is."""

SPACE_SHORT_DAYS = 14
"""A disk that will be full sooner is told: time for a weekend in which to do something about it."""

CLOCKS_APART = timedelta(minutes=5)
"""Clocks of two machines differ by less; what is dated further ahead was written while a clock was wrong."""


def assess(
    runs: Sequence[Run],
    stored: Sequence[Backup] | None,
    now: datetime,
    *,
    interval: timedelta | None,
    usb_overdue_days: int,
    marked: bool = True,
    outlook: Outlook | None = None,
    history_away: bool = False,
    usb_copied_at: datetime | None = None,
    drills: Sequence[Drill] | None = None,
) -> StatusReport:
    """Where things stand ``now`` (aware).

    ``runs`` are the rows of one job, newest first; ``stored`` is what really lies in its place. Read the rows before
    you list the files, or a backup that ends in between looks lost. None where nobody can look there from here: what
    the rows tell is then taken to be so, and the report says it. A stored backup of which no row tells is taken
    at its own word (its manifest), so the answer holds while the history is away or was lost. Rows and files dated
    ahead of ``now`` are passed over, except that ``stored_count`` and ``stored_bytes`` tell all that lies there.
    ``marked`` is whether that place carries the mark without which nothing is written there at night.
    ``interval`` is the usual time between two runs, None for a job without a timetable. ``usb_overdue_days`` 0 means
    that no drive is part of the plan, and ``usb_copied_at`` is when a drive got its last copy as far as this machine
    knows by itself; rows may know of a later one. ``outlook`` is None where the disk could not be asked. ``drills`` are
    the job's restore tests, newest first; None where nothing is tried by itself.
    """
    cannot_look = stored is None
    stored = stored or ()
    names = {r.filename for r in runs} if cannot_look else {n for b in stored for n in (b.name, b.path.name)}
    known = [r for r in with_unrecorded(runs, stored) if r.created_at <= now + CLOCKS_APART]
    ended = [r for r in known if r.status is not Status.IN_PROGRESS]
    good = [r for r in ended if r.status is Status.SUCCESS]
    last_good = next((r for r in good if _lies_there(r, names)), None)
    in_doubt = _in_doubt(ended, None if cannot_look else names)
    copies = [at for at in (usb_copied_at, *(r.usb_copied_at for r in known)) if at and at <= now + CLOCKS_APART]
    usb_copied_at = max(copies, default=None)

    overdue_at = last_good.created_at + OVERDUE_INTERVALS * interval if interval and last_good else None

    problems = _problems_of_runs(ended, last_good, names) | _problems_of_place(cannot_look, marked, outlook)
    if cannot_look:
        problems.discard(Problem.NO_BACKUP)
    if overdue_at and now > overdue_at:
        problems.add(Problem.OVERDUE)
    if in_doubt:
        problems.add(Problem.SUSPICIOUS)
    if history_away:
        problems.add(Problem.HISTORY_AWAY)
    if usb_overdue_days and (usb_copied_at or not history_away):
        waiting_since = usb_copied_at or (good[-1].created_at if good else now)
        if now - waiting_since > timedelta(days=usb_overdue_days):
            problems.add(Problem.USB_OVERDUE)

    return StatusReport(
        problems=tuple(p for p in Problem if p in problems),
        last=ended[0] if ended else None,
        last_good=last_good,
        # A row in progress below one that has ended was left by a killed process: runs do not overlap.
        in_progress=known[0] if known and known[0].status is Status.IN_PROGRESS else None,
        stored_count=len(stored),
        stored_bytes=sum(b.size_bytes for b in stored),
        usb_expected=usb_overdue_days > 0,
        usb_copied_at=usb_copied_at,
        history_away=history_away,
        overdue_at=overdue_at,
        free_bytes=outlook.free_bytes if outlook else None,
        days_left=outlook.days_left if outlook else None,
        sources=_sources(last_good, stored),
        in_doubt=in_doubt,
        drill=rotation.telling(drills or ()),
        drill_late=drills is not None
        and not history_away
        and rotation.is_late(drills, min((r.created_at for r in good), default=None), now),
        doubts=next((b.doubts for b in stored if in_doubt and in_doubt.filename in (b.name, b.path.name)), ()),
    )


def with_problem(report: StatusReport, problem: Problem) -> StatusReport:
    """What a household's report says of something that is no job's own."""
    found = {*report.problems, problem}
    return replace(report, problems=tuple(p for p in Problem if p in found))


def assess_elsewhere(runs: Sequence[Run], now: datetime) -> StatusReport:
    """Where a job of another machine stands ``now`` (aware), by its rows alone, newest first."""
    report = assess(runs, None, now, interval=rhythm(runs, now), usb_overdue_days=0)
    there = [r for r in runs if r.status in (Status.SUCCESS, Status.PARTIAL) and r.deleted_at is None]
    return replace(
        report,
        problems=tuple(p for p in report.problems if p is not Problem.CANNOT_LOOK),
        stored_count=len(there),
        stored_bytes=sum(r.size_bytes for r in there),
        elsewhere=True,
    )


def rhythm(runs: Sequence[Run], now: datetime) -> timedelta | None:
    """How often a job runs of which only the runs are known; None where no timetable ever set it off.

    The second longest of its last fifteen pauses: one night that the machine was off says nothing, but a job of
    weekdays has more weekends than that. A day, as long as there are fewer than three.
    """
    moments = sorted(
        {r.created_at for r in runs if r.trigger is not Trigger.MANUAL and r.created_at <= now + CLOCKS_APART}
    )
    pauses = sorted(later - earlier for earlier, later in pairwise(moments[-16:]))
    usual = pauses[-2] if len(pauses) > 2 else timedelta(days=1)
    return usual if moments else None


def _problems_of_runs(ended: Sequence[Run], last_good: Run | None, names: set[str]) -> set[Problem]:
    last = ended[0] if ended else None
    newest_success = next((r for r in ended if r.status is Status.SUCCESS), None)
    found = set()
    if last is None:
        found.add(Problem.NO_BACKUP)
    elif last.status is Status.FAILED:
        found.add(Problem.LAST_FAILED)
    elif last.status is Status.PARTIAL and not last.suspicious:
        found.add(Problem.LAST_PARTIAL)
    if newest_success and newest_success.deleted_at is None and not _lies_there(newest_success, names):
        found.add(Problem.BACKUP_GONE)
    if last_good is None and any(r.status is not Status.PARTIAL for r in ended):
        found.add(Problem.NOTHING_GOOD)
    if any(r.error_code == "damaged" and _lies_there(r, names) for r in ended[1:]):
        found.add(Problem.OLDER_DAMAGED)
    return found


def _in_doubt(ended: Sequence[Run], names: set[str] | None) -> Run | None:
    """The newest backup that is whole on the disk, where it is suspicious; ``names`` None where nobody can look."""
    made = (r for r in ended if r.status in (Status.SUCCESS, Status.PARTIAL) and r.deleted_at is None)
    newest = next((r for r in made if names is None or r.filename in names), None)
    return newest if newest and newest.suspicious else None


def _problems_of_place(cannot_look: bool, marked: bool, outlook: Outlook | None) -> set[Problem]:
    found = set()
    if cannot_look:
        found.add(Problem.CANNOT_LOOK)
    if not marked:
        found.add(Problem.NOT_MARKED)
    if outlook and not outlook.fits:
        found.add(Problem.NO_ROOM)
    elif outlook and outlook.days_left is not None and outlook.days_left < SPACE_SHORT_DAYS:
        found.add(Problem.SPACE_SHORT)
    return found


def _sources(run: Run | None, stored: Sequence[Backup]) -> tuple[SourceSummary, ...]:
    made = next((b.manifest for b in stored if run and run.filename in (b.name, b.path.name)), None)
    return made.sources if made else ()


def _lies_there(run: Run, names: set[str]) -> bool:
    return run.deleted_at is None and run.filename in names


def with_unrecorded(runs: Sequence[Run], stored: Sequence[Backup]) -> list[Run]:
    """All runs, newest first, with those added that only their backup tells of; damaged where that is noted there, and
    suspicious just where that is.
    """
    damaged = {n for b in stored if b.damaged for n in (b.name, b.path.name)}
    lying = {b.manifest.run_id: b for b in stored if b.manifest}
    runs = [_as_noted(r, lying[r.run_id]) if r.run_id in lying else r for r in runs]
    runs = [_found_damaged(r) if _lies_there(r, damaged) else r for r in runs]
    recorded = {r.filename for r in runs}
    added = [from_backup(b) for b in stored if b.manifest and not recorded & {b.name, b.path.name}]
    return sorted([*runs, *added], key=lambda r: r.created_at, reverse=True)


def from_backup(backup: Backup) -> Run:
    """The row of a backup that nobody wrote down, from what it says of itself (it has a manifest)."""
    made = backup.manifest
    assert made is not None
    blank = Run(
        run_id=made.run_id,
        host=made.host,
        job=made.job,
        # Nobody wrote down what set it off; MANUAL is the word that claims no timetable was kept.
        trigger=Trigger.MANUAL,
        filename=backup.name,
        status=Status.SUCCESS,
        created_at=backup.created_at,
    )
    return adopted(blank, backup)


def failed(row: Run, error: MemuError) -> Run:
    return replace(row, status=Status.FAILED, error=str(error), error_code=error.code)


def _found_damaged(row: Run) -> Run:
    if row.error_code == "damaged":
        return row
    said = f"{row.filename} was found damaged. To see what is lost, type: memu-backup verify {row.filename}"
    return replace(row, status=Status.FAILED, error_code="damaged", error=said)


def _as_noted(row: Run, backup: Backup) -> Run:
    """Somebody may have accepted it by hand, or was killed in between."""
    made = row.status in (Status.SUCCESS, Status.PARTIAL) and row.deleted_at is None
    return adopted(row, backup) if made and row.suspicious != bool(backup.doubts) else row


def adopted(row: Run, backup: Backup) -> Run:
    """``row``, with all that follows from the backup that lies there (it has a manifest): it was made, whole or not or
    suspicious, and may have been found damaged since.
    """
    made = backup.manifest
    assert made is not None
    missing = [m for s in made.sources for m in s.missing]
    row = replace(
        row,
        filename=backup.name,
        status=Status.PARTIAL if made.partial else Status.SUCCESS,
        error=(missing[0] if len(missing) == 1 else words.unread(len(missing))) if missing else None,
        error_code=None,
        location=str(backup.path),
        size_bytes=backup.size_bytes,
        content_bytes=made.size_bytes,
        files=made.files,
        warnings=tuple(w for s in made.sources for w in (*s.missing, *s.warnings)),
    )
    if backup.doubts:
        row = replace(row, status=Status.PARTIAL, error_code="suspicious", error=words.doubted(backup.doubts))
    return _found_damaged(row) if backup.damaged else row

"""Reports on a day, a week and a month of backups, out of the rows and of what is stored. Pure.

They are those that Monsterr's document lists.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, tzinfo
from datetime import time as time_of_day

from memu_backup import words
from memu_backup.model import Backup, ReportKind, Run, Status, StatusReport

_ERRORS_TOLD = 20
_STALE = timedelta(days=1)
"""Nobody needs to hear what a report told of a morning long ago: the next comes, or whoever wants it asks."""


SPANS = {
    ReportKind.DAILY: timedelta(days=1),
    ReportKind.WEEKLY: timedelta(days=7),
    ReportKind.MONTHLY: timedelta(days=30),
    ReportKind.ERRORS: timedelta(days=30),
}

_TITLES = {
    ReportKind.DAILY: "Daily backup summary",
    ReportKind.WEEKLY: "Weekly space usage",
    ReportKind.MONTHLY: "Monthly status report",
    ReportKind.ERRORS: "Backup errors of the last 30 days",
}


@dataclass(frozen=True, slots=True)
class JobPart:
    """One job within the time of a report. ``new_bytes`` is what the backups made in it took of the disk, ``removed``
    how many older ones went; all that is ``stored`` and ``free`` is as it is now.
    """

    job: str
    health: str
    made: int
    incomplete: int
    suspicious: int
    failed: int
    removed: int
    new_bytes: int
    last_good_at: datetime | None
    last_good_files: int
    last_good_bytes: int
    last_error_code: str | None
    stored_count: int
    stored_bytes: int
    taken_bytes: int
    unchecked: int
    free_bytes: int | None
    days_left: int | None


@dataclass(frozen=True, slots=True)
class Digest:
    """``errors`` are runs that failed or lack something, newest first. With ``history_away`` some may be missing."""

    kind: ReportKind
    since: datetime
    until: datetime
    jobs: tuple[JobPart, ...]
    errors: tuple[Run, ...]
    history_away: bool = False


def digest(
    kind: ReportKind,
    reports: Mapping[str, StatusReport],
    runs: Iterable[Run],
    stored: Sequence[Backup],
    now: datetime,
    *,
    history_away: bool = False,
) -> Digest:
    """The time of ``kind`` up to ``now`` (aware). ``reports`` are those of the jobs that it tells of, ``runs`` and
    ``stored`` all that is known of this machine.
    """
    since = now - SPANS[kind]
    within = sorted((r for r in runs if since < r.created_at <= now), key=lambda r: r.created_at, reverse=True)
    ended = [r for r in within if r.job in reports and r.status is not Status.IN_PROGRESS]
    gone = [r for r in runs if r.deleted_at and since < r.deleted_at <= now]
    jobs = tuple(_of_job(job, report, ended, gone, stored, since) for job, report in reports.items())
    errors = tuple(r for r in ended if r.status is not Status.SUCCESS)
    return Digest(kind, since, now, jobs, errors, history_away)


def _of_job(
    job: str,
    report: StatusReport,
    ended: Sequence[Run],
    gone: Sequence[Run],
    stored: Sequence[Backup],
    since: datetime,
) -> JobPart:
    mine = [r for r in ended if r.job == job]
    there = [b for b in stored if b.manifest and b.manifest.job == job]
    failed = [r for r in mine if r.status is Status.FAILED]
    good = report.last_good
    return JobPart(
        job=job,
        health=report.health.value,
        made=sum(r.status is Status.SUCCESS for r in mine),
        incomplete=sum(r.status is Status.PARTIAL and not r.suspicious for r in mine),
        suspicious=sum(r.status is Status.PARTIAL and r.suspicious for r in mine),
        failed=len(failed),
        removed=sum(r.job == job for r in gone),
        new_bytes=sum(b.taken_bytes for b in there if b.created_at > since),
        last_good_at=good.created_at if good else None,
        last_good_files=good.files if good else 0,
        last_good_bytes=good.size_bytes if good else 0,
        last_error_code=failed[0].error_code if failed else None,
        stored_count=report.stored_count,
        stored_bytes=report.stored_bytes,
        taken_bytes=sum(b.taken_bytes for b in there),
        unchecked=sum(r.status is Status.SUCCESS and r.verified_at is None for r in mine),
        free_bytes=report.free_bytes,
        days_left=report.days_left,
    )


def due(
    kinds: Iterable[ReportKind], time: time_of_day, now: datetime, zone: tzinfo
) -> Iterator[tuple[ReportKind, datetime]]:
    """Which of them are to be sent ``now``, and since when (UTC): each day, on Mondays (errors, too), on the 1st, from
    that time of day on by the household's clocks. After a day it is too late.
    """
    local = now.astimezone(zone)
    for kind in kinds:
        for back in (0, 1):
            day = local.date() - timedelta(days=back)
            at = datetime.combine(day, time, zone).astimezone(UTC)
            its_day = {ReportKind.DAILY: True, ReportKind.MONTHLY: day.day == 1}.get(kind, day.weekday() == 0)
            if its_day and timedelta() <= now - at < _STALE:
                yield kind, at
                break  # a day of 23 hours


# --- as people read it -----------------------------------------------------------------------------------------------


def text(told: Digest, zone: tzinfo) -> str:
    """Its title, and a line a job or an error."""
    lines = {ReportKind.DAILY: _day, ReportKind.WEEKLY: _space, ReportKind.MONTHLY: _month}
    line = lines.get(told.kind)
    body = [f"{part.job}: {line(part, told.until, zone)}" for part in told.jobs] if line else _errors(told, zone)
    if told.history_away:
        body.append("The history cannot be reached, so that there may be more than is told here.")
    return "\n".join([_TITLES[told.kind], *body])


def _day(part: JobPart, now: datetime, zone: tzinfo) -> str:
    return f"{_runs(part)}; {_last_good(part, now, zone)}"


def _space(part: JobPart, now: datetime, zone: tzinfo) -> str:  # noqa: ARG001  as the others
    said = [f"{_count(part.stored_count)} stored, {words.size(part.stored_bytes)} together"]
    if part.taken_bytes < part.stored_bytes:
        said.append(f"{words.size(part.taken_bytes)} of the disk, as they share files")
    said.append(f"{words.size(part.new_bytes)} new and {_count(part.removed)} removed in 7 days")
    if part.free_bytes is not None:
        said.append(f"{words.size(part.free_bytes)} free")
    if part.days_left is not None:
        said.append(f"full in {words.about_days(part.days_left)}")
    return "; ".join(said)


def _month(part: JobPart, now: datetime, zone: tzinfo) -> str:
    unchecked = f"; {_count(part.unchecked)} never read back" if part.unchecked else ""
    stored = f"{_count(part.stored_count)} stored ({words.size(part.stored_bytes)})"
    return f"{_runs(part)}{unchecked}; {stored}; {_last_good(part, now, zone)}; health: {part.health}"


def _errors(told: Digest, zone: tzinfo) -> list[str]:
    lines = [
        f"{words.moment(run.created_at, told.until, zone)}, {run.job}: "
        f"{' '.join(words.printable(run.error or words.reason(run.error_code).what).split())}"
        for run in told.errors[:_ERRORS_TOLD]
    ]
    more = len(told.errors) - _ERRORS_TOLD
    return [*lines, *([f"and {more} more: memu-backup report errors --json"] if more > 0 else [])] or ["None."]


def _runs(part: JobPart) -> str:
    said = [f"{_count(part.made)} made"]
    said += [f"{part.incomplete} incomplete"] if part.incomplete else []
    said += [f"{part.suspicious} suspicious"] if part.suspicious else []
    said += [f"{part.failed} failed ({words.reason(part.last_error_code).what})"] if part.failed else []
    return ", ".join(said)


def _last_good(part: JobPart, now: datetime, zone: tzinfo) -> str:
    if part.last_good_at is None:
        return "no good one yet"
    what = f"{words.files(part.last_good_files)}, {words.size(part.last_good_bytes)}"
    return f"the last good one {words.inline(words.moment(part.last_good_at, now, zone))} ({what})"


def _count(number: int) -> str:
    return f"{number:,} backup{'' if number == 1 else 's'}"

"""Says what is wrong right now with a household's backups, as troubles with the words for each, and what is well.

Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo

from memu_backup import messages
from memu_backup.alarms import Trouble
from memu_backup.model import Problem, Run, Status, StatusReport, Tried

_SLACK = timedelta(hours=2)
"""What was to be tried again, and was not so much later, is not tried any more."""

_MADE_UP = timedelta(minutes=5)
"""By then a service that starts, or wakes, has begun what it missed."""

_HANGS = timedelta(hours=12)
"""No backup of a household takes so long, but for the first."""

_GATHERED = timedelta(minutes=10)
"""By then what re-reads has come past the other trees that share a file gone bad: one message and not thirty."""

_FRESH = timedelta(days=1)
_FULL = frozenset({"disk_full", "no_inodes", "quota"})


@dataclass(slots=True)
class Found:
    """``well`` are, by topic, the words for its end. Of what is ``undecided`` nothing can be said yet. ``rows`` are, by
    topic, the rows that are a debt until its trouble was told; ``settled`` are debts of which nothing has to be told.
    """

    troubles: list[Trouble] = field(default_factory=list)
    well: dict[str, str] = field(default_factory=dict)
    undecided: set[str] = field(default_factory=set)
    rows: dict[str, list[Run]] = field(default_factory=dict)
    settled: list[Run] = field(default_factory=list)

    def drop(self, topic: str) -> None:
        """Nothing has to be told of it."""
        self.troubles = [trouble for trouble in self.troubles if trouble.topic != topic]
        self.settled += self.rows.pop(topic, [])


def of_jobs(
    reports: Mapping[str, StatusReport],
    debts: Iterable[Run],
    disks: Mapping[str, str],
    now: datetime,
    zone: tzinfo,
    *,
    completed: bool,
) -> Found:
    """Of each job, by its report; ``debts`` are the rows of these jobs that nobody was told of, and ``disks`` says for
    each job where its backups lie. ``completed``: a backup that went well is told of, too.
    """
    found = Found()
    owed = list(debts)
    for job, report in reports.items():
        name = job if len(reports) > 1 else ""
        mine = [run for run in owed if run.job == job]
        _of_job(found, job, name, report, mine, now, zone)
        _of_drill(found, job, name, report, now, zone)
        if completed:
            _completed(found, job, name, report, now, zone)
    _of_space(found, reports, disks)
    return found


def _of_job(
    found: Found, job: str, name: str, report: StatusReport, debts: Sequence[Run], now: datetime, zone: tzinfo
) -> None:
    topic, last = f"job:{job}", report.last
    older = [run for run in debts if last and run.created_at < last.created_at]
    _of_damaged(found, job, name, [run for run in older if run.error_code == "damaged"], now, zone)
    if last and last.status is Status.FAILED and last.retry_at and now < last.retry_at + _SLACK:
        found.undecided.add(topic)
        return
    if not report.history_away:  # else what came after them is not known
        found.settled += [run for run in older if run.error_code != "damaged"]
    if last and last.status is Status.FAILED:
        cause, text = last.error_code or "unexpected", messages.failed(last, now, zone, name)
        found.troubles.append(Trouble(topic, cause, text, known=last.notification_sent))
        found.rows[topic] = [last]
    elif report.in_doubt:
        run, doubts = report.in_doubt, report.doubts
        cause = " ".join(["suspicious", *sorted(f"{doubt.source}:{doubt.what}" for doubt in doubts)])
        text = messages.suspicious(run, doubts, report.last_good, now, zone, name)
        found.troubles.append(Trouble(topic, cause, text, known=run.notification_sent, asks=run.run_id))
        found.rows[topic] = [r for r in debts if r.suspicious]
    elif last and last.status is Status.PARTIAL:
        text = messages.incomplete(last, now, zone, name)
        found.troubles.append(Trouble(topic, "partial", text, known=last.notification_sent))
        found.rows[topic] = [last]
    elif report.last_good and Problem.OVERDUE in report.problems and _is_made(report, now):
        found.undecided.add(topic)  # it is just being made up for
    elif report.last_good and Problem.OVERDUE in report.problems:
        text = messages.overdue(report.last_good, now, zone, name)
        found.troubles.append(Trouble(topic, "overdue", text, wait=_MADE_UP))
    elif report.last_good is None or Problem.CANNOT_LOOK in report.problems:
        found.undecided.add(topic)
    else:
        found.well[topic] = messages.well(report.last_good, now, zone, name)


def _is_made(report: StatusReport, now: datetime) -> bool:
    return report.in_progress is not None and now - report.in_progress.created_at < _HANGS


def _of_damaged(found: Found, job: str, name: str, damaged: Sequence[Run], now: datetime, zone: tzinfo) -> None:
    if damaged:
        topic, cause = f"damaged:{job}", " ".join(sorted(run.run_id for run in damaged))
        text = messages.damaged(damaged, now, zone, name)
        found.troubles.append(Trouble(topic, cause, text, once=True, wait=_GATHERED))
        found.rows[topic] = list(damaged)


def _of_drill(found: Found, job: str, name: str, report: StatusReport, now: datetime, zone: tzinfo) -> None:
    topic, drill = f"drill:{job}", report.drill
    if report.history_away or drill is None or drill.outcome is Tried.UNTRIED:
        found.undecided.add(topic)
    elif drill.outcome is Tried.FAILED:
        found.troubles.append(Trouble(topic, drill.drill_id, messages.drill_failed(drill, now, zone, name)))
    else:
        found.well[topic] = messages.well_drill(drill, now, zone, name)


def _completed(found: Found, job: str, name: str, report: StatusReport, now: datetime, zone: tzinfo) -> None:
    last = report.last
    if last and last.status is Status.SUCCESS and not last.notification_sent and now - last.created_at < _FRESH:
        topic = f"completed:{job}"
        found.troubles.append(Trouble(topic, last.run_id, messages.completed(last, now, zone, name), once=True))
        found.rows[topic] = [last]


def _of_space(found: Found, reports: Mapping[str, StatusReport], disks: Mapping[str, str]) -> None:
    """Once a disk, however many jobs share it; not beside the alert of a backup that failed for just that."""
    for disk in dict.fromkeys(disks.values()):
        topic = f"space:{disk}"
        mine = [report for job, report in reports.items() if disks[job] == disk]
        known = [(r.free_bytes, r.days_left or 0, r.problems) for r in mine if r.free_bytes is not None]
        if len(known) < len(mine) or any(r.last and r.last.error_code in _FULL for r in mine):
            found.undecided.add(topic)  # as while a backup is being made
            continue
        for free_bytes, days_left, problems in known:
            if Problem.NO_ROOM in problems:
                found.troubles.append(Trouble(topic, "no_room", messages.no_room(free_bytes)))
                break
            if Problem.SPACE_SHORT in problems:
                found.troubles.append(Trouble(topic, "space_short", messages.space_short(free_bytes, days_left)))
                break
        else:
            found.well[topic] = messages.well_space(min(free for free, _, _ in known))

"""One glance: is everything safe, what runs, which nights have a backup, and how large they become."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from datetime import date, timedelta

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse

from memu_backup import words
from memu_backup.access import Role
from memu_backup.model import Health, Run, Status
from memu_backup.sources import told
from memu_backup.under_way import UnderWay
from memu_backup.web.page.guest import GUEST, Guest
from memu_backup.web.page.shown import line, page
from memu_backup.web.who import TheDesk

router = APIRouter()

_WEEKS = 5
_BARS = 30
_VERDICTS = {Health.HEALTHY: "Safe", Health.WARNING: "Look at this", Health.CRITICAL: "Act now"}


@dataclass(frozen=True, slots=True)
class Day:
    """One square of the calendar: ``state`` is good, partial, failed, none or blank."""

    day: date
    state: str
    says: str


@dataclass(frozen=True, slots=True)
class Bar:
    """One backup in the chart: its parts of the largest and the longest, in percent."""

    says: str
    size: int
    duration: int


@router.get("/")
async def overview(request: Request, desk: TheDesk, who: Guest) -> Response:
    manager, now, zone = desk.manager, desk.clock(), desk.manager.config.zone
    reports = await desk.glance.reports()
    runs, _ = await manager.history.known_runs(host=manager.config.host, quiet=True)
    worst = max((r.health for r in reports.values()), key=list(Health).index, default=Health.CRITICAL)
    jobs = []
    for job, report in reports.items():
        tested = [words.restore_test(report.drill, now, zone)] if report.drill else []
        more = [one for one in words.details(report, told, now, zone) if one not in tested]
        jobs.append((job, words.status_message(report, now, zone).splitlines()[1:] + tested, more))
    asked = [(words.question(r.doubts), r.in_doubt.filename) for r in reports.values() if r.in_doubt]
    free = next((r for r in reports.values() if r.free_bytes is not None), None)
    until = now.astimezone(zone).date()
    full = None
    if free and free.days_left is not None:
        full = f"full in {words.about_days(free.days_left)}, on {until + timedelta(days=free.days_left):%-d %B}"
    return page(
        request,
        "overview.html",
        who,
        health=worst.value,
        verdict=_VERDICTS[worst],
        jobs=jobs,
        off=manager.config.off,
        asked=asked,
        names=list(manager.config.jobs),
        drives=[(drive, words.drive_age(drive, now, zone)) for r in list(reports.values())[:1] for drive in r.drives],
        free=free.free_bytes if free else None,
        full=full,
        weeks=calendar(runs, until, lambda run: run.created_at.astimezone(zone).date()),
        bars=chart(runs, lambda run: words.moment(run.created_at, now, zone)),
        kept=await manager.returns.kept() if who.role is Role.ADMIN else [],
        ended=[line(one) for one in manager.under_way.all() if one.outcome][:5],
    )


def calendar(runs: Sequence[Run], today: date, day_of: Callable[[Run], date]) -> list[list[Day]]:
    """Weeks from Monday on, the newest last; each day with the best that was made on it."""
    made: dict[date, list[Run]] = {}
    for run in runs:
        made.setdefault(day_of(run), []).append(run)
    first = today - timedelta(days=today.weekday(), weeks=_WEEKS - 1)
    days = [first + timedelta(days=n) for n in range(7 * _WEEKS)]
    since = min(made, default=today)  # before that nobody expected any
    squares = [_day(day, made.get(day, []), expected=since <= day <= today) for day in days]
    return [squares[n : n + 7] for n in range(0, len(squares), 7)]


_RANK = {Status.SUCCESS: "good", Status.PARTIAL: "partial", Status.FAILED: "failed"}


def _day(day: date, runs: Sequence[Run], *, expected: bool) -> Day:
    if not expected:
        return Day(day, "blank", "")
    best = next((run for status in _RANK for run in runs if run.status is status), None)
    if best is None:
        return Day(day, "none", "no backup")
    state = _RANK[best.status]
    said = {"good": f"a good backup, {words.size(best.size_bytes)}", "partial": "one that lacks something"}
    return Day(day, state, said.get(state, "it failed"))


def chart(runs: Sequence[Run], when: Callable[[Run], str]) -> list[Bar]:
    """The last good ones, the newest last."""
    good = [run for run in runs if run.status is Status.SUCCESS and run.size_bytes][:_BARS][::-1]
    largest = max((run.size_bytes for run in good), default=1)
    longest = max((run.duration_seconds or 0 for run in good), default=0) or 1
    return [
        Bar(
            f"{when(run)}: {words.size(run.size_bytes)} in {words.duration(run.duration_seconds or 0)}",
            max(1, run.size_bytes * 100 // largest),
            (run.duration_seconds or 0) * 100 // longest,
        )
        for run in good
    ]


@router.get("/live", dependencies=GUEST)
async def live(desk: TheDesk) -> StreamingResponse:
    """What is under way, in the words of the page."""
    return StreamingResponse(_live(desk.manager.under_way), media_type="text/event-stream")


async def _live(under_way: UnderWay) -> AsyncIterator[str]:
    async for there in under_way.watch():
        yield f"data: {json.dumps([line(one) for one in there])}\n\n"

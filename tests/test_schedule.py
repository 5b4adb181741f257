"""Holds the timetable to one run a night, also when the clocks change, against the real APScheduler."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from memu_backup.schedule import Timetable, timetable, usual_wait

BERLIN = ZoneInfo("Europe/Berlin")
SPRING = datetime(2026, 3, 29, tzinfo=BERLIN)  # 02:00 becomes 03:00
AUTUMN = datetime(2026, 10, 25, tzinfo=BERLIN)  # 03:00 becomes 02:00


def local(*parts: int, fold: int = 0) -> datetime:
    return datetime(*parts, tzinfo=BERLIN, fold=fold)  # type: ignore[arg-type, misc]


def fires(table: Timetable, start: datetime, end: datetime) -> list[datetime]:
    """What APScheduler would fire, asked in the way in which it asks, in local time."""
    found, previous = [], table.get_next_fire_time(None, start)
    while previous is not None and previous < end:
        found.append(previous.astimezone(BERLIN))
        previous = table.get_next_fire_time(previous, previous + timedelta(milliseconds=3))
    return found


def told(times: list[datetime]) -> list[str]:
    return [t.strftime("%d %H:%M %z") for t in times]


def test_the_doubled_hour_of_autumn_has_one_run() -> None:
    times = fires(timetable("30 2 * * *", BERLIN), AUTUMN - timedelta(days=1), AUTUMN + timedelta(days=2))
    assert told(times) == ["24 02:30 +0200", "25 02:30 +0200", "26 02:30 +0100"]


def test_the_missing_hour_of_spring_still_has_one_run() -> None:
    times = fires(timetable("30 2 * * *", BERLIN), SPRING - timedelta(days=1), SPRING + timedelta(days=2))
    assert told(times) == ["28 02:30 +0100", "29 03:30 +0200", "30 02:30 +0200"]


def test_a_daemon_started_within_the_second_pass_of_the_doubled_hour_does_not_run_again() -> None:
    due = timetable("30 2 * * *", BERLIN).next_after(local(2026, 10, 25, 2, 10, fold=1))
    assert due == local(2026, 10, 26, 2, 30)


def test_a_daemon_started_just_after_the_missing_hour_still_runs_that_night() -> None:
    due = timetable("30 2 * * *", BERLIN).next_after(datetime(2026, 3, 29, 1, 10, tzinfo=UTC))
    assert due == datetime(2026, 3, 29, 1, 30, tzinfo=UTC)


@pytest.mark.parametrize("day", [SPRING, AUTUMN])
def test_many_runs_a_day_each_wall_time_once(day: datetime) -> None:
    times = fires(timetable("*/20 * * * *", BERLIN), day, day + timedelta(days=1))
    assert all(a.astimezone(UTC) < b.astimezone(UTC) for a, b in pairwise(times))
    assert len({t.strftime("%d %H:%M") for t in times}) == len(times)
    assert len(times) == (72 if day is AUTUMN else 69)  # the missing hour's runs fall on those that follow it


@pytest.mark.parametrize("zone", ["Australia/Lord_Howe", "Antarctica/Troll", "America/New_York", "Asia/Kolkata"])
def test_a_year_has_one_run_a_day_in_zones_with_odd_changes(zone: str) -> None:
    place = ZoneInfo(zone)
    table = timetable("10 2 * * *", place)
    due, days = table.next_after(datetime(2025, 12, 31, 12, tzinfo=place)), []
    while due is not None and due.astimezone(place).year == 2026:
        days.append(due.astimezone(place).date())
        due = table.next_after(due)
    assert len(days) == len(set(days)) == 365


def test_times_come_out_in_utc_so_that_nobody_compares_wall_clocks() -> None:
    due = timetable("0 2 * * *", BERLIN).next_after(local(2026, 7, 1, 12))
    assert due is not None
    assert (due, due.tzinfo) == (datetime(2026, 7, 2, 0, 0, tzinfo=UTC), UTC)


def test_missed_runs_are_given_out_one_by_one() -> None:
    table = timetable("0 2 * * *", BERLIN)
    woken = local(2026, 7, 5, 9)
    assert table.get_next_fire_time(local(2026, 7, 2, 2), woken) == local(2026, 7, 3, 2)


def test_a_clock_that_was_ten_years_ahead_does_not_stop_the_nights() -> None:
    table = timetable("0 2 * * *", BERLIN)
    assert table.get_next_fire_time(local(2036, 7, 2, 2), local(2026, 7, 2, 9)) == local(2026, 7, 3, 2)


def test_a_clock_that_jumps_ahead_by_years_is_not_counted_through_minute_by_minute() -> None:
    table, late = timetable("* * * * *", BERLIN), local(2036, 7, 1)
    missed = table.get_next_fire_time(local(2026, 7, 1), late)
    assert missed is not None
    assert timedelta(days=6) < late - missed <= timedelta(days=7)


@pytest.mark.parametrize(
    ("weekdays", "expected"),
    [
        ("0", ["Sun"]),
        ("7", ["Sun"]),
        ("1-5", ["Mon", "Tue", "Wed", "Thu", "Fri"]),
        ("5-7", ["Fri", "Sat", "Sun"]),
        ("0-2,sat", ["Mon", "Tue", "Sat", "Sun"]),
        ("1-5/2", ["Mon", "Wed", "Fri"]),
        ("*", ["Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun"]),
    ],
)
def test_weekdays_are_those_of_cron_where_sunday_is_0(weekdays: str, expected: list[str]) -> None:
    monday = local(2026, 7, 6)
    times = fires(timetable(f"0 2 * * {weekdays}", BERLIN), monday, monday + timedelta(days=7))
    assert [t.strftime("%a") for t in times] == expected


def test_a_line_that_cannot_be_read_is_refused() -> None:
    with pytest.raises(ValueError, match="is not a cron line"):
        timetable("0 25 * * *", BERLIN)


@pytest.mark.parametrize(
    ("cron", "expected"),
    [
        ("0 2 * * *", timedelta(days=1)),
        ("0 * * * *", timedelta(hours=1)),
        ("0 2 * * mon-fri", timedelta(days=3)),
        ("*/5 9-17 * * mon-fri", timedelta(days=2, hours=15, minutes=5)),
        ("0 2 * * sun", timedelta(days=7)),
        ("0 2 1 * *", timedelta(days=31)),
    ],
)
def test_the_interval_is_the_longest_wait_that_is_normal(cron: str, expected: timedelta) -> None:
    now = local(2026, 7, 8, 12)
    assert timetable(cron, BERLIN).interval(now) == usual_wait(cron, BERLIN, now) == expected


async def test_apscheduler_takes_it_and_goes_on_from_it() -> None:
    ran = asyncio.Event()
    scheduler = AsyncIOScheduler(timezone=UTC)

    async def submit() -> None:
        ran.set()

    table = timetable("0 2 * * *", BERLIN)
    now = datetime.now(UTC)
    job = scheduler.add_job(submit, table, next_run_time=now, misfire_grace_time=3600, coalesce=True)
    scheduler.start()
    try:
        await asyncio.wait_for(ran.wait(), 5)
        assert job.next_run_time == table.next_after(now)
        assert str(job.trigger) == "0 2 * * *"
    finally:
        scheduler.shutdown(wait=False)

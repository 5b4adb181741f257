"""The calendar in which a gap is seen, and the chart."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta

from memu_backup.model import Run, Status, Trigger
from memu_backup.web.page.overview import calendar, chart

TODAY = date(2026, 3, 4)  # a Wednesday


def run(day: date, status: Status = Status.SUCCESS, size_bytes: int = 1_000_000, seconds: int = 60) -> Run:
    at = datetime(day.year, day.month, day.day, 2, tzinfo=UTC)
    return Run(str(day), "home", "nightly", Trigger.SCHEDULE, "b", status, at, size_bytes=size_bytes,
               duration_seconds=seconds)  # fmt: skip


def day_of(run: Run) -> date:
    return run.created_at.date()


def test_each_day_shows_the_best_of_it_and_what_nobody_expected_is_no_gap() -> None:
    day = timedelta(days=1)
    runs = [
        run(TODAY, Status.FAILED),
        replace(run(TODAY), run_id="again"),
        run(TODAY - 1 * day, Status.FAILED),
        run(TODAY - 2 * day, Status.PARTIAL),
        run(TODAY - 4 * day),
    ]
    weeks = calendar(runs, TODAY, day_of)
    assert [len(week) for week in weeks] == [7] * 5 and weeks[0][0].day.weekday() == 0
    states = {square.day: square.state for week in weeks for square in week}
    assert [states[TODAY - n * day] for n in range(-1, 6)] == [
        "blank", "good", "failed", "partial", "none", "good", "blank",
    ]  # fmt: skip
    assert next(s.says for week in weeks for s in week if s.day == TODAY) == "a good backup, 1 MB"
    assert {square.state for week in calendar([], TODAY, day_of) for square in week} == {"blank", "none"}


def test_the_chart_shows_good_ones_the_newest_last_in_parts_of_the_largest() -> None:
    runs = [run(TODAY - timedelta(days=n), size_bytes=(50 - n) * 1_000_000, seconds=n) for n in range(40)]
    bars = chart([run(TODAY, Status.FAILED), *runs], lambda run: run.run_id)
    assert len(bars) == 30 and bars[-1].says.startswith(f"{TODAY}: 50 MB") and bars[-1].size == 100
    assert [bar.size for bar in bars] == sorted(bar.size for bar in bars)
    assert bars[0].duration == 100 and bars[-1].duration == 0
    assert chart([], str) == []

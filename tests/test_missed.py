"""What was missed is made up for once: pure, over simulated months of sleep, restarts and clocks that are put."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import pairwise
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.schedule import SLACK, Timetable, Watch, timetable

BERLIN = ZoneInfo("Europe/Berlin")
NIGHTLY = timetable("30 2 * * *", BERLIN)
LINES = ["30 2 * * *", "0 2 * * mon-fri", "0 */6 * * *", "*/30 * * * *", "0 3 1 * *"]

moments = st.datetimes(datetime(2026, 1, 1), datetime(2027, 12, 31), timezones=st.just(UTC))
tables = st.sampled_from([timetable(line, BERLIN) for line in LINES])


def local(*parts: int) -> datetime:
    return datetime(*parts, tzinfo=BERLIN)  # type: ignore[arg-type, misc]


@pytest.mark.parametrize(
    ("last", "now", "missed"),
    [
        (None, local(2026, 7, 5, 9), None),  # new here: waits for the first night
        (local(2026, 7, 5, 2, 30), local(2026, 7, 5, 9), None),
        (local(2026, 7, 4, 2, 30), local(2026, 7, 5, 9), local(2026, 7, 5, 2, 30)),
        (local(2026, 6, 1, 2, 30), local(2026, 7, 5, 9), local(2026, 6, 2, 2, 30)),
        (local(2026, 7, 5, 1, 59), local(2026, 7, 5, 2, 29), None),  # by hand, and it is not yet time
        (local(2026, 7, 5, 8, 0), local(2026, 7, 5, 9), None),  # by hand, since
        (local(2036, 7, 5, 2, 30), local(2026, 7, 5, 9), None),
        (local(2026, 7, 5, 2, 30), local(2036, 7, 5, 9), None),  # a clock that jumped
        (local(2026, 10, 25, 2, 30), datetime(2026, 10, 25, 1, 45, tzinfo=UTC), None),  # the doubled hour, once more
        (local(2026, 3, 28, 2, 30), datetime(2026, 3, 29, 1, 45, tzinfo=UTC), datetime(2026, 3, 29, 1, 30, tzinfo=UTC)),
    ],
)
def test_what_was_missed(last: datetime | None, now: datetime, missed: datetime | None) -> None:
    assert NIGHTLY.missed(last, now) == missed


@given(tables, moments, st.timedeltas(timedelta(), timedelta(days=170)))
def test_after_any_absence_there_is_one_backup_and_none_where_nothing_was_due(
    table: Timetable, last: datetime, gone: timedelta
) -> None:

    now = last + gone
    due = table.missed(last, now)
    first = table.next_after(last)
    assert (due is not None) == (first is not None and first <= now)
    if due:
        assert last < due <= now
        assert table.missed(now, now) is None


@given(tables, moments, st.lists(st.timedeltas(timedelta(seconds=1), timedelta(days=30)), max_size=40))
def test_however_often_one_looks_each_due_time_is_answered_once(
    table: Timetable, begin: datetime, steps: list[timedelta]
) -> None:
    """Looked at in steps from a second to a month: never two backups for one due time, and none is forgotten."""

    watch, now, made = Watch(table, begin), begin, [begin]
    for step in steps:
        now += step
        if watch.due(now):
            made.append(now)
        assert watch.due(now) is None
        assert table.missed(made[-1], now) is None
    for one, other in pairwise(made):
        due = table.next_after(one)
        assert due is not None and due <= other


@given(
    moments, st.timedeltas(timedelta(days=200), timedelta(days=4000)), st.timedeltas(timedelta(), timedelta(hours=20))
)
def test_a_clock_that_jumps_by_years_and_back_has_no_backup_and_costs_no_night(
    begin: datetime, jump: timedelta, away: timedelta
) -> None:
    watch = Watch(NIGHTLY, begin)
    ahead = begin + jump
    assert watch.due(ahead) is None
    back = begin + away
    assert watch.is_ahead(back)
    watch.last = begin  # looked up anew
    following = NIGHTLY.next_after(begin)
    assert watch.due(back) == (following if following and following <= back else None)
    night = NIGHTLY.next_after(back)
    assert night and watch.due(night) == night


@given(moments, st.timedeltas(timedelta(), SLACK))
def test_a_clock_put_back_by_a_little_makes_no_second_backup_of_a_night(begin: datetime, put_back: timedelta) -> None:
    watch = Watch(NIGHTLY, begin)
    night = NIGHTLY.next_after(begin)
    assert night and watch.due(night) == night
    assert not watch.is_ahead(night - put_back)
    assert watch.due(night - put_back) is None and watch.due(night) is None
    following = NIGHTLY.next_after(night)
    assert following and watch.due(following) == following

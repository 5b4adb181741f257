"""Whose turn it is to be tried, and which restore test is told of: pure, over simulated years."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta

from memu_backup.model import Drill, Tried
from memu_backup.rotation import LATE, Candidate, is_late, telling, turn

SUNDAY = datetime(2026, 1, 4, 10, tzinfo=UTC)
DAY, WEEK = timedelta(days=1), timedelta(weeks=1)


def backup(age_days: int, now: datetime = SUNDAY, lay_at: str = "") -> Candidate:
    made = now - timedelta(days=age_days)
    return Candidate(f"{made:%Y%m%d}", made, lay_at)


def drill(of: Candidate, at: datetime, outcome: Tried = Tried.WHOLE) -> Drill:
    return Drill(f"{of.name} {at}", "home", "nightly", of.name, of.made_at, at, outcome, lay_at=of.lay_at)


def test_the_newest_comes_each_week_and_all_that_stay_have_their_turn() -> None:
    """Seven nights, and one of each month that stays for good, over two years."""
    drills: list[Drill] = []
    tried: Counter[str] = Counter()
    monthly = [backup(30 * n) for n in range(1, 13)]
    for week in range(104):
        now = SUNDAY + week * WEEK
        nightly = [backup(age, now) for age in range(7)]
        chosen = turn([*nightly, *monthly], drills, now)
        assert chosen[0] == nightly[0] and len(chosen) == 2
        tried[chosen[1].name] += 1
        drills += [drill(one, now) for one in chosen]
    assert all(tried[one.name] >= 7 for one in monthly), tried


def test_a_drive_that_is_seldom_there_comes_first() -> None:
    candidates = [backup(0), backup(300), backup(40, lay_at="blue drive")]
    assert turn(candidates, [], SUNDAY) == [backup(0), backup(40, lay_at="blue drive")]
    tried = [drill(candidates[2], SUNDAY - WEEK)]
    assert turn(candidates, tried, SUNDAY) == [backup(0), backup(300)]
    assert turn(candidates, [drill(candidates[2], SUNDAY - 5 * WEEK)], SUNDAY)[1].lay_at == "blue drive"


def test_one_that_could_not_be_tried_does_not_keep_the_others_from_their_turn() -> None:
    candidates = [backup(0), backup(300), backup(200)]
    assert turn(candidates, [drill(candidates[1], SUNDAY - DAY, Tried.UNTRIED)], SUNDAY)[1] == backup(200)
    begun = [drill(candidates[1], SUNDAY - DAY, outcome) for outcome in (Tried.BEGUN, Tried.INTERRUPTED)]
    assert turn(candidates, begun, SUNDAY)[1] == backup(300)


def test_a_test_that_a_clock_dated_ahead_does_not_count() -> None:
    assert turn([backup(0), backup(300), backup(200)], [drill(backup(300), SUNDAY + WEEK)], SUNDAY)[1] == backup(300)


def test_a_backup_that_a_clock_dated_ahead_is_not_the_newest() -> None:
    assert turn([backup(-900), backup(0), backup(300)], [], SUNDAY) == [backup(0), backup(300)]
    assert turn([backup(-900)], [], SUNDAY) == [backup(-900)]


def test_where_there_is_little_that_is_tried() -> None:
    assert turn([], [], SUNDAY) == []
    assert turn([backup(3)], [], SUNDAY) == [backup(3)]
    assert turn([backup(3, lay_at="blue drive")], [], SUNDAY) == [backup(3, lay_at="blue drive")]


def test_a_failure_is_told_until_that_backup_or_a_newer_one_went_well() -> None:
    newest, older = backup(0), backup(30)
    failed = drill(newest, SUNDAY, Tried.FAILED)
    assert telling([failed]) == failed
    assert telling([drill(older, SUNDAY + DAY / 24), failed]) == failed, (
        "an older one that is whole makes up for nothing"
    )
    assert telling([again := drill(newest, SUNDAY + DAY), failed]) == again
    next_week = drill(backup(0, SUNDAY + WEEK), SUNDAY + WEEK)
    assert telling([next_week, failed]) == next_week
    assert telling([drill(older, SUNDAY + DAY, Tried.FAILED), again, failed]).outcome is Tried.FAILED  # type: ignore[union-attr]


def test_else_the_newest_that_came_to_an_end_is_told() -> None:
    whole = drill(backup(0), SUNDAY)
    untried = drill(backup(0), SUNDAY + WEEK, Tried.UNTRIED)
    assert telling([untried, whole]) == untried
    assert telling([replace(untried, outcome=Tried.BEGUN), whole]) == whole
    assert telling([]) is None


def test_it_is_late_three_weeks_after_the_last_one_or_the_first_backup() -> None:
    whole = drill(backup(0), SUNDAY)
    assert not is_late([whole], SUNDAY - 90 * DAY, SUNDAY + LATE)
    assert is_late([whole], SUNDAY - 90 * DAY, SUNDAY + LATE + DAY)
    assert is_late([drill(backup(0), SUNDAY + LATE, Tried.UNTRIED), whole], None, SUNDAY + LATE + DAY)
    assert (
        is_late([], SUNDAY, SUNDAY + LATE + DAY)
        and not is_late([], SUNDAY, SUNDAY + DAY)
        and not is_late([], None, SUNDAY)
    )

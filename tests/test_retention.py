"""Shows by examples and by many invented households that retention never takes the last good backup."""

from __future__ import annotations

import random
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memu_backup.retention import Candidate, KeepLast, Verdict, plan

NOW = datetime(2026, 1, 26, 12, 0, tzinfo=UTC)


def backup(days_old: float, *, partial: bool = False, verified: bool = True, name: str = "") -> Candidate:
    name = name or f"{'partial' if partial else 'good'}-{days_old}"
    return Candidate(name, NOW - timedelta(days=days_old), partial, verified, 312_000_000)


def kept(backups: list[Candidate], count: int, now: datetime = NOW) -> list[str]:
    return [v.name for v in plan(backups, KeepLast(count), now) if v.keep]


def test_of_ten_nights_the_newest_seven_stay() -> None:
    verdicts = plan([backup(d) for d in range(10)], KeepLast(7), NOW)
    assert [v.keep for v in verdicts] == [True] * 7 + [False] * 3
    assert verdicts[0] == Verdict("good-0", True, "It is number 1 of the 7 newest complete backups.")
    assert verdicts[9] == Verdict("good-9", False, "7 newer complete backups are there.")


def test_incomplete_backups_never_push_a_good_one_out() -> None:
    partials = [backup(d, partial=True) for d in range(5)]
    assert kept([*partials, backup(5), backup(6), backup(7)], 2) == ["partial-0", "partial-1", "good-5", "good-6"]


def test_incomplete_backups_older_than_the_good_ones_go() -> None:
    assert kept([backup(0), backup(1, partial=True), backup(2), backup(3, partial=True)], 2) == [
        "good-0",
        "partial-1",
        "good-2",
    ]


def test_one_good_backup_does_not_push_out_all_the_incomplete_ones_before_it() -> None:
    """They go one by one, as complete ones take their places."""
    partials = [backup(d, partial=True) for d in range(3, 10)]
    assert len(kept(partials, 7)) == 7
    verdicts = plan([backup(2), *partials], KeepLast(7), NOW)
    assert [v.name for v in verdicts if v.keep] == ["good-2", *(p.name for p in partials[:6])]
    assert verdicts[1].reason == "It is incomplete, but only 1 of 7 complete backups is there yet."
    assert verdicts[-1].reason == "It is incomplete, and enough newer backups are there."
    assert len(kept([*(backup(d / 10) for d in range(6)), *partials], 7)) == 7
    assert kept([backup(0), backup(1), *partials], 2) == ["good-0", "good-1"]


def test_without_any_good_backup_the_newest_incomplete_ones_stay() -> None:
    backups = [backup(d, partial=True, verified=False) for d in range(4)]
    assert kept(backups, 2) == ["partial-0", "partial-1"]


def test_the_newest_checked_backup_stays_behind_any_number_of_unchecked_ones() -> None:
    unchecked = [backup(d, verified=False) for d in range(5)]
    verdicts = plan([*unchecked, backup(8), backup(9)], KeepLast(2), NOW)
    assert [v.name for v in verdicts if v.keep] == ["good-0", "good-1", "good-8"]
    assert verdicts[5].reason == "It is the newest backup that was checked and found whole; that one always stays."


def test_where_no_complete_one_was_checked_the_newest_checked_incomplete_one_stays() -> None:
    backups = [backup(0, verified=False), backup(5, partial=True), backup(6, partial=True)]
    assert kept(backups, 1) == ["good-0", "partial-5"]


def test_backups_from_the_future_stay_and_are_not_counted() -> None:
    ahead = [backup(-3650 - d, name=f"ahead-{d}") for d in range(3)]
    names = kept([*ahead, backup(0), backup(1), backup(2)], 2)
    assert names == ["ahead-2", "ahead-1", "ahead-0", "good-0", "good-1"]


def test_a_clock_ten_years_ahead_prunes_nothing_that_counts_by_number() -> None:
    backups = [backup(d) for d in range(7)]
    assert len(kept(backups, 7, NOW + timedelta(days=3650))) == 7


def test_keeping_none_is_refused() -> None:
    with pytest.raises(ValueError, match="at least 1 backup has to be kept"):
        KeepLast(0)


households = st.lists(
    st.builds(
        Candidate,
        name=st.uuids().map(str),
        # Few different moments, so that ties come up.
        created_at=st.integers(-4, 30).map(lambda d: NOW - timedelta(days=d)),
        partial=st.booleans(),
        verified=st.booleans(),
        size_bytes=st.just(1),
    ),
    max_size=25,
    unique_by=lambda c: c.name,
)
examples = settings(max_examples=60, deadline=None)


def counted(backups: list[Candidate]) -> list[Candidate]:
    return [b for b in backups if b.created_at <= NOW + timedelta(days=1)]


@examples
@given(households, st.integers(1, 9))
def test_a_newest_checked_backup_is_never_dropped(backups: list[Candidate], count: int) -> None:
    names = kept(backups, count)
    proven = [b for b in counted(backups) if b.verified]
    whole = [b for b in proven if not b.partial]
    if proven:
        newest = max(b.created_at for b in whole or proven)
        assert any(b.name in names for b in whole or proven if b.created_at == newest)


@examples
@given(households, st.integers(1, 9))
def test_as_many_good_ones_stay_as_asked_for_and_one_more_at_most(backups: list[Candidate], count: int) -> None:
    names = kept(backups, count)
    good = [b for b in counted(backups) if not b.partial]
    staying = sum(b.name in names for b in good)
    assert min(count, len(good)) <= staying <= count + 1


@examples
@given(households, st.integers(1, 9))
def test_no_good_one_goes_while_an_older_one_fills_its_number(backups: list[Candidate], count: int) -> None:
    names = kept(backups, count)
    good = sorted((b for b in counted(backups) if not b.partial), key=lambda b: b.created_at, reverse=True)
    assert all(sum(other.created_at >= b.created_at for other in good) > count for b in good if b.name not in names)


@examples
@given(households, st.integers(1, 9))
def test_incomplete_ones_fill_the_places_for_which_there_is_no_good_one(backups: list[Candidate], count: int) -> None:
    names = kept(backups, count)
    present = counted(backups)
    assert min(count, len(present)) <= sum(b.name in names for b in present) <= 2 * count + 1


@examples
@given(households, st.integers(1, 9), st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(backups: list[Candidate], count: int, chance: random.Random) -> None:
    shuffled = backups.copy()
    chance.shuffle(shuffled)
    verdicts = plan(backups, KeepLast(count), NOW)
    assert plan(shuffled, KeepLast(count), NOW) == verdicts
    assert sorted(v.name for v in verdicts) == sorted(b.name for b in backups)


@examples
@given(households, st.integers(1, 9))
def test_pruning_what_was_pruned_changes_nothing(backups: list[Candidate], count: int) -> None:
    names = kept(backups, count)
    assert kept([b for b in backups if b.name in names], count) == names


def test_a_year_of_nights_never_holds_more_than_asked() -> None:
    on_disk: list[Candidate] = []
    for night in range(365):
        now = NOW + timedelta(days=night)
        on_disk.append(Candidate(f"night-{night}", now, partial=False, verified=True, size_bytes=1))
        names = kept(on_disk, 7, now)
        on_disk = [b for b in on_disk if b.name in names]
        assert len(on_disk) == min(7, night + 1)
    assert [b.name for b in on_disk] == [f"night-{n}" for n in range(358, 365)]

"""Shows by examples what stays, what goes and what is said of it."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest

from memu_backup.retention import Candidate, Policy, Room, Verdict, next_size, plan, within_place

ZONE = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 26, 12, 0, tzinfo=UTC)  # a Monday
SUNDAY = 6
SIZE = 312_000_000


def backup(
    days_old: float, *, partial: bool = False, verified: bool = True, pinned: bool = False, size_bytes: int = SIZE
) -> Candidate:
    name = f"{'partial' if partial else 'good'}-{days_old}"
    return Candidate(name, NOW - timedelta(days=days_old), partial, verified, size_bytes, pinned)


def verdicts(
    backups: list[Candidate], policy: Policy, now: datetime = NOW, room: Room | None = None
) -> dict[str, Verdict]:
    return {v.name: v for v in plan(backups, policy, now, ZONE, room)}


def kept(backups: list[Candidate], policy: Policy, now: datetime = NOW) -> list[str]:
    return [v.name for v in plan(backups, policy, now, ZONE) if v.keep]


def reasons(backups: list[Candidate], policy: Policy, room: Room | None = None) -> dict[str, str]:
    return {name: v.reason for name, v in verdicts(backups, policy, room=room).items()}


def good(*days_old: float) -> list[str]:
    return [f"good-{d}" for d in days_old]


NIGHTS = [backup(d) for d in range(100)]


# --- the rules -------------------------------------------------------------------------------------------------------


def test_of_ten_nights_the_newest_seven_stay() -> None:
    told = plan([backup(d) for d in range(10)], Policy(7), NOW, ZONE)
    assert [v.keep for v in told] == [True] * 7 + [False] * 3
    assert told[0] == Verdict("good-0", True, "It is number 1 of the 7 newest.")
    assert told[9] == Verdict("good-9", False, "It is none of those that the rules keep: the 7 newest.")


def test_days_weeks_and_months_each_keep_their_newest() -> None:
    """Monsterr's policy. Today is a Monday, so this week and this month have begun, and their newest is today's."""
    policy = Policy(daily=7, weekly=4, monthly=2)
    assert kept(NIGHTS, policy) == good(0, 1, 2, 3, 4, 5, 6, 8, 15, 26)
    told = reasons(NIGHTS, policy)
    assert told["good-0"] == (
        "It is the newest of 26 Jan 2026 (day 1 of 7), the newest of the week of 26 Jan 2026 (week 1 of 4) "
        "and the newest of Jan 2026 (month 1 of 2)."
    )
    assert told["good-8"] == "It is the newest of the week of 12 Jan 2026 (week 3 of 4)."
    assert told["good-26"] == "It is the newest of Dec 2025 (month 2 of 2)."
    assert told["good-9"] == (
        "It is none of those that the rules keep: one a day for 7 days, one a week for 4 weeks "
        "and one a month for 2 months."
    )


def test_a_day_has_one_however_often_it_was_backed_up_and_days_without_one_do_not_count() -> None:
    assert kept([backup(d) for d in (0, 0.1, 0.2, 20, 20.1, 50)], Policy(daily=3)) == good(0, 20, 50)


def test_days_are_those_of_the_household() -> None:
    """23:30 in Berlin and 0:30 an hour later are two days there, though one in UTC."""
    late, early = (
        Candidate(name, datetime(2026, 1, 25, hour, 30, tzinfo=UTC), partial=False, verified=True, size_bytes=1)
        for name, hour in (("late", 22), ("early", 23))
    )
    assert kept([late, early], Policy(daily=2)) == ["early", "late"]
    assert [v.name for v in plan([late, early], Policy(daily=2), NOW, UTC) if v.keep] == ["early"]


def test_weeks_go_from_monday_to_sunday_across_the_end_of_a_year() -> None:
    """29 Dec 2025 and 4 Jan 2026 are one week."""
    assert kept([backup(d) for d in (22, 26, 28, 29)], Policy(weekly=9)) == good(22, 29)


def test_fourteen_days_and_then_sundays_up_to_seventy_four() -> None:
    """Sound Box's policy."""
    policy = Policy(within_days=14, then_weekday=SUNDAY, until_days=74)
    assert kept(NIGHTS, policy) == good(*range(14), 15, 22, 29, 36, 43, 50, 57, 64, 71)
    told = reasons(NIGHTS, policy)
    assert told["good-13"] == "It is from the last 14 days."
    assert told["good-15"] == "It is the newest of a Sunday in the last 74 days."
    assert told["good-14"] == (
        "It is none of those that the rules keep: all of the last 14 days and one each Sunday of the last 74 days."
    )


def test_what_any_rule_wants_stays() -> None:
    assert kept(NIGHTS, Policy(keep_last=2, monthly=3)) == good(0, 1, 26, 57)


# --- incomplete ones -------------------------------------------------------------------------------------------------


def test_incomplete_backups_never_push_a_good_one_out() -> None:
    partials = [backup(d, partial=True) for d in range(5)]
    backups = [*partials, backup(5), backup(6), backup(7)]
    assert kept(backups, Policy(2)) == ["partial-0", "partial-1", "good-5", "good-6"]
    assert kept(backups, Policy(daily=2)) == ["partial-0", "partial-1", "good-5", "good-6"]
    told = reasons(backups, Policy(2))
    assert told["partial-1"] == "It is incomplete, but newer than the oldest complete backup that stays."
    assert told["partial-2"] == "It is incomplete, and enough newer backups are there."


def test_incomplete_backups_older_than_the_good_ones_go() -> None:
    backups = [backup(0), backup(1, partial=True), backup(2), backup(3, partial=True)]
    assert kept(backups, Policy(2)) == ["good-0", "partial-1", "good-2"]


def test_one_good_backup_does_not_push_out_all_the_incomplete_ones_before_it() -> None:
    """They go one by one, as complete ones take their places."""
    partials = [backup(d, partial=True) for d in range(3, 10)]
    assert len(kept(partials, Policy(7))) == 7
    backups = [backup(2), *partials]
    assert kept(backups, Policy(7)) == ["good-2", *(p.name for p in partials[:6])]
    told = reasons(backups, Policy(7))
    assert told["partial-3"] == (
        "It is incomplete, but there are too few complete ones yet for all that the rules keep."
    )
    assert told["partial-9"] == "It is incomplete, and enough newer backups are there."
    assert len(kept([*(backup(d / 10) for d in range(6)), *partials], Policy(7))) == 7
    assert kept([backup(0), backup(1), *partials], Policy(2)) == ["good-0", "good-1"]
    assert kept(backups, Policy(daily=3)) == ["good-2", "partial-3", "partial-4"]
    assert kept(backups, Policy(within_days=5)) == ["good-2", "partial-3", "partial-4"]


def test_without_any_good_backup_the_rules_are_for_the_incomplete_ones() -> None:
    backups = [backup(d, partial=True, verified=False) for d in (0, 0.1, 1, 2)]
    assert kept(backups, Policy(2)) == ["partial-0", "partial-0.1"]
    assert kept(backups, Policy(daily=2)) == ["partial-0", "partial-1"]
    assert "too few complete ones yet" in reasons(backups, Policy(2))["partial-0"]


# --- what always stays -----------------------------------------------------------------------------------------------


def test_the_newest_checked_backup_stays_behind_any_number_of_unchecked_ones() -> None:
    unchecked = [backup(d, verified=False) for d in range(5)]
    told = plan([*unchecked, backup(8), backup(9)], Policy(2), NOW, ZONE)
    assert [v.name for v in told if v.keep] == ["good-0", "good-1", "good-8"]
    assert told[5].reason == "It is the newest backup that was checked and found whole; that one always stays."


def test_where_no_complete_one_was_checked_the_newest_checked_incomplete_one_stays() -> None:
    backups = [backup(0, verified=False), backup(5, partial=True), backup(6, partial=True)]
    assert kept(backups, Policy(1)) == ["good-0", "partial-5"]


def test_the_last_good_one_stays_however_old_it_is() -> None:
    backups = [backup(0, partial=True, verified=False), backup(40), backup(41)]
    assert kept(backups, Policy(within_days=30)) == ["partial-0", "good-40"]


def test_what_is_pinned_stays_and_counts_like_any_other() -> None:
    backups = [backup(0), backup(1, pinned=True), backup(2), backup(3), backup(90, pinned=True)]
    assert kept(backups, Policy(3)) == good(0, 1, 2, 90)
    assert kept(backups, Policy(3, max_backups=2)) == good(0, 1, 90)
    told = reasons(backups, Policy(3))
    assert (
        told["good-1"]
        == told["good-90"]
        == "It is pinned and stays until somebody lets it go: memu-backup keep --release"
    )


def test_backups_from_the_future_stay_and_are_not_counted() -> None:
    ahead = [backup(-3650 - d) for d in range(3)]
    backups = [*ahead, backup(0), backup(1), backup(2)]
    for policy in (Policy(2), Policy(daily=2), Policy(within_days=2), Policy(3, max_backups=2)):
        assert kept(backups, policy) == ["good--3652", "good--3651", "good--3650", "good-0", "good-1"]
    told = reasons(backups, Policy(2))
    assert told["good--3650"] == "It is dated in the future, so a clock was wrong; it stays and is not counted."


# --- suspicious ------------------------------------------------------------------------------------------------------


def suspicious(days_old: float, *, verified: bool = True) -> Candidate:
    return replace(backup(days_old, partial=True, verified=verified), suspicious=True)


@pytest.mark.parametrize(
    "policy", [Policy(1), Policy(daily=2), Policy(within_days=2), Policy(9, max_backups=1), Policy(9, max_bytes=SIZE)]
)
def test_while_the_newest_is_suspicious_nothing_goes(policy: Policy) -> None:
    backups = [suspicious(0), suspicious(1), backup(2, partial=True), *(backup(d) for d in range(3, 30))]
    assert len(kept(backups, policy)) == len(backups)
    room = Room(next_bytes=SIZE, min_free_bytes=0, free_bytes=0)
    said = verdicts(backups, policy, room=room)
    assert {(v.keep, v.reason) for v in said.values()} == {
        (
            True,
            "partial-0 looks wrong, and nothing goes until that is settled. Is it as it should be? memu-backup accept",
        )
    }


def test_once_a_newer_one_is_not_it_counts_as_an_incomplete_one() -> None:
    backups = [backup(0), suspicious(1), *(backup(d) for d in range(2, 9))]
    plain = [replace(b, suspicious=False) for b in backups]
    for policy in (Policy(3), Policy(daily=4), Policy(9, max_backups=3)):
        assert kept(backups, policy) == kept(plain, policy)
    told = reasons(backups, Policy(9, max_backups=3))
    assert told["partial-1"].endswith("and a suspicious one goes first.")


def test_one_that_is_damaged_itself_or_of_tomorrow_holds_nothing_back() -> None:
    for odd in (suspicious(0, verified=False), suspicious(-3)):
        assert len(kept([odd, *(backup(d) for d in range(1, 9))], Policy(3))) == 4


# --- a clock that jumps ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", [Policy(7), Policy(daily=7), Policy(within_days=30), Policy(1, within_days=30)])
def test_a_clock_ten_years_ahead_takes_only_what_a_new_backup_would_have_taken(policy: Policy) -> None:
    backups = [backup(d) for d in range(7)]
    wrong = NOW + timedelta(days=3650)
    assert len(kept(backups, policy, wrong)) == 7
    made_then = Candidate("then", wrong, partial=False, verified=True, size_bytes=1)
    assert len(kept([*backups, made_then], policy, wrong)) in (7, 8)
    assert kept([*backups, made_then], policy, NOW)[0] == "then"


def test_after_a_long_silence_age_counts_again_once_the_clock_has_held_for_a_week() -> None:
    policy = Policy(within_days=30)
    old = [backup(d) for d in (300, 301)]
    told = reasons([backup(0), *old], policy)
    assert told["good-300"] == "The clock may have jumped; for a week nothing as old as this goes by its age."
    assert kept([*(backup(d) for d in range(7)), *old], policy) == good(*range(7), 300, 301)
    assert kept([*(backup(d) for d in range(9)), *old], policy) == good(*range(9))


def test_an_old_pin_is_no_jump_of_the_clock() -> None:
    assert kept([*(backup(d) for d in range(7)), backup(400, pinned=True)], Policy(within_days=3)) == good(0, 1, 2, 400)


# --- maxima ----------------------------------------------------------------------------------------------------------


def test_a_maximum_cuts_from_the_oldest_whatever_rule_wanted_it() -> None:
    """Kuroibara's policy, and a smaller maximum."""
    nights = [backup(d) for d in range(400)]
    policy = Policy(daily=7, weekly=4, monthly=12, max_backups=30)
    assert len(kept(nights, policy)) == 7 + 2 + 11
    assert kept(nights, Policy(daily=7, weekly=4, monthly=12, max_backups=9)) == good(*range(7), 8, 15)
    told = reasons(nights, Policy(daily=7, weekly=4, monthly=12, max_backups=9))
    assert told["good-26"] == "At most 9 backups may be there in all, and it is the oldest that may go."


def test_a_maximum_of_bytes_counts_all_that_stays() -> None:
    backups = [backup(0, size_bytes=50), backup(1, size_bytes=30), backup(2, size_bytes=10), backup(3, size_bytes=10)]
    assert kept(backups, Policy(9, max_bytes=100)) == good(0, 1, 2, 3)
    assert kept(backups, Policy(9, max_bytes=99)) == good(0, 1, 2)
    assert kept(backups, Policy(9, max_bytes=1)) == good(0)
    assert "All backups together may take 99 bytes at most" in reasons(backups, Policy(9, max_bytes=99))["good-3"]


def test_a_maximum_of_bytes_counts_blocks_that_backups_share_once() -> None:
    nights = [replace(backup(d), nights_shared=4 - d, shared_bytes=SIZE - 1_000_000) for d in range(4)]
    assert kept([*nights, backup(4)], Policy(9, max_bytes=SIZE + 4_000_000)) == good(0, 1, 2, 3, 4)
    assert kept([*nights, backup(4)], Policy(9, max_bytes=SIZE + 3_000_000)) == good(0, 1, 2, 3)


def test_maxima_take_incomplete_ones_first_but_never_the_newest_of_all() -> None:
    backups = [backup(0, partial=True), backup(1), backup(2, partial=True), backup(3), backup(4)]
    assert kept(backups, Policy(3, max_backups=3)) == ["partial-0", *good(1, 3, 4)]
    assert kept(backups, Policy(3, max_bytes=2 * SIZE)) == ["partial-0", *good(1, 3)]
    told = reasons(backups, Policy(3, max_backups=3))
    assert told["partial-2"] == "At most 3 backups may be there in all, and an incomplete one goes first."


# --- room ------------------------------------------------------------------------------------------------------------


def room(free_bytes: int) -> Room:
    return Room(next_bytes=SIZE, min_free_bytes=2 * SIZE, free_bytes=free_bytes)


def test_for_room_the_oldest_go_and_no_more_than_needed() -> None:
    backups = [backup(d) for d in range(5)]
    told = verdicts(backups, Policy(5), room=room(SIZE))
    assert [v.keep for v in told.values()] == [True] * 3 + [False] * 2
    assert told["good-4"].reason == (
        "The next backup needs about 312 MB and 624 MB shall stay free, but only 312 MB are free, "
        "and it is the oldest that may go."
    )
    assert all(v.keep for v in verdicts(backups, Policy(5), room=room(3 * SIZE)).values())


def test_what_the_rules_let_go_makes_room_first() -> None:
    backups = [backup(d) for d in range(5)]
    told = verdicts(backups, Policy(3), room=room(SIZE))
    assert [v.keep for v in told.values()] == [True] * 3 + [False] * 2
    assert told["good-3"].reason.startswith("It is none of those")


def test_nothing_goes_for_room_where_it_would_not_be_enough() -> None:
    backups = [backup(0), backup(1), backup(2, pinned=True)]
    assert [v.keep for v in verdicts(backups, Policy(5), room=room(2 * SIZE)).values()] == [True, False, True]
    assert all(v.keep for v in verdicts(backups, Policy(5), room=room(SIZE)).values())


def test_what_shares_its_blocks_with_one_that_stays_frees_little_and_so_does_not_go_in_vain() -> None:
    whole = backup(4)
    sharing = [replace(backup(d), nights_shared=4 - d, shared_bytes=SIZE - 1_000_000) for d in range(4)]
    (short_of_two, short_of_ten) = (Room(SIZE, SIZE, 2 * SIZE - b) for b in (2_000_000, 10_000_000))
    told = verdicts([whole, *sharing], Policy(9), room=short_of_two)
    assert [name for name, v in told.items() if not v.keep] == ["good-3", "good-4"]
    assert all(v.keep for v in verdicts([whole, *sharing], Policy(9), room=short_of_ten).values())


def test_the_next_backup_is_expected_to_be_as_large_as_the_largest_of_the_last_three() -> None:
    sizes = [backup(d, size_bytes=s) for d, s in ((0, 20), (1, 30), (2, 10), (3, 99))]
    assert next_size([*sizes, backup(-9, size_bytes=99), backup(0.5, size_bytes=99, partial=True)], NOW) == 30
    assert next_size([], NOW) == 0


# --- what is no policy -----------------------------------------------------------------------------------------------


def test_keeping_none_is_refused() -> None:
    for nothing in ({}, {"max_backups": 3}, {"until_days": 74}, {"then_weekday": SUNDAY}):
        with pytest.raises(ValueError, match="at least 1 backup has to be kept"):
            Policy(**nothing)
    with pytest.raises(ValueError, match="below 0"):
        Policy(daily=-1)


# --- several jobs in one place ---------------------------------------------------------------------------------------


def in_place(most: int, mine: list[Candidate], *others: list[Candidate]) -> dict[str, str]:
    """What goes, and why, where all of mine would stay by their own rules."""
    told = within_place(plan(mine, Policy(keep_last=99), NOW, ZONE), [mine, *others], most, NOW)
    assert [v.name for v in told][: len(mine)] == [b.name for b in sorted(mine, key=lambda b: b.created_at)][::-1]
    return {v.name: v.reason for v in told if not v.keep}


def test_of_all_jobs_of_a_place_the_oldest_go() -> None:
    daily, monthly = [backup(d) for d in (0, 1, 2)], [backup(d) for d in (10.5, 40.5, 70.5)]
    assert in_place(6, daily, monthly) == {}
    because = "At most 4 backups may lie in this place, of all jobs together, and it is the oldest that may go."
    assert in_place(4, daily, monthly) == {"good-70.5": because, "good-40.5": because}
    assert in_place(4, monthly, daily) == {"good-70.5": because, "good-40.5": because}


def test_of_each_job_the_newest_the_newest_checked_and_what_is_pinned_stay_whatever_the_place_may_hold() -> None:
    daily = [backup(0, partial=True), backup(1), backup(2), backup(3, pinned=True)]
    monthly = [backup(10.5, verified=False), backup(40.5), backup(70.5)]
    assert set(in_place(1, daily, monthly)) == {"good-2", "good-70.5"}


def test_incomplete_ones_go_first_and_what_is_dated_ahead_is_not_counted() -> None:
    daily = [backup(0), backup(1, partial=True), backup(2)]
    monthly = [backup(-50), backup(40.5), backup(70.5)]
    assert set(in_place(4, daily, monthly)) == {"partial-1"}
    assert set(in_place(3, daily, monthly)) == {"partial-1", "good-70.5"}


def test_what_the_rules_let_go_is_not_counted_in_the_place() -> None:
    daily = [backup(d) for d in (0, 1, 2)]
    told = within_place(plan(daily, Policy(keep_last=1), NOW, ZONE), [daily, [backup(40.5), backup(70.5)]], 3, NOW)
    assert [v.name for v in told if not v.keep] == ["good-1", "good-2"]
    assert "At most" not in " ".join(v.reason for v in told)


def test_nothing_of_a_job_whose_newest_is_suspicious_goes_for_another_one() -> None:
    daily, monthly = [backup(d) for d in (0, 1, 2)], [suspicious(10.5), backup(40.5), backup(70.5)]
    assert in_place(1, daily, monthly).keys() == {"good-1", "good-2"}
    assert in_place(1, monthly, daily).keys() == {"good-1", "good-2"}

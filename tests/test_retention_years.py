"""Many invented households, and years of nights with gaps, bad nights and wrong clocks: what never goes, never goes."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from itertools import groupby
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memu_backup.model import CLOCK_SLACK
from memu_backup.retention import Candidate, Policy, Room, plan, wanted

ZONE = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 26, 12, 0, tzinfo=UTC)
YEARS = 3

MEMU = Policy(keep_last=7)
MONSTERR = Policy(daily=7, weekly=4, monthly=2)
KUROIBARA = Policy(daily=7, weekly=4, monthly=12, max_backups=30)
SOUND_BOX = Policy(within_days=14, then_weekday=6, until_days=74)
MEDIANEST = Policy(within_days=30)
POLICIES = (MEMU, MONSTERR, KUROIBARA, SOUND_BOX, MEDIANEST)

small = st.integers(0, 4)
policies = st.builds(
    Policy,
    keep_last=st.integers(1, 3) | st.just(0),
    daily=small,
    weekly=small,
    monthly=small,
    within_days=st.integers(1, 40),  # so that there is always a rule
    then_weekday=st.none() | st.integers(0, 6),
    until_days=st.integers(0, 90),
    max_backups=st.none() | st.integers(1, 8),
    max_bytes=st.none() | st.integers(1, 12),
)


def households(days_old: st.SearchStrategy[int]) -> st.SearchStrategy[list[Candidate]]:
    return st.lists(
        st.builds(
            Candidate,
            name=st.uuids().map(str),
            # Few different moments, so that ties come up.
            created_at=days_old.map(lambda d: NOW - timedelta(days=d)),
            partial=st.sampled_from([False, False, True]),
            verified=st.sampled_from([True, True, False]),
            size_bytes=st.integers(1, 3),
            pinned=st.sampled_from([False] * 5 + [True]),
        ),
        max_size=25,
        unique_by=lambda c: c.name,
    )


recent = households(st.integers(-4, 60))
any_age = households(st.integers(-4, 20) | st.sampled_from([60, 200, 210, 3650]))
rooms = st.none() | st.builds(Room, st.integers(0, 5), st.integers(0, 20), st.integers(0, 20))
examples = settings(max_examples=80, deadline=None)


def kept(backups: list[Candidate], policy: Policy, now: datetime, room: Room | None = None) -> list[Candidate]:
    names = {v.name for v in plan(backups, policy, now, ZONE, room) if v.keep}
    return [b for b in backups if b.name in names]


def present(backups: list[Candidate], now: datetime) -> list[Candidate]:
    return [b for b in backups if b.created_at <= now + CLOCK_SLACK]


def newest_verified(backups: list[Candidate], now: datetime) -> Candidate | None:
    """An incomplete one only where there is nothing better."""
    verified = [b for b in present(backups, now) if b.verified]
    return max(verified, key=lambda b: (not b.partial, b.created_at, b.name), default=None)


# --- any household ---------------------------------------------------------------------------------------------------


@examples
@given(any_age, policies, rooms)
def test_the_newest_verified_the_pinned_and_the_future_never_go(
    backups: list[Candidate], policy: Policy, room: Room | None
) -> None:
    stays = kept(backups, policy, NOW, room)
    proven = newest_verified(backups, NOW)
    assert proven is None or proven in stays
    assert all(b in stays for b in backups if b.pinned or b not in present(backups, NOW))


@examples
@given(any_age, policies, rooms)
def test_the_future_counts_for_nothing(backups: list[Candidate], policy: Policy, room: Room | None) -> None:
    now_only = present(backups, NOW)
    assert kept(now_only, policy, NOW, room) == present(kept(backups, policy, NOW, room), NOW)


@examples
@given(recent, policies)
def test_incomplete_ones_never_push_a_good_one_out(backups: list[Candidate], policy: Policy) -> None:
    backups = [replace(b, verified=True, pinned=b.pinned and not b.partial) for b in backups]
    good = [b for b in backups if not b.partial]
    if good:
        assert kept(good, policy, NOW) == [b for b in kept(backups, policy, NOW) if not b.partial]


@examples
@given(any_age, policies, rooms, st.randoms(use_true_random=False))
def test_the_order_of_listing_does_not_matter(
    backups: list[Candidate], policy: Policy, room: Room | None, chance: random.Random
) -> None:
    shuffled = backups.copy()
    chance.shuffle(shuffled)
    verdicts = plan(backups, policy, NOW, ZONE, room)
    assert plan(shuffled, policy, NOW, ZONE, room) == verdicts
    assert sorted(v.name for v in verdicts) == sorted(b.name for b in backups)


@examples
@given(any_age, policies, rooms)
def test_dropping_what_was_dropped_drops_nothing_more(
    backups: list[Candidate], policy: Policy, room: Room | None
) -> None:
    stays = kept(backups, policy, NOW, room)
    if room:
        freed = sum(b.size_bytes for b in backups) - sum(b.size_bytes for b in stays)
        room = replace(room, free_bytes=room.free_bytes + freed)
    assert kept(stays, policy, NOW, room) == stays


@examples
@given(recent, policies)
def test_maxima_hold_but_for_what_must_stay(backups: list[Candidate], policy: Policy) -> None:
    stays = present(kept(backups, policy, NOW), NOW)
    newest = max(stays, key=lambda b: (b.created_at, b.name), default=None)
    must = [b for b in stays if b.pinned or b in (newest_verified(backups, NOW), newest)]
    if policy.max_backups is not None:
        assert len(stays) <= max(policy.max_backups + 1, len(must))
    if policy.max_bytes is not None and len(stays) > len(must):
        assert sum(b.size_bytes for b in stays if not (b is newest and b.partial)) <= policy.max_bytes


# --- years of nights -------------------------------------------------------------------------------------------------


seeded = st.randoms(use_true_random=True)
"""By a seed alone: hypothesis could not record the thousands of draws of three years."""


def nights(years: int = YEARS) -> Iterator[datetime]:
    """2 o'clock of the household, through all changes of the clocks."""
    for number in range(365 * years):
        yield datetime(2023, 1, 1, 2, tzinfo=ZONE).astimezone(UTC) + timedelta(days=number)


def made(at: datetime, **more: bool) -> Candidate:
    return Candidate(at.isoformat(), at, more.get("partial", False), verified=True, size_bytes=1)


def local(backup: Candidate) -> date:
    return backup.created_at.astimezone(ZONE).date()


def last_of_each(days: list[date], period: Callable[[date], tuple[int, int]], count: int) -> set[date]:
    return set([max(group) for _, group in groupby(days, period)][-count:])


def tables(policy: Policy, days: list[date]) -> set[date]:
    """What the five documents say, out of all days that there ever were; written without a look at the code."""
    today = days[-1]
    if policy is MEMU:
        return set(days[-7:])
    if policy is MEDIANEST:
        return {d for d in days if today - d < timedelta(days=30)}
    if policy is SOUND_BOX:
        return {d for d in days if (today - d).days < 14 or ((today - d).days < 74 and d.isoweekday() == 7)}
    weeks = last_of_each(days, lambda d: d.isocalendar()[:2], 4)
    months = last_of_each(days, lambda d: (d.year, d.month), 2 if policy is MONSTERR else 12)
    return set(days[-7:]) | weeks | months


@pytest.mark.parametrize("policy", POLICIES, ids=["memu", "monsterr", "kuroibara", "sound box", "medianest"])
def test_after_years_of_pruning_each_night_exactly_what_the_documents_say_is_there(policy: Policy) -> None:
    shelf: list[Candidate] = []
    days: list[date] = []
    sizes = set()
    for number, night in enumerate(nights()):
        shelf = kept([*shelf, made(night)], policy, night)
        days.append(local(shelf[-1]))
        assert {local(b) for b in shelf} == tables(policy, days[-400:])
        if number > 400:
            sizes.add(len(shelf))
    expected = {MEMU: {7}, MEDIANEST: {30}, SOUND_BOX: {22, 23}, MONSTERR: {9, 10, 11}, KUROIBARA: {19, 20, 21}}
    assert sizes == expected[policy]


def eventful(chance: random.Random) -> Iterator[datetime]:
    """Nights of three years, some left out, for weeks or months at times, some with a second backup."""
    night = datetime(2023, 1, 1, 2, tzinfo=ZONE).astimezone(UTC)
    while night.year < 2023 + YEARS:
        yield night
        if chance.random() < 0.1:
            yield night + timedelta(hours=chance.randrange(1, 22))
        night += timedelta(days=chance.choices((1, 2, 9, 40, 250), (85, 8, 5, 1.5, 0.5))[0])


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(seeded, st.sampled_from(POLICIES) | policies)
def test_through_wrong_clocks_gaps_and_bad_nights_the_good_ones_stay(chance: random.Random, policy: Policy) -> None:
    shelf: list[Candidate] = []
    wrong = timedelta(0)
    for night in eventful(chance):
        if chance.random() < 0.02:
            wrong = chance.choice((timedelta(0), timedelta(days=3650), timedelta(days=-9000), timedelta(days=2)))
        now = night + wrong
        if wrong and chance.random() < 0.3:
            wrong = timedelta(0)
        new = replace(made(now, partial=chance.random() < 0.2), name=f"{night}", pinned=chance.random() < 0.005)
        before = [*shelf, new]
        shelf = kept(before, policy, now)
        proven = newest_verified(before, now)
        assert proven in shelf
        assert all(b in shelf for b in before if b.pinned or b not in present(before, now))
        assert kept(shelf, policy, now) == shelf


@settings(max_examples=12, deadline=None)
@given(seeded, policies)
def test_what_no_rule_wanted_no_rule_wants_later(chance: random.Random, policy: Policy) -> None:
    """Also the rules by day, week and month, as long as nothing newer goes for another reason (here: no maxima)."""
    policy = replace(policy, max_backups=None, max_bytes=None)
    shelf: list[Candidate] = []
    dropped: list[Candidate] = []
    for number, night in enumerate(eventful(chance)):
        before = [*shelf, made(night)]
        shelf = kept(before, policy, night)
        dropped += [b for b in before if b not in shelf]
        if dropped:
            ghost = chance.choice(dropped)
            assert ghost.name not in wanted(newest_first([*shelf, ghost]), policy, night, ZONE)
        if number % 50 == 0:
            all_there_ever_were = newest_first([*shelf, *dropped])
            assert not wanted(all_there_ever_were, policy, night, ZONE).keys() & {b.name for b in dropped}


def newest_first(backups: list[Candidate]) -> list[Candidate]:
    return sorted(backups, key=lambda b: b.created_at, reverse=True)

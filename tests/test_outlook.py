"""How long the disk will do: foretold, and then played through with real numbers to see whether it came true."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memu_backup.outlook import look_ahead
from memu_backup.retention import (
    Candidate,
    Policy,
    Room,
    next_size,
    plan,
    used_bytes,
)
from memu_backup.stores.archive import ArchiveStore

ZONE = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 26, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)
GB = 10**9
NEVER_FULL = 10**15
WHOLE_EVERY = ArchiveStore.whole_every or 0

examples = settings(max_examples=60, deadline=None)


def nights(
    count: int, size_bytes: int = 3 * GB, growth_bytes: int = 0, *, every: timedelta = DAY, new_bytes: int | None = None
) -> list[Candidate]:
    """So many backups, the newest of last night; with ``new_bytes`` all but every seventh take only that."""
    made = []
    for number in range(count):
        at = NOW - timedelta(hours=10) - (count - 1 - number) * every
        backup = Candidate(
            f"night-{number}", at, False, True, size_bytes + number * growth_bytes, whole_every=WHOLE_EVERY
        )
        shared = number % WHOLE_EVERY if new_bytes is not None else 0
        if shared and new_bytes is not None:
            backup = replace(backup, nights_shared=shared, shared_bytes=backup.size_bytes - new_bytes)
        made.append(backup)
    return made


def days_left(backups: list[Candidate], policy: Policy, free_bytes: int) -> int | None:
    return look_ahead(backups, policy, NOW, ZONE, free_bytes).days_left


# --- what is foretold ------------------------------------------------------------------------------------------------


def test_a_disk_that_takes_a_few_more_backups_is_full_after_so_many_nights() -> None:
    assert days_left(nights(5), Policy(30), 10 * GB) == 3
    assert days_left(nights(5, every=7 * DAY), Policy(30), 10 * GB) == 27


def test_where_one_goes_for_each_that_comes_only_the_growth_fills_the_disk() -> None:
    """Ten GB a night, and the disk still does for weeks."""
    full = nights(7, 10 * GB)
    assert days_left(full, Policy(7), 11 * GB) is None
    growing = nights(7, 10 * GB, 10**8)
    assert days_left(growing, Policy(7), 13 * GB) == 4
    # Each night the seven grow by 0.7 GB, and one of 10.7 GB and more has to fit beside them.
    assert days_left(growing, Policy(7), 20 * GB) == 12


def test_nights_that_share_blocks_fill_the_disk_by_what_is_new_and_every_seventh_whole() -> None:
    shared = nights(6, 10 * GB, new_bytes=GB)
    assert days_left(shared, Policy(30), 10 * GB) == 1  # the one that is written whole
    assert days_left(shared, Policy(30), 12 * GB) == 3
    assert days_left(nights(6, 10 * GB), Policy(30), 12 * GB) == 1


def test_what_shall_stay_free_is_not_free_but_the_oldest_go_for_it() -> None:
    told = look_ahead(nights(5), Policy(30, min_free_bytes=4 * GB), NOW, ZONE, 14 * GB)
    assert (told.free_bytes, told.fits, told.days_left) == (10 * GB, True, None)
    pinned = [replace(b, pinned=True) for b in nights(5)]
    told = look_ahead(pinned, Policy(1, min_free_bytes=4 * GB), NOW, ZONE, 6 * GB)
    assert (told.free_bytes, told.fits, told.days_left) == (2 * GB, False, 0)


def test_of_fewer_than_three_or_of_one_day_it_is_only_told_whether_the_next_one_fits() -> None:
    for backups in (nights(2), nights(9, every=timedelta(minutes=1)), []):
        told = look_ahead(backups, Policy(30), NOW, ZONE, 4 * GB)
        assert (told.fits, told.days_left) == (True, None)
    assert look_ahead(nights(2), Policy(30), NOW, ZONE, 2 * GB).fits is False
    assert look_ahead(nights(2), Policy(1), NOW, ZONE, 2 * GB).fits is True  # one goes before it


def test_backups_from_the_future_and_incomplete_ones_do_not_count() -> None:
    ahead = Candidate("ahead", NOW + 3650 * DAY, False, True, 99 * GB)
    tiny = [replace(b, name=f"{b.name}-cut", partial=True, size_bytes=1) for b in nights(5)]
    assert days_left([*nights(5), ahead], Policy(30), 10 * GB) == 3
    assert days_left([*nights(5), *tiny], Policy(30), 10 * GB) == 3


# --- what comes true -------------------------------------------------------------------------------------------------

policies = st.builds(
    Policy,
    keep_last=st.integers(3, 12),
    weekly=st.integers(0, 3),
    within_days=st.integers(0, 9),
    max_backups=st.none() | st.integers(3, 12),
    min_free_bytes=st.none() | st.integers(1, 2000),
)
households = st.builds(
    nights,
    count=st.integers(3, 10),
    size_bytes=st.integers(500, 1000),
    growth_bytes=st.integers(0, 30),
    new_bytes=st.none() | st.integers(31, 400),
)


def until_full(backups: list[Candidate], policy: Policy, free_bytes: int, growth: int, new: int | None) -> int | None:
    """The nights as they come: each grows as those before did, is refused where it does not fit, and then some go."""
    capacity = free_bytes + used_bytes(backups)
    there = list(backups)
    for night in range(60):
        at = backups[-1].created_at + (night + 1) * DAY
        size = backups[-1].size_bytes + (night + 1) * growth
        shared = (backups[-1].nights_shared + night + 1) % WHOLE_EVERY if new is not None else 0
        room = Room(next_size(there, at), policy.min_free_bytes or 0, capacity - used_bytes(there))
        if room.short_bytes:
            told = plan(there, policy, at, ZONE, room if policy.min_free_bytes else None)
            there = [b for b in there if b.name in {v.name for v in told if v.keep}]
            if replace(room, free_bytes=capacity - used_bytes(there)).short_bytes:
                return night
        made = Candidate(f"then-{night}", at, False, True, size, whole_every=WHOLE_EVERY)
        if shared and new is not None:
            made = replace(made, nights_shared=shared, shared_bytes=size - new)
        kept = {v.name for v in plan([*there, made], policy, at, ZONE) if v.keep}
        there = [b for b in (*there, made) if b.name in kept]
    return None


@examples
@given(households, policies, st.integers(0, 8000))
def test_what_is_foretold_comes_true(backups: list[Candidate], policy: Policy, free_bytes: int) -> None:
    told = look_ahead(backups, policy, NOW, ZONE, free_bytes)
    if not told.fits:
        return
    growth = backups[1].size_bytes - backups[0].size_bytes
    shared = [b.taken_bytes for b in backups if b.nights_shared]
    assert told.days_left == until_full(backups, policy, free_bytes, growth, shared[0] if shared else None)


@examples
@given(households, policies, st.integers(0, 8000), st.integers(0, 3000))
def test_more_room_never_lasts_shorter(
    backups: list[Candidate], policy: Policy, free_bytes: int, more_bytes: int
) -> None:
    less = look_ahead(backups, policy, NOW, ZONE, free_bytes)
    more = look_ahead(backups, policy, NOW, ZONE, free_bytes + more_bytes)
    assert more.fits or not less.fits
    assert more.days_left is None or (less.days_left is not None and more.days_left >= less.days_left)
    assert look_ahead(backups, policy, NOW, ZONE, NEVER_FULL).days_left is None


# --- what the disk really holds --------------------------------------------------------------------------------------


@examples
@given(
    st.lists(st.tuples(st.integers(0, 6), st.sets(st.integers(0, 40), max_size=30)), min_size=1, max_size=16),
    st.data(),
)
def test_what_backups_take_together_is_their_blocks_each_counted_once(
    changes: list[tuple[int, set[int]]], data: st.DataObject
) -> None:
    """Blocks as a filesystem has them: a block belongs to all backups that hold it, and only a row of them shares."""
    backups: list[Candidate] = []
    held: list[set[tuple[int, int]]] = []
    for number, (_, keeps) in enumerate(changes):
        shared = number % WHOLE_EVERY
        own = {(number, n) for n in range(10)}
        blocks = own | ({b for n, b in enumerate(sorted(held[-1])) if n in keeps} if shared else set())
        held.append(blocks)
        at = NOW - timedelta(days=len(changes) - number)
        backups.append(
            Candidate(f"{number}", at, False, True, len(blocks), False, shared, len(blocks) - len(own), WHOLE_EVERY)
        )
    oldest = data.draw(st.integers(0, len(backups) - 1))
    assert used_bytes(backups[oldest:]) == len(set().union(*held[oldest:]))


@pytest.mark.parametrize(
    ("count", "next_bytes"), [(1, 10 * GB), (2, GB), (6, GB), (7, 10 * GB), (8, GB), (14, 10 * GB)]
)
def test_the_next_one_needs_what_is_new_unless_it_is_the_one_written_whole(count: int, next_bytes: int) -> None:
    assert next_size(nights(count, 10 * GB, new_bytes=GB), NOW) == next_bytes


def test_after_three_that_shared_nothing_none_is_expected_to_share() -> None:
    """The backups were moved to a disk that cannot."""
    moved = nights(3, 10 * GB, new_bytes=GB)
    later = [replace(b, name=f"{b.name}-ext4", created_at=b.created_at + DAY / 2) for b in nights(3, 10 * GB)]
    assert next_size([*moved, *later[2:]], NOW) == GB
    assert next_size([*[replace(b, created_at=b.created_at - 5 * DAY) for b in moved], *later], NOW) == 10 * GB

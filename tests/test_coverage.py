"""Every piece is re-read within the period, whatever the sizes, and no night reads much more than its share."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

from hypothesis import example, given, settings
from hypothesis import strategies as some

from memu_backup import words
from memu_backup.coverage import Stored, coverage, due
from memu_backup.stores import Piece
from memu_backup.stores.archive import ArchiveSettings, ArchiveStore

STORE = ArchiveStore(Path("/backups"), ArchiveSettings(kind="archive"))
BEGIN = datetime(2026, 11, 20, 2, 0, tzinfo=UTC)
DAY = timedelta(days=1)
sizes = some.lists(some.integers(0, 10**12), min_size=1, max_size=40)


def piece(name: str, size: int, at: datetime) -> Stored:
    return Stored(STORE, Piece(name, (), size, at), at)


def night(stored: list[Stored], now: datetime, every: int) -> tuple[list[Stored], int]:
    """What is stored after this night, and how much was read: piece by piece, asked anew after each."""
    read = 0
    while waiting := due(stored, now, every):
        first = waiting[0]
        read += first.piece.size_bytes
        stored = [replace(s, read_at=now, again=True) if s is first else s for s in stored]
    return stored, read


@settings(max_examples=25, deadline=None)
@given(sizes, some.integers(1, 40), some.data())
@example([500], 30, None)
def test_all_is_read_within_the_period_and_each_night_is_bounded(
    sizes: list[int], every: int, data: some.DataObject | None
) -> None:
    """Backups that were made one a night or all in one, a new one each night for which the oldest goes, by a service
    that begins now and then late."""
    apart = data.draw(some.integers(0, every // max(1, len(sizes)))) if data else 0
    grows = data.draw(some.booleans()) if data else False
    stored = [piece(f"b{n}", size, BEGIN - (len(sizes) - 1 - n) * apart * DAY) for n, size in enumerate(sizes)]
    largest = max(1, *sizes)
    for number in range(1, 3 * every + 1):
        now = BEGIN + number * DAY + timedelta(hours=data.draw(some.integers(0, 3)) if data else 0)
        stored, read = night(stored, now, every)
        share = max(sum(max(1, s.piece.size_bytes) for s in stored) / (0.8 * every), largest)
        assert read <= share + largest
        assert now - min(s.read_at for s in stored) <= every * DAY
        if grows:
            size = sizes[number % len(sizes)]
            stored = [*stored[1:], piece(f"n{number}", size, now)]


@settings(max_examples=25, deadline=None)
@given(sizes, some.integers(2, 40))
def test_after_months_without_it_all_is_read_within_one_period_without_a_night_that_does_it_all(
    sizes: list[int], every: int
) -> None:
    stored = [piece(f"b{n}", size, BEGIN - 300 * DAY) for n, size in enumerate(sizes)]
    share = max(sum(max(1, size) for size in sizes) / (0.8 * every), 1, *sizes)
    for number in range(every):
        stored, read = night(stored, BEGIN + number * DAY, every)
        assert read < share + max(1, *sizes)
    assert all(s.again for s in stored)


def test_a_month_of_nights_reads_each_about_once() -> None:
    """One archive each night, thirty of them stay: no more than one is re-read in a night."""
    stored = [piece(f"b{n}", 1000, BEGIN - n * DAY) for n in range(30)]
    read = 0
    for number in range(1, 61):
        stored, tonight = night(stored, BEGIN + number * DAY, 30)
        assert tonight <= 2000
        read += tonight
    assert 50_000 <= read <= 75_000


def test_one_that_is_larger_than_a_nights_share_is_read_in_one_night_and_not_more_often() -> None:
    stored = [piece("film", 500, BEGIN), *(piece(f"b{n}", 1, BEGIN - n * DAY) for n in range(20))]
    films = 0
    for number in range(1, 91):
        stored, read = night(stored, BEGIN + number * DAY, 30)
        films += read >= 500
    assert films == 3


def test_how_far_it_is_is_told() -> None:
    stored = [piece("a", 97, BEGIN - DAY), piece("b", 3, BEGIN - 31 * DAY)]
    told = coverage(stored, BEGIN, 30)
    assert (told.read_bytes, told.total_bytes, told.oldest_at, told.behind) == (97, 100, BEGIN - 31 * DAY, False)
    assert words.covered(told, BEGIN, UTC) == [
        "Re-read within 30 days: 97 % of 100 bytes; longest unread: 20 Oct 2:00 AM"
    ]
    late = coverage(stored, BEGIN + 20 * DAY, 30)
    assert late.behind and "memu-backup verify --due" in words.covered(late, BEGIN + 20 * DAY, UTC)[1]
    assert words.covered(coverage(stored[:1], BEGIN, 30), BEGIN, UTC) == ["Re-read within 30 days: 100 % of 97 bytes"]
    assert words.covered(coverage([], BEGIN, 30), BEGIN, UTC) == []

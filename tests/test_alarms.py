"""Once a cause, again at growing intervals, once when all is well; and the other way where the room is away."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.alarms import FALLBACK, ROOM, Alarm, Book, Told, Trouble, last_reminder, owed, reminder_due, review

NOW = datetime(2026, 11, 20, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)
MINUTE = timedelta(minutes=1)
FULL = Trouble("job:nightly", "disk_full", "Disk full")
AWAY = Trouble("job:nightly", "database_away", "The database did not answer")


class Home:
    """Reviews and tells, as the service does; ``room`` and ``fallback`` are whether a message gets through there."""

    def __init__(self, *, with_room: bool = True, with_fallback: bool = True) -> None:
        self.book = Book()
        self.with_room, self.with_fallback = with_room, with_fallback
        self.room = self.fallback = True

    def at(self, now: datetime, *troubles: Trouble, undecided: Iterable[str] = ()) -> list[tuple[str, str]]:
        alarms = review(self.book, troubles, now, frozenset(undecided))
        said = []
        for alarm, way in list(owed(alarms, now, room=self.with_room, fallback=self.with_fallback)):
            if self.room if way == ROOM else self.fallback:
                alarms[alarm.topic] = alarms[alarm.topic].heard_by(way, now)
                said.append((way, "well" if alarm.over else alarm.cause))
        self.book = Book.from_json(Book(alarms, snoozed_until=self.book.snoozed_until).to_json())
        return said


def test_it_is_told_once_and_again_after_a_day_then_three_then_each_week() -> None:
    home = Home()
    told = [n for n in range(24 * 30) if home.at(NOW + n * timedelta(hours=1), FULL)]
    assert [n / 24 for n in told] == [0, 1, 4, 11, 18, 25]


def test_a_new_cause_is_told_at_once_and_counts_anew() -> None:
    home = Home()
    assert home.at(NOW, FULL) == [(ROOM, "disk_full")]
    assert home.at(NOW + DAY / 2, AWAY) == [(ROOM, "database_away")]
    assert home.at(NOW + DAY, AWAY) == []
    assert home.at(NOW + 1.5 * DAY, AWAY) == [(ROOM, "database_away")]


def test_all_well_again_is_told_once_to_who_heard_of_it() -> None:
    home = Home()
    home.at(NOW, FULL)
    assert home.at(NOW + DAY / 2) == [(ROOM, "well")]
    assert home.at(NOW + DAY) == [] and not home.book.alarms


def test_what_nobody_heard_of_is_not_called_off() -> None:
    home = Home()
    home.room = False
    assert home.at(NOW, FULL) == []
    assert home.at(NOW + MINUTE) == [] and not home.book.alarms


def test_what_is_about_to_be_tried_again_changes_nothing() -> None:
    home = Home()
    assert home.at(NOW, FULL, undecided=[FULL.topic]) == []
    home.at(NOW, FULL)
    assert home.at(NOW + DAY / 2, undecided=[FULL.topic]) == []
    assert home.at(NOW + DAY / 2 + MINUTE) == [(ROOM, "well")]


def test_after_ten_minutes_without_the_room_it_goes_another_way_and_later_to_the_room() -> None:
    home = Home()
    home.room = False
    assert [n for n in range(60) if home.at(NOW + n * MINUTE, FULL)] == [10]
    home.room = True
    assert home.at(NOW + 61 * MINUTE, FULL) == [(ROOM, "disk_full")]
    assert home.at(NOW + 62 * MINUTE) == [(ROOM, "well"), (FALLBACK, "well")]


def test_a_cause_that_changes_does_not_begin_the_ten_minutes_anew() -> None:
    home = Home()
    home.room = False
    assert [n for n in range(30) if home.at(NOW + n * MINUTE, FULL if n % 2 else AWAY)] == [10]


def test_without_a_room_it_goes_another_way_at_once() -> None:
    assert Home(with_room=False).at(NOW, FULL) == [(FALLBACK, "disk_full")]


def test_where_nobody_can_be_told_it_waits() -> None:
    home = Home(with_room=False, with_fallback=False)
    assert home.at(NOW, FULL) == []
    home.with_fallback = True
    assert home.at(NOW + DAY, FULL) == [(FALLBACK, "disk_full")]


def test_it_waits_for_what_may_pass() -> None:
    passing = Trouble("history", "away", "away", wait=timedelta(hours=1))
    home = Home()
    assert [n for n in range(120) if home.at(NOW + n * MINUTE, passing)] == [60]
    home = Home()
    assert not any(home.at(NOW + n * MINUTE, *([passing] if n % 50 else [])) for n in range(120))


def test_what_is_told_once_is_neither_repeated_nor_called_off() -> None:
    older = Trouble("damaged:nightly", "a", "damaged", once=True)
    home = Home()
    assert home.at(NOW, older) == [(ROOM, "a")]
    assert home.at(NOW + 9 * DAY, older) == []
    assert home.at(NOW + 10 * DAY) == [] and not home.book.alarms


def test_what_people_know_by_the_row_is_not_told_anew_where_the_alarms_were_lost() -> None:
    known = Trouble("job:nightly", "disk_full", "Disk full", known=True)
    home = Home()
    assert home.at(NOW, known) == []
    assert home.at(NOW + 2 * DAY) == [(ROOM, "well")]


def test_snoozed_it_is_not_repeated_but_what_is_new_is_told() -> None:
    home = Home()
    home.at(NOW, FULL)
    home.book = Book(home.book.alarms, snoozed_until=NOW + 7 * DAY)
    assert home.at(NOW + 6 * DAY, FULL) == []
    assert home.at(NOW + 6 * DAY, AWAY) == [(ROOM, "database_away")]
    assert home.at(NOW + 7 * DAY, AWAY) == [(ROOM, "database_away")]


@given(
    st.lists(
        st.tuples(
            st.integers(0, 3000), st.sampled_from([None, FULL, AWAY]), st.booleans(), st.booleans(), st.booleans()
        ),
        max_size=60,
    )
)
def test_whatever_happens_nothing_is_said_twice_within_a_day_and_nothing_is_called_off_that_was_not_said(
    steps: list[tuple[int, Trouble | None, bool, bool, bool]],
) -> None:
    home, now = Home(), NOW
    last: dict[tuple[str, str], datetime] = {}
    worried: set[str] = set()
    for minutes, trouble, room, fallback, undecided in steps:
        now += minutes * MINUTE
        home.room, home.fallback = room, fallback
        for way, said in home.at(now, *([trouble] if trouble else []), undecided=[FULL.topic] if undecided else []):
            if said == "well":
                worried.remove(way)
                last.clear()
            else:
                worried.add(way)
                assert now - last.get((way, said), now - DAY) >= DAY
                last[way, said] = now


def test_an_alarm_that_is_due_ever_later_by_a_clock_that_was_wrong_comes_back() -> None:
    home = Home()
    home.room = home.fallback = False
    home.at(NOW + 9000 * DAY, FULL)
    home.room = True
    assert home.at(NOW, FULL) == [(ROOM, "disk_full")]


@pytest.mark.parametrize(
    ("now", "last"),
    [
        ("2026-11-22 09:59", "2026-11-15 10:00"),
        ("2026-11-22 10:00", "2026-11-22 10:00"),
        ("2026-11-28 23:00", "2026-11-22 10:00"),
        ("2026-10-25 10:00", "2026-10-25 10:00"),  # an hour longer, that day
    ],
)
def test_the_reminder_is_for_sunday_at_ten(now: str, last: str) -> None:
    berlin = ZoneInfo("Europe/Berlin")

    def moment(text: str) -> datetime:
        return datetime.fromisoformat(text).replace(tzinfo=berlin)

    assert last_reminder(moment(now), berlin) == moment(last)


def test_the_book_comes_back_as_it_was() -> None:
    told = Told(NOW, 3, frozenset({ROOM}))
    alarm = Alarm("job:nightly", "disk_full", told, frozenset({ROOM, FALLBACK}), past={"quota": Told(NOW)})
    book = Book({alarm.topic: alarm}, NOW, NOW + DAY, {"nightly": "run:success"})
    assert Book.from_json(book.to_json()) == book


@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"alarms": {"a": {}}}', b'{"alarms": [1]}'])
def test_a_book_that_is_none_is_said_to_be_none(content: bytes) -> None:
    with pytest.raises((ValueError, KeyError, TypeError, AttributeError)):
        Book.from_json(content)


@pytest.mark.parametrize(
    ("day", "hour", "due"),
    [
        (4, 9, False),  # Sunday, not yet ten
        (4, 10, True),
        (5, 3, True),  # the machine was off on Sunday
        (8, 9, True),
        (10, 9, False),  # Saturday: tomorrow is Sunday
        (11, 9, False),
        (11, 10, True),
    ],
)
def test_a_missed_reminder_is_made_up_for_unless_the_next_is_near(day: int, hour: int, due: bool) -> None:
    """January 2026 begins on a Thursday; the last reminder was dealt with on Sunday, 28 December."""
    zone = ZoneInfo("Europe/Berlin")
    last = datetime(2025, 12, 28, 10, 0, 5, tzinfo=zone)
    now = datetime(2026, 1, day, hour, 0, 1, tzinfo=zone)
    assert reminder_due(last, now, zone) is due
    assert not reminder_due(None, now, zone)

"""What the family is to hear of trouble: once a cause, again at growing intervals, and once when all is well again.

Pure, but for ``read`` and ``write``. A trouble is what is wrong at this moment, found anew each time. An alarm is what
has become of it: since when, and who has heard. So nothing waits in a queue: what is told after a long absence is how
things stand then.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

from memu_backup.files import write_atomically

log = logging.getLogger(__name__)

CHAT, SIGNED_OUT = "chat", "signed_out"
"""The topic of a bot that cannot work, and one cause."""

ROOM = "room"
FALLBACK = "fallback"

PATIENCE = timedelta(minutes=10)
"""How long a message waits for the room before it goes another way."""

AGAIN = (timedelta(days=1), timedelta(days=3), timedelta(days=7))
"""After the first telling, the second, and each that follows."""

_FORGOTTEN = timedelta(days=7)
"""Nobody wants to hear that all is well again of what they have forgotten."""

_CLOSE = timedelta(days=2)
_REMINDER_WEEKDAY, _REMINDER_HOUR = 6, 10  # Sunday, as the Memu specification has it


@dataclass(frozen=True, slots=True)
class Trouble:
    """``topic`` is what it is about, such as a job: of one topic one alarm stands at a time. A new ``cause`` is told at
    once. ``text`` is what to say now.

    It has to last for ``wait`` before anybody hears. With ``once`` it is told and done with, neither repeated nor
    called off. ``known`` says that people heard of it, whatever the alarms say. With ``asks`` it is a question: whether
    the backup of that run is as it should be.
    """

    topic: str
    cause: str
    text: str
    wait: timedelta = timedelta()
    once: bool = False
    known: bool = False
    asks: str = ""


@dataclass(frozen=True, slots=True)
class Told:
    """Of one cause: to be told from ``due`` on (aware UTC), for the ``number``-th time; ``by`` are the channels that
    have told it, the last of them at ``due``.
    """

    due: datetime
    number: int = 1
    by: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class Alarm:
    """``heard`` are the channels that told of this trouble: once it is ``over``, each of them tells that, too. ``past``
    are causes that were told before the present one, so that two that alternate are not told each time.
    """

    topic: str
    cause: str
    told: Told
    heard: frozenset[str] = frozenset()
    once: bool = False
    over: bool = False
    past: Mapping[str, Told] = field(default_factory=dict)

    def heard_by(self, channel: str, now: datetime) -> Alarm:
        heard = self.heard - {channel} if self.over else self.heard | {channel}
        return replace(self, told=replace(self.told, due=now, by=self.told.by | {channel}), heard=heard)

    def with_past(self) -> Mapping[str, Told]:
        return {**self.past, self.cause: self.told} if self.told.by and not self.over else self.past


@dataclass(frozen=True, slots=True)
class Book:
    """All that has to outlast a restart. ``reminded_at`` is when the weekly reminder was last dealt with, ``beats`` by
    job what the dead-man's switch outside was told last.
    """

    alarms: Mapping[str, Alarm] = field(default_factory=dict)
    reminded_at: datetime | None = None
    snoozed_until: datetime | None = None
    beats: Mapping[str, str] = field(default_factory=dict)

    def to_json(self) -> bytes:
        return json.dumps(asdict(self), default=_plain, indent=1).encode()

    @classmethod
    def from_json(cls, content: bytes) -> Book:
        """Raises ValueError, KeyError, TypeError or AttributeError for what ``to_json`` never wrote."""
        found = json.loads(content)
        alarms = {topic: _alarm(told) for topic, told in found["alarms"].items()}
        return cls(alarms, _time(found["reminded_at"]), _time(found["snoozed_until"]), dict(found["beats"]))


def file_in(state_dir: Path) -> Path:
    """Where the book of the service with this ``state_dir`` lies."""
    return state_dir / "alarms.json"


def read(file: Path) -> Book:
    """The book; an empty one where there is none, or none that can be read: then something is told once more."""
    try:
        return Book.from_json(file.read_bytes())
    except FileNotFoundError:
        return Book()
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        log.warning("%s cannot be read; an alert may come once more.", file)
        return Book()


def write(file: Path, book: Book) -> None:
    """On return it survives a power cut. Raises OSError."""
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, book.to_json())


def review(book: Book, troubles: Sequence[Trouble], now: datetime, undecided: Collection[str] = ()) -> dict[str, Alarm]:
    """The alarms as they stand ``now`` (aware), given all the trouble there is.

    Of the topics that are ``undecided``, as where what failed is about to be tried again, none changes.
    """
    alarms = {topic: alarm for topic, alarm in book.alarms.items() if topic in undecided}
    for trouble in troubles:
        if trouble.topic not in undecided:
            alarms[trouble.topic] = _raised(book.alarms.get(trouble.topic), trouble, now, book.snoozed_until)
    for topic, alarm in book.alarms.items():
        if topic not in alarms and (ended := _ended(alarm, now)):
            alarms[topic] = ended
    return alarms


def owed(alarms: Mapping[str, Alarm], now: datetime, *, room: bool, fallback: bool) -> Iterator[tuple[Alarm, str]]:
    """What is to be said ``now``, and where. ``room`` and ``fallback`` tell whether there is such a way at all."""
    ways = [way for way, is_there in ((ROOM, room), (FALLBACK, fallback)) if is_there]
    for alarm in alarms.values():
        told = alarm.told
        if told.due > now:
            continue
        if alarm.over:
            yield from ((alarm, way) for way in ways if way in alarm.heard)
            continue
        if room and ROOM not in told.by:
            yield alarm, ROOM
        if fallback and not told.by and (not room or now - told.due >= PATIENCE):
            yield alarm, FALLBACK


def last_reminder(now: datetime, zone: tzinfo) -> datetime:
    """The last Sunday at 10:00 by the household's clocks, in UTC."""
    local = now.astimezone(zone)
    day = local.date() - timedelta(days=(local.weekday() - _REMINDER_WEEKDAY) % 7)
    at = datetime(day.year, day.month, day.day, _REMINDER_HOUR, tzinfo=zone)
    if at > local:
        day -= timedelta(days=7)
        at = datetime(day.year, day.month, day.day, _REMINDER_HOUR, tzinfo=zone)
    return at.astimezone(UTC)


def reminder_due(last: datetime | None, now: datetime, zone: tzinfo) -> bool:
    """Whether a Sunday has come since the ``last`` was dealt with; None, and nobody waits for one. One that was missed
    is made up for, unless the next is less than two days away: two within a day look like a mistake.
    """
    if last is None or last >= last_reminder(now, zone):
        return False
    return last_reminder(now + timedelta(days=7), zone) - now > _CLOSE


def _raised(alarm: Alarm | None, trouble: Trouble, now: datetime, snoozed_until: datetime | None) -> Alarm:
    fresh = Told(now + trouble.wait)
    if alarm is None:
        if trouble.known:
            return Alarm(trouble.topic, trouble.cause, Told(now, by=frozenset({ROOM})), frozenset({ROOM}))
        return Alarm(trouble.topic, trouble.cause, fresh, once=trouble.once)
    if alarm.over and alarm.told.by:  # people believe that all is well
        return Alarm(trouble.topic, trouble.cause, fresh, alarm.heard)
    if alarm.over or alarm.cause != trouble.cause:
        past = dict(alarm.with_past())
        told = past.pop(trouble.cause, fresh)
        if not (alarm.over or alarm.told.by or told.by):  # somebody waits to be told since then
            told = replace(told, due=min(told.due, alarm.told.due))
        alarm = replace(alarm, cause=trouble.cause, told=told, over=False, past=past)
    return replace(alarm, told=_perhaps_again(alarm, now, fresh.due, snoozed_until))


def _perhaps_again(alarm: Alarm, now: datetime, latest: datetime, snoozed_until: datetime | None) -> Told:
    told = replace(alarm.told, due=min(alarm.told.due, latest))  # later only where the clock was put back since
    again = told.due + AGAIN[min(told.number, len(AGAIN)) - 1]
    if not told.by or alarm.once or now < max(again, snoozed_until or again):
        return told
    return Told(now, told.number + 1)


def _ended(alarm: Alarm, now: datetime) -> Alarm | None:
    """None where nobody has to hear of it any more."""
    if alarm.once or not alarm.heard:
        return None
    if not alarm.over:
        return replace(alarm, cause="", told=Told(now), over=True, past=alarm.with_past())
    return alarm if timedelta() <= now - alarm.told.due < _FORGOTTEN else None


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, frozenset) else value.isoformat()


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(text)
    return at


def _alarm(found: Mapping[str, Any]) -> Alarm:
    past = {cause: _told(told) for cause, told in found["past"].items()}
    return Alarm(**{**found, "told": _told(found["told"]), "heard": frozenset(found["heard"]), "past": past})


def _told(found: Mapping[str, Any]) -> Told:
    due = _time(found["due"])
    assert due
    return Told(due, int(found["number"]), frozenset(found["by"]))

"""Tells people what they have to know, from the rows: when one changes, and once a minute, should that go unheard."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from datetime import time as time_of_day
from typing import Any, Protocol

from memu_backup import alarms, digest, messages, pulse, schedule, troubles
from memu_backup.alarms import FALLBACK, ROOM, Alarm, Book, Trouble
from memu_backup.alerts import Channel, Notice
from memu_backup.clock import Clock
from memu_backup.errors import ChatAway, MemuError, SettingsError
from memu_backup.history.rows import lies_in
from memu_backup.manager import Manager
from memu_backup.model import Problem, ReportKind, Run, Status, StatusReport
from memu_backup.troubles import Found

log = logging.getLogger(__name__)

_SWEEP_S = 60.0
_PAUSES_S = (30.0, 60.0, 300.0, 900.0)
"""How long a way is left alone by which nothing got through. The room tells when it is open again."""

_LATE_HISTORY = timedelta(hours=1)
_LOOK_AT = time_of_day(10)
"""Each day at this time by the household's clocks everything is looked at, whether or not a row has changed."""

_ON_ITS_WAY_S = 10.0
"""The bot gets into its room within this, or something keeps it out."""

_SETTLE_AGAIN = timedelta(minutes=10)
_SNOOZE = timedelta(days=7)
_STALE = timedelta(days=2)
"""What a drive had to tell before that, nobody needs to hear any more."""


@dataclass(frozen=True, slots=True)
class _Closed:
    """A way by which nothing got through: it is tried again from ``until`` (time.monotonic), ever later."""

    failures: int
    until: float

    @classmethod
    def after(cls, before: _Closed | None, error: Exception) -> _Closed:
        failures = before.failures + 1 if before else 1
        wait_s = error.wait_s if isinstance(error, ChatAway) else 0.0
        pause_s = _PAUSES_S[min(failures, len(_PAUSES_S)) - 1]
        return cls(failures, time.monotonic() + (wait_s or pause_s))


class Room(Channel, Protocol):
    """The family's room."""

    async def test(self) -> Mapping[str, Any]:
        """Say that this is a test, and wait until it stands there. Raises ChatError.

        ``room``, ``encrypted``, ``seconds``, and of ``readers`` by user how many devices have its key.
        """


class Teller:
    """``fallback`` is the way beside the room, None where there is none; ``expects_room`` says whether somebody signed
    the bot in. What is told depends on nothing but rows, disks and the book of alarms: a kill loses nothing.
    """

    def __init__(self, manager: Manager, clock: Clock, fallback: Channel | None, *, expects_room: bool) -> None:
        self._manager = manager
        self._clock = clock
        self._fallback = fallback
        self.expects_room = expects_room
        self._room: Room | None = None
        self._opened = asyncio.Event()
        self._lost: Trouble | None = None
        self._file = alarms.file_in(manager.config.state_dir)
        self._book = alarms.read(self._file)
        self._wake = asyncio.Event()
        self._reports: Mapping[str, StatusReport] = {}
        self._looked: tuple[object, datetime, datetime] | None = None
        self._closed: dict[str, _Closed] = {}
        self._settle_at: dict[str, datetime] = {}
        self._unheard: set[str] = set()
        self.on_rows: Callable[[], None] = lambda: None
        """Called when a run has begun or ended, whoever made it."""

    # --- what others tell it ---------------------------------------------------------------------------------------

    def room_is_open(self, room: Room) -> None:
        """What waits can be said there."""
        self._room, self.expects_room, self._lost = room, True, None
        self._closed.pop(ROOM, None)
        self._opened.set()
        self._wake.set()

    def room_is_away(self) -> None:
        """Until it is open again; the bot is on its way there."""
        self._room = None
        self._opened.clear()

    def room_is_lost(self, *, signed_out: bool) -> None:
        """The bot cannot work. Where its login was ended, all goes the other way until it is signed in again."""
        self.room_is_away()
        if signed_out:
            self.expects_room = False
            self._lost = Trouble(alarms.CHAT, alarms.SIGNED_OUT, messages.signed_out())
        else:
            self._lost = Trouble(alarms.CHAT, "broken", messages.chat_broken(), wait=alarms.PATIENCE)
        self._wake.set()

    def wake(self) -> None:
        """There is something new to tell."""
        self._wake.set()

    def look_again(self) -> None:
        """Something has changed of which no row of a run tells."""
        self._looked = None
        self._wake.set()

    def snooze(self) -> datetime:
        """For a week no reminder comes, nor what people know. Until when."""
        until = self._clock() + _SNOOZE
        self._keep(replace(self._book, snoozed_until=until))
        return until

    async def test_room(self) -> Mapping[str, Any]:
        """See ``Room.test``. Somebody who has just signed the bot in, or invited it, need not be faster than it."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_ON_ITS_WAY_S):
                await self._opened.wait()
        if self._room is None:
            raise ChatAway(
                "The bot is not in the family's room, or its homeserver does not answer. Let one of the admins invite "
                "it. Whether it is signed in tells: memu-backup check"
            )
        return await self._room.test()

    # --- the loop --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Until cancelled."""
        following = asyncio.create_task(self._manager.history.news.follow(self._wake.set))
        before = ""
        try:
            while True:
                pause_s = _SWEEP_S
                try:
                    pause_s = await self._round()
                    before = ""
                except Exception as error:
                    # Once each time, and not with every minute.
                    said = f"What there is to tell could not be found out: {error}"
                    if said != before:
                        known = isinstance(error, MemuError)
                        log.error("%s", said, exc_info=None if known else error)
                    before = said
                with suppress(TimeoutError):
                    async with asyncio.timeout(pause_s):
                        await self._wake.wait()
                self._wake.clear()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _round(self) -> float:
        """Look, tell, and note it. In how many seconds to look again, should nothing wake us."""
        now = self._clock()
        runs, away = await self._manager.history.news.rows()
        runs = [run for run in runs if self._is_ours(run)]
        await self._settle_killed(runs, now)
        await self._look(runs, now, away=away)
        found = self._found(runs, now, away=away)
        found.troubles += await self._reports_due(now)
        book = self._believed(now)
        self._keep(replace(book, alarms=alarms.review(book, found.troubles, now, found.undecided)))
        pause_s = await self._tell(found, now)
        await self._settle(found)
        beats = await pulse.tell(self._heartbeats(), runs, self._book.beats, now, self._unheard)
        self._keep(replace(self._book, beats=beats))
        return pause_s

    def _believed(self, now: datetime) -> Book:
        """Without what a clock wrote down that was far ahead: it would silence everything until that day comes."""
        book = self._book
        if book.snoozed_until and book.snoozed_until > now + _SNOOZE + schedule.SLACK:
            book = replace(book, snoozed_until=None)
        if book.reminded_at and book.reminded_at > now + schedule.SLACK:
            book = replace(book, reminded_at=now)
        self._keep(book)
        return book

    def _is_ours(self, run: Run) -> bool:
        """Other settings may share host and history with these."""
        config = self._manager.config
        return run.job in config.jobs and lies_in(run, self._manager.store(config.job(run.job)).directory)

    async def _settle_killed(self, runs: Sequence[Run], now: datetime) -> None:
        """A run that was killed says so in no row: that is found out here, in case no other run comes soon."""
        jobs = {run.job for run in runs if run.status is Status.IN_PROGRESS}
        self._settle_at = {job: at for job, at in self._settle_at.items() if job in jobs}
        for job in jobs:
            at = self._settle_at.get(job)
            if (at is None or not at - _SETTLE_AGAIN <= now < at) and not await self._manager.at_work(job):
                self._settle_at[job] = now + _SETTLE_AGAIN  # it may be that its disk is away
                await self._manager.recover((job,))

    async def _look(self, runs: Sequence[Run], now: datetime, *, away: bool) -> None:
        """Only where something may have changed: disks that sleep are not woken once a minute."""
        seen = frozenset((r.run_id, r.status, r.error_code, r.notification_sent, r.usb_copied_at) for r in runs)
        if self._looked:
            before, at, following = self._looked
            sunday = alarms.last_reminder(now, self._manager.config.zone)
            blind = not away and any(report.history_away for report in self._reports.values())
            if before == seen and sunday <= at <= now < following and not blind:
                return
        self._reports = await self._manager.standing.reports()
        self._looked = seen, now, self._next_look(now)
        self.on_rows()

    def _next_look(self, now: datetime) -> datetime:
        local = now.astimezone(self._manager.config.zone)
        daily = datetime.combine(local.date(), _LOOK_AT, local.tzinfo).astimezone(UTC)
        if daily <= now:
            daily = datetime.combine(local.date() + timedelta(days=1), _LOOK_AT, local.tzinfo).astimezone(UTC)
        overdue = (r.overdue_at for r in self._reports.values() if r.overdue_at)
        return min([daily, *(at + timedelta(seconds=1) for at in overdue if at >= now)])

    # --- what there is to tell -------------------------------------------------------------------------------------

    def _found(self, runs: Sequence[Run], now: datetime, *, away: bool) -> Found:
        config = self._manager.config
        disks = {job: str(self._manager.store(config.job(job)).directory) for job in self._reports}
        found = troubles.of_jobs(
            self._reports,
            [run for run in runs if _is_debt(run)],
            disks,
            now,
            config.zone,
            completed=config.alerts.completed,
        )
        if down := self._manager.left_down():
            found.troubles.append(Trouble("services", " ".join(down), messages.services_down(down)))
        found.well["services"] = messages.well_services()
        for job in self._reports:
            if f"job:{job}" in self._book.alarms:  # that all is well again says the same
                found.drop(f"completed:{job}")
        if away:
            found.troubles.append(Trouble("history", "away", messages.history_away(), wait=_LATE_HISTORY))
        found.well["history"] = messages.well_history()
        if self._lost:
            found.troubles.append(self._lost)
        elif self.expects_room and self._room is None:
            found.undecided.add(alarms.CHAT)
        elif self._room:
            found.well[alarms.CHAT] = messages.well_chat()
        for drive, news in self._manager.passports.known.news().items():
            if now - news.at < _STALE:
                topic = f"drive:{drive}/{news.at.isoformat()}"
                found.troubles.append(Trouble(topic, "news", news.text, once=True))
        if self._is_reminded(now) and (trouble := self._reminder(now)):
            found.troubles.append(trouble)
        return found

    async def _reports_due(self, now: datetime) -> list[Trouble]:
        """As long as one is due, so that it stays in the book; its text is made for who has not heard it yet."""
        at, kinds = (
            time_of_day.fromisoformat(f"{self._manager.config.alerts.reports_at:0>5}"),
            map(ReportKind, self._manager.config.alerts.reports),
        )
        zone, due = self._manager.config.zone, []
        for kind, since in digest.due(kinds, at, now, zone):
            topic = f"report:{kind}/{since.isoformat()}"
            alarm = self._book.alarms.get(topic)
            heard = alarm and (ROOM in alarm.told.by or (alarm.told.by and not self.expects_room))
            text = "" if heard else digest.text(await self._manager.standing.digest(kind), zone)
            due.append(Trouble(topic, "report", text, once=True))
        return due

    def _heartbeats(self) -> dict[str, str]:
        """By job, read anew each time: a file that cannot be read now is no reason not to make backups."""
        found = {}
        for job in self._manager.config.jobs:
            try:
                if url := self._manager.config.heartbeat_of(job):
                    found[job] = url
            except SettingsError as error:
                log.log(logging.DEBUG if job in self._unheard else logging.WARNING, "%s", error)
                self._unheard.add(job)
        return found

    def _is_reminded(self, now: datetime) -> bool:
        return alarms.reminder_due(self._book.reminded_at, now, self._manager.config.zone)

    def _is_snoozed(self, now: datetime) -> bool:
        return self._book.snoozed_until is not None and now < self._book.snoozed_until

    def _reminder(self, now: datetime) -> Trouble | None:
        overdue = [r for r in self._reports.values() if Problem.USB_OVERDUE in r.problems]
        if not overdue or self._is_snoozed(now):
            return None
        copies = [r.usb_copied_at for r in overdue]
        oldest = None if None in copies else min(at for at in copies if at)
        size_bytes = sum(r.last_good.size_bytes for r in self._reports.values() if r.last_good)
        zone = self._manager.config.zone
        cause = alarms.last_reminder(now, zone).isoformat()
        return Trouble("usb", cause, messages.reminder(oldest, size_bytes, now, zone), once=True)

    # --- telling it ------------------------------------------------------------------------------------------------

    async def _tell(self, found: Found, now: datetime) -> float:
        texts = {trouble.topic: trouble.text for trouble in found.troubles}
        asks = {trouble.topic: trouble.asks for trouble in found.troubles}
        fallback = self._fallback is not None
        waits = [_SWEEP_S]
        for alarm, way in list(alarms.owed(self._book.alarms, now, room=self.expects_room, fallback=fallback)):
            text = found.well.get(alarm.topic, "") if alarm.over else texts.get(alarm.topic, "")
            heard = self._book.alarms[alarm.topic].told.by
            if not text or (way == FALLBACK and heard and not alarm.over):
                continue  # what is undecided is told by a later round; and the room may have taken it just now
            if (closed := self._closed.get(way)) and time.monotonic() < closed.until:
                waits.append(closed.until - time.monotonic())
                continue
            try:
                await self._say(alarm, way, text, "" if alarm.over else asks[alarm.topic])
            except Exception as error:  # whatever it is, there are other ways and other things to do
                self._closed[way] = after = _Closed.after(closed, error)
                waits.append(after.until - time.monotonic())
                if closed is None:  # once each time
                    _complain(way, error)
                continue
            self._closed.pop(way, None)
            log.info("Told by way of the %s: %s", way, text.partition("\n")[2].partition("\n")[0] or text)
            told = self._book.alarms[alarm.topic].heard_by(way, now)
            self._keep(replace(self._book, alarms={**self._book.alarms, alarm.topic: told}))
        return max(1.0, min(waits))

    async def _say(self, alarm: Alarm, way: str, text: str, asks: str) -> None:
        """The key is in the book before: who is killed now, and says it again, says it under the same."""
        parts = (alarm.topic, alarm.cause, str(alarm.told.number), alarm.told.due.isoformat(), str(alarm.over))
        key = "/".join((self._manager.config.host, *parts))
        if way == FALLBACK:
            assert self._fallback
            text = messages.another_way(text) if self.expects_room and not alarm.over else text
            await self._fallback.send(Notice(key, text))
        elif self._room is None:
            raise ChatAway("The chat is not connected yet.")
        else:
            await self._room.send(Notice(key, text, asks))

    async def _settle(self, found: Found) -> None:
        """What was told, or need not be, is no debt any more."""
        done = [*found.settled]
        for trouble in found.troubles:
            alarm = self._book.alarms.get(trouble.topic)
            if alarm and alarm.told.by and alarm.cause == trouble.cause:
                done += [run for run in found.rows.get(trouble.topic, ()) if not run.notification_sent]
        if done:
            try:
                await self._manager.history.news.told(done)
            except OSError as error:
                log.warning("That people were told could not be written down (%s); it may be told again.", error)
        now = self._clock()
        usb = self._book.alarms.get("usb")
        unknown = self._is_snoozed(now) or any(r.history_away for r in self._reports.values())
        dealt_with = usb.told.by if usb else not unknown  # what is not known yet may still be owed
        if self._book.reminded_at is None or (self._is_reminded(now) and dealt_with):
            self._keep(replace(self._book, reminded_at=now))

    def _keep(self, book: Book) -> None:
        if book == self._book:
            return
        self._book = book
        try:
            alarms.write(self._file, book)
        except OSError as error:
            log.warning("%s cannot be written (%s); after a restart an alert may come once more.", self._file, error)


def _complain(way: str, error: Exception) -> None:
    if isinstance(error, MemuError):
        log.log(logging.INFO if way == ROOM else logging.WARNING, "An alert has to wait: %s", error)
    else:
        log.error("An alert could not be told by way of the %s (%s).", way, type(error).__name__, exc_info=error)


def _is_debt(run: Run) -> bool:
    return run.status in (Status.FAILED, Status.PARTIAL) and run.retry_at is None and not run.notification_sent

"""The service: a timetable for the nightly archive, a watch for the drive, a bot for the family, and everything they do
goes through the manager into history.
"""

from __future__ import annotations

import asyncio
import importlib
import logging
import signal
import time
from collections.abc import Coroutine, Iterator
from contextlib import AsyncExitStack, ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memu_backup import bell, lock, schedule, systemd
from memu_backup.alerts import Channel, Notice
from memu_backup.audit import SCHEDULER
from memu_backup.chat.account import Account, Safe
from memu_backup.clock import Clock, now
from memu_backup.config import Config
from memu_backup.errors import ChatError, HistoryAway, LoginEnded, StoreError
from memu_backup.history import History
from memu_backup.manager import Manager, history_of
from memu_backup.nights import Nights
from memu_backup.plugged import Plugged
from memu_backup.teller import Teller
from memu_backup.weekly import Weekly

if TYPE_CHECKING:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)

_STOP_S = 6.0
"""For all that runs to end after SIGTERM; with the end of the embedded history, 3 s, it stays below 10 s."""

_LONGEST_PAUSE_S = 60.0

_BRING_BACK_S = 600.0
"""How often to try again what a backup had stopped and what did not come up."""

_SIGNED_IN_S = 5.0
"""How often to look whether somebody has signed the bot in."""

_LONG_ENOUGH_S = 300.0
"""A chat that lasted so long had begun well."""

_DRILL = "restore test"
"""Among the jobs of the scheduler, none of which can have such a name."""

_RUNS_ALREADY = "It makes the backups of these settings already; to start it anew, stop that one first."

_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Daemon:
    """Runs until SIGTERM or SIGINT. ``_tasks`` is everything under way; it is cancelled and awaited at the end."""

    def __init__(self, config: Config, history: History, clock: Clock = now) -> None:
        self._config = config
        self._history = history
        self._clock = clock
        self._manager = Manager(config, history, clock)
        self._nights = Nights(config, self._manager, self._start, clock)
        self._teller = Teller(self._manager, clock, _fallback(config), expects_room=_signed_in(config) is not None)
        self._weekly = Weekly(config, self._manager, self._start, self._teller.look_again, clock)
        self._plugged = Plugged(self._manager, self._teller.wake, clock)
        self._teller.on_rows = self._manager.passports.on_change = self._plugged.look
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked_to_stop = asyncio.Event()
        self._new_login = asyncio.Event()

    @property
    def answers(self) -> bell.Answers:
        """What a command may ask of the service that runs."""
        return {"chat test": self._teller.test_room, "chat login": self._take_up, "drives": self._look_at_drives}

    async def _look_at_drives(self) -> None:
        """The command line has approved one, or the like."""
        self._plugged.look()

    async def serve(self) -> None:
        """Start, say so to systemd, work, and stop in order: no new work, then what runs ends, within 6 s."""
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._asked_to_stop.set)
        scheduler = self._scheduler()
        scheduler.start()
        opening = self._start(self._open())
        self._start(self._keep_alive(scheduler, opening))
        self._start(self._teller.run(), "what people are told")
        self._start(self._plugged.run(), "the drives")
        if self._config.backup_notification_room:
            self._start(self._chat(), "the chat")
        if self._config.web.enabled:
            self._start(self._listen(), "the page")
        systemd.notify("READY=1")
        log.info("memu-backup is ready; %s.", self._next_words(scheduler))
        if self._config.off:
            log.warning("%s", self._config.off)
        try:
            await self._asked_to_stop.wait()
        finally:
            await self._stop(scheduler)

    async def _stop(self, scheduler: AsyncIOScheduler) -> None:
        log.info("Asked to stop.")
        systemd.notify("STOPPING=1")
        scheduler.shutdown(wait=False)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            _, late = await asyncio.wait(self._tasks, timeout=_STOP_S)
            for task in late:
                log.warning("Still busy after %d s: %s.", _STOP_S, task.get_name())

    def _scheduler(self) -> AsyncIOScheduler:
        from apscheduler.schedulers.asyncio import AsyncIOScheduler

        scheduler = AsyncIOScheduler(timezone=self._config.zone)
        for name, table in self._nights.tables.items():
            # However late it is: what is due, and what is late, the watch says.
            scheduler.add_job(
                self._on_time, table, args=[name], id=name, coalesce=True, max_instances=1, misfire_grace_time=None
            )
        if self._weekly.table:
            scheduler.add_job(
                self._on_day, self._weekly.table, id=_DRILL, coalesce=True, max_instances=1, misfire_grace_time=None
            )
        return scheduler

    async def _on_time(self, job: str) -> None:
        """Async, since APScheduler calls anything else in a thread."""
        self._nights.look(job)

    async def _on_day(self) -> None:
        self._weekly.look()

    async def _open(self) -> None:
        await asyncio.wait({self._start(self._bring_back(), "services")})  # first of all: a family may be waiting
        await asyncio.wait({self._start(self._tidy_up())})  # what goes wrong there must not cost what was missed
        await self._nights.look_back()
        await self._weekly.look_back()

    async def _bring_back(self) -> None:
        _, problems = await self._manager.bring_back(SCHEDULER)
        for problem in problems:
            log.error("%s", problem)

    async def _tidy_up(self) -> None:
        """Open the history and settle what killed runs left behind.

        Early, and beside everything else: a Postgres that is away must not keep the nightly backup from its time.
        """
        try:
            log.info("The history is kept in %s.", await self._history.check())
            await self._history.replay()
        except HistoryAway as error:
            log.warning("%s", error)
        await self._manager.recover()
        await self._manager.drills.sweep()

    async def _chat(self) -> None:
        """Whatever becomes of it, backups are made all the same. Who signs the bot in anew need not restart us."""
        account = ended = None
        failures = 0
        if _signed_in(self._config) is None:
            log.warning(
                "A room is set, but the bot is not signed in, so nobody is answered or told there; backups are made "
                "all the same. To sign it in: memu-backup chat login"
            )
        while True:
            begun = time.monotonic()
            try:
                account = Safe(self._config.state_dir).account()
                if account and account != ended:
                    await self._chat_as(account)
                    continue
            except LoginEnded as error:
                ended = account
                if _signed_in(self._config) == ended:
                    log.error("%s", error)
                    self._teller.room_is_lost(signed_out=True)
            except Exception as error:
                failures = failures + 1 if time.monotonic() - begun < _LONG_ENOUGH_S else 1
                if failures == 1:  # once each time
                    known = isinstance(error, ChatError)
                    log.error("The chat does not work: %s", error, exc_info=None if known else error)
                self._teller.room_is_lost(signed_out=False)
                await self._wait_for_login(min(_LONGEST_PAUSE_S, _SIGNED_IN_S * failures))
            await self._wait_for_login(_SIGNED_IN_S)

    async def _take_up(self) -> None:
        """The command line has signed the bot in anew: what is asked next is not for the login before."""
        self._teller.room_is_away()
        self._new_login.set()

    async def _wait_for_login(self, timeout_s: float) -> None:
        """For one that we are told of; others show when we look."""
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                await self._new_login.wait()
        self._new_login.clear()

    async def _chat_as(self, account: Account) -> None:
        """Until somebody signs the bot in anew. Raises whatever ends it before."""
        # Elsewhere: nio is a second of imports, in which nothing else would happen.
        bot = await asyncio.to_thread(importlib.import_module, "memu_backup.chat.bot")
        running = asyncio.ensure_future(bot.run(self._manager, self._teller, self._start, self._clock, account))
        try:
            while not running.done() and _signed_in(self._config) in (account, None):
                told = asyncio.ensure_future(self._wait_for_login(_SIGNED_IN_S))
                await asyncio.wait({running, told}, return_when=asyncio.FIRST_COMPLETED)
                told.cancel()
            if running.done():
                running.result()
        finally:
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)
            self._teller.room_is_away()

    async def _listen(self) -> None:
        # Elsewhere, as the chat: these imports take half a second.
        listening = await asyncio.to_thread(importlib.import_module, "memu_backup.web.listening")
        await listening.listen(self._manager, self._start, self._clock)

    async def _replay(self) -> None:
        try:
            if count := await self._history.replay():
                log.info("The history is back; %d notes that waited on this machine were moved into it.", count)
        except HistoryAway as error:
            log.debug("%s", error)  # said when the notes were written; once a minute would only fill the journal

    async def _keep_alive(self, scheduler: AsyncIOScheduler, history_work: asyncio.Task[None]) -> None:
        """Tell the watchdog that the loop turns, and look after the clock and the spool, once a minute or more often.

        APScheduler counts down with a clock that stands still in a suspend.
        """
        bring_back_at = time.monotonic() + _BRING_BACK_S
        pause_s = min(systemd.watchdog_interval_s() or _LONGEST_PAUSE_S, _LONGEST_PAUSE_S)
        while True:
            systemd.notify("WATCHDOG=1")
            mend(scheduler, self._clock())
            scheduler.wakeup()
            for job in self._nights.tables:
                self._nights.look(job)
            self._weekly.look()
            systemd.notify(f"STATUS={self._next_words(scheduler)}")
            if time.monotonic() > bring_back_at and self._manager.left_down():
                bring_back_at = time.monotonic() + _BRING_BACK_S
                self._start(self._bring_back(), "services")
            if history_work.done() and self._history.waiting():
                history_work = self._start(self._replay())
            await asyncio.sleep(pause_s)

    def _next_words(self, scheduler: AsyncIOScheduler) -> str:
        due = [job.next_run_time for job in scheduler.get_jobs() if job.next_run_time and job.id != _DRILL]
        due += self._nights.tried_again_at()
        if not due:
            return "no job has a time; backups are made by hand" if self._config.jobs else "no job is on"
        return f"the next backup is due {min(due).astimezone(self._config.zone):%Y-%m-%d %H:%M}"

    def _start(self, work: Coroutine[Any, Any, None], name: str = "the history") -> asyncio.Task[None]:
        task = asyncio.create_task(work, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A part of memu-backup broke: %s", error, exc_info=error)


class _Fallback:
    """The fallback channels, read anew each time: a file that cannot be read now is no reason not to make backups."""

    def __init__(self, config: Config) -> None:
        self._config = config

    async def send(self, notice: Notice) -> None:
        """See ``Channel``."""
        from memu_backup.alerts.apprise import AppriseChannel

        await AppriseChannel(await asyncio.to_thread(self._config.fallback_urls)).send(notice)


def _fallback(config: Config) -> Channel | None:
    return _Fallback(config) if config.alerts.fallback or config.alerts.fallback_file else None


def _signed_in(config: Config) -> Account | None:
    """As whom, where there is a room, too."""
    try:
        return Safe(config.state_dir).account() if config.backup_notification_room else None
    except ChatError as error:
        log.debug("%s", error)
        return None


def mend(scheduler: AsyncIOScheduler, moment: datetime) -> None:
    """Bring back due times that were set while the clock was far ahead; without this they would stay there.

    A clock that is put back by less than 12 h changes nothing, so that no backup is made twice in a night.
    """
    for job in scheduler.get_jobs():
        due = job.trigger.next_after(moment + schedule.SLACK)
        if due is not None and (job.next_run_time is None or job.next_run_time > due):
            job.modify(next_run_time=job.trigger.next_after(moment))


async def serve(config: Config) -> None:
    """Run the service with these settings until it is asked to stop.

    Raises LockHeld when another service with the same ``state_dir`` runs: both would make the same backups.
    """
    with alone(config.state_dir):
        async with history_of(config) as history:
            daemon = Daemon(config, history)
            async with AsyncExitStack() as held:
                try:
                    await held.enter_async_context(bell.answering(service_folder(config.state_dir), daemon.answers))
                except OSError as error:
                    log.warning("Commands cannot ask this service (%s).", error.strerror)
                await daemon.serve()
    for number in _STOP_SIGNALS:
        # Everything is in order: from here on, asking once more would only turn a good end into a bad one.
        asyncio.get_running_loop().remove_signal_handler(number)
        signal.signal(number, signal.SIG_IGN)


def service_folder(state_dir: Path) -> Path:
    """Where the service with these settings keeps its lock and its bell."""
    return state_dir / "service"


@contextmanager
def alone(state_dir: Path) -> Iterator[None]:
    """Raises LockHeld where a service of these settings runs."""
    folder = service_folder(state_dir)
    with ExitStack() as held:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(lock.held(folder, "the service for these settings", _RUNS_ALREADY))
        except (OSError, StoreError) as error:
            # Backups go somewhere else: they are made all the same.
            log.warning("%s cannot be used to keep the state of this service: %s", state_dir, error)
        yield

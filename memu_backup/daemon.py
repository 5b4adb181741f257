"""The service: a timetable for the nightly archive, and everything it does goes through the manager into history."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Coroutine
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from memu_backup import schedule, systemd
from memu_backup.clock import now
from memu_backup.config import Config
from memu_backup.errors import HistoryAway, MemuError
from memu_backup.history import History
from memu_backup.manager import SCHEDULER, Manager
from memu_backup.model import Status, Trigger

if TYPE_CHECKING:
    from apscheduler.schedulers.asyncio import AsyncIOScheduler

log = logging.getLogger(__name__)

_MISFIRE_GRACE_S = 12 * 3600
"""A backup that is due while the machine sleeps is made when it wakes, as long as it is still the same night's."""

_STOP_S = 8.0
"""For all that runs to end after SIGTERM; below the unit's TimeoutStopSec with room for the history to close."""


class Daemon:
    """Runs until SIGTERM or SIGINT. ``tasks`` is everything under way; it is cancelled and awaited at the end."""

    def __init__(self, config: Config, history: History) -> None:
        self._config = config
        self._history = history
        self._manager = Manager(config, history)
        self._tasks: set[asyncio.Task[None]] = set()
        self._asked_to_stop = asyncio.Event()

    async def serve(self) -> None:
        """Start, say so to systemd, work, and stop in order: no new work, what runs ends, history closes."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._asked_to_stop.set)
        scheduler = self._scheduler()
        scheduler.start()
        self._start(self._open_history())
        self._start(self._keep_alive(scheduler))
        systemd.notify("READY=1")
        log.info("memu-backup is ready; %s.", self._next_words(scheduler))
        await self._asked_to_stop.wait()

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
        for name in self._config.jobs:
            line = self._config.job(name).cron
            if line is not None:
                scheduler.add_job(
                    self._submit,
                    schedule.timetable(line, self._config.zone),
                    args=[name],
                    id=name,
                    coalesce=True,
                    max_instances=1,
                    misfire_grace_time=_MISFIRE_GRACE_S,
                )
        return scheduler

    def _submit(self, job: str) -> None:
        """The timetable only submits: what it runs itself, it would cancel when it is shut down."""
        self._start(self._back_up(job))

    async def _back_up(self, job: str) -> None:
        try:
            run = await self._manager.back_up(job, Trigger.SCHEDULE, SCHEDULER)
        except MemuError as error:
            log.error("Backup job %s could not begin: %s", job, error)
            return
        if run.status is Status.FAILED:
            log.error("Backup job %s failed: %s", job, run.error)

    async def _open_history(self) -> None:
        """Early and beside everything else: a Postgres that is away must not keep the nightly backup from its time."""
        try:
            log.info("The history is kept in %s.", await self._history.check())
            await self._history.replay()
        except HistoryAway as error:
            log.warning("%s", error)

    async def _keep_alive(self, scheduler: AsyncIOScheduler) -> None:
        """Tell the watchdog that the loop turns, and look at the clock once a minute.

        APScheduler counts down with a clock that stands still in a suspend, and a due time that it set while the wall
        clock was years ahead would stay there.
        """
        pause_s = min(systemd.watchdog_interval_s() or 60.0, 60.0)
        while True:
            systemd.notify("WATCHDOG=1")
            for job in scheduler.get_jobs():
                due = job.trigger.next_after(now())
                if due is not None and (job.next_run_time is None or job.next_run_time > due):
                    job.modify(next_run_time=due)
            scheduler.wakeup()
            systemd.notify(f"STATUS={self._next_words(scheduler)}")
            await asyncio.sleep(pause_s)

    def _next_words(self, scheduler: AsyncIOScheduler) -> str:
        due = [job.next_run_time for job in scheduler.get_jobs() if job.next_run_time]
        if not due:
            return "no job has a time; backups are made by hand"
        return f"the next backup is due {min(due).astimezone(self._config.zone):%Y-%m-%d %H:%M}"

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("A part of memu-backup broke: %s", error, exc_info=error)


async def serve(config: Config) -> None:
    """Run the service with these settings until it is asked to stop."""
    async with History(config.history_url(), config.state_dir, config.host) as history:
        with suppress(asyncio.CancelledError):
            await Daemon(config, history).serve()

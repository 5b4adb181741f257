"""Begins each night's backup: at its time, once for all nights that were missed, and again where it failed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from datetime import datetime
from typing import Any

from memu_backup import schedule
from memu_backup.audit import SCHEDULER
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.errors import MemuError
from memu_backup.manager import Manager
from memu_backup.model import Run, Status, Trigger
from memu_backup.schedule import Watch

log = logging.getLogger(__name__)

Start = Callable[[Coroutine[Any, Any, None], str], object]
"""Lets something run on its own, under a name."""


class Nights:
    """What is due, for every job that has a time; ``tables`` are these. ``_pausing`` holds, by job, failed runs that
    are to be tried again; ``_under_way`` names the jobs whose backup is being made for a night.
    """

    def __init__(self, config: Config, manager: Manager, start: Start, clock: Clock) -> None:
        self._config = config
        self._manager = manager
        self._start = start
        self._clock = clock
        zone, lines = config.zone, {name: config.job(name).cron for name in config.jobs}
        self.tables = {name: schedule.timetable(line, zone) for name, line in lines.items() if line}
        self._watches = {name: Watch(table, clock()) for name, table in self.tables.items()}
        self._pausing: dict[str, Run] = {}
        self._under_way: set[str] = set()
        self._rereading: asyncio.Task[None] | None = None

    def look(self, job: str) -> None:
        """Begin what is due; called as often as one likes. Only submits: what the scheduler runs, it would cancel."""
        now = self._clock()
        watch = self._watches[job]
        if watch.is_ahead(now):
            log.info("The clock was put back; what is due for job %s is looked up anew.", job)
            watch.last = now
            self._start(self._look_back(job), f"looking back at job {job}")
        elif due := watch.due(now):
            self._pausing.pop(job, None)  # a new night: the last one's is not tried any more
            late = now - due > schedule.ON_TIME
            self._submit(job, self._catch_up(job, due) if late else self._back_up(job, Trigger.SCHEDULE))
        elif (failed := self._pausing.get(job)) and failed.retry_at and schedule.is_over(failed.retry_at, now):
            del self._pausing[job]
            self._submit(job, self._try_again(job, failed))

    def _submit(self, job: str, work: Coroutine[Any, Any, None]) -> None:
        """Under way from here on: what is begun a moment later is this service's own thread, too. Re-reading gives way
        to it, and goes on once the last of them is done.
        """
        self._under_way.add(job)
        if self._rereading:
            self._rereading.cancel()

        async def through() -> None:
            try:
                await work
            finally:
                self._under_way.discard(job)
            if self._manager.rereading.on and not self._under_way:
                self._start(self._reread(), "re-reading what is stored")

        self._start(through(), f"backup job {job}")

    async def _reread(self) -> None:
        if self._under_way:  # begun since we were
            return
        self._rereading = asyncio.current_task()
        try:
            if read := await self._manager.rereading.read(SCHEDULER):
                log.info(
                    "%d pieces of what is stored were re-read.", len({(r.backup.path.parent, r.piece) for r in read})
                )
        except MemuError as error:
            log.warning("What is stored was not re-read: %s", error)
        finally:
            if self._rereading is asyncio.current_task():
                self._rereading = None

    async def look_back(self) -> None:
        """Once the history is open: take up the thread of an earlier service."""
        for job in self.tables:
            await self._look_back(job)

    def tried_again_at(self) -> list[datetime]:
        """When what failed is tried again, in UTC, in no order."""
        return [run.retry_at for run in self._pausing.values() if run.retry_at]

    async def _look_back(self, job: str) -> None:
        """Take up the thread of an earlier service, or of a clock that was right: what was tried last, and when?"""
        watch = self._watches[job]
        if job in self._under_way:
            return  # it is this service's own thread, and its end is taken up where it is made
        before = watch.last
        last = next(filter(_counts, await self._manager.standing.attempts(job)), None)
        if last and watch.last == before:  # else something was begun meanwhile
            watch.last = last.created_at
            self._pause(last)
            self.look(job)

    async def _catch_up(self, job: str, due: datetime) -> None:
        """One backup for all that were missed, unless somebody made one by hand since."""
        when = f"{due.astimezone(self._config.zone):%Y-%m-%d %H:%M}"
        attempts = await self._manager.standing.attempts(job)
        if any(run.created_at >= due and run.status is not Status.FAILED for run in attempts):
            log.info("The backup of job %s that was due %s was made by hand since.", job, when)
            return
        log.info("The backup of job %s that was due %s was missed; it is made now.", job, when)
        await self._back_up(job, Trigger.CATCH_UP)

    async def _try_again(self, job: str, failed: Run) -> None:
        """Another attempt for the same night, unless there was a run since."""
        attempts = await self._manager.standing.attempts(job)
        if all(run.created_at <= failed.created_at for run in attempts if _counts(run)):
            await self._back_up(job, failed.trigger, failed.attempt + 1)

    def _pause(self, run: Run) -> None:
        known = self._pausing.get(run.job)
        if run.status is Status.FAILED and run.retry_at and (known is None or known.run_id != run.run_id):
            self._pausing[run.job] = run
            at = run.retry_at.astimezone(self._config.zone)
            log.info("Backup job %s is tried again at %s.", run.job, f"{at:%H:%M}")

    async def _back_up(self, job: str, trigger: Trigger, attempt: int = 1) -> None:
        try:
            # It writes down and logs how it went.
            self._pause(await self._manager.back_up(job, trigger, SCHEDULER, attempt=attempt))
        except MemuError as error:
            log.error("Backup job %s could not begin: %s", job, error)


def _counts(run: Run) -> bool:
    """A backup by hand that failed leaves the night as it was: nobody has one, and the night may be still to come."""
    return run.status is not Status.FAILED or run.trigger is not Trigger.MANUAL

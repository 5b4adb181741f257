"""Begins the restore test: at its time, and once for all that were missed while the machine was off or asleep."""

from __future__ import annotations

import logging
from collections.abc import Callable
from datetime import datetime

from memu_backup import schedule
from memu_backup.anywhere import nobody_watches
from memu_backup.audit import SCHEDULER
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.errors import MemuError, StoreError
from memu_backup.manager import Manager
from memu_backup.model import Tried
from memu_backup.nights import Start
from memu_backup.schedule import Watch

log = logging.getLogger(__name__)


class Weekly:
    """``table`` is None where nothing is tried by itself. ``on_done`` is called after each backup that was tried."""

    def __init__(
        self, config: Config, manager: Manager, start: Start, on_done: Callable[[], None], clock: Clock
    ) -> None:
        self._config = config
        self._manager = manager
        self._start = start
        self._on_done = on_done
        self._clock = clock
        on = config.drill.enabled and any(job.enabled for job in config.jobs.values())
        self.table = schedule.timetable(config.drill.cron, config.zone) if on else None
        self._watch = Watch(self.table, clock()) if self.table else None
        self._under_way = False

    def look(self) -> None:
        """Begin what is due; called as often as one likes."""
        if self._watch is None or self._under_way:
            return
        now = self._clock()
        if self._watch.is_ahead(now):
            self._watch.last = now
        elif self._watch.due(now):
            self._under_way = True
            self._start(self._through(), "the restore test")

    async def look_back(self) -> None:
        """Once the history is open: take up the thread of an earlier service. Who never tried waits since the first
        backup, so that a machine which is off at that time of the week has its turn, too.
        """
        if self._watch is None or self._under_way:
            return
        drills, away = await self._manager.history.drills()
        tried = [d.created_at for d in drills if d.outcome is not Tried.INTERRUPTED]
        if away and not tried:
            return  # nobody knows when the last one was
        try:
            moments = [max(tried)] if tried else await self._backups()
        except StoreError as error:
            log.info("%s", error)
            return
        if moments:
            self._watch.last = min(self._watch.last, *moments)
            self.look()

    async def _backups(self) -> list[datetime]:
        listed = await self._manager.listing()
        made = [one.backup for one in listed if one.backup.manifest]
        return [b.created_at for b in made if b.manifest and b.manifest.host == self._config.host]

    async def _through(self) -> None:
        try:
            for job in (name for name, settings in self._config.jobs.items() if settings.enabled):
                try:
                    await self._try(job)
                except MemuError as error:
                    log.error("The restore test of job %s could not begin: %s", job, error)
        finally:
            self._under_way = False

    async def _try(self, job: str) -> None:
        for turn in await self._manager.drills.turns(job):
            await self._manager.drills.carry_out(turn, SCHEDULER, nobody_watches, patient=True)
            self._on_done()

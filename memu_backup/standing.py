"""Where the jobs of this machine stand: what is known of each, put together from rows, backups, drives and alarms."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace

from memu_backup import alarms, catalog, digest, report, schedule, status
from memu_backup.clean import Shelf
from memu_backup.clock import Clock
from memu_backup.config import Config, Job
from memu_backup.digest import Digest
from memu_backup.errors import StoreError
from memu_backup.history import History
from memu_backup.model import Drill, Problem, ReportKind, Run, StatusReport
from memu_backup.passports import Passports
from memu_backup.rereading import Rereading
from memu_backup.stores import Store
from memu_backup.visits import Visits

log = logging.getLogger(__name__)


class Standing:
    """``shelf_of`` gives what retention looks at of a job, ``stores`` every place, and ``left_down`` what a backup that
    is over had stopped and what may not run.
    """

    def __init__(
        self,
        config: Config,
        history: History,
        passports: Passports,
        visits: Visits,
        rereading: Rereading,
        shelf_of: Callable[[Job], Shelf],
        stores: Callable[[], list[Store]],
        left_down: Callable[[], list[str]],
        clock: Clock,
    ) -> None:
        self._config = config
        self._history = history
        self._passports = passports
        self._visits = visits
        self._rereading = rereading
        self._shelf = shelf_of
        self._stores = stores
        self._left_down = left_down
        self._clock = clock

    async def reports(self) -> dict[str, StatusReport]:
        """Where each job stands. Always answers, see ``report.of_job``. One that is switched off is no concern, unless
        all are.
        """
        on = [name for name, job in self._config.jobs.items() if job.enabled] or list(self._config.jobs)
        drills, _ = await self._history.drills()
        found = {name: await self._report(self._config.job(name), drills) for name in on}
        if self._left_down():
            found = {name: status.with_problem(report, Problem.SERVICES_DOWN) for name, report in found.items()}
        chat = alarms.read(alarms.file_in(self._config.state_dir)).alarms.get(alarms.CHAT)
        if chat and not chat.over and chat.told.due <= self._clock():
            problem = Problem.CHAT_ENDED if chat.cause == alarms.SIGNED_OUT else Problem.CHAT_BROKEN
            found = {name: status.with_problem(report, problem) for name, report in found.items()}
        drives, copying = tuple(d for d in self._passports.known.drives() if d.trusted_at), self._visits.copying()
        return {name: replace(report, drives=drives, copying=copying) for name, report in found.items()}

    async def reports_in_full(self) -> dict[str, StatusReport]:
        """The same, with how much of what is stored was re-read in time."""
        covered = await self._rereading.coverage()
        return {job: replace(report, coverage=covered) for job, report in (await self.reports()).items()}

    async def digest(self, kind: ReportKind) -> Digest:
        """A report on the jobs of this machine. Always answers, see ``digest``; without what lies on a disk that is
        away.
        """
        runs, away = await self._history.known_runs(host=self._config.host, quiet=True)
        try:
            stored = [there for _, there in await catalog.backups(self._stores())]
        except StoreError as error:
            log.info("%s", error)
            stored = []
        mine = [b for b in stored if b.manifest and b.manifest.host == self._config.host]
        known = status.with_unrecorded(runs, mine)
        return digest.digest(kind, await self.reports(), known, mine, self._clock(), history_away=away)

    async def waiting(self) -> dict[str, Run]:
        """By job, the suspicious backup of which nobody has said yet that it is as it should be."""
        return {job: report.in_doubt for job, report in (await self.reports()).items() if report.in_doubt}

    async def _report(self, job: Job, drills: Sequence[Drill]) -> StatusReport:
        wait = schedule.usual_wait(job.cron, self._config.zone, self._clock()) if job.cron else None
        copied = [d.last_copied_at for d in self._passports.known.drives() if d.last_copied_at]
        return await report.of_job(
            self._shelf(job),
            self._history,
            self._clock,
            interval=wait,
            usb_overdue_days=self._config.usb.overdue_days if job.to_drives else 0,
            usb_copied_at=max(copied, default=None),
            drills=[drill for drill in drills if drill.job == job.name] if self._config.drill.enabled else None,
        )

    async def elsewhere(self) -> dict[tuple[str, str], StatusReport]:
        """Where the jobs of the other machines stand that share this history, see ``report.elsewhere``."""
        return await report.elsewhere(self._history, self._config.host, self._clock)

    async def attempts(self, name: str) -> list[Run]:
        """The newest runs of a job, see ``report.attempts``."""
        return await report.attempts(self._shelf(self._config.job(name)), self._history, self._clock)

"""The one door to all work: command line, daemon and chat come here, so that each is queued and written down."""

from __future__ import annotations

import asyncio
import getpass
import logging
import os
import uuid
from collections.abc import Awaitable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memu_backup import backup, clean, lock, restore, schedule, status, verify, words
from memu_backup.clock import Clock, now
from memu_backup.config import Config, Job
from memu_backup.errors import HistoryAway, MemuError, StoreError, UnknownBackup
from memu_backup.history import History
from memu_backup.model import AuditEvent, Backup, Level, Progress, Run, StatusReport, Trigger
from memu_backup.retention import KeepLast
from memu_backup.stores import OnProgress, Store, Verdict
from memu_backup.stores import kinds as store_kinds
from memu_backup.stores.archive import ArchiveSettings, ArchiveStore
from memu_backup.work import Stop, in_thread


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants something, for the audit. ``origin`` is ``cli``, ``chat``, ``web`` or ``scheduler``."""

    actor: str
    origin: str


def at_the_terminal() -> Asker:
    return Asker(getpass.getuser(), "cli")


SCHEDULER = Asker("memu-backup", "scheduler")

log = logging.getLogger(__name__)


def _nobody_watches(_: Progress) -> None:
    return


async def restore_without_settings(
    planned: restore.Plan, asker: Asker, *, overwrite: bool, on_progress: OnProgress = _nobody_watches
) -> restore.Restored:
    """As ``Manager.restore``, where there is no history to write it down in."""
    del asker
    stop = Stop()
    work = partial(restore.carry_out, planned, overwrite=overwrite, on_progress=on_progress, stop=stop)
    return await in_thread(work, stop)


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check: what was looked at, whether it is as it should be, and a sentence."""

    what: str
    good: bool
    says: str


async def _found(what: str, looking: Awaitable[str]) -> list[Finding]:
    try:
        return [Finding(what, True, await looking)]
    except MemuError as error:
        return [Finding(what, False, str(error))]


def _check_place(directory: Path) -> str:
    """The folder, or the nearest one above it that is there, since the first backup makes it."""
    there = directory
    while not there.exists():
        there = there.parent
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"{there} cannot be written by this user, so no backup can be stored in {directory}.")
    free = os.statvfs(there)
    will = "" if there == directory else "will be made by the first backup; "
    return f"{will}{words.size(free.f_bavail * free.f_frsize)} are free"


class Manager:
    """Use one a process. Backups wait for each other here; across processes the directory's lock keeps them apart."""

    def __init__(self, config: Config, history: History, clock: Clock = now) -> None:
        self.config = config
        self.history = history
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()

    # --- backups -----------------------------------------------------------------------------------------------------

    async def back_up(self, job: str, trigger: Trigger, asker: Asker, on_progress: OnProgress = _nobody_watches) -> Run:
        """Run a job now and return its row. Raises UsageError for an unknown job and LockHeld; else see ``backup.run``.

        One that the timetable set off waits for the lock: a backup made by hand at 1:59 must not cost the night's.
        """
        settings = self.config.job(job)
        order = backup.Order(
            run_id=str(uuid.uuid4()),
            job=job,
            sources=tuple(self.config.source(name) for name in settings.sources),
            store=self.store(settings),
            keep=KeepLast(settings.keep_last),
            host=self.config.host,
            zone=self.config.zone,
            trigger=trigger,
            never=(self.config.state_dir,),
            patient=trigger is not Trigger.MANUAL,
        )
        async with self._one_at_a_time:
            run = await backup.run(order, self.history, on_progress, self._clock)
        await self._audit(asker, "backup", run.filename, run.status)
        return run

    async def clean(self, job: str, asker: Asker, *, dry_run: bool) -> tuple[clean.Decision, ...]:
        """What retention says of each backup of a job, done unless ``dry_run``. Raises LockHeld, StoreError."""
        settings = self.config.job(job)
        store = self.store(settings)
        keep = KeepLast(settings.keep_last)

        async def decide() -> tuple[clean.Decision, ...]:
            return await clean.plan(store, job, self.config.host, keep, self.history, self._clock())

        if dry_run or not store.directory.exists():
            return await decide()
        with lock.held(store.directory, f"clean job {job}"):
            decisions = await decide()
            for removed in await clean.apply(decisions, store, self.history, self._clock()):
                await self._audit(asker, "delete", removed.name, "done")
        return decisions

    # --- what there is -----------------------------------------------------------------------------------------------

    def store(self, job: Job) -> Store:
        settings = self.config.store_of(job)
        kind = next(k for k in store_kinds().values() if k.Settings is type(settings))
        assert settings.dir is not None
        return kind(settings.dir, settings)

    def stores(self) -> list[Store]:
        """Every place that a job uses, each once."""
        found = {(s.kind, s.directory): s for s in (self.store(self.config.job(name)) for name in self.config.jobs)}
        return list(found.values())

    def backups(self) -> list[tuple[Store, Backup]]:
        """Everything stored, newest first. Raises StoreError."""
        found = [(store, stored) for store in self.stores() for stored in store.backups()]
        return sorted(found, key=lambda both: both[1].created_at, reverse=True)

    def find(self, name: str) -> tuple[Store, Backup]:
        """A backup by its name, the beginning of it, or ``latest``: the newest that is complete.

        Raises UnknownBackup with what to do.
        """
        stored = self.backups()
        if not stored:
            places = ", ".join(str(s.directory) for s in self.stores())
            raise UnknownBackup(f"There is no backup in {places} yet. Make one with: memu-backup start")
        if name == "latest":
            return next((b for b in stored if b[1].manifest and not b[1].manifest.partial), stored[0])
        exact = [b for b in stored if b[1].name == name]
        close = exact or [b for b in stored if name and b[1].name.startswith(name)]
        if len(close) == 1:
            return close[0]
        problem = f"{len(close)} backups begin with {name}" if close else f"There is no backup {name}"
        raise UnknownBackup(f"{problem}. See what there is with: memu-backup list")

    async def reports(self) -> dict[str, StatusReport]:
        """Where each job stands. With the history away, told from what lies on disk and what waits in the spool."""
        try:
            runs, away = await self.history.runs(host=self.config.host), False
        except HistoryAway as error:
            log.warning("%s", error)
            runs, away = sorted(self.history.spooled(), key=lambda r: r.created_at, reverse=True), True
        found = {}
        for name in self.config.jobs:
            job = self.config.job(name)
            found[name] = status.assess(
                [r for r in runs if r.job == name],
                [b for b in self.store(job).backups() if b.manifest and b.manifest.job == name],
                self._clock(),
                interval=schedule.timetable(job.cron, self.config.zone).interval(self._clock()) if job.cron else None,
                usb_overdue_days=self.config.usb.overdue_days,
                history_away=away,
            )
        return found

    # --- is it good, and the way back --------------------------------------------------------------------------------

    def look(self, file: Path) -> tuple[Store, Backup]:
        """A backup that lies anywhere, such as on a drive. Raises UnknownBackup, NotAnArchive, DamagedArchive."""
        store = ArchiveStore(file.absolute().parent, ArchiveSettings(kind="archive"))
        return store, store.look(file.absolute())

    async def verify(
        self, store: Store, stored: Backup, level: Level, asker: Asker, on_progress: OnProgress = _nobody_watches
    ) -> Verdict:
        """Re-read a backup; the outcome goes into its row. Raises NotAnArchive."""
        verdict = await verify.verify(store, stored, level, self.history, on_progress, self._clock)
        await self._audit(asker, f"verify {level}", stored.name, "good" if verdict.good else "damaged")
        return verdict

    async def restore(
        self, planned: restore.Plan, asker: Asker, *, overwrite: bool, on_progress: OnProgress = _nobody_watches
    ) -> restore.Restored:
        """Carry out a plan of ``restore.plan``. Raises RestoreError, ArchiveError."""
        subject, outcome = f"{planned.archive.name} to {planned.target}", "failed"
        try:
            done = await restore_without_settings(planned, asker, overwrite=overwrite, on_progress=on_progress)
            outcome = "done"
            return done
        finally:
            await self._audit(asker, "restore", subject, outcome)

    # --- is everything there -----------------------------------------------------------------------------------------

    async def check(self) -> list[Finding]:
        """Look at everything that the settings name, without changing it: sources, places for backups, history."""
        found = [Finding("settings", True, f"{self.config.path} has no mistakes")]
        for name in self.config.sources:
            found += await _found(f"source {name}", self._check_source(name))
        for store in self.stores():
            found += await _found(f"backups in {store.directory}", asyncio.to_thread(_check_place, store.directory))
        found += await _found("history", self.history.check())
        return found

    async def _check_source(self, name: str) -> str:
        warnings = await self.config.source(name).check()
        return " ".join(warnings) or "can be backed up"

    async def _audit(self, asker: Asker, action: str, subject: str, outcome: str) -> None:
        await self.history.audit(
            AuditEvent(
                event_id=str(uuid.uuid4()),
                created_at=self._clock(),
                host=self.config.host,
                actor=asker.actor,
                origin=asker.origin,
                action=action,
                subject=subject,
                outcome=outcome,
            )
        )

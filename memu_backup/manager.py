"""The one door to all work: command line, daemon and chat come here, so that each is queued and written down."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Callable, Collection
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup import (
    anywhere,
    catalog,
    clean,
    guard,
    lock,
    logs,
    place,
    rebuild,
    recover,
    restores,
    schedule,
    standstill,
    verify,
    whole,
)
from memu_backup.access import Access
from memu_backup.anywhere import nobody_watches
from memu_backup.audit import SCHEDULER, Asker, Audit
from memu_backup.catalog import Listed
from memu_backup.checks import Finding
from memu_backup.clean import Decision, Shelf
from memu_backup.clock import Clock, now
from memu_backup.config import Config, Job
from memu_backup.drills import Drills
from memu_backup.errors import LockHeld, RestoreError, StoreError, UnknownBackup, UsageError
from memu_backup.history import History
from memu_backup.model import Backup, Level, Run, Trigger
from memu_backup.passports import Passports
from memu_backup.rereading import Rereading
from memu_backup.returns import Returns
from memu_backup.standing import Standing
from memu_backup.stores import OnProgress, Store, Verdict
from memu_backup.stores import kinds as store_kinds
from memu_backup.under_way import Note, UnderWay
from memu_backup.visits import Visits

if TYPE_CHECKING:  # what does the long work is imported when it is asked for: status is to answer at once
    from memu_backup import restore
    from memu_backup.find import Found

log = logging.getLogger(__name__)


def places(config: Config) -> list[Store]:
    """Every place that a job uses, each once."""
    found = {(s.kind, s.directory): s for s in (_store(config, config.job(name)) for name in config.jobs)}
    return list(found.values())


def history_of(config: Config) -> History:
    """The history that these settings name. Raises SettingsError.

    One of our own, whose data was lost, comes back from what lies in the places of these settings.
    """
    stores = places(config)
    return History(
        config.history_url(),
        config.state_dir,
        config.host,
        places=[store.directory for store in stores],
        lying=lambda place: rebuild.told([store for store in stores if store.directory == place]),
    )


class Manager:
    """Use one a process. Backups wait for each other here; across processes the directory's lock keeps them apart."""

    def __init__(self, config: Config, history: History, clock: Clock = now) -> None:
        self.config = config
        self.history = history
        self._audit = Audit(history, config.host, clock)
        self._clock = clock
        self._one_at_a_time = asyncio.Lock()
        self.under_way = UnderWay(clock)
        self.access = Access(config.state_dir / "web", clock)
        self.passports = Passports(config.state_dir / "drives", config.host, self._ours, history, self._audit, clock)
        self.returns = Returns(config, history, self._audit, clock)
        self.visits = Visits(
            config,
            history,
            self._audit,
            self.passports,
            lambda job: self.store(config.job(job)),
            self._read_back,
            clock,
        )
        self.rereading = Rereading(config, history, self._audit, self.stores(), clock)
        self.standing = Standing(
            config,
            history,
            self.passports,
            self.visits,
            self.rereading,
            self._shelf,
            self.stores,
            self.left_down,
            clock,
        )
        self.drills = Drills(
            config,
            history,
            self._audit,
            self.passports,
            self.visits,
            lambda job: self.store(config.job(job)),
            self._read_back,
            self._one_at_a_time,
            clock,
        )

    def _ours(self) -> list[Path]:
        return [self.config.path, self.config.state_dir, *(store.directory for store in self.stores())]

    # --- backups -----------------------------------------------------------------------------------------------------

    async def back_up(
        self,
        job: str,
        trigger: Trigger,
        asker: Asker,
        on_progress: OnProgress = nobody_watches,
        on_removed: Callable[[Backup], None] | None = None,
        *,
        attempt: int = 1,
        new_place: bool = False,
        called: str = "",
        run_id: str = "",
    ) -> Run:
        """Run a job now and return its row. Raises UsageError for an unknown job, Interrupted where somebody cancels
        it; else see ``backup.run``.

        ``called`` is the name that somebody gave to it, ``run_id`` what it is known by meanwhile. ``on_removed`` is
        told of each older backup that retention lets go. One that the timetable set off waits for the lock: what was
        made by hand at 1:59 must not cost the night's. Its row says when it is to be tried again, which is left to the
        caller.
        """
        from memu_backup import backup

        settings = self.config.job(job)

        async def removed(gone: clean.Decision) -> None:
            if on_removed:
                on_removed(gone.backup)
            await self._removed(asker, gone)

        order = backup.Order(
            run_id=run_id or str(uuid.uuid4()),
            job=job,
            called=called,
            sources=tuple(self.config.source(name, self.history) for name in settings.sources),
            store=self.store(settings),
            keep=settings.retention,
            host=self.config.host,
            zone=self.config.zone,
            trigger=trigger,
            on_removed=removed,
            never=(self.config.state_dir,),
            patient=trigger is not Trigger.MANUAL,
            attempt=attempt,
            again_after=None if trigger is Trigger.MANUAL else schedule.pause_after(attempt),
            new_place=new_place,
            services=tuple(self.config.service(name) for name in settings.services),
            needs_stop=settings.needs_stop,
            journals=self._journals,
            restores=self.returns.folder,
            full=settings.full,
            guards=settings.guards,
        )

        async def work(note: Note) -> Run:
            async with self._audit.act(asker, "backup", job) as deed:
                async with self._one_at_a_time:
                    run = await backup.run(order, self.history, note.and_to(on_progress), self._clock)
                deed.subject, deed.outcome = run.filename, run.status.value
            note.step(run.error or "")
            return run

        logs.run_id.set(order.run_id)  # what our caller says of it, too: the work itself is a task of its own
        run = await self.under_way.carry_out("backup", job, asker, work, activity_id=order.run_id)
        await self._save_history(order.store)  # now that the audit knows how it ended
        return run

    async def _save_history(self, store: Store) -> None:
        """Only where backups lie: what failed for want of its disk must not write below where that is mounted."""
        try:
            beside = await place.asked(store, lambda: store.marked() and store.backups())
        except StoreError as error:
            log.warning("%s", error)
            return
        if beside:
            await self.history.save(store.directory, self._clock)

    async def clean(
        self, job: str, asker: Asker, *, dry_run: bool, agreed: Collection[str] | None = None
    ) -> tuple[Decision, ...]:
        """What retention says of each backup of a job, done unless ``dry_run``. Raises LockHeld, StoreError.

        ``agreed`` are the names that may go, where somebody was asked: a run may have ended meanwhile, and what is let
        go for it is neither removed nor in the answer.

        Room for the next backup is made as that backup would do it. Where the disk is not in its place nothing is
        removed: raises NotMounted.
        """
        shelf = self._shelf(self.config.job(job))
        store = shelf.store

        async def decide() -> tuple[Decision, ...]:
            return await clean.plan(shelf, self.history, self._clock(), for_next=True)

        await place.found(store, self.config.host, self.history)
        if dry_run:
            return await decide()
        async with self._audit.act(asker, "clean", job):
            with lock.held(store.directory, f"clean job {job}"):
                decisions = tuple(
                    d for d in await decide() if d.verdict.keep or agreed is None or d.backup.name in agreed
                )
                await clean.apply(decisions, store, self.history, self._clock(), partial(self._removed, asker))
            return decisions

    async def keep(self, store: Store, stored: Backup, asker: Asker, *, release: bool = False) -> None:
        """Pin a backup, so that retention never removes it, or ``release`` it. Again is no error.

        Takes no lock, since a run may hold it for hours. Raises UsageError for one that lies in none of our places,
        UnknownBackup for one that went meanwhile, StoreError.
        """
        self._must_be_ours(store, stored, "nothing there is ever removed, so there is nothing to pin")
        change = store.release if release else store.pin
        async with self._audit.act(asker, "release" if release else "keep", stored.name):
            await asyncio.to_thread(change, stored.path)

    async def accept(self, store: Store, stored: Backup, asker: Asker) -> list[Backup]:
        """Somebody says that a suspicious backup is as it should be; which count as good now, see ``guard.accept``.

        Takes no lock, as ``keep``. Raises UsageError for one that lies in none of our places, UnknownBackup for one
        that went meanwhile, StoreError.
        """
        self._must_be_ours(store, stored, "nobody waits for an answer about it")
        job = stored.manifest.job if stored.manifest else ""
        limits = self.config.job(job).guards if job in self.config.jobs else {}
        async with self._audit.act(asker, "accept", stored.name) as deed:
            accepted = await guard.accept(store, stored, self.history, limits)
            deed.outcome = ", ".join(backup.name for backup in accepted) or "was not suspicious"
        return accepted

    async def recover(self, jobs: Collection[str] | None = None) -> None:
        """Remove what killed runs of these ``jobs`` (all) left behind and bring rows in line with the files, wherever
        nobody is at work.
        """
        for name in self.config.jobs if jobs is None else jobs:
            store = self.store(self.config.job(name))
            try:
                await place.found(store, self.config.host, self.history)
                with lock.held(store.directory, "tidying up"):
                    await recover.recover(store, self.config.host, name, self.history, self._clock)
            except LockHeld:
                continue  # whoever holds it does the same
            except StoreError as error:
                log.warning("%s", error)

    @property
    def _journals(self) -> Path:
        return self.config.state_dir / "stopped"

    async def bring_back(self, asker: Asker) -> tuple[list[str], list[str]]:
        """Start what killed backups had stopped, see ``standstill.recover``; nothing of it onto what a restore has left
        half-way.
        """
        if not standstill.left_down(self._journals):
            return [], []
        if half := await asyncio.to_thread(self.returns.half_way):
            why = f"Nothing is started, as the restore of {half.backup} was interrupted half-way."
            return [], [f"{why} {restores.HOW_TO_SETTLE}"]
        services = {name: self.config.service(name) for name in self.config.services}
        async with self._audit.act(asker, "services recover", "") as deed:
            back, problems = await standstill.recover(services, self._journals)
            deed.subject, deed.outcome = ", ".join(back), "not all" if problems else "done"
        return back, problems

    def left_down(self) -> list[str]:
        """What was stopped for a backup that is over, and may not run; by name."""
        return standstill.left_down(self._journals)

    async def rebuild(self, asker: Asker, *, dry_run: bool) -> rebuild.Rebuilt:
        """Bring the history in line with the backups in all places, see ``rebuild``; with ``dry_run`` only say how.

        Raises HistoryAway, StoreError.
        """
        jobs = {name: self.store(self.config.job(name)) for name in self.config.jobs}
        work = partial(rebuild.rebuild, self.stores(), jobs, self.config.host, self.history, self._clock)
        # Looked at first: a history that is not there yet is filled by whoever writes first, which is the audit.
        found = await work(dry_run=True)
        if not dry_run:
            async with self._audit.act(asker, "history rebuild", "") as deed:
                found = found.followed_by(await work(dry_run=False))
                deed.outcome = f"{len(found.changes)} changed" if found.changes else "nothing was missing"
        return found

    async def note(self, asker: Asker, action: str, subject: str, outcome: str) -> None:
        """A line in the audit for what was done, or refused, elsewhere."""
        await self._audit.note(asker, action, subject, outcome)

    async def _removed(self, asker: Asker, gone: Decision) -> None:
        """With the reason for an outcome: what is gone can no longer be asked why."""
        await self._audit.note(asker, "delete", gone.backup.name, gone.verdict.reason)

    # --- what there is -----------------------------------------------------------------------------------------------

    def store(self, job: Job) -> Store:
        return _store(self.config, job)

    def stores(self) -> list[Store]:
        """Every place that a job uses, each once."""
        return places(self.config)

    def _is_ours(self, store: Store) -> bool:
        return any(_same_folder(store.directory, ours.directory) for ours in self.stores())

    def _must_be_ours(self, store: Store, stored: Backup, so: str) -> None:
        if not self._is_ours(store):
            where = "lies in none of the places that hold the backups of these settings"
            raise UsageError(f"{stored.path} {where}; {so}.")

    async def listing(self) -> list[Listed]:
        """Everything stored and what is known of it, newest first. Raises StoreError."""
        return await catalog.listing(self.stores(), self.history, self.config.host)

    async def find(self, name: str) -> tuple[Store, Backup]:
        """A backup by name, see ``catalog.named``. Raises UnknownBackup, StoreError."""
        return await catalog.named(name, self.stores(), self.history, self.config.host, self._clock())

    async def of_run(self, run_id: str) -> tuple[Store, Backup]:
        """The backup that a run made. Raises UnknownBackup, StoreError."""
        for store, stored in await catalog.backups(self.stores()):
            if stored.manifest and stored.manifest.run_id == run_id:
                return store, stored
        raise UnknownBackup("That backup is not there any more. See what there is with: memu-backup list")

    async def search(self, pattern: str, on_progress: OnProgress = nobody_watches) -> tuple[list[Backup], Found]:
        """Look for a file in all backups, of every job, machine and place; these backups, and what was found.

        Raises UnknownBackup where there is none yet, UsageError, StoreError.
        """
        stored = await catalog.backups(self.stores())
        if not stored:
            raise await self.none_yet()
        return [there for _, there in stored], await anywhere.search(stored, pattern, on_progress)

    async def none_yet(self) -> UnknownBackup:
        """What to say where there is no backup at all, see ``catalog.none_yet``. Raises StoreError."""
        return await catalog.none_yet(self.stores(), self.history, self.config.host)

    async def check(self) -> AsyncIterator[Finding]:
        """Look at everything that a backup will need, without changing it; each thing as soon as it was looked at."""
        from memu_backup import check

        jobs = {name: self.store(self.config.job(name)) for name in self.config.jobs}
        stores = {store: [n for n, s in jobs.items() if s.directory == store.directory] for store in self.stores()}
        left = self.left_down()
        async for finding in check.check(self.config, stores, self.history, self.standing.reports, left, self._clock):
            yield finding

    async def at_work(self, job: str) -> bool:
        """Whether somebody works in the place of a job, in this process or another; True where that cannot be seen."""
        store = self.store(self.config.job(job))
        try:
            return await place.seen(store, partial(lock.taken, store.directory))
        except StoreError:
            return True

    def _shelf(self, job: Job) -> Shelf:
        return Shelf(self.store(job), job.name, self.config.host, job.retention, self.config.zone)

    def is_ours(self, archive: Path) -> bool:
        """Whether it lies in a folder that backups are written to; a link there leads anywhere."""
        return not archive.is_symlink() and any(_same_folder(archive.parent, s.directory) for s in self.stores())

    # --- is it good, and the way back --------------------------------------------------------------------------------

    async def verify(
        self,
        store: Store,
        stored: Backup,
        level: Level,
        asker: Asker,
        on_progress: OnProgress = nobody_watches,
        *,
        activity_id: str = "",
    ) -> Verdict:
        """Re-read a backup. The outcome goes into its row, unless it is a copy that lies elsewhere.

        Raises NotAnArchive, and Interrupted where somebody cancels it.
        """

        async def work(note: Note) -> Verdict:
            verdict = await self._verified(store, stored, level, asker, note.and_to(on_progress))
            note.step(" ".join(verdict.problems[:1]))
            return verdict

        return await self.under_way.carry_out("verify", stored.name, asker, work, activity_id=activity_id)

    async def _verified(
        self, store: Store, stored: Backup, level: Level, asker: Asker, on_progress: OnProgress
    ) -> Verdict:
        async with self._audit.act(asker, f"verify {level}", stored.name) as deed:
            if self._is_ours(store) and stored.path.name == stored.name:  # in parts it is a copy, wherever it lies
                host = self.config.host
                copies = whole.Copies(await catalog.backups(self.stores()))
                verdict = await verify.verify(
                    store, stored, level, host, self.history, on_progress, self._clock, copies=copies
                )
            else:
                verdict = await anywhere.prove(store, stored, level, on_progress)
            deed.outcome = "good" if verdict.good else "damaged" if verdict.problems else "not checked"
            return verdict

    async def _read_back(self, store: Store, stored: Backup) -> Verdict:
        return await self.verify(store, stored, Level.FULL, SCHEDULER)

    async def refuse(self, planned: restore.Plan, asker: Asker, *, overwrite: bool) -> None:
        """Raises RestoreError, and writes it down, where a plan cannot be carried out; nothing begins."""
        from memu_backup import restore

        try:
            await asyncio.to_thread(restore.refuse, planned, overwrite=overwrite)
        except RestoreError:
            await self._audit.note(asker, "restore", _subject(planned), "refused")
            raise

    async def restore(
        self, planned: restore.Plan, asker: Asker, *, overwrite: bool, on_progress: OnProgress = nobody_watches
    ) -> restore.Restored:
        """Carry out a plan of ``restore.plan``. Raises as ``restore.carry_out``."""
        async with self._audit.act(asker, "restore", _subject(planned)):
            return await anywhere.give_back(planned, overwrite=overwrite, on_progress=on_progress)


def _store(config: Config, job: Job) -> Store:
    settings = config.store_of(job)
    kind = next(k for k in store_kinds().values() if k.Settings is type(settings))
    assert settings.dir is not None
    return kind(settings.dir, settings)


def _subject(planned: restore.Plan) -> str:
    return f"{planned.name} to {planned.target}"


def _same_folder(one: Path, other: Path) -> bool:
    try:
        return one.samefile(other)
    except OSError:
        return False

"""Which backups are tried, one after the other and beside no other work; and what came of each, written down."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path

from memu_backup import catalog, drill, lock, place, rotation, verify
from memu_backup.audit import Asker, Audit
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.drill import Came, Means
from memu_backup.drives.udev import Plug
from memu_backup.errors import CannotCheck, HistoryAway, LockHeld, MemuError
from memu_backup.history import History
from memu_backup.model import Backup, Drill, Tried
from memu_backup.passports import Passports
from memu_backup.rotation import Candidate
from memu_backup.stores import OnProgress, Store
from memu_backup.visits import Visits

log = logging.getLogger(__name__)

_POLL_S = 10.0
_LAST_WORDS_S = 3.0


@dataclass(frozen=True, slots=True)
class Turn:
    """A backup whose turn it is; on the drive ``plug``, where one is given."""

    job: str
    candidate: Candidate
    backup: Backup | None = None
    plug: Plug | None = None


class Drills:
    """``one_at_a_time`` is held while a backup is made in this process; other processes are kept away by locks."""

    def __init__(
        self,
        config: Config,
        history: History,
        audit: Audit,
        passports: Passports,
        visits: Visits,
        store_of: Callable[[str], Store],
        read_back: Callable[[Store, Backup], Awaitable[object]],
        one_at_a_time: asyncio.Lock,
        clock: Clock,
    ) -> None:
        self._config = config
        self._history = history
        self._audit = audit
        self._passports = passports
        self._visits = visits
        self._store_of = store_of
        self._read_back = read_back
        self._one_at_a_time = one_at_a_time
        self._clock = clock

    # --- whose turn it is --------------------------------------------------------------------------------------------

    async def turns(self, job: str) -> list[Turn]:
        """The backups of a job whose turn it is, see ``rotation.turn``. Raises StoreError."""
        store = self._store_of(job)
        stored = await catalog.of_job(store, self._config.host, job, self._history)
        whole = [b for b in stored if not b.damaged]  # of the others that is known
        found = {Candidate(b.name, b.created_at): Turn(job, Candidate(b.name, b.created_at), b) for b in whole}
        for called, plug in self._plugged():
            try:
                async with self._visits.newest_copy(plug, job) as copy:
                    if copy:
                        there = Candidate(copy[1].name, copy[1].created_at, called)
                        found[there] = Turn(job, there, plug=plug)
            except MemuError as error:  # it is asked another time
                log.info("The copies on %s could not be looked at: %s", called, error)
        drills, _ = await self._history.drills()
        mine = [d for d in drills if d.job == job]
        return [found[candidate] for candidate in rotation.turn(list(found), mine, self._clock())]

    def _plugged(self) -> list[tuple[str, Plug]]:
        known = [(self._passports.known.of(plug), plug) for plug in self._passports.look_around()]
        return [(d.called, plug) for d, plug in known if d and d.trusted_at and d.last_copied_at]

    # --- trying it ---------------------------------------------------------------------------------------------------

    async def carry_out(
        self, turn: Turn, asker: Asker, on_progress: OnProgress, *, folder: Path | None = None, patient: bool = False
    ) -> Drill:
        """Try one, in ``folder`` if that is given, and write down what came of it. A ``patient`` one waits for others.

        Raises LockHeld, StoreError where nobody can look at the backups; when cancelled, all is gone that it made.
        """
        store = self._store_of(turn.job)
        await place.found(store, self._config.host, self._history)
        async with self._alone(store, turn.candidate.name, patient=patient):
            if turn.plug is None:
                assert turn.backup
                return await self._written_down(turn, asker, store, turn.backup, on_progress, folder)
            async with self._visits.newest_copy(turn.plug, turn.job) as copy:
                if copy is None:
                    raise CannotCheck(f"The copy on {turn.candidate.lay_at} is not there any more.")
                return await self._written_down(turn, asker, *copy, on_progress, folder)

    async def of(
        self, store: Store, backup: Backup, asker: Asker, on_progress: OnProgress, *, ours: bool, folder: Path | None
    ) -> Drill:
        """Try one that somebody names. One that is not ``ours`` is no test of the household: nothing is written
        down of it, and where nobody vouches for it, it is only compared.
        """
        made = backup.manifest
        mine = ours and made is not None and made.job in self._config.jobs and made.host == self._config.host
        at = "" if ours else str(backup.path.parent)
        turn = Turn(made.job if made else "", Candidate(backup.name, backup.created_at, at), backup)
        async with self._alone(store if ours else None, backup.name, patient=False):
            return await self._written_down(turn, asker, store, backup, on_progress, folder, noted=mine)

    async def _written_down(
        self,
        turn: Turn,
        asker: Asker,
        store: Store,
        backup: Backup,
        on_progress: OnProgress,
        folder: Path | None,
        *,
        noted: bool = True,
    ) -> Drill:
        row = Drill(
            drill_id=str(uuid.uuid4()),
            host=self._config.host,
            job=turn.job,
            filename=backup.name,
            made_at=backup.created_at,
            created_at=self._clock(),
            outcome=Tried.BEGUN,
            lay_at=turn.candidate.lay_at,
        )
        means = self.means(store if not turn.candidate.lay_at else None, folder)
        note = self._note if noted else _not_noted
        async with self._audit.act(asker, "drill", backup.name) as deed:
            await note(row)
            try:
                came = await self._tried(turn, store, backup, means, on_progress)
                row = _as_it_came(row, came)
                if came.problems and not row.lay_at:
                    row = replace(row, whole_in=await self._whole_in(turn, store, backup, came, means, on_progress))
            except CannotCheck as error:
                row = replace(row, outcome=Tried.UNTRIED, problems=(str(error),))
            except BaseException:
                row = replace(row, outcome=Tried.INTERRUPTED)
                raise
            finally:
                row = replace(row, finished_at=self._clock())
                await note(row)
            deed.outcome = row.outcome.value
        told = " ".join(row.problems)
        log.log(
            logging.ERROR if row.outcome is Tried.FAILED else logging.INFO,
            "Restore test of %s: %s.%s", row.filename, row.outcome, f" {told}" if told else "",
        )  # fmt: skip
        return row

    async def _tried(self, turn: Turn, store: Store, backup: Backup, means: Means, on_progress: OnProgress) -> Came:
        if turn.backup and not turn.candidate.lay_at:
            return await drill.drill(store, backup, means, on_progress, trusted=True)
        verdict = await verify.prove(store, backup.path, backup.manifest, on_progress)
        if verdict.problems:
            return Came(problems=[("", problem) for problem in verdict.problems])
        trusted = verdict.sha256 is not None and verdict.sha256 == await self._sha256_here(backup)
        return await drill.drill(store, backup, means, on_progress, trusted=trusted)

    async def _sha256_here(self, backup: Backup) -> str | None:
        """That of the archive as this machine has made it, as far as it is known."""
        if backup.manifest is None:
            return None
        rows, _ = await self._history.known_runs(called=[backup.manifest.run_id], quiet=True)
        return next((r.sha256 for r in rows if r.run_id == backup.manifest.run_id), None)

    async def _whole_in(
        self, turn: Turn, store: Store, backup: Backup, came: Came, means: Means, on_progress: OnProgress
    ) -> str:
        """And what is damaged is noted as such by who reads it back: it is not the last good one any more."""
        await self._read_back(store, backup)
        host = backup.manifest.host if backup.manifest else self._config.host
        others = await catalog.of_job(store, host, turn.job, self._history)
        others = [b for b in others if b.name != backup.name and not b.damaged]
        try:
            return await drill.whole_in(came.lost, others, store, means, on_progress)
        except MemuError as error:
            log.info("In which other backup it is whole could not be found out: %s", error)
            return ""

    def means(self, store: Store | None, folder: Path | None = None) -> Means:
        """What is tried with: in ``folder``, else in the settings' own, else in that of the backups; never on the drive
        that a copy lies on.
        """
        s = self._config.drill
        url = s.postgres_url.get_secret_value() if s.postgres_url else None
        beside = store or self._store_of(next(iter(self._config.jobs)))
        return Means(folder or s.scratch or beside.directory, s.postgres_image, url)

    async def _note(self, row: Drill) -> None:
        """Who is cancelled still writes a moment; what cannot be written down has been tried all the same."""
        try:
            async with asyncio.timeout(_LAST_WORDS_S if row.outcome is Tried.INTERRUPTED else None):
                await self._history.tried(row)
        except (HistoryAway, TimeoutError) as error:
            log.warning("What became of the restore test of %s could not be written down: %s", row.filename, error)

    @asynccontextmanager
    async def _alone(self, store: Store | None, name: str, *, patient: bool) -> AsyncIterator[None]:
        """Beside no backup, and none beside it. Raises LockHeld unless ``patient``."""
        async with self._one_at_a_time:
            with ExitStack() as held:
                while store:
                    try:
                        held.enter_context(lock.held(store.directory, f"restore test of {name}"))
                        break
                    except LockHeld:
                        if not patient:
                            raise
                    await asyncio.sleep(_POLL_S)
                yield

    async def sweep(self) -> None:
        """Remove what drills left behind that were killed."""
        for folder in {self.means(self._store_of(job)).folder for job in self._config.jobs}:
            with suppress(OSError):
                if await drill.sweep(folder):
                    log.info("What a restore test had left in %s was removed.", folder)


async def _not_noted(_: Drill) -> None:
    return


def _as_it_came(row: Drill, came: Came) -> Drill:
    return replace(
        row,
        outcome=Tried.FAILED if came.problems else Tried.WHOLE,
        files=came.files,
        size_bytes=came.size_bytes,
        seconds=came.seconds,
        problems=tuple(sentence for _, sentence in came.problems),
        unchecked=tuple(came.unchecked),
    )

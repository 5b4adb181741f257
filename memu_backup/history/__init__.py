"""What was done and when, in Postgres; and beside it in a spool, because a run never fails for want of its history."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import datetime
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Self

from memu_backup.clock import Clock, now
from memu_backup.errors import HistoryAway
from memu_backup.history import dump, rows
from memu_backup.history.database import Database
from memu_backup.history.news import News
from memu_backup.history.remains import Remains
from memu_backup.history.rows import Note
from memu_backup.history.schema import Connection, alone
from memu_backup.history.spool import Spool
from memu_backup.model import AuditEvent, Drill, Drive, Run
from memu_backup.work import look

log = logging.getLogger(__name__)

_SAVE_S = 120.0
_DRILLS = 500
"""So many tell of each backup that still lies there."""

_LAST_WORDS_S = 3.0
"""How long who is cancelled still writes; the spool needs a moment, Postgres may not answer."""


class History:
    """``backup_history`` and ``backup_audit``, in the Postgres at ``url`` or in our own under ``state_dir/postgres``.

    Whatever is written goes to ``state_dir/spool`` first and from there to Postgres, in the order in which it was
    first written: neither a crash nor a Postgres that is away loses a row. Several processes may share a state_dir.
    ``host`` names this machine to the database; ``news`` are its rows that people are to be told of. Making one costs
    nothing; use it as ``async with``.

    Our own Postgres comes back when its data was lost: from the dumps that lie in ``places`` (see ``dump``), and from
    ``lying``, which tells the runs whose backups are in a place. It blocks, and may raise StoreError.
    """

    def __init__(
        self,
        url: str | None,
        state_dir: Path,
        host: str,
        *,
        places: Sequence[Path] = (),
        lying: Callable[[Path], Sequence[Run]] = lambda _: (),
        connect_timeout_s: float = 5.0,
        command_timeout_s: float = 10.0,
    ) -> None:
        self._remains = Remains(host, tuple(places), lying)
        self._database = Database(
            url,
            state_dir / "postgres",
            host,
            fill=self._remains.fill,
            connect_timeout_s=connect_timeout_s,
            command_timeout_s=command_timeout_s,
        )
        self._spool = Spool(state_dir / "spool")
        self._host = host
        self.news = News(self._database, self._spool, host, self._waiting)
        self._patience_s = connect_timeout_s + command_timeout_s

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Stop the embedded server if it was started by us, within a few seconds. Never raises."""
        await self._database.close()

    async def record(self, run: Run) -> bool:
        """Write ``run``, in place of an older state of it. True when Postgres has it, False when only the spool has.

        A Postgres that does not answer, or is busy with a ``replay``, costs one wait of at most 15 s, and then none for
        up to a minute; the start of the embedded server, where it is off, comes on top (half a second, at most 70 s).
        Raises HistoryAway only when neither Postgres nor the spool takes it. Cancelling never loses a run that is
        spooled.
        """
        return await self._keep(run)

    async def note(self, run: Run, patience_s: float | None = None) -> None:
        """As ``record``, for a run that counts whether or not it can be written down: what goes wrong is logged.

        Takes ``patience_s`` at most. When cancelled, gives the writing a last moment before CancelledError goes on.
        """
        writing = asyncio.ensure_future(self.record(run))
        writing.add_done_callback(partial(_if_not_written, run.filename))
        try:
            await asyncio.wait({writing}, timeout=patience_s)
        except asyncio.CancelledError:
            await asyncio.wait({writing}, timeout=_LAST_WORDS_S)
            raise
        finally:
            writing.cancel()  # does nothing to one that is done

    async def audit(self, event: AuditEvent) -> bool:
        """Write ``event``; otherwise like ``record``."""
        return await self._keep(event)

    async def know(self, drive: Drive) -> bool:
        """Write down what is known of a ``drive``; otherwise like ``record``."""
        return await self._keep(drive)

    async def tried(self, drill: Drill) -> bool:
        """Write down what became of a restore test; otherwise like ``record``."""
        return await self._keep(drill)

    async def announce(self, event: AuditEvent) -> None:
        """Keep ``event`` here, for whoever asks Postgres next; asks no server. Its end is to be written with ``audit``.

        Raises OSError.
        """
        await asyncio.to_thread(self._spool.put, event)

    async def replay(self) -> int:
        """Move what is spooled into Postgres and return how many notes that were. Always tries; raises HistoryAway.

        Idempotent: a note that Postgres had already is written over with itself.
        """
        return await self._database.ask(self._empty_spool, insist=True)

    async def adopt(self, runs: Sequence[Run]) -> list[Run]:
        """Write down those that have no row, and return them; no row that is there changes. Raises HistoryAway."""

        async def work(connection: Connection) -> list[Run]:
            await self._empty_spool(connection)
            async with alone(connection):
                added, _ = await rows.add(connection, runs)
            return [run for run in runs if run.run_id in added]

        return await self._database.ask(work) if runs else []

    async def save(self, folder: Path, clock: Clock = now) -> None:
        """Dump all rows beside the backups in ``folder``, where the history is our own; atomically, mode 0600.

        What a former dump knows and we do not is taken back first: an empty history never takes the place of a full
        one. Takes two minutes at most. Never raises: what goes wrong is logged, and the former dump stays.
        """
        if not self._database.embedded:
            return
        try:
            async with asyncio.timeout(_SAVE_S):
                await self._save(dump.path_in(folder, self._host), clock())
        except HistoryAway as error:
            log.warning("The history could not be saved beside the backups in %s. %s", folder, error)
        except (OSError, dump.Unreadable) as error:
            log.warning(
                "The history could not be saved beside the backups in %s: %s. The backups themselves are whole; the "
                "next run tries again.", folder, dump.reason(error),
            )  # fmt: skip
        except Exception as error:
            log.warning("The history could not be saved beside the backups in %s.", folder, exc_info=error)

    async def _save(self, path: Path, at: datetime) -> None:
        former = await look(partial(dump.former, path), _SAVE_S)

        async def work(connection: Connection) -> tuple[bytes, bool]:
            await self._empty_spool(connection)
            whole = True
            if former:
                async with alone(connection):
                    _, whole = await dump.load(connection, former)
            return await dump.packed(connection, self._host, at), whole

        content, whole = await self._database.ask(work)
        if former and not whole:
            await look(partial(dump.keep, former), _SAVE_S)
        await look(partial(dump.publish, content, path), _SAVE_S)

    async def dump_into(self, folder: Path, clock: Clock = now) -> Path | None:
        """Write all that has ended into a dump in ``folder``, where the history is our own; its path, else None.

        Raises HistoryAway, OSError.
        """
        if not self._database.embedded:
            return None

        async def work(connection: Connection) -> bytes:
            await self._empty_spool(connection)
            return await dump.packed(connection, self._host, clock(), ended=True)

        path = dump.path_in(folder, self._host)
        await asyncio.to_thread(dump.publish, await self._database.ask(work), path)
        return path

    async def take_in(self, path: Path) -> None:
        """Add the rows of a dump that are not there yet. Raises HistoryAway, OSError, dump.Unreadable."""
        saved = await look(partial(dump.fetched, path), _SAVE_S)

        async def work(connection: Connection) -> None:
            await self._empty_spool(connection)
            async with alone(connection):
                await dump.load(connection, saved)

        await self._database.ask(work)

    async def runs(
        self,
        *,
        host: str | None = None,
        job: str | None = None,
        called: Collection[str] | None = None,
        directory: Path | None = None,
        limit: int | None = 1000,
        in_passing: bool = False,
    ) -> list[Run]:
        """The newest ``limit`` runs, newest first; what is still spooled counts. Raises HistoryAway.

        ``called`` leaves only those whose run id or file name is among these, ``directory`` those whose backup lies
        or was to lie in that very folder, or that do not say where. ``in_passing`` asks no Postgres that did not answer
        the last question.
        """
        if await self.unmade():
            return []
        chosen = partial(_is_chosen, host, job, called, directory)

        async def work(connection: Connection) -> list[Run]:
            waiting = await self._waiting(connection)
            found = await rows.read_runs(connection, host, job, limit, called, directory)
            known = {run.run_id: run for run in found}
            known.update({note.run_id: note for note in waiting if isinstance(note, Run) and chosen(note)})
            return sorted(known.values(), key=lambda run: run.created_at, reverse=True)[:limit]

        return await self._database.ask(work, in_passing=in_passing)

    async def known_runs(
        self,
        *,
        host: str | None = None,
        job: str | None = None,
        called: Collection[str] | None = None,
        directory: Path | None = None,
        quiet: bool = False,
    ) -> tuple[list[Run], bool]:
        """As ``runs`` ``in_passing``, but where the history is away those that wait here for it, and True; that is
        logged as a warning unless ``quiet``. Of those ``called`` so it gives each, however many rows there are.
        """
        try:
            limit = 1000 if called is None else None
            found = await self.runs(
                host=host, job=job, called=called, directory=directory, limit=limit, in_passing=True
            )
            return found, False
        except HistoryAway as error:
            log.log(logging.INFO if quiet else logging.WARNING, "%s", self._with_comfort(error))
            spooled = [run for run in self.spooled() if _is_chosen(host, job, called, directory, run)]
            return sorted(spooled, key=lambda run: run.created_at, reverse=True), True

    async def origins(self) -> list[tuple[str, str]]:
        """Every host and job of which a run is known, sorted; both are empty where others wrote the rows.

        Raises HistoryAway.
        """
        if await self.unmade():
            return []

        async def work(connection: Connection) -> list[tuple[str, str]]:
            waiting = {(note.host, note.job) for note in await self._waiting(connection) if isinstance(note, Run)}
            return sorted(waiting | await rows.read_origins(connection))

        return await self._database.ask(work)

    def spooled(self) -> list[Run]:
        """The runs that wait for Postgres, in the order in which they were first written. Asks no server."""
        return [letter.note for letter in self._spool.letters() if isinstance(letter.note, Run)]

    def waiting(self) -> bool:
        """Whether anything waits here for Postgres: runs, or what people did. Asks no server."""
        return bool(self._spool.paths())

    async def unmade(self) -> bool:
        """Whether nothing was ever written down, in an embedded server that is not there yet: asking makes none.

        A disk that does not answer within 15 s counts as one on which nothing was saved.
        """
        return self._database.unmade and not self.waiting() and not await self._remains.dumped()

    async def lost(self) -> list[Run] | None:
        """The runs that come back with the next question, newest first, where our own Postgres has no data; None where
        it has. Makes no server, writes nothing.
        """
        if not self._database.unmade:
            return None
        known = {run.run_id: run for run in (*await self._remains.runs(), *self.spooled())}
        return sorted(known.values(), key=lambda run: run.created_at, reverse=True)

    async def backup_count(self, *, job: str | None = None) -> int:
        """How many backups are stored: successful or partial and not deleted since. Raises HistoryAway."""

        async def work(connection: Connection) -> int:
            waiting = [note for note in await self._waiting(connection) if isinstance(note, Run)]
            count = await rows.count_stored(connection, job, [run.run_id for run in waiting])
            return count + sum(rows.is_stored(run) and job in (None, run.job) for run in waiting)

        return await self._database.ask(work)

    async def audit_log(self, limit: int = 100) -> list[AuditEvent]:
        """The newest ``limit`` events, newest first; what is still spooled counts. Raises HistoryAway."""

        if await self.unmade():
            return []

        async def work(connection: Connection) -> list[AuditEvent]:
            waiting = await self._waiting(connection)
            known = {event.event_id: event for event in await rows.read_audit(connection, limit)}
            known.update({note.event_id: note for note in waiting if isinstance(note, AuditEvent)})
            return sorted(known.values(), key=lambda event: event.created_at, reverse=True)[:limit]

        return await self._database.ask(work)

    async def drives(self) -> list[Drive]:
        """What is written down of this machine's drives, the one seen last first; what is still spooled counts.

        Raises HistoryAway.
        """
        if await self.unmade():
            return []

        async def work(connection: Connection) -> list[Drive]:
            waiting = await self._waiting(connection)
            known = {drive.drive_id: drive for drive in await rows.read_drives(connection, self._host)}
            known.update({n.drive_id: n for n in waiting if isinstance(n, Drive) and n.host == self._host})
            return sorted(known.values(), key=lambda drive: drive.last_seen_at, reverse=True)

        return await self._database.ask(work)

    async def drills(self) -> tuple[list[Drill], bool]:
        """The newest restore tests of this machine, newest first; what is still spooled counts. With the history away
        only that, and True.
        """
        if await self.unmade():
            return [], False

        async def work(connection: Connection) -> list[Drill]:
            waiting = await self._waiting(connection)
            known = {drill.drill_id: drill for drill in await rows.read_drills(connection, self._host, _DRILLS)}
            return _newest(known | self._own_drills(waiting))

        try:
            return await self._database.ask(work, in_passing=True), False
        except HistoryAway as error:
            log.info("%s", error)
            return _newest(self._own_drills(letter.note for letter in self._spool.letters())), True

    def _own_drills(self, notes: Iterable[Note]) -> dict[str, Drill]:
        return {note.drill_id: note for note in notes if isinstance(note, Drill) and note.host == self._host}

    async def check(self) -> str:
        """Connect, bring the tables up to date and say where the history is, without a password. Always tries.

        "embedded PostgreSQL 18" or "PostgreSQL 15 at db.local/memu". Raises HistoryAway, or HistoryRefused where
        waiting alone will not help: wrong password, unknown database, missing rights, newer tables.
        """
        return await self._database.ask(self._database.describe, insist=True)

    async def _keep(self, note: Note) -> bool:
        async def work(connection: Connection) -> None:
            await self._empty_spool(connection)

        async def work_unspooled(connection: Connection) -> None:
            await self._empty_spool(connection)
            async with alone(connection):
                await rows.write(connection, note)

        try:
            await asyncio.to_thread(self._spool.put, note)
        except OSError as error:
            # A full disk is just what has to be written down, and Postgres may lie on another one.
            log.warning("The history's spool in %s cannot be written: %s.", self._spool.folder, error.strerror)
            await self._database.ask(work_unspooled, budget_s=self._patience_s)
            return True
        try:
            await self._database.ask(work, budget_s=self._patience_s)
        except HistoryAway as error:
            log.warning("%s", self._with_comfort(error))
            return False
        return not self._spool.holds(note)

    def _with_comfort(self, error: HistoryAway) -> str:
        return f"{error} Backups go on and are noted down on this machine meanwhile." if self.waiting() else str(error)

    async def _waiting(self, connection: Connection) -> list[Note]:
        """Empty the spool; where the database only lets us read, what stays in it is to be laid over the rows."""
        from asyncpg import PostgresError

        try:
            await self._empty_spool(connection)
        except PostgresError as error:
            log.warning(
                "The notes in %s do not get into the history database yet: %s.", self._spool.folder, error.args[0]
            )
        return [letter.note for letter in self._spool.letters()]

    async def _empty_spool(self, connection: Connection) -> int:
        moved = 0
        for path in self._spool.paths():
            try:
                moved += await self._move(connection, path)
            except rows.misfits() as error:
                # This one row does not fit, for instance into a column that somebody added; the next may.
                log.warning(
                    "The history database does not take the note %s, which stays there: %s.", path, error.args[0]
                )
        return moved

    async def _move(self, connection: Connection, path: Path) -> bool:
        async with alone(connection):
            # Read inside the transaction: another process that was here before us may have written a newer state
            # since, and then has taken this one away.
            letter = self._spool.read(path)
            if letter is None:
                return False
            await rows.write(connection, letter.note)
        try:
            await asyncio.to_thread(self._spool.remove, letter)
        except OSError as error:
            log.warning("The note %s is in the history but cannot be removed: %s.", path, error.strerror)
        return True


def _is_chosen(
    host: str | None, job: str | None, called: Collection[str] | None, directory: Path | None, run: Run
) -> bool:
    mine = host in (None, run.host) and job in (None, run.job) and (directory is None or rows.lies_in(run, directory))
    return mine and (called is None or run.run_id in called or run.filename in called)


def _newest(drills: Mapping[str, Drill]) -> list[Drill]:
    return sorted(drills.values(), key=lambda drill: drill.created_at, reverse=True)


def _if_not_written(name: str, writing: asyncio.Future[bool]) -> None:
    error = None if writing.cancelled() else writing.exception()
    if isinstance(error, HistoryAway):
        log.error("The backup %s could not be written down: %s", name, error)
    elif error is not None:
        log.error("The backup %s could not be written down (%s).", name, type(error).__name__, exc_info=error)

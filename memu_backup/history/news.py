"""What people have still to hear of: a row is the debt, until ``notification_sent`` says that somebody was told."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace

from memu_backup.errors import HistoryAway
from memu_backup.history import rows
from memu_backup.history.database import Database
from memu_backup.history.rows import Note
from memu_backup.history.schema import Connection, alone
from memu_backup.history.spool import Spool
from memu_backup.model import Run

log = logging.getLogger(__name__)

CHANNEL = "memu_backup"
"""Postgres announces each change of ``backup_history`` here, as ``{"run_id": ..., "status": ...}``."""


class News:
    """The rows of ``host`` that matter to whoever tells people. Made by ``History``."""

    def __init__(
        self, database: Database, spool: Spool, host: str, waiting: Callable[[Connection], Awaitable[list[Note]]]
    ) -> None:
        self._database = database
        self._spool = spool
        self._host = host
        self._waiting = waiting

    async def rows(self) -> tuple[list[Run], bool]:
        """Newest first: each run that is under way; each that failed and is not tried again, or lacks something, and of
        which nobody was told; and the newest of each job. With the history away those that wait here for it, and True.
        """

        async def work(connection: Connection) -> list[Run]:
            waiting = await self._waiting(connection)
            known = {run.run_id: run for run in await rows.read_news(connection, self._host)}
            known.update({note.run_id: note for note in waiting if self._is_ours(note) and isinstance(note, Run)})
            return list(known.values())

        try:
            found, away = await self._database.ask(work), False
        except HistoryAway as error:
            log.debug("%s", error)
            notes = [letter.note for letter in self._spool.letters()]
            found, away = [note for note in notes if self._is_ours(note) and isinstance(note, Run)], True
        return sorted(found, key=lambda run: run.created_at, reverse=True), away

    async def told(self, runs: Sequence[Run]) -> None:
        """Somebody heard how these ended. One that has ended otherwise since stays a debt. Raises OSError where neither
        Postgres nor the spool takes it.
        """

        async def work(connection: Connection) -> None:
            await self._waiting(connection)
            async with alone(connection):
                await rows.mark_told(connection, runs)

        try:
            await self._database.ask(work)
        except HistoryAway as error:
            log.debug("%s", error)
            notes = [letter.note for letter in self._spool.letters()]
            waiting = {note.run_id: note for note in notes if isinstance(note, Run)}
            for run in runs:
                now = waiting.get(run.run_id, run)  # found damaged since, perhaps
                if (now.status, now.error_code) == (run.status, run.error_code):
                    await asyncio.to_thread(self._spool.put, replace(now, notification_sent=True))

    async def follow(self, wake: Callable[[], None], pause_s: float = 30.0) -> None:
        """Call ``wake`` at each change of a row, and whenever changes may have been missed. Until cancelled.

        ``pause_s`` is how long to wait where the way to Postgres is lost.
        """
        while True:
            try:
                await self._database.listen(CHANNEL, wake)
            except HistoryAway as error:
                log.debug("%s", error)
            await asyncio.sleep(pause_s)

    def _is_ours(self, note: Note) -> bool:
        return isinstance(note, Run) and note.host == self._host

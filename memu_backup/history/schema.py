"""Moves the tables forward to the version that this code knows, however many daemons start together."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from importlib.resources import files
from typing import Any

from memu_backup.errors import HistoryRefused

Connection = Any
"""An ``asyncpg.Connection``; asyncpg carries no types."""

Fill = Callable[[Connection], Awaitable[None]]

NEWEST = 5
"""The schema version that this code writes and reads."""

_LOCK = 0x6D656D75
"""Key of the advisory lock under which anything of ours is written. The number spells "memu"."""


@asynccontextmanager
async def alone(connection: Connection) -> AsyncIterator[None]:
    """One transaction, in which no other memu-backup writes to this database. Lets every exception through.

    Where the server said no, the transaction is rolled back and the connection can be used again. After anything else
    (a timeout, a cancellation) the caller ends the connection: a rollback might wait for an answer that never comes,
    which is why asyncpg's own ``transaction()`` is not used.
    """
    from asyncpg import PostgresError

    # The server ends our session where we vanished without a word (a pulled cable): it would keep the lock for hours.
    await connection.execute("BEGIN; SET LOCAL idle_in_transaction_session_timeout = '2s'")
    try:
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK)
        yield
    except PostgresError:
        if not connection.is_closed():
            await connection.execute("ROLLBACK")
        raise
    await connection.execute("COMMIT")


async def migrate(connection: Connection, fill: Fill | None = None) -> None:
    """Bring the tables to ``NEWEST``, all or nothing. Costs two queries and needs no rights where they are there.

    Where there are none yet, ``fill`` is asked to put into them what is known already, before anybody sees them.

    Raises HistoryRefused for tables of a newer version, which are left untouched; lets asyncpg's errors through.
    """
    # to_regclass may answer from before the lock, so inside of it only the table itself is asked.
    there = await connection.fetchval("SELECT to_regclass('backup_schema')") is not None
    if there and await _version(connection) == NEWEST:
        return
    async with alone(connection):
        await connection.execute(
            "CREATE TABLE IF NOT EXISTS backup_schema (version INT PRIMARY KEY, applied_at TIMESTAMPTZ DEFAULT NOW())"
        )
        found = await _version(connection)  # another daemon may have been quicker
        steps = [step for step in files(__package__).iterdir() if step.name.endswith(".sql")]
        for number, step in enumerate(sorted(steps, key=lambda step: step.name), start=1):
            if number > found:
                await connection.execute(step.read_text("utf-8"))
                await connection.execute("INSERT INTO backup_schema (version) VALUES ($1)", number)
        if fill and not found:
            # It may have to wait for a disk that wakes up; who fills is on this machine, and its end is noticed.
            await connection.execute("SET LOCAL idle_in_transaction_session_timeout = 0")
            await fill(connection)


async def _version(connection: Connection) -> int:
    found = int(await connection.fetchval("SELECT COALESCE(max(version), 0) FROM backup_schema"))
    if found > NEWEST:
        raise HistoryRefused(
            f"The history database was written by a newer memu-backup (its tables have version {found}, this one "
            f"knows {NEWEST}). Nothing in it was changed. Update memu-backup here."
        )
    return found

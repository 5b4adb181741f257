"""Asks a database which files its rows name, now or as of the snapshot of a dump."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from functools import partial
from typing import Any

from memu_backup import words
from memu_backup.crosscheck import CrossCheck
from memu_backup.errors import DatabaseError, MemuError
from memu_backup.postgres.connection import Address, connect
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

LIMIT_S = 300.0
"""How long a query may take in all: a dump waits for it."""

_AT_ONCE = 5000


async def answer(
    address: Address, checks: Sequence[CrossCheck], *, snapshot: str = "", limit_s: float = LIMIT_S
) -> None:
    """Give each of the ``checks`` the names that its query brings, as of ``snapshot`` where one is given. Changes
    nothing, and raises nothing: what goes wrong is told to the check.

    By connections of its own: a query that fails, or takes too long, would end the transaction that a dump rests on.
    """
    for check in checks:
        try:
            await _answer(address, check, snapshot, limit_s)
        except MemuError as error:
            check.fail(str(error))
        except Exception as error:
            log.warning("The names of files could not be asked for (%s).", type(error).__name__, exc_info=error)
            check.fail(f"{address.server} gave what could not be read ({type(error).__name__}).")


async def _answer(address: Address, check: CrossCheck, snapshot: str, limit_s: float) -> None:
    async with connect(address, command_timeout_s=limit_s) as connection:
        await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
        if snapshot:
            await connection.execute(f"SET TRANSACTION SNAPSHOT '{snapshot}'")
        # The server's own, too: it would go on with what nobody waits for any more.
        await connection.execute(f"SET LOCAL statement_timeout = {int(limit_s * 1000)}")
        try:
            async with asyncio.timeout(limit_s):
                cursor = await connection.cursor(check.query)
                while rows := await cursor.fetch(_AT_ONCE):
                    names = [_text(row[0]) for row in rows if row and row[0] is not None]
                    await in_thread(partial(check.name, names), Stop())
        except TimeoutError as error:
            raise DatabaseError(
                f"{address.server} has not answered the query within {words.duration(limit_s)}."
            ) from error


def _text(value: Any) -> str:
    """Bytes are a name as the disk has it, which may be no UTF-8."""
    return os.fsdecode(value) if isinstance(value, bytes) else str(value)

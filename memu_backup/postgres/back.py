"""Brings dumps back into a server that runs: roles that it lacks, and databases, each made anew or empty before."""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup import process
from memu_backup.errors import DatabaseError, RestoreError
from memu_backup.postgres.connection import Address, connect, count_tables, list_tables
from memu_backup.postgres.tools import find_tools, put_back, reason

if TYPE_CHECKING:
    import asyncpg

_MAINTENANCE = "postgres"
"""The database that every server has, to ask from what others there are."""


@dataclass(frozen=True, slots=True)
class New:
    """How a database is made: its name, and what it was made with; empty where that is not known."""

    name: str
    encoding: str
    collate: str
    ctype: str


async def tables_of(address: Address, database: str) -> int:
    """How many tables of the household's a database has, 0 also where there is none. Raises DatabaseError."""
    async with connect(address.of(_MAINTENANCE)) as connection:
        there = await connection.fetchval("SELECT count(*) FROM pg_database WHERE datname = $1", database)
    if not there:
        return 0
    async with connect(address.of(database)) as connection:
        return len(await list_tables(connection))


async def roles(file: Path, address: Address, major: int) -> list[str]:
    """Bring back the roles that the server lacks, of what pg_dumpall has written. Those that are there stay as they
    are, with their passwords. Returns a sentence for each thing that could not be had.
    """
    async with connect(address.of(_MAINTENANCE)) as connection:
        there = {row[0] for row in await connection.fetch("SELECT quote_ident(rolname) FROM pg_roles")}
    sql = "".join(line for line in file.read_text("utf-8").splitlines(keepends=True) if not _is_of(line, there))
    tools = await find_tools(major)
    argv = [tools.program("psql"), "--no-password", "--no-psqlrc", "--quiet", "--output=/dev/null"]
    done = await process.run(
        [*argv, f"--dbname={address.of(_MAINTENANCE).url}"], env=address.environment, stdin=sql.encode()
    )
    if done.returncode != 0:
        raise RestoreError(
            f"The roles of the databases could not be put back: {address.without_secret(reason(done))}. "
            "Nothing else was changed."
        )
    told = address.without_secret(done.stderr.decode(errors="replace"))
    return [f"Could not be put back: {error}." for error in re.findall(r"ERROR:  (.*)", told)]


def _is_of(line: str, roles: set[str]) -> bool:
    """Whether a line makes or changes one of these roles; pg_dumpall writes each on one."""
    found = re.match(r'(?:CREATE|ALTER) ROLE ("(?:[^"]|"")*"|[^\s;]+)', line)
    return bool(found and found[1] in roles)


async def database(dump: Path, new: New, address: Address, rows: Mapping[str, int], *, major: int) -> list[str]:
    """Load a dump into a database that is made for it, or empty; and count its ``rows``, by table.

    Returns a sentence for each owner or right that could not be had. Raises RestoreError and DatabaseError; a database
    that was made for it goes again then.
    """
    made, warnings = await _made(new, address)
    try:
        warnings += await put_back(dump, address.of(new.name).secret_url, major=major)
        async with connect(address.of(new.name)) as connection, connection.transaction(isolation="repeatable_read"):
            found = await count_tables(connection)
        if differing := sorted(table for table, count in rows.items() if found.get(table) != count):
            raise RestoreError(
                f"Database {new.name} came back with other numbers of rows than it was backed up with "
                f"({', '.join(differing[:3])}). Try an older backup."
            )
    except BaseException:
        if made:
            with suppress(DatabaseError):
                async with connect(address.of(_MAINTENANCE)) as connection:
                    await connection.execute(f"DROP DATABASE {await _quoted(connection, new.name)}")
        raise
    return warnings


async def _made(new: New, address: Address) -> tuple[bool, list[str]]:
    """Whether it was made here, and a sentence where it is not made as it was."""
    import asyncpg

    async with connect(address.of(_MAINTENANCE)) as connection:
        if await connection.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", new.name):
            return False, []
        command = f"CREATE DATABASE {await _quoted(connection, new.name)} TEMPLATE template0"
        if new.encoding:
            command += f" ENCODING {await _literal(connection, new.encoding)}"
        locale = ""
        for word, value in (("LC_COLLATE", new.collate), ("LC_CTYPE", new.ctype)):
            if value:
                locale += f" {word} {await _literal(connection, value)}"
        try:
            await connection.execute(command + locale)
        except asyncpg.PostgresError:
            if not locale:
                raise
            await connection.execute(command)
            return True, [
                f"Database {new.name} sorts its texts by the rules of this server, as it does not know those of "
                f"{new.collate or new.ctype}."
            ]
    return True, []


async def _quoted(connection: asyncpg.Connection, name: str) -> str:
    return str(await connection.fetchval("SELECT quote_ident($1)", name))


async def _literal(connection: asyncpg.Connection, text: str) -> str:
    return str(await connection.fetchval("SELECT quote_literal($1)", text))

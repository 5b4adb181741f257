"""Brings dumps back into a server that runs: roles that it lacks, and databases, each made anew beside the one that is
there and then exchanged for it by their names.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup import process
from memu_backup.errors import DatabaseError, RestoreError
from memu_backup.files import shown
from memu_backup.postgres.connection import Address, connect, count_tables, list_tables
from memu_backup.postgres.tools import find_tools, put_back, reason
from memu_backup.swap import Swap, not_kept

if TYPE_CHECKING:
    import asyncpg

_MAINTENANCE = "postgres"
"""The database that every server has, to ask from what others there are."""

_LONGEST_NAME = 63

_PRIVILEGES = frozenset({"CONNECT", "CREATE", "TEMPORARY"})
"""To a database; a backup may be a stranger's, and says what is done in SQL here."""

_TEMPLATE = "template1"
"""So has it this one."""

_LISTS = frozenset(
    {"local_preload_libraries", "search_path", "session_preload_libraries", "temp_tablespaces"}
    | {"shared_preload_libraries", "unix_socket_directories"}
)
"""Settings that are lists of names; as pg_dump has them (dumputils.c, variable_is_guc_list_quote)."""


Right = tuple[str, str, bool]
"""A role (everybody where it is empty), CONNECT or the like, and whether it may be handed on."""

ACL = (
    "(CASE WHEN d.datacl IS NOT NULL THEN (SELECT coalesce(json_agg(json_build_array(CASE grantee WHEN 0 THEN ''"
    " ELSE pg_get_userbyid(grantee) END, privilege_type, is_grantable)), '[]')"
    " FROM aclexplode(d.datacl) WHERE grantee <> d.datdba) END)"
)
"""Asks for the rights to the database ``d``, without its owner's; NULL where nobody ever changed them."""

_MARK = "Being made by a restore of memu-backup"
"""The comment of a database that did not take its place yet: only such a one is ever removed after a kill."""


@dataclass(frozen=True, slots=True)
class Change:
    """What is done in a database that comes back, and ``why``, as the rest of a sentence."""

    sql: str
    why: str = ""

    def __str__(self) -> str:
        return f"{self.sql}, {self.why}" if self.why else self.sql


@dataclass(frozen=True, slots=True)
class New:
    """How a database is made: its name, what it was made with, whose it was, what was set for it ("name=value"), and
    who has which rights to it; empty, or None, where that is not known, and no ``acl`` where they are what all have.
    """

    name: str
    encoding: str
    collate: str
    ctype: str
    owner: str = ""
    settings: tuple[str, ...] | None = None
    acl: tuple[Right, ...] | None = None


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


async def beside(
    dump: Path, new: New, address: Address, rows: Mapping[str, int], stamp: str, *, major: int
) -> tuple[Swap, list[str]]:
    """Load a dump into a database that is made beside the one of its name, and count its ``rows``, by table.

    Returns how it takes that one's place, and a sentence for each owner or right that could not be had. Raises
    RestoreError and DatabaseError; what was made for it goes again then.
    """
    made = replace(new, name=_named(new.name, f"restored_{stamp}"))
    await drop(made.name, address)
    try:
        warnings = await _made(made, new.name, address, f"{_MARK}, {stamp}")
        warnings += await put_back(dump, address.of(made.name).secret_url, major=major, called=new.name)
        async with connect(address.of(made.name)) as connection, connection.transaction(isolation="repeatable_read"):
            found = await count_tables(connection)
        if differing := sorted(table for table, count in rows.items() if found.get(table) != count):
            raise RestoreError(
                f"Database {new.name} came back with other numbers of rows than it was backed up with "
                f"({', '.join(differing[:3])}); the one that is there is as it was. Try an older backup."
            )
        async with connect(address.of(_MAINTENANCE)) as connection:
            identity, there = await _oid(connection, made.name), await _oid(connection, new.name)
    except BaseException:
        with suppress(DatabaseError):
            await drop(made.name, address)
        raise
    old = _named(new.name, f"before_{stamp}")
    return Swap(new.name, made.name, old, identity, of_databases=True, had=there is not None), warnings


async def change(database: str, changes: Sequence[Change], home: str, address: Address) -> tuple[list[str], list[str]]:
    """Do them in a ``database`` that will be ``home``, each for itself; what is about a table that is not in it is
    passed over. Returns a sentence for each that was done, and one for each that could not be. Raises DatabaseError.
    """
    import asyncpg

    done, failed = list[str](), list[str]()
    async with connect(address.of(database)) as connection:
        for one in changes:
            try:
                await connection.execute(one.sql)
            except (asyncpg.UndefinedTableError, asyncpg.InvalidSchemaNameError):
                continue
            except asyncpg.PostgresError as error:
                failed.append(
                    f"In database {home} this could not be done: {shown(str(one))} ({shown(str(error))}). What it is "
                    "about is as it was in the backup; do it by hand, before you start what uses it."
                )
            else:
                done.append(f"Done in database {home}: {shown(str(one))}.")
    return done, failed


async def forth(swap: Swap, address: Address) -> None:
    """As ``swap.forth``, for databases: whoever is connected to one of them is sent away. Raises RestoreError."""
    import asyncpg

    # Nobody can rename the database in which they are.
    async with connect(address.of(_TEMPLATE if swap.home == _MAINTENANCE else _MAINTENANCE)) as connection:
        there = await _oid(connection, swap.home)
        if swap.identity is not None and there == swap.identity:
            return
        if swap.identity is not None and await _oid(connection, swap.new) != swap.identity:
            raise RestoreError(
                f"Database {swap.new}, which was to take the place of {swap.home}, is not there any more; what is "
                "there is as it was."
            )
        try:
            async with connection.transaction():
                for name, to in ((swap.home, swap.old), (swap.new, swap.home)):
                    if await _oid(connection, name) is None or (name == swap.new and swap.identity is None):
                        continue
                    await connection.execute(
                        "SELECT pg_terminate_backend(pid) FROM pg_stat_activity"
                        " WHERE datname = $1 AND pid <> pg_backend_pid()", name
                    )  # fmt: skip
                    quoted = await _quoted(connection, name), await _quoted(connection, to)
                    await connection.execute(f"ALTER DATABASE {quoted[0]} RENAME TO {quoted[1]}")
                if swap.identity is not None and (await _comment(connection, swap.home)).startswith(_MARK):
                    await connection.execute(f"COMMENT ON DATABASE {await _quoted(connection, swap.home)} IS NULL")
        except asyncpg.PostgresError as error:
            raise RestoreError(
                f"Database {swap.home} could not be exchanged for what was given back ({error}); what is there is as "
                "it was. Stop what uses it, then try again."
            ) from error


async def back(swap: Swap, address: Address, *, whole: bool) -> Swap | None:
    """As ``swap.back``, for databases."""
    async with connect(address.of(_MAINTENANCE)) as connection:
        there, new, old = [await _oid(connection, name) for name in (swap.home, swap.new, swap.old)]
    if not whole and old is None and (new is not None or there != swap.identity):
        return None
    if whole and swap.had and old is None:
        raise not_kept(swap)
    return replace(swap, new=swap.old, old=swap.new, identity=old, had=there is not None)


async def drop(name: str, address: Address) -> None:
    """Also where it is not there. Raises RestoreError, DatabaseError."""
    import asyncpg

    async with connect(address.of(_MAINTENANCE)) as connection:
        try:
            await connection.execute(f"DROP DATABASE IF EXISTS {await _quoted(connection, name)}")
        except asyncpg.PostgresError as error:
            raise RestoreError(f"Database {name} could not be removed ({error}).") from error


async def abandon(stamp: str, address: Address) -> None:
    """Remove what a ``beside`` with this stamp had made when it was killed. Raises RestoreError, DatabaseError."""
    async with connect(address.of(_MAINTENANCE)) as connection:
        found = await connection.fetch(
            "SELECT datname FROM pg_database WHERE shobj_description(oid, 'pg_database') = $1", f"{_MARK}, {stamp}"
        )
    for row in found:
        async with connect(address.of(_MAINTENANCE)) as connection:  # what the killed one had begun may go on in there
            await connection.execute(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = $1", row[0]
            )
        await drop(str(row[0]), address)


def acl_of(told: str | None) -> list[Right] | None:
    """What ``ACL`` has answered."""
    return None if told is None else [(str(r), str(p), bool(g)) for r, p, g in json.loads(told)]


def _named(name: str, end: str) -> str:
    """A name beside another. Postgres cuts what is longer than 63 bytes: there a digest tells one from another."""
    room = _LONGEST_NAME - len(end) - 1
    if len(name.encode()) > room:
        digest = hashlib.sha256(name.encode()).hexdigest()[:8]
        name = f"{name.encode()[: room - 9].decode(errors='ignore')}~{digest}"
    return f"{name}_{end}"


async def _comment(connection: asyncpg.Connection, name: str) -> str:
    found = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = $1"
    return str(await connection.fetchval(found, name) or "")


async def _oid(connection: asyncpg.Connection, name: str) -> int | None:
    found = await connection.fetchval("SELECT oid FROM pg_database WHERE datname = $1", name)
    return None if found is None else int(found)


async def _made(new: New, home: str, address: Address, comment: str) -> list[str]:
    """Made for the one that ``home`` has, if there is one, else for the one that had it. Sentences about what is not as
    it was.
    """
    import asyncpg

    async with connect(address.of(_MAINTENANCE)) as connection:
        command = f"CREATE DATABASE {await _quoted(connection, new.name)} TEMPLATE template0"
        owner, there, rights = await _had(connection, home) or (new.owner, (), new.acl)
        told = []
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
            told.append(
                f"Database {home} sorts its texts by the rules of this server, as it does not know those of "
                f"{new.collate or new.ctype}."
            )
        called = await _quoted(connection, new.name)
        await connection.execute(f"COMMENT ON DATABASE {called} IS {await _literal(connection, comment)}")
        wanted = [f"OWNER TO {await _quoted(connection, owner)}"] if owner else []
        for setting in there if new.settings is None else new.settings:
            name, _, value = setting.partition("=")
            values = [await _literal(connection, one) for one in (_listed(value) if name in _LISTS else [value])]
            wanted.append(f"SET {await _quoted(connection, name)} TO {', '.join(values)}")
        statements = [f"ALTER DATABASE {called} {one}" for one in wanted]
        for one in statements + await _granted(connection, called, rights if new.acl is None else new.acl):
            try:
                await connection.execute(one)
            except asyncpg.PostgresError as error:
                what = one.removeprefix(f"ALTER DATABASE {called} ").replace(called, home)
                told.append(f"Database {home} came back without this: {shown(what)} ({shown(str(error))}).")
    return told


async def _granted(connection: asyncpg.Connection, called: str, rights: Sequence[Right] | None) -> list[str]:
    """The statements by which just these are had; none where they were never changed."""
    if rights is None:
        return []
    statements = [f"REVOKE ALL ON DATABASE {called} FROM PUBLIC"]
    for role, privilege, grantable in rights:
        if privilege in _PRIVILEGES:
            to = await _quoted(connection, role) if role else "PUBLIC"
            handed_on = " WITH GRANT OPTION" if grantable else ""
            statements.append(f"GRANT {privilege} ON DATABASE {called} TO {to}{handed_on}")
    return statements


async def _had(
    connection: asyncpg.Connection, name: str
) -> tuple[str, tuple[str, ...], tuple[Right, ...] | None] | None:
    """Whose a database is that is there, what is set for it, and who has which rights to it."""
    found = await connection.fetchrow(
        f"SELECT pg_get_userbyid(datdba), setconfig, {ACL} FROM pg_database d"  # noqa: S608  a constant
        " LEFT JOIN pg_db_role_setting ON setdatabase = d.oid AND setrole = 0 WHERE datname = $1",
        name,
    )
    if found is None:
        return None
    rights = acl_of(found[2])
    return str(found[0]), tuple(found[1] or ()), None if rights is None else tuple(rights)


def _listed(value: str) -> list[str]:
    """The names in a list such as ``"$user", public``."""
    return [quoted.replace('""', '"') or plain for quoted, plain in re.findall(r'"((?:[^"]|"")*)"|([^\s,"]+)', value)]


async def _quoted(connection: asyncpg.Connection, name: str) -> str:
    return str(await connection.fetchval("SELECT quote_ident($1)", name))


async def _literal(connection: asyncpg.Connection, text: str) -> str:
    return str(await connection.fetchval("SELECT quote_literal($1)", text))

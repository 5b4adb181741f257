"""Databases of a running Postgres, each dumped as of one moment while it is being written to; and the way back."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memu_backup import words
from memu_backup.crosscheck import CrossCheck
from memu_backup.errors import CannotCheck, DamagedArchive, DatabaseError, RestoreError
from memu_backup.model import Root, SourceSummary
from memu_backup.postgres import back, names, trial
from memu_backup.postgres.connection import (
    Address,
    connect,
    count_tables,
    list_tables,
    qualified,
    refused_tables,
)
from memu_backup.postgres.dump import is_finished, not_listed, write_dump
from memu_backup.postgres.reach import Server, Taken
from memu_backup.postgres.tools import Tools, list_dump
from memu_backup.replacing import Prepared, Taking
from memu_backup.swap import Swap
from memu_backup.work import Stop, in_thread

if TYPE_CHECKING:
    import asyncpg

    from memu_backup.sources import Reader, Room

_QUESTION_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_MS = 300_000
"""How long another program may keep a table to itself before the dump is given up."""

_CLUSTER_BYTES = 200_000_000
_LOADED_FACTOR = 2
_LOG_BYTES = 1_000_000_000
"""How much of its write-ahead log a server keeps unless told otherwise (max_wal_size)."""

_SUFFIX = {"custom": ".dump", "plain": ".sql"}
_GLOBALS = "globals.sql"


class _Globals(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    file: str


class _Right(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    role: str
    privilege: str
    grantable: bool


class _Dump(_Globals):
    format: Literal["custom", "plain"]
    encoding: str
    tables: dict[str, int | None]
    name: str = ""
    collate: str = ""
    ctype: str = ""
    owner: str = ""
    settings: list[str] | None = None
    acl: list[_Right] | None = None
    size_bytes: int = Field(default=0, ge=0)
    database_bytes: int | None = Field(default=None, ge=0)


class _Counted(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    tables: dict[str, Annotated[int, Field(ge=0, lt=2**63)] | None] | None = None


class _Held(BaseModel):
    """What is told of a backup: less than a check needs, so that it is told of one too that cannot be checked."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    databases: list[_Counted]


class _Details(BaseModel):
    """What a check needs of the details that a capture has written, in a backup that may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    pg_restore_major: int = Field(ge=1, le=999)
    databases: list[_Dump]
    globals: _Globals | None = None


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the settings say of dumps. ``databases`` is "all", or names, or empty for the one of the address; and what
    is changed in each when it comes back.
    """

    place: str
    databases: Literal["all"] | tuple[str, ...]
    format: Literal["custom", "plain"]
    globals: bool
    row_counts: bool
    changes: tuple[back.Change, ...] = ()

    @property
    def single_file(self) -> bool:
        return not self.place.endswith("/")


@dataclass(frozen=True, slots=True)
class _Plan:
    """What a check found out and a capture goes by."""

    address: Address
    server_version: str
    tools: Tools
    databases: tuple[str, ...]
    role_passwords: bool
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ByDump:
    """What a source does whose ``mode`` is "dump"; by the ``first`` of its databases it answers the ``checks``."""

    server: Server
    wanted: Wanted
    checks: Sequence[CrossCheck] = ()

    @property
    def first(self) -> Address:
        address, listed = self.server.address, self.wanted.databases
        return address.of(listed[0]) if listed and listed != "all" else address

    async def check(self) -> list[str]:
        return list((await self._plan()).warnings)

    async def programs(self) -> str:
        plan = await self._plan()
        return f"pg_dump and pg_restore {plan.tools.version} for PostgreSQL {plan.server_version}"

    async def take(self, stage: Path) -> Taken:
        plan = await self._plan()
        dumps = [await self._dump(plan, database, stage) for database in plan.databases]
        details: dict[str, Any] = {
            "server_version": plan.server_version,
            "server_major": int(plan.server_version.split(".")[0]),
            "pg_dump_version": plan.tools.version,
            "pg_restore_major": plan.tools.major,
            "databases": dumps,
        }
        if self.wanted.globals:
            details["globals"] = await self._dump_globals(plan, stage)
        each = " a database" if len(dumps) > 1 else ""
        path = stage / self._file_name(plan.databases[0]) if self.wanted.single_file else stage
        return Taken(
            roots=(Root(path, self.wanted.place),),
            consistency=f"pg_dump {plan.tools.version} in one snapshot{each}",
            details=details,
            warnings=plan.warnings,
        )

    async def in_the_way(self, summary: SourceSummary) -> list[str]:
        """Databases with tables in them."""
        found = [
            (dump.name, await back.tables_of(self.server.address, dump.name)) for dump in _details(summary).databases
        ]
        return [words.database_in_the_way(name, tables) for name, tables in found if tables]

    async def room(self, summary: SourceSummary) -> Taking | None:
        """See ``TakingRoom``: each is made anew beside the one that is there, and the log of that comes too."""
        import asyncpg

        dumps = _details(summary).databases
        held = sum(_LOADED_FACTOR * d.size_bytes if d.database_bytes is None else d.database_bytes for d in dumps)
        free, folder = None, ""
        async with connect(self.server.address.of("postgres"), command_timeout_s=_QUESTION_TIMEOUT_S) as connection:
            with suppress(asyncpg.InsufficientPrivilegeError):
                folder = str(await connection.fetchval("SHOW data_directory"))
                cluster = int(await connection.fetchval("SELECT system_identifier FROM pg_control_system()"))
                free = await self.server.reach.free(folder, cluster)
        where = f"{self.server.address.server}{f' ({folder})' if folder else ''}"
        return Taking(where, held + min(held, _LOG_BYTES), free.bytes if free else None, free.device if free else None)

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        """Roles first, then each database beside the one that is there; then its rows are counted, and what the
        settings want is changed in it.
        """
        details, address = _details(summary), self.server.address

        def file(stored: str) -> Path:
            return given if self.wanted.single_file else given / stored.removeprefix(self.wanted.place)

        swaps, warnings, changed, major = list[Swap](), list[str](), list[str](), details.pg_restore_major
        if details.globals:
            warnings += await back.roles(file(details.globals.file), address, major)
        try:
            for dump in details.databases:
                settings = None if dump.settings is None else tuple(dump.settings)
                acl = None if dump.acl is None else tuple((a.role, a.privilege, a.grantable) for a in dump.acl)
                new = back.New(dump.name, dump.encoding, dump.collate, dump.ctype, dump.owner, settings, acl)
                counted = {table: rows for table, rows in dump.tables.items() if rows is not None}
                one, more = await back.beside(file(dump.file), new, address, counted, stamp, major=major)
                swaps.append(one)
                done, failed = await back.change(one.new, self.wanted.changes, one.home, address)
                changed += done
                warnings += more + failed
        except BaseException:
            for one in swaps:
                with suppress(DatabaseError, RestoreError):
                    await back.drop(one.new, address)
            raise
        return Prepared(tuple(swaps), tuple(warnings), tuple(changed))

    async def recalled(self, summary: SourceSummary) -> str:
        """See ``sources.Recalls``."""
        tables, found_rows, told_rows = 0, 0, list[int | None]()
        for dump in _details(summary).databases:
            address = self.server.address.of(dump.name)
            async with connect(address) as connection, connection.transaction(isolation="repeatable_read"):
                found = await count_tables(connection)
            if missing := sorted(dump.tables.keys() - found.keys()):
                raise DatabaseError(f"Database {dump.name} lacks {_some(missing)}. Type: memu-backup restore --undo")
            tables, found_rows = tables + len(found), found_rows + sum(found.values())
            told_rows += dump.tables.values()
        return words.recalled(tables, found_rows, None if None in told_rows else sum(filter(None, told_rows)))

    async def _plan(self) -> _Plan:
        """Look at everything that a dump will need, in an order in which the first complaint is the helpful one."""
        address, listed = self.server.address, self.wanted.databases
        async with connect(self.first, command_timeout_s=_QUESTION_TIMEOUT_S) as connection:
            number = int(await connection.fetchval("SHOW server_version_num"))
            tools = await self.server.reach.tools(number // 10_000)
            secrets_readable = await connection.fetchval("SELECT has_table_privilege('pg_authid', 'SELECT')")
            databases = await _every_database(connection) if listed == "all" else listed or (address.database,)
        for database in databases:
            async with connect(address.of(database), command_timeout_s=_QUESTION_TIMEOUT_S) as connection:
                await _require_rights(connection, address.of(database))
        warnings = []
        if self.wanted.globals and not secrets_readable:
            warnings.append(
                f"{address.server} keeps the passwords of its users from user {address.user}, so {_GLOBALS} lacks "
                "them: after a restore they have to be set anew. A superuser could back them up."
            )
        version = f"{number // 10_000}.{number % 10_000}"
        return _Plan(address, version, tools, tuple(databases), secrets_readable, tuple(warnings))

    def _file_name(self, database: str) -> str:
        if self.wanted.single_file:
            return self.wanted.place.rsplit("/", 1)[-1]
        safe = quote(database, safe=" ")
        if safe[0] in ".-" or safe + _SUFFIX[self.wanted.format] == _GLOBALS:
            safe = f"%{ord(safe[0]):02X}{safe[1:]}"
        return safe + _SUFFIX[self.wanted.format]

    def _place_of(self, file: Path) -> str:
        return self.wanted.place if self.wanted.single_file else self.wanted.place + file.name

    async def _dump(self, plan: _Plan, database: str, folder: Path) -> dict[str, Any]:
        """Dump one database, count its rows and ask what they name, all in the snapshot of one transaction that is held
        all the while.
        """
        file = folder / self._file_name(database)
        address = plan.address.of(database)
        checks = self.checks if address == self.first else ()
        for check in checks:
            check.begin(database)
        async with connect(address, command_timeout_s=self.server.stall_s) as connection:
            await _hold_still(connection)
            made = await connection.fetchrow(
                "SELECT pg_encoding_to_char(encoding), datcollate, datctype, pg_get_userbyid(datdba), setconfig,"  # noqa: S608
                f" {back.ACL}, pg_database_size(d.oid) FROM pg_database d"
                " LEFT JOIN pg_db_role_setting ON setdatabase = d.oid AND setrole = 0"
                " WHERE datname = current_database()"
            )
            rights = back.acl_of(made[5])
            snapshot_at = (await connection.fetchval("SELECT now()")).astimezone(UTC)
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            argv = [
                plan.tools.program("pg_dump"), f"--format={self.wanted.format}", f"--snapshot={snapshot}",
                f"--lock-wait-timeout={_LOCK_TIMEOUT_MS}",
            ]  # fmt: skip
            if self.wanted.format == "custom":
                # The archive compresses with several threads and a faster library; pg_dump has one and zlib.
                argv.append("--compress=0")
            try:
                async with asyncio.TaskGroup() as together:
                    together.create_task(write_dump(self.server.reach, argv, address, file, self.server.stall_s))
                    counting = together.create_task(_tables(connection, self.wanted.row_counts))
                    together.create_task(names.answer(address, checks, snapshot=snapshot))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # the other one was cancelled for it
        return {
            "name": database,
            "file": self._place_of(file),
            "format": self.wanted.format,
            "encoding": made[0],
            "collate": made[1],
            "ctype": made[2],
            "owner": made[3],
            "settings": list(made[4] or ()),
            "acl": None
            if rights is None
            else [_Right(role=r, privilege=p, grantable=g).model_dump() for r, p, g in rights],
            "database_bytes": made[6],
            "snapshot_at": snapshot_at.isoformat(),
            "size_bytes": file.stat().st_size,
            "tables": counting.result(),
        }

    async def _dump_globals(self, plan: _Plan, folder: Path) -> dict[str, Any]:
        file = folder / _GLOBALS
        argv = [plan.tools.program("pg_dumpall"), "--globals-only"]
        if not plan.role_passwords:
            argv.append("--no-role-passwords")
        await write_dump(self.server.reach, argv, plan.address.of(plan.databases[0]), file, self.server.stall_s)
        return {"file": self._place_of(file), "size_bytes": file.stat().st_size, "passwords": plan.role_passwords}


async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
    """What ``Source.verify`` says of dumps: does each list, or end, as a whole one does?"""
    details = _details(summary)
    problems: list[str] = []
    unseen: CannotCheck | None = None
    for dump in details.databases:
        try:
            if dump.format == "custom":
                listing = await list_dump(reader.content(dump.file), details.pg_restore_major)
                names = [t for t in dump.tables if dump.encoding == "UTF8" or t.isascii()]
                if unlisted := not_listed(names, listing):
                    problems.append(f"{dump.file} lacks {_some(unlisted)}.")
            else:
                problems += await _unfinished(dump.file, "plain", reader)
        except DatabaseError as error:
            problems.append(f"{dump.file}: {error}")
        except CannotCheck as error:
            unseen = error  # another dump may yet be found broken, and that is the graver news
    if details.globals is not None:
        problems += await _unfinished(details.globals.file, "globals", reader)
    if unseen is not None and not problems:
        raise unseen
    return problems


def rehearsal_bytes(summary: SourceSummary) -> int:
    """What ``Rehearses.rehearsal_bytes`` says of dumps: a database takes more than its dump, its indexes for one."""
    return _CLUSTER_BYTES + _LOADED_FACTOR * summary.size_bytes


async def rehearse(given: Path, summary: SourceSummary, room: Room) -> list[str]:
    """What ``Rehearses.rehearse`` does with dumps: each is loaded, and its tables and rows are counted."""
    details = _details(summary)

    def file(stored: str) -> Path:
        inside = given / Path(stored.removeprefix(summary.place)).name  # a stranger's path leads nowhere else
        return inside if summary.place.endswith("/") else given

    dumps = [
        trial.Dump(d.name, file(d.file), d.format == "custom", d.encoding, d.collate, d.ctype, d.tables)
        for d in details.databases
    ]
    roles = file(details.globals.file) if details.globals else None
    means = trial.Means(room.folder, room.postgres_image, room.postgres_url, room.checks)
    return await trial.load(dumps, roles, details.pg_restore_major, means)


def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
    """What ``Source.told`` says of dumps."""
    try:
        dumps = _Held.model_validate(dict(summary.details)).databases
    except ValidationError:
        return words.tree(summary, now, zone)
    return words.databases(len(dumps), entries(summary))


def entries(summary: SourceSummary) -> int | None:
    """How many rows they hold; None where that was not counted."""
    try:
        dumps = _Held.model_validate(dict(summary.details)).databases
    except ValidationError:
        return None
    counts = [rows for dump in dumps for rows in ([None] if dump.tables is None else dump.tables.values())]
    known = [rows for rows in counts if rows is not None]
    return sum(known) if len(known) == len(counts) else None


def _details(summary: SourceSummary) -> _Details:
    try:
        return _Details.model_validate(dict(summary.details))
    except ValidationError as error:
        raise DamagedArchive(
            "metadata.json does not say of its dumps what it should, so they cannot be checked or put back by it; "
            "was it changed by hand? Use another backup, or put them back by hand."
        ) from error


async def _unfinished(file: str, kind: str, reader: Reader) -> list[str]:
    stop = Stop()
    if await in_thread(lambda: is_finished(kind, reader.content(file), stop), stop, gentle=True):
        return []
    return [f"{file} breaks off: its last line does not say that the dump is complete."]


async def _every_database(connection: asyncpg.Connection) -> tuple[str, ...]:
    # A connection limit of -2 marks what is left of a database whose removal was interrupted.
    rows = await connection.fetch(
        "SELECT datname FROM pg_database WHERE datallowconn AND NOT datistemplate AND datconnlimit <> -2 ORDER BY 1"
    )
    return tuple(row[0] for row in rows)


async def _require_rights(connection: asyncpg.Connection, address: Address) -> None:
    unreadable, hidden = await refused_tables(connection)
    if unreadable:
        raise DatabaseError(
            f"{address.server} does not let user {address.user} read {_some(unreadable)} in database "
            f"{address.database}, so a backup would lack it; nothing was started. "
            f'Grant it, for example with: GRANT pg_read_all_data TO "{address.user}";'
        )
    if hidden:
        raise DatabaseError(
            f"{address.server} hides rows of {_some(hidden)} in database {address.database} from user {address.user} "
            f"(row-level security), so a backup would lack them; nothing was started. "
            f'Lift it with: ALTER ROLE "{address.user}" BYPASSRLS;'
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(names[:3]) + more


async def _hold_still(connection: asyncpg.Connection) -> None:
    """Open the transaction whose snapshot is shared; the server's limits on long ones are lifted for it alone."""
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    await connection.execute(
        "SELECT set_config(name, '0', true) FROM pg_settings"
        " WHERE name IN ('statement_timeout', 'transaction_timeout', 'idle_in_transaction_session_timeout')"
    )
    await connection.execute(f"SET LOCAL lock_timeout = {_LOCK_TIMEOUT_MS}")


async def _tables(connection: asyncpg.Connection, counted: bool) -> dict[str, int] | dict[str, None]:
    if counted:
        return await count_tables(connection)
    return {qualified(schema, table): None for schema, table in await list_tables(connection)}

"""Databases of a running Postgres: each dumped whole as of one moment, while it is being written to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, Field, SecretStr, ValidationError, field_validator, model_validator

from memu_backup import words
from memu_backup.errors import CannotCheck, DamagedArchive, DatabaseError, RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.postgres_connection import Address, connect, count_tables, list_tables, qualified, refused_tables
from memu_backup.postgres_dump import STALL_S, is_finished, not_listed, write_dump
from memu_backup.postgres_tools import Tools, find_tools, list_dump
from memu_backup.sources import Reader, SourceSettings
from memu_backup.work import Stop, in_thread

if TYPE_CHECKING:
    import asyncpg

_QUESTION_TIMEOUT_S = 60.0
_LOCK_TIMEOUT_MS = 300_000
"""How long another program may keep a table to itself before the dump is given up."""

_SUFFIX = {"custom": ".dump", "plain": ".sql"}
_GLOBALS = "globals.sql"


class PostgresSettings(SourceSettings):
    asks_a_server: ClassVar[bool] = True
    kind: Literal["postgres"]
    url: SecretStr | None = Field(default=None, description="postgresql://user@host:5432/database")
    url_file: LocalPath | None = Field(default=None, description="a file that holds the url, instead of url")
    password_file: LocalPath | None = Field(default=None, description="a file that holds the password")
    databases: Literal["all"] | tuple[str, ...] = Field(
        default=(), description='names, or "all"; the one in the url unless said otherwise'
    )
    format: Literal["custom", "plain"] | None = Field(
        default=None, description="custom (for pg_restore) or plain SQL; custom unless place ends in .sql"
    )
    globals: bool | None = Field(
        default=None, description="also roles and their rights, as globals.sql; yes unless place is a file"
    )
    row_counts: bool = Field(default=True, description="count the rows of each table in the snapshot of the dump")

    @field_validator("url")
    @classmethod
    def _an_address(cls, url: SecretStr | None) -> SecretStr | None:
        if url is not None:
            Address.parse(url.get_secret_value())
        return url

    @field_validator("databases", mode="before")
    @classmethod
    def _names(cls, databases: Any) -> Any:
        if isinstance(databases, str) and databases != "all":
            raise ValueError('must be "all" or a list of names, such as ["synapse", "immich"]')
        if isinstance(databases, list | tuple) and len(set(map(str, databases))) < len(databases):
            raise ValueError("names a database twice")
        if isinstance(databases, list | tuple) and "" in databases:
            raise ValueError("holds an empty name")
        return databases

    @model_validator(mode="after")
    def _fits_together(self) -> PostgresSettings:
        if (self.url is None) == (self.url_file is None):
            raise ValueError("needs exactly one of url and url_file")
        if self.single_file:
            if self.databases == "all" or len(self.databases) > 1:
                raise ValueError(f"the place {self.place} is one file and holds one database; end it in a slash")
            if self.globals:
                raise ValueError(f"the place {self.place} is one file and has no room for globals; end it in a slash")
            if self.format == "custom" and str(self.place).endswith(".sql"):
                raise ValueError('a dump in custom format is no SQL; name it .dump, or set format = "plain"')
        return self

    @property
    def single_file(self) -> bool:
        return self.place is not None and not self.place.endswith("/")

    @property
    def dump_format(self) -> Literal["custom", "plain"]:
        return self.format or ("plain" if self.single_file and str(self.place).endswith(".sql") else "custom")

    @property
    def with_globals(self) -> bool:
        return not self.single_file if self.globals is None else self.globals

    def in_effect(self, name: str) -> dict[str, Any]:
        in_url = [Address.parse(self.url.get_secret_value()).database] if self.url else "the one that url_file names"
        follows = {"format": self.dump_format, "globals": self.with_globals, "databases": self.databases or in_url}
        return {**super().in_effect(name), **follows}


class _Globals(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    file: str


class _Dump(_Globals):
    format: Literal["custom", "plain"]
    encoding: str
    tables: dict[str, int | None]


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
class _Plan:
    """What a check found out and a capture goes by."""

    address: Address
    server_version: str
    tools: Tools
    databases: tuple[str, ...]
    role_passwords: bool
    warnings: tuple[str, ...]


class PostgresSource:
    kind: ClassVar[str] = "postgres"
    Settings: ClassVar[type[SourceSettings]] = PostgresSettings

    def __init__(
        self,
        name: str,
        settings: PostgresSettings,
        *,
        tool_folders: Sequence[Path] | None = None,
        stall_s: float = STALL_S,
    ) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self._settings = settings
        self._tool_folders = tool_folders
        self._stall_s = stall_s

    async def check(self) -> list[str]:
        return list((await self._plan()).warnings)

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        plan = await self._plan()
        s = self._settings
        dumps = [await self._dump(plan, database, stage) for database in plan.databases]
        details: dict[str, Any] = {
            "server_version": plan.server_version,
            "server_major": int(plan.server_version.split(".")[0]),
            "pg_dump_version": plan.tools.version,
            "pg_restore_major": plan.tools.major,
            "databases": dumps,
        }
        if self._settings.with_globals:
            details["globals"] = await self._dump_globals(plan, stage)
        each = " a database" if len(dumps) > 1 else ""
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(stage / self._file_name(plan.databases[0]) if s.single_file else stage, self.place),),
            consistency=f"pg_dump {plan.tools.version} in one snapshot{each}",
            details=details,
            warnings=plan.warnings,
        )

    def lives(self) -> str:
        return "its database server"

    async def landing(self, summary: SourceSummary) -> Path | None:
        raise RestoreError(f"source {self.name} cannot be put back yet")

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:
        raise RestoreError(f"source {self.name} cannot be put back yet")

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        try:
            details = _Details.model_validate(dict(summary.details))
        except ValidationError as error:
            raise DamagedArchive(
                "metadata.json does not say of its dumps what it should, so they cannot be checked or put back by it; "
                "was it changed by hand? Use another backup, or put them back by hand."
            ) from error
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

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        try:
            dumps = _Held.model_validate(dict(summary.details)).databases
        except ValidationError:
            return words.tree(summary, now, zone)
        counts = [rows for dump in dumps for rows in ([None] if dump.tables is None else dump.tables.values())]
        known = [rows for rows in counts if rows is not None]
        return words.databases(len(dumps), sum(known) if len(known) == len(counts) else None)

    def _address(self) -> Address:
        s = self._settings
        url = s.url.get_secret_value() if s.url else self._read("url_file", s.url_file)
        password = self._read("password_file", s.password_file) if s.password_file else None
        try:
            return Address.parse(url, password, owner=f"source {self.name}")
        except ValueError as error:
            raise DatabaseError(f"The address in {s.url_file} (source {self.name}) {error}.") from error

    def _read(self, key: str, path: Path | None) -> str:
        assert path is not None
        try:
            return path.read_text(errors="replace").strip()  # a decoding error would carry the secret along
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} is not there, so the databases of source {self.name} cannot be backed up. "
                f"Make this file, or correct sources.{self.name}.{key}."
            ) from error
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read, so the databases of source {self.name} cannot be backed up. "
                f"Correct sources.{self.name}.{key}, or give this user the right to read the file."
            ) from error

    async def _plan(self) -> _Plan:
        """Look at everything that a dump will need, in an order in which the first complaint is the helpful one."""
        address, listed = self._address(), self._settings.databases
        first = address.of(listed[0]) if listed and listed != "all" else address
        async with connect(first, command_timeout_s=_QUESTION_TIMEOUT_S) as connection:
            number = int(await connection.fetchval("SHOW server_version_num"))
            tools = await find_tools(number // 10_000, self._tool_folders)
            secrets_readable = await connection.fetchval("SELECT has_table_privilege('pg_authid', 'SELECT')")
            databases = await _every_database(connection) if listed == "all" else listed or (address.database,)
        for database in databases:
            async with connect(address.of(database), command_timeout_s=_QUESTION_TIMEOUT_S) as connection:
                await _require_rights(connection, address.of(database))
        warnings = []
        if self._settings.with_globals and not secrets_readable:
            warnings.append(
                f"{address.server} keeps the passwords of its users from user {address.user}, so {_GLOBALS} lacks "
                "them: after a restore they have to be set anew. A superuser could back them up."
            )
        version = f"{number // 10_000}.{number % 10_000}"
        return _Plan(address, version, tools, tuple(databases), secrets_readable, tuple(warnings))

    def _file_name(self, database: str) -> str:
        if self._settings.single_file:
            return self.place.rsplit("/", 1)[-1]
        safe = quote(database, safe=" ")
        if safe[0] in ".-" or safe + _SUFFIX[self._settings.dump_format] == _GLOBALS:
            safe = f"%{ord(safe[0]):02X}{safe[1:]}"
        return safe + _SUFFIX[self._settings.dump_format]

    def _place_of(self, file: Path) -> str:
        return self.place if self._settings.single_file else self.place + file.name

    async def _dump(self, plan: _Plan, database: str, folder: Path) -> dict[str, Any]:
        """Dump one database and count its rows, both in the snapshot of one transaction that is held all the while."""
        file = folder / self._file_name(database)
        address = plan.address.of(database)
        async with connect(address, command_timeout_s=self._stall_s) as connection:
            await _hold_still(connection)
            encoding = await connection.fetchval("SHOW server_encoding")
            snapshot_at = (await connection.fetchval("SELECT now()")).astimezone(UTC)
            snapshot = await connection.fetchval("SELECT pg_export_snapshot()")
            argv = [
                plan.tools.program("pg_dump"), f"--format={self._settings.dump_format}", f"--snapshot={snapshot}",
                f"--lock-wait-timeout={_LOCK_TIMEOUT_MS}",
            ]  # fmt: skip
            if self._settings.dump_format == "custom":
                # The archive compresses with several threads and a faster library; pg_dump has one and zlib.
                argv.append("--compress=0")
            try:
                async with asyncio.TaskGroup() as both:
                    both.create_task(write_dump(argv, address, file, self._stall_s))
                    counting = both.create_task(_tables(connection, self._settings.row_counts))
            except ExceptionGroup as failed:
                raise failed.exceptions[0] from None  # the other one was cancelled for it
        return {
            "name": database,
            "file": self._place_of(file),
            "format": self._settings.dump_format,
            "encoding": encoding,
            "snapshot_at": snapshot_at.isoformat(),
            "size_bytes": file.stat().st_size,
            "tables": counting.result(),
        }

    async def _dump_globals(self, plan: _Plan, folder: Path) -> dict[str, Any]:
        file = folder / _GLOBALS
        argv = [plan.tools.program("pg_dumpall"), "--globals-only"]
        if not plan.role_passwords:
            argv.append("--no-role-passwords")
        await write_dump(argv, plan.address.of(plan.databases[0]), file, self._stall_s)
        return {"file": self._place_of(file), "size_bytes": file.stat().st_size, "passwords": plan.role_passwords}


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


SOURCE = PostgresSource

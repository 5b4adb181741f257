"""A running Postgres, here or in a container: its databases as dumps, or the whole server as its files."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from copy import copy
from dataclasses import replace
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator

from memu_backup.crosscheck import CrossCheck
from memu_backup.errors import DatabaseError, SourceError
from memu_backup.files import shown
from memu_backup.model import Captured, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.postgres import back, by_copy, by_dump, names
from memu_backup.postgres import reach as reaching
from memu_backup.postgres.back import Change
from memu_backup.postgres.by_copy import ByCopy, CopyHome
from memu_backup.postgres.by_dump import ByDump, Wanted
from memu_backup.postgres.connection import Address
from memu_backup.postgres.dump import STALL_S
from memu_backup.postgres.reach import Here, InContainer, Reach, Server
from memu_backup.replacing import OnDisk, Prepared, Taking
from memu_backup.sources import Reader, Room, SourceSettings
from memu_backup.swap import Swap

_OF_DUMPS = frozenset({"databases", "format", "globals", "row_counts", "when_restored"})


class ChangeSettings(BaseModel):
    """One statement."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    sql: str = Field(min_length=1, description="what is done in each database that comes back and has the table")
    why: str = Field(default="", description='for whoever puts it back, as in "so that old sessions end"')


class PostgresSettings(SourceSettings):
    asks_a_server: ClassVar[bool] = True
    kind: Literal["postgres"]
    url: SecretStr | None = Field(default=None, description="postgresql://user@host:5432/database")
    url_file: LocalPath | None = Field(default=None, description="a file that holds the url, instead of url")
    container: str | None = Field(default=None, min_length=1, description="the Docker container that it runs in")
    socket: LocalPath | None = Field(default=None, description="where Docker listens; what DOCKER_HOST says")
    mode: Literal["dump", "basebackup"] = Field(
        default="dump", description="basebackup: all files of the server, as its own programs copy them while it runs"
    )
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

    when_restored: tuple[ChangeSettings, ...] = Field(
        default=(),
        description="SQL for a database that is put back, before it takes the place of the one that is there",
    )

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
        if self.url is not None and self.url_file is not None:
            raise ValueError("has both url and url_file; keep one of them")
        if self.url is None and self.url_file is None and self.container is None:
            raise ValueError("does not say where it is; add url, url_file or container")
        if self.mode == "basebackup":
            of_dumps = _OF_DUMPS & self.model_fields_set
            if of_dumps:
                raise ValueError(f'{min(of_dumps)} has no effect with mode = "basebackup", which copies it all')
            if self.single_file:
                raise ValueError(f"the place {self.place} is one file, and a server is many; end it in a slash")
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
        if self.mode == "basebackup":
            return {k: v for k, v in super().in_effect(name).items() if k not in _OF_DUMPS}
        in_url = [Address.parse(self.url.get_secret_value()).database] if self.url else "the one it names itself"
        follows = {"format": self.dump_format, "globals": self.with_globals, "databases": self.databases or in_url}
        return {**super().in_effect(name), **follows}


class PostgresSource(OnDisk):
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
        self._reach: Reach | None = None if tool_folders is None else Here(tool_folders)
        self._stall_s = stall_s
        self._checks: Sequence[CrossCheck] = ()

    async def check(self) -> list[str]:
        return await (await self._way()).check()

    async def programs(self) -> list[str]:
        """See ``checks.machine``."""
        return [f"{await (await self._way()).programs()} (source {self.name})"]

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        taken = await (await self._way()).take(stage)
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=taken.roots,
            consistency=taken.consistency,
            details=taken.details,
            warnings=taken.warnings,
        )

    async def answer(self, checks: Sequence[CrossCheck]) -> None:
        """See ``sources.Names``: by the first of its databases."""
        for check in checks:
            check.begin()
        try:
            first = self._by_dump(await self._server("asked")).first
        except SourceError as error:
            for check in checks:
                check.fail(str(error))
        else:
            await names.answer(first, checks)

    def asking(self, checks: Sequence[CrossCheck]) -> PostgresSource:
        """See ``sources.Names``: a copy of the server's files is of no moment that could be asked."""
        asking = copy(self)
        asking._checks = tuple(checks)
        return asking

    def lives(self) -> str:
        if self._settings.container:
            return f"the database in container {self._settings.container}"
        return "its database"

    async def landing(self, summary: SourceSummary) -> Path | None:
        return await self._copy_home().landing(summary) if by_copy.is_one(summary) else None

    async def in_the_way(self, summary: SourceSummary) -> list[str]:
        if by_copy.is_one(summary):
            return await self._copy_home().in_the_way(summary)
        return await self._by_dump(await self._server("put back")).in_the_way(summary)

    async def must_be_still(self, summary: SourceSummary, stopping: Collection[str]) -> None:
        """Who uses a database is sent away when it is exchanged; only its server has to run."""
        if by_copy.is_one(summary):
            home = self._copy_home()
            await home.must_be_off(await home.folder(summary), stopping)

    def changes(self, summary: SourceSummary) -> list[str]:
        """See ``Changing``."""
        return [] if by_copy.is_one(summary) else [shown(str(one)) for one in self._changes]

    @property
    def _changes(self) -> tuple[Change, ...]:
        return tuple(Change(one.sql, one.why) for one in self._settings.when_restored)

    def must_run(self, summary: SourceSummary) -> str:
        """See ``Replacing``."""
        return "" if by_copy.is_one(summary) else self._settings.container or ""

    async def room(self, summary: SourceSummary) -> Taking | None:
        """See ``TakingRoom``."""
        if by_copy.is_one(summary):
            return None
        return await self._by_dump(await self._server("put back")).room(summary)

    async def abandon(self, stamp: str) -> None:
        """See ``TakingRoom``."""
        await back.abandon(stamp, (await self._server("put back")).address)

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        if by_copy.is_one(summary):
            return Prepared(await self._copy_home().swaps(given, summary, stamp))
        return await self._by_dump(await self._server("put back")).prepare(given, summary, stamp)

    async def forth(self, one: Swap) -> None:
        if not one.of_databases:
            await self._copy_home().must_be_off(Path(one.home), ())
            await super().forth(one)
        else:
            await back.forth(one, (await self._server("put back")).address)

    async def back(self, one: Swap, *, whole: bool) -> Swap | None:
        if not one.of_databases:
            return await super().back(one, whole=whole)
        return await back.back(one, (await self._server("put back")).address, whole=whole)

    async def remove(self, one: Swap) -> None:
        if not one.of_databases:
            await super().remove(one)
        else:
            await back.drop(one.old, (await self._server("put back")).address)

    async def recalled(self, summary: SourceSummary) -> str:
        """See ``sources.Recalls``."""
        server = await self._server("asked")
        if by_copy.is_one(summary):
            await back.tables_of(server.address, server.address.database)
            return "answers"
        return await self._by_dump(server).recalled(summary)

    def _copy_home(self) -> CopyHome:
        s, owner = self._settings, f"source {self.name}"
        return CopyHome(owner, s.container, s.socket, None if s.container else self._asked(owner, "put back"))

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        if by_copy.is_one(summary):
            return await by_copy.verify(summary, reader)
        return await by_dump.verify(summary, reader)

    @staticmethod
    def entries(summary: SourceSummary) -> int | None:
        return None if by_copy.is_one(summary) else by_dump.entries(summary)

    @staticmethod
    def rehearsal_bytes(summary: SourceSummary) -> int:
        return 0 if by_copy.is_one(summary) else by_dump.rehearsal_bytes(summary)

    @staticmethod
    async def rehearse(given: Path, summary: SourceSummary, room: Room) -> list[str]:
        if by_copy.is_one(summary):
            return await by_copy.rehearse(summary)
        return await by_dump.rehearse(given, summary, room)

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        if by_copy.is_one(summary):
            return by_copy.told(summary, now, zone)
        return by_dump.told(summary, now, zone)

    async def _way(self) -> ByDump | ByCopy:
        """How it is copied. Raises SourceError."""
        server = await self._server("backed up")
        if self._settings.mode == "basebackup":
            return ByCopy(server, self.place, here=self._settings.container is None)
        return self._by_dump(server)

    def _by_dump(self, server: Server) -> ByDump:
        s = self._settings
        wanted = Wanted(self.place, s.databases, s.dump_format, s.with_globals, s.row_counts, self._changes)
        return ByDump(server, wanted, self._checks)

    async def _server(self, to_be: str) -> Server:
        """Where it is. Raises SourceError."""
        s, owner = self._settings, f"source {self.name}"
        asked, reach = self._asked(owner, to_be), self._reach
        if s.container is None:
            assert asked
            return Server(asked, reach or Here(), self._stall_s)
        unable = f"so {owner} cannot be {to_be}"
        address = await reaching.in_container(s.container, s.socket, asked, unable, owner)
        if asked is None and s.password_file:
            address = replace(address, password=self._read("password_file", s.password_file, to_be))
        return Server(address, reach or InContainer(s.container, s.socket, unable), self._stall_s)

    def _asked(self, owner: str, to_be: str) -> Address | None:
        """What the settings say of the address; None where that is left to the container."""
        s = self._settings
        if s.url is None and s.url_file is None:
            return None
        url = s.url.get_secret_value() if s.url else self._read("url_file", s.url_file, to_be)
        password = self._read("password_file", s.password_file, to_be) if s.password_file else None
        try:
            return Address.parse(url, password, owner=owner)
        except ValueError as error:
            raise DatabaseError(f"The address in {s.url_file} (source {self.name}) {error}.") from error

    def _read(self, key: str, path: Path | None, to_be: str) -> str:
        assert path is not None
        try:
            return path.read_text(errors="replace").strip()  # a decoding error would carry the secret along
        except FileNotFoundError as error:
            raise SourceError(
                f"{path} is not there, so the databases of source {self.name} cannot be {to_be}. "
                f"Make this file, or correct sources.{self.name}.{key}."
            ) from error
        except OSError as error:
            raise SourceError(
                f"{path} cannot be read, so the databases of source {self.name} cannot be {to_be}. "
                f"Correct sources.{self.name}.{key}, or give this user the right to read the file."
            ) from error


SOURCE = PostgresSource

"""A running Redis or Valkey, here or in a container: a snapshot of one moment, over the wire, as a replica gets it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Collection, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, NonNegativeInt, ValidationError, model_validator

from memu_backup import docker_engine, files, swap, words
from memu_backup.errors import DatabaseAway, DatabaseError, RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.redis import home, trial
from memu_backup.redis.connection import Server, connect, listens
from memu_backup.redis.rdb import Passing
from memu_backup.redis.seen import Seen, look_at, losses
from memu_backup.replacing import OnDisk, Prepared
from memu_backup.sources import Reader, Room, SourceSettings, look
from memu_backup.swap import Swap
from memu_backup.work import Stop, in_thread

_SILENT_S, _PREPARING_S = 60.0, 4 * 3600.0
_BACKUPS = "the backups"
_LOG = home.Log()
_FOLDERS_FROM = 7
_FILE, _FOLDER = "dump.rdb", "/data"
"""As the images of Redis and Valkey have it."""


class RedisSettings(SourceSettings):
    only_a_file: ClassVar[bool] = True
    asks_a_server: ClassVar[bool] = True
    kind: Literal["redis"]
    host: str | None = Field(default=None, min_length=1, description="the machine that it runs on, such as localhost")
    unixsocket: LocalPath | None = Field(default=None, description="its socket, instead of host")
    container: str | None = Field(default=None, min_length=1, description="the Docker container that it runs in")
    port: int = Field(default=6379, ge=1, le=65535, description="where it listens, on its machine or in its container")
    socket: LocalPath | None = Field(default=None, description="where Docker listens; what DOCKER_HOST says")
    username: str | None = Field(default=None, min_length=1, description="who we are there; its default user")
    password_file: LocalPath | None = Field(default=None, description="a file that holds the password")
    path: LocalPath | None = Field(
        default=None, description="where the server keeps its own file, such as /var/lib/redis/dump.rdb, to put it back"
    )

    @model_validator(mode="after")
    def _fits_together(self) -> RedisSettings:
        given = [name for name in ("host", "unixsocket", "container") if getattr(self, name)]
        if not given:
            raise ValueError("does not say where it is; add host, unixsocket or container")
        if len(given) > 1:
            raise ValueError(f"has both {given[0]} and {given[1]}; keep one of them")
        if self.username and not self.password_file:
            raise ValueError("has username, which has no effect without password_file")
        return self

    def place_of(self, name: str) -> str:
        """One file."""
        return self.place or f"{name}.rdb"


class _Details(BaseModel):
    """What a backup tells of its snapshot; it may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    keys: dict[str, NonNegativeInt] | None = None
    append_only: bool = True
    append_file: str = _LOG.file
    append_folder: str | None = _LOG.folder
    kept_at: str = ""

    @classmethod
    def of(cls, summary: SourceSummary) -> _Details:
        """Where it is not as we write it, nothing is known."""
        try:
            return cls.model_validate(dict(summary.details))
        except ValidationError:
            return cls()


class RedisSource(OnDisk):
    kind: ClassVar[str] = "redis"
    Settings: ClassVar[type[SourceSettings]] = RedisSettings

    def __init__(
        self, name: str, settings: RedisSettings, *, silent_s: float = _SILENT_S, preparing_s: float = _PREPARING_S
    ) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self._settings = settings
        self._silent_s = silent_s
        self._preparing_s = preparing_s

    async def check(self) -> list[str]:
        server = await self._server("backed up")
        async with connect(server) as connection:
            return self._warnings(await look_at(connection, server), server)

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        server = await self._server("backed up")
        file = stage / Path(self.place).name
        seen, passed = await self._taken(server, file)
        if problem := passed.problem():
            raise DatabaseError(
                f"What {server.called} sent {problem}, {server.unable}. Start it once more; where it stays so, see the "
                "server's log."
            )
        warnings = self._warnings(seen, server)
        if not passed.summed:
            warnings.append(
                f"{server.called} computes no checksum (rdbchecksum is no), so of what it sent only the beginning and "
                "the end could be looked at."
            )
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(file, self.place),),
            consistency="a snapshot of one moment, as a replica gets it",
            details={
                "server": seen.program,
                "role": seen.info.get("role", ""),
                "keys": seen.keys,
                "rdb_version": passed.version,
                "checksum": passed.summed,
                "append_only": seen.append_only,
                "append_file": seen.config.get("appendfilename", _LOG.file),
                "append_folder": seen.config.get("appenddirname", _LOG.folder) if seen.major >= _FOLDERS_FROM else None,
                "kept_at": seen.kept_at,
            },
            warnings=tuple(warnings),
        )

    async def _taken(self, server: Server, file: Path) -> tuple[Seen, Passing]:
        """Raises DiskFull and its like, SourceError."""
        passing = Passing()
        async with connect(server) as connection:
            seen = await look_at(connection, server)
            with files.writer(file, _BACKUPS) as write:

                def take(block: bytes) -> None:
                    passing.add(block)
                    write(block)

                await connection.snapshot(
                    lambda block: in_thread(partial(take, block), Stop(), gentle=True),
                    silent_s=self._silent_s,
                    preparing_s=self._preparing_s,
                )
        return seen, passing

    def _warnings(self, seen: Seen, server: Server) -> list[str]:
        path, there = self._settings.path, seen.kept_at
        warnings = losses(seen, server.called)
        if path and there and not self._settings.container and path.resolve() != Path(there).resolve():
            warnings.append(
                f"{server.called} keeps its file at {files.shown(there)}, and would not find it at {path} when it is "
                f"put back. Correct sources.{self.name}.path."
            )
        return warnings

    # --- where it is -------------------------------------------------------------------------------------------------

    async def _server(self, to_be: str) -> Server:
        """Raises SourceError."""
        s, unable = self._settings, f"so source {self.name} cannot be {to_be}"
        password = await look(self.name, partial(self._password, unable))
        at = partial(Server, unable=unable, username=s.username, password=password)
        if s.unixsocket:
            return at(f"Redis at {s.unixsocket}", unixsocket=s.unixsocket)
        if s.host:
            return at(f"Redis at {s.host}:{s.port}", host=s.host, port=s.port)
        return at(f"Redis in container {s.container}", host=await self._host(unable), port=s.port)

    async def _host(self, unable: str) -> str:
        """Raises DatabaseAway where it does not run, DatabaseError where there is none or no way to it, EngineError."""
        s = self._settings
        async with docker_engine.engine(s.socket, unable) as docker:
            told = await docker_engine.container(docker, str(s.container))
            if told is None:
                there = await docker_engine.those_that_run(docker)
                raise DatabaseError(
                    f"Docker has no container {s.container} ({there}), {unable}. Correct sources.{self.name}.container."
                )
        if not told["State"]["Running"]:
            raise DatabaseAway(f"Container {s.container} does not run, {unable}. Start it: docker start {s.container}")
        host = docker_engine.host_of(told)
        if host is None:
            raise DatabaseError(
                f"Container {s.container} is on no network that this machine reaches, {unable}. Give it one, or "
                "publish its port and name that with host and port instead of container."
            )
        return host

    def _password(self, unable: str) -> str | None:
        file = self._settings.password_file
        if file is None:
            return None
        try:
            password = file.read_text(errors="replace").strip()  # a decoding error would carry the secret along
        except OSError as error:
            why = "is not there" if isinstance(error, FileNotFoundError) else "cannot be read"
            raise SourceError(f"{file} {why}, {unable}. Correct sources.{self.name}.password_file.") from error
        if not password:
            raise SourceError(f"{file} is empty, {unable}. Write the server's password into it.")
        return password

    # --- and back ----------------------------------------------------------------------------------------------------

    def homes(self) -> Sequence[Path]:
        return (self._settings.path,) if self._settings.path else ()

    def lives(self) -> str:
        s = self._settings
        return str(s.path or (f"{_FILE} of container {s.container}" if s.container else "its server's own file"))

    async def landing(self, summary: SourceSummary) -> Path:
        path = await self._home(summary)
        return await look(self.name, lambda: swap.landing(path))

    async def in_the_way(self, summary: SourceSummary) -> list[str]:
        path = await self._home(summary)
        return await look(self.name, lambda: [str(one) for one in home.loaded(path) if os.path.lexists(one)])

    async def must_be_still(self, summary: SourceSummary, stopping: Collection[str]) -> None:  # noqa: ARG002
        await self._must_be_off(stopping)

    async def forth(self, one: Swap) -> None:
        await self._must_be_off(())
        await super().forth(one)

    async def _must_be_off(self, stopping: Collection[str]) -> None:
        s = self._settings
        if not s.container:
            if not stopping and await listens(await self._server("put back")):
                raise self._runs("systemctl stop redis-server")
        elif s.container not in stopping:
            async with docker_engine.engine(s.socket, f"so source {self.name} cannot be put back") as docker:
                told = await docker_engine.container(docker, s.container)
            if told and told["State"]["Running"]:
                raise self._runs(f"docker stop {s.container}")

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        path = await self._home(summary)
        await look(self.name, partial(home.give_away, given, path.parent, f"source {self.name}"))
        details = _Details.of(summary)

        def swaps() -> list[Swap]:
            """What it would load instead goes first; with ``appendonly yes`` it loads its log alone, which has to hold
            the same then.
            """
            told = home.Log.of(details.append_file, details.append_folder) if details.append_only else None
            logs = {one: one.with_name(f".{one.name}.memu-backup") for one in home.loaded(path) if one != path}
            if log := home.log_of(path, told):
                logs[path.parent / log.name] = home.as_log(given, log)
            return [*(swap.one(old, new, stamp) for old, new in logs.items()), swap.one(path, given, stamp)]

        return Prepared(tuple(await look(self.name, swaps)))

    async def _home(self, summary: SourceSummary) -> Path:
        """Where its file is to lie. Raises RestoreError, SourceError where nobody can see."""
        s = self._settings
        path = await self._path_in_container() if s.container else s.path
        if path is None:
            was = files.shown(_Details.of(summary).kept_at)
            hint = f" (it was {was})" if was else ""
            raise RestoreError(
                f"Where the server of source {self.name} keeps its file nobody knows{hint}; nothing was changed. Name "
                f"it in sources.{self.name}.path, or restore to a folder with --to."
            )
        await look(self.name, partial(home.must_be_fit, path, f"source {self.name}"))
        return path

    async def _path_in_container(self) -> Path | None:
        """What is mounted where its image keeps the file; of no use is a folder that goes with the container."""
        s = self._settings
        async with docker_engine.engine(s.socket, f"so source {self.name} cannot be put back") as docker:
            told = await docker_engine.container(docker, str(s.container))
            if told is None:
                return s.path
            folder = await docker_engine.data_folder(docker, told, told["Config"].get("WorkingDir") or _FOLDER)
        return s.path or (folder and folder / _FILE)

    async def recalled(self, summary: SourceSummary) -> str:
        """See ``sources.Recalls``."""
        server, told = await self._server("looked at"), self.entries(summary)
        async with connect(server) as connection:
            number = sum((await look_at(connection, server)).keys.values())
        if told and not number:
            raise DatabaseError(f"{server.called} is empty, and has {words.keys(told)} in the backup. See its log.")
        return words.keys_recalled(number, told)

    def _runs(self, stop: str) -> RestoreError:
        return RestoreError(
            f"The server of source {self.name} runs, and would write over what is put back as soon as it ends; nothing "
            f"was changed. Stop it first: {stop}"
        )

    # --- in a backup -------------------------------------------------------------------------------------------------

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        stop, passing = Stop(), Passing()

        def read() -> None:
            for block in reader.content(summary.place):
                stop.check()
                passing.add(bytes(block))

        await in_thread(read, stop, gentle=True)
        problem = passing.problem()
        return [f"{files.shown(summary.place)} {problem}."] if problem else []

    @staticmethod
    def entries(summary: SourceSummary) -> int | None:
        keys = _Details.of(summary).keys
        return None if keys is None else sum(keys.values())

    @staticmethod
    def rehearsal_bytes(summary: SourceSummary) -> int:  # noqa: ARG004  it is loaded into memory
        return 0

    @staticmethod
    async def rehearse(given: Path, summary: SourceSummary, room: Room) -> list[str]:
        if given.is_symlink() or not given.is_file():
            return [f"{files.shown(summary.place)} is not there."]
        try:
            keys = await trial.load(given, room.folder)
        except DatabaseError as error:
            return [f"{files.shown(summary.place)} {error}."]
        expected = RedisSource.entries(summary)
        # Keys run out, and were counted a moment before the snapshot: only that nothing comes back tells anything.
        return [f"{files.shown(summary.place)} comes back empty."] if expected and not keys else []

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        keys = _Details.of(summary).keys
        return words.tree(summary, now, zone) if keys is None else words.keys(sum(keys.values()))


SOURCE = RedisSource

"""A whole Postgres server as its files, copied by pg_basebackup while it runs; and the way back, into a server that is
off. https://www.postgresql.org/docs/current/app-pgbasebackup.html
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memu_backup import docker_engine, moving, swap, words
from memu_backup.errors import CannotCheck, DamagedArchive, DatabaseError, RestoreError
from memu_backup.model import Root, SourceSummary
from memu_backup.postgres.connection import Address, connect
from memu_backup.postgres.dump import write_copy
from memu_backup.postgres.reach import Server, Taken
from memu_backup.postgres.tools import Tools
from memu_backup.swap import Swap
from memu_backup.work import Stop, in_thread

if TYPE_CHECKING:
    from memu_backup.sources import Reader

MODE = "basebackup"

_QUESTION_TIMEOUT_S = 60.0
_MOST_BYTES = 4096


class _Details(BaseModel):
    """What is told of a copy, in a backup that may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    server_version: str
    server_major: int = Field(ge=1, le=999)
    data_folder: str = Field(pattern="^/")


@dataclass(frozen=True, slots=True)
class ByCopy:
    """What a source does whose ``mode`` is "basebackup"; ``here`` where the programs of this machine do it."""

    server: Server
    place: str
    here: bool

    async def check(self) -> list[str]:
        await self._look()
        return []

    async def programs(self) -> str:
        details, tools = await self._look()
        return f"pg_basebackup {tools.version} for PostgreSQL {details.server_version}"

    async def take(self, stage: Path) -> Taken:
        details, tools = await self._look()
        await write_copy(self.server.reach, tools, self.server.address, stage, self.server.stall_s)
        if self.here:
            await in_thread(lambda: _as_owned_there(stage, Path(details.data_folder)), Stop())
        else:
            owner = (stage / "PG_VERSION").stat()  # the tar tells of the files, and not of the folder that holds them
            os.chown(stage, owner.st_uid, owner.st_gid)
        return Taken(
            roots=(Root(stage, self.place),),
            consistency=f"pg_basebackup {tools.version}, with the write-ahead log that makes it whole",
            details={"mode": MODE, **details.model_dump()},
        )

    async def _look(self) -> tuple[_Details, Tools]:
        """All that a copy will need. Raises DatabaseError."""
        address = self.server.address
        async with connect(address, command_timeout_s=_QUESTION_TIMEOUT_S) as connection:
            number = int(await connection.fetchval("SHOW server_version_num"))
            allowed = await connection.fetchval(
                "SELECT rolsuper OR rolreplication FROM pg_roles WHERE rolname = current_user"
            )
            folder = await connection.fetchval("SELECT setting FROM pg_settings WHERE name = 'data_directory'")
            elsewhere = await connection.fetchval(
                "SELECT spcname FROM pg_tablespace WHERE pg_tablespace_location(oid) <> '' LIMIT 1"
            )
            level = await connection.fetchval("SHOW wal_level")
        user = address.user
        if not allowed or not folder:
            raise DatabaseError(
                f"{address.server} does not let user {user} copy it as a whole; nothing was started. Allow it, for "
                f'example with: ALTER ROLE "{user}" REPLICATION; GRANT pg_read_all_settings TO "{user}";'
            )
        if elsewhere:
            raise DatabaseError(
                f"{address.server} keeps tables outside of its own folder (tablespace {elsewhere}), so it cannot be "
                'copied as a whole; nothing was started. Use mode = "dump".'
            )
        if level == "minimal":
            raise DatabaseError(
                f"{address.server} writes too little down to be copied while it runs (wal_level = minimal); nothing "
                'was started. Set wal_level = replica and restart it, or use mode = "dump".'
            )
        tools = await self.server.reach.tools(number // 10_000)
        details = _Details(
            server_version=f"{number // 10_000}.{number % 10_000}", server_major=number // 10_000, data_folder=folder
        )
        return details, tools


@dataclass(frozen=True, slots=True)
class CopyHome:
    """Where a copy goes back to: the folder of a server that is off, of a ``container`` or of this machine."""

    owner: str
    container: str | None
    socket: Path | None
    address: Address | None

    async def folder(self, summary: SourceSummary) -> Path:
        """Raises RestoreError, EngineError."""
        inside = _details(summary).data_folder
        if self.container is None:
            return self._on_this_machine(Path(inside))
        async with docker_engine.engine(self.socket, f"so {self.owner} cannot be put back") as docker:
            told = await docker_engine.container(docker, self.container)
            folder = await docker_engine.data_folder(docker, told, inside) if told else None
        if told is None:
            raise RestoreError(
                f"Docker has no container {self.container} ({self.owner}), so it is not known where its files belong; "
                "nothing was changed. Make it without starting it: docker compose create"
            )
        if folder is None:
            raise RestoreError(
                f"Container {self.container} ({self.owner}) keeps {inside} in no volume and no folder of this machine; "
                "nothing was changed. Restore it to a folder with --to."
            )
        return folder

    def _on_this_machine(self, folder: Path) -> Path:
        if self.address and not (self.address.host.startswith("/") or self.address.host in ("localhost", "127.0.0.1")):
            raise RestoreError(
                f"{self.address.server} runs on another machine, where its files cannot be put back from here; nothing "
                "was changed. Restore them to a folder with --to, and take them there."
            )
        return folder

    async def landing(self, summary: SourceSummary) -> Path:
        return await asyncio.to_thread(swap.landing, await self.folder(summary))

    async def in_the_way(self, summary: SourceSummary) -> list[str]:
        folder = await self.folder(summary)
        return [] if await asyncio.to_thread(moving.is_free, folder) else [str(folder)]

    async def must_be_off(self, folder: Path, stopping: Collection[str]) -> None:
        """Raises RestoreError."""
        if self.container is None:
            if not stopping and await asyncio.to_thread(_runs_in, folder):
                raise RestoreError(
                    f"The server of {self.owner} runs in {folder}, and its files are not changed meanwhile; nothing "
                    "was changed. Stop it first: systemctl stop postgresql"
                )
            return
        if self.container in stopping:
            return
        async with docker_engine.engine(self.socket, f"so {self.owner} cannot be put back") as docker:
            told = await docker_engine.container(docker, self.container)
        if told and told["State"]["Running"]:
            raise RestoreError(
                f"Container {self.container} ({self.owner}) runs, and its files are not changed meanwhile; nothing was "
                f"changed. Stop it first: docker stop {self.container}"
            )

    async def swaps(self, given: Path, summary: SourceSummary, stamp: str) -> tuple[Swap, ...]:
        return await asyncio.to_thread(swap.whole, await self.folder(summary), given, stamp)


def _as_owned_there(copied: Path, data: Path) -> None:
    """The programs of this machine write as us; the server wants its files back as its own."""
    try:
        owner = data.stat()
    except OSError:  # another machine's, or none of this user's business
        return
    if os.geteuid() != 0 or (owner.st_uid, owner.st_gid) == (0, 0):
        return
    for path in (copied, *copied.rglob("*")):
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)


def _runs_in(folder: Path) -> bool:
    """By its lock file, https://www.postgresql.org/docs/current/storage-file-layout.html."""
    try:
        pid = int((folder / "postmaster.pid").read_text().split()[0])
    except (OSError, ValueError, IndexError):
        return False
    return Path(f"/proc/{pid}").exists()


def is_one(summary: SourceSummary) -> bool:
    return summary.details.get("mode") == MODE


def _details(summary: SourceSummary) -> _Details:
    try:
        told = {name: summary.details.get(name) for name in _Details.model_fields}
        return _Details.model_validate(told)
    except ValidationError as error:
        raise DamagedArchive(
            "metadata.json does not say of its database server what it should, so it cannot be checked or put back by "
            "it; was it changed by hand? Use another backup, or put it back by hand."
        ) from error


async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
    """What ``Source.verify`` says of a copy: is it one of the version that it claims, and is its label there?"""
    details, stop = _details(summary), Stop()

    def first_bytes(name: str) -> bytes:
        found = b""
        for block in reader.content(summary.place + name):
            stop.check()
            found += bytes(block)
            if len(found) > _MOST_BYTES:
                break
        return found

    version = await in_thread(lambda: first_bytes("PG_VERSION"), stop)
    label = await in_thread(lambda: first_bytes("backup_label"), stop)
    problems = []
    if version.strip() != str(details.server_major).encode():
        problems.append(f"{summary.place}PG_VERSION is not that of PostgreSQL {details.server_major}.")
    if b"START WAL LOCATION" not in label:
        problems.append(f"{summary.place}backup_label does not say where its write-ahead log begins.")
    return problems


async def rehearse(summary: SourceSummary) -> list[str]:
    """What ``Rehearses.rehearse`` does with a copy: only the server that it comes from could start it."""
    raise CannotCheck(
        f"The whole database server was compared byte by byte, and not started: that takes PostgreSQL "
        f"{_details(summary).server_major} itself, with all that is installed there."
    )


def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
    """What ``Source.told`` says of a copy."""
    try:
        major = _details(summary).server_major
    except DamagedArchive:
        return words.tree(summary, now, zone)
    return words.database_server(major, summary.size_bytes)

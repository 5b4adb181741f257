"""Loads dumps into a server that is thrown away, and compares what came back with what the dumps are said to hold."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import re
import shutil
import socket
import uuid
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memu_backup import docker_engine
from memu_backup.crosscheck import CrossCheck
from memu_backup.errors import CannotCheck, DatabaseError, EngineError, MemuError, RestoreError
from memu_backup.postgres import back, names, tools
from memu_backup.postgres.connection import Address, connect, count_tables
from memu_backup.postgres.server import PostgresServer
from memu_backup.work import Stop, in_thread

if TYPE_CHECKING:
    import asyncpg

log = logging.getLogger(__name__)

_HASTY = {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off", "max_wal_size": "512MB"}
"""It is thrown away: nothing has to outlast a power cut."""

_UP_S = 120.0
_LABEL = "memu-backup.drill"
_ROLES = 50
_NAMED = 3
_MAINTENANCE = "postgres"
_BLOCK_BYTES = 1 << 20

_OURS = re.compile(
    r"(collation|tablespace|access method|operator (class|family)|text search \w+|language) .*does not exist"
    r"|unrecognized configuration parameter|out of memory|No space left|[cC]onnection|is not available"
    r"|could not (access file|open extension|load library)|unsupported version"
)
"""What a server says that lacks something, which says nothing against the dump."""


@dataclass(frozen=True, slots=True, eq=False)
class Dump:
    """A dump that was unpacked at ``file``. ``tables`` are those in it with their rows, None where nobody counted."""

    name: str
    file: Path
    custom: bool
    encoding: str
    collate: str
    ctype: str
    tables: Mapping[str, int | None]


@dataclass(frozen=True, slots=True)
class Means:
    """``folder`` is for our own Postgres; where that lacks extensions, ``image`` or the server at ``url`` is used. Each
    of the ``checks`` is answered by its database, once that was loaded.
    """

    folder: Path
    image: str | None
    url: str | None = field(repr=False)
    checks: Sequence[CrossCheck]


async def load(dumps: Sequence[Dump], roles: Path | None, major: int, means: Means) -> list[str]:
    """Load each into a server of its own kind; problems, a sentence each.

    ``roles`` is what pg_dumpall has written, ``major`` the version of the programs that wrote them. Raises CannotCheck.
    """
    wanted = {dump: await _extensions(dump, major) for dump in dumps}
    problems: list[str] = []
    unseen: CannotCheck | None = None
    async with _embedded(means.folder) as server:
        there = await _available(server)
        plain = [dump for dump in dumps if wanted[dump] <= there]
        try:
            problems += await _loaded(server, plain, roles, major, means.checks, ours=True)
        except CannotCheck as error:
            unseen = error
    if others := [dump for dump in dumps if not wanted[dump] <= there]:
        lacking = set().union(*(wanted[dump] for dump in others)) - there
        try:
            async with _another(means, others, lacking) as server:
                if still := lacking - await _available(server):
                    raise CannotCheck(
                        f"{_databases(others)} could only be compared, not loaded: the server named in [drill] lacks "
                        f"the extension{_s(still)} {', '.join(sorted(still))}, too. Name one that has all of them."
                    )
                problems += await _loaded(server, others, roles, major, means.checks, ours=means.image is not None)
        except CannotCheck as error:
            unseen = unseen or error
    if unseen and not problems:
        raise unseen
    return problems


async def _loaded(
    server: Address,
    dumps: Sequence[Dump],
    roles: Path | None,
    major: int,
    checks: Sequence[CrossCheck],
    *,
    ours: bool,
) -> list[str]:
    """On a server that is not ``ours`` to throw away no roles are made.

    Raises CannotCheck where one could not be loaded for want of something, and none is known to be wrong.
    """
    problems: list[str] = []
    unseen: CannotCheck | None = None
    if roles and dumps and ours:
        try:
            for left_out in await back.roles(roles, server, major):
                log.debug("%s", left_out)
        except (RestoreError, UnicodeDecodeError) as error:
            problems.append(f"The roles in {roles.name} could not be loaded: {_why(error)}.")
    for dump in dumps:
        try:
            asked = [check for check in checks if check.database == dump.name]
            problems += await _tried(server, dump, major, asked, ours=ours)
        except CannotCheck as error:
            unseen = unseen or error
        except DatabaseError as error:
            unseen = unseen or CannotCheck(f"Database {dump.name} could only be compared, not loaded: {_why(error)}.")
    if unseen and not problems:
        raise unseen
    return problems


async def _tried(server: Address, dump: Dump, major: int, checks: Sequence[CrossCheck], *, ours: bool) -> list[str]:
    if not dump.file.is_file() or dump.file.is_symlink():
        return [f"The dump of database {dump.name} is not there."]
    scratch = f"{_prefix()}{uuid.uuid4().hex[:8]}"
    for _ in range(_ROLES):
        await _create(server, scratch, dump)
        try:
            await tools.put_back(dump.file, server.of(scratch).secret_url, major=major)
            async with connect(server.of(scratch)) as connection, connection.transaction(isolation="repeatable_read"):
                problems = _differences(dump, await count_tables(connection))
            for check in checks:
                check.begin()
            await names.answer(server.of(scratch), checks)
            return problems
        except RestoreError as error:
            # One that stands alone is loaded at once, and knows nobody of those whose tables they are.
            missing = re.search(r'role "((?:[^"]|"")+)" does not exist', str(error))
            if missing is None:
                return _meant(dump, error)
            if not ours:
                raise CannotCheck(
                    f"Database {dump.name} could only be compared, not loaded: the server named in [drill] has no role "
                    f"{missing[1]}, and none is made there. Make it, or use postgres_image instead."
                ) from error
            await _create_role(server, missing[1])
        finally:
            await _drop(server, scratch)
    raise CannotCheck(f"Database {dump.name} could only be compared, not loaded: too many roles are missing.")


def _meant(dump: Dump, error: MemuError) -> list[str]:
    """Raises CannotCheck where the server is to blame."""
    why = _why(error)
    if _OURS.search(why):
        raise CannotCheck(
            f"Database {dump.name} could only be compared, not loaded: the throwaway server cannot take it ({why}). "
            "Name one that can in [drill], with postgres_image."
        )
    return [f"The dump of database {dump.name} cannot be loaded: {why}."]


def _why(error: Exception) -> str:
    told = str(error)
    found = re.search(r"could not be put back[^:]*: (.*?)\. (The backup itself|Nothing else)", told, re.DOTALL)
    return (found[1] if found else told).removesuffix(".")


def _differences(dump: Dump, found: Mapping[str, int]) -> list[str]:
    missing = sorted(table for table in dump.tables if table not in found)
    other = sorted(t for t, rows in dump.tables.items() if rows is not None and t in found and found[t] != rows)
    problems = []
    if missing:
        problems.append(f"Database {dump.name} comes back without {_some(missing)}.")
    if other:
        told = [f"{found[table]:,} rows in {table} instead of {dump.tables[table]:,}" for table in other]
        problems.append(f"Database {dump.name} comes back with {_some(told)}.")
    return problems


# --- which extensions -------------------------------------------------------------------------------------------------


async def _extensions(dump: Dump, major: int) -> set[str]:
    """Those that a dump makes; none where it cannot be read, which its loading will tell."""
    stop = Stop()
    if not dump.custom:
        return await in_thread(lambda: _created(dump.file, stop), stop)
    try:
        listing = await tools.list_dump(_blocks(dump.file), major)
    except (DatabaseError, CannotCheck, OSError):
        return set()
    return {line.split(" EXTENSION - ")[1].rstrip(" ") for line in listing if " EXTENSION - " in line}


def _created(file: Path, stop: Stop) -> set[str]:
    """They stand before the first rows."""
    found = set()
    with suppress(OSError), file.open("rb") as lines:
        for line in lines:
            stop.check()
            if line.startswith(b"COPY "):
                break
            if made := re.match(rb'CREATE EXTENSION IF NOT EXISTS "?([^"\s;]+)', line):
                found.add(made[1].decode(errors="replace"))
    return found


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as opened:
        while block := opened.read(_BLOCK_BYTES):
            yield block


async def _available(server: Address) -> set[str]:
    async with connect(server) as connection:
        return {row[0] for row in await connection.fetch("SELECT name FROM pg_available_extensions")}


# --- servers ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _embedded(folder: Path) -> AsyncIterator[Address]:
    server = PostgresServer(folder / "postgres", _HASTY)
    try:
        await server.start()
    except (DatabaseError, OSError) as error:
        raise CannotCheck(f"The dumps could only be compared, not loaded. {error}") from error
    try:
        yield Address.parse(server.url())
    finally:
        await server.stop()
        if server.socket_folder != server.folder:
            shutil.rmtree(server.socket_folder, ignore_errors=True)


@asynccontextmanager
async def _another(means: Means, dumps: Sequence[Dump], lacking: set[str]) -> AsyncIterator[Address]:
    """The server that the settings offer for what ours cannot do. Raises CannotCheck."""
    if means.image:
        async with _in_container(means.image, means.folder) as server:
            yield server
    elif means.url:
        server = Address.parse(means.url, owner="drill.postgres_url").of(_MAINTENANCE)
        try:
            async with connect(server) as connection:
                await _sweep(connection, _prefix())
        except DatabaseError as error:
            raise CannotCheck(f"{_databases(dumps)} could only be compared, not loaded. {error}") from error
        yield server
    else:
        raise CannotCheck(
            f"{_databases(dumps)} could only be compared, not loaded: our own Postgres lacks the "
            f"extension{_s(lacking)} {', '.join(sorted(lacking))}. Name a server that has what it needs in [drill], "
            "such as postgres_image with the image that the database itself runs in."
        )


@asynccontextmanager
async def _in_container(image: str, folder: Path) -> AsyncIterator[Address]:
    """A container without a network, which is reached by its socket; nothing is pulled for it."""
    unable = f"so what needs the image {image} could only be compared"
    shared = folder / "container"
    (shared / "socket").mkdir(parents=True)
    for one in (shared, shared / "socket"):
        one.chmod(0o777)  # the server runs as somebody else; what is above is closed to all others
    wanted: dict[str, Any] = {
        "Image": image,
        "Env": ["POSTGRES_HOST_AUTH_METHOD=trust", "POSTGRES_USER=postgres", "POSTGRES_PASSWORD=drill",
                "POSTGRES_DB=postgres", "PGDATA=/drill/data"],
        "Cmd": ["-c", "listen_addresses=", "-c", "fsync=off",
                "-c", "unix_socket_directories=/var/run/postgresql,/drill/socket"],
        "Labels": {_LABEL: _prefix()},
        "HostConfig": {"NetworkMode": "none", "Binds": [f"{shared}:/drill"]},
    }  # fmt: skip
    try:
        async with docker_engine.engine(None, unable) as docker:
            for left in await docker_engine.answer(
                docker.containers.list(all=True, filters={"label": [f"{_LABEL}={_prefix()}"]})
            ):
                await docker_engine.answer(left.delete(force=True, v=True))
            container = await docker_engine.answer(docker.containers.create(wanted))
            # Its path may be too long for the address of a socket; this one leads our children there, too.
            folder_fd = os.open(shared / "socket", os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
            try:
                await docker_engine.answer(container.start())
                await _ready(shared, image)
                yield Address(f"/proc/{os.getpid()}/fd/{folder_fd}", 5432, "postgres", _MAINTENANCE)
            finally:
                os.close(folder_fd)
                await docker_engine.answer(container.delete(force=True, v=True))
    except EngineError as error:
        raise CannotCheck(str(error)) from error


async def _ready(shared: Path, image: str) -> None:
    """Once the server itself is up, and not the one by which an image makes its databases: that is no process 1."""
    pid = shared / "data" / "postmaster.pid"
    with suppress(TimeoutError):
        async with asyncio.timeout(_UP_S):
            while True:
                with suppress(OSError):
                    lines = await asyncio.to_thread(pid.read_bytes)
                    if lines.split(b"\n")[0] == b"1" and b"\nready" in lines:
                        return
                await asyncio.sleep(0.1)
    raise CannotCheck(
        f"The image {image} gave no Postgres within {_UP_S:g} s, so what needs it could only be compared. Is it one of "
        "Postgres? See: docker run --rm IMAGE postgres --version"
    )


# --- databases on them ------------------------------------------------------------------------------------------------


async def _create(server: Address, name: str, dump: Dump) -> None:
    """With the rules for texts that it was made with, where the server knows them: checks and indexes may rest on them.
    Else with those that come nearest.
    """
    async with connect(server) as connection:
        quoted = {what: await _quoted(connection, "literal", getattr(dump, what)) for what in ("collate", "ctype")}
        command = f"CREATE DATABASE {name} TEMPLATE template0"
        if dump.encoding:
            command += f" ENCODING {await _quoted(connection, 'literal', dump.encoding)}"
    rules = [f" LC_COLLATE {quoted['collate']} LC_CTYPE {quoted['ctype']}"] if dump.collate and dump.ctype else []
    for rule in (*rules, " LOCALE_PROVIDER builtin BUILTIN_LOCALE 'C.UTF-8'", " LC_COLLATE 'C' LC_CTYPE 'C'"):
        try:
            async with connect(server) as connection:
                await connection.execute(command + rule)
            return
        except DatabaseError as error:
            refused = error
    raise refused


async def _drop(server: Address, name: str) -> None:
    with suppress(DatabaseError):
        async with connect(server) as connection:
            await connection.execute(f"DROP DATABASE IF EXISTS {name}")


async def _create_role(server: Address, name: str) -> None:
    async with connect(server) as connection:
        await connection.execute(f"CREATE ROLE {await _quoted(connection, 'ident', name)}")


async def _sweep(connection: asyncpg.Connection, prefix: str) -> None:
    """Databases that a trial left there which was killed."""
    for row in await connection.fetch("SELECT datname FROM pg_database WHERE starts_with(datname, $1)", prefix):
        await connection.execute(f"DROP DATABASE {await _quoted(connection, 'ident', row[0])}")


async def _quoted(connection: asyncpg.Connection, how: str, text: str) -> str:
    return str(await connection.fetchval(f"SELECT quote_{how}($1)", text))


def _prefix() -> str:
    """By which what is ours is known on a server or an engine that others use, too."""
    return f"memu_backup_drill_{hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]}_"


def _databases(dumps: Sequence[Dump]) -> str:
    return f"Database{_s(dumps)} {_some([dump.name for dump in dumps])}"


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more


def _s(several: Sequence[object] | set[str]) -> str:
    return "" if len(several) == 1 else "s"

"""How PostgreSQL's own programs get to a server: those of this machine over its network, or those in its container.

In a container they are run by the engine and print to us: they are always of the server's own version, and nothing of
the server has to be open to this machine but the port that containers have on their own network.
"""

from __future__ import annotations

import asyncio
import os
import re
import sys
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from io import FileIO
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from memu_backup import docker_engine, process
from memu_backup.errors import DatabaseAway, DatabaseError, MemuError
from memu_backup.model import Root
from memu_backup.postgres.connection import Address, connect
from memu_backup.postgres.tools import Tools, find_tools
from memu_backup.process import Completed
from memu_backup.work import Stop, ended, in_thread

_BLOCK_BYTES = 1 << 20
_LAST_WORDS_S = 5.0


@dataclass(frozen=True, slots=True)
class Taken:
    """What was taken of a server; as ``model.Captured`` has it."""

    roots: tuple[Root, ...]
    consistency: str
    details: Mapping[str, Any]
    warnings: tuple[str, ...] = ()


class Reach(Protocol):
    """A way to run PostgreSQL's programs against a server. Cancelled, whatever it began has ended."""

    async def tools(self, major: int) -> Tools:
        """The programs that fit a server of version ``major``. Raises DatabaseError, EngineError."""
        ...

    async def into_file(self, argv: Sequence[str], address: Address, file: Path) -> Completed:
        """Run a program that connects to ``address``; what it prints or writes goes to the end of ``file``.

        ``argv`` lacks what says where the server is and where the output goes. Raises OSError of the file, EngineError.
        """
        ...

    async def into_folder(self, argv: Sequence[str], address: Address, folder: Path) -> Completed:
        """Run pg_basebackup so that the copy lies in ``folder``, which is empty. Raises as ``into_file``."""
        ...

    async def free(self, folder: str, cluster: int) -> Free | None:
        """What is free where the server keeps its databases: ``folder``, of the ``cluster`` with that number. None
        where that cannot be seen. Raises EngineError.
        """
        ...


@dataclass(frozen=True, slots=True)
class Free:
    """``device`` (st_dev) is None where it is not known which disk of this machine that is."""

    bytes: int
    device: int | None


@dataclass(frozen=True, slots=True)
class Here:
    """By the programs of this machine; ``folders`` are where to look for them, all known ones unless given."""

    folders: Sequence[Path] | None = None

    async def tools(self, major: int) -> Tools:
        return await find_tools(major, self.folders)

    async def into_file(self, argv: Sequence[str], address: Address, file: Path) -> Completed:
        # What lies in the stage is copied into the archive and thrown away: the archive is synced, this need not be.
        return await self._run([*argv, "--no-sync", f"--file={file}"], address)

    async def into_folder(self, argv: Sequence[str], address: Address, folder: Path) -> Completed:
        return await self._run(
            [*argv, "--no-sync", "--format=plain", "--wal-method=stream", f"--pgdata={folder}"], address
        )

    async def free(self, folder: str, cluster: int) -> Free | None:
        return await asyncio.to_thread(_free_here, Path(folder), cluster)

    async def _run(self, argv: Sequence[str], address: Address) -> Completed:
        more = ["--no-password", f"--dbname={address.url}"]
        return await process.run([*argv, *more], env=address.environment, gentle=True)


@dataclass(frozen=True, slots=True)
class InContainer:
    """By the programs in the container ``name``, on its own socket."""

    name: str
    socket: Path | None
    unable: str

    async def tools(self, major: int) -> Tools:
        del major  # they came along with the server
        printed = bytearray()

        async def keep(block: bytes) -> None:
            printed.extend(block)

        async with docker_engine.engine(self.socket, self.unable) as docker:
            argv = ["pg_dump", "--version"]
            done = await docker_engine.execute(docker, self.name, argv, env={"LC_ALL": "C"}, on_output=keep)
        version = re.search(rb"\(PostgreSQL\) (\d+[.\d]*)", bytes(printed))
        if done.returncode != 0 or version is None:
            raise DatabaseError(
                f"Container {self.name} has no pg_dump, {self.unable}. Is it the one in which Postgres runs?"
            )
        return Tools(Path(), version[1].decode())

    async def into_file(self, argv: Sequence[str], address: Address, file: Path) -> Completed:
        with file.open("ab", buffering=0) as output:
            return await self._run(argv, address, output.fileno())

    async def into_folder(self, argv: Sequence[str], address: Address, folder: Path) -> Completed:
        """It comes as a tar, which GNU tar takes apart: with the owners that the server's files have."""
        argv = [*argv, "--format=tar", "--wal-method=fetch", "--pgdata=-"]
        unpack = ["tar", "--extract", "--file=-", f"--directory={folder}", "--preserve-permissions", "--numeric-owner"]
        reading, writing = os.pipe()
        with FileIO(reading, "r") as output:
            unpacking = asyncio.ensure_future(process.run(unpack, stdin=output, gentle=True))
            done = None
            try:
                with FileIO(writing, "w") as pipe, suppress(BrokenPipeError):  # what tar has against it is told below
                    done = await self._run(argv, address, pipe.fileno())
            finally:
                if await ended(unpacking):  # it has nothing more to read
                    raise asyncio.CancelledError
        unpacked = unpacking.result()
        return unpacked if done is None or unpacked.returncode != 0 else done

    async def free(self, folder: str, cluster: int) -> Free | None:
        del cluster  # it is the server in this container
        printed = bytearray()

        async def keep(block: bytes) -> None:
            printed.extend(block)

        async with docker_engine.engine(self.socket, self.unable) as docker:
            done = await docker_engine.execute(
                docker, self.name, ["df", "-P", "-k", folder], env={"LC_ALL": "C"}, on_output=keep
            )
        told = re.search(rb"\n\S+ +\d+ +\d+ +(\d+) +\d+% ", bytes(printed))  # POSIX: df -P
        return Free(int(told[1]) * 1024, None) if done.returncode == 0 and told else None

    async def _run(self, argv: Sequence[str], address: Address, output: int) -> Completed:
        waiting = bytearray()

        async def put(block: bytes) -> None:
            waiting.extend(block)
            if len(waiting) >= _BLOCK_BYTES:
                await flush()

        async def flush() -> None:
            content = bytes(waiting)
            waiting.clear()
            try:
                await in_thread(lambda: _write(output, content), Stop())
            except OSError as error:
                raise _NotWritten(error) from error

        called = f"memu-backup-{uuid.uuid4()}"
        inner = f"postgresql://{quote(address.user, safe='')}@/{quote(address.database, safe='')}"
        env = {**address.environment, "PGAPPNAME": called}
        argv = [*argv, "--no-password", f"--dbname={inner}"]
        try:
            async with docker_engine.engine(self.socket, self.unable) as docker, _ending(address, called):
                done = await docker_engine.execute(docker, self.name, argv, env=env, on_output=put)
                await flush()
        except _NotWritten as failed:
            raise failed.error from None
        return done


class _NotWritten(Exception):
    """An error of ours on its way past the engine, of which it says nothing."""

    def __init__(self, error: OSError) -> None:
        super().__init__()
        self.error = error


def _write(descriptor: int, content: bytes) -> None:
    rest = memoryview(content)
    while rest:
        rest = rest[os.write(descriptor, rest) :]


def _free_here(folder: Path, cluster: int) -> Free | None:
    """A server behind a port of this machine may live in a container, and tell a path that is another one's here: its
    control file begins with its number (pg_control.h). Blocks.
    """
    try:
        with (folder / "global" / "pg_control").open("rb") as control:
            if int.from_bytes(control.read(8), sys.byteorder) != cluster:
                return None
        disk = os.statvfs(folder)
        return Free(disk.f_bavail * disk.f_frsize, folder.stat().st_dev)
    except OSError:
        return None


@asynccontextmanager
async def _ending(address: Address, called: str) -> AsyncIterator[None]:
    """Whatever ends the block early, the server ends the session ``called`` so: the engine itself ends nothing, and a
    dump that nobody reads would hold its snapshot and its locks for ever.
    """
    try:
        yield
    except BaseException:
        with suppress(MemuError, TimeoutError):
            async with asyncio.timeout(_LAST_WORDS_S), connect(address) as connection:
                await connection.execute(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = $1", called
                )
        raise


@dataclass(frozen=True, slots=True)
class Server:
    """A server that runs: where it answers, how its programs get there, and how long it may bring nothing."""

    address: Address
    reach: Reach
    stall_s: float


# --- where a container's server is ------------------------------------------------------------------------------------


async def in_container(name: str, socket: Path | None, asked: Address | None, unable: str, owner: str) -> Address:
    """The address of the server in a container that runs: what its image was told of it, or user, database, password
    and port of ``asked``.

    Raises DatabaseAway where it does not run, DatabaseError where there is none or no way to it, EngineError.
    """
    async with docker_engine.engine(socket, unable) as docker:
        told = await docker_engine.container(docker, name)
        if told is None:
            there = await docker_engine.those_that_run(docker)
            raise DatabaseError(f"Docker has no container {name} ({there}), {unable}. Correct its settings.")
    if not told["State"]["Running"]:
        raise DatabaseAway(f"Container {name} does not run, {unable}. Start it: docker start {name}")
    host = docker_engine.host_of(told)
    if host is None:
        raise DatabaseError(
            f"Container {name} is on no network that this machine reaches, {unable}. Give it one, or name the server's "
            "address with url."
        )
    owner = f"container {name}, {owner}"
    if asked is not None:
        return replace(asked, host=host, owner=owner)
    env = dict(one.split("=", 1) for one in told["Config"].get("Env") or () if "=" in one)
    user = env.get("POSTGRES_USER") or "postgres"
    return Address(
        host=host,
        port=int(env.get("PGPORT") or 5432),
        user=user,
        database=env.get("POSTGRES_DB") or user,
        password=env.get("POSTGRES_PASSWORD") or None,
        owner=owner,
    )

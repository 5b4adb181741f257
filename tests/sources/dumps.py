"""What the tests of the Postgres source share: a capture that is read like a stored backup, and a look at children."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import asyncpg
import psutil

from memu_backup.model import Captured, SourceSummary
from memu_backup.sources.postgres import PostgresSettings, PostgresSource


def source(
    name: str = "chat", *, tool_folders: list[Path] | None = None, stall_s: float = 60, **settings: Any
) -> PostgresSource:
    told = PostgresSettings(kind="postgres", **settings)
    return PostgresSource(name, told, tool_folders=tool_folders, stall_s=stall_s)


async def capture(taken: PostgresSource, stage: Path) -> None:
    async with taken.capture(stage):
        pass


@asynccontextmanager
async def session(url: str, password: str | None = None) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url, password=password)
    try:
        yield connection
    finally:
        await connection.close()


async def execute(url: str, *statements: str, password: str | None = None) -> None:
    async with session(url, password) as connection:
        for statement in statements:
            await connection.execute(statement)


class Captures:
    """Reads captured files under the names that they have in a backup."""

    def __init__(self, captured: Captured) -> None:
        self._captured = captured

    def path(self, name: str) -> Path:
        for root in self._captured.roots:
            if root.place.endswith("/") and name.startswith(root.place):
                return root.path / name.removeprefix(root.place)
            if root.place == name:
                return root.path
        raise AssertionError(f"{name} is in no root")

    def content(self, path: str) -> Iterator[bytes]:
        with self.path(path).open("rb") as file:
            while block := file.read(65536):
                yield block


def summary(captured: Captured) -> SourceSummary:
    return SourceSummary(
        name=captured.source, kind=captured.kind, place=captured.place, files=0, directories=0, links=0,
        size_bytes=0, checksum="", modes_checksum="", consistency=captured.consistency, details=captured.details,
    )  # fmt: skip


def dumping() -> list[psutil.Process]:
    """The processes below this one that dump; a pg_dump that is asked for its version does not."""
    found = []
    for child in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            found += [child] if child.name() == "pg_dump" and "--snapshot" in " ".join(child.cmdline()) else []
    return found


async def until_dumping() -> psutil.Process:
    async with asyncio.timeout(10):
        while not (found := dumping()):
            await asyncio.sleep(0.005)
    return found[0]


@asynccontextmanager
async def held_up(url: str, table: str) -> AsyncIterator[None]:
    """A table that nobody else can read: a dump of it waits, so that it can be hit in its middle."""
    async with session(url) as connection:
        await connection.execute(f"BEGIN; LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        yield

"""A Postgres that stops or hangs in the middle of a run: as the history it costs nothing, as a source only that run."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import AsyncIterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from memu_backup.postgres.server import PostgresServer
from tests.home import Home, children, frozen, locked_table, query, stop_immediately, wait_until
from tests.killing import assert_tidy, hashes, told

MESSAGES = ("CREATE TABLE messages (id int)", "INSERT INTO messages VALUES (1)", "SELECT 1")


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


@pytest.fixture
async def other(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    """A server of the test's own, to be stopped and started."""
    async with PostgresServer(tmp_path / "other") as server:
        yield server


async def start_again(server: PostgresServer) -> None:
    await server.stop()  # counts us out of the one that is gone
    await server.start()


def until_dumping(pid: int) -> int:
    """The pg_dump that a run has started; one that is asked for its version does not count."""
    found: int = wait_until(lambda: next((c for c in children(pid) if b"--snapshot" in command_line(c)), 0))
    return found


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


async def told_soon(home: Home) -> list[tuple[str, str | None]]:
    """What the history says once it is back and was asked; a server that was stopped takes a moment to recover."""
    for _ in range(100):
        if home.run("status").status == 0:
            break
        await asyncio.sleep(0.05)
    return told(home)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["stops", pytest.param("hangs", marks=pytest.mark.slow)])
async def test_a_history_that_goes_away_in_mid_run_costs_the_backup_nothing(
    home: Home, database: str, other: PostgresServer, how: str
) -> None:
    """The rows wait in the spool and are told once it is back; the wait for it is bounded."""
    home.history = other.url()
    await query(database, *MESSAGES)
    home.configure(sources=f'[sources.chat]\nkind = "postgres"\nurl = "{database}"\nglobals = false\n')
    assert home.run("start").status == 0
    with ExitStack() as trouble:
        with locked_table(database):
            child = home.started("start")
            until_dumping(child.pid)
            if how == "hangs":
                trouble.enter_context(frozen(other))
            else:
                stop_immediately(other)
        began = time.monotonic()
        _, err = await asyncio.to_thread(child.communicate, timeout=60)
    assert child.returncode == 0, err
    assert time.monotonic() - began < 25
    assert "noted down on this machine" in err
    assert len(home.archives) == 2
    assert list((home.folder / "state" / "spool").glob("*-run-*.json"))
    if how == "stops":
        await start_again(other)
    assert await told_soon(home) == [("success", None)] * 2
    assert {r["filename"] for r in home.rows()} == {a.name for a in home.archives}
    assert not list((home.folder / "state" / "spool").glob("*.json"))


async def test_a_database_that_stops_while_it_is_dumped_fails_the_run_and_nothing_else(
    home: Home, other: PostgresServer
) -> None:
    await query(other.url(), *MESSAGES)
    home.configure(sources=f'[sources.chat]\nkind = "postgres"\nurl = "{other.url()}"\nglobals = false\n')
    assert home.run("start").status == 0
    older = hashes(home.backups)
    with locked_table(other.url()):
        child = home.started("start")
        until_dumping(child.pid)
        stop_immediately(other)
        _, err = await asyncio.to_thread(child.communicate, timeout=30)
    assert child.returncode == 1
    assert "went away" in err and "again when it is back" in err, err
    assert told(home) == [("success", None), ("failed", "database_away")]
    assert "The database did not answer" in home.run("status").out
    assert hashes(home.backups) == older
    assert_tidy(home)
    await start_again(other)
    assert home.run("start").status == 0


async def test_a_dump_that_is_killed_fails_the_run_and_nothing_else(home: Home, database: str) -> None:
    """By the kernel, for instance, where memory is short."""
    await query(database, *MESSAGES)
    assert home.run("start").status == 0
    home.configure(
        sources='[sources.photos]\nkind = "directory"\npath = "photos"\n'
        f'[sources.chat]\nkind = "postgres"\nurl = "{database}"\nglobals = false\n'
    )
    older = hashes(home.backups)
    with locked_table(database):
        child = home.started("start")
        os.kill(until_dumping(child.pid), signal.SIGKILL)
        _, err = await asyncio.to_thread(child.communicate, timeout=30)
    assert child.returncode == 1 and "could not be dumped (it was ended by signal 9;" in err, err
    assert told(home) == [("success", None), ("failed", "database")]
    assert hashes(home.backups) == older
    assert_tidy(home)

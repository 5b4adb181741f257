"""How a run ends when it is told to stop, killed, or meets another; whatever comes, older backups stay as they are."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest

from memu_backup import files, lock
from memu_backup.audit import SCHEDULER
from memu_backup.model import Phase, Status, Trigger
from memu_backup.postgres.server import PostgresServer
from tests.home import Home, alive, children, command_of, end, fingerprints, locked_table, managed, query, wait_until


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


async def with_messages(home: Home, postgres: PostgresServer) -> str:
    """Give the household a database with a table, as one more source."""
    await query(home.history, "CREATE TABLE messages (id int, body text)", "INSERT INTO messages VALUES (1, 'hello')")
    home.configure(
        sources='[sources.photos]\nkind = "directory"\npath = "photos"\n'
        f'[sources.pgdata]\nkind = "postgres"\nurl = "{home.history}"\nglobals = false\n'
    )
    return home.history


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
async def test_a_run_that_is_told_to_stop_leaves_nothing_half_done(
    home: Home, postgres: PostgresServer, number: int
) -> None:
    """While pg_dump waits for a table: within 5 s, with its children, and the row says interrupted."""
    url = await with_messages(home, postgres)
    assert home.run("start").status == 0
    before = fingerprints(home.backups)
    with locked_table(url):
        child = home.started("start")
        dump = wait_until(lambda: _dumping(child.pid))
        ended = end(child, number)
        assert (ended.status, ended.seconds < 5) == (130, True), ended
        assert "Interrupted" in ended.err and "Traceback" not in ended.err
        assert not any(alive(pid) for pid in dump)
    assert home.leftovers() == []
    after = fingerprints(home.backups)
    assert after.keys() == before.keys()
    assert all(after[name] == before[name] for name in before if name != lock.NAME)
    row = home.rows()[0]
    assert (row["status"], row["error_code"]) == ("failed", "interrupted")


def _dumping(pid: int) -> list[int]:
    """The children, once a pg_dump is among them and has begun to wait."""
    found = children(pid)
    return found if "pg_dump" in [command_of(c) for c in found] else []


@pytest.mark.slow
def test_a_run_told_to_stop_while_it_writes_takes_its_file_along(home: Home) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(1_000_000) * 250)
    child = home.started("start")
    wait_until(lambda: list(home.backups.glob("memu_backup_*.partial")) if home.backups.exists() else [])
    ended = end(child, signal.SIGTERM)
    assert ended.status == 130 and ended.seconds < 5
    assert home.archives == [] and home.leftovers() == []
    assert home.rows()[0]["error_code"] == "interrupted"


@pytest.mark.slow
async def test_two_runs_at_once_and_one_that_is_killed(home: Home, postgres: PostgresServer) -> None:
    """The second names the first; after kill -9 the lock is free at once and the next run sweeps up."""
    url = await with_messages(home, postgres)
    with locked_table(url):
        first = home.started("start")
        wait_until(lambda: _dumping(first.pid))
        second = home.run("start", "--json")
        assert second.status == 75
        assert "backup job nightly" in second.err and str(first.pid) in second.err
        assert second.json["error"]["code"] == "lock_held"
        assert len(home.rows()) == 1
        assert "running" in home.run("status").out
        orphans = children(first.pid)
        end(first, signal.SIGKILL)
        for pid in orphans:  # what systemd does for the service
            os.kill(pid, signal.SIGKILL)
    assert home.leftovers() != []
    status = home.run("status")
    assert "Last backup: FAILED" in status.out and "running" not in status.out
    assert home.run("start").status == 0
    assert home.leftovers() == [] and len(home.archives) == 1
    assert [(r["status"], r["error_code"]) for r in home.rows()] == [("success", None), ("failed", "interrupted")]


async def test_a_backup_whose_maker_was_killed_before_it_could_say_so_is_adopted_once(home: Home) -> None:
    made = home.run("start", "--json").json
    lost = "UPDATE backup_history SET status = 'in_progress', size_bytes = 0, location = '', finished_at = NULL"
    await query(home.history, lost, "SELECT 1")
    assert "Last backup: Today" in home.run("status").out
    assert home.run("start").status == 0
    rows = home.rows()
    assert [r["status"] for r in rows] == ["success", "success"]
    assert rows[1]["filename"] == made["filename"] and rows[1]["size_bytes"] == home.archives[0].stat().st_size


async def test_a_scheduled_run_waits_for_its_turn(home: Home) -> None:
    now = [datetime(2026, 3, 1, 1, 0, tzinfo=UTC)]
    waits = asyncio.Event()
    home.mark()
    async with managed(home, now) as manager:
        with lock.held(home.backups, "backup job by hand"):
            run = asyncio.ensure_future(
                manager.back_up(
                    "nightly",
                    Trigger.SCHEDULE,
                    SCHEDULER,
                    lambda moment: waits.set() if moment.phase is Phase.WAITING else None,
                )
            )
            await asyncio.wait_for(waits.wait(), 5)
            now[0] += timedelta(hours=1)
            assert home.rows() == [] if await _has_tables(home) else True
        done = await asyncio.wait_for(run, 10)
    assert done.status is Status.SUCCESS
    assert done.created_at == now[0], "it tells when the data was read, not when it came to wait"


async def _has_tables(home: Home) -> bool:
    connection = await asyncpg.connect(home.history)
    try:
        return await connection.fetchval("SELECT to_regclass('backup_history')") is not None
    finally:
        await connection.close()


async def test_a_run_is_recorded_as_made_even_when_it_is_cancelled_after_it_got_its_name(home: Home) -> None:
    now = [datetime(2026, 3, 1, 1, 0, tzinfo=UTC)]
    home.mark()
    async with managed(home, now) as manager:
        run: asyncio.Task[object] | None = None

        def cancel_at_the_end(moment: object) -> None:
            if getattr(moment, "phase", None) is Phase.PUBLISHING and run:
                # Publishing and what follows it up to the next wait cannot be interrupted any more.
                run.cancel()

        run = asyncio.ensure_future(manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER, cancel_at_the_end))
        with pytest.raises(asyncio.CancelledError):
            await run
    assert len(home.archives) == 1
    (row,) = home.rows()
    assert (row["status"], row["filename"]) == ("success", home.archives[0].name)


class SlowDisk:
    """A disk on which giving a backup its name takes ``SLOW_S``; tells when that has begun."""

    SLOW_S = 1.5

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.at_it = threading.Event()
        self._rename = files.rename_without_replacing
        monkeypatch.setattr(files, "rename_without_replacing", self.rename)

    def rename(self, source: Path, target: Path) -> None:
        if target.name.endswith(".tar.gz"):
            self.at_it.set()
            time.sleep(self.SLOW_S)
        self._rename(source, target)


async def test_a_slow_disk_does_not_stop_the_clock(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    """While a backup gets its name, the watchdog and everybody else are served."""
    disk = SlowDisk(monkeypatch)
    longest = 0.0

    async def beat() -> None:
        nonlocal longest
        while True:
            begun = time.monotonic()
            await asyncio.sleep(0.01)
            longest = max(longest, time.monotonic() - begun)

    async with managed(home, [datetime.now(UTC)]) as manager:
        beating = asyncio.create_task(beat())
        run = await manager.back_up("nightly", Trigger.MANUAL, SCHEDULER)
        beating.cancel()
    assert run.status is Status.SUCCESS and disk.at_it.is_set()
    assert longest < disk.SLOW_S


async def test_cancelled_while_it_gets_its_name_a_backup_has_name_and_row(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = SlowDisk(monkeypatch)
    async with managed(home, [datetime.now(UTC)]) as manager:
        running = asyncio.create_task(manager.back_up("nightly", Trigger.MANUAL, SCHEDULER))
        await asyncio.to_thread(disk.at_it.wait, 20)
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
    assert home.leftovers() == []
    assert [(r["filename"], r["status"]) for r in home.rows()] == [(a.name, "success") for a in home.archives]
    assert len(home.archives) == 1

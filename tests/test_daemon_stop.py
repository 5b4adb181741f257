"""Shows the service told to stop, in whatever it is doing: gone within seconds, and nothing half-done is left."""

from __future__ import annotations

import asyncio
import hashlib
import os
import shutil
import signal
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import asyncpg
import psutil
import pytest

from memu_backup.postgres.server import PostgresServer
from tests.service import PROGRAM, Clock, Service, archives, command, rows, settings


def _big(folder: Path) -> str:
    (folder / "big").mkdir()
    block = os.urandom(1 << 20)
    with (folder / "big" / "video.mp4").open("wb") as file:
        for _ in range(400):
            file.write(block)
    return '[sources.big]\nkind = "directory"\npath = "big"\n'


def _older(folder: Path) -> dict[str, str]:
    """A backup of the day before, with the hash of each of its files."""
    config = settings(folder, '[sources.small]\nkind = "files"\npaths = ["config.toml"]\n', history=None)
    assert command(config, "start").returncode == 0
    shutil.rmtree(folder / "state")
    return _hashes(folder)


def _hashes(folder: Path) -> dict[str, str]:
    return {f.name: hashlib.sha256(f.read_bytes()).hexdigest() for f in (folder / "backups").iterdir() if f.is_file()}


async def _assert_gone_in_order(service: Service, folder: Path, older: dict[str, str], history: str) -> None:
    assert service.alive() == []
    assert "Traceback" not in service.log()
    by_status = {row["status"]: row for row in await rows(history)}
    assert by_status.keys() == {"success", "failed"}, "the older one is written down from what it says of itself"
    row = by_status["failed"]
    assert (row["status"], row["error_code"], row["trigger"]) == ("failed", "interrupted", "schedule")
    assert "older backups are untouched" in row["error"].lower()
    # What took the machine down is not tried again by itself; what was told to stop is.
    assert bool(row["retry_at"]) is ("killed" not in row["error"])
    lock = ".memu_backup.lock"
    assert _hashes(folder) == older | {lock: _hashes(folder)[lock]}
    assert not list((folder / "backups").glob(".stage*"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "signals", [pytest.param((signal.SIGINT,), marks=pytest.mark.slow), (signal.SIGTERM, signal.SIGTERM, signal.SIGINT)]
)
async def test_told_to_stop_while_an_archive_is_written_it_leaves_nothing_half_done(
    tmp_path: Path, database: str, signals: tuple[signal.Signals, ...]
) -> None:
    older = await asyncio.to_thread(_older, tmp_path)
    config = settings(tmp_path, _big(tmp_path), history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock) as service:
        await service.at_two(clock)
        await service.until(lambda: any(p.stat().st_size for p in (tmp_path / "backups").glob("memu_backup_*.partial")))
        # The work gives way to everything else on the machine, and the service itself stays awake.
        main = service.process.pid
        threads = [t.id for t in psutil.Process(main).threads() if t.id != main]
        assert [os.getpriority(os.PRIO_PROCESS, t) for t in threads].count(10) >= 2
        assert sum(psutil.Process(t).ionice().ioclass == psutil.IOPRIO_CLASS_IDLE for t in threads) >= 2
        assert os.getpriority(os.PRIO_PROCESS, main) == 0
        assert psutil.Process(main).ionice().ioclass == psutil.IOPRIO_CLASS_NONE

        assert await service.stop(*signals) < 10
        assert "Backup job nightly was interrupted." in service.log()
        await _assert_gone_in_order(service, tmp_path, older, database)


@asynccontextmanager
async def _locked_table(url: str) -> AsyncIterator[str]:
    """While this lasts a dump of the database waits for a table; gives a source that is dumped."""
    connection = await asyncpg.connect(url)
    try:
        await connection.execute("CREATE TABLE messages (body text)")
        async with connection.transaction():
            await connection.execute("LOCK messages IN ACCESS EXCLUSIVE MODE")
            yield f'[sources.chat]\nkind = "postgres"\nurl = "{url}"\nrow_counts = false\n'
    finally:
        await connection.close()


@pytest.fixture
async def chat(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of a second database, to be backed up."""
    connection = await asyncpg.connect(postgres.url())
    await connection.execute("CREATE DATABASE chat_of_the_daemon")
    yield postgres.url("chat_of_the_daemon")
    await connection.execute("DROP DATABASE chat_of_the_daemon WITH (FORCE)")
    await connection.close()


@pytest.mark.slow
async def test_told_to_stop_while_pg_dump_runs_it_ends_it(tmp_path: Path, database: str, chat: str) -> None:
    older = await asyncio.to_thread(_older, tmp_path)
    async with _locked_table(chat) as source:
        config = settings(tmp_path, source, history=database)
        clock = Clock(tmp_path)
        async with Service(config, clock) as service:
            await service.at_two(clock)
            await service.until(lambda: service.running("pg_dump", "--snapshot"))
            dump = service.running("pg_dump", "--snapshot")[0]
            await service.until(lambda: (dump.nice(), dump.ionice().ioclass) == (10, psutil.IOPRIO_CLASS_IDLE), 2)
            assert await service.stop() < 10
            await _assert_gone_in_order(service, tmp_path, older, database)


@asynccontextmanager
async def _backup_by_hand(config: Path) -> AsyncIterator[asyncio.subprocess.Process]:
    """A backup that somebody has started, at work on its dump."""
    devnull = asyncio.subprocess.DEVNULL
    child = await asyncio.create_subprocess_exec(PROGRAM, "--config", config, "start", stdout=devnull, stderr=devnull)
    try:
        while not list(config.parent.glob("backups/.stage*/chat/*")):
            await asyncio.sleep(0.02)
        yield child
    finally:
        if child.returncode is None:
            child.kill()
        await child.wait()


@pytest.mark.slow
async def test_told_to_stop_while_it_waits_for_a_backup_made_by_hand_it_leaves_that_alone(
    tmp_path: Path, database: str, chat: str
) -> None:
    clock = Clock(tmp_path)
    async with AsyncExitStack() as stack:
        table = await stack.enter_async_context(AsyncExitStack())
        config = settings(tmp_path, await table.enter_async_context(_locked_table(chat)), history=database)
        by_hand = await stack.enter_async_context(_backup_by_hand(config))
        async with Service(config, clock) as service:
            await service.at_two(clock)
            await service.logs("waits for another backup")
            assert await service.stop() < 10
            assert service.alive() == []
        assert by_hand.returncode is None
        await table.aclose()
        assert await asyncio.wait_for(by_hand.wait(), 10) == 0
    assert sorted((r["trigger"], r["status"], r["error_code"]) for r in await rows(database)) == [
        ("manual", "success", None),
        ("schedule", "failed", "interrupted"),
    ]
    assert len(archives(tmp_path)) == 1


@pytest.mark.slow
async def test_a_backup_made_by_hand_just_before_does_not_cost_the_night_its_own(
    tmp_path: Path, database: str, chat: str
) -> None:
    clock = Clock(tmp_path)
    async with AsyncExitStack() as stack:
        table = await stack.enter_async_context(AsyncExitStack())
        config = settings(tmp_path, await table.enter_async_context(_locked_table(chat)), history=database)
        by_hand = await stack.enter_async_context(_backup_by_hand(config))
        service = await stack.enter_async_context(Service(config, clock))
        await service.at_two(clock)
        await service.logs("waits for another backup")
        await table.aclose()
        await service.logs("success")
        assert await by_hand.wait() == 0
    made = [(r["trigger"], r["status"]) for r in await rows(database)]
    assert made == [("manual", "success"), ("schedule", "success")]


async def test_what_a_killed_service_has_left_is_settled_when_it_starts_again(
    tmp_path: Path, database: str, chat: str
) -> None:
    older = await asyncio.to_thread(_older, tmp_path)
    async with _locked_table(chat) as source:
        config = settings(tmp_path, source, history=database)
        clock = Clock(tmp_path)
        async with Service(config, clock) as service:
            await service.at_two(clock)
            await service.until(lambda: service.running("pg_dump", "--snapshot"))
            service.process.kill()
            await service.process.wait()
        assert list((tmp_path / "backups").glob(".stage*"))
        async with Service(config, clock) as again:
            await again.logs("left behind by a run that was killed")
            while {r["status"] for r in await rows(database)} != {"success", "failed"}:
                await asyncio.sleep(0.05)
            await again.stop()
        await _assert_gone_in_order(again, tmp_path, older, database)

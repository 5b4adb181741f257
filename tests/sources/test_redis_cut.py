"""Redis: a server, a disk or a run that ends in the middle of a snapshot."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from memu_backup.errors import DiskFull
from tests.archives import needs_root
from tests.disks import loop_disk
from tests.sources.redis_servers import BY_DISK, DISKLESS, RedisServer, a_server, listening, refused, source, until

SLOW = ("--rdb-key-save-delay", "1000")
"""Microseconds that it takes over each key, so that it can be hit in the middle."""


@pytest.fixture(params=[DISKLESS, pytest.param(BY_DISK, marks=pytest.mark.slow)], ids=["diskless", "by disk"])
def slow(request: pytest.FixtureRequest) -> Iterator[RedisServer]:
    """One that takes its time over a snapshot."""
    with a_server(*request.param) as made:
        made.start()
        made.fill(20_000)
        made.cli("CONFIG", "SET", *(word.removeprefix("--") for word in SLOW))
        yield made


def saving(server: RedisServer) -> bool:
    return "rdb_bgsave_in_progress:1" in server.cli("INFO", "persistence")


async def test_killed_in_the_middle_it_is_no_backup_and_is_tried_again(slow: RedisServer, stage: Path) -> None:
    running = asyncio.create_task(refused(source(slow), stage))
    await until(lambda: saving(slow))
    slow.end()
    error = await running
    assert "has ended the connection" in str(error) and error.retryable


async def test_its_child_killed_in_the_middle_it_is_no_backup(slow: RedisServer, stage: Path) -> None:
    running = asyncio.create_task(refused(source(slow), stage))
    await until(lambda: saving(slow))
    for child in psutil.Process(slow.process.pid).children():
        child.kill()
    error = await running
    assert "has ended the connection" in str(error) and error.retryable


@pytest.mark.slow
async def test_one_that_hangs_is_given_up(slow: RedisServer, stage: Path) -> None:
    running = asyncio.create_task(refused(source(slow, silent_s=2), stage))
    await until(lambda: saving(slow))
    slow.process.send_signal(signal.SIGSTOP)
    for child in psutil.Process(slow.process.pid).children():
        child.suspend()
    error = await running
    assert "has sent nothing more for 2 s" in str(error) and error.retryable


@pytest.mark.slow
async def test_one_that_prepares_for_ever_is_given_up(stage: Path) -> None:
    """Each second it says that it is still there, which is no progress."""
    with a_server(*BY_DISK) as server:
        server.start()
        server.fill(20_000)
        server.cli("CONFIG", "SET", "rdb-key-save-delay", "100000")
        error = await refused(source(server, silent_s=5, preparing_s=6), stage)
    assert "has prepared its snapshot for too long" in str(error) and error.retryable


@pytest.mark.slow
async def test_what_is_changed_meanwhile_is_not_held_for_it(slow: RedisServer, stage: Path) -> None:
    """Else a server that is much written to would hang up on it."""
    slow.cli("CONFIG", "SET", "rdb-key-save-delay", "200")
    slow.cli("CONFIG", "SET", "client-output-buffer-limit", "replica 1mb 1mb 1", "repl-backlog-size", "16kb")

    async def taken() -> int:
        async with source(slow).capture(stage) as captured:
            return int(captured.details["keys"]["db0"])

    running = asyncio.create_task(taken())
    await until(lambda: saving(slow))
    for number in range(20):
        slow.cli("SETRANGE", f"new:{number}", "1000000", "x")
    assert saving(slow), "it was over before, so it proves nothing"
    assert await running == 20_007


async def test_what_is_damaged_on_its_way_is_no_backup(server: RedisServer, stage: Path) -> None:
    """By somebody in between, who turns one bit of a megabyte."""
    server.fill(1000)

    async def between(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        its_reader, its_writer = await asyncio.open_unix_connection(server.socket)

        async def ask() -> None:
            while block := await reader.read(1 << 16):
                its_writer.write(block)

        asking, sent = asyncio.create_task(ask()), 0
        try:
            while block := await its_reader.read(1 << 16):
                if sent <= 500_000 < sent + len(block):
                    place = 500_000 - sent
                    block = block[:place] + bytes([block[place] ^ 1]) + block[place + 1 :]
                sent += len(block)
                writer.write(block)
            await writer.drain()
        finally:
            asking.cancel()
            await asyncio.gather(asking, return_exceptions=True)
            its_writer.transport.abort()
            with suppress(OSError):
                await its_writer.wait_closed()

    async with listening(server.folder / "between", between):
        error = await refused(source(server, unixsocket=server.folder / "between"), stage)
    assert "sent is damaged: its checksum is another one, so source cache cannot be backed up" in str(error)


@pytest.mark.slow
async def test_cancelled_it_leaves_no_connection_and_no_child_of_a_diskless_server(stage: Path) -> None:
    with a_server() as server:
        server.start()
        server.fill(20_000)
        server.cli("CONFIG", "SET", "rdb-key-save-delay", "1000")
        running = asyncio.create_task(refused(source(server), stage))
        await until(lambda: saving(server))
        running.cancel()
        with pytest.raises(asyncio.CancelledError):
            await running
        await until(lambda: "connected_slaves:0" in server.cli("INFO", "replication") and not saving(server))


@needs_root
async def test_one_that_cannot_begin_a_snapshot_says_so(stage: Path) -> None:
    """It may have no more processes, which fails as it does where memory is short."""
    nobody = 50_000 + os.getpid() % 10_000
    with a_server() as server:
        server.folder.chmod(0o777)
        server.start(user=nobody, group=nobody)
        threads = psutil.Process(server.process.pid).num_threads()
        server.end()
        server.start(
            user=nobody, group=nobody, preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_NPROC, (threads, threads))
        )
        error = await refused(source(server), stage)
    assert "could not begin a snapshot" in str(error) and error.retryable


@pytest.mark.slow
@needs_root
async def test_a_full_disk_is_told_as_such(server: RedisServer, tmp_path: Path) -> None:
    server.fill(30_000)
    with loop_disk("ext4", tmp_path, 16 << 20) as disk, pytest.raises(DiskFull, match="holds the backups is full"):
        async with source(server).capture(disk):
            pass
    await until(lambda: "connected_slaves:0" in server.cli("INFO", "replication"))

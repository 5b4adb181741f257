"""Redis: a snapshot of one moment out of a real server, proved, and put back into another one key by key."""

from __future__ import annotations

import asyncio
import os
import tracemalloc
from collections.abc import Callable
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest

from memu_backup.clock import now
from memu_backup.model import Level
from memu_backup.redis.connection import Server, connect
from memu_backup.sources import Source
from memu_backup.sources.redis import RedisSource
from memu_backup.work import Stop
from tests.archives import Unpacked, archive_store, back_up, ignore, returning
from tests.contracts.sources import SourceContract
from tests.sources.dumps import Captures, summary
from tests.sources.redis_servers import BY_DISK, DISKLESS, RedisServer, a_server, listening, source


async def put_into(other: RedisServer, taken: RedisSource, stage: Path, tmp_path: Path) -> Any:
    """Back up and put back where ``other`` finds it; what the capture told of it."""
    async with taken.capture(stage) as captured:
        archive = back_up(archive_store(tmp_path / "store"), captured)
    other.data.mkdir()
    back = await returning(archive, {"cache": source(other)}, tmp_path / "scratch")
    assert await back.all_there() == ()
    return captured


class TestRedisIsASource(SourceContract):
    @pytest.fixture(autouse=True)
    def _with(self, server: RedisServer) -> None:
        self.server = server

    def household(self, folder: Path) -> Path:
        self.server.fill(300)
        self.server.cli("SAVE")
        return self.server.data

    def make(self, data: Path) -> RedisSource:
        return source(self.server)

    def change(self, data: Path) -> None:
        self.server.cli("SET", "one more", "of today")
        self.server.cli("SAVE")

    def rest(self, data: Path) -> None:
        self.server.end()

    def take_away(self, data: Path) -> None:
        self.server.end()

    def lose(self, data: Path) -> None:
        self.server.end()
        self.server.file.unlink()

    def held(self, data: Path) -> object:
        if not self.server.socket.exists():
            self.server.start()
        return self.server.everything()

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        """What is in it is compared where it is put back."""
        assert [path.name for path in unpacked.target.iterdir()] == ["cache.rdb"]
        assert (unpacked.target / "cache.rdb").read_bytes().startswith(b"REDIS0010")

    async def test_what_goes_away_after_the_check_makes_the_backup_partial(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        """A snapshot does not: it is here by then."""
        async with source.capture(stage) as captured:
            self.take_away(data)
            back_up(archive_store(tmp_path / "store"), captured)
        assert not captured.missing

    async def test_two_captures_of_the_same_data_have_the_same_checksum(
        self, source: Source, data: Path, tmp_path: Path
    ) -> None:
        """A snapshot tells when it was made: how many keys it has is the same."""
        counted = []
        for name in ("one", "two"):
            (tmp_path / f"stage {name}").mkdir()
            async with source.capture(tmp_path / f"stage {name}") as captured:
                counted.append(captured.details["keys"])
        assert counted[0] == counted[1] == {"db0": 307, "db3": 1}


@pytest.mark.parametrize("way", [DISKLESS, pytest.param(BY_DISK, marks=pytest.mark.slow)], ids=["diskless", "by disk"])
async def test_while_it_is_written_to_the_snapshot_is_of_one_moment(
    way: tuple[str, ...], other: RedisServer, stage: Path, tmp_path: Path
) -> None:
    with a_server(*way) as server:
        server.start()
        server.fill(40_000)
        before = server.everything()
        with server.written_to():
            first = int(server.cli("GET", "number"))
            captured = await put_into(other, source(server), stage, tmp_path)
            last = int(server.cli("GET", "number"))
        other.start()
        after = other.everything()
        assert other.file.stat().st_size > 40_000_000
    assert {key: value for key, value in after.items() if key in before} == before
    number = int(other.cli("GET", "number"))
    assert first < number < last, "nobody wrote meanwhile, so it proves nothing"
    new = {key for key in after if key not in before}
    assert new == {"0/number", *(f"0/n:{n}" for n in range(1, number + 1))}
    told = captured.details
    assert len(before) < sum(told["keys"].values()) <= len(after)
    assert (told["server"], told["rdb_version"], told["checksum"]) == (f"Redis {_version(other)}", 10, True)
    assert captured.consistency == "a snapshot of one moment, as a replica gets it" and captured.warnings == ()


def _version(server: RedisServer) -> str:
    lines = server.cli("INFO", "server").splitlines()
    return next(line.partition(":")[2].strip() for line in lines if line.startswith("redis_version"))


async def test_what_is_told_of_it(server: RedisServer, stage: Path) -> None:
    server.fill(1197)
    async with source(server).capture(stage) as captured:
        assert RedisSource.told(summary(captured), now(), UTC) == "1,205 keys"
        assert captured.details["kept_at"] == str(server.file)
    server.cli("FLUSHALL")
    (stage / "cache.rdb").unlink()
    async with source(server).capture(stage) as captured:
        assert RedisSource.told(summary(captured), now(), UTC) == "0 keys"


@pytest.mark.slow
async def test_a_long_one_is_not_held_in_memory(server: RedisServer, stage: Path) -> None:
    for begin in range(0, 120):
        server.cli("SET", f"long:{begin}", "")
        server.cli("SETRANGE", f"long:{begin}", "1000000", "x")
    server.cli("CONFIG", "SET", "rdbcompression", "no")
    tracemalloc.start()
    try:
        async with source(server).capture(stage) as captured:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            assert captured.roots[0].path.stat().st_size > 120_000_000
    finally:
        tracemalloc.stop()
    assert peak_bytes < 20_000_000


# --- the file ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("harm", "says"),
    [
        (lambda b: b[:5000] + bytes([b[5000] ^ 1]) + b[5001:], "cache.rdb is damaged: its checksum is another one."),
        (lambda b: b[:-9], "cache.rdb breaks off: the end of the snapshot is missing."),
        (lambda b: b[:4], "cache.rdb does not begin as a snapshot of Redis does."),
        (lambda b: b"", "cache.rdb does not begin as a snapshot of Redis does."),
        (lambda b: b"NOTIT" + b[5:], "cache.rdb does not begin as a snapshot of Redis does."),
    ],
    ids=["bit", "cut", "very short", "empty", "something else"],
)
async def test_a_damaged_one_is_found(
    server: RedisServer, stage: Path, harm: Callable[[bytes], bytes], says: str
) -> None:
    server.fill(200)
    async with source(server).capture(stage) as captured:
        read = Captures(captured)
        assert await RedisSource.verify(summary(captured), read) == []
        file = read.path("cache.rdb")
        file.write_bytes(harm(file.read_bytes()))
        assert await RedisSource.verify(summary(captured), read) == [says]


async def test_without_a_checksum_that_is_said(server: RedisServer, stage: Path, tmp_path: Path) -> None:
    server.end()
    server.start("--rdbchecksum", "no")
    server.fill(20)
    async with source(server).capture(stage) as captured:
        (warning,) = captured.warnings
        assert "computes no checksum" in warning and captured.details["checksum"] is False
        store = archive_store(tmp_path / "store")
        path = back_up(store, captured)
        assert store.prove(path, Level.FULL, ignore, Stop()).problems == ()


@pytest.mark.parametrize("piece", [1, 7, 39, 40, 41, 1000])
async def test_the_mark_at_its_end_is_found_wherever_the_stream_is_cut(piece: int, stage: Path) -> None:
    """By a server that sends in such pieces, and goes on after it."""
    mark, content = b"0123456789" * 4, os.urandom(500) + b"0123456789" * 3 + b"$EOF:" + os.urandom(500)

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\nREPLCONF")
            writer.write(b"+OK\r\n")
        await reader.readuntil(b"SYNC\r\n")
        sent = b"\n\n$EOF:" + mark + b"\r\n" + content + mark + b"PING"
        for begin in range(0, len(sent), piece):
            writer.write(sent[begin : begin + piece])
            await writer.drain()
            await asyncio.sleep(0)
        await reader.read()

    found = bytearray()

    async def keep(block: bytes) -> None:
        found.extend(block)

    there = Server("it", "so it cannot", unixsocket=stage / "s")
    async with listening(stage / "s", answer), connect(there) as connection:
        await connection.snapshot(keep, silent_s=5, preparing_s=5)
    assert bytes(found) == content

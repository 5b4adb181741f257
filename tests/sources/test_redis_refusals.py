"""Redis: what keeps a snapshot from being made, and what is told of a server that keeps too little itself."""

from __future__ import annotations

import asyncio
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from memu_backup.errors import DatabaseAway
from memu_backup.sources.redis import RedisSettings, RedisSource
from tests.sources.redis_servers import RedisServer, a_server, listening, refused, source, until

CANARY = "c4n4ry"


# --- who may ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def guarded() -> Iterator[RedisServer]:
    with a_server(password=CANARY) as made:
        made.start("--requirepass", CANARY)
        yield made


@pytest.fixture
def secret(tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(f"{CANARY}\n")
    return file


async def test_with_the_password_it_comes_and_the_password_is_told_nowhere(
    guarded: RedisServer, secret: Path, stage: Path
) -> None:
    taken = source(guarded, password_file=secret)
    assert await taken.check() == []
    async with taken.capture(stage) as captured:
        assert CANARY not in repr(captured)
    assert CANARY not in repr(await taken._server("backed up"))


async def test_without_it_or_with_another_one_it_is_said(guarded: RedisServer, secret: Path, stage: Path) -> None:
    error = await refused(source(guarded), stage)
    assert "asks for a password" in str(error) and "password_file" in str(error) and not error.retryable
    secret.write_text("another c4n4ry")
    error = await refused(source(guarded, password_file=secret), stage)
    assert "does not take the password, so" in str(error) and CANARY not in str(error)
    secret.write_text("\n")
    assert "is empty" in str(await refused(source(guarded, password_file=secret), stage))
    secret.unlink()
    error = await refused(source(guarded, password_file=secret), stage)
    assert "is not there" in str(error) and "sources.cache.password_file" in str(error)


async def test_one_that_asks_for_none_says_so(server: RedisServer, secret: Path, stage: Path) -> None:
    error = await refused(source(server, password_file=secret), stage)
    assert "asks for no password" in str(error) and CANARY not in str(error)


async def test_what_it_says_of_a_command_that_was_renamed_is_not_repeated(secret: Path, stage: Path) -> None:
    """It quotes what it was given, which is the password."""
    with a_server() as server:
        server.start("--rename-command", "AUTH", "")
        assert CANARY in server._cli("AUTH", CANARY)
        error = await refused(source(server, password_file=secret), stage)
    assert "does not take the password" in str(error) and CANARY not in str(error)


async def test_a_user_needs_few_rights_and_it_is_said_which(guarded: RedisServer, secret: Path, stage: Path) -> None:
    taken = source(guarded, username="anna", password_file=secret)
    guarded.cli("ACL", "SETUSER", "anna", "on", f">{CANARY}", "+info")
    error = await refused(taken, stage)
    assert "does not let user anna use REPLCONF" in str(error)
    guarded.cli("ACL", "SETUSER", "anna", "+replconf")
    assert "does not let user anna use SYNC" in str(await refused(taken, stage))
    (stage / "cache.rdb").unlink()
    needed = str(error).partition("ACL SETUSER ")[2]
    guarded.cli("ACL", "SETUSER", *needed.split())
    guarded.cli("SET", "a", "b")
    assert await taken.check() == []
    async with taken.capture(stage) as captured:
        assert captured.details["keys"] == {"db0": 1}
    error = await refused(source(guarded, username="bob", password_file=secret), stage)
    assert "does not take the password of user bob" in str(error)


async def test_a_snapshot_that_is_disabled_there_is_said(stage: Path) -> None:
    with a_server() as server:
        server.start("--rename-command", "SYNC", "")
        assert "does not know SYNC" in str(await refused(source(server), stage))


# --- who is there -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_one_that_still_loads_is_waited_for(server: RedisServer, stage: Path) -> None:
    server.fill(20_000)
    server.end(signal.SIGTERM)
    server.start("--key-load-delay", "1000", "--loading-process-events-interval-bytes", "1024", loaded=False)
    with pytest.raises(DatabaseAway, match="still reads its data from its disk, so source cache cannot be backed up"):
        await source(server).check()
    error = await refused(source(server), stage)
    assert "still reads its data" in str(error) and error.retryable


async def test_a_copy_of_another_server_is_good_as_long_as_it_has_its_link(
    server: RedisServer, other: RedisServer, stage: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    other.start("--port", str(port), "--bind", "127.0.0.1")
    other.fill(100)
    server.cli("REPLICAOF", "127.0.0.1", str(port))
    await until(lambda: "master_link_status:up" in server.cli("INFO", "replication"))
    async with source(server).capture(stage) as captured:
        assert (captured.details["role"], captured.details["keys"]["db0"]) == ("slave", 107)
    other.end()
    await until(lambda: "master_link_status:down" in server.cli("INFO", "replication"))
    with pytest.raises(DatabaseAway, match="has lost its link to it, so source cache cannot be backed up"):
        await source(server).check()


async def test_a_sentinel_holds_no_data(stage: Path, tmp_path: Path) -> None:
    (tmp_path / "sentinel.conf").write_text("")
    with a_server() as server:
        argv = [str(tmp_path / "sentinel.conf"), "--sentinel", "--port", "0", "--unixsocket", str(server.socket)]
        sentinel = await asyncio.create_subprocess_exec("redis-server", *argv, stdout=asyncio.subprocess.DEVNULL)
        try:
            await until(server.socket.exists)
            assert "is a sentinel" in str(await refused(source(server), stage))
        finally:
            sentinel.kill()
            await sentinel.wait()


async def test_by_its_address_and_where_nobody_listens(stage: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = RedisSettings.model_validate({"kind": "redis", "host": "127.0.0.1", "port": port})
    error = await refused(RedisSource("cache", told), stage)
    assert f"Redis at 127.0.0.1:{port} does not answer" in str(error) and error.retryable
    with a_server() as server:
        server.start("--port", str(port), "--bind", "127.0.0.1")
        server.fill(10)
        async with RedisSource("cache", told).capture(stage) as captured:
            assert captured.details["keys"] == {"db0": 17, "db3": 1}


@pytest.mark.parametrize(
    "greeting",
    [
        b"SSH-2.0-OpenSSH_9.2p1\r\n",
        b"HTTP/1.1 400 No\r\n\r\n",
        b"$99999999999\r\n",
        b"*1\r\n" * 2000,
        b"x" * 3_000_000,
    ],
    ids=["ssh", "http", "giant", "deep", "endless"],
)
async def test_another_program_that_listens_there_is_told(greeting: bytes, stage: Path) -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await reader.read()

    told = RedisSettings.model_validate({"kind": "redis", "unixsocket": stage / "s"})
    async with listening(stage / "s", answer):
        assert "does not speak as Redis does" in str(await refused(RedisSource("cache", told), stage))


async def test_one_that_takes_no_more_connections_says_so(server: RedisServer, stage: Path) -> None:
    server.cli("CONFIG", "SET", "maxclients", "1")
    _, writer = await asyncio.open_unix_connection(server.socket)
    error = await refused(source(server), stage)
    writer.close()
    await writer.wait_closed()
    assert "takes no more connections" in str(error) and error.retryable


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({}, "does not say where it is"),
        ({"host": "a", "container": "b"}, "has both host and container"),
        ({"host": "a", "username": "anna"}, "has no effect without password_file"),
        ({"host": "a", "place": "redis/"}, "is one file and no folder"),
        ({"host": "a", "needs_stop": True}, "cannot be true for this kind"),
        ({"host": "a", "port": 0}, "greater than or equal to 1"),
    ],
)
def test_a_mistake_in_its_settings_is_named(wrong: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        RedisSettings.model_validate({"kind": "redis", **wrong})


# --- what it keeps ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("save", "says"),
    [
        ("", "keeps nothing on its own disk (no save, no appendonly): if it ends, what it holds is gone"),
        ("43200 1", "saves a change only after 12 h: if it ends, that is gone"),
        ("60 1000", "saves a change only together with others (save 60 1000): if it ends, that is gone"),
        ("43200 1 60 1000", "saves a change only after 12 h"),
        ("3600 1 60 1000", ""),
    ],
)
async def test_one_that_keeps_nothing_or_saves_rarely_is_told(
    server: RedisServer, stage: Path, save: str, says: str
) -> None:
    server.cli("CONFIG", "SET", "save", save)
    found = await source(server).check()
    assert [says in one for one in found] == ([True] if says else [])
    async with source(server).capture(stage) as captured:
        assert list(captured.warnings) == found
    server.cli("CONFIG", "SET", "appendonly", "yes")
    assert await source(server).check() == []


async def test_where_its_settings_are_not_to_be_seen_what_it_has_not_saved_tells(
    server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.cli("CONFIG", "SET", "save", "")
    server.cli("ACL", "SETUSER", "default", "-config")
    assert await source(server).check() == []
    server.cli("SET", "a", "b")
    assert await source(server).check() == []
    later = time.time() + 7300
    monkeypatch.setattr(time, "time", lambda: later)
    (warning,) = await source(server).check()
    assert "has not saved what was changed in the last 2 h 1 min (1 times)" in warning
    server.cli("SAVE")
    assert await source(server).check() == []


async def test_one_that_cannot_write_its_own_snapshot_is_told(server: RedisServer) -> None:
    server.data.rmdir()
    server.cli("BGSAVE")
    await until(lambda: "rdb_last_bgsave_status:err" in server.cli("INFO", "persistence"))
    found = await source(server).check()
    assert "could not write its last snapshot to its own disk" in found[0]


async def test_a_place_to_put_it_back_that_is_not_the_servers_is_told(server: RedisServer, tmp_path: Path) -> None:
    (warning,) = await source(server, path=tmp_path / "dump.rdb").check()
    assert f"keeps its file at {server.file}" in warning and "sources.cache.path" in warning

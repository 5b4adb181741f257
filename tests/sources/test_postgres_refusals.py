"""What goes wrong before and in the middle of a dump, on real servers: a sentence, no secret in it, no child left."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import asyncpg
import pytest
from pydantic import ValidationError

from memu_backup import process
from memu_backup.errors import DatabaseAway, DatabaseError, DiskFull, SourceError
from memu_backup.postgres.connection import Address, connect
from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from memu_backup.sources.postgres import PostgresSettings
from tests.home import frozen, stop_immediately
from tests.sources.conftest import DebianServer
from tests.sources.dumps import capture, dumping, execute, held_up, session, source, until_dumping


async def test_a_pg_dump_older_than_the_server_is_an_error_before_anything_starts(
    database: str, debian: DebianServer, stage: Path
) -> None:
    with pytest.raises(DatabaseError, match="apt install postgresql-client-18"):
        async with source(url=database, tool_folders=[debian.programs]).capture(stage):
            pass
    assert list(stage.iterdir()) == []


async def test_a_refused_password_is_said_without_the_password(debian: DebianServer, tmp_path: Path) -> None:
    wrong = tmp_path / "wrong"
    wrong.write_text("w1-wr0ng")
    with pytest.raises(DatabaseError, match="refused the password of user postgres") as raised:
        await source(url=debian.url(), password_file=wrong).check()
    assert not raised.value.retryable
    assert "w1-wr0ng" not in f"{raised.value!s} {raised.value.__cause__!r}"


async def test_a_password_that_is_not_set_is_asked_for(debian: DebianServer) -> None:
    with pytest.raises(DatabaseError, match="asks user postgres for a password; nothing was read"):
        await source(url=debian.url()).check()


async def test_the_password_of_the_url_works_and_is_in_no_argv(debian: DebianServer, stage: Path) -> None:
    database = debian.url_with_password()
    await execute(database, "CREATE TABLE IF NOT EXISTS held (a int)")
    async with held_up(database, "held"):
        dump = asyncio.create_task(capture(source(url=database), stage))
        child = await until_dumping()
        argv = " ".join(child.cmdline())
        dump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dump
    assert "postgres@" in argv
    assert "c4n4ry" not in argv


@pytest.mark.parametrize(
    ("database", "user", "sentence"),
    [
        ("nothing_here", "postgres", "has no database nothing_here"),
        ("x" * 300, "postgres", "has no database xxx"),
        ("postgres", "stranger", "does not let user stranger in"),
    ],
)
async def test_what_is_not_there_is_named(postgres: PostgresServer, database: str, user: str, sentence: str) -> None:
    url = postgres.url(database).replace("postgres@", f"{user}@")
    with pytest.raises(DatabaseError, match=sentence) as raised:
        await source(url=url).check()
    assert not raised.value.retryable


async def test_a_server_that_is_off_or_full_may_be_back_in_a_minute(debian: DebianServer, bob: Path) -> None:
    await execute(debian.url(), "ALTER ROLE bob CONNECTION LIMIT 0", password=debian.password)
    with pytest.raises(DatabaseAway, match="takes no connection just now"):
        await source(url=debian.url("bobs", "bob"), password_file=bob).check()
    with pytest.raises(DatabaseAway, match="does not answer"):
        await source(url="postgresql://anna@127.0.0.1:1/photos").check()
    with pytest.raises(DatabaseAway, match="does not answer"):
        await source(url="postgresql://anna@/photos?host=/nowhere").check()


async def test_the_wrong_machine_and_a_missing_encryption_are_told_apart(debian: DebianServer, secret: Path) -> None:
    with pytest.raises(DatabaseError, match=r"no-such-machine\.invalid"):
        await source(url="postgresql://anna@no-such-machine.invalid/photos").check()
    with pytest.raises(DatabaseError, match="do not agree on a secure connection"):
        await source(url=debian.url() + "?sslmode=require", password_file=secret).check()


async def test_a_dump_that_is_killed_fails_thecapture(database: str, stage: Path) -> None:
    await execute(database, "CREATE TABLE t (a int)")
    async with held_up(database, "t"):
        dump = asyncio.create_task(capture(source(url=database), stage))
        (await until_dumping()).kill()
        with pytest.raises(DatabaseError, match="ended by signal 9"):
            await dump


async def test_a_disk_that_fills_up_during_the_dump_is_said_as_such(database: str, tmp_path: Path) -> None:
    await execute(database, "CREATE TABLE t AS SELECT repeat(md5(g::text), 30) FROM generate_series(1, 5000) g")
    small = tmp_path / "small"
    small.mkdir()
    mounted = await process.run(["mount", "-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", str(small)])
    if mounted.returncode != 0:
        pytest.skip("needs the right to mount")
    try:
        with pytest.raises(
            DiskFull, match="The disk that holds the backups is full, so this backup was given up"
        ) as full:
            await capture(source(url=database), small)
        assert str(small) not in str(full.value)  # a folder that nobody has heard of, and that is gone by then
    finally:
        await process.run(["umount", str(small)])


async def test_cancelling_leaves_neither_pg_dump_nor_a_session_behind(database: str, stage: Path) -> None:
    await execute(database, "CREATE TABLE t (a int)")
    async with held_up(database, "t"):
        dump = asyncio.create_task(capture(source(url=database), stage))
        await until_dumping()
        dump.cancel()
        with pytest.raises(asyncio.CancelledError):
            await dump
        assert dumping() == []
        async with session(database) as connection, asyncio.timeout(5):
            others = "SELECT count(*) FROM pg_stat_activity WHERE application_name IN ('memu-backup', 'pg_dump')"
            while await connection.fetchval(others):
                await asyncio.sleep(0.02)


@pytest.mark.slow
async def test_a_server_that_stops_in_the_middle_may_be_back(tmp_path: Path, stage: Path) -> None:
    async with PostgresServer(tmp_path / "server") as server:
        await execute(server.url(), "CREATE TABLE t (a int)")
        blocker = await asyncpg.connect(server.url())
        await blocker.execute("BEGIN; LOCK TABLE t IN ACCESS EXCLUSIVE MODE")
        dump = asyncio.create_task(capture(source(url=server.url(), row_counts=False), stage))
        await until_dumping()
        async with asyncio.timeout(20):
            while not await blocker.fetchval(
                "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'pg_dump' AND wait_event_type = 'Lock'"
            ):
                # Inside of a transaction, what was seen first is what is seen for ever.
                await blocker.execute("SELECT pg_stat_clear_snapshot()")
                await asyncio.sleep(0.01)
        await server.stop()
        with pytest.raises(DatabaseAway, match="went away"):
            await dump
        await blocker.close()


@pytest.mark.slow
async def test_a_server_that_stops_between_two_questions_may_be_back(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path / "server") as server:
        with pytest.raises(DatabaseAway, match="went away in the middle") as away:
            async with connect(Address.parse(server.url())) as connection:
                stop_immediately(server)
                while not connection.is_closed():
                    await asyncio.sleep(0.01)
                await connection.execute("SELECT 1")
        assert away.value.retryable


@pytest.mark.slow
async def test_a_server_that_hangs_in_the_middle_is_given_up(tmp_path: Path, stage: Path) -> None:
    """As behind a network that was cut: the connection stands, and nothing comes."""
    async with PostgresServer(tmp_path / "server") as server:
        await execute(server.url(), "CREATE TABLE t (a int)")
        async with held_up(server.url(), "t"):
            dump = asyncio.create_task(capture(source(url=server.url(), row_counts=False, stall_s=1), stage))
            await until_dumping()
            with frozen(server):
                began = time.monotonic()
                with pytest.raises(
                    DatabaseAway, match=r"gave nothing more of database postgres for 1 s, so|did not answer"
                ):
                    await asyncio.wait_for(dump, 20)
                assert time.monotonic() - began < 10
                assert dumping() == []


async def test_a_dump_that_is_slow_is_waited_for(database: str, stage: Path, tmp_path: Path) -> None:
    """Longer in all than its server may be silent."""
    await execute(database, "CREATE TABLE t (a int)")
    for tool in ("pg_restore", "pg_dumpall", "psql"):
        (tmp_path / tool).symlink_to(programs() / tool)
    slow = tmp_path / "pg_dump"
    slow.write_text(
        '#!/bin/sh\nfor word in "$@"; do case $word in --file=*) file=${word#--file=} ;; esac; done\n'
        'if [ "$file" ]; then for n in 1 2 3 4 5 6 7; do echo $n >>"$file"; sleep 0.3; done; fi\n'
        f'exec {programs() / "pg_dump"} "$@"\n'
    )
    slow.chmod(0o700)
    began = time.monotonic()
    await capture(source(url=database, tool_folders=[tmp_path], stall_s=1), stage)
    assert time.monotonic() - began > 2


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({}, "add url, url_file or container"),
        ({"url": "mysql://u:s3cret@h/d"}, "must begin with postgresql://"),
        ({"url": "postgresql://u:s3cret/x@h/d"}, "cannot be read as an address"),
        ({"url": "postgresql://u:12/s3cret@h/d"}, "cannot be read as an address"),
        ({"url": "postgresql://u@h/d?connect_timeout=s3cret"}, "holds connect_timeout, which is not known"),
        ({"url": "postgresql://u@h/d?password=x&s3cret=1"}, "holds a parameter, which is not known"),
        ({"url": "postgresql://u:12?s3cret=1@h/d"}, "holds a parameter, which is not known"),
        ({"url": "postgresql://u@h/d", "databases": "photos"}, 'must be "all" or a list'),
        ({"url": "postgresql://u@h/d", "databases": ["a", "a"]}, "names a database twice"),
        ({"url": "postgresql://u@h/d", "databases": [""]}, "holds an empty name"),
        ({"url": "postgresql://u@h/d", "databases": "all", "place": "x.dump"}, "holds one database"),
        ({"url": "postgresql://u@h/d", "globals": True, "place": "x.dump"}, "no room for globals"),
        ({"url": "postgresql://u@h/d", "format": "custom", "place": "x.sql"}, "is no SQL"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused_without_showing_them(
    settings: dict[str, object], sentence: str
) -> None:
    with pytest.raises(ValidationError, match=sentence) as raised:
        PostgresSettings.model_validate({"kind": "postgres", **settings})
    assert "s3cret" not in str(raised.value)


async def test_an_address_from_a_file_is_read_when_it_is_used(postgres: PostgresServer, tmp_path: Path) -> None:
    file = tmp_path / "url"
    taken = source(url_file=file)
    with pytest.raises(SourceError, match=r"is not there.*sources\.chat\.url_file"):
        await taken.check()
    file.write_text("http://x\n")
    with pytest.raises(DatabaseError, match="must begin with"):
        await taken.check()
    file.write_text(postgres.url() + "\n")
    assert await taken.check() == []

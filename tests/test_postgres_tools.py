"""Which of PostgreSQL's programs are taken, and how a dump is listed without reading it all."""

from __future__ import annotations

import asyncio
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from memu_backup import process
from memu_backup.errors import CannotCheck, DamagedArchive, DatabaseAway, DatabaseError, RestoreError
from memu_backup.postgres.connection import Address, connect, count_tables, qualified
from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from memu_backup.postgres.tools import find_tools, list_dump, put_back, tool_folders

NEWEST = 18


async def test_the_same_version_is_preferred_and_else_the_nearest_newer_one() -> None:
    folders = sorted(programs().parent.parent.glob("pginstall*/bin"))
    versions = {(await find_tools(0, [f])).major for f in folders}
    assert versions == {16, NEWEST}
    assert (await find_tools(16, folders)).major == 16
    assert (await find_tools(15, folders)).major == 16
    assert (await find_tools(17, reversed(folders))).major == NEWEST


async def test_too_old_programs_are_refused_with_the_package_to_install() -> None:
    with pytest.raises(DatabaseError, match=r"PostgreSQL 99 or newer.*newest here is 18\..*postgresql-client-99"):
        await find_tools(99, [programs()])
    with pytest.raises(DatabaseError, match="there is none here"):
        await find_tools(15, [])


async def test_wrappers_and_folders_that_lack_a_program_are_passed_over(tmp_path: Path) -> None:
    wrapper = tmp_path / "pg_wrapper"
    wrapper.write_text("#!/bin/sh\necho 'pg_dump (PostgreSQL) 18.1'\n")
    wrapper.chmod(0o755)
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        (tmp_path / name).symlink_to(wrapper)
    half = tmp_path / "half"
    half.mkdir()
    (half / "pg_dump").symlink_to(programs() / "pg_dump")
    with pytest.raises(DatabaseError, match="there is none here"):
        await find_tools(NEWEST, [tmp_path, half, tmp_path / "missing"])


async def test_the_folders_looked_at_hold_programs_for_the_embedded_server() -> None:
    assert (await find_tools(NEWEST, tool_folders())).major == NEWEST


@pytest.fixture
async def dump(database: str, tmp_path: Path) -> Path:
    """100 tables and 12 MB that do not fit into any pipe."""
    async with connect(Address.parse(database)) as connection:
        await connection.execute("".join(f"CREATE TABLE t{n} (a int);" for n in range(100)))
        await connection.execute("CREATE TABLE big AS SELECT repeat('x', 1200) FROM generate_series(1, 10000)")
    return await _dump(database, tmp_path)


async def _dump(url: str, folder: Path) -> Path:
    file = folder / "x.dump"
    argv = ["--format=custom", "--compress=0", f"--file={file}", f"--dbname={url}"]
    assert (await process.run([str(programs() / "pg_dump"), *argv])).returncode == 0
    return file


async def test_listing_reads_the_head_of_a_dump_only(dump: Path) -> None:
    taken = 0

    def blocks() -> Iterator[bytes]:
        nonlocal taken
        with dump.open("rb") as file:
            while block := file.read(65536):
                taken += len(block)
                yield block

    listing = await list_dump(blocks(), NEWEST)
    assert sum(" TABLE DATA public " in line for line in listing) == 101
    assert taken < dump.stat().st_size / 2


async def test_what_is_no_dump_or_breaks_off_in_its_list_is_an_error(dump: Path) -> None:
    for content in (b"", b"no dump at all", dump.read_bytes()[:3000]):
        with pytest.raises(DatabaseError, match="cannot read the dump"):
            await list_dump(iter([content]), NEWEST)


async def test_damage_found_while_reading_comes_out_as_it_is(dump: Path) -> None:
    def blocks() -> Iterator[bytes]:
        yield dump.read_bytes()[:3000]
        raise DamagedArchive("block 7 differs")

    with pytest.raises(DamagedArchive, match="block 7"):
        await list_dump(blocks(), NEWEST)


async def test_cancelling_a_listing_ends_pg_restore_and_the_thread_that_feeds_it() -> None:
    closed = False

    def blocks() -> Iterator[bytes]:
        nonlocal closed
        try:
            yield b"PGDMP"
            inside.set()
            time.sleep(0.5)  # a block that a slow disk is long in giving
            yield b"more"
        finally:
            closed = True

    inside = threading.Event()
    listing = asyncio.create_task(list_dump(blocks(), NEWEST))
    await asyncio.to_thread(inside.wait)
    (child,) = (c for c in psutil.Process().children() if c.name() == "pg_restore")
    listing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await listing
    assert closed
    assert not child.is_running()
    assert not [t for t in threading.enumerate() if t.name == "memu-work"]


def _programs(folder: Path, pg_restore: str) -> Path:
    """A folder with programs of a version that nobody has, 99, whose pg_restore is this script of the shell."""
    folder.mkdir()
    for name in ("pg_dump", "pg_dumpall", "psql", "pg_restore"):
        script = pg_restore if name == "pg_restore" else "echo 'pg_dump (PostgreSQL) 99.1'"
        (folder / name).write_text(f"#!/bin/sh\n{script}\n")
        (folder / name).chmod(0o755)
    return folder


@pytest.mark.parametrize(
    "script",
    [
        "kill -9 $$",
        "echo 'pg_restore: error while loading shared libraries: libpq.so.5: not there' >&2; exit 127",
        "echo 'pg_restore: error: unsupported version (1.99) in file header' >&2; exit 1",
        "echo 'out of memory' >&2; exit 1",
    ],
)
async def test_a_pg_restore_that_could_not_look_says_nothing_against_the_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    monkeypatch.setenv("PATH", str(_programs(tmp_path / "bin", script)), prepend=os.pathsep)
    with pytest.raises(CannotCheck, match=r"pg_restore 99\.1 gave up .*Try again"):
        await list_dump(iter([b"PGDMP"]), 99)


async def test_a_pg_restore_that_is_missing_or_gone_says_nothing_against_the_dump(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(CannotCheck, match=r"nothing against it.*apt install postgresql-client-98"):
        await list_dump(iter([b"PGDMP"]), 98)
    folder = _programs(tmp_path / "bin", "")
    (folder / "pg_restore").write_text("#!/no/such/shell\n")
    monkeypatch.setenv("PATH", str(folder), prepend=os.pathsep)
    with pytest.raises(CannotCheck, match="did not run"):
        await list_dump(iter([b"PGDMP"]), 99)


async def test_counting_leaves_nothing_behind_in_a_session_that_others_may_get(database: str) -> None:
    async with connect(Address.parse(database)) as connection:
        async with connection.transaction():
            await count_tables(connection)
        assert await connection.fetchval("SHOW row_security") == "on"


async def test_a_restore_that_loses_rows_is_an_error(postgres: PostgresServer, database: str, tmp_path: Path) -> None:
    # The classic: a check that looks into another table without its schema works live and fails on the way back.
    async with connect(Address.parse(database)) as connection:
        await connection.execute("""
            CREATE TABLE other (a int); INSERT INTO other VALUES (1);
            CREATE FUNCTION f() RETURNS boolean LANGUAGE plpgsql AS
                'BEGIN RETURN EXISTS (SELECT FROM other); END';
            CREATE TABLE t (a int CHECK (f())); INSERT INTO t VALUES (1)""")
    file = await _dump(database, tmp_path)
    async with connect(Address.parse(postgres.url())) as connection:
        await connection.execute("CREATE DATABASE loses_rows")
    with pytest.raises(RestoreError, match=r'x\.dump could not be put back as database loses_rows: .*"other"'):
        await put_back(file, postgres.url("loses_rows"), major=NEWEST)


async def test_a_plain_dump_that_fails_leaves_the_database_empty(database: str, tmp_path: Path) -> None:
    file = tmp_path / "x.sql"
    file.write_text("CREATE TABLE a (b int);\nCREATE TABLE c (d no_such_type);\n")
    with pytest.raises(RestoreError, match="no_such_type"):
        await put_back(file, database, major=NEWEST)
    async with connect(Address.parse(database)) as connection:
        assert await connection.fetchval("SELECT to_regclass('a')") is None


async def test_a_server_that_never_answers_is_given_up() -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = Address.parse(f"postgresql://anna@127.0.0.1:{silent.getsockname()[1]}/photos?sslmode=disable")
        with pytest.raises(DatabaseAway, match="did not answer in time"):
            async with connect(address, timeout_s=0.1):
                pass


@pytest.mark.parametrize(
    ("url", "host", "port", "user", "database"),
    [
        ("postgresql://anna:x@db.home:5433/photos", "db.home", 5433, "anna", "photos"),
        ("postgres://anna@/a%20b?host=%2Frun%2FPG&port=7", "/run/PG", 7, "anna", "a b"),
        ("postgresql://anna@%2Frun%2FPG/photos", "/run/PG", 5432, "anna", "photos"),
        ("postgresql://anna@[::1]", "::1", 5432, "anna", "anna"),
    ],
)
def test_an_address_is_read_in_all_its_forms(url: str, host: str, port: int, user: str, database: str) -> None:
    found = Address.parse(url)
    assert (found.host, found.port, found.user, found.database) == (host, port, user, database)
    again = Address.parse(found.url)
    assert (again.host, again.port, again.user, again.database) == (host, port, user, database)


def test_a_password_is_in_no_form_of_an_address_that_is_shown() -> None:
    address = Address.parse("postgresql://anna:c4n4ry@db.home/photos?sslmode=require")
    assert "c4n4ry" not in f"{address} {address!r} {address.url} {address.server}"
    assert address.environment["PGPASSWORD"] == "c4n4ry"
    assert address.without_secret("bad c4n4ry here") == "bad *** here"
    assert Address.parse("postgresql://anna:old@h/d", password="new").password == "new"


def test_names_of_tables_are_quoted_the_same_for_every_server() -> None:
    assert qualified("public", "photos") == "public.photos"
    assert qualified("public", "select") == "public.select"
    assert qualified("My", 'a".b') == '"My"."a"".b"'

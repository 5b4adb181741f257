"""What goes back into a server that runs here, and a whole server that was copied by the programs of this machine."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from memu_backup import exchange, put_back
from memu_backup.errors import DamagedArchive, DatabaseError, RestoreError, SourceError
from memu_backup.postgres import back
from memu_backup.postgres.connection import count_rows
from memu_backup.postgres.reach import Here
from memu_backup.postgres.server import PostgresServer
from memu_backup.sources.postgres import PostgresSource
from tests.archives import TAKEN_AT, Return, archive_store, back_up, give_back, ignore, needs_root, returning
from tests.disks import loop_disk
from tests.home import Home
from tests.sources.conftest import DebianServer
from tests.sources.dumps import execute, session, source


async def stored(taken: PostgresSource, tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir(mode=0o700)
    async with taken.capture(tmp_path / "stage") as captured:
        return back_up(archive_store(tmp_path / "store"), captured)


async def planned(archive: Path, taken: PostgresSource, tmp_path: Path) -> Return:
    return await returning(archive, {taken.name: taken}, tmp_path / "scratch")


async def drop(debian: DebianServer, *names: str) -> None:
    for name in names:
        await execute(debian.url(), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', password=debian.password)


@pytest.mark.parametrize("form", ["custom", pytest.param("plain", marks=pytest.mark.slow)])
async def test_databases_and_roles_come_back_and_roles_that_are_there_stay(
    debian: DebianServer, secret: Path, tmp_path: Path, form: str
) -> None:
    await drop(debian, "Fotos & Co", "chat")
    setup = ["DROP ROLE IF EXISTS berta", "DROP ROLE IF EXISTS carl", "CREATE ROLE berta LOGIN PASSWORD 'b3rta'",
             "CREATE ROLE carl", 'CREATE DATABASE "Fotos & Co" OWNER berta', "CREATE DATABASE chat"]  # fmt: skip
    await execute(debian.url(), *setup, password=debian.password)
    await execute(
        debian.url("Fotos%20%26%20Co"),
        "CREATE TABLE a AS SELECT generate_series(1, 777) n", "ALTER TABLE a OWNER TO berta",
        "CREATE TABLE b (t text)", "GRANT SELECT ON b TO carl", password=debian.password,
    )  # fmt: skip
    taken = source(url=debian.url(), password_file=secret, databases=["Fotos & Co", "chat"], format=form)
    archive = await stored(taken, tmp_path)
    assert (await planned(archive, taken, tmp_path)).step.replaces == ("database Fotos & Co with 2 tables",)

    await drop(debian, "Fotos & Co", "chat")
    await execute(debian.url(), "DROP ROLE carl", "ALTER ROLE berta PASSWORD 'n3w'", password=debian.password)
    assert await (await planned(archive, taken, tmp_path)).all_there() == ()
    async with session(debian.url("Fotos%20%26%20Co"), debian.password) as connection:
        assert await connection.fetchval("SELECT count(*) FROM a") == 777
        assert await connection.fetchval("SELECT has_table_privilege('carl', 'b', 'SELECT')")
        assert await connection.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'a'") == "berta"
    async with session(debian.url("chat", user="berta"), "n3w"):  # with the password that she has now
        pass
    await drop(debian, "Fotos & Co", "chat")


async def test_without_the_file_that_holds_its_password_it_is_not_put_back_and_that_is_said(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    taken = source(url=debian.url(), password_file=secret)
    archive = await stored(taken, tmp_path)
    secret.unlink()
    with pytest.raises(
        SourceError, match=r"password is not there, so the databases of source \w+ cannot be put back\."
    ):
        await planned(archive, taken, tmp_path)


async def test_a_database_that_is_in_use_is_exchanged_and_can_be_had_again(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "family")
    setup = ["DROP ROLE IF EXISTS dora", "CREATE ROLE dora LOGIN PASSWORD 'd0ra'", "CREATE DATABASE family OWNER dora"]
    await execute(debian.url(), *setup, password=debian.password)
    await execute(debian.url("family"), "CREATE TABLE t AS SELECT 1 n", password=debian.password)
    taken = source(url=debian.url("family"), password_file=secret)
    archive = await stored(taken, tmp_path)
    await execute(debian.url("family"), "INSERT INTO t VALUES (2), (3)", password=debian.password)

    async def rows() -> int:
        return (await count_rows(debian.url_with_password("family")))["public.t"]

    async with session(debian.url("family", user="dora"), "d0ra") as connection:
        back = await planned(archive, taken, tmp_path)
        assert back.step.replaces == ("database family with 1 table",)
        assert await back.all_there() == ()
        assert connection.is_closed() or not await alive(connection)
    assert await rows() == 1
    async with session(debian.url("family"), debian.password) as connection:
        owner = "SELECT pg_get_userbyid(datdba) FROM pg_database WHERE datname = 'family'"
        assert await connection.fetchval(owner) == "dora"
    for expected in (3, 1, 3):
        await exchange.undo(back.house, None, lambda _: None)
        assert await rows() == expected
    await exchange.release(back.house, None)
    async with session(debian.url(), debian.password) as connection:
        found = await connection.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'family%'")
    assert [row[0] for row in found] == ["family"]
    await drop(debian, "family")


async def alive(connection: asyncpg.Connection) -> bool:
    try:
        return bool(await connection.fetchval("SELECT true"))
    except (asyncpg.PostgresError, asyncpg.InterfaceError, OSError):
        return False


PROPERTIES = (
    "SELECT pg_get_userbyid(datdba), setconfig, (SELECT array_agg(a::text ORDER BY a::text) FROM unnest(datacl) a)"
    " FROM pg_database d"
    " LEFT JOIN pg_db_role_setting ON setdatabase = d.oid AND setrole = 0 WHERE datname = 'family'"
)


@pytest.mark.parametrize("there", ["nothing", "another one"])
async def test_it_belongs_to_whom_it_did_and_has_what_was_set_for_it(
    debian: DebianServer, secret: Path, tmp_path: Path, there: str
) -> None:
    """Else its program may make no table in it, and finds no extension."""
    await drop(debian, "family")
    owned = ["CREATE ROLE \"D o\" LOGIN PASSWORD 'd0'", 'CREATE DATABASE family OWNER "D o"']
    setup = ['DROP ROLE IF EXISTS "D o"', *owned, "ALTER DATABASE family SET app.greeting TO 'it''s, me'",
             """ALTER DATABASE family SET search_path TO "$user", public, 'Vec"tors'""",
             "REVOKE ALL ON DATABASE family FROM PUBLIC", "GRANT CONNECT ON DATABASE family TO pg_monitor",
             "GRANT TEMPORARY ON DATABASE family TO pg_signal_backend WITH GRANT OPTION"]  # fmt: skip
    await execute(debian.url(), *setup, password=debian.password)
    await execute(debian.url("family"), "CREATE TABLE t AS SELECT 1 n", password=debian.password)
    taken = source(url=debian.url("family"), password_file=secret)
    archive = await stored(taken, tmp_path)
    async with session(debian.url(), debian.password) as connection:
        before = tuple(await connection.fetchrow(PROPERTIES))
    assert before[0] == "D o" and len(before[1]) == 2 and len(before[2]) == 3
    await drop(debian, "family")
    await execute(debian.url(), 'DROP ROLE "D o"', password=debian.password)
    if there == "another one":
        await execute(debian.url(), *owned, password=debian.password)
    back = await planned(archive, taken, tmp_path)
    assert await back.all_there() == ()
    async with session(debian.url(), debian.password) as connection:
        assert tuple(await connection.fetchrow(PROPERTIES)) == before
    async with session(debian.url("family", user="D%20o"), "d0") as connection:
        await connection.execute("CREATE TABLE public.of_tomorrow (n int)")
    await exchange.release(back.house, None)
    await drop(debian, "family")


async def test_whom_it_belonged_to_and_cannot_any_more_is_told(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "family")
    setup = ["DROP ROLE IF EXISTS eva", "CREATE ROLE eva", "CREATE DATABASE family OWNER eva"]
    await execute(debian.url(), *setup, password=debian.password)
    taken = source(url=debian.url("family"), password_file=secret, globals=False)
    archive = await stored(taken, tmp_path)
    await drop(debian, "family")
    await execute(debian.url(), "DROP ROLE eva", password=debian.password)
    (told,) = await (await planned(archive, taken, tmp_path)).all_there()
    assert told == 'Database family came back without this: OWNER TO eva (role "eva" does not exist).'
    await drop(debian, "family")


async def test_the_database_that_every_server_has_is_exchanged_too(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    """With databases = "all" it is among them."""
    await execute(debian.url(), "CREATE TABLE mine AS SELECT 1 n", password=debian.password)
    taken = source(url=debian.url(), password_file=secret, databases="all")
    archive = await stored(taken, tmp_path)
    await execute(debian.url(), "INSERT INTO mine VALUES (2)", password=debian.password)

    async def rows() -> int:
        return (await count_rows(debian.url_with_password()))["public.mine"]

    back = await planned(archive, taken, tmp_path)
    assert await back.all_there() == () and await rows() == 1
    await exchange.undo(back.house, None, lambda _: None)
    assert await rows() == 2
    await exchange.release(back.house, None)
    await execute(debian.url(), "DROP TABLE mine", password=debian.password)


async def test_what_cannot_be_loaded_leaves_the_one_that_is_there(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "family")
    await execute(debian.url(), "CREATE DATABASE family", password=debian.password)
    await execute(debian.url("family"), "CREATE TABLE t AS SELECT 1 n", password=debian.password)
    taken = source(url=debian.url("family"), password_file=secret)
    archive = await stored(taken, tmp_path)
    back = await planned(archive, taken, tmp_path)
    (dump,) = back.step.summary.details["databases"]
    dump["tables"]["public.t"] = 2
    with pytest.raises(RestoreError, match="the one that is there is as it was"):
        await back.carry_out()
    async with session(debian.url(), debian.password) as connection:
        found = await connection.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'family%'")
    assert [row[0] for row in found] == ["family"]
    await drop(debian, "family")


async def test_what_the_settings_want_is_changed_in_what_comes_back_before_it_is_there(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    """Where there is no such table it is passed over; what the server refuses is told."""
    await drop(debian, "family")
    await execute(debian.url(), "CREATE DATABASE family", password=debian.password)
    tables = [f"CREATE TABLE {name} AS SELECT generate_series(1, 3) n" for name in ("keys", "sessions", "messages")]
    await execute(debian.url("family"), *tables, password=debian.password)
    sql = ["TRUNCATE keys", "TRUNCATE nothing", "DELETE FROM gone.tables", "TRUNCAT sessions", "TRUNCATE sessions"]
    changes: list[dict[str, str]] = [{"sql": one} for one in sql]
    changes[0]["why"] = "so that new ones are made"
    taken = source(url=debian.url("family"), password_file=secret, when_restored=changes)
    archive = await stored(taken, tmp_path)
    back = await planned(archive, taken, tmp_path)
    assert back.step.changed == ("TRUNCATE keys, so that new ones are made", *sql[1:])
    told: list[str] = []
    done = await put_back.carry_out(back.house, back.planned, TAKEN_AT, told.append, ignore)
    assert [line for line in told if "Done" in line] == [
        "Done in database family: TRUNCATE keys, so that new ones are made.",
        "Done in database family: TRUNCATE sessions.",
    ]
    (warning,) = done.warnings["chat"]
    assert warning.startswith("In database family this could not be done: TRUNCAT sessions (syntax error at or near")
    rows = {"public.keys": 0, "public.sessions": 0, "public.messages": 3}
    assert await count_rows(debian.url_with_password("family")) == rows
    assert await taken.recalled(back.step.summary) == "3 tables and 3 rows, in the backup 9"
    await execute(debian.url("family"), "DROP TABLE sessions", password=debian.password)
    with pytest.raises(
        DatabaseError, match=r"Database family lacks public\.sessions\. Type: memu-backup restore --undo"
    ):
        await taken.recalled(back.step.summary)
    await exchange.undo(back.house, None, lambda _: None)
    assert await count_rows(debian.url_with_password("family")) == dict.fromkeys(rows, 3)
    await exchange.release(back.house, None)
    await drop(debian, "family")


async def test_an_empty_database_that_is_there_is_filled(database: str, tmp_path: Path) -> None:
    await execute(database, "CREATE TABLE t AS SELECT generate_series(1, 10) n")
    taken = source(url=database, globals=False)
    archive = await stored(taken, tmp_path)
    await execute(database, "DROP TABLE t")
    await (await planned(archive, taken, tmp_path)).carry_out()
    assert await count_rows(database) == {"public.t": 10}


async def test_a_database_that_comes_back_with_other_rows_is_told_and_does_not_stay(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "short")
    await execute(debian.url(), "CREATE DATABASE short", password=debian.password)
    await execute(debian.url("short"), "CREATE TABLE t AS SELECT 1 n", password=debian.password)
    taken = source(url=debian.url("short"), password_file=secret)
    archive = await stored(taken, tmp_path)
    await drop(debian, "short")
    back = await planned(archive, taken, tmp_path)
    (dump,) = back.step.summary.details["databases"]
    dump["tables"]["public.t"] = 2
    with pytest.raises(RestoreError, match=r"other numbers of rows than it was backed up with \(public\.t\)"):
        await back.carry_out()
    with pytest.raises(DatabaseError, match="has no database short"):
        await count_rows(debian.url_with_password("short"))


async def test_a_backup_that_does_not_tell_of_its_dumps_is_not_put_back(database: str, tmp_path: Path) -> None:
    taken = source(url=database, globals=False)
    archive = await stored(taken, tmp_path)
    step = (await planned(archive, taken, tmp_path)).step
    step.summary.details["databases"][0].pop("format")
    with pytest.raises(DamagedArchive, match="changed by hand"):
        await taken.prepare(tmp_path, step.summary, "now")


@pytest.mark.slow
@needs_root
async def test_a_whole_server_that_was_copied_starts_from_its_copy(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "whole")
    await execute(debian.url(), "CREATE DATABASE whole", password=debian.password)
    await execute(debian.url("whole"), "CREATE TABLE t AS SELECT generate_series(1, 5000) n", password=debian.password)
    taken = source(url=debian.url(), password_file=secret, mode="basebackup")
    archive = await stored(taken, tmp_path)
    with pytest.raises(RestoreError, match="and its files are not changed meanwhile"):
        await (await planned(archive, taken, tmp_path)).carry_out()
    await drop(debian, "whole")
    # Not below pytest's folder, which only root may enter.
    with tempfile.TemporaryDirectory() as folder:
        shutil.chown(folder, "postgres")
        unpacked = give_back(archive, Path(folder) / "home").target / "chat"
        shutil.chown(unpacked.parent, "postgres")
        assert unpacked.owner() == (unpacked / "PG_VERSION").owner() == "postgres"
        with started(debian, unpacked):
            url = debian.url_with_password("whole").replace(f"127.0.0.1:{debian.port}/", "/")
            url += f"?host={quote(str(unpacked.parent))}"
            assert await count_rows(url) == {"public.t": 5000}


@contextmanager
def started(debian: DebianServer, data: Path) -> Iterator[None]:
    """A second server, at a socket of its own: any port may be somebody else's."""
    run = ["runuser", "-u", "postgres", "--", str(debian.programs / "pg_ctl"), "-D", str(data), "-w", "-s"]
    flags = f"-k {data.parent} -p 5432 -c listen_addresses="
    subprocess.run([*run, "start", "-l", f"{data.parent}/log", "-o", flags], check=True, cwd="/")
    try:
        yield
    finally:
        subprocess.run([*run, "stop", "-m", "immediate"], check=True, cwd="/")


async def test_a_user_who_may_not_copy_it_as_a_whole_is_told_before(debian: DebianServer, bob: Path) -> None:
    with pytest.raises(
        DatabaseError, match=r'does not let user bob copy it as a whole; .*ALTER ROLE "bob" REPLICATION'
    ):
        await source(url=debian.url("bobs", user="bob"), password_file=bob, mode="basebackup").check()


def test_names_beside_others_are_told_apart_however_long_they_are() -> None:
    """Postgres cuts a name after 63 bytes, in silence."""
    long = ["x" * 40 + "a", "x" * 40 + "b", "x" * 63, "x" * 62 + "y", "é" * 31, "é" * 30 + "ab"]
    names = [back._named(name, f"{word}_20260304T020000") for name in long for word in ("restored", "before")]
    assert len(set(names)) == len(names) and all(len(name.encode()) <= 63 for name in names)
    assert back._named("family", "before_20260304T020000") == "family_before_20260304T020000"


async def test_it_is_known_how_much_is_free_where_the_server_keeps_it(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "family")
    await execute(debian.url(), "CREATE DATABASE family", password=debian.password)
    await execute(
        debian.url("family"), "CREATE TABLE t AS SELECT generate_series(1, 200000) n", password=debian.password
    )
    taken = source(url=debian.url("family"), password_file=secret)
    archive = await stored(taken, tmp_path)
    taking = (await planned(archive, taken, tmp_path)).step.taking
    async with session(debian.url("family"), debian.password) as connection:
        size = await connection.fetchval("SELECT pg_database_size(current_database())")
        folder = Path(await connection.fetchval("SHOW data_directory"))
    assert taking and taking.needed_bytes == 2 * size and str(folder) in taking.where
    assert taking.device == folder.stat().st_dev and taking.free_bytes and taking.free_bytes > 0
    # One behind a port of this machine may tell a path at which another lies.
    assert await Here().free(str(folder), 1) is None and await Here().free(str(tmp_path), 1) is None
    await drop(debian, "family")


@needs_root
async def test_without_room_on_the_servers_own_disk_nothing_is_begun(tmp_path: Path) -> None:
    """Else the server itself would run out of room, and with it every program that uses it."""
    with loop_disk("ext4", tmp_path, 160 << 20) as disk:
        disk.chmod(0o755)
        server = PostgresServer(disk / "server")
        await server.start()
        try:
            url = server.url()
            await execute(url, "CREATE DATABASE family")
            inside = url.replace("/postgres?", "/family?")
            await execute(inside, "CREATE TABLE t AS SELECT repeat(md5(n::text), 20) FROM generate_series(1, 30000) n")
            taken = source(url=inside)
            archive = await stored(taken, tmp_path)
            assert (await planned(archive, taken, tmp_path)).step.taking
            free = os.statvfs(disk)
            with (disk / "filler").open("wb") as filler:
                os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - (20 << 20))
            with pytest.raises(RestoreError, match=r"Not enough space: .* needed, .* free at .*server.*nothing was"):
                await planned(archive, taken, tmp_path)
        finally:
            await server.stop()


@pytest.mark.parametrize("after", ["--undo", pytest.param("--in-place", marks=pytest.mark.slow)])
async def test_killed_while_it_is_loaded_nothing_is_left_on_the_server(
    debian: DebianServer, tmp_path: Path, database: str, after: str
) -> None:
    """A database whose program was killed would stay for ever, and as large as the one that is there."""
    await drop(debian, "family", "family_restored_by_hand")
    await execute(
        debian.url(), "CREATE DATABASE family", "CREATE DATABASE family_restored_by_hand", password=debian.password
    )
    await execute(debian.url("family"), "CREATE TABLE t AS SELECT 1 n", password=debian.password)
    home = Home(tmp_path / "home", database)
    home.configure(
        sources=f'[sources.family]\nkind = "postgres"\nurl = "{debian.url_with_password("family")}"\n'
        'when_restored = [{ sql = "SELECT pg_sleep(600)" }]\n'
    )
    assert home.run("start").status == 0

    async def there() -> list[str]:
        async with session(debian.url(), debian.password) as connection:
            rows = await connection.fetch("SELECT datname FROM pg_database WHERE datname LIKE 'family%' ORDER BY 1")
        return [row[0] for row in rows]

    async def sleeps() -> bool:
        async with session(debian.url(), debian.password) as connection:
            return bool(
                await connection.fetchval("SELECT count(*) FROM pg_stat_activity WHERE query LIKE '%sleep(600)'")
            )

    running = home.started("restore", "--in-place", "--yes")
    async with asyncio.timeout(30):
        while not await sleeps():
            await asyncio.sleep(0.05)
    running.kill()
    running.communicate()
    before = ["family", "family_restored_by_hand"]
    assert len(await there()) == 3
    if after == "--in-place":
        home.configure(sources=f'[sources.family]\nkind = "postgres"\nurl = "{debian.url_with_password("family")}"\n')
    ran = home.run("restore", after, *(("--yes",) if after == "--in-place" else ()))
    assert ran.status == 0, ran
    if after == "--in-place":
        assert home.run("restore", "--release", "--yes").status == 0
    assert await there() == before
    async with session(debian.url(), debian.password) as connection:
        comment = "SELECT shobj_description(oid, 'pg_database') FROM pg_database WHERE datname = 'family'"
        assert await connection.fetchval(comment) is None
    await drop(debian, *before)

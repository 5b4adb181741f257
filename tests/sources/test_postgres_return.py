"""What goes back into a server that runs here, and a whole server that was copied by the programs of this machine."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memu_backup import put_back
from memu_backup.errors import DamagedArchive, DatabaseError, RestoreError
from memu_backup.postgres.connection import count_rows
from memu_backup.put_back import Step
from memu_backup.sources.postgres import PostgresSource
from tests.archives import archive_store, back_up, give_back, ignore, needs_root
from tests.sources.conftest import DebianServer
from tests.sources.dumps import execute, session, source


async def stored(taken: PostgresSource, tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir(mode=0o700)
    async with taken.capture(tmp_path / "stage") as captured:
        return back_up(archive_store(tmp_path / "store"), captured)


async def planned(archive: Path, taken: PostgresSource, tmp_path: Path) -> Step:
    (step,) = await put_back.plan(archive, {taken.name: taken}, [], tmp_path / "scratch", trusted=True)
    return step


async def drop(debian: DebianServer, *names: str) -> None:
    for name in names:
        await execute(debian.url(), f'DROP DATABASE IF EXISTS "{name}" WITH (FORCE)', password=debian.password)


@pytest.mark.parametrize("form", ["custom", "plain"])
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
    with pytest.raises(RestoreError, match="has a database Fotos & Co with 2 tables in it already"):
        await planned(archive, taken, tmp_path)

    await drop(debian, "Fotos & Co", "chat")
    await execute(debian.url(), "DROP ROLE carl", "ALTER ROLE berta PASSWORD 'n3w'", password=debian.password)
    returned = await put_back.carry_out(await planned(archive, taken, tmp_path), ignore)
    assert returned.warnings == ()
    async with session(debian.url("Fotos%20%26%20Co"), debian.password) as connection:
        assert await connection.fetchval("SELECT count(*) FROM a") == 777
        assert await connection.fetchval("SELECT has_table_privilege('carl', 'b', 'SELECT')")
        assert await connection.fetchval("SELECT tableowner FROM pg_tables WHERE tablename = 'a'") == "berta"
    async with session(debian.url("chat", user="berta"), "n3w"):  # with the password that she has now
        pass
    await drop(debian, "Fotos & Co", "chat")


async def test_an_empty_database_that_is_there_is_filled(database: str, tmp_path: Path) -> None:
    await execute(database, "CREATE TABLE t AS SELECT generate_series(1, 10) n")
    taken = source(url=database, globals=False)
    archive = await stored(taken, tmp_path)
    await execute(database, "DROP TABLE t")
    await put_back.carry_out(await planned(archive, taken, tmp_path), ignore)
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
    step = await planned(archive, taken, tmp_path)
    (dump,) = step.summary.details["databases"]
    dump["tables"]["public.t"] = 2
    with pytest.raises(RestoreError, match=r"other numbers of rows than it was backed up with \(public\.t\)"):
        await put_back.carry_out(step, ignore)
    with pytest.raises(DatabaseError, match="has no database short"):
        await count_rows(debian.url_with_password("short"))


async def test_a_backup_that_does_not_tell_of_its_dumps_is_not_put_back(database: str, tmp_path: Path) -> None:
    taken = source(url=database, globals=False)
    archive = await stored(taken, tmp_path)
    step = await planned(archive, taken, tmp_path)
    step.summary.details["databases"][0].pop("format")
    with pytest.raises(DamagedArchive, match="changed by hand"):
        await taken.put_back(tmp_path, step.summary)


@needs_root
async def test_a_whole_server_that_was_copied_starts_from_its_copy(
    debian: DebianServer, secret: Path, tmp_path: Path
) -> None:
    await drop(debian, "whole")
    await execute(debian.url(), "CREATE DATABASE whole", password=debian.password)
    await execute(debian.url("whole"), "CREATE TABLE t AS SELECT generate_series(1, 5000) n", password=debian.password)
    taken = source(url=debian.url(), password_file=secret, mode="basebackup")
    archive = await stored(taken, tmp_path)
    with pytest.raises(RestoreError, match="is not empty"):
        await planned(archive, taken, tmp_path)
    await drop(debian, "whole")
    # Not below pytest's folder, which only root may enter.
    with tempfile.TemporaryDirectory() as folder:
        shutil.chown(folder, "postgres")
        unpacked = give_back(archive, Path(folder) / "home").target / "chat"
        shutil.chown(unpacked.parent, "postgres")
        assert unpacked.owner() == (unpacked / "PG_VERSION").owner() == "postgres"
        with started(debian, unpacked):
            url = debian.url_with_password("whole").replace(f":{debian.port}/", f":{debian.port + 1}/")
            assert await count_rows(url) == {"public.t": 5000}


@contextmanager
def started(debian: DebianServer, data: Path) -> Iterator[None]:
    """A second server, on the next port."""
    run = ["runuser", "-u", "postgres", "--", str(debian.programs / "pg_ctl"), "-D", str(data), "-w", "-s"]
    flags = f"-k {data.parent} -p {debian.port + 1} -c listen_addresses=127.0.0.1"
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

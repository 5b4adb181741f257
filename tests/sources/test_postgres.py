"""Dumps of real servers, the embedded one and Debian's, each proved by what comes out of it again."""

from __future__ import annotations

import asyncio
import json
import stat
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memu_backup import process
from memu_backup.errors import CannotCheck, DamagedArchive, DatabaseError
from memu_backup.model import Captured
from memu_backup.postgres.connection import count_rows
from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from memu_backup.postgres.tools import put_back
from memu_backup.sources import kinds, told
from memu_backup.sources.postgres import PostgresSource
from tests.sources.conftest import DebianServer
from tests.sources.dumps import Captures, execute, session, source, summary

DUMP = {"file": "chat/x.dump", "format": "custom", "encoding": "UTF8", "tables": {"public.t": 1}}
NOW = datetime(2026, 1, 26, 9, 0, tzinfo=UTC)
ODD_TABLE = '"My Schema"."my "".\n table"'


def test_the_kind_is_found_by_its_name() -> None:
    assert kinds()["postgres"] is PostgresSource


async def test_a_dump_of_a_busy_database_holds_exactly_the_rows_counted_in_its_snapshot(
    database: str, copy: str, stage: Path
) -> None:
    await execute(
        database,
        "CREATE TABLE events (id serial PRIMARY KEY, body text)",
        "CREATE TABLE echo (id int PRIMARY KEY)",
        "INSERT INTO events (body) SELECT repeat(md5(g::text), 8) FROM generate_series(1, 30000) g",
        "INSERT INTO echo SELECT id FROM events",
    )
    written = 0

    async def keep_writing() -> None:
        nonlocal written
        async with session(database) as connection:
            while True:
                async with connection.transaction():
                    number = await connection.fetchval("INSERT INTO events (body) VALUES ('new') RETURNING id")
                    await connection.execute("INSERT INTO echo VALUES ($1)", number)
                written += 1

    writer = asyncio.create_task(keep_writing())
    while written < 5:
        await asyncio.sleep(0.005)
    before = written
    async with source(url=database).capture(stage) as captured:
        writer.cancel()
        (dump,) = captured.details["databases"]
        assert written > before, "nothing was written during the dump, so it proves nothing"
        assert dump["tables"]["public.events"] == dump["tables"]["public.echo"] >= 30005
        assert dump["tables"]["public.events"] < 30000 + written
        major = captured.details["pg_restore_major"]
        assert await put_back(Captures(captured).path(dump["file"]), copy, major=major) == []
    assert await count_rows(copy) == dump["tables"]


async def test_odd_names_come_back_and_are_found_in_the_dump(database: str, copy: str, stage: Path) -> None:
    await execute(
        database,
        'CREATE SCHEMA "My Schema"',
        f"CREATE TABLE {ODD_TABLE} (a int)",
        f"INSERT INTO {ODD_TABLE} VALUES (1), (2)",
        'CREATE TABLE "größe" ("ä ö" int)',
        "CREATE TABLE parts (a int) PARTITION BY LIST (a)",
        "CREATE TABLE part_one PARTITION OF parts FOR VALUES IN (1)",
        "INSERT INTO parts VALUES (1), (1), (1)",
        "CREATE TABLE parent (a int); CREATE TABLE child () INHERITS (parent); INSERT INTO child VALUES (1)",
        "CREATE TEMP TABLE passing (a int)",
    )
    async with source(url=database).capture(stage) as captured:
        (dump,) = captured.details["databases"]
        assert dump["tables"] == {
            '"My Schema"."my "".\n table"': 2,
            'public."größe"': 0,
            "public.part_one": 3,
            "public.parent": 0,
            "public.child": 1,
        }
        assert await PostgresSource.verify(summary(captured), Captures(captured)) == []
        await put_back(Captures(captured).path(dump["file"]), copy, major=captured.details["pg_restore_major"])
    assert await count_rows(copy) == dump["tables"]
    assert PostgresSource.told(summary(captured), NOW, UTC) == "1 database, 6 rows"
    async with session(copy) as connection:
        assert [tuple(r) for r in await connection.fetch(f"SELECT a FROM {ODD_TABLE} ORDER BY 1")] == [(1,), (2,)]


@pytest.mark.parametrize(
    ("details", "says"),
    [
        ({"databases": [{"tables": {"a": 12_000}}, {"tables": {"a": 34, "b": 0}}]}, "2 databases, 12,034 rows"),
        ({"databases": [{"tables": {"a": 12_000}}, {"tables": {"a": None}}]}, "2 databases"),
        ({"databases": [{"name": "of an earlier version"}]}, "1 database"),
        ({"databases": [{"tables": {"a": -1}}]}, "0 files"),
        ({"databases": [{"tables": {"a": 10**4299}}]}, "0 files"),
        ({"databases": "all"}, "0 files"),
        ({}, "0 files"),
    ],
)
def test_its_part_is_told_by_what_its_details_hold(details: dict[str, Any], says: str) -> None:
    captured = Captured("chat", "postgres", "chat/", (), "in one snapshot", details)
    assert told(summary(captured), NOW, UTC) == says


def test_a_kind_of_a_newer_version_is_told_as_files() -> None:
    captured = Captured("chat", "hologram", "chat/", (), "in one snapshot", {"databases": [{}]})
    assert told(summary(captured), NOW, UTC) == "0 files"


async def test_details_say_what_a_restore_needs_and_hold_no_secret(
    debian: DebianServer, secret: Path, stage: Path
) -> None:
    await execute(debian.url(), "CREATE TABLE IF NOT EXISTS t (a int)", password=debian.password)
    async with source(url=debian.url(), password_file=secret).capture(stage) as captured:
        details = captured.details
        json.dumps(details)
        (dump,) = details["databases"]
        assert details["server_major"] == details["pg_restore_major"] == debian.major
        assert details["pg_dump_version"].startswith(f"{debian.major}.")
        assert details["server_version"].startswith(f"{debian.major}.")
        assert (dump["name"], dump["file"], dump["format"]) == ("postgres", "chat/postgres.dump", "custom")
        assert dump["encoding"] == "UTF8"
        taken_at = datetime.fromisoformat(dump["snapshot_at"])
        assert taken_at.utcoffset() == timedelta(0)
        assert abs(datetime.now(UTC) - taken_at) < timedelta(minutes=1)
        assert captured.consistency == f"pg_dump {details['pg_dump_version']} in one snapshot"
        for file in (p for p in stage.rglob("*") if p.is_file()):
            assert stat.S_IMODE(file.stat().st_mode) == 0o600
            assert debian.password not in file.read_text(errors="replace")
        assert (stage / "postgres.dump").stat().st_size == dump["size_bytes"]
        assert debian.password not in repr(captured)


async def test_all_databases_get_file_names_that_cannot_leave_the_folder(
    debian: DebianServer, secret: Path, stage: Path
) -> None:
    names = ["../x", "a b", ".hidden", "-v", "globals", "größe", 'quo"te']
    for name in names:
        quoted = '"' + name.replace('"', '""') + '"'
        await execute(debian.url(), f"CREATE DATABASE {quoted}", password=debian.password)
    plain = source(url=debian.url(), password_file=secret, databases="all", format="plain", row_counts=False)
    async with plain.capture(stage) as captured:
        assert PostgresSource.told(summary(captured), NOW, UTC) == f"{len(captured.details['databases'])} databases"
        files = {d["name"]: d["file"] for d in captured.details["databases"]}
        expected = {
            "../x": "chat/%2E.%2Fx.sql",
            "a b": "chat/a b.sql",
            ".hidden": "chat/%2Ehidden.sql",
            "-v": "chat/%2Dv.sql",
            "globals": "chat/%67lobals.sql",
            "größe": "chat/gr%C3%B6%C3%9Fe.sql",
            'quo"te': "chat/quo%22te.sql",
            "postgres": "chat/postgres.sql",
        }
        assert files.items() >= expected.items()
        in_folder = {f"chat/{p.name}" for p in stage.iterdir()}
        assert in_folder == {*files.values(), "chat/globals.sql"}
        assert captured.consistency.endswith("in one snapshot a database")
        assert await PostgresSource.verify(summary(captured), Captures(captured)) == []


async def test_one_database_as_a_plain_file_at_the_top_is_restored_by_psql(
    database: str, copy: str, stage: Path
) -> None:
    await execute(database, "CREATE TABLE t (a text)", "INSERT INTO t VALUES ('x'), (E'two\\nlines'), (NULL)")
    async with source(url=database, place="database.sql").capture(stage) as captured:
        (root,) = captured.roots
        (dump,) = captured.details["databases"]
        assert root.place == dump["file"] == "database.sql"
        assert "globals" not in captured.details
        assert await put_back(root.path, copy, major=captured.details["pg_restore_major"]) == []
    assert await count_rows(copy) == dump["tables"] == {"public.t": 3}
    async with session(copy) as connection:
        assert await connection.fetchval("SELECT count(*) FROM t WHERE a = E'two\\nlines'") == 1


async def test_globals_bring_back_roles_with_their_passwords(
    debian: DebianServer, secret: Path, stage: Path, postgres: PostgresServer
) -> None:
    await execute(debian.url(), "CREATE ROLE anna LOGIN PASSWORD 'photo'", password=debian.password)
    async with source(url=debian.url(), password_file=secret).capture(stage) as captured:
        assert captured.details["globals"]["passwords"] is True
        file = Captures(captured).path(captured.details["globals"]["file"])
        psql = [str(programs() / "psql"), "-X", "-q", f"--file={file}", f"--dbname={postgres.url()}"]
        await process.run(psql)
    async with session(postgres.url()) as connection:
        assert (await connection.fetchval("SELECT rolpassword FROM pg_authid WHERE rolname = 'anna'")) is not None
        await connection.execute("DROP ROLE anna")


async def test_a_user_without_the_right_to_passwords_gets_globals_without_them_and_is_told(
    debian: DebianServer, bob: Path, stage: Path
) -> None:
    theirs = source(url=debian.url("bobs", "bob"), password_file=bob)
    async with theirs.capture(stage) as captured:
        text = Captures(captured).path("chat/globals.sql").read_text()
        assert "CREATE ROLE bob" in text
        assert "SCRAM-SHA-256" not in text
        assert captured.details["globals"]["passwords"] is False
        (warning,) = captured.warnings
        assert "globals.sql lacks them" in warning


async def test_a_table_that_may_not_be_read_is_named_before_anything_starts(debian: DebianServer, bob: Path) -> None:
    await execute(
        debian.url("bobs"),
        "CREATE TABLE open_to_all (a int); GRANT SELECT ON open_to_all TO bob",
        "CREATE TABLE diary (a int)",
        "CREATE SCHEMA closed; CREATE TABLE closed.t (a int); GRANT SELECT ON closed.t TO bob",
        "CREATE SEQUENCE numbers",
        "CREATE MATERIALIZED VIEW totals AS SELECT 1 AS a",
        password=debian.password,
    )
    with pytest.raises(DatabaseError, match=r"does not let user bob read closed\.t, public\.diary, public\.numbers in"):
        await source(url=debian.url("bobs", "bob"), password_file=bob).check()
    grants = (
        "GRANT USAGE ON SCHEMA closed TO bob",
        "GRANT SELECT ON diary TO bob",
        "GRANT SELECT ON SEQUENCE numbers TO bob",
    )
    await execute(debian.url("bobs"), *grants, password=debian.password)
    await source(url=debian.url("bobs", "bob"), password_file=bob).check()


async def test_what_passes_the_check_of_rights_can_be_dumped(debian: DebianServer, bob: Path, stage: Path) -> None:
    await execute(
        debian.url("bobs"),
        "CREATE TABLE t (a serial); INSERT INTO t VALUES (1); GRANT SELECT ON t, t_a_seq TO bob",
        "CREATE MATERIALIZED VIEW totals AS SELECT count(*) FROM t",
        password=debian.password,
    )
    async with source(url=debian.url("bobs", "bob"), password_file=bob).capture(stage) as captured:
        assert captured.details["databases"][0]["tables"] == {"public.t": 1}


async def test_rows_hidden_by_row_level_security_are_no_whole_backup(debian: DebianServer, bob: Path) -> None:
    await execute(
        debian.url("bobs"),
        "CREATE TABLE letters (a int); GRANT SELECT ON letters TO bob",
        "ALTER TABLE letters ENABLE ROW LEVEL SECURITY",
        password=debian.password,
    )
    with pytest.raises(DatabaseError, match=r"hides rows of public\.letters"):
        await source(url=debian.url("bobs", "bob"), password_file=bob).check()


async def test_owners_unknown_to_the_other_server_are_told_and_the_rows_come_back(
    debian: DebianServer, bob: Path, stage: Path, copy: str, postgres: PostgresServer
) -> None:
    await execute(postgres.url(), "DROP ROLE IF EXISTS bob")  # a test of globals may have brought him along
    bobs = debian.url("bobs", "bob")
    await execute(bobs, "CREATE TABLE t (a int)", "INSERT INTO t VALUES (1), (2)", password="b0b-s3cret")
    async with source(url=bobs, password_file=bob).capture(stage) as captured:
        dump = captured.details["databases"][0]
        left_out = await put_back(Captures(captured).path(dump["file"]), copy, major=debian.major)
    assert left_out == ["Could not be put back: ALTER TABLE public.t OWNER TO bob."]
    assert await count_rows(copy) == {"public.t": 2}


async def test_a_newer_pg_dump_serves_an_older_server_and_the_way_back(
    debian: DebianServer, secret: Path, stage: Path
) -> None:
    drop = "DROP DATABASE IF EXISTS back WITH (FORCE)"
    await execute(debian.url(), drop, "CREATE DATABASE back", password=debian.password)
    await execute(debian.url(), "CREATE TABLE IF NOT EXISTS t (a int)", password=debian.password)
    newest = source(url=debian.url(), password_file=secret, tool_folders=[programs()])
    async with newest.capture(stage) as captured:
        assert captured.details["pg_restore_major"] > debian.major
        dump = captured.details["databases"][0]
        major = captured.details["pg_restore_major"]
        await put_back(Captures(captured).path(dump["file"]), debian.url_with_password("back"), major=major)
    assert await count_rows(debian.url_with_password("back")) == dump["tables"]
    await execute(debian.url(), drop, password=debian.password)


async def test_a_dump_that_lacks_a_table_or_its_end_is_a_problem(database: str, stage: Path) -> None:
    await execute(database, "CREATE TABLE t (a int)")
    async with source(url=database).capture(stage) as captured:
        captured.details["databases"][0]["tables"]["public.vanished"] = 1
        reader = Captures(captured)
        globals_file = reader.path("chat/globals.sql")
        globals_file.write_bytes(globals_file.read_bytes()[:-60])
        lacks, ends = await PostgresSource.verify(summary(captured), reader)
        assert lacks.endswith("lacks public.vanished.")
        assert "globals.sql breaks off" in ends
        dump = reader.path(captured.details["databases"][0]["file"])
        dump.write_bytes(dump.read_bytes()[:100])
        unreadable, _ = await PostgresSource.verify(summary(captured), reader)
        assert "cannot read the dump" in unreadable


@pytest.mark.parametrize(
    "details",
    [
        {},
        {"pg_restore_major": 18, "databases": {"name": "x"}},
        {"pg_restore_major": 18, "databases": ["x"]},
        {"pg_restore_major": "18", "databases": []},
        {"pg_restore_major": 10**5000, "databases": []},
        {"pg_restore_major": 18, "databases": [], "globals": "x"},
        {"pg_restore_major": 18, "databases": [DUMP | {"file": 7}]},
        {"pg_restore_major": 18, "databases": [DUMP | {"format": "tar"}]},
        {"pg_restore_major": 18, "databases": [DUMP | {"tables": ["public.t"]}]},
    ],
)
async def test_details_of_another_shape_are_damage_and_not_a_bug(details: dict[str, object]) -> None:
    captured = Captured("chat", "postgres", "chat/", (), "", details)
    with pytest.raises(DamagedArchive, match="does not say of its dumps what it should"):
        await PostgresSource.verify(summary(captured), Captures(captured))


async def test_a_dump_that_cannot_be_looked_at_does_not_hide_one_that_is_broken(database: str, stage: Path) -> None:
    async with source(url=database).capture(stage) as captured:
        captured = replace(captured, details={**captured.details, "pg_restore_major": 98})
        with pytest.raises(CannotCheck, match="postgresql-client-98"):
            await PostgresSource.verify(summary(captured), Captures(captured))
        Captures(captured).path("chat/globals.sql").write_text("cut")
        (problem,) = await PostgresSource.verify(summary(captured), Captures(captured))
        assert "globals.sql breaks off" in problem

"""Postgres in a container: dumped by its own programs, copied as a whole while it is written to, and put back."""

from __future__ import annotations

import asyncio
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from uuid import uuid4

import pytest

from memu_backup.errors import DatabaseAway, DatabaseError, DiskFull, RestoreError
from memu_backup.model import Level
from memu_backup.sources import Source
from memu_backup.sources.postgres import PostgresSettings, PostgresSource
from memu_backup.work import Stop
from tests.archives import Unpacked, archive_store, back_up, ignore, needs_root, returning
from tests.contracts.sources import SourceContract
from tests.docker_engine import Engine
from tests.sources.dumps import capture

PASSWORD = "c4n4ry p@ss"


def source(container: str, engine: Engine, *, stall_s: float = 60, **more: object) -> PostgresSource:
    told = {"kind": "postgres", "container": container, "socket": engine.socket, **more}
    return PostgresSource("pgdata", PostgresSettings.model_validate(told), stall_s=stall_s)


@pytest.fixture
def container(engine: Engine, postgres_image: str) -> Iterator[str]:
    """A server as a family has it: its own user and database, a volume, and a password for whoever comes by network."""
    name = f"pg-{uuid4().hex[:8]}"
    make(engine, name, postgres_image)
    engine.docker("start", name)
    engine.until_postgres_answers(name)
    sql(engine, name, "CREATE TABLE photos (id serial PRIMARY KEY, name text)")
    sql(engine, name, "INSERT INTO photos (name) SELECT md5(n::text) FROM generate_series(1, 20000) n")
    sql(
        engine,
        name,
        "CREATE ROLE anna LOGIN PASSWORD 'x'; CREATE TABLE notes (t text); ALTER TABLE notes OWNER TO anna",
    )
    yield name
    engine.docker("rm", "--force", name)
    engine.docker("volume", "rm", "--force", f"{name}-data")


def make(engine: Engine, name: str, image: str) -> None:
    env = ("POSTGRES_USER=memu", "POSTGRES_DB=family", f"POSTGRES_PASSWORD={PASSWORD}")
    words = [word for one in env for word in ("--env", one)]
    engine.docker("create", "--name", name, "--network", "family", *words,
                  "--volume", f"{name}-data:/var/lib/postgresql/data", image)  # fmt: skip


def sql(engine: Engine, name: str, statement: str) -> str:
    return engine.sql(name, statement, user="memu", database="family")


def fill(engine: Engine, name: str, number: int) -> None:
    """About a kilobyte a row."""
    sql(engine, name, f"INSERT INTO photos (name) SELECT repeat(md5(n::text), 30) FROM generate_series(1, {number}) n")


def rows(engine: Engine, name: str) -> str:
    return sql(engine, name, "SELECT id, name FROM photos ORDER BY 1") + sql(
        engine, name, "SELECT tableowner FROM pg_tables WHERE tablename = 'notes'"
    )


@contextmanager
def writing(engine: Engine, name: str) -> Iterator[None]:
    over = threading.Event()

    def write() -> None:
        while not over.is_set():
            sql(engine, name, "INSERT INTO photos (name) SELECT md5(random()::text) FROM generate_series(1, 200)")

    thread = threading.Thread(target=write)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def forget(engine: Engine, name: str, image: str) -> None:
    """The disk died: a new container, an empty volume, nothing running yet."""
    engine.docker("rm", "--force", name)
    engine.docker("volume", "rm", f"{name}-data")
    make(engine, name, image)


async def stored(taken: PostgresSource, tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir(mode=0o700)
    async with taken.capture(tmp_path / "stage") as captured:
        return back_up(archive_store(tmp_path / "store"), captured)


@pytest.mark.slow
class TestPostgresInAContainerIsASource(SourceContract):
    @pytest.fixture(autouse=True)
    def _with(self, engine: Engine, container: str, postgres_image: str) -> None:
        self.engine, self.name, self.image = engine, container, postgres_image

    def household(self, folder: Path) -> Path:
        return folder

    def make(self, data: Path) -> PostgresSource:
        return source(self.name, self.engine)

    def change(self, data: Path) -> None:
        sql(self.engine, self.name, "INSERT INTO photos SELECT 1000000 + g FROM generate_series(1, 50) g")

    def take_away(self, data: Path) -> None:
        self.engine.docker("stop", self.name)

    def lose(self, data: Path) -> None:
        forget(self.engine, self.name, self.image)
        self.engine.docker("start", self.name)
        self.engine.until_postgres_answers(self.name)

    def held(self, data: Path) -> object:
        return rows(self.engine, self.name)

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        """What is in them is compared where they are put back."""
        names = sorted(path.name for path in (unpacked.target / "pgdata").iterdir())
        assert names == ["family.dump", "globals.sql"]
        assert (unpacked.target / "pgdata" / "family.dump").read_bytes().startswith(b"PGDMP")

    async def test_what_goes_away_after_the_check_makes_the_backup_partial(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        """A dump does not: it is written out by then."""
        async with source.capture(stage) as captured:
            self.take_away(data)
            back_up(archive_store(tmp_path / "store"), captured)
        assert not captured.missing

    async def test_two_captures_of_the_same_data_have_the_same_checksum(
        self, source: Source, data: Path, tmp_path: Path
    ) -> None:
        """A dump tells when it was made: what it counted is the same."""
        counted = []
        for name in ("one", "two"):
            (tmp_path / f"stage {name}").mkdir()
            async with source.capture(tmp_path / f"stage {name}") as captured:
                counted.append([dump["tables"] for dump in captured.details["databases"]])
        assert counted[0] == counted[1] == [{"public.notes": 0, "public.photos": 20000}]


async def test_a_dump_holds_what_its_own_snapshot_counted_and_comes_back(
    engine: Engine, container: str, postgres_image: str, tmp_path: Path
) -> None:
    taken = source(container, engine)
    assert await taken.check() == []
    with writing(engine, container):
        archive = await stored(taken, tmp_path)
    store = archive_store(tmp_path / "store")
    (backup,) = store.backups()
    assert backup.manifest
    (told,) = backup.manifest.sources
    (dump,) = told.details["databases"]
    assert (dump["name"], told.details["server_major"]) == ("family", told.details["pg_restore_major"])
    assert 20000 <= dump["tables"]["public.photos"] <= int(sql(engine, container, "SELECT count(*) FROM photos"))
    assert store.prove(archive, Level.FULL, ignore, Stop()).problems == ()

    there = await returning(archive, {"pgdata": taken}, tmp_path / "scratch")
    assert there.step.replaces == ("database family with 2 tables",)
    forget(engine, container, postgres_image)
    with pytest.raises(DatabaseAway, match="does not run, so source pgdata cannot be put back"):
        await returning(archive, {"pgdata": taken}, tmp_path / "scratch")
    engine.docker("start", container)
    engine.until_postgres_answers(container)
    back = await returning(archive, {"pgdata": taken}, tmp_path / "scratch")
    assert await back.all_there() == ()
    assert sql(engine, container, "SELECT count(*) FROM photos") == str(dump["tables"]["public.photos"])
    assert rows(engine, container).endswith("anna")


@pytest.mark.slow
async def test_copied_as_a_whole_while_it_is_written_to_it_starts_again_from_the_copy(
    engine: Engine, container: str, postgres_image: str, tmp_path: Path
) -> None:
    taken = source(container, engine, mode="basebackup")
    assert await taken.check() == []
    before = rows(engine, container).removesuffix("anna")
    with writing(engine, container):
        archive = await stored(taken, tmp_path)
    store = archive_store(tmp_path / "store")
    (backup,) = store.backups()
    assert backup.manifest
    (told,) = backup.manifest.sources
    assert await PostgresSource.verify(told, _Content(store.content, archive)) == []
    with pytest.raises(RestoreError, match="runs, and its files are not changed meanwhile"):
        await (await returning(archive, {"pgdata": taken}, tmp_path / "scratch")).carry_out()
    engine.docker("stop", container)
    assert (await returning(archive, {"pgdata": taken}, tmp_path / "scratch")).step.replaces
    forget(engine, container, postgres_image)
    back = await returning(archive, {"pgdata": taken}, tmp_path / "scratch")
    assert await back.all_there() == ()
    engine.docker("start", container)
    engine.until_postgres_answers(container)
    assert rows(engine, container).startswith(before)
    assert "database system was interrupted" not in engine.docker("logs", container).partition("ready to accept")[2]


@pytest.mark.slow
async def test_cancelled_it_ends_the_program_in_the_container_and_its_session(
    engine: Engine, container: str, tmp_path: Path
) -> None:
    (tmp_path / "stage").mkdir()
    locked(engine, container)  # else it would end by itself once nobody reads what it prints
    running = asyncio.create_task(capture(source(container, engine, row_counts=False), tmp_path / "stage"))
    deadline = time.monotonic() + 20
    while "pg_dump" not in engine.docker("top", container):
        assert time.monotonic() < deadline and not running.done()
        await asyncio.sleep(0.01)
    await asyncio.sleep(0.5)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    deadline = time.monotonic() + 5
    while "pg_dump" in engine.docker("top", container):
        assert time.monotonic() < deadline, "it goes on, and holds its snapshot"
        await asyncio.sleep(0.05)


def locked(engine: Engine, container: str) -> None:
    """Somebody keeps a table for himself."""
    engine.docker("exec", "--detach", container, "psql", "-U", "memu", "-d", "family", "-c",
                  "BEGIN; LOCK TABLE photos; SELECT pg_sleep(60)")  # fmt: skip
    deadline = time.monotonic() + 10
    while "AccessExclusiveLock" not in sql(engine, container, "SELECT string_agg(mode, ' ') FROM pg_locks"):
        assert time.monotonic() < deadline


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("mode", ["dump", "basebackup"])
async def test_a_full_disk_is_told_as_such(engine: Engine, container: str, tmp_path: Path, mode: str) -> None:
    fill(engine, container, 20_000)
    with small_disk(tmp_path / "stage") as stage, pytest.raises(DiskFull):
        await capture(source(container, engine, mode=mode), stage)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "small", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


@pytest.mark.slow
async def test_one_that_hangs_is_given_up(engine: Engine, container: str, tmp_path: Path) -> None:
    (tmp_path / "stage").mkdir()
    locked(engine, container)
    with pytest.raises(DatabaseAway, match="gave nothing more"):
        await capture(source(container, engine, stall_s=1, row_counts=False), tmp_path / "stage")


async def test_what_is_not_there_or_off_is_one_sentence(engine: Engine, container: str) -> None:
    with pytest.raises(DatabaseError, match=rf"no container nobody \(these run: .*{container}.*\), so source pgdata"):
        await source("nobody", engine).check()
    engine.docker("stop", container)
    with pytest.raises(DatabaseAway, match=f"Container {container} does not run, so source pgdata cannot be backed up"):
        await source(container, engine).check()


@pytest.mark.slow
async def test_the_password_is_in_no_argv_and_in_no_details(engine: Engine, container: str, tmp_path: Path) -> None:
    seen: list[str] = []
    over = threading.Event()

    def watch() -> None:
        while not over.is_set():
            for file in Path("/proc").glob("[0-9]*/cmdline"):
                try:
                    seen.append(file.read_bytes().decode(errors="replace"))
                except OSError:
                    continue

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        archive = await stored(source(container, engine), tmp_path)
    finally:
        over.set()
        thread.join()
    assert any("pg_dump" in one for one in seen), "it was not looked at, so it proves nothing"
    assert not any(PASSWORD in one or "c4n4ry" in one for one in seen)
    manifest = archive_store(tmp_path / "store").backups()[0].manifest
    assert "c4n4ry" not in repr(manifest) and archive.exists()


class _Content:
    def __init__(self, content: object, path: Path) -> None:
        self._content, self._path = content, path

    def content(self, path: str) -> Iterator[bytes]:
        return self._content(self._path, path)  # type: ignore[operator, no-any-return]

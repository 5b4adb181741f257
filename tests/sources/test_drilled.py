"""A restore test finds what is wrong with a backup, and says it in one sentence; what is whole it finds whole."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from uuid import uuid4

import pytest

from memu_backup import drill
from memu_backup.anywhere import look
from memu_backup.clock import now
from memu_backup.drill import Came, Means
from memu_backup.errors import CannotCheck
from memu_backup.formats import gzip
from memu_backup.formats.reader import ArchiveReader
from memu_backup.model import Captured, Level
from memu_backup.postgres.server import PostgresServer
from memu_backup.sources.sqlite import SqliteSettings, SqliteSource
from memu_backup.stores.tree import TreeSettings, TreeStore
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, ignore, label, needs_root, tree
from tests.contracts.stores import small_disk
from tests.docker_engine import Engine
from tests.sources.conftest import DebianServer
from tests.sources.dumps import execute, source
from tests.sources.redis_servers import RedisServer
from tests.sources.redis_servers import source as redis_source


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for name in ("lake", "tent"):
        (folder / f"{name}.jpg").write_bytes(os.urandom(3_000_000))
    return folder


@pytest.fixture
async def chat(database: str) -> str:
    await execute(
        database,
        "CREATE TABLE messages (id int PRIMARY KEY, body text)",
        "INSERT INTO messages SELECT g, 'hello' FROM generate_series(1, 50) g",
        "CREATE TABLE rooms (id int)",
    )
    return database


async def tried(path: Path, scratch: Path, **means: str) -> Came:
    """What a restore test finds; nothing of it stays."""
    scratch.mkdir(exist_ok=True)
    came = await drill.drill(*look(path), Means(scratch, **means), ignore, trusted=True)
    assert list(scratch.iterdir()) == []
    return came


def sentence(came: Came) -> str:
    ((_, told),) = came.problems
    assert told.endswith(".") and "\n" not in told
    return told


def database_file(file: Path) -> Path:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute("CREATE TABLE shows (name)")
        connection.executemany("INSERT INTO shows VALUES (?)", [("x" * 500,)] * 200)
        connection.commit()
    return file


async def captured_by(taken: object, stage: Path, change: Callable[[Captured], Captured] = lambda c: c) -> Path:
    """The archive of what a source captured, and of what somebody ``change``d before it was written."""
    stage.mkdir()
    async with taken.capture(stage) as captured:  # type: ignore[attr-defined]
        return back_up(archive_store(stage.parent / "store"), change(captured))


# --- the six kinds ----------------------------------------------------------------------------------------------------


async def test_a_flipped_bit(tmp_path: Path, photos: Path) -> None:
    archive = back_up(archive_store(tmp_path / "store"), tree(photos))
    with archive.open("r+b") as file:
        file.seek(500_000)
        byte = file.read(1)[0]
        file.seek(500_000)
        file.write(bytes([byte ^ 1]))
    assert sentence(await tried(archive, tmp_path / "scratch")) == "photos/lake.jpg did not come back."


async def test_an_archive_that_was_cut(tmp_path: Path, photos: Path) -> None:
    archive = back_up(archive_store(tmp_path / "store"), tree(photos))
    os.truncate(archive, 4_000_000)
    came = await tried(archive, tmp_path / "scratch")
    assert sentence(came).startswith("It is damaged: it cannot be read from byte 3,")
    assert came.files == 1, "what stands before the cut is brought back"


async def test_a_file_that_is_missing(tmp_path: Path, photos: Path) -> None:
    store = TreeStore(tmp_path / "store", TreeSettings.model_validate({"kind": "tree"}))
    store.mark("attic", now())
    store.prepare()
    written = store.write(label("2026-03-04"), [tree(photos)], frozenset(), ignore, Stop())
    backup = store.publish(written, store.prove(written.partial_path, Level.FULL, ignore, Stop()).sha256 or "")
    (backup / "photos" / "tent.jpg").unlink()
    assert sentence(await tried(backup, tmp_path / "scratch")) == "photos/tent.jpg did not come back."


async def test_content_that_nothing_but_its_hash_tells(tmp_path: Path, photos: Path) -> None:
    """Every checksum of gzip holds: as a disk or a memory that swaps a byte before it is packed."""
    archive = back_up(archive_store(tmp_path / "store"), tree(photos))
    with ArchiveReader(archive) as reader:
        lake = next(entry for entry in reader.index() if entry.path == "photos/lake.jpg")
    content = bytearray(archive.read_bytes())
    size = gzip.member_bytes(bytes(content[lake.content : lake.content + gzip.HEADER_BYTES]))
    assert size
    chunk = bytearray(gzip.unpack(bytes(content[lake.content : lake.content + size])))
    chunk[5] ^= 1
    packed = b"".join(gzip.pack(bytes(chunk)))
    assert len(packed) == size
    content[lake.content : lake.content + size] = packed
    archive.write_bytes(content)
    told = sentence(await tried(archive, tmp_path / "scratch"))
    assert told == "photos/lake.jpg came back other than it was written."


async def test_another_number_of_rows(tmp_path: Path, chat: str) -> None:
    def one_more(captured: Captured) -> Captured:
        (dump,) = captured.details["databases"]
        return replace(
            captured,
            details={**captured.details, "databases": [{**dump, "tables": {**dump["tables"], "public.messages": 51}}]},
        )

    archive = await captured_by(source(url=chat), tmp_path / "stage", one_more)
    told = sentence(await tried(archive, tmp_path / "scratch"))
    assert "50 rows in public.messages instead of 51" in told and told.startswith("chat: Database test_")


async def test_a_database_file_that_is_not_whole(tmp_path: Path) -> None:
    settings = SqliteSettings.model_validate({"kind": "sqlite", "paths": [database_file(tmp_path / "sonarr.db")]})

    def spoiled(captured: Captured) -> Captured:
        (root,) = captured.roots
        with root.path.open("r+b") as file:
            file.seek(3 * 4096)
            file.write(b"\xff" * 4096)
        return captured

    archive = await captured_by(SqliteSource("shows", settings), tmp_path / "stage", spoiled)
    told = sentence(await tried(archive, tmp_path / "scratch"))
    assert told.startswith("shows: Database shows/sonarr.db is not whole: ")


async def test_the_dump_of_another_database(tmp_path: Path, chat: str, copy: str) -> None:
    await execute(copy, "CREATE TABLE recipes (id int)")
    other = tmp_path / "other"
    other.mkdir()
    async with source(url=copy).capture(other) as wrong:
        dump = other / str(wrong.details["databases"][0]["file"]).removeprefix("chat/")

        def swapped(captured: Captured) -> Captured:
            (mine,) = captured.details["databases"]
            shutil.copyfile(dump, tmp_path / "stage" / mine["file"].removeprefix("chat/"))
            return captured

        archive = await captured_by(source(url=chat), tmp_path / "stage", swapped)
    told = sentence(await tried(archive, tmp_path / "scratch"))
    assert told.endswith("comes back without public.messages, public.rooms.")


# --- what is whole ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("place", ["chat/", pytest.param("chat.sql", marks=pytest.mark.slow)])
async def test_dumps_are_loaded_with_whom_their_tables_belong_to(
    tmp_path: Path, chat: str, postgres: PostgresServer, place: str
) -> None:
    await execute(
        chat, "DROP ROLE IF EXISTS drill_anna", "CREATE ROLE drill_anna", "ALTER TABLE rooms OWNER TO drill_anna"
    )
    try:
        archive = await captured_by(source(url=chat, place=place), tmp_path / "stage")
        came = await tried(archive, tmp_path / "scratch")
        assert (came.problems, came.unchecked) == ([], []) and came.files
    finally:
        await execute(chat, "DROP OWNED BY drill_anna", "DROP ROLE drill_anna")


@pytest.mark.slow
async def test_extensions_that_our_own_server_lacks_are_named_and_another_one_is_used(
    tmp_path: Path, debian_url: str
) -> None:
    await execute(debian_url, "CREATE EXTENSION earthdistance CASCADE", "CREATE TABLE places (at earth)")
    archive = await captured_by(source(url=debian_url, globals=False), tmp_path / "stage")
    came = await tried(archive, tmp_path / "scratch")
    assert came.problems == []
    (told,) = came.unchecked
    assert "lacks the extensions cube, earthdistance" in told and "postgres_image" in told
    came = await tried(archive, tmp_path / "scratch", postgres_url=debian_url)
    assert (came.problems, came.unchecked) == ([], [])


@needs_root
@pytest.mark.slow
async def test_an_image_is_used_without_a_network_and_is_gone_after_it(
    tmp_path: Path, debian_url: str, engine: Engine, postgres_image: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOCKER_HOST", f"unix://{engine.socket}")
    await execute(debian_url, "CREATE EXTENSION cube", "CREATE TABLE places (at cube)")
    archive = await captured_by(source(url=debian_url), tmp_path / "stage")
    before = engine.docker("ps", "--all", "--quiet")
    came = await tried(archive, tmp_path / "scratch", postgres_image=postgres_image)
    assert (came.problems, came.unchecked) == ([], [])
    assert engine.docker("ps", "--all", "--quiet") == before
    came = await tried(archive, tmp_path / "scratch", postgres_image="nobody/has:this")
    assert came.problems == [] and "nobody/has:this" in came.unchecked[0]


@pytest.mark.slow
async def test_of_a_database_with_extensions_the_rows_are_counted_too(tmp_path: Path, debian_url: str) -> None:
    await execute(debian_url, "CREATE EXTENSION cube", "CREATE TABLE places (at cube)")

    def one_more(captured: Captured) -> Captured:
        (dump,) = captured.details["databases"]
        return replace(captured, details={**captured.details, "databases": [{**dump, "tables": {"public.places": 1}}]})

    archive = await captured_by(source(url=debian_url, globals=False), tmp_path / "stage", one_more)
    came = await tried(archive, tmp_path / "scratch", postgres_url=debian_url)
    assert "0 rows in public.places instead of 1" in sentence(came)


@pytest.fixture
async def debian_url(debian: DebianServer) -> AsyncIterator[str]:
    name, server = f"places_{uuid4().hex}", debian.url_with_password()
    await execute(server, f"CREATE DATABASE {name}")
    yield debian.url_with_password(name)
    await execute(server, f"DROP DATABASE {name} WITH (FORCE)")


async def test_a_snapshot_of_redis_is_loaded(tmp_path: Path, server: RedisServer) -> None:
    server.fill(50)
    came = await tried(await captured_by(redis_source(server), tmp_path / "stage"), tmp_path / "scratch")
    assert (came.problems, came.unchecked) == ([], [])


async def test_a_snapshot_that_only_looks_whole_is_found(tmp_path: Path, server: RedisServer) -> None:
    def spoiled(captured: Captured) -> Captured:
        (root,) = captured.roots
        # A type that there is none of, where a record begins; without a checksum nothing else tells.
        root.path.write_bytes(b"REDIS0009\xfe\x00\xc8\x01a\x01b\xff" + bytes(8))
        return captured

    archive = await captured_by(redis_source(server), tmp_path / "stage", spoiled)
    assert "cannot be loaded by redis-server" in sentence(await tried(archive, tmp_path / "scratch"))


@needs_root
async def test_without_room_nothing_is_written_and_it_is_said_how_much_is_needed(tmp_path: Path, photos: Path) -> None:
    (photos / "film.mp4").write_bytes(os.urandom(30_000_000))
    archive = back_up(archive_store(tmp_path / "store"), tree(photos))
    with small_disk(tmp_path / "small", "20m") as small:
        with pytest.raises(CannotCheck, match=r"There is not enough room .*36 MB needed.*drill.scratch"):
            await drill.drill(*look(archive), Means(small), ignore, trusted=True)
        assert list(small.iterdir()) == []


@pytest.mark.slow
async def test_what_nobody_vouches_for_is_compared_and_not_loaded(tmp_path: Path, chat: str) -> None:
    archive = await captured_by(source(url=chat), tmp_path / "stage")
    (tmp_path / "scratch").mkdir()
    came = await drill.drill(*look(archive), Means(tmp_path / "scratch"), ignore, trusted=False)
    assert came.problems == [] and "only compared" in came.unchecked[0]

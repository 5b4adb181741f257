"""Whether SQLite databases are whole, what comes of damage, and a stage that gets full."""

from __future__ import annotations

import shutil
import sqlite3
import subprocess
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest

from memu_backup import sqlite
from memu_backup.clock import now
from memu_backup.errors import CannotCheck, DamagedArchive, DiskFull, QuotaUsedUp
from memu_backup.sources.sqlite import SqliteSource
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, give_back, needs_root
from tests.contracts.stores import small_disk
from tests.disks import loop_disk
from tests.sources.dumps import Captures, summary
from tests.sources.sqlite_homes import captured_of, of, returned, sonarr


def plex(file: Path) -> Path:
    """With its order of titles, which only the writer knows, and virtual tables of modules that nobody else has."""

    def backwards(a: str, b: str) -> int:
        return (a < b) - (a > b)

    with closing(sqlite3.connect(file)) as database:
        database.create_collation("icu_root", backwards)
        database.executescript(
            "PRAGMA journal_mode = WAL;"
            "CREATE TABLE metadata_items (id INTEGER PRIMARY KEY, title TEXT, title_sort TEXT COLLATE icu_root);"
            "CREATE INDEX index_title_sort_icu ON metadata_items (title_sort COLLATE icu_root);"
            "CREATE TABLE tags (tag TEXT COLLATE icu_root PRIMARY KEY, n INT, CHECK (tag < 'a' COLLATE icu_root))"
            " WITHOUT ROWID;"
            "CREATE VIRTUAL TABLE fts4_titles USING fts4(content='metadata_items', title, tokenize=simple);"
        )
        database.executemany(
            "INSERT INTO metadata_items (title, title_sort) VALUES (?, ?)", ((f"T{n}", f"T{n}") for n in range(3000))
        )
        database.executemany("INSERT INTO tags VALUES (?, 1)", ((f"z{n}",) for n in range(3000)))
        database.executescript(
            "PRAGMA writable_schema = ON;"
            "UPDATE sqlite_master SET sql = replace(sql, 'simple', 'collating') WHERE name = 'fts4_titles';"
            "INSERT INTO sqlite_master VALUES ('table', 'spellfix_titles', 'spellfix_titles', 0,"
            " 'CREATE VIRTUAL TABLE spellfix_titles USING spellfix1');"
        )
        database.commit()
    return file


async def test_with_a_collation_that_only_its_program_knows_all_comes_back_and_its_structure_is_checked(
    tmp_path: Path, stage: Path
) -> None:
    file = plex(tmp_path / "com.plexapp.plugins.library.db")
    async with of(file).capture(stage) as captured:
        assert captured.missing == ()
        (told,) = captured.details["databases"]
        assert told["integrity"].startswith("structure only: ")
        assert "collation icu_root is not known here" in told["integrity"]
        assert (told["file"], told["journal_mode"]) == (f"sonarr/{file.name}", "wal")
        assert await SqliteSource.verify(summary(captured), Captures(captured)) == []
        assert SqliteSource.told(summary(captured), now(), UTC) == "1 database, whole as far as can be told here"
        given = give_back(back_up(archive_store(tmp_path / "store"), captured), tmp_path / "target").target
    with closing(sqlite3.connect(given / "sonarr" / file.name)) as database:
        database.create_collation("icu_root", lambda a, b: (a < b) - (a > b))
        assert database.execute("PRAGMA integrity_check(metadata_items)").fetchall() == [("ok",)]
        first = "SELECT title FROM metadata_items ORDER BY title_sort COLLATE icu_root LIMIT 1"
        assert database.execute(first).fetchone() == ("T999",)
        assert database.execute("SELECT count(*) FROM tags").fetchone() == (3000,)


async def test_damage_below_an_unknown_collation_is_found(tmp_path: Path, stage: Path) -> None:
    file = spoiled(plex(tmp_path / "plex.db"), 5)
    captured = await captured_of(of(file), stage)
    assert captured.details["databases"][0]["integrity"].startswith("damaged: ")
    assert len(captured.missing) == 1


def spoiled(file: Path, page: int) -> Path:
    """A page that holds something else, as a dying disk gives it."""
    with file.open("r+b") as content:
        content.seek((page - 1) * 4096)
        content.write(b"\xa5" * 4096)
    return file


async def test_a_damaged_one_is_backed_up_as_it_is_and_the_family_is_sent_to_an_older_backup(
    tmp_path: Path, stage: Path
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    file = sonarr(home / "sonarr.db")
    sonarr(home / "logs.db")
    spoiled(file, file.stat().st_size // 4096 - 2)
    source = of(home / "*.db")
    assert await source.check() == []
    async with source.capture(stage) as captured:
        (missing,) = captured.missing
        assert missing.startswith(f"{file} (source sonarr) is damaged, and so is its copy in this backup (")
        assert missing.endswith("Stop what uses it, and bring this one back from an older backup.")
        assert "\n" not in missing
        assert {Path(d["path"]).name: d["integrity"][:7] for d in captured.details["databases"]} == {
            "logs.db": "ok", "sonarr.db": "damaged",
        }  # fmt: skip
        assert SqliteSource.told(summary(captured), now(), UTC) == "2 databases, 1 of them damaged"
        archive = back_up(archive_store(tmp_path / "store"), captured)
        assert await SqliteSource.verify(summary(captured), Captures(captured)) == []
    whole = file.read_bytes()
    shutil.rmtree(home)
    warnings = await returned(archive, source, tmp_path)
    assert "sonarr/sonarr.db was damaged already when it was backed up." in warnings
    assert file.read_bytes() == whole


@pytest.mark.parametrize("wal", [True, False])
@pytest.mark.parametrize("how", ["page size", "cut", "schema"])
async def test_what_sqlite_cannot_even_open_is_in_the_backup_byte_for_byte(
    home: Path, stage: Path, how: str, wal: bool
) -> None:
    file = sonarr(home / "sonarr.db", wal=wal)
    content = bytearray(file.read_bytes())
    match how:
        case "page size":
            content[16:18] = b"\x12\x34"
        case "cut":
            del content[len(content) // 2 :]
        case "schema":
            content[100:4096] = b"\xff" * 3996
    file.write_bytes(content)
    async with of(file).capture(stage) as captured:
        assert captured.details["databases"][0]["integrity"].startswith("damaged: ")
        assert len(captured.missing) == 1
        copied = captured.roots[0].path.read_bytes()
        if how == "page size" or wal:
            assert copied == content
        else:
            assert copied[100:4096] == content[100:4096]


async def test_rows_that_break_the_programs_own_rules_are_no_damage(tmp_path: Path, stage: Path) -> None:
    file = tmp_path / "old.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE t (a INT, b INT)")
        database.execute("INSERT INTO t VALUES (NULL, 1)")
        database.executescript(
            "PRAGMA writable_schema = ON;"
            "UPDATE sqlite_master SET sql = 'CREATE TABLE t (a INT NOT NULL, b INT CHECK (b > 5))';"
        )
    captured = await captured_of(of(file), stage)
    assert (captured.details["databases"][0]["integrity"], captured.missing) == ("ok", ())


async def test_a_copy_that_is_not_whole_is_found_by_its_own_check(tmp_path: Path, stage: Path) -> None:
    async with of(sonarr(tmp_path / "sonarr.db")).capture(stage) as captured:
        told, content = summary(captured), captured.roots[0].path.read_bytes()
    for wrong in (content[:8192], content[:4096] + b"\xff" * 4096 + content[8192:], b"no database"):

        class Spoiled:
            def content(self, _: str) -> Iterator[bytes]:
                yield wrong  # noqa: B023

        assert await SqliteSource.verify(told, Spoiled()) == [
            "sonarr/sonarr.db is not a whole database, though it was when it was copied."
        ]
    strangers: list[dict[str, object]] = [{}, {"databases": []}, {"databases": [{"file": 1}]}]
    for details in strangers:
        with pytest.raises(DamagedArchive, match="does not say which databases"):
            await SqliteSource.verify(replace(told, details=details), Spoiled())


@needs_root
def test_where_there_is_no_room_to_look_nothing_is_said_against_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with small_disk(tmp_path / "small", "100k") as disk:
        monkeypatch.setattr(sqlite, "_ROOMY", disk)
        with pytest.raises(CannotCheck, match="says nothing against it"):
            sqlite.is_whole(iter([bytes(300_000)]), Stop())


# --- the stage gets full ---------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("wal", [True, False])
async def test_a_full_stage_is_told_as_a_full_disk(home: Path, tmp_path: Path, wal: bool) -> None:
    file = sonarr(home / "sonarr.db", wal=wal, series=3000)
    with small_disk(tmp_path / "small", "600k") as disk, pytest.raises(DiskFull, match="older backups are untouched"):
        await captured_of(of(file), disk)


def limit(disk: Path, size: str) -> None:
    for argv in (["quota", "enable"], ["qgroup", "limit", size]):
        subprocess.run(["btrfs", *argv, disk], check=True, capture_output=True)


@needs_root
async def test_a_used_up_quota_is_told_as_such(home: Path, tmp_path: Path) -> None:
    file = sonarr(home / "sonarr.db", wal=False, series=9000)
    with loop_disk("btrfs", tmp_path) as disk:
        limit(disk, "1m")
        (disk / "stage").mkdir()
        with pytest.raises(QuotaUsedUp):
            await captured_of(of(file), disk / "stage")

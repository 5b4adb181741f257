"""SQLite databases: which ones are meant, and that all of each comes back to where it lived."""

from __future__ import annotations

import os
import shutil
import sqlite3
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from memu_backup import sqlite
from memu_backup.clock import now
from memu_backup.errors import RestoreError, SourceError
from memu_backup.sources import Lacking, Source
from memu_backup.sources.sqlite import SqliteSource
from tests.archives import Unpacked, archive_store, back_up, give_back, needs_root, write
from tests.contracts.sources import SourceContract
from tests.sources.dumps import summary
from tests.sources.sqlite_homes import (
    AS_ANOTHER,
    accounts,
    backed_up,
    can_still_write,
    captured_of,
    held,
    of,
    returned,
    rows,
    sonarr,
)


class TestSqliteIsASource(SourceContract):
    def household(self, folder: Path) -> Path:
        sonarr(folder / "sonarr.db")
        sonarr(folder / "logs.db", wal=False)
        (folder / "config.xml").write_text("<Config/>")
        return folder

    def make(self, data: Path) -> Source:
        return of(data / "*.db")

    def change(self, data: Path) -> None:
        with closing(sqlite3.connect(data / "sonarr.db")) as database, database:
            database.execute("UPDATE Episodes SET Overview = 'changed'")
            database.commit()

    def take_away(self, data: Path) -> None:
        for file in data.glob("*.db"):
            file.unlink()

    def held(self, data: Path) -> object:
        return held(data)

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        assert held(unpacked.target / "sonarr") == held(data)
        assert {p.name for p in (unpacked.target / "sonarr").iterdir()} == {"sonarr.db", "logs.db"}

    async def test_what_goes_away_after_the_check_makes_the_backup_partial(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        """Not here: what was copied stays."""
        async with source.capture(stage) as captured:
            self.take_away(data)
            assert not write(archive_store(tmp_path / "store"), captured).manifest.partial


# --- which ones ------------------------------------------------------------------------------------------------------


async def test_a_glob_takes_databases_and_nothing_else(home: Path, stage: Path) -> None:
    for name in ("sonarr.db", "logs.db", ".hidden.db"):
        sonarr(home / name)
    (home / "notes.db").write_text("no database")
    (home / "empty.db").touch()
    (home / "folder.db").mkdir()
    os.mkfifo(home / "pipe.db")
    shutil.copy(home / "logs.db", home / "x.db-wal")
    captured = await captured_of(of(home / "*"), stage)
    assert [r.place for r in captured.roots] == ["sonarr/.hidden.db", "sonarr/logs.db", "sonarr/sonarr.db"]
    assert captured.missing == ()
    assert SqliteSource.told(summary(captured), now(), UTC) == "3 databases, all whole"


async def test_one_that_is_in_use_and_no_database_to_us_is_told(home: Path) -> None:
    sonarr(home / "sonarr.db")
    (home / "signal.db").write_bytes(os.urandom(8192))
    assert await of(home / "*.db").check() == []
    (home / "signal.db-wal").touch()
    (warning,) = await of(home / "*.db").check()
    assert isinstance(warning, Lacking)
    assert warning == (f"{home}/signal.db (source sonarr) is no SQLite database, or it is encrypted or damaged.")


async def test_those_of_several_folders_keep_their_folders_names(home: Path, stage: Path, tmp_path: Path) -> None:
    for name in ("sonarr", "radarr", "deep/er/still"):
        (home / name).mkdir(parents=True)
        sonarr(home / name / "app.db")
    source = of(home / "*" / "app.db")
    async with source.capture(stage) as captured:
        assert [r.place for r in captured.roots] == ["sonarr/radarr/app.db", "sonarr/sonarr/app.db"]
        archive = back_up(archive_store(tmp_path / "store"), captured)
    before = {name: held(home / name) for name in ("sonarr", "radarr")}
    for name in before:
        (home / name / "app.db").unlink()
    assert await returned(archive, source, tmp_path) == ()
    assert {name: held(home / name) for name in before} == before
    (stage / "all").mkdir()
    everywhere = await captured_of(of(home / "**" / "*.db"), stage / "all")
    assert everywhere.roots[0].place == "sonarr/deep/er/still/app.db"


async def test_two_of_one_name_are_refused(home: Path) -> None:
    for name in ("sonarr", "radarr"):
        (home / name).mkdir()
        sonarr(home / name / "logs.db")
    with pytest.raises(SourceError, match="would have one name in the backup, so source sonarr cannot be backed up"):
        await of(home / "sonarr" / "*.db", home / "radarr" / "*.db").check()
    assert await of(home / "sonarr" / "*.db", home / "sonarr" / "logs.db").check() == []


async def test_a_glob_that_fits_nothing_fails_and_one_path_of_several_is_lacking(home: Path, stage: Path) -> None:
    (home / "notes.db").write_text("no database")
    with pytest.raises(SourceError, match=r"No SQLite database fits .*, so it cannot be backed up"):
        await of(home / "*.db").check()
    there, gone = sonarr(home / "sonarr.db"), home / "gone.db"
    (warning,) = await of(there, gone).check()
    assert isinstance(warning, Lacking)
    assert (await captured_of(of(there, gone), stage)).missing == (warning,)
    for path, why in ((gone, "is not there"), (home, "is no file"), (home / "notes.db", "is no SQLite database")):
        with pytest.raises(SourceError, match=rf"\(source sonarr\) {why}.*, so it cannot be backed up\."):
            await of(path).check()


@needs_root
def test_one_that_may_not_be_read_is_known_before_the_backup(home: Path) -> None:
    file = sonarr(home / "sonarr.db")
    file.chmod(0o600)
    stage = home / "stage"
    stage.mkdir()
    done = subprocess.run([sys.executable, "-c", AS_ANOTHER, file, stage], check=True, capture_output=True, text=True)
    assert "may not be read by this user, so it cannot be backed up" in done.stdout


@pytest.mark.parametrize("name", ["a b.db", "100%25.db", "what?.db", "no#1.db", "Größe;'\".db", "zeile\num.db"])
async def test_odd_names(home: Path, stage: Path, tmp_path: Path, name: str) -> None:
    sonarr(home / name, wal=False)
    source = of(home / "*.db")
    before = held(home)
    archive = await backed_up(source, stage, tmp_path)
    (home / name).unlink()
    assert await returned(archive, source, tmp_path) == ()
    assert held(home) == before
    if "\n" not in name:
        (stage / "again").mkdir()
        assert (await captured_of(of(home / name), stage / "again")).missing == ()


async def test_a_name_that_is_no_utf8(home: Path, stage: Path, tmp_path: Path) -> None:
    name = os.fsdecode(b"\xff.db")
    sonarr(home / name, wal=False)
    archive = await backed_up(of(home / "*.db"), stage, tmp_path)
    (home / name).unlink()
    assert await returned(archive, of(home / "*.db"), tmp_path) == ()
    assert (home / name).exists()


@pytest.mark.parametrize(
    ("paths", "place", "says"),
    [
        (["/a/x.db", "/b/x.db"], None, r"same name \(x\.db\)"),
        (["/a/*.db"], "one.db", 'needs a folder for them: place = "one.db/"'),
        (["/a/x.db", "/a/y.db"], "one.db", "needs a folder"),
        ([], None, "at least 1"),
    ],
)
def test_settings_that_do_not_fit_are_refused(paths: list[str], place: str | None, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        of(*paths, place=place)


# --- back ------------------------------------------------------------------------------------------------------------


async def test_one_alone_may_be_one_file_of_the_backup(home: Path, stage: Path, tmp_path: Path) -> None:
    file = sonarr(home / "live.db")
    source = of(file, place="soundbox.db")
    archive = await backed_up(source, stage, tmp_path)
    before = held(home)
    assert rows(give_back(archive, tmp_path / "target").target / "soundbox.db") == rows(file)
    file.unlink()
    assert await returned(archive, source, tmp_path) == ()
    assert held(home) == before


@pytest.mark.parametrize("end", ["", *sqlite.BESIDE])
async def test_what_would_be_taken_for_its_own_goes_with_the_one_that_was_there(
    home: Path, stage: Path, tmp_path: Path, end: str
) -> None:
    file = sonarr(home / "sonarr.db")
    archive = await backed_up(of(file), stage, tmp_path)
    file.unlink()
    left = home / f"sonarr.db{end}"
    left.write_bytes(b"of another one")
    before = rows(give_back(archive, tmp_path / "target").target / "sonarr" / "sonarr.db")
    assert await returned(archive, of(file), tmp_path) == ()
    assert rows(file) == before
    (kept,) = home.glob(".*.before-*")
    assert kept.name.startswith(f".{left.name}.before-") and kept.read_bytes() == b"of another one"


@needs_root
async def test_where_its_folder_is_gone_too_the_program_can_write_again(
    home: Path, stage: Path, tmp_path: Path
) -> None:
    file = home / "config" / "sonarr" / "one.db"
    file.parent.mkdir(parents=True)
    accounts(file, "WAL", pages=50)
    archive = await backed_up(of(file), stage, tmp_path)
    shutil.rmtree(home / "config")
    (warning,) = await returned(archive, of(file), tmp_path)
    assert warning.startswith(f"{file.parent} was not there and was made, for the owner of one.db alone")
    can_still_write(file, "WAL")


async def test_a_backup_names_no_path_to_write_to(home: Path, stage: Path, tmp_path: Path) -> None:
    file = sonarr(home / "sonarr.db")
    source = of(home / "*.db")
    async with source.capture(stage) as captured:
        told = summary(captured)
    file.unlink()
    recorded = told.details["databases"][0]

    def with_(**more: str) -> Any:
        return replace(told, details={"databases": [{**recorded, **more}]})

    (stage / "0").rename(stage / "sonarr.db")
    await source.landing(with_(path="/etc/sonarr.db"))
    prepared = await source.prepare(stage, with_(path="/etc/sonarr.db"), "now")
    assert prepared.swaps[-1].home == str(file)
    for swap in prepared.swaps:
        await source.forth(swap)
    assert file.exists()
    for wrong in ("sonarr/../x.db", "sonarr//etc/x.db", "other/x.db", "sonarr/x.txt", "sonarr/", "sonarr/a/x.db"):
        with pytest.raises(RestoreError, match=r"says where .* belongs; nothing was changed"):
            await source.landing(with_(file=wrong))
    with pytest.raises(RestoreError, match=r"says where .* belongs; nothing was changed"):
        await of(home / "*" / "sonarr.db").landing(with_(file="sonarr/../sonarr.db"))
    strangers: list[dict[str, object]] = [{}, {"databases": None}, {"databases": [{"file": 1}]}]
    for details in strangers:
        with pytest.raises(RestoreError, match="does not say which databases"):
            await source.landing(replace(told, details=details))
    file.rename(stage / "real")
    (stage / "sonarr.db").symlink_to(stage / "real")
    with pytest.raises(RestoreError, match=r"sonarr/sonarr\.db \(source sonarr\) is no file"):
        await source.prepare(stage, told, "now")
    assert list(home.iterdir()) == []


async def test_what_a_link_leads_to_is_copied_with_its_own_log_and_comes_back_there(
    home: Path, stage: Path, tmp_path: Path
) -> None:
    (home / "disk").mkdir()
    file = sonarr(home / "disk" / "real.db")
    (home / "sonarr.db").symlink_to("disk/real.db")
    source = of(home / "sonarr.db")
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("UPDATE Series SET Title = 'new' WHERE Id = 1")
        archive = await backed_up(source, stage, tmp_path)
    file.unlink()
    assert await returned(archive, source, tmp_path) == ()
    assert (home / "sonarr.db").is_symlink() and any("'new'" in row for row in rows(file))

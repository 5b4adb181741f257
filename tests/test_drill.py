"""The restore test as a household has it: told, written down, and gone without a trace."""

from __future__ import annotations

import os
import shutil
import signal
import sqlite3
from contextlib import closing
from pathlib import Path

import psutil
import pytest

from memu_backup import drill
from tests.home import Home, in_a_loop_of_its_own, query, wait_until

CHAT = '[sources.chat]\nkind = "postgres"\nurl = "{url}"\n'
SOURCES = (
    '[sources.photos]\nkind = "directory"\npath = "photos"\n[sources.shows]\nkind = "sqlite"\npaths = ["sonarr.db"]\n'
)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    with closing(sqlite3.connect(home.folder / "sonarr.db")) as shows:
        shows.execute("CREATE TABLE shows (name)")
        shows.commit()
    home.configure(sources=SOURCES + CHAT.format(url=database))
    ran = home.run("start")
    assert ran.status == 0, ran
    return home


def drills(home: Home) -> list[dict[str, object]]:
    """backup_drills, the newest first."""
    found = query(home.history, "SELECT * FROM backup_drills ORDER BY created_at DESC")
    rows: list[dict[str, object]] = in_a_loop_of_its_own(found)
    return rows


def flip(archive: Path) -> None:
    """A bit in the middle of one of the photos, which alone fill a member."""
    with archive.open("r+b") as file:
        file.seek(1_000_000)
        byte = file.read(1)[0]
        file.seek(1_000_000)
        file.write(bytes([byte ^ 1]))


def test_everything_comes_back_and_that_is_told_and_nothing_of_it_stays(home: Home) -> None:
    before = sorted(home.folder.rglob("*"))
    ran = home.run("drill")
    assert ran.status == 0, ran
    assert "Restore tested: Today, everything came back (141 kB in " in ran.out
    there = [p for p in home.folder.rglob("*") if "state" not in p.parts and "history" not in p.name]
    assert set(there) <= set(before), "something of it stayed"
    (row,) = drills(home)
    assert (row["outcome"], row["filename"], row["lay_at"]) == ("whole", home.archives[-1].name, "")
    assert row["files"] == 5 and row["job"] == "nightly" and row["finished_at"]
    assert ("drill", "whole") in [(line["action"], line["outcome"]) for line in home.audit()]
    assert "Restore tested: Today, everything came back (" in home.run("status", "--details").out
    assert "Restore" not in home.run("status").out, "the words of the status alone are those of Memu"
    assert home.run("status", "--json").json["nightly"]["drill"]["outcome"] == "whole"


def test_a_dry_run_says_what_it_takes_and_tries_nothing(home: Home) -> None:
    ran = home.run("drill", "latest", "--dry-run")
    assert ran.status == 0 and "are needed and" in ran.out and "Nothing was changed." in ran.out
    turns = home.run("drill", "--dry-run")
    assert turns.status == 0 and "are needed and" in turns.out and home.archives[-1].name in turns.out, turns
    assert home.run("drill", "--dry-run", "--json").json[0]["backup"] == home.archives[-1].name
    assert drills(home) == []


@pytest.mark.slow
def test_what_failed_is_told_with_the_newest_backup_in_which_it_is_whole(home: Home) -> None:
    for name in ("one", "two"):
        (home.photos / name).write_bytes(os.urandom(3_000_000))
    for _ in range(2):
        assert home.run("start").status == 0
    _, middle, newest = home.archives
    flip(newest)
    ran = home.run("drill", "--json", newest.name)
    assert ran.status == 1
    (told,) = ran.json
    assert told["whole_in"] == middle.name and "photos/" in told["problems"][0]
    assert newest.with_name(f"{newest.name}.damaged").exists(), "it is not the last good one any more"
    shown = home.run("status", "--details").out
    assert "NOT everything came back - photos/" in shown and f"; it is whole in {middle.name}" in shown
    assert not (home.backups / drill.NAME).exists()


@pytest.mark.slow
def test_killed_in_the_middle_what_it_left_is_ended_and_removed_by_the_next(home: Home) -> None:
    many = "CREATE TABLE big AS SELECT repeat(md5(g::text), 40) FROM generate_series(1, 200000) g"
    in_a_loop_of_its_own(query(home.history, many, "SELECT 1"))
    assert home.run("start").status == 0
    scratch = home.backups / drill.NAME
    running = home.started("drill", "latest")
    wait_until(lambda: bool(list(scratch.glob("now/room/postgres/data/postmaster.pid"))))
    running.send_signal(signal.SIGKILL)
    running.communicate()
    left = [p for p in psutil.process_iter() if below(p, scratch)]
    assert scratch.exists() and left, "nothing was left, so this proves nothing"
    assert [row["outcome"] for row in drills(home)] == ["begun"]
    ran = home.run("drill", "latest")
    assert ran.status == 0, ran
    assert not scratch.exists() and not any(below(p, scratch) for p in psutil.process_iter())


def below(process: psutil.Process, folder: Path) -> bool:
    try:
        return Path(process.cwd().removesuffix(" (deleted)")).is_relative_to(folder)
    except (psutil.Error, OSError):
        return False


@pytest.mark.slow
def test_interrupted_it_takes_all_with_it(home: Home) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(300_000_000))
    assert home.run("start").status == 0
    scratch = home.backups / drill.NAME
    running = home.started("drill", "latest")
    wait_until(lambda: (scratch / "now" / "backup" / "photos").exists())
    running.send_signal(signal.SIGTERM)
    _, complaint = running.communicate()
    assert running.returncode == 130 and "Interrupted" in complaint
    assert not scratch.exists() and [row["outcome"] for row in drills(home)] == ["interrupted"]


@pytest.mark.slow
def test_another_folder_can_be_used_and_a_backup_of_somewhere_is_only_compared(home: Home, tmp_path: Path) -> None:
    elsewhere = tmp_path / "drive"
    elsewhere.mkdir()
    shutil.copy(home.archives[0], elsewhere)
    ran = home.run("drill", str(elsewhere / home.archives[0].name), "--scratch", str(tmp_path / "room"), "--json")
    assert ran.status == 0, ran
    assert list((tmp_path / "room").iterdir()) == []
    (told,) = ran.json
    assert told["lay_at"] == str(elsewhere)
    assert told["unchecked"] == [], "its bytes are those that were made here, so its dumps are loaded"
    assert drills(home) == []
    with (elsewhere / home.archives[0].name).open("ab") as file:
        file.write(b"\0" * 512)
    assert home.run("drill", str(elsewhere / home.archives[0].name)).status != 0


@pytest.mark.parametrize(
    "more", ['postgres_image = "postgres:15"\npostgres_url = "postgresql://x@y/z"', 'cron = "never"']
)
def test_settings_that_cannot_be_meant_are_refused(home: Home, more: str) -> None:
    home.configure(f"[drill]\n{more}\n")
    assert home.run("status").status == 2

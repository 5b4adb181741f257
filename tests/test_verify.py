"""A damaged backup is found, named, told in the status, and no longer counts; a whole one is written down as such."""

from __future__ import annotations

import os
import re
import subprocess
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memu_backup import sources, verify
from memu_backup.audit import SCHEDULER
from memu_backup.catalog import backups
from memu_backup.formats import gzip
from memu_backup.model import Level, Status, Trigger
from memu_backup.postgres import tools
from memu_backup.postgres.programs import programs
from tests import archives
from tests.home import Home, in_a_loop_of_its_own, managed, query

FILM = os.urandom(3_000_000)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    (home.photos / "film.mp4").write_bytes(FILM)
    assert home.run("start").status == 0
    return home


def flip(archive: Path) -> None:
    """One bit, in the middle of the film."""
    content = bytearray(archive.read_bytes())
    content[content.find(FILM[1_500_000:1_500_050])] ^= 1
    archive.write_bytes(content)


def test_a_flipped_bit_is_found_and_named_and_the_last_good_one_moves_back(home: Home) -> None:
    assert home.run("start").status == 0
    older, newest = home.archives
    flip(newest)
    assert home.run("verify", "latest", "--level", "quick").status == 0  # that looks at the index alone
    found = home.run("verify", newest.name)
    assert found.status == 1
    head, first, second, _ = found.err.partition("Checking")[2].splitlines()[1:]
    whole = f"photos/film.mp4 is whole in {older.name}; to have it back, type: memu-backup restore {older} "
    assert head == f"{newest.name} is damaged:"
    assert first == f"  photos/film.mp4 cannot be read back. {whole}--path photos/film.mp4 --to FOLDER"
    assert re.fullmatch(r"  A compressed block is damaged, at byte [\d,]+ of the archive\.", second)
    assert home.rows()[0]["error_code"] == "damaged"

    status = home.run("status", "--json")
    assert status.status == 1
    assert status.json["nightly"]["last_good"]["filename"] == older.name
    assert status.json["nightly"]["problems"] == ["last_failed"]
    assert [b["state"] for b in home.run("list", "--json").json] == ["damaged", "good"]
    shown = home.run("list")
    assert newest.name + "  Today" in shown.out and "damaged" in shown.out
    # What is restored without further words is the newest good one.
    dry = home.run("restore", "--dry-run", "--json")
    assert dry.json["archive"] == str(older)
    # It does not push a good one out either.
    home.configure(top="backup_retention_count = 1")
    assert home.run("clean", "--yes").status == 0
    assert older in home.archives

    newest.write_bytes(newest.read_bytes())
    again = home.run("verify", newest.name[:30], "--json")
    assert (again.status, again.json["good"]) == (1, False)
    assert any("photos/film.mp4" in p for p in again.json["problems"])


def test_one_that_is_known_to_be_damaged_does_not_become_good_by_a_new_sidecar(home: Home) -> None:
    (archive,) = home.archives
    flip(archive)
    assert home.run("verify", archive.name).status == 1
    made = subprocess.run(["sha256sum", archive.name], cwd=home.backups, capture_output=True, check=True).stdout
    archive.with_name(archive.name + ".sha256").write_bytes(made)
    again = home.run("verify", archive.name)
    assert again.status == 1 and "photos/film.mp4 cannot be read back." in again.err
    assert [b["state"] for b in home.run("list", "--json").json] == ["damaged"]


def test_damage_in_what_it_tells_of_itself_does_not_hide_the_file_that_is_damaged_too(home: Home) -> None:
    (archive,) = home.archives
    flip(archive)
    footer = gzip.read_footer(archive.read_bytes()[-gzip.FOOTER_BYTES :])
    assert footer
    content = bytearray(archive.read_bytes())
    content[footer.manifest_offset + 60] ^= 1
    archive.write_bytes(content)
    found = home.run("verify", archive.name)
    assert found.status == 1 and "photos/film.mp4 cannot be read back." in found.err


async def test_the_family_is_to_hear_of_damage_once(home: Home) -> None:
    (archive,) = home.archives
    for _ in range(2):
        await query(home.history, "UPDATE backup_history SET notification_sent = true", "SELECT 1")
        flipped = archive.read_bytes()
        if home.rows()[0]["error_code"] != "damaged":
            flip(archive)
            assert home.run("verify", archive.name).status == 1
            assert home.rows()[0]["notification_sent"] is False
        else:
            assert home.run("verify", archive.name).status == 1
            assert home.rows()[0]["notification_sent"] is True
            assert archive.read_bytes() == flipped


@pytest.mark.slow
def test_of_another_programs_archive_is_said_what_was_shown(home: Home) -> None:
    subprocess.run(["tar", "-czf", home.folder / "old.tar.gz", "-C", home.folder, "photos"], check=True)
    verified = home.run("verify", "./old.tar.gz")
    assert verified.status == 0
    assert "its compression and its list are whole; it carries no checksums to compare with." in verified.out
    (home.folder / "old.tar.gz").write_bytes((home.folder / "old.tar.gz").read_bytes()[:-9])
    assert home.run("verify", "./old.tar.gz").err.splitlines()[-4:-2] == [
        "old.tar.gz is damaged:",
        "  It ends too early; a part of it is missing.",
    ]


def test_one_that_can_be_read_again_is_good_again(home: Home) -> None:
    (archive,) = home.archives
    before = archive.read_bytes()
    flip(archive)
    assert home.run("verify").status == 1
    assert home.run("status").status == 1
    archive.write_bytes(before)
    verified = home.run("verify", str(archive))  # as a file; it lies in the store, so the row is its row
    assert verified.status == 0 and "is good: 5 files, 3 MB; every byte was read" in verified.out
    row = home.rows()[0]
    assert (row["status"], row["error"], row["error_code"]) == ("success", None, None)
    assert home.run("status").status == 0


def test_a_damaged_copy_elsewhere_says_nothing_about_the_one_in_its_place(home: Home) -> None:
    (archive,) = home.archives
    (home.folder / "usb").mkdir()
    copy = home.folder / "usb" / archive.name
    copy.write_bytes(archive.read_bytes())
    flip(copy)
    assert home.run("verify", str(copy)).status == 1
    assert home.rows()[0]["status"] == "success"
    assert home.run("status").status == 0
    newest = home.audit()[0]
    assert (newest["action"], newest["subject"], newest["outcome"]) == ("verify full", archive.name, "damaged")


@pytest.mark.slow
@pytest.mark.parametrize("cut", [4, 100, 1_000_000])
def test_a_backup_that_was_cut_is_damaged(home: Home, cut: int) -> None:
    (archive,) = home.archives
    archive.write_bytes(archive.read_bytes()[:-cut])
    assert home.run("verify", archive.name).status == 1
    assert home.run("verify", archive.name, "--level", "quick").status == 1
    refused = home.run("restore", archive.name, "--to", "back", "--yes")
    assert refused.status in (0, 1, 3) and "Traceback" not in refused.err
    status = home.run("status")
    assert status.status == 1 and "damaged" in status.out
    assert home.run("list").status == 0


async def test_a_verification_gives_a_lost_history_its_row_back(home: Home) -> None:
    await query(home.history, "DELETE FROM backup_history", "SELECT 1")
    assert home.run("status").status == 0  # by what lies on disk
    flip(home.archives[0])
    assert home.run("verify").status == 1
    (row,) = home.rows()
    assert (row["filename"], row["error_code"], row["job"]) == (home.archives[0].name, "damaged", "nightly")
    assert home.run("status").status == 1


def test_a_verification_without_the_history_still_says_what_it_found(home: Home) -> None:
    home.configure(history="postgresql://nobody@127.0.0.1:1/none")
    assert home.run("verify").status == 0
    flip(home.archives[0])
    assert home.run("verify").status == 1


@pytest.mark.slow
def test_that_the_newest_is_damaged_is_known_without_the_history_too(home: Home) -> None:
    """It pushes no good one out, is not what `latest` means, and is told; until it is found whole again."""
    assert home.run("start").status == 0
    older, newest = home.archives
    whole = newest.read_bytes()
    flip(newest)
    assert home.run("verify", newest.name).status == 1
    for lost in ("history away", "history lost"):
        away = "postgresql://nobody@127.0.0.1:1/none" if lost == "history away" else None
        home.configure(top="backup_retention_count = 1", history=away)
        if not away:
            in_a_loop_of_its_own(query(home.history, "DELETE FROM backup_history", "SELECT 1"))
        assert [b["state"] for b in home.run("list", "--json").json] == ["damaged", "good"]
        assert home.run("restore", "--dry-run", "--json").json["archive"] == str(older)
        told = home.run("status", "--json").json["nightly"]
        assert "last_failed" in told["problems"] and told["last"]["error_code"] == "damaged"
        assert told["last_good"]["filename"] == older.name
        home.run("clean", "--yes")
        assert older.exists()
        (told,) = (b for b in home.run("clean", "--dry-run", "--json").json if b["name"] == newest.name)
        assert told["reason"] == "It is damaged, but newer than the oldest complete backup that stays."
    newest.write_bytes(whole)
    assert home.run("verify", newest.name).status == 0
    assert [b["state"] for b in home.run("list", "--json").json] == ["good", "good"]
    assert home.leftovers() == [] and not Path(f"{newest}.damaged").exists()


@pytest.mark.slow
def test_a_damage_found_while_the_history_is_away_is_known_when_it_is_back(home: Home) -> None:
    assert home.run("start").status == 0
    older, newest = home.archives
    flip(newest)
    home.configure(history="postgresql://nobody@127.0.0.1:1/none")
    assert home.run("verify", newest.name).status == 1
    home.configure(top="backup_retention_count = 1")
    assert home.rows()[0]["status"] == "success"
    told = home.run("status", "--json").json["nightly"]
    assert (told["problems"], told["last_good"]["filename"]) == (["last_failed"], older.name)
    assert home.run("clean", "--yes").status == 0
    assert older.exists()


# --- what nobody could look at ---------------------------------------------------------------------------------------


@pytest.fixture
async def chat(tmp_path: Path, database: str, monkeypatch: pytest.MonkeyPatch) -> Home:
    """A household with a database, on a machine whose only programs of Postgres lie in ``programs`` beside it."""
    home = Home(tmp_path / "chat", database)
    home.configure(sources=f'[sources.chat]\nkind = "postgres"\nurl = "{database}"\n')
    home.mark()
    await query(database, "CREATE TABLE messages (id int)", "INSERT INTO messages VALUES (1)")
    (tmp_path / "programs").mkdir()
    for name in ("pg_dump", "pg_dumpall", "pg_restore", "psql"):
        script(tmp_path / "programs" / name, f'exec "{programs() / name}" "$@"')
    monkeypatch.setattr(tools, "tool_folders", lambda: [tmp_path / "programs"])
    return home


def script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)


@pytest.mark.slow
@pytest.mark.parametrize("trouble", ["killed", "missing"])
async def test_a_pg_restore_that_is_killed_or_missing_says_nothing_against_a_backup(
    chat: Home, tmp_path: Path, trouble: str
) -> None:
    """Neither against one that lies there, nor against one whose bytes were just read back."""
    pg_restore = tmp_path / "programs" / "pg_restore"
    async with managed(chat, [datetime.now(UTC)]) as manager:
        assert (await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)).warnings == ()
        before = await manager.history.runs()
        script(pg_restore, "kill -9 $$")
        run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
        assert (run.status, run.error_code, run.verified_at) == (Status.SUCCESS, None, None)
        (warning,) = run.warnings
        assert warning.startswith("chat: ") and "signal 9" in warning
        if trouble == "missing":
            pg_restore.unlink()
        for store, stored in await backups(manager.stores()):
            verdict = await manager.verify(store, stored, Level.FULL, SCHEDULER)
            assert (verdict.good, verdict.problems) == (False, ())
            assert len(verdict.unchecked) == 1 and ("signal 9" in verdict.unchecked[0]) == (trouble == "killed")
        events = await manager.history.audit_log()
        assert {e.outcome for e in events if e.action == "verify full"} == {"not checked"}
        assert sorted(await manager.history.runs(), key=lambda r: r.created_at) == sorted(
            [run, *before], key=lambda r: r.created_at
        )
        assert [listed.state for listed in await manager.listing()] == ["good", "good"]


async def test_a_kind_that_is_not_known_and_a_check_that_breaks_are_said_and_not_held_against_the_backup(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Broken:
        @staticmethod
        async def verify(summary: object, reader: object) -> list[str]:
            raise KeyError("details")

    monkeypatch.setattr(verify, "kinds", lambda: {**sources.kinds(), "directory": Broken, "files": None})
    async with managed(home, [datetime.now(UTC)]) as manager:
        ((store, stored),) = await backups(manager.stores())
        verdict = await manager.verify(store, stored, Level.FULL, SCHEDULER)
    assert verdict.problems == () and not verdict.good
    assert "photos: its own check broke (KeyError)" in verdict.unchecked[0]
    assert "config: this version does not know the kind files" in verdict.unchecked[1]
    assert home.rows()[0]["status"] == "success"


def test_the_command_says_what_was_not_checked_and_what_to_do(home: Home, tmp_path: Path) -> None:
    later = replace(archives.tree(home.photos), kind="of-a-later-version")
    archive = archives.back_up(archives.archive_store(tmp_path / "elsewhere"), later)
    verified = home.run("verify", str(archive))
    assert verified.status == 1 and verified.out == ""
    assert f"{archive.name} could not be checked as a whole" in verified.err
    assert "damaged" not in verified.err and "of-a-later-version" in verified.err and "a newer one" in verified.err
    told = home.run("verify", str(archive), "--json").json
    assert (told["good"], told["problems"], len(told["unchecked"])) == (False, [], 1)

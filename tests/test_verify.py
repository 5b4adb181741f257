"""A damaged backup is found, named, told in the status, and no longer counts; a whole one is written down as such."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.home import Home, query

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
    assert f"{newest.name} is damaged:" in found.err and "photos/film.mp4" in found.err and found.out == ""
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


@pytest.mark.parametrize("cut", [4, 100, 1_000_000])
def test_a_backup_that_was_cut_is_damaged(home: Home, cut: int) -> None:
    (archive,) = home.archives
    archive.write_bytes(archive.read_bytes()[:-cut])
    assert home.run("verify", archive.name).status == 1
    assert home.run("verify", archive.name, "--level", "quick").status == 1
    refused = home.run("restore", archive.name, "--to", "back", "--yes")
    assert refused.status in (0, 1) and "Traceback" not in refused.err
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

"""Nights after which the family is asked: the photos are gone, half of them, or all of them are not what they were."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from tests.contracts.stores import small_disk
from tests.home import Home, Ran, in_a_loop_of_its_own, query
from tests.killing import Moment, needs_strace

TREE = '[stores.main]\nkind = "tree"\n'


@pytest.fixture(params=["archive", pytest.param("tree", marks=pytest.mark.slow)])
def home(request: pytest.FixtureRequest, tmp_path: Path, database: str) -> Home:
    """With forty photos and two good backups; retention keeps two."""
    home = Home(tmp_path / "home", database)
    for number in range(40):
        (home.photos / f"{number}.jpg").write_bytes(os.urandom(40_000))
    configure(home, request.param)
    for _ in range(2):
        assert night(home).status == 0
    return home


def configure(home: Home, kind: str, more: str = "", guard: str = "") -> None:
    sources = f'[sources.photos]\nkind = "directory"\npath = "photos"\n{guard}\n'
    top = "backup_retention_count = 2"
    home.configure(more + (TREE if kind == "tree" else ""), top=top, sources=sources)


def night(home: Home) -> Ran:
    return home.run("start")


def empty(folder: Path) -> None:
    """As the mount point of a disk that is away."""
    shutil.rmtree(folder)
    folder.mkdir()


def states(home: Home) -> list[str]:
    """The newest first."""
    return [b["state"] for b in home.run("list", "--json").json]


def latest(home: Home) -> str:
    shown: str = home.run("show", "latest", "--json").json["path"]
    return Path(shown).name


def test_photos_that_are_gone_are_no_good_backup_and_all_that_was_there_stays(home: Home) -> None:
    good = latest(home)
    empty(home.photos)
    ran = night(home)
    assert ran.status == 3
    assert "photos: nothing is left of 42 files. It is kept, and so are all older ones" in ran.err
    assert latest(home) == good
    status = home.run("status")
    assert status.status == 1
    name = home.run("list", "--json").json[0]["name"]
    assert " - photos: nothing is left of 42 files\n" in status.out and "Last backup: SUSPICIOUS today" in status.out
    assert "Health: The last backup looks wrong - is it as it should be? !backup accept, or" in status.out
    told = home.run("status", "--json").json["nightly"]
    assert (told["health"], told["problems"]) == ("warning", ["suspicious"])
    assert told["doubts"] == [{"source": "photos", "what": "everything", "before": 42, "lost": 42}]
    assert told["in_doubt"]["filename"] == name and told["last_good"]["filename"] == good
    assert "It looks wrong: photos: nothing is left of 42 files." in home.run("show", name).out

    assert night(home).status == night(home).status == 3
    assert states(home) == ["suspicious"] * 3 + ["good"] * 2, "retention keeps two, and nothing goes"
    dry = home.run("clean", "--dry-run", "--json").json
    assert {d["keep"] for d in dry} == {True} and "looks wrong, and nothing goes until that is settled" in dry[-1][
        "reason"
    ]
    link = home.backups / "latest"
    assert not link.is_symlink() or link.readlink() == Path(good)


@pytest.mark.slow
def test_once_they_are_back_the_next_backup_is_good_and_the_old_ones_go(home: Home, tmp_path: Path) -> None:
    shutil.copytree(home.photos, tmp_path / "away", symlinks=True)
    empty(home.photos)
    assert night(home).status == 3
    home.photos.rmdir()
    shutil.move(tmp_path / "away", home.photos)
    assert night(home).status == 0
    assert home.run("status").status == 0
    assert states(home) == ["good", "suspicious", "good"]
    assert night(home).status == 0
    assert states(home) == ["good", "good"]


def test_half_of_them_removed_is_asked_about_until_somebody_says_that_it_is_right(home: Home) -> None:
    for number in range(21):
        (home.photos / f"{number}.jpg").unlink()
    assert night(home).status == night(home).status == 3
    assert [row["error"] for row in home.rows()[:2]] == ["photos: 21 of 42 files are gone"] * 2
    names = [b["name"] for b in home.run("list", "--json").json]
    said = home.run("accept", names[1])
    assert (said.status, said.err) == (0, "")
    assert said.out == f"{names[0]} and {names[1]} count as good from now on; the next backups are compared with it.\n"
    assert home.run("status").status == 0
    assert [(r["status"], r["error_code"], r["error"]) for r in home.rows()[:2]] == [("success", None, None)] * 2
    event = home.audit()[0]
    assert (event["action"], event["subject"], event["outcome"]) == ("accept", names[1], f"{names[0]}, {names[1]}")
    assert home.run("accept", names[1]).out == f"{names[1]} does not look wrong; nothing to do.\n"
    assert night(home).status == 0
    assert states(home) == ["good", "good"]


def test_without_a_name_the_one_that_waits_is_accepted(home: Home) -> None:
    assert home.run("accept").out == "No backup waits for an answer.\n"
    assert home.run("accept", "--json").json == {"accepted": []}
    empty(home.photos)
    night(home)
    name = home.run("list", "--json").json[0]["name"]
    assert home.run("accept", "--json").json == {"accepted": [name]}
    assert latest(home) == name
    unknown = home.run("accept", "1999")
    assert (unknown.status, unknown.out) == (2, "") and "There is no backup 1999" in unknown.err


@pytest.mark.slow
def test_more_that_is_lost_after_the_answer_is_a_new_question(home: Home) -> None:
    for number in range(21):
        (home.photos / f"{number}.jpg").unlink()
    night(home)
    first = home.run("list", "--json").json[0]["name"]
    empty(home.photos)
    night(home)
    assert home.run("accept", first, "--json").json == {"accepted": [first]}
    assert states(home)[:2] == ["suspicious", "good"]
    assert home.run("status").status == 1


def test_photos_that_something_encrypted_are_asked_about_and_sorted_ones_are_not(home: Home) -> None:
    (home.photos / "sorted").mkdir()
    for photo in home.photos.glob("*.jpg"):
        photo.rename(home.photos / "sorted" / photo.name)
    assert night(home).status == 0
    for photo in (home.photos / "sorted").glob("*.jpg"):
        photo.with_suffix(".locked").write_bytes(os.urandom(40_100))
        photo.unlink()
    ran = night(home)
    assert ran.status == 3
    assert home.rows()[0]["error"] == "photos: 40 of 42 files are not what they were"


@pytest.mark.slow
@pytest.mark.parametrize("guard", ["guard = false", "guard = 0", "guard = 1.0"])
def test_a_source_says_itself_what_is_asked_of_it(home: Home, guard: str) -> None:
    configure(home, "tree" if (home.backups / "latest").exists() else "archive", guard=guard)
    for photo in home.photos.glob("*.jpg"):
        photo.unlink()
    assert night(home).status == 0


@pytest.mark.parametrize("guard", ["guard = 1.5", "guard = true", 'guard = "half"'])
def test_a_guard_that_is_none_is_refused(home: Home, guard: str) -> None:
    configure(home, "archive", guard=guard)
    ran = home.run("check")
    assert ran.status == 2 and "sources.photos.guard" in ran.err, ran


@pytest.mark.slow
def test_with_the_history_lost_it_is_suspicious_all_the_same(home: Home) -> None:
    empty(home.photos)
    night(home)
    in_a_loop_of_its_own(query(home.history, "DELETE FROM backup_history"))
    assert home.run("status", "--json").json["nightly"]["problems"] == ["suspicious"]
    assert night(home).status == 3


def test_a_row_that_did_not_hear_of_the_answer_is_put_right(home: Home) -> None:
    """Somebody removed the note by hand, or was killed after it."""
    empty(home.photos)
    night(home)
    (note,) = (p for p in home.backups.rglob("*suspicious") if p.is_file())
    note.unlink()
    assert home.run("status").status == 0
    assert home.rows()[0]["status"] == "partial"
    assert home.run("history", "rebuild", "--json").json["changes"][0]["what"] == "accepted"
    assert home.rows()[0]["status"] == "success"


@pytest.mark.slow
@needs_strace
def test_killed_before_the_row_it_is_adopted_as_suspicious(home: Home) -> None:
    empty(home.photos)
    killed = home.run("start", prefix=Moment("fsync", 3 if latest(home).endswith("gz") else 1, home.backups).prefix)
    assert killed.status == -9
    assert states(home)[0] == "suspicious"
    assert night(home).status == 3
    assert [(r["status"], r["error_code"]) for r in home.rows()[:2]] == [("partial", "suspicious")] * 2


def archives_of(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.rglob("*.tar.gz"))


@pytest.mark.slow
def test_a_drive_keeps_what_it_has_until_somebody_says_that_it_is_right(tmp_path: Path, database: str) -> None:
    home = Home(tmp_path / "home", database)
    drive = tmp_path / "drive"
    drive.mkdir()
    for _ in range(2):
        assert night(home).status == 0
        assert home.run("usb", "copy", "--to", str(drive)).status == 0
    there = archives_of(drive)
    empty(home.photos)
    assert night(home).status == 3
    for argv in (("--dry-run",), ()):
        ran = home.run("usb", "copy", "--to", str(drive), *argv)
        assert ran.status == 0, ran
    assert archives_of(drive) == there
    assert home.run("accept").status == 0
    assert home.run("usb", "copy", "--to", str(drive)).status == 0
    assert archives_of(drive)[-1] == home.archives[-1].name


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
def test_no_room_is_made_while_the_newest_is_suspicious(tmp_path: Path, database: str) -> None:
    home = Home(tmp_path / "home", database)
    home.configure("retention = { keep_last = 9 }\n")
    with small_disk(home.backups, "1000k") as disk:  # a backup takes 130 kB
        for _ in range(5):
            assert night(home).status == 0
        empty(home.photos)
        assert night(home).status == 3
        (disk / "somebody's").write_bytes(os.urandom(200_000))
        home.configure('retention = { keep_last = 1, min_free = "100 kB" }\n')
        before = home.archives
        ran = night(home)
        assert ran.status == 1 and home.archives == before
        assert ran.err.endswith(
            "Older backups that could make room stay, as the newest looks wrong: memu-backup status tells.\n"
        )
        assert home.run("accept").status == 0
        assert night(home).status == 0
        assert len(home.archives) == 1

"""No room left, wherever a run meets it: the run is given up in so many words, and every older backup stays.

Real small filesystems: a tmpfs with few blocks or few inodes, and a btrfs with a quota.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.contracts.stores import small_disk
from tests.disks import loop_disk
from tests.home import Home, in_a_loop_of_its_own, query
from tests.killing import assert_tidy, hashes, listed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")


@pytest.fixture
async def home(tmp_path: Path, database: str) -> Home:
    """With photos and a database to be dumped; nothing is stored yet."""
    home = Home(tmp_path / "home", database)
    await query(database, "CREATE TABLE messages AS SELECT n, md5(n::text) FROM generate_series(1, 100) n", "SELECT 1")
    home.configure(
        sources='[sources.photos]\nkind = "directory"\npath = "photos"\n'
        f'[sources.pgdata]\nkind = "postgres"\nurl = "{database}"\nglobals = false\n'
    )
    return home


@contextmanager
def on_a_disk(home: Home, size: str, more: str = "") -> Iterator[Path]:
    """The backups lie in a folder of a small disk of their own; gives its top."""
    with small_disk(home.folder / "disk", size, more) as disk:
        place_backups(home, disk)
        yield disk


QUOTA = {"code": "quota", "told": "The quota for the backups is used up"}


def place_backups(home: Home, disk: Path) -> None:
    (disk / "backups").mkdir(mode=0o700)
    home.backups.symlink_to(disk / "backups")


def given_up(home: Home, *says: str, code: str = "disk_full", told: str = "Disk full") -> bool:
    """A run, which ends for want of room, is told so, and leaves every older backup as it was; False if it is good.

    ``says`` stands in what the person is told.
    """
    older = hashes(home.backups)
    ran = home.run("start")
    assert_tidy(home)
    assert listed(home) == [a.name for a in home.archives]
    assert hashes(home.backups).items() >= older.items()
    if ran.status == 0:
        return False
    for part in (*says, "older backups are untouched"):
        assert part in ran.err, ran.err
    row = home.rows()[0]
    assert (ran.status, row["status"], row["error_code"]) == (1, "failed", code), row["error"]
    assert hashes(home.backups) == older
    assert f"- {told}\n" in home.run("status").out
    return True


def fill(disk: Path, leave_bytes: int) -> None:
    filler = disk / "filler"
    filler.unlink(missing_ok=True)
    free = os.statvfs(disk)
    with filler.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - leave_bytes)


@pytest.mark.slow
def test_wherever_inodes_run_out_it_is_said_as_such(home: Home) -> None:
    with on_a_disk(home, "20m", ",nr_inodes=40") as disk:
        assert home.run("start").status == 0
        fillers = [disk / str(number) for number in range(os.statvfs(disk).f_favail)]
        for file in fillers:
            file.touch()
        runs = 0
        while given_up(home, "no inodes left", code="no_inodes", told="The disk has no room for more files"):
            runs += 1
            fillers.pop().unlink()
        # Each of its folders and files was the one for which there was no inode.
        assert runs >= 5
        assert len(home.archives) == 2


def test_wherever_the_disk_gets_full_it_is_said_as_such(home: Home) -> None:
    with on_a_disk(home, "8m") as disk:
        assert home.run("start").status == 0
        (home.photos / "film.mp4").write_bytes(os.urandom(2_000_000))
        runs = 0
        for kilobytes in (0, 150, 400, 1500, 2200, 3000):
            fill(disk, kilobytes << 10)
            runs += given_up(home, "Free up space or add storage.")
        assert runs == 4
        assert len(home.archives) == 3


def test_a_used_up_quota_is_told_from_a_full_disk_wherever_it_is_met(home: Home) -> None:
    with loop_disk("btrfs", home.folder) as disk:
        place_backups(home, disk)
        assert home.run("start").status == 0
        subprocess.run(["btrfs", "quota", "enable", disk], check=True, capture_output=True)
        (home.photos / "film.mp4").write_bytes(os.urandom(6_000_000))
        met = 0
        for quota in ("256k", "2m", "6m", "200m"):
            subprocess.run(["btrfs", "qgroup", "limit", quota, disk], check=True, capture_output=True)
            met += given_up(home, "The quota for ", "is used up", "Raise the quota or free up space.", **QUOTA)
        assert met == 3
        assert len(home.archives) == 2


def test_a_quota_that_the_dump_uses_up_is_told_as_such(home: Home) -> None:
    films = "CREATE TABLE films AS SELECT repeat(md5(n::text), 1000) FROM generate_series(1, 200) n"
    in_a_loop_of_its_own(query(home.history, films, "SELECT 1"))
    with loop_disk("btrfs", home.folder) as disk:
        place_backups(home, disk)
        subprocess.run(["btrfs", "quota", "enable", disk], check=True, capture_output=True)
        subprocess.run(["btrfs", "qgroup", "limit", "3m", disk], check=True, capture_output=True)
        assert given_up(home, "The quota for the backups is used up", **QUOTA)


@pytest.mark.slow
def test_the_list_of_very_many_files_may_be_what_fills_the_disk(home: Home) -> None:
    """Names and checksums of 20,000 files go to a scratch file once they are more than a few megabytes."""
    with on_a_disk(home, "8m") as disk:
        assert home.run("start").status == 0
        for number in range(20_000):
            os.link(home.photos / "2026" / "tent.jpg", home.photos / f"{number:0>240}")
        assert given_up(home, "is full")
        subprocess.run(["mount", "-o", "remount,size=60m", disk], check=True)
        assert not given_up(home)
        assert home.archives[-1].stat().st_size < 5_000_000, "it was not the archive itself"


@pytest.mark.parametrize("history", ["there", "away"])
def test_a_state_folder_that_is_full_costs_no_backup(home: Home, history: str) -> None:
    if history == "away":
        home.configure(history="postgresql://memu@127.0.0.1:1/memu")
    home.mark()
    with small_disk(home.folder / "state", "40k") as state:
        fill(state, 0)
        ran = home.run("start", *(["--new-place"] if history == "away" else []))
        assert ran.status == 0, ran.err
        (archive,) = home.archives
        assert "No space left on device" in ran.err
        if history == "there":
            assert [(r["status"], r["filename"]) for r in home.rows()] == [("success", archive.name)]
        else:
            assert f"The backup {archive.name} could not be written down" in ran.err
        assert home.run("verify", archive.name).status == 0

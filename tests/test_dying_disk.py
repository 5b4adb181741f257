"""A disk that is about to die, met by whole runs: what cannot be read is named, what was not kept is no backup."""

from __future__ import annotations

import asyncio
import errno
import os
import time
from contextlib import suppress
from datetime import UTC, datetime
from itertools import pairwise
from pathlib import Path

import pytest

from memu_backup import place
from memu_backup.audit import SCHEDULER
from memu_backup.errors import StoreError
from memu_backup.formats.reader import ArchiveReader
from memu_backup.model import Status, Trigger
from tests.faulty_disk import Fault, faulty_disk, needs_fuse
from tests.home import Home, managed
from tests.killing import assert_tidy, hashes, listed

pytestmark = needs_fuse


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


def test_a_photo_that_the_disk_cannot_read_is_named_and_the_rest_is_stored(home: Home, tmp_path: Path) -> None:
    home.photos.rename(tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("read", "lake.jpg")) as disk:
        home.photos.symlink_to(disk.folder)
        ran = home.run("start")
        assert ran.status == 3
        assert len(disk.failed()) == 4, "tried again, and not for ever"
    assert ran.err.count("photos/2026/lake.jpg cannot be read: the disk reports an error") == 1
    row = home.rows()[0]
    assert (row["status"], row["error"]) == (
        "partial",
        "photos/2026/lake.jpg cannot be read: the disk reports an error",
    )
    assert "Last backup: INCOMPLETE" in home.run("status").out
    assert [b["state"] for b in home.run("list", "--json").json] == ["incomplete"]
    back = home.run("restore", home.archives[0].name, "--to", "back", "--yes")
    assert back.status == 0 and (home.folder / "back/photos/2026/tent.jpg").exists()


@pytest.mark.slow
def test_a_file_that_vanishes_from_its_network_share_when_it_was_read_costs_nothing_but_a_word(
    home: Home, tmp_path: Path
) -> None:
    """By then its content stands in the archive, and what follows it must stand where it belongs."""
    for film in ("2026/film.mp4", "z.mp4"):
        (home.photos / film).write_bytes(os.urandom(2 << 20))
    home.photos.rename(tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("getattr", "film.mp4", errno.ESTALE, after="read")) as disk:
        home.photos.symlink_to(disk.folder)
        ran = home.run("start", "--json")
        assert (ran.status, ran.json["status"]) == (0, "success"), ran.err
        assert disk.failed()
        assert "photos/2026/film.mp4 could not be looked at again after it was read" in ran.json["warnings"]
    assert home.run("verify", "latest").status == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "code", "says"),
    [
        (Fault("fsync", "*.tar.gz.partial", times=1), "write_failed", "was thrown away"),
        (Fault("fsync", "*.tar.gz.partial", errno.ENOSPC, times=1), "disk_full", "is full"),
        (Fault("flush", "*.tar.gz.partial", errno.ENOSPC, times=1), "disk_full", "is full"),
        (Fault("flush", "*.tar.gz.partial", errno.EDQUOT, times=1), "quota", "The quota for"),
        (Fault("read", "*.tar.gz.partial"), "damaged", "could not be read back"),
        (Fault("fsync", ".*.sha256.*.partial", times=1), "write_failed", "was thrown away"),
        (Fault("rename", "*.tar.gz.partial", times=1), "write_failed", "was thrown away"),
        (Fault("fsyncdir", "", times=1, but=1), "write_failed", "was thrown away"),
    ],
)
def test_what_the_disk_did_not_keep_is_thrown_away_and_never_tried_again(
    home: Home, tmp_path: Path, fault: Fault, code: str, says: str
) -> None:
    assert home.run("start").status == 0
    home.backups.rename(tmp_path / "beneath")
    with faulty_disk(tmp_path, fault) as disk:
        home.backups.symlink_to(disk.folder)
        older = hashes(home.backups)
        ran = home.run("start")
        assert ran.status == 1 and says in ran.err and "older backups are untouched" in ran.err, ran.err
        if fault.operation != "read":
            assert len(disk.failed()) == 1, "never tried again"
        row = home.rows()[0]
        assert (row["status"], row["error_code"]) == ("failed", code)
        assert hashes(home.backups) == older
        assert_tidy(home)
        assert listed(home) == [n for n in older if n.endswith(".gz")]
        if fault.operation != "read":
            assert home.run("start").status == 0


def test_of_a_backup_that_the_disk_can_read_in_part_it_is_said_which_file_is_lost(home: Home, tmp_path: Path) -> None:
    for film in ("one.mp4", "two.mp4"):
        (home.photos / film).write_bytes(os.urandom(2 << 20))
    assert home.run("start").status == 0
    (archive,) = home.archives
    with ArchiveReader(archive) as reader:
        lost = next(e for e in reader.index() if e.content)
    home.backups.rename(tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("read", archive.name, at=lost.content + 100)) as disk:
        home.backups.symlink_to(disk.folder)
        found = home.run("verify", archive.name, "--level", "full")
        assert found.status == 1
        assert f"{lost.path} cannot be read back." in found.err
        assert found.err.count("cannot be read back") == 1


@pytest.mark.slow
@pytest.mark.parametrize("level", ["quick", "full"])
def test_a_backup_that_the_disk_cannot_read_any_more_is_damaged_and_the_last_good_one_moves_back(
    home: Home, tmp_path: Path, level: str
) -> None:
    assert home.run("start").status == 0 and home.run("start").status == 0
    older, newest = (a.name for a in home.archives)
    home.backups.rename(tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("read", newest)) as disk:
        home.backups.symlink_to(disk.folder)
        found = home.run("verify", newest, "--level", level)
        assert found.status == 1
        assert f"{newest} cannot be read: its disk reports an error" in found.err
        assert home.rows()[0]["error_code"] == "damaged"
        status = home.run("status", "--json")
        assert status.json["nightly"]["last_good"]["filename"] == older
        assert {b["name"]: b["state"] for b in home.run("list", "--json").json} == {newest: "damaged", older: "good"}


async def test_a_run_into_a_disk_that_hangs_is_given_up_and_holds_up_nothing_else(
    home: Home, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert home.run("start").status == 0
    home.backups.rename(tmp_path / "beneath")
    monkeypatch.setattr(place, "_ANSWER_S", 1.0)
    beats = [time.monotonic()]

    async def beat() -> None:
        while True:
            await asyncio.sleep(0.05)
            beats.append(time.monotonic())

    with faulty_disk(tmp_path) as disk:
        home.backups.symlink_to(disk.folder)
        async with managed(home, [datetime.now(UTC)]) as manager:
            with disk.hangs():
                heart = asyncio.create_task(beat())
                run = await asyncio.wait_for(manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER), 20)
                for asked in (manager.listing, manager.standing.reports, manager.recover):
                    with suppress(StoreError):
                        await asyncio.wait_for(asked(), 20)
                heart.cancel()
            assert (run.status, run.error_code) == (Status.FAILED, "not_mounted")
            assert run.retry_at is not None
            assert max(later - before for before, later in pairwise(beats)) < 0.9

"""Backups go where backups belong: below an empty mount point nothing is written, made or removed, and it is said."""

from __future__ import annotations

import asyncio
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memu_backup import mark, place
from memu_backup.audit import SCHEDULER
from memu_backup.errors import NotMounted
from memu_backup.model import Health, Problem, Status, Trigger
from tests.archives import archive_store, needs_root
from tests.contracts.stores import small_disk
from tests.home import Home, fingerprints, managed
from tests.sources.test_directory import dead_share

pytestmark = needs_root

NIGHT = datetime(2026, 3, 1, 1, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Iterator[Home]:
    """Its backups lie on a disk of their own; ``away`` takes that off for a while."""
    home = Home(tmp_path / "home", database)
    with small_disk(home.backups, "20m"):
        home.mark()
        yield home


@contextmanager
def away(folder: Path) -> Iterator[None]:
    """Its disk is not mounted while this lasts, and keeps what is on it."""
    kept = folder.with_name("kept")
    kept.mkdir(exist_ok=True)
    subprocess.run(["mount", "--bind", folder, kept], check=True)
    subprocess.run(["umount", folder], check=True)
    try:
        yield
    finally:
        subprocess.run(["mount", "--bind", kept, folder], check=True)
        subprocess.run(["umount", kept], check=True)


async def test_at_night_nothing_is_written_below_an_empty_mount_point(home: Home) -> None:
    async with managed(home, [NIGHT]) as manager:
        assert (await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)).status is Status.SUCCESS
        before = fingerprints(home.backups)
        for trigger in (Trigger.SCHEDULE, Trigger.CATCH_UP):
            with away(home.backups):
                used = home.backups.stat()
                run = await manager.back_up("nightly", trigger, SCHEDULER)
                await manager.recover()
                assert list(home.backups.iterdir()) == [] and home.backups.stat().st_mtime_ns == used.st_mtime_ns
            assert (run.status, run.error_code) == (Status.FAILED, "not_mounted")
            assert run.error and run.error.startswith(f"{home.backups} does not carry the mark of a place for backups")
        assert fingerprints(home.backups) == before
        assert (await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)).status is Status.SUCCESS
    assert [r["error_code"] for r in home.rows()] == [None, "not_mounted", "not_mounted", None]


async def test_a_mark_below_the_mount_point_does_not_let_the_night_fill_the_root_disk(home: Home) -> None:
    """As it comes about where `init` makes the folder before its disk is mounted there for the first time."""
    with away(home.backups):
        home.mark()
    home.configure(top="backup_retention_count = 1")
    async with managed(home, [NIGHT]) as manager:
        assert (await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)).status is Status.SUCCESS
        before = fingerprints(home.backups)
        with away(home.backups):
            empty = fingerprints(home.backups)
            assert empty
            run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
            await manager.recover()
            assert fingerprints(home.backups) == empty
            assert (run.status, run.error_code) == (Status.FAILED, "not_mounted") and run.error
            assert "are not there" in run.error or "is not there" in run.error
            assert (await manager.standing.reports())["nightly"].health is Health.CRITICAL
            for asked in (("list",), ("find", "lake.jpg"), ("restore",), ("verify",)):
                said = home.run(*asked)
                assert "its disk is probably not mounted. Mount it and type the same again." in said.out + said.err
            for refused in (home.run("start"), home.run("check"), home.run("clean", "--yes")):
                assert refused.status != 0 and "start --new-place" in refused.err + refused.out
            assert fingerprints(home.backups) == empty
        assert fingerprints(home.backups) == before
        assert (await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)).status is Status.SUCCESS


async def test_an_empty_place_waits_for_a_history_that_is_away(home: Home) -> None:
    home.configure(history="postgresql://memu@127.0.0.1:1/memu")
    async with managed(home, [NIGHT]) as manager:
        run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
        assert run.error_code == "not_mounted" and home.archives == []
        assert home.run("start").status == 2
        assert home.run("start", "--new-place").status == 0
        run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
        assert run.status is Status.SUCCESS


async def test_a_place_that_other_names_are_kept_in_is_no_lost_one(home: Home) -> None:
    assert home.run("start").status == 0
    home.configure(top='[stores.other]\nkind = "archive"\nprefix = "other"\n', more='store = "other"\n')
    async with managed(home, [NIGHT]) as manager:
        run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
    assert run.status is Status.SUCCESS and run.filename.startswith("other_")


async def test_a_disk_that_does_not_answer_is_as_good_as_none(tmp_path: Path) -> None:
    store, hangs = archive_store(tmp_path), threading.Event()
    try:
        with pytest.raises(NotMounted, match="does not answer") as told:
            await place.asked(store, hangs.wait, 0.01)
        assert told.value.retryable
    finally:
        hangs.set()


async def test_who_only_asks_how_things_stand_waits_once_for_a_disk_that_hangs_and_leaves_one_thread(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(place, "_LOOK_S", 0.5)
    assert home.run("start").status == 0
    before = threading.active_count()
    with dead_share(home.backups):
        async with managed(home, [NIGHT]) as manager:
            for longest_s in (2.0, 0.3, 0.3):
                began = time.monotonic()
                report = (await manager.standing.reports())["nightly"]
                assert report.problems[0] is Problem.CANNOT_LOOK and time.monotonic() - began < longest_s
                assert await manager.at_work("nightly")
            with pytest.raises(NotMounted, match="does not answer"):
                await manager.listing()
            assert threading.active_count() == before + 1
    async with managed(home, [NIGHT]) as manager:
        deadline = time.monotonic() + 10
        while Problem.CANNOT_LOOK in (await manager.standing.reports())["nightly"].problems:
            assert time.monotonic() < deadline, "it is asked again when it answers"
            await asyncio.sleep(0.05)


async def test_not_even_the_folder_is_made_at_night(home: Home) -> None:
    home.configure(top=f'backup_dir = "{home.folder}/media/disk/backups"')
    async with managed(home, [NIGHT]) as manager:
        run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
        await manager.recover()
    assert run.error_code == "not_mounted" and not (home.folder / "media").exists()


def test_status_and_check_and_clean_say_that_the_disk_is_away(home: Home) -> None:
    home.configure(top="backup_retention_count = 1")
    assert home.run("start").status == 0
    with away(home.backups):
        assert "Backups are missing from their place" in home.run("status").out
        told = home.run("status", "--json").json["nightly"]
        assert (told["health"], told["problems"][:2]) == ("critical", ["backup_gone", "not_marked"])
        checked = home.run("check")
        assert checked.status == 1 and f" NO  backups in {home.backups}: " in checked.out
        assert "does not carry the mark of a place for backups" in checked.out
        assert "its disk is probably not mounted. Mount it" in home.run("list").out
        cleaned = home.run("clean", "--yes")
        assert cleaned.status == 1 and "nothing was written or removed there" in cleaned.err
        assert list(home.backups.iterdir()) == []
    assert home.run("status").status == 0


def test_by_hand_no_second_home_for_the_backups_is_made_unless_that_is_said(home: Home) -> None:
    assert home.run("start").status == 0
    first = home.archives[0].name
    with away(home.backups):
        refused = home.run("start", "--json")
        assert refused.status == 2 and refused.json["error"]["code"] == "backups_missing"
        assert f"is not there ({first})" in refused.err and "memu-backup start --new-place" in refused.err
        assert list(home.backups.iterdir()) == [] and len(home.rows()) == 1
        assert home.run("start", "--new-place").status == 0
        assert len(home.archives) == 1
        for file in home.backups.iterdir():
            file.unlink()
    assert [a.name for a in home.archives] == [first]
    assert home.run("start").status == 0
    assert home.audit()[2]["outcome"] == "refused"


def test_with_the_history_away_nobody_can_tell_so_it_asks(home: Home) -> None:
    home.configure(top='backup_dir = "new"', history="postgresql://memu@127.0.0.1:1/memu")
    refused = home.run("start")
    assert refused.status == 2 and "the history cannot be reached to tell" in refused.err
    assert not (home.folder / "new").exists()
    assert home.run("start", "--new-place").status == 0
    assert home.run("start").status == 0


def test_a_first_backup_by_hand_marks_its_place_for_the_nights(home: Home) -> None:
    home.configure(top='backup_dir = "new"')
    assert "If its disk is not mounted, mount it" in home.run("list").out
    unmarked = home.run("status")
    assert unmarked.status == 1 and "connect the backup disk, or start the first backup by hand" in unmarked.out
    assert home.run("start").status == 0
    said = json.loads((home.folder / "new" / mark.NAME).read_text())
    assert (said["format"], said["host"]) == ("memu-backup-place/1", "family-server")
    assert home.run("status").status == 0 and f" ok  backups in {home.folder}/new: " in home.run("check").out


def test_backups_that_lost_their_mark_are_taken_up_by_hand(home: Home) -> None:
    """As those are that an older memu-backup made, or that somebody copied to a new disk."""
    assert home.run("start").status == 0
    (home.backups / mark.NAME).unlink()
    assert "The backup disk is not in its place" in home.run("status").out
    assert home.run("clean", "--yes").status == 1
    assert home.run("start").status == 0
    assert home.run("status").status == 0 and len(home.archives) == 2

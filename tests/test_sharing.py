"""Which night shares blocks with the one before, and what becomes of a night that took over damage."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from datetime import timedelta
from itertools import count
from pathlib import Path

import pytest

from memu_backup.audit import SCHEDULER
from memu_backup.catalog import backups
from memu_backup.clock import now
from memu_backup.config import load
from memu_backup.history import History
from memu_backup.manager import Manager
from memu_backup.model import Backup, Level, Phase, Progress, Run, Status, Trigger
from tests.archives import needs_root
from tests.disks import loop_disk, own_bytes
from tests.home import Home

pytestmark = needs_root

TOMORROW = now() + timedelta(days=1)
"""The first night: what was changed within a quarter of an hour before one is not trusted."""

FILM = os.urandom(2_000_000)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with loop_disk("xfs", tmp_path_factory.mktemp("disk")) as place:
        yield place


@pytest.fixture
def home(disk: Path, database: str, request: pytest.FixtureRequest) -> Home:
    home = Home(disk / request.node.name, database)
    home.mark()
    (home.photos / "film.mp4").write_bytes(FILM)
    return home


@pytest.fixture
def wrong_by() -> list[timedelta]:
    """How wrong the manager's clock is."""
    return [timedelta()]


@pytest.fixture
async def manager(home: Home, wrong_by: list[timedelta]) -> AsyncIterator[Manager]:
    config = load(home.folder / "config.toml", {})
    nights = (TOMORROW + timedelta(hours=n) for n in count())
    async with History(config.history_url(), config.state_dir, config.host) as history:
        yield Manager(config, history, lambda: next(nights) + wrong_by[0])


async def back_up(manager: Manager) -> tuple[Run, Backup]:
    run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
    return run, next(b for _, b in await backups(manager.stores()) if b.name == run.filename)


@pytest.mark.slow
async def test_every_seventh_backup_shares_nothing_with_another(manager: Manager) -> None:
    nights = []
    for _ in range(9):
        _, backup = await back_up(manager)
        assert backup.manifest
        nights.append(backup.manifest.nights_shared)
        assert (own_bytes(backup.path) > len(FILM)) is (backup.manifest.nights_shared == 0)
    assert nights == [0, 1, 2, 3, 4, 5, 6, 0, 1]


@pytest.mark.slow
async def test_damage_in_the_older_one_costs_neither_this_night_nor_the_next(manager: Manager) -> None:
    _, first = await back_up(manager)
    rot(first)
    run, second = await back_up(manager)
    assert run.status is Status.SUCCESS
    assert second.manifest and second.manifest.shares_with == ""
    rows = {r.filename: r for r in await manager.history.runs()}
    assert (rows[first.name].status, rows[first.name].error_code) == (Status.FAILED, "damaged")
    assert [p.name for p in manager.stores()[0].directory.glob("*.partial")] == []
    _, third = await back_up(manager)
    assert third.manifest and third.manifest.shares_with == second.name


@pytest.mark.slow
async def test_a_disk_that_went_while_it_was_read_gets_no_second_attempt_below_its_mount_point(
    manager: Manager,
) -> None:
    _, first = await back_up(manager)
    rot(first)
    (mark,) = first.path.parent.glob(".memu-backup.json")

    def pull(moment: Progress) -> None:
        if moment.phase is Phase.VERIFYING:
            mark.unlink(missing_ok=True)

    run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER, on_progress=pull)
    assert (run.status, run.error_code) == (Status.FAILED, "not_mounted")
    assert [p.name for p in first.path.parent.glob("*.tar.gz*") if first.name not in p.name] == []


def rot(backup: Backup) -> None:
    """Its film only: what is written to a file leaves the blocks of others alone."""
    with backup.path.open("r+b") as file:
        file.seek(backup.path.read_bytes().index(FILM[:1000]))
        file.write(b"rot")


@pytest.mark.parametrize("good", [0, pytest.param(1, marks=pytest.mark.slow)])
async def test_a_bad_block_is_found_in_each_backup_that_has_it(
    manager: Manager, good: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Also where one of them is gone meanwhile; the first good one ends the search."""
    older = [(await back_up(manager))[1] for _ in range(4)]
    store, _ = await manager.find("latest")
    store.delete(older.pop(2).path)
    for backup in older[good:]:
        rot(backup)
    run, made = await back_up(manager)
    assert run.status is Status.SUCCESS and made.manifest and made.manifest.shares_with == ""
    rows = {r.filename: (r.status, r.error_code) for r in await manager.history.runs()}
    assert [rows[b.name] for b in older] == [(Status.SUCCESS, None)] * good + [(Status.FAILED, "damaged")] * (3 - good)
    assert all(f"{b.name} is damaged too" in caplog.text for b in older[good:])
    assert "untouched" not in caplog.text


async def test_a_backup_known_to_be_damaged_is_passed_over(manager: Manager) -> None:
    _, first = await back_up(manager)
    _, second = await back_up(manager)
    with second.path.open("r+b") as file:
        file.seek(1000)
        file.write(b"rot")
    store, _ = await manager.find("latest")
    assert not (await manager.verify(store, second, Level.FULL, SCHEDULER)).good
    _, third = await back_up(manager)
    assert third.manifest and third.manifest.shares_with == first.name


@pytest.mark.slow
async def test_after_a_clock_that_was_years_ahead_nights_build_on_each_other_again(
    manager: Manager, wrong_by: list[timedelta]
) -> None:
    _, first = await back_up(manager)
    wrong_by[0] = timedelta(days=3650)
    await back_up(manager)
    wrong_by[0] = timedelta()
    nights = []
    for _ in range(7):
        _, backup = await back_up(manager)
        assert backup.manifest
        nights.append(backup.manifest)
    assert [n.nights_shared for n in nights] == [1, 2, 3, 4, 5, 6, 0]
    assert [n.shares_with for n in nights[:2]] == [first.name, nights[0].name]


async def test_a_night_that_shares_needs_only_room_for_what_is_new(manager: Manager, disk: Path) -> None:
    for _ in range(2):
        _, backup = await back_up(manager)
    free = os.statvfs(disk)
    filler = disk / "filler"
    try:
        with filler.open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize - backup.size_bytes * 3 // 4)
        run, _ = await back_up(manager)
        assert run.status is Status.SUCCESS
    finally:
        filler.unlink()

"""What is stored is re-read as it comes due; what went bad meanwhile is named, and where it is whole."""

from __future__ import annotations

import asyncio
import os
import signal
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup.audit import SCHEDULER
from memu_backup.config import load
from memu_backup.history import History
from memu_backup.manager import Manager
from memu_backup.model import Progress, Trigger
from memu_backup.reread import Reread
from tests.home import Home, end, managed, wait_until
from tests.service import Clock, Service, rows, settings

FILM = os.urandom(3_000_000)
DAY = timedelta(days=1)
TREES = '[stores.library]\nkind = "tree"\n[stores.monthly]\nkind = "tree"\ndir = "monthly"\n'
DAILY = "[verification]\nevery_days = 1\n"
MONTHLY = '[jobs.monthly]\ncron = "0 4 1 * *"\nstore = "monthly"\nfull = true\n'


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    (home.photos / "film.mp4").write_bytes(FILM)
    os.utime(home.photos / "film.mp4", ns=(1_750_000_000_000_000_000,) * 2)
    return home


@pytest.fixture
def trees(home: Home) -> Home:
    home.configure(TREES + MONTHLY + DAILY)
    file = home.folder / "config.toml"
    file.write_text(file.read_text().replace('at = "02:00"', 'at = "02:00"\nstore = "library"'))
    return home


async def made(manager: Manager, at: list[datetime], *jobs: str) -> None:
    """One backup of each, a day apart."""
    for job in jobs:
        row = await manager.back_up(job, Trigger.MANUAL, SCHEDULER)
        assert row.status == "success", row
        at[0] += DAY


def flip(file: Path) -> None:
    """One bit, in the middle of the film; nothing tells of it but the content."""
    before, content = file.stat(), bytearray(file.read_bytes())
    content[content.find(FILM[1_500_000:1_500_050])] ^= 1
    with file.open("r+b") as opened:
        opened.write(content)
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


async def test_a_bit_that_flipped_is_found_on_its_night_and_the_newest_whole_copy_is_named(home: Home) -> None:
    at = [datetime.now(UTC) - 40 * DAY]
    async with managed(home, at) as manager:
        await made(manager, at, "nightly", "nightly", "nightly")
        oldest, middle, newest = home.archives
        flip(newest)
        flip(middle)
        at[0] += 30 * DAY
        found: list[Reread] = []
        for _ in range(3):
            found += await manager.rereading.read(SCHEDULER)
            at[0] += DAY
    bad = {one.backup.name: one.verdict.problems for one in found if one.verdict.problems}
    assert set(bad) == {middle.name, newest.name} and len(found) == 3
    for problems in bad.values():
        assert problems[0].startswith("photos/film.mp4 cannot be read back. photos/film.mp4 is whole in " + oldest.name)
        typed = problems[0].partition("type: ")[2]
        assert typed == f"memu-backup restore {oldest} --path photos/film.mp4 --to FOLDER"
    assert [b["state"] for b in home.run("list", "--json").json] == ["damaged", "damaged", "good"]
    status = home.run("status", "--details")
    assert f"What went wrong: {bad[newest.name][0][:60]}" in status.out
    assert home.run("restore", str(oldest), "--path", "photos/film.mp4", "--to", "back", "--yes").status == 0
    assert (home.folder / "back" / "photos" / "film.mp4").read_bytes() == FILM


@pytest.mark.slow
async def test_of_a_file_that_many_trees_share_each_is_told_and_it_is_read_once(trees: Home) -> None:
    at = [datetime.now(UTC) + DAY]  # far enough from the last change to the files
    async with managed(trees, at) as manager:
        await made(manager, at, "monthly", "nightly", "nightly", "nightly")
        nights = sorted(p for p in trees.backups.iterdir() if p.name[0] == "2")
        copies = [night / "photos" / "film.mp4" for night in nights]
        assert len({copy.stat().st_ino for copy in copies}) == 1
        flip(copies[0])
        before = read_bytes()
        found = await manager.rereading.read(SCHEDULER)
    # The film once for each place, and once more where it is found whole; each tree by itself would make it five times.
    once = read_bytes() - before
    assert once < 3.9 * len(FILM), once
    bad = {one.backup.path: one.verdict.problems for one in found if one.verdict.problems}
    assert set(bad) == set(nights)
    (monthly,) = (trees.folder / "monthly").glob("2*")
    for problems in bad.values():
        first, _, whole = problems[0].partition(". ")
        assert first == "photos/film.mp4 is not what it was when it was written"
        assert whole.startswith(f"photos/film.mp4 is whole in {monthly.name}; to have it back, type: memu-backup")
        assert str(monthly) in whole
    assert sum(row["error_code"] == "damaged" for row in trees.rows()) == 3


async def test_where_no_backup_has_it_whole_a_new_one_is_asked_for(trees: Home) -> None:
    at = [datetime.now(UTC) + DAY]
    async with managed(trees, at) as manager:
        await made(manager, at, "nightly", "nightly")
        flip(next(trees.backups.glob("2*/photos/film.mp4")))
        found = [one for one in await manager.rereading.read(SCHEDULER) if one.verdict.problems]
        assert len(found) == 2
        for one in found:
            assert "No backup that can be read has that photos/film.mp4 whole." in one.verdict.problems[0]
        await made(manager, at, "nightly")
    newest = max(trees.backups.glob("2*"))
    assert (newest / "photos" / "film.mp4").read_bytes() == FILM


@pytest.mark.slow
async def test_a_tree_that_is_removed_meanwhile_is_not_damaged(trees: Home) -> None:
    for number in range(200):
        (trees.photos / f"{number}.jpg").write_bytes(os.urandom(100))
    at = [datetime.now(UTC) + DAY]
    async with managed(trees, at) as manager:
        await made(manager, at, "nightly", "nightly")
        oldest = min(trees.backups.glob("2*"))
        store = next(store for store in manager.stores() if store.directory == trees.backups)

        def removed(_: Progress) -> None:
            if str(oldest) in opened(os.getpid()):
                store.delete(oldest)

        found = await manager.rereading.read(SCHEDULER, removed)
    assert not oldest.exists()
    assert found and not [one for one in found if one.verdict.problems]
    assert {row["error_code"] for row in trees.rows()} == {None}


@pytest.mark.slow
async def test_a_month_of_nights_reads_all_and_none_reads_it_all(trees: Home) -> None:
    file = trees.folder / "config.toml"
    file.write_text(file.read_text().replace("every_days = 1", "every_days = 15"))
    for number in range(60):
        (trees.photos / f"{number}.jpg").write_bytes(os.urandom(10_000))
    at = [datetime.now(UTC) + DAY]
    async with managed(trees, at) as manager:
        await made(manager, at, "nightly", "nightly")
        each = []
        for _ in range(15):
            each.append({one.piece for one in await manager.rereading.read(SCHEDULER)})
            assert await manager.rereading.read(SCHEDULER) == []  # a night is read once
            at[0] += DAY
        assert {len(names) for names in each} <= {0, 1, 2, 3, 4}
        assert set().union(*each) == {f"part {n} of 30" for n in range(1, 31)}
        covered = await manager.rereading.coverage()
    assert covered and covered.read_bytes == covered.total_bytes > 0


async def test_one_that_was_cut_short_is_read_the_next_night(home: Home) -> None:
    at = [datetime.now(UTC)]
    async with managed(home, at) as manager:
        await made(manager, at, "nightly")
        at[0] += 40 * DAY

        def at_once(_: Progress) -> None:
            reading.get_loop().call_soon_threadsafe(reading.cancel)

        reading = asyncio.ensure_future(manager.rereading.read(SCHEDULER, at_once))
        with pytest.raises(asyncio.CancelledError):
            await reading
        covered = await manager.rereading.coverage()
        assert covered and covered.read_bytes == 0
        at[0] += DAY
        (read,) = await manager.rereading.read(SCHEDULER)
        assert read.verdict.good
        covered = await manager.rereading.coverage()
        assert covered and covered.read_bytes == covered.total_bytes
    assert home.audit()[1]["outcome"] == "interrupted"


@pytest.mark.slow
async def test_killed_in_the_middle_by_hand_it_goes_on(home: Home) -> None:
    (home.photos / "large.bin").write_bytes(os.urandom(40_000_000))
    at = [datetime.now(UTC) - 50 * DAY]
    async with managed(home, at) as manager:
        await made(manager, at, "nightly")
    (oldest,) = home.archives
    dry = home.run("verify", "--due", "--dry-run", "--json").json
    assert ([one["piece"] for one in dry["due"]], dry["read"]) == ([oldest.name], [])
    assert oldest.name in home.run("verify", "--due", "--dry-run").out
    child = home.started("verify", "--due")
    wait_until(lambda: str(oldest) in opened(child.pid))
    end(child, signal.SIGKILL)
    assert home.run("status", "--json").json["nightly"]["coverage"]["read_bytes"] == 0
    after = home.run("verify", "--due", "--json").json
    assert [one["name"] for one in after["read"]] == [oldest.name]
    covered = home.run("status", "--json").json["nightly"]["coverage"]
    assert covered == after["coverage"] and covered["every_days"] == 30
    assert covered["read_bytes"] == oldest.stat().st_size
    again = home.run("verify", "--due")
    assert again.status == 0 and "Nothing has to be re-read tonight." in again.out
    assert "Re-read within 30 days: 100 % of 43 MB" in again.out
    assert "Re-read within 30 days: 100 % of 43 MB" in home.run("status", "--details").out


def test_switched_off_nothing_is_due_and_nothing_is_told(home: Home) -> None:
    home.configure("[verification]\nevery_days = 0\n")
    assert home.run("start").status == 0
    ran = home.run("verify", "--due")
    assert ran.status == 2 and "every_days is 0" in ran.err
    assert "Re-read" not in home.run("status", "--details").out
    assert home.run("verify", "--dry-run").status == 2


@pytest.mark.slow
async def test_the_service_re_reads_at_night_after_its_backup(tmp_path: Path, database: str) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "film.mp4").write_bytes(FILM)
    config = load(settings(tmp_path, '[sources.photos]\nkind = "directory"\npath = "photos"\n', history=database), {})
    clock = Clock(tmp_path)
    async with History(database, config.state_dir, config.host) as history:
        manager = Manager(config, history, lambda: datetime(2026, 10, 21, tzinfo=UTC))
        await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
    (archive,) = (tmp_path / "backups").glob("*.tar.gz")
    flip(archive)
    async with Service(config.path, clock) as service:
        said = f"{archive}: photos/film.mp4 cannot be read back. photos/film.mp4 is whole in"
        await service.until(lambda: said in service.log(), 60)  # a night was missed, and is made up for before
        await service.stop()
    old, new = await rows(database)
    assert (old["status"], old["error_code"], new["status"]) == ("failed", "damaged", "success")
    assert archive.with_name(archive.name + ".damaged").exists()


def opened(pid: int) -> list[str]:
    """The files that a process has open."""
    found = []
    for descriptor in Path(f"/proc/{pid}/fd").iterdir():
        with suppress(OSError):
            found.append(str(descriptor.readlink()))
    return found


def read_bytes() -> int:
    """What this process has read so far."""
    return int(Path("/proc/self/io").read_text().split()[1])

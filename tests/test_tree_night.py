"""Backups kept as trees, from the first command to the way back, as whoever keeps a library would do it."""

from __future__ import annotations

import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup.audit import SCHEDULER
from memu_backup.model import Trigger
from tests.archives import needs_root, snapshot
from tests.home import Home, managed, query

JOBS = (
    '[stores.library]\nkind = "tree"\n'
    '[stores.monthly]\nkind = "tree"\ndir = "monthly"\n'
    '[jobs.monthly]\ncron = "0 4 1 * *"\nstore = "monthly"\nfull = true\n'
)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    made = Home(tmp_path / "home", database)
    made.configure(JOBS)
    text = (made.folder / "config.toml").read_text()
    (made.folder / "config.toml").write_text(text.replace('at = "02:00"', 'at = "02:00"\nstore = "library"'))
    return made


async def nights(home: Home, count: int, job: str = "nightly", begin: datetime | None = None) -> datetime:
    """So many, a day apart, of which the first stands far enough from the last change."""
    at = [begin or datetime.now(UTC) + timedelta(days=2)]
    async with managed(home, at) as manager:
        for _ in range(count):
            row = await manager.back_up(job, Trigger.MANUAL, SCHEDULER)
            assert row.status == "success", row
            at[0] += timedelta(days=1)
    return at[0]


def inode(path: Path) -> int:
    return path.stat().st_ino


@needs_root
async def test_from_the_first_night_to_the_way_back(home: Home, tmp_path: Path) -> None:
    await nights(home, 2)
    first, second = sorted(p for p in home.backups.iterdir() if p.name[0] == "2")
    lake = "photos/2026/lake.jpg"
    assert inode(first / lake) == inode(second / lake) != inode(home.photos / "2026" / "lake.jpg")
    listed = home.run("list", "--json").json
    assert [b["name"] for b in listed] == [second.name, first.name]
    assert [b["taken_bytes"] for b in listed] == [0, listed[1]["size_bytes"]]
    assert "New on disk" in home.run("list").out
    ran = home.run("verify")
    assert ran.status == 0, ran
    assert home.run("find", "lake.jpg").out.count("in 2 backups") == 1
    shown = home.run("show", str(home.backups / "latest"), "--files").out
    assert lake in shown and "config/.env" in shown
    shutil.rmtree(home.photos)
    ran = home.run("restore", "--in-place", "--source", "photos", "--yes")
    assert ran.status == 0, ran
    assert snapshot(home.photos) == snapshot(second / "photos")
    ran = home.run("restore", second.name, "--path", "config/*", "--to", str(tmp_path / "out"), "--yes")
    assert ran.status == 0 and (tmp_path / "out" / "config" / ".env").exists(), ran
    assert home.run("status").out.splitlines()[0] == "nightly:"


async def test_the_monthly_one_stands_on_its_own(home: Home) -> None:
    after = await nights(home, 2)
    await nights(home, 2, "monthly", after)
    names = ("photos/2026/lake.jpg", "config/.env")
    trees = [p for top in (home.backups, home.folder / "monthly") for p in sorted(top.glob("2*"))]
    for name in names:
        # Two of the nightly ones are one; each monthly one is alone.
        assert len({inode(tree / name) for tree in trees}) == 3


async def test_a_damaged_one_is_told_and_the_older_are_the_way_back(home: Home) -> None:
    await nights(home, 1)
    (home.photos / "2026" / "lake.jpg").write_bytes(b"another")
    await nights(home, 1, begin=datetime.now(UTC) + timedelta(days=5))
    newest = home.backups / "latest" / "photos" / "2026" / "lake.jpg"
    newest.write_bytes(b"spoiled")
    ran = home.run("verify")
    assert ran.status == 1 and "photos/2026/lake.jpg is not what it was when it was written." in ran.err, ran
    assert [b["state"] for b in home.run("list", "--json").json] == ["damaged", "good"]
    ran = home.run("verify")
    assert ran.status == 0, "latest is the older one now"


async def test_rows_that_were_lost_come_back_from_the_trees(home: Home) -> None:
    await nights(home, 2)
    await query(home.history, "DELETE FROM backup_history", "SELECT 1")
    ran = home.run("history", "rebuild")
    assert ran.status == 0, ran
    assert len(home.rows()) == 2


async def test_what_retention_lets_go_leaves_the_others_whole(home: Home) -> None:
    await nights(home, 9)
    assert len([p for p in home.backups.iterdir() if p.name[0] == "2"]) == 7
    assert len(list((home.backups / ".memu-backup").iterdir())) == 7
    ran = home.run("verify")
    assert ran.status == 0, ran
    home.photos.joinpath("2026", "lake.jpg").unlink()
    ran = home.run("clean", "nightly", "--dry-run")
    assert ran.status == 0, ran


@needs_root
async def test_a_tree_on_another_machine_is_given_back_without_settings(home: Home, tmp_path: Path) -> None:
    await nights(home, 1)
    shutil.copytree(home.backups, tmp_path / "copied", symlinks=True)
    shutil.rmtree(home.backups)
    (home.folder / "config.toml").unlink()
    ran = home.run("restore", str(tmp_path / "copied" / "latest"), "--to", str(tmp_path / "out"), "--yes")
    assert ran.status == 0, ran
    assert snapshot(tmp_path / "out" / "photos") == snapshot(home.photos)

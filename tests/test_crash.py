"""SIGKILL in each phase of a run: older backups stay as they are, nothing half-done is listed, the run is told once."""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import product
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest

from tests.contracts.stores import small_disk
from tests.disks import loop_disk, own_bytes
from tests.home import Home, end
from tests.killing import Moment, assert_tidy, hashes, listed, needs_strace, told, waiting_for
from tests.service import Clock, Service, archives, command, rows, settings

pytestmark = needs_strace

SUCCESS, INTERRUPTED = ("success", None), ("failed", "interrupted")
REMOVE = "unlink,unlinkat"


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    """With a backup; retention keeps two."""
    home = Home(tmp_path / "home", database)
    home.configure(top="backup_retention_count = 2")
    (home.photos / "film.mp4").write_bytes(os.urandom(9_000_000))
    assert home.run("start").status == 0
    return home


def killed(home: Home, moment: Moment) -> None:
    assert home.run("start", prefix=moment.prefix).status == -9


BEFORE_ITS_NAME = [
    pytest.param(Moment("writev"), id="before anything is written", marks=pytest.mark.slow),
    pytest.param(Moment("writev", 3), id="while it writes", marks=pytest.mark.slow),
    pytest.param(Moment("rmdir"), id="after fsync", marks=pytest.mark.slow),  # the stage goes before the proof begins
    pytest.param(Moment("renameat2"), id="before the checksum has its name", marks=pytest.mark.slow),
    pytest.param(Moment("renameat2", 2), id="between the checksum's name and its own"),
]


@pytest.mark.parametrize("moment", BEFORE_ITS_NAME)
def test_killed_before_the_backup_has_its_name_it_leaves_no_trace_but_its_row(home: Home, moment: Moment) -> None:
    older = hashes(home.backups)
    killed(home, moment)
    assert any(name.endswith(".partial") for name in home.leftovers())
    assert listed(home) == sorted(n for n in older if n.endswith(".gz"))
    assert "Last backup: FAILED" in home.run("status").out
    assert home.run("start").status == 0
    assert_tidy(home)
    assert hashes(home.backups).items() > older.items()
    assert len(home.archives) == 2
    assert told(home) == [SUCCESS, INTERRUPTED, SUCCESS]
    assert home.run("start").status == 0
    assert told(home) == [SUCCESS, INTERRUPTED, SUCCESS, SUCCESS], "told once"


@pytest.mark.slow
def test_killed_after_the_rename_and_before_the_row_the_backup_is_adopted_once(home: Home) -> None:
    older = hashes(home.backups)
    killed(home, Moment("fsync", 2, home.backups))
    assert len(home.archives) == 2 and home.leftovers() == []
    made = home.archives[-1]
    assert hashes(home.backups).items() > older.items()
    assert home.rows()[0]["status"] == "in_progress"
    assert listed(home) == [a.name for a in home.archives]
    assert "Last backup: Today" in home.run("status").out
    assert home.run("start").status == 0
    assert told(home) == [SUCCESS] * 3
    row = home.rows()[1]
    assert (row["filename"], row["size_bytes"]) == (made.name, made.stat().st_size)
    assert row["sha256"] == hashes(home.backups)[made.name]
    assert row["verified_at"] and row["finished_at"]
    assert home.run("verify", made.name).status == 0


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "ends"), [(Moment("writev", 3), INTERRUPTED), (None, SUCCESS)], ids=["writing", "before the row"]
)
def test_killed_while_the_history_is_away_the_run_is_told_once_it_is_back(
    home: Home, moment: Moment | None, ends: tuple[str, str | None]
) -> None:
    home.configure(top="backup_retention_count = 9", history="postgresql://memu@127.0.0.1:1/memu")
    killed(home, moment or Moment("fsync", 2, home.backups))
    assert ("FAILED" in home.run("status").out) == (ends == INTERRUPTED)
    assert home.run("start").status == 0
    assert_tidy(home)
    assert len(told(home)) == 1
    home.configure(top="backup_retention_count = 9")
    assert home.run("status").status == 0
    assert told(home) == [SUCCESS, ends, SUCCESS]


@pytest.mark.slow
@pytest.mark.parametrize("part", [".tar.gz", ".tar.gz.sha256"])
def test_killed_while_it_prunes_no_half_backup_is_listed_and_the_next_run_finishes_it(home: Home, part: str) -> None:
    assert home.run("start").status == 0
    oldest = home.archives[0]
    older = hashes(home.backups)
    killed(home, Moment(REMOVE, 1, oldest.with_name(oldest.name.removesuffix(".tar.gz") + part)))
    assert oldest.exists() == (part == ".tar.gz")
    assert listed(home) == [a.name for a in home.archives]
    assert hashes(home.backups).items() >= {n: h for n, h in older.items() if not n.startswith(oldest.name)}.items()
    assert home.run("status").status == 0
    assert home.run("start").status == 0
    assert_tidy(home)
    assert len(home.archives) == 2
    assert told(home) == [SUCCESS] * 4
    assert sorted(r["filename"] for r in home.rows() if not r["deleted_at"]) == [a.name for a in home.archives]


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
@pytest.mark.parametrize("part", [".tar.gz", pytest.param(".tar.gz.sha256", marks=pytest.mark.slow)])
def test_killed_while_it_makes_room_the_next_run_makes_the_rest_of_it(tmp_path: Path, database: str, part: str) -> None:
    home = Home(tmp_path / "home", database)
    home.configure('retention = { keep_last = 9, min_free = "600 kB" }\n')
    with small_disk(home.backups, "1200k"):  # four backups of 130 kB, and what shall stay free
        for _ in range(4):
            assert home.run("start").status == 0
        older = hashes(home.backups)
        oldest = home.archives[0]
        killed(home, Moment(REMOVE, 1, oldest.with_name(oldest.name.removesuffix(".tar.gz") + part)))
        assert oldest.exists() == (part == ".tar.gz")
        assert listed(home) == [a.name for a in home.archives]
        assert hashes(home.backups).items() >= {n: h for n, h in older.items() if not n.startswith(oldest.name)}.items()
        assert home.run("start").status == 0
        assert_tidy(home)
        assert not oldest.exists()
        assert told(home) == [SUCCESS] * 4 + [INTERRUPTED, SUCCESS]
        assert sorted(r["filename"] for r in home.rows() if r["size_bytes"] and not r["deleted_at"]) == [
            a.name for a in home.archives
        ]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a disk that shares blocks")
@pytest.mark.parametrize("kind", ["xfs", pytest.param("btrfs", marks=pytest.mark.slow)])
def test_killed_while_it_shares_blocks_the_older_backup_stays_as_it_is(
    tmp_path: Path, database: str, kind: str
) -> None:
    with loop_disk(kind, tmp_path) as disk:
        home = Home(disk / "home", database)
        for number in range(40):
            (home.photos / f"{number}.jpg").write_bytes(os.urandom(100_000))
        assert home.run("start").status == 0
        older = hashes(home.backups)
        sharing = Moment("ioctl", 3).prefix
        assert home.run("start", prefix=(*sharing[:1], *partials(home), *sharing[1:])).status == -9
        (partial,) = home.backups.glob("*.partial")
        assert own_bytes(partial) < partial.stat().st_size, "some of it was shared already"
        assert hashes(home.backups) == older
        assert listed(home) == [n for n in older if n.endswith(".gz")]
        assert home.run("start").status == 0
        assert_tidy(home)
        assert hashes(home.backups).items() > older.items()
        assert home.run("verify", home.archives[0].name).status == home.run("verify", "latest").status == 0
        assert own_bytes(home.archives[-1]) < 400_000
        assert told(home) == [SUCCESS, INTERRUPTED, SUCCESS]


def partials(home: Home) -> Iterator[str]:
    """For strace: only calls on the archive that is written count, in whichever of the next seconds it is begun."""
    now = datetime.now(ZoneInfo("Europe/Berlin"))
    for second, again in product(range(60), ("", "_2")):
        name = f"memu_backup_{now + timedelta(seconds=second):%Y%m%d_%H%M%S}{again}.tar.gz.partial"
        yield from ("-P", str(home.backups / name))


@pytest.mark.parametrize("nth", [pytest.param(1, marks=pytest.mark.slow), 3])
def test_killed_while_it_restores_each_file_is_the_old_or_the_new_one(home: Home, nth: int) -> None:
    for number in range(6):
        (home.photos / f"{number}.jpg").write_bytes(os.urandom(1000))
    assert home.run("start").status == 0
    new = {p.name: p.read_bytes() for p in home.photos.rglob("*.*")}
    target = home.folder / "back"
    assert home.run("restore", "latest", "--source", "photos", "--to", str(target), "--yes").status == 0
    for file in target.rglob("*.*"):
        file.write_bytes(b"old")
    again = ("restore", "latest", "--source", "photos", "--to", str(target), "--overwrite", "--yes")
    killing = home.run(*again, prefix=Moment("rename,renameat,renameat2", nth, target / "photos").prefix)
    assert killing.status == -9
    there = {p.name: p.read_bytes() for p in target.rglob("*.*") if not p.name.endswith(".restoring")}
    assert there.keys() == new.keys()
    assert all(content in (b"old", new[name]) for name, content in there.items())
    assert b"old" in there.values()
    assert home.run(*again).status == 0
    assert {p.name: p.read_bytes() for p in target.rglob("*") if p.is_file()} == new


# --- the service -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("moment", "ends"), [pytest.param(Moment("writev", 2), INTERRUPTED, marks=pytest.mark.slow), (None, SUCCESS)]
)
async def test_a_service_that_was_killed_settles_its_run_when_it_starts_again(
    tmp_path: Path, database: str, moment: Moment | None, ends: tuple[str, str | None]
) -> None:
    """Without a ``moment``: after the backup got its name, before its row."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "film.mp4").write_bytes(os.urandom(9_000_000))
    config = settings(tmp_path, '[sources.photos]\nkind = "directory"\npath = "photos"\n', history=database)
    assert (await asyncio.to_thread(command, config, "start")).returncode == 0
    older = hashes(tmp_path / "backups")
    clock = Clock(tmp_path)
    async with Service(config, clock) as service:
        await service.ready()
        with waiting_for(moment or Moment("fsync", 2, tmp_path / "backups"), service.process.pid):
            await service.at_two(clock)
            assert await asyncio.wait_for(service.process.wait(), 15) == -9
    made = [a.name for a in archives(tmp_path)]
    assert len(made) == (1 if moment else 2)
    for _ in range(2):  # told once, however often it starts
        async with Service(config, clock) as again:
            await again.ready()
            while [(r["status"], r["error_code"]) for r in await rows(database)] != [SUCCESS, ends]:
                await asyncio.sleep(0.02)
            await again.stop()
        assert [a.name for a in archives(tmp_path)] == made
        assert hashes(tmp_path / "backups").items() >= older.items()
        assert not list((tmp_path / "backups").glob("*.partial"))
    finished = {r["finished_at"] for r in await rows(database)}
    assert len(finished) == 2 and None not in finished


# --- whenever it comes -----------------------------------------------------------------------------------------------


def any_moment(dice: random.Random, home: Home) -> Moment | float:
    """A system call, or how many seconds after it was started."""
    if dice.random() < 0.3:
        return dice.uniform(0.2, 1.0)
    often = {"openat": 600, "write": 40, "writev": 6, "rename": 4, "renameat2": 2, REMOVE: 4, "sendto": 60, "fsync": 3}
    call = dice.choice(list(often))
    return Moment(call, dice.randint(1, often[call]), home.backups if call == "fsync" else None)


def start_and_kill(home: Home, moment: Moment | float) -> None:
    """It may be through before that."""
    if isinstance(moment, Moment):
        assert home.run("start", prefix=moment.prefix).status in (0, -9)
        return
    child = home.started("start")
    time.sleep(moment)
    assert end(child).status in (0, -9)


def ended(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["run_id"], row["status"], row["error_code"], row["finished_at"]


class Ledger:
    """What every backup of a home was when it was first seen, and how many runs there were."""

    def __init__(self, home: Home) -> None:
        self.home = home
        self.known: dict[str, str] = {}
        self.look()

    def look(self) -> None:
        """Every older backup is as it was, or retention has let it go, the oldest first; what is listed is whole."""
        there = {n: h for n, h in hashes(self.home.backups).items() if n.endswith(".gz")}
        assert all(self.known.get(name, content) == content for name, content in there.items())
        gone = [name for name in self.known if name not in there]
        assert sorted(gone) == sorted(self.known)[: len(gone)]
        assert len(gone) == 0 or len(there) >= 2
        for name in there.keys() - self.known.keys():
            subprocess.run(["gzip", "-t", self.home.backups / name], check=True)
            subprocess.run(["sha256sum", "--quiet", "-c", f"{name}.sha256"], cwd=self.home.backups, check=True)
        assert listed(self.home) == sorted(there)
        self.known = there

    def runs(self) -> list[dict[str, Any]]:
        rows = self.home.rows()
        assert len({r["run_id"] for r in rows}) == len(rows)
        return rows


@pytest.mark.parametrize("seconds", [10, pytest.param(120, marks=pytest.mark.slow)])
def test_whenever_a_run_is_killed_the_next_one_finds_all_in_order(home: Home, seconds: int) -> None:
    """Are all older backups byte-identical, is nothing half-done listed, is the run told as failed exactly once?"""
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    dice = random.Random(seed)
    ledger = Ledger(home)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        before = ledger.runs()
        (home.photos / "tent.jpg").write_bytes(dice.randbytes(60_000))
        moment = any_moment(dice, home)
        start_and_kill(home, moment)
        left, made = home.leftovers(), {a.name for a in home.archives} - ledger.known.keys()
        print(f"killed at {moment}: left {left}, made {made}")
        ledger.look()

        assert home.run("start").status == 0
        ledger.look()
        assert_tidy(home)
        assert len(home.archives) == 2
        rows = ledger.runs()
        new = [r for r in rows if r["run_id"] not in {b["run_id"] for b in before}]
        last, *of_the_killed = [(r["status"], r["error_code"]) for r in new]
        assert last == SUCCESS
        if made:
            assert of_the_killed == [SUCCESS]
        elif any("memu_backup_" in name or ".stage" in name for name in left):
            assert of_the_killed == [INTERRUPTED]
        else:  # it may not have come as far as its row
            assert of_the_killed in ([], [INTERRUPTED])
        assert [ended(r) for r in rows[len(new) :]] == [ended(r) for r in before], "told once"
        assert {r["filename"] for r in rows if r["status"] == "success" and not r["deleted_at"]} == set(ledger.known)

"""SQLite databases in use: copied as of one moment by real SQLite, beside real writers and what killed ones left."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from memu_backup import sqlite
from memu_backup.errors import SourceError
from memu_backup.work import Stop
from tests.archives import needs_root
from tests.sources.sqlite_homes import (
    OWNER,
    WRITER,
    accounts,
    as_another,
    can_still_write,
    captured_of,
    of,
    sonarr,
    total,
    writing,
)


@pytest.mark.parametrize("mode", ["WAL", pytest.param("DELETE", marks=pytest.mark.slow)])
async def test_writers_that_never_pause_neither_spoil_nor_starve_a_copy_nor_are_they_kept_waiting(
    home: Path, tmp_path: Path, mode: str
) -> None:
    file = accounts(home / "in use.db", mode)
    seen = []
    with writing(file, mode) as one, writing(file, mode) as two:
        assert one.stdout and two.stdout
        one.stdout.readline(), two.stdout.readline()
        for turn in range(5):
            stage = tmp_path / str(turn)
            stage.mkdir(mode=0o700)
            (root,) = (await captured_of(of(file), stage)).roots
            held_there, transfers = total(root.path)
            assert held_there == 5000
            seen.append(transfers)
        one.kill()
        two.kill()
        said = [line for writer in (one, two) for line in writer.communicate()[0].splitlines(keepends=True)]
    told = [line.split() for line in said if line.endswith("\n")]  # the last one may be cut
    assert seen == sorted(seen) and len(set(seen)) == len(seen)
    assert seen[-1] > 2000
    assert max(float(longest) for _, longest in told) < 10
    can_still_write(file, mode)


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
async def test_of_what_a_killed_program_left_half_done_the_copy_has_nothing(home: Path, stage: Path, mode: str) -> None:
    file = accounts(home / "killed.db", mode, pages=300)
    with writing(file, mode, "half") as writer:
        assert writer.stdout
        while writer.stdout.readline() != "half\n":
            pass
    left = [path for path in sqlite.beside(file) if path.exists() and path.stat().st_size]
    assert left, "it leaves something to be undone"
    async with of(file).capture(stage) as captured:
        assert captured.missing == ()
        assert total(captured.roots[0].path) == (5000, 30)
        assert sorted(p.name for p in stage.iterdir()) == ["0"]
    can_still_write(file, mode)
    assert {p.stat().st_uid for p in home.iterdir()} == {OWNER if os.geteuid() == 0 else os.geteuid()}


async def test_what_is_only_in_the_log_of_a_killed_program_is_in_the_copy(home: Path, stage: Path) -> None:
    file = accounts(home / "killed.db", "WAL", pages=300)
    with writing(file, "WAL", "killed") as writer:
        writer.wait()
    assert file.with_name("killed.db-wal").stat().st_size > 0
    async with of(file).capture(stage) as captured:
        assert total(captured.roots[0].path) == (5000, 31)
    can_still_write(file, "WAL")


@needs_root
async def test_a_program_that_starts_while_root_copies_can_write_and_nothing_of_roots_is_left(home: Path) -> None:
    """It was killed, so that the copy opens it; SQLite gives the files that root makes to the owner."""
    file = accounts(home / "plex.db", "WAL", pages=300)
    with writing(file, "WAL", "killed") as writer:
        writer.wait()
    file.with_name("plex.db-shm").unlink()
    with TemporaryDirectory() as folder:
        reading = asyncio.create_task(captured_of(of(file), Path(folder)))
        for _ in range(20):
            await asyncio.to_thread(can_still_write, file, "WAL")
        assert (await reading).missing == ()
    assert {path.stat().st_uid for path in home.iterdir()} == {OWNER}


@pytest.mark.slow
@needs_root
@pytest.mark.parametrize("ending", ["closed", "killed", "killed, no -shm", "half", "idle", "DELETE half"])
def test_who_may_only_read_leaves_nothing_that_the_program_could_not_open(home: Path, ending: str) -> None:
    """As an ordinary user SQLite would make files that stay theirs: "attempt to write a readonly database"."""
    mode = "DELETE" if ending.startswith("DELETE") else "WAL"
    file = accounts(home / "one.db", mode, pages=300)
    if ending == "idle":
        with writing(file, mode, "waits", "31") as writer:
            assert writer.stdout
            while writer.stdout.readline() != "done\n":
                pass
            given, integrity = as_another(file, home)
            names = {p.name for p in home.iterdir()}
    elif ending == "closed":
        subprocess.run([sys.executable, "-c", WRITER, file, mode, "", str(OWNER), "31"], check=True)
        given, integrity = as_another(file, home)
        names = {p.name for p in home.iterdir()}
    else:
        with writing(file, mode, "half" if ending.endswith("half") else "killed") as writer:
            assert writer.stdout
            while ending.endswith("half") and writer.stdout.readline() != "half\n":
                pass
            if ending.endswith("half"):
                writer.kill()
            writer.wait()
        if ending.endswith("no -shm"):
            file.with_name("one.db-shm").unlink()
        names = {p.name for p in home.iterdir()}
        assert len(names) > 1
        given, integrity = as_another(file, home)
    assert total(Path(given)) == (5000, 30 if ending.endswith("half") else 31)
    assert integrity == "ok"
    assert {p.name for p in home.iterdir()} == names
    assert {p.stat().st_uid for p in home.iterdir()} == {OWNER}
    can_still_write(file, mode)


@pytest.mark.slow
@needs_root
def test_who_may_only_read_copies_beside_a_writer_as_of_one_moment_or_says_so(home: Path) -> None:
    file = accounts(home / "one.db", "WAL", pages=3000)
    with writing(file, "WAL") as writer:
        assert writer.stdout
        writer.stdout.readline()
        told = [as_another(file, home) for _ in range(4)]
    for one in told:
        if isinstance(one, list):
            assert total(Path(one[0]))[0] == 5000
        else:
            assert "may only be read here" in one


COMING_AND_GOING = """
import sqlite3, sys, time
while True:
    database = sqlite3.connect(sys.argv[1], isolation_level=None)
    database.execute("PRAGMA synchronous = OFF")
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE a SET held = held - 1, t = t + 1")
    database.execute("UPDATE b SET held = held + 1, t = t + 1")
    database.execute("COMMIT")
    database.close()  # the last one brings all of it into the file
    time.sleep(0.003)
"""


@pytest.mark.slow
def test_one_that_is_opened_and_closed_while_its_bytes_are_copied_is_of_one_moment(home: Path, tmp_path: Path) -> None:
    """While nobody has it open nothing is made beside it: its bytes are copied, and thrown away if somebody came."""
    file = accounts(home / "one.db", "WAL", pages=40_000)
    seen = set()
    with subprocess.Popen([sys.executable, "-c", COMING_AND_GOING, file]) as program:
        try:
            for turn in range(20):
                sqlite.copy(file, tmp_path / str(turn), Stop())
                held_there, transfers = total(tmp_path / str(turn))
                assert held_there == 5000
                seen.add(transfers)
                (tmp_path / str(turn)).unlink()
        finally:
            program.kill()
    assert len(seen) > 10


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
async def test_one_that_its_program_keeps_locked_is_told_with_what_to_do(
    home: Path, stage: Path, monkeypatch: pytest.MonkeyPatch, mode: str
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_S", 0.5)
    file = accounts(home / "locked.db", mode, pages=10)
    with writing(file, mode, "waits", "1") as another, closing(sqlite3.connect(file, isolation_level=None)) as database:
        if mode == "WAL":  # with the files beside it, which the other one has made
            assert another.stdout and another.stdout.readline()
            another.kill()
            another.wait()
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("BEGIN EXCLUSIVE")
        with pytest.raises(SourceError, match=r"has been locked for 0\.5 s .* \(needs_stop\)") as met:
            await captured_of(of(file), stage)
        assert str(met.value).startswith("Source sonarr cannot be backed up; older backups are untouched.")
        sonarr(home / "other.db")
        captured = await captured_of(of(file, home / "other.db"), stage)
    assert [r.place for r in captured.roots] == ["sonarr/other.db"]
    (missing,) = captured.missing
    assert missing.startswith(f"A database of source sonarr is not in this backup: {file} has been locked")


async def test_cancelled_while_it_waits_for_a_lock_it_ends_soon(home: Path, stage: Path) -> None:
    file = accounts(home / "locked.db", "DELETE", pages=10)
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        database.execute("BEGIN EXCLUSIVE")
        taking = asyncio.create_task(captured_of(of(file), stage))
        await asyncio.sleep(0.5)
        taking.cancel()
        begun = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert time.monotonic() - begun < 4


async def test_new_content_in_the_log_alone_never_has_an_old_time(home: Path, tmp_path: Path) -> None:
    """For the time and size of the file itself stay the same until what is in the -wal goes into it."""
    file = sonarr(home / "sonarr.db")
    times = set()
    with closing(sqlite3.connect(file, isolation_level=None)) as database:
        for turn in range(3):
            (tmp_path / str(turn)).mkdir(mode=0o700)
            (root,) = (await captured_of(of(file), tmp_path / str(turn))).roots
            times.add(root.path.stat().st_mtime_ns)
            database.execute("UPDATE Series SET Added = ? WHERE Id = 1", (str(turn),))
            await asyncio.sleep(0.02)
    assert len(times) == 3 and 1_700_000_000_123_456_789 in times

"""The embedded history that was lost, damaged or made by another Postgres comes back with all that it knew, once."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import psutil
import pytest

from memu_backup.errors import StoreError
from memu_backup.history import History, dump, rows
from memu_backup.model import Run
from memu_backup.postgres.programs import as_another_user, programs
from memu_backup.postgres.server import PostgresServer
from tests.faulty_disk import faulty_disk, needs_fuse
from tests.history.samples import NIGHT, a_drill, a_drive, a_good_run, a_run, an_event
from tests.home import in_a_loop_of_its_own

OWED = a_run("owed", notification_sent=False, created_at=NIGHT + timedelta(days=1))
KNOWN = [OWED, a_run()]
EVENTS = [an_event("later", created_at=NIGHT + timedelta(hours=1)), an_event()]


def a_history(home: Path, lying: Sequence[Run] = (), host: str = "nas") -> History:
    return History(None, home / "state", host, places=[home / "backups"], lying=lambda _: lying)


@pytest.fixture(scope="module")
def lived(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A history that was kept for a while, and saved beside the backups; making one takes a second."""
    home = tmp_path_factory.mktemp("lived")
    (home / "backups").mkdir()

    async def live() -> None:
        async with a_history(home) as history:
            for run in reversed(KNOWN):
                await history.record(run)
            for event in reversed(EVENTS):
                await history.audit(event)
            await history.know(a_drive())
            await history.tried(a_drill())
            await history.save(home / "backups")

    in_a_loop_of_its_own(live())
    os.utime(home / "state" / "postgres" / "data" / "PG_VERSION", (0, 0))  # what is an hour old may be damaged
    return home


@pytest.fixture
def home(tmp_path: Path, lived: Path) -> Path:
    return Path(shutil.copytree(lived, tmp_path / "home"))


def saved(home: Path, host: str = "nas") -> list[dict[str, Any]]:
    return [json.loads(line) for line in gzip.open(dump.path_in(home / "backups", host), "rb")]


def data(home: Path) -> Path:
    return home / "state" / "postgres" / "data"


# --- saved -----------------------------------------------------------------------------------------------------------


def test_what_is_saved_is_for_its_owner_alone_and_says_what_it_is(home: Path) -> None:
    (file,) = (home / "backups").iterdir()
    assert (file.name, file.stat().st_mode & 0o777) == ("backup_history_nas.jsonl.gz", 0o600)
    head, *lines = saved(home)
    assert (head["format"], head["host"]) == ("memu-backup-history/1", "nas")
    assert datetime.fromisoformat(str(head["made_at"])).utcoffset() == timedelta(0)
    assert [next(iter(line)) for line in lines] == ["run", "run", "audit", "audit", "drive", "drill"]


async def test_a_history_at_an_address_is_its_owners_to_save(database: str, tmp_path: Path) -> None:
    async with History(database, tmp_path / "state", "nas", places=[tmp_path]) as history:
        await history.record(a_run())
        await history.save(tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


async def test_saving_again_replaces_what_was_saved_with_what_is_known_now(home: Path) -> None:
    async with a_history(home) as history:
        await history.record(replace(OWED, notification_sent=True))
        await history.record(a_run("new"))
        await history.save(home / "backups", lambda: NIGHT)
    head, *lines = saved(home)
    runs = [line["run"] for line in lines if "run" in line]
    assert head["made_at"] == NIGHT.isoformat()
    assert [(r["run_id"], r["notification_sent"]) for r in runs] == [("run-1", True), ("owed", True), ("new", True)]
    assert len(list((home / "backups").iterdir())) == 1


async def test_an_empty_history_never_takes_the_place_of_a_full_one(home: Path) -> None:
    """As where the disk with the backups was not there when the history was made anew."""
    shutil.rmtree(home / "state")
    async with History(None, home / "state", "nas") as history:
        assert await history.record(a_run("new"))
        await history.save(home / "backups")
        assert {r.run_id: r for r in await history.runs()} == {r.run_id: r for r in (*KNOWN, a_run("new"))}
    assert len(saved(home)) == 8


@contextmanager
def a_full_disk(place: Path, holding: Path) -> Iterator[Path]:
    """Mounted at ``place``, with a copy of a folder on it and no block left."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", place], check=True)
    try:
        folder = Path(shutil.copytree(holding, place / holding.name))
        (place / "filler").write_bytes(bytes(os.statvfs(place).f_bavail * 4096))
        yield folder
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts")
async def test_what_cannot_be_saved_is_a_warning_and_leaves_the_former_dump(
    home: Path, caplog: pytest.LogCaptureFixture
) -> None:
    before = saved(home)
    with a_full_disk(home.parent / "disk", home / "backups") as full:
        async with a_history(home) as history:
            await history.save(full)
            await history.save(home / "nowhere")
        assert [p.name for p in full.iterdir()] == ["backup_history_nas.jsonl.gz"]
        assert saved(full.parent) == before
    full_disk, no_folder = [r.message for r in caplog.records]
    assert "no space left on device. The backups themselves are whole" in full_disk
    assert "no such file" in no_folder


async def test_a_dump_that_cannot_be_read_is_kept_and_not_written_over(home: Path) -> None:
    file = dump.path_in(home / "backups", "nas")
    file.write_bytes(b"garbage")
    async with a_history(home) as history:
        await history.save(home / "backups")
    assert file.with_name(f"{file.name}.unreadable").read_bytes() == b"garbage"
    assert len(saved(home)) == 7


# --- back ------------------------------------------------------------------------------------------------------------


async def assert_all_is_back(home: Path, caplog: pytest.LogCaptureFixture | None = None) -> None:
    async with a_history(home) as history:
        assert await history.runs() == KNOWN
        assert await history.audit_log() == EVENTS
    async with a_history(home) as history:
        assert await history.runs() == KNOWN
    if caplog:
        assert [r.message.partition(",")[0] for r in caplog.records].count("The history was made anew") == 1


@pytest.mark.parametrize("lost", ["state", "state/postgres/data", "state/postgres/data/global"])
async def test_what_was_deleted_comes_back(home: Path, lost: str, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(home / lost)
    await assert_all_is_back(home, caplog)


async def test_the_data_of_an_older_postgres_comes_back(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    older = programs().parent.parent / "pginstall" / "bin" / "initdb"
    if not older.exists():
        pytest.skip("the wheel carries one version only")
    shutil.rmtree(data(home))
    argv = [*as_another_user(), str(older), "-D", "data", "--auth=trust", "-U", "postgres"]
    await asyncio.to_thread(subprocess.run, argv, cwd=data(home).parent, check=True, capture_output=True)
    await assert_all_is_back(home, caplog)
    (aside,) = data(home).parent.glob("data-set-aside-*")
    assert (aside / "PG_VERSION").read_text() == "16\n"


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        "pg_xact/0000",
        "global/1260",
        "base/5/1249",
        *(pytest.param(name, marks=pytest.mark.slow) for name in ("global/1262", "base/5/1259", "base/5/2662")),
    ],
)
async def test_a_file_of_it_that_was_cut_to_nothing_does_no_harm(home: Path, name: str) -> None:
    """Postgres does not start, or lets nobody in, or does not find its own tables."""
    os.truncate(data(home) / name, 0)
    await assert_all_is_back(home)


async def test_a_service_whose_history_is_deleted_under_it_has_it_back(home: Path) -> None:
    async with a_history(home) as history:
        assert await history.runs() == KNOWN
        old = PostgresServer(home / "state" / "postgres")._pid()
        shutil.rmtree(home / "state")
        assert await history.record(a_run("new"))
        assert {r.run_id for r in await history.runs()} == {"run-1", "owed", "new"}
    if old and Path(f"/proc/{old}").exists():
        os.kill(old, signal.SIGKILL)


@pytest.mark.slow
async def test_newer_notes_win_over_older_ones(home: Path) -> None:
    """The spool over the dump, the own dump over another machine's, and each over what a backup says of itself."""
    other = a_history(home.parent / "other", host="laptop")
    (home.parent / "other" / "backups").mkdir(parents=True)
    async with other:
        await other.record(a_run("run-1", files=1))
        await other.record(a_run("theirs", host="laptop"))
        await other.save(home / "backups", lambda: datetime(2030, 1, 1, tzinfo=UTC))
    shutil.rmtree(home / "state")
    away = History("postgresql://127.0.0.1:1/x", home / "state", "nas", connect_timeout_s=0.3)
    newer = replace(OWED, notification_sent=True)
    await away.record(newer)
    lying = [a_good_run(r, notification_sent=True, files=2) for r in ("run-1", "owed", "theirs", "lying")]
    async with a_history(home, lying) as history:
        found = {r.run_id: r for r in await history.runs()}
        assert await history.audit_log() == EVENTS
        assert await history.drives() == [a_drive()]
        assert await history.drills() == ([a_drill()], False)
    assert found == {
        "run-1": a_run(),
        "owed": newer,
        "theirs": a_run("theirs", host="laptop"),
        "lying": lying[3],
    }


async def test_what_can_be_read_of_a_damaged_dump_counts(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = dump.path_in(home / "backups", "nas")
    lines = gzip.decompress(file.read_bytes())
    file.write_bytes(gzip.compress(lines)[:-9])
    shutil.rmtree(home / "state")
    async with a_history(home) as history:
        assert OWED in await history.runs()
    assert "cannot be read to its end" in caplog.text


@pytest.mark.slow
async def test_an_odd_row_costs_only_itself_and_is_named(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(home / "state")
    too_long = "".join(random.Random(7).choices("0123456789abcdefghijklmnop", k=20_000))  # for an index, also packed
    odd = [a_good_run("huge", filename="huge", size_bytes=2**63), a_good_run(too_long, filename="too_long")]
    lying = [a_good_run("first"), *odd, a_good_run("last")]
    async with a_history(home, lying) as history:
        assert {r.run_id for r in await history.runs()} == {"run-1", "owed", "first", "last"}
        assert [r.run_id for r in await history.adopt([*odd, a_good_run("later")])] == ["later"]
    for name in ("huge", "too_long"):
        assert caplog.text.count(f"no row for the backup {name}, which is left out") == 2


@pytest.mark.slow
@pytest.mark.parametrize("garbage", [b"{", b'{"run": {"files": 1}}', b'{"run": [' + b"[" * 100_000])
async def test_a_damaged_line_costs_only_itself_and_is_kept(home: Path, garbage: bytes) -> None:
    file = dump.path_in(home / "backups", "nas")
    head, *lines = gzip.decompress(file.read_bytes()).splitlines()
    odd = rows.to_json(a_run("odd", files=2**63), indent=None)
    damaged = gzip.compress(b"\n".join([head, garbage, lines[0], odd, *lines[1:]]))
    earlier = file.with_name(f"{file.name}.unreadable")
    earlier.write_bytes(b"earlier")
    file.write_bytes(damaged)
    shutil.rmtree(home / "state")
    async with a_history(home) as history:
        assert (await history.runs(), await history.audit_log()) == (KNOWN, EVENTS)
        await history.save(home / "backups")
        await history.save(home / "backups")
    assert earlier.read_bytes() == b"earlier"
    assert earlier.with_name(f"{earlier.name}-2").read_bytes() == damaged
    assert (len(saved(home)), len(list(file.parent.iterdir()))) == (7, 3)


@pytest.mark.slow
async def test_a_place_that_cannot_be_read_costs_no_other(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(home / "state")
    (home / "backups").rename(home / "good")
    errors = {"broken": StoreError("its folder cannot be read"), "away": TimeoutError(), "odd": ValueError()}

    def lying(place: Path) -> Sequence[Run]:
        if place.name in errors:
            raise errors[place.name]
        return [a_good_run("lying")]

    places = [home / name for name in (*errors, "good")]
    async with History(None, home / "state", "nas", places=places, lying=lying) as history:
        assert {r.run_id for r in await history.runs()} == {"run-1", "owed", "lying"}
        assert await history.audit_log() == EVENTS
    for told in ("its folder cannot be read", f"{home}/away does not answer", f"{home}/odd could"):
        assert told in caplog.text


@needs_fuse
async def test_a_dead_drive_holds_up_only_who_asks_for_what_lies_there(tmp_path: Path) -> None:
    with faulty_disk(tmp_path) as disk:
        drive = next(c for c in psutil.Process().children() if str(disk.folder) in c.cmdline())
        drive.suspend()
        back = threading.Timer(3, drive.resume)
        back.start()
        begun = time.monotonic()
        asking = asyncio.create_task(History(None, tmp_path / "state", "nas", places=[disk.folder]).runs())
        await asyncio.sleep(0.1)
        assert time.monotonic() - begun < 2 and not asking.done()
        drive.resume()
        assert await asking == []
        back.cancel()
    assert not (tmp_path / "state").exists()


@pytest.mark.slow
async def test_all_who_ask_at_once_get_the_same_answer(home: Path, caplog: pytest.LogCaptureFixture) -> None:
    shutil.rmtree(home / "state")
    several = [a_history(home) for _ in range(4)]
    answers = await asyncio.gather(*(history.runs() for history in several))
    await asyncio.gather(*(history.aclose() for history in several))
    assert answers == [KNOWN] * 4
    assert caplog.text.count("The history was made anew") == 1


ASK = """
import asyncio, sys
from pathlib import Path
from memu_backup.history import History

home = Path(sys.argv[1])
asyncio.run(History(None, home / "state", "nas", places=[home / "backups"]).runs())
"""


async def _is_filling(server: PostgresServer) -> bool:
    if not server.running():
        return False
    try:
        connection = await asyncpg.connect(server.url(), timeout=5)
    except (OSError, asyncpg.PostgresError):
        return False
    try:
        query = "SELECT count(*) FROM pg_stat_activity WHERE query LIKE 'INSERT %' AND state <> 'idle'"
        return bool(await connection.fetchval(query))
    finally:
        await connection.close()


@pytest.mark.slow
async def test_killed_while_it_comes_back_it_comes_back_the_next_time(home: Path) -> None:
    many = [a_run(f"many-{n}", created_at=NIGHT - timedelta(minutes=n + 1)) for n in range(10_000)]
    file = dump.path_in(home / "backups", "nas")
    lines = gzip.decompress(file.read_bytes()).splitlines()
    more = [rows.to_json(run, indent=None) for run in many]
    file.write_bytes(gzip.compress(b"\n".join([*lines, *more]) + b"\n", 1))
    shutil.rmtree(home / "state")
    server = PostgresServer(home / "state" / "postgres")
    child = await asyncio.create_subprocess_exec(sys.executable, "-c", ASK, str(home))
    deadline = time.monotonic() + 30
    while not await _is_filling(server):
        assert child.returncode is None and time.monotonic() < deadline, "it was never seen at it"
        await asyncio.sleep(0.01)
    child.kill()
    await child.wait()
    async with a_history(home) as history:
        assert (await history.runs(limit=2)) == KNOWN
        assert len(await history.runs(limit=None)) == 10_002
        assert await history.audit_log() == EVENTS

"""The one door: who asks is written down, and what killed runs left is settled."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import pytest

from memu_backup import lock
from memu_backup.config import load
from memu_backup.errors import LockHeld, UnknownBackup, UsageError
from memu_backup.history import History
from memu_backup.manager import SCHEDULER, Asker, Manager
from memu_backup.model import Level, Run, Status, Trigger
from tests.home import Home

GRANDMA = Asker("@grandma:family.example", "chat")
NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


@pytest.fixture
async def manager(home: Home) -> AsyncIterator[Manager]:
    config = load(home.folder / "config.toml", {})
    ticks = (NOON + timedelta(milliseconds=n) for n in count())
    async with History(config.history_url(), config.state_dir, config.host) as history:
        yield Manager(config, history, lambda: next(ticks))


async def test_whoever_asks_is_written_down(manager: Manager) -> None:
    run = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    store, stored = await manager.find("latest")
    await manager.verify(store, stored, Level.FULL, GRANDMA)
    events = await manager.history.audit_log()
    assert [(e.action, e.subject, e.actor, e.origin, e.outcome) for e in events] == [
        ("verify full", run.filename, "@grandma:family.example", "chat", "good"),
        ("backup", run.filename, "@grandma:family.example", "chat", "success"),
    ]


async def test_two_at_once_in_one_process_wait_for_each_other(manager: Manager, home: Home) -> None:
    runs = await asyncio.gather(*(manager.back_up("nightly", Trigger.MANUAL, GRANDMA) for _ in range(2)))
    assert [r.status for r in runs] == [Status.SUCCESS] * 2
    assert len(home.archives) == 2


async def test_recovering_settles_what_killed_runs_left(manager: Manager, home: Home) -> None:
    whole = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
    history = manager.history
    await history.record(replace(whole, status=Status.IN_PROGRESS, size_bytes=0, location="", finished_at=None))
    begun = Run(
        "r2", "family-server", "nightly", Trigger.SCHEDULE, "memu_backup_x.tar.gz", Status.IN_PROGRESS,
        NOON + timedelta(seconds=1),
    )  # fmt: skip
    theirs = replace(begun, run_id="r3", host="other")
    await history.record(begun)
    await history.record(theirs)
    (home.backups / ".stage-0000").mkdir()
    (home.backups / "memu_backup_20260501_000000.tar.gz.partial").write_bytes(b"half")

    with lock.held(home.backups, "backup job nightly"):
        await manager.recover()  # somebody is at work: theirs is not touched
        assert (home.backups / ".stage-0000").exists()
        assert (await manager.reports())["nightly"].in_progress == begun
    assert (await manager.reports())["nightly"].in_progress is None

    await manager.recover()
    assert home.leftovers() == []
    rows = {r.run_id: r for r in await history.runs()}
    assert rows[whole.run_id].status is Status.SUCCESS and rows[whole.run_id].size_bytes == whole.size_bytes
    assert (rows["r2"].status, rows["r2"].error_code) == (Status.FAILED, "interrupted")
    assert rows["r3"] == theirs
    before = await history.runs()
    await manager.recover()
    assert await history.runs() == before


async def test_what_is_unknown_is_refused_before_anything_begins(manager: Manager, home: Home) -> None:
    with pytest.raises(UsageError, match="did you mean nightly"):
        await manager.back_up("nigthly", Trigger.MANUAL, GRANDMA)
    with pytest.raises(UnknownBackup, match="There is no backup in"):
        await manager.find("latest")
    home.backups.mkdir()
    with lock.held(home.backups, "a test"), pytest.raises(LockHeld, match="a test"):
        await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    assert await manager.history.runs() == []


async def test_latest_is_the_newest_good_one(manager: Manager, home: Home) -> None:
    first = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    (home.folder / ".env").unlink()
    second = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    assert second.status is Status.PARTIAL
    assert (await manager.find("latest"))[1].name == first.filename
    damaged = replace(first, status=Status.FAILED, error_code="damaged", error="A bit flipped.")
    await manager.history.record(damaged)
    assert (await manager.find("latest"))[1].name == second.filename
    assert [s.state for s in await manager.listing()] == ["incomplete", "damaged"]

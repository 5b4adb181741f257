"""The service and the nights that it missed: one backup for all of them."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from memu_backup import lock
from memu_backup.audit import Asker
from memu_backup.config import load
from memu_backup.history import History
from memu_backup.manager import Manager
from memu_backup.model import Status, Trigger
from memu_backup.postgres_server import PostgresServer
from tests.service import Clock, Service, archives, rows, settings

BY_HAND_TOO = """\
[jobs.nightly]
at = "02:00"
[jobs.by-hand]
sources = ["photos"]
"""


@pytest.fixture
def photos(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(os.urandom(50_000))
    return '[sources.photos]\nkind = "directory"\npath = "photos"\n'


@pytest.fixture
async def stopped(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    """A Postgres that is there and does not run."""
    server = PostgresServer(tmp_path / "stopped")
    async with server:
        pass
    yield server
    await server.stop()


async def by_hand(config: Path, at: str) -> None:
    """A backup that somebody makes at this time (UTC)."""
    found = load(config, {})
    while lock.taken(found.backup_dir):  # the service may still be tidying up after its own
        await asyncio.sleep(0.05)
    async with History(found.history_url(), found.state_dir, found.host) as history:
        manager = Manager(found, history, lambda: datetime.fromisoformat(at).replace(tzinfo=UTC))
        assert (await manager.back_up("nightly", Trigger.MANUAL, Asker("anna", "cli"))).status is Status.SUCCESS


async def looks_twice(service: Service) -> None:
    """It has looked at its clock since."""
    before = len(service.said("WATCHDOG=1"))
    await service.until(lambda: len(service.said("WATCHDOG=1")) >= before + 3)


async def told(url: str, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[c] for c in columns) for row in await rows(url)]


# --- what was missed -------------------------------------------------------------------------------------------------


async def test_however_many_nights_it_was_off_it_makes_one_backup_when_it_starts(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database, jobs=BY_HAND_TOO)
    clock = Clock(tmp_path, "2026-11-20T08:00:00")
    async with Service(config, clock, watchdog_s=0.2) as new:
        await new.logs("The history is kept in")
        await looks_twice(new)
        await new.stop()
    assert await rows(database) == []  # it waits for its first night
    await by_hand(config, "2026-11-20T09:00:00")
    clock.set("2026-11-24T08:00:00")
    async with Service(config, clock, watchdog_s=0.2) as late:
        await late.logs("success")
        await looks_twice(late)
        assert "that was due 2026-11-21 02:00 was missed" in late.log()
        assert late.said("STATUS=the next backup is due 2026-11-25 02:00")
        await late.stop()
    async with Service(config, clock, watchdog_s=0.2) as again:
        await again.logs("The history is kept in")
        await looks_twice(again)
        clock.set("2026-11-25T00:59:59")
        await again.logs("success")
        await again.stop()
    assert await told(database, "trigger", "job") == [
        ("manual", "nightly"), ("catch_up", "nightly"), ("schedule", "nightly"),
    ]  # fmt: skip


async def test_what_it_slept_through_is_made_up_for_once_when_it_wakes_unless_by_hand_since(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.ready()
        for count, woken in enumerate(("2026-11-21T07:00:00", "2026-11-24T18:00:00"), start=1):
            clock.set(woken)
            await service.logs(": success", count)
            await looks_twice(service)
        await by_hand(config, "2026-11-25T06:59:00")
        clock.set("2026-11-25T07:00:00")
        await service.logs("was made by hand since")
        clock.set("2026-11-26T00:59:59")
        await service.logs(": success", 3)
        for jump in ("2036-11-26T07:00:00", "2026-11-26T07:00:00"):
            clock.set(jump)
            await looks_twice(service)
        await service.logs("what is due for job nightly is looked up anew")
        await service.stop()
    assert await told(database, "trigger") == [("catch_up",), ("catch_up",), ("manual",), ("schedule",)]
    assert len(archives(tmp_path)) == 4


async def test_with_the_history_away_what_lies_on_disk_tells_what_was_missed(
    tmp_path: Path, photos: str, stopped: PostgresServer
) -> None:
    config = settings(tmp_path, photos, history=stopped.url())
    clock = Clock(tmp_path, "2026-11-19T20:00:00")
    await by_hand(config, "2026-11-19T20:00:00")
    for note in (tmp_path / "state" / "spool").glob("*.json"):
        note.unlink()
    for begin in ("2026-11-21T07:00:00", "2026-11-21T07:30:00"):
        clock.set(begin)
        async with Service(config, clock, watchdog_s=0.2) as service:
            await service.until(lambda: len(archives(tmp_path)) == 2)
            await service.logs("cannot be reached")
            await looks_twice(service)
            await service.stop()
    assert len(archives(tmp_path)) == 2

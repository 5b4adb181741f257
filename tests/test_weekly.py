"""The service tries backups at the time that is set for it, makes up once for what was missed, and tells the family."""

from __future__ import annotations

import os
from datetime import UTC, datetime
from pathlib import Path

import asyncpg
import pytest

from memu_backup.audit import Asker
from memu_backup.config import load
from memu_backup.manager import Manager, history_of
from memu_backup.model import Status, Trigger
from tests.receiver import Receiver
from tests.service import NIGHTLY, Clock, Service, settings

ON = '[jobs.nightly]\nto_drives = false\n[drill]\ncron = "0 11 * * sun"\n'
SATURDAY, SUNDAY = "2026-11-21T20:00:00", "2026-11-22T09:59:59.5"


@pytest.fixture
def photos(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(os.urandom(50_000))
    return '[sources.photos]\nkind = "directory"\npath = "photos"\n'


async def back_up(config: Path, at: str) -> None:
    """By hand, at this time (UTC)."""
    found = load(config, {})
    async with history_of(found) as history:
        manager = Manager(found, history, lambda: datetime.fromisoformat(at).replace(tzinfo=UTC))
        run = await manager.back_up("nightly", Trigger.MANUAL, Asker("anna", "cli"), new_place=True)
        assert run.status is Status.SUCCESS


async def tried(url: str) -> list[str]:
    """What came of each restore test, oldest first."""
    connection = await asyncpg.connect(url)
    try:
        rows = await connection.fetch("SELECT outcome FROM backup_drills ORDER BY created_at")
        return [row[0] for row in rows]
    finally:
        await connection.close()


async def test_it_is_made_at_its_time(tmp_path: Path, photos: str, database: str) -> None:
    config = settings(tmp_path, photos, history=database, jobs=ON)
    await back_up(config, SATURDAY)
    clock = Clock(tmp_path, SATURDAY)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.logs("The history is kept in")
        assert await tried(database) == []
        clock.set(SUNDAY)
        await service.until(lambda: "Restore test of memu_backup_20261121_210000.tar.gz: whole." in service.log(), 40)
        await service.stop()
    assert await tried(database) == ["whole"]
    assert not (tmp_path / "backups" / ".memu-backup-drill").exists()


@pytest.mark.slow
async def test_what_was_missed_is_made_up_for_once(tmp_path: Path, photos: str, database: str) -> None:
    """Also by a machine that was never on at that time of the week."""
    config = settings(tmp_path, photos, history=database, jobs=ON)
    await back_up(config, SATURDAY)
    clock = Clock(tmp_path, "2026-11-30T08:00:00")
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.until(lambda: "whole." in service.log(), 40)
        await service.stop()
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.logs("The history is kept in")
        await service.until(lambda: len(service.said("WATCHDOG=1")) > 12)
        await service.stop()
    assert await tried(database) == ["whole"]
    clock.set("2026-12-07T08:00:00")
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.until(lambda: "whole." in service.log(), 40)
        await service.stop()
    assert await tried(database) == ["whole", "whole"]


@pytest.mark.slow
async def test_a_failure_is_an_alert_and_the_next_good_one_calls_it_off(
    tmp_path: Path, photos: str, database: str, receiver: Receiver
) -> None:
    told = f'[alerts]\nfallback = ["json://{receiver.at}/alert"]\n'
    config = settings(tmp_path, photos, history=database, jobs=ON + told)
    await back_up(config, SATURDAY)
    (archive,) = (tmp_path / "backups").glob("*.tar.gz")
    with archive.open("r+b") as file:
        file.seek(20_000)
        file.write(b"\xff" * 64)
    clock = Clock(tmp_path, SATURDAY)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.logs("The history is kept in")
        clock.set(SUNDAY)
        await service.until(lambda: any("A restore test found" in heard.body for heard in receiver.heard), 40)
        await service.stop()
    assert await tried(database) == ["failed"]
    receiver.heard.clear()
    await back_up(config, "2026-11-28T20:00:00")
    clock.set("2026-11-28T21:00:00")
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.logs("The history is kept in")
        clock.set("2026-11-29T09:59:59.5")
        await service.until(lambda: any("everything came back" in heard.body for heard in receiver.heard), 40)
        await service.stop()


@pytest.mark.slow
async def test_it_waits_for_a_backup_that_is_being_made_and_a_backup_waits_for_it(
    tmp_path: Path, photos: str, database: str
) -> None:
    """Both are due at one moment; one after the other they are done."""
    config = settings(tmp_path, photos, history=database, jobs=NIGHTLY + '[drill]\ncron = "0 2 * * sun"\n')
    await back_up(config, SATURDAY)
    clock = Clock(tmp_path, "2026-11-21T23:00:00")
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.logs("The history is kept in")
        clock.set("2026-11-22T00:59:59.5")
        await service.until(lambda: ": success" in service.log() and "whole." in service.log(), 60)
        await service.stop()
    assert set(await tried(database)) == {"whole"}

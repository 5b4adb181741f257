"""After the machine was off for days: the backup that makes up for it is no reason for an alarm."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from memu_backup.alarms import file_in, read
from tests.receiver import Receiver
from tests.service import Clock, Service, archives, settings


async def ready_and_made(service: Service, folder: Path, count: int) -> None:
    await service.ready()
    async with asyncio.timeout(20):
        while len(archives(folder)) < count:
            await asyncio.sleep(0.05)


@pytest.mark.slow
async def test_who_switches_the_machine_on_after_days_is_not_alarmed(
    tmp_path: Path, database: str, receiver: Receiver
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(os.urandom(50_000))
    sources = '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    config = settings(
        tmp_path,
        sources,
        history=database,
        more=f'[usb]\noverdue_days = 0\n[alerts]\nfallback = ["json://{receiver.at}/"]\n',
    )
    clock = Clock(tmp_path, "2026-11-20T00:59:53")
    async with Service(config, clock) as service:
        await ready_and_made(service, tmp_path, 1)
        await asyncio.sleep(1)
        await service.stop()
    clock.set("2026-11-24T10:00:00")
    async with Service(config, clock) as service:
        await ready_and_made(service, tmp_path, 2)
        await asyncio.sleep(3)
        await service.stop()
    assert [json.loads(heard.body)["message"] for heard in receiver.heard] == []
    assert read(file_in(tmp_path / "state")).alarms == {}

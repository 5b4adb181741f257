"""What nobody announces is found out all the same, and what strangers do fills no disk."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from memu_backup.chat.account import Account, Safe
from memu_backup.chat.bot import Bot
from memu_backup.clock import now
from memu_backup.config import load
from memu_backup.manager import Manager, history_of
from memu_backup.teller import Teller
from tests.chat.family import until
from tests.chat.test_alerts import NO_DATABASE, Days
from tests.chat.test_bot import started
from tests.chat.test_hardships import ROOM, telling
from tests.home import Home, query
from tests.receiver import Receiver, receiving


async def test_a_failure_that_postgres_does_not_announce_is_told_by_the_next_sweep(
    tmp_path: Path, database: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memu_backup.teller._SWEEP_S", 1.0)
    home = Home(tmp_path / "home", database)
    assert home.run("start").status == 0
    await query(database, "ALTER TABLE backup_history DISABLE TRIGGER backup_history_announce", "SELECT 1")
    async with telling(home, now, receiver):
        await asyncio.sleep(1.5)
        home.configure(sources=NO_DATABASE)
        assert (await asyncio.to_thread(home.run, "start")).status == 1
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)), 5)


async def test_however_many_strangers_knock_the_audit_has_twenty_lines_an_hour(tmp_path: Path, database: str) -> None:
    home, clock = Home(tmp_path / "home", database), Days()
    config = load(home.folder / "config.toml", {})
    tasks: list[asyncio.Task[None]] = []

    def start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
        tasks.append(asyncio.create_task(work, name=name))
        return tasks[-1]

    async with history_of(config) as history:
        manager = Manager(config, history, clock)
        bot = Bot(manager, Teller(manager, clock, None, expects_room=True), start, clock)
        for hours, lines in ((0, 20), (0.9, 20), (1.1, 40)):
            clock.ahead = timedelta(hours=hours)
            for number in range(100):
                bot.stranger(f"@{number}:elsewhere", "invitation")
            await asyncio.gather(*tasks)
            assert len(home.audit()) == lines
    assert {(a["origin"], a["action"], a["outcome"]) for a in home.audit()} == {("chat", "invitation", "refused")}


@pytest.mark.slow
async def test_a_homeserver_that_never_answers_holds_up_nothing_but_the_chat(
    tmp_path: Path, database: str, receiver: Receiver
) -> None:
    home = Home(tmp_path / "home", database)
    home.configure(f'heartbeat = "http://{receiver.at}/uuid"\n', top=f'backup_notification_room = "{ROOM}"')
    safe = Safe(home.folder / "state")
    (safe.keys("DEVICE") / "keys").touch()
    async with receiving() as homeserver:
        homeserver.hangs = True
        safe.keep_account(Account(f"http://{homeserver.at}", "@bot:hs", "DEVICE", "token", "key"))
        service = started(home, tmp_path / "log")
        try:
            await until(lambda: asyncio.sleep(0, bool(homeserver.heard)))
            assert "memu-backup is ready" in (tmp_path / "log").read_text()
            assert (await asyncio.to_thread(home.run, "start")).status == 0
            await until(lambda: asyncio.sleep(0, "/uuid" in [request.path for request in receiver.heard]), 5)
            service.terminate()
            assert await asyncio.to_thread(service.wait, 8) == 0
        finally:
            service.kill()
            service.wait()

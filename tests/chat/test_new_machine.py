"""The bot of a machine that was lost goes on on a new one: the same device, the same identity, the same history."""

from __future__ import annotations

import asyncio
import json
import shutil
from pathlib import Path

from memu_backup.chat.account import Safe
from tests.chat.family import Family, joined
from tests.home import Ran


async def ran(family: Family, *words: str) -> Ran:
    done = await asyncio.to_thread(family.home.run, *words)
    assert done.status == 0, done
    return done


async def test_the_bot_answers_from_a_new_machine_as_who_it_was(family: Family, tmp_path: Path) -> None:
    home, safe = family.home, Safe(family.home.folder / "state")
    config = home.folder / "config.toml"
    config.write_text(  # with a history of our own
        f'host = "family-server"\nstate_dir = "state"\nbackup_notification_room = "{family.room}"\n'
        f'[usb]\noverdue_days = 0\n[chat]\nadmins = ["{family.anna.user_id}"]\n'
        '[sources.photos]\nkind = "directory"\npath = "photos"\n[sources.memu-backup]\nkind = "self"\n'
        '[jobs.nightly]\nat = "02:00"\n'
    )
    async with family.bot_runs():
        await joined(family)
        await ran(family, "start")
        assert "Last backup: Today" in await family.answered("!backup status")
        await ran(family, "start")  # while the bot is at work with its keys
        assert (await family.answered("!backup help")).startswith("I can tell")
    account, trust = safe.account(), await family.anna.device_trust(family.bot)
    first, last = home.archives
    archive = shutil.copy2(last, tmp_path)
    shutil.rmtree(home.folder)
    home.folder.mkdir()

    await ran(family, "restore", str(archive), "--source", "memu-backup", "--to", str(tmp_path / "found"), "--yes")
    shutil.copy2(tmp_path / "found" / "memu-backup" / "config.toml", config)
    await ran(family, "restore", str(archive), "--in-place", "--yes")

    assert account and safe.account() == account
    async with family.bot_runs():
        assert (await family.answered("!backup help")).startswith("I can tell")
    assert await family.anna.device_trust(family.bot) == trust
    audit = json.loads((await ran(family, "log", "--json")).out)
    assert [line["outcome"] for line in audit if line["subject"] == first.name] == ["success"]

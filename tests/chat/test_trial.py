"""``chat test``: whoever installed it sees that a message stands in the room, and who can read it."""

from __future__ import annotations

import asyncio
import json
import time
from pathlib import Path

import pytest

from tests.chat.family import PASSWORD, Family, joined, until
from tests.chat.test_bot import started
from tests.home import Ran
from tests.synapse import Synapse


async def tried(family: Family, *options: str) -> Ran:
    return await asyncio.to_thread(family.home.run, "chat", "test", *options)


@pytest.mark.parametrize("with_service", [True, pytest.param(False, marks=pytest.mark.slow)])
async def test_a_message_stands_in_the_room_and_it_is_said_who_can_read_it(
    family: Family, tmp_path: Path, with_service: bool
) -> None:
    service = started(family.home, tmp_path / "log") if with_service else None
    try:
        if service:
            await joined(family)
            await until(lambda: asyncio.sleep(0, (family.home.folder / "state" / "service" / "bell").exists()))
        ran = await tried(family)
        assert ran.status == 0, ran
        assert f"The message stands in the room {family.room}; it took " in ran.out
        assert f"It can be read by {family.anna.user_id} (1 device)." in ran.out
        assert ("The service does not run" in ran.err) is not with_service
        assert (await family.hears()).startswith("Backup Test\nThis is a test from family-server.")
        told = json.loads((await tried(family, "--json")).out)
        assert told["encrypted"] and told["readers"] == {family.anna.user_id: 1}
        if service:
            assert (await family.hears()).startswith("Backup Test")
            assert (await family.answered("!backup help")).startswith("I can tell")  # the keys are whole
    finally:
        if service:
            service.terminate()
            service.wait()


@pytest.mark.slow
async def test_right_after_a_new_login_it_is_the_new_one_that_is_tried(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    """As `chat login` tells people to do, and they type it at once."""
    service = started(family.home, tmp_path / "log")
    password = family.home.folder / "password"
    password.write_text(PASSWORD)
    login = ("chat", "login", "--homeserver", synapse.url, "--user", family.bot, "--password-file", str(password))
    try:
        await joined(family)
        for _ in range(2):
            assert (await asyncio.to_thread(family.home.run, *login)).status == 0
            ran = await tried(family)
            assert ran.status == 0, ran
            assert (await family.hears()).startswith("Backup Test")
        begun = time.monotonic()
        assert (await asyncio.to_thread(family.home.run, *login)).status == 0
        assert (await family.answered("!backup help")).startswith("I can tell")
        assert time.monotonic() - begun < 5, "it does not wait until the service looks by itself"
    finally:
        service.terminate()
        service.wait()
    assert "ERROR" not in (tmp_path / "log").read_text()


async def test_what_is_missing_is_said(family: Family) -> None:
    family.home.configure(top=f'backup_notification_room = "{family.room}"', more="[chat]\nadmins = []\n")
    (family.home.folder / "state" / "chat" / "account.json").rename(family.home.folder / "account.json")
    ran = await tried(family)
    assert ran.status == 2 and "The bot is not signed in yet. Type: memu-backup chat login" in ran.err
    family.home.configure()
    ran = await tried(family)
    assert ran.status == 2 and "No room is set" in ran.err


@pytest.mark.slow
async def test_a_bot_that_nobody_invited_says_so(family: Family, tmp_path: Path) -> None:
    other = await family.anna.create_room(name="Other")
    family.home.configure(top=f'backup_notification_room = "{other}"', more="[chat]\nadmins = []\n")
    service = started(family.home, tmp_path / "log")
    try:
        await until(lambda: asyncio.sleep(0, (family.home.folder / "state" / "service" / "bell").exists()))
        ran = await tried(family)
        assert ran.status == 1 and "Let one of the admins invite it" in ran.err
    finally:
        service.terminate()
        service.wait()

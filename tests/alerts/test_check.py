"""What ``check`` says of the ways out and of the chat; it sends nothing."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.alerts.conftest import CANARY
from tests.home import Home, Ran
from tests.receiver import Receiver


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


async def run(home: Home, *argv: str) -> Ran:
    """In a thread: the receivers have to answer meanwhile."""
    ran = await asyncio.to_thread(home.run, *argv)
    assert CANARY not in ran.out + ran.err
    return ran


async def test_a_check_looks_at_the_ways_out_and_sends_nothing(home: Home, receiver: Receiver) -> None:
    home.mark()
    plain = await run(home, "check")
    assert not any(f"  {word}" in plain.out for word in ("fallback", "heartbeat", "chat"))
    beat = f'heartbeat = "http://{receiver.at}/{CANARY}"\n'
    home.configure(more=f'{beat}[alerts]\nfallback = ["json://{receiver.at}/{CANARY}", "ntfys://{CANARY}"]\n')
    checked = await run(home, "check")
    assert (
        " ok  fallback channels: json://127.0.0.1, ntfys://…; nothing was sent, to try them: memu-backup alerts test\n"
        " ok  heartbeat of nightly: http://127.0.0.1; nothing was sent there\n"
    ) in checked.out
    assert receiver.heard == [] and "NO  alerts" not in checked.out
    home.configure(more=f'heartbeat_file = "beat"\n[alerts]\nfallback = ["ntfy5://{CANARY}"]\n')
    checked = await run(home, "check")
    assert checked.status == 1
    assert " NO  fallback channels: Apprise cannot make anything of ntfy5://…, so nothing would be told" in checked.out
    assert f" NO  heartbeat of nightly: jobs.nightly.heartbeat_file: {home.folder}/beat is not there\n" in checked.out


async def test_a_check_says_what_the_chat_still_lacks(home: Home) -> None:
    home.configure(more='[chat]\nadmins = ["@anna:example.org"]\n')
    checked = await run(home, "check")
    assert checked.status == 1
    assert (
        " NO  chat: nobody is signed in, so nobody is answered or told there; type: memu-backup chat login; "
        "backup_notification_room is not set, so there is no room to be in\n"
    ) in checked.out
    safe = home.folder / "state" / "chat"
    safe.mkdir(parents=True)
    account = {"homeserver": "https://h", "user_id": "@backup:h", "device_id": "D", "token": CANARY, "pickle_key": "x"}
    (safe / "account.json").write_text(json.dumps(account))
    home.configure(top='backup_notification_room = "!family:h"', more='[chat]\nadmins = ["@anna:h"]\n')
    checked = await run(home, "check")
    assert " ok  chat: @backup:h is signed in for !family:h; may be invited by @anna:h\n" in checked.out
    home.configure(top='backup_notification_room = "!family:h"')
    checked = await run(home, "check")
    assert " NO  chat: [chat] admins names nobody, so nobody can invite the bot\n" in checked.out
    (safe / "account.json").write_text("{}")
    checked = await run(home, "check")
    assert f" NO  chat: {safe}/account.json is damaged" in checked.out

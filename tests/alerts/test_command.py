"""Whoever tries the ways out is told of each whether it took the message."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.alerts.conftest import CANARY, MailServer
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


async def test_a_test_goes_to_each_and_it_is_said_which_took_it(
    home: Home, receiver: Receiver, mail_server: MailServer
) -> None:
    urls = [f"json://anna:{CANARY}@{receiver.at}/{CANARY}", mail_server.url()]
    home.configure(more=f"[alerts]\nfallback = {json.dumps(urls)}\n")
    ran = await run(home, "alerts", "test")
    assert (ran.status, ran.err) == (0, "")
    assert ran.out == " ok  json://127.0.0.1: took it\n ok  mailto://127.0.0.1: took it\n"
    assert json.loads(receiver.heard[0].body)["title"] == mail_server.mails[0]["Subject"] == "Backup Test"
    assert "family-server" in receiver.heard[0].body

    receiver.status = 403
    ran = await run(home, "--debug", "alerts", "test")
    assert (ran.status, ran.out) == (
        1,
        " NO  json://127.0.0.1: answered 403\n ok  mailto://127.0.0.1: took it\n",
    )
    ran = await run(home, "alerts", "test", "--json")
    assert (ran.status, ran.json) == (
        1,
        [
            {"channel": "json://127.0.0.1", "good": False, "problem": "answered 403"},
            {"channel": "mailto://127.0.0.1", "good": True, "problem": ""},
        ],
    )


async def test_without_any_there_is_nothing_to_test(home: Home) -> None:
    ran = await run(home, "alerts", "test")
    assert ran.status == 2 and "There is no fallback channel to be tried. Write one into" in ran.err
    home.configure(more="[alerts]\nfallback_file = 'urls'\n")
    ran = await run(home, "alerts", "test")
    assert ran.status == 2 and f"alerts.fallback_file: {home.folder}/urls is not there" in ran.err

"""Whatever a homeserver answers to who asks for news, the bot neither stays deaf nor asks without a pause."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from memu_backup.chat.account import Account, Safe
from memu_backup.chat.session import Message, Reply, Session
from tests.chat.family import Family, until

ROOM = "!room:hs"


async def repeat(message: Message) -> Reply:
    return Reply(f"heard {message.text}")


class Homeserver:
    """Answers each poll at once with what ``polls`` says, in turn, the last again and again."""

    def __init__(self, *polls: dict[str, Any]) -> None:
        self.polls = list(polls)
        self.asked_at: list[float] = []
        self.patience_ms = 0
        self.sent: list[str] = []

    async def handle(self, request: web.BaseRequest) -> web.StreamResponse:
        if "/sync" in request.path:
            self.asked_at.append(time.monotonic())
            if self.patience_ms:
                told = {"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": self.patience_ms}
                return web.json_response(told, status=429)
            return web.json_response(self.polls.pop(0) if len(self.polls) > 1 else self.polls[0])
        if "m.room.encryption" in request.path:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": "none"}, status=404)
        if "/send/" in request.path:
            self.sent.append((await request.json())["body"])
            return web.json_response({"event_id": f"${len(self.sent)}"})
        return web.json_response({})

    @asynccontextmanager
    async def heard(self, folder: Path) -> AsyncIterator[None]:
        """While the bot listens to it."""
        runner = web.ServerRunner(web.Server(self.handle, access_log=None))
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        safe = Safe(folder)
        (safe.keys("DEVICE") / "keys").touch()
        url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        session = Session(safe, Account(url, "@bot:hs", "DEVICE", "token", "key"), ROOM, frozenset(), repeat)
        running = asyncio.create_task(session.run())
        try:
            yield
        finally:
            running.cancel()
            await asyncio.wait([running])
            await runner.cleanup()


def poll(number: int, **room: Any) -> dict[str, Any]:
    return {"next_batch": f"s{number}", "rooms": {"join": {ROOM: room}}}


def question(text: str) -> dict[str, Any]:
    content = {"msgtype": "m.text", "body": text}
    event = {"type": "m.room.message", "event_id": f"${text}", "sender": "@anna:hs", "content": content}
    return {**event, "origin_server_ts": int(time.time() * 1000)}


async def test_a_homeserver_that_leaves_out_what_is_empty_is_understood(tmp_path: Path) -> None:
    """A room may be told without a timeline. https://spec.matrix.org/v1.11/client-server-api/#get_matrixclientv3sync"""
    others = {"next_batch": "s2", "rooms": {"join": {"!other:hs": {}}}}
    hs = Homeserver(poll(1), others, poll(3, timeline={}), poll(4, timeline={"events": [question("one")]}), poll(5))
    async with hs.heard(tmp_path):
        await until(lambda: asyncio.sleep(0, bool(hs.sent)), 5)
    assert hs.sent == ["heard one"]


async def test_a_homeserver_that_answers_at_once_without_news_is_not_asked_without_a_pause(tmp_path: Path) -> None:
    hs = Homeserver({"next_batch": "s1"})
    async with hs.heard(tmp_path):
        await asyncio.sleep(3)
    assert 2 <= len(hs.asked_at) <= 12


async def test_a_homeserver_that_asks_for_patience_is_not_asked_sooner(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("random.uniform", lambda low, _high: low)
    hs = Homeserver({})
    hs.patience_ms = 2500
    async with hs.heard(tmp_path):
        await until(lambda: asyncio.sleep(0, len(hs.asked_at) > 1))
    assert hs.asked_at[1] - hs.asked_at[0] >= 2.5


@pytest.mark.slow
async def test_where_the_homeserver_does_not_know_how_far_the_bot_came_it_begins_anew(family: Family) -> None:
    """As one that was set up anew, or that is another program now."""
    async with family.listening(repeat):
        await family.answered("before")
    file = family.home.folder / "state" / "chat" / "heard.json"
    heard = json.loads(file.read_text())
    file.write_text(json.dumps({**heard, "token": "of another homeserver"}))
    begun = time.monotonic()
    async with family.listening(repeat):
        assert await family.answered("after") == "heard after"
        await family.quiet(0.5)
    assert time.monotonic() - begun < 10

"""Two who want the same at the same moment have it done once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from memu_backup.chat.session import Session
from tests.chat.family import Family, joined
from tests.chat.test_acts import says


class Polls:
    """Lets the bot hear all that is said meanwhile in one poll."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._go_on = asyncio.Event()
        self._go_on.set()
        self._under_way = 0
        real = Session._poll

        async def poll(session: Session, *arguments: Any, **more: Any) -> Any:
            await self._go_on.wait()
            self._under_way += 1
            try:
                return await real(session, *arguments, **more)
            finally:
                self._under_way -= 1

        monkeypatch.setattr(Session, "_poll", poll)

    async def at_once(self, family: Family, *texts: str) -> None:
        self._go_on.clear()
        await family.anna.say(family.room, "hello")  # ends the poll that is under way, if one is
        while self._under_way:  # one that ended later would hear the first of them alone
            await asyncio.sleep(0.01)
        for text in texts:
            await family.anna.say(family.room, text)
        self._go_on.set()


async def both_hear(family: Family) -> None:
    """One that it is made already, be it at once or after the answer that it has begun, and one what came of it."""
    awaited = {"A backup is being made already, since today ", "The backup is done: "}
    while awaited:
        text = await says(family)
        awaited = {start for start in awaited if not text.startswith(start)}


async def test_one_backup_is_made_of_two_that_are_asked_for_at_once(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    polls = Polls(monkeypatch)
    async with family.bot_runs():
        await joined(family)
        await polls.at_once(family, "!backup now", "!backup now")
        await both_hear(family)
        await family.quiet()
    assert len(family.home.archives) == 1


@pytest.mark.slow
async def test_one_backup_is_made_where_two_say_yes_at_once(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    assert family.home.run("start").status == 0
    polls = Polls(monkeypatch)
    async with family.bot_runs():
        await joined(family)
        assert (await family.answered("!backup now")).startswith("There is a good backup of today ")
        await polls.at_once(family, "!backup yes", "!backup yes")
        await both_hear(family)
        await family.quiet()
    assert len(family.home.archives) == 2

"""A family with a room: Anna, who made it, and the bot, signed in and invited."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

from memu_backup.alerts import Channel
from memu_backup.chat import bot as bots
from memu_backup.chat.account import Safe
from memu_backup.chat.login import log_in
from memu_backup.chat.session import Answer, Session
from memu_backup.clock import Clock, now
from memu_backup.config import load
from memu_backup.errors import LoginEnded
from memu_backup.manager import Manager, history_of
from memu_backup.teller import Teller
from tests.home import Home, query
from tests.human import Human
from tests.synapse import Synapse

PASSWORD = "correct horse battery staple"
PHOTOS = '[sources.photos]\nkind = "directory"\npath = "photos"\n'


@dataclass(frozen=True)
class Family:
    """Anna, who made the room and may invite, and the bot, which is signed in and not running."""

    home: Home
    anna: Human
    bot: str
    room: str

    @asynccontextmanager
    async def bot_runs(self, clock: Clock = now, fallback: Channel | None = None) -> AsyncIterator[asyncio.Task[None]]:
        """Bot and alerts as the service runs them, by a ``clock`` of its own if need be."""
        config = load(self.home.folder / "config.toml", {})
        async with history_of(config) as history:
            manager = Manager(config, history, clock)
            teller = Teller(manager, clock, fallback, expects_room=True)
            running = asyncio.create_task(self._chat(manager, teller, clock))
            telling = asyncio.create_task(teller.run())
            try:
                yield running
            finally:
                for task in (running, telling):
                    task.cancel()
                await asyncio.wait([running, telling])

    async def _chat(self, manager: Manager, teller: Teller, clock: Clock) -> None:
        try:
            account = Safe(self.home.folder / "state").account()
            assert account
            await bots.run(manager, teller, start, clock, account)
        except LoginEnded:
            teller.room_is_lost(signed_out=True)
            raise

    async def hears(self, timeout_s: float = 10) -> str:
        """What the bot says next, unasked."""
        heard = await self.anna.next(self.room, sender=self.bot, timeout_s=timeout_s)
        assert heard.decrypted and heard.msgtype == "m.text"
        return heard.body

    async def quiet(self, for_s: float = 1.5) -> None:
        await self.anna.silent(self.room, sender=self.bot, for_s=for_s)

    async def look(self) -> None:
        """As if a row had changed: alerts are looked at now, and not within the minute."""
        await query(self.home.history, "NOTIFY memu_backup, '{}'")

    @asynccontextmanager
    async def listening(self, answer: Answer, kind: type[Session] = Session) -> AsyncIterator[Session]:
        """The bot's session without what the bot knows to say; it is in the room."""
        safe = Safe(self.home.folder / "state")
        account = safe.account()
        assert account
        session = kind(safe, account, self.room, frozenset({self.anna.user_id}), answer)
        running = asyncio.create_task(session.run())
        try:
            await joined(self)
            yield session
        finally:
            running.cancel()
            await asyncio.wait([running])

    async def answered(self, text: str) -> str:
        await self.anna.say(self.room, text)
        heard = await self.anna.next(self.room, sender=self.bot)
        assert heard.decrypted and heard.msgtype == "m.text"
        return heard.body


def configure(family: Family, sources: str = PHOTOS, more: str = "") -> None:
    top = f'backup_notification_room = "{family.room}"'
    family.home.configure(sources=sources, top=top, more=f'[chat]\nadmins = ["{family.anna.user_id}"]\n{more}')


def start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.create_task(work, name=name)


async def settled(synapse: Synapse, home: Home, anna: Human, bot: str) -> Family:
    """Anna has made the room and invited the bot, which is signed in."""
    room = await anna.create_room(name="Family")
    home.configure(top=f'backup_notification_room = "{room}"', more=f'[chat]\nadmins = ["{anna.user_id}"]\n')
    await log_in(Safe(home.folder / "state"), synapse.url, bot, PASSWORD)
    await anna.invite(room, bot)
    return Family(home, anna, bot, room)


async def joined(family: Family) -> None:
    await until(lambda: is_member(family, family.bot))


async def is_member(family: Family, user_id: str, *, of: str = "", asking: Human | None = None) -> bool:
    found = await (asking or family.anna)._client.joined_members(of or family.room)
    return user_id in {member.user_id for member in found.members}


async def until(condition: Callable[[], Awaitable[bool]], patience_s: float = 15.0) -> None:
    async with asyncio.timeout(patience_s):
        while not await condition():
            await asyncio.sleep(0.05)

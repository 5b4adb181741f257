"""Answers the family: one word in the room, and how things stand comes back."""

from __future__ import annotations

import logging

from memu_backup import messages
from memu_backup.alerts import Notice
from memu_backup.chat import markup
from memu_backup.chat.account import Safe
from memu_backup.chat.grammar import Command, Slip, parse
from memu_backup.chat.session import Message, Reply, Session
from memu_backup.clock import Clock
from memu_backup.errors import MemuError
from memu_backup.manager import Manager
from memu_backup.teller import Teller

log = logging.getLogger(__name__)


class Bot:
    """What it is asked it asks the manager, as the command line does."""

    def __init__(self, manager: Manager, clock: Clock) -> None:
        self._manager = manager
        self._clock = clock

    async def answer(self, message: Message) -> Reply | None:
        """The reply to a message of the family's room; None for what was not meant for the bot."""
        match parse(message.text):
            case Command(word):
                log.info("%s asks for %s.", message.sender, word)
                return await self._said(word)
            case Slip(meant):
                return markup.headed(messages.slip(meant))
        return None

    async def _said(self, word: str) -> Reply:
        try:
            match word:
                case "status":
                    return await self._status()
                case "list":
                    return markup.headed(await self._list())
            return markup.headed(messages.help())
        except MemuError as error:
            return markup.headed(str(error))

    async def _status(self) -> Reply:
        return markup.status(await self._manager.reports(), self._clock(), self._manager.config.zone)

    async def _list(self) -> str:
        found = [(b.backup.created_at, b.backup.size_bytes, b.state) for b in await self._manager.listing()]
        if not found:
            return messages.no_list((await self._status()).text)
        return messages.listing(found, self._clock(), self._manager.config.zone)


class Room:
    """The family's room, as a way to tell people."""

    def __init__(self, session: Session) -> None:
        self._session = session

    async def send(self, notice: Notice) -> None:
        """See ``Channel``."""
        await self._session.say(markup.headed(notice.text), notice.key)


async def run(manager: Manager, teller: Teller, clock: Clock) -> None:
    """Answer for ever; somebody has signed the bot in, and a room is set. Raises ChatError."""
    config = manager.config
    safe = Safe(config.state_dir)
    account, room = safe.account(), config.backup_notification_room
    assert account and room
    bot = Bot(manager, clock)
    session = Session(
        safe, account, room, frozenset(config.chat.admins), bot.answer, lambda: teller.room_is_open(Room(session))
    )
    await session.run()

"""Answers the family: one word in the room, and how things stand comes back."""

from __future__ import annotations

import html
import logging

from memu_backup import messages, words
from memu_backup.chat.account import Safe
from memu_backup.chat.grammar import Command, Slip, parse
from memu_backup.chat.session import Message, Reply, Session
from memu_backup.clock import Clock
from memu_backup.errors import MemuError
from memu_backup.manager import Manager

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
                return _reply(await self._said(word))
            case Slip(meant):
                return _reply(messages.slip(meant))
        return None

    async def _said(self, word: str) -> str:
        try:
            match word:
                case "status":
                    return await self._status()
                case "list":
                    return await self._list()
            return messages.help()
        except MemuError as error:
            return str(error)

    async def _status(self) -> str:
        now, zone = self._clock(), self._manager.config.zone
        told = {job: words.status_message(report, now, zone) for job, report in (await self._manager.reports()).items()}
        return "\n\n".join(told.values() if len(told) == 1 else (f"{job}:\n{text}" for job, text in told.items()))

    async def _list(self) -> str:
        found = [(b.backup.created_at, b.backup.size_bytes, b.state) for b in await self._manager.listing()]
        if not found:
            return messages.no_list(await self._status())
        return messages.listing(found, self._clock(), self._manager.config.zone)


def _reply(text: str) -> Reply:
    """The first line in bold, so that a long answer has a head."""
    head, *rest = (html.escape(line, quote=False) for line in text.split("\n"))
    return Reply(text, "<br>".join([f"<b>{head}</b>", *rest]) if rest else "")


async def run(manager: Manager, clock: Clock) -> None:
    """Answer for ever; nothing where nobody has signed the bot in, or no room is set. Raises ChatError."""
    config = manager.config
    safe = Safe(config.state_dir)
    account, room = safe.account(), config.backup_notification_room
    if account is None or room is None:
        return
    session = Session(safe, account, room, frozenset(config.chat.admins), Bot(manager, clock).answer)
    await session.run()

"""Tries the chat where no service runs: the bot comes, says that this is a test, and goes. It listens to nobody."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

from memu_backup.chat.account import Safe
from memu_backup.chat.bot import Room
from memu_backup.chat.session import Session
from memu_backup.config import Config
from memu_backup.errors import ChatError, UsageError

_PATIENCE_S = 60.0


async def trial(config: Config) -> Mapping[str, Any]:
    """See ``teller.Room.test``; a room is set, and the caller sees to it that no service uses the bot's keys meanwhile.

    Raises ChatError, UsageError.
    """
    safe, room = Safe(config.state_dir), config.backup_notification_room
    account = safe.account()
    assert room
    if account is None:
        raise UsageError("The bot is not signed in yet. Type: memu-backup chat login")
    opened = asyncio.Event()
    session = Session(safe, account, room, frozenset(config.chat.admins), None, opened.set)
    running = asyncio.ensure_future(session.run())
    opening = asyncio.ensure_future(opened.wait())
    try:
        await asyncio.wait({running, opening}, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        if not opening.done():
            raise ChatError(
                f"{account.user_id} is not in the room, or its homeserver does not answer. Let one of the admins "
                f"invite it to {room}, then try again."
            )
        return await Room(session, config.host).test()
    finally:
        for task in (running, opening):
            task.cancel()
        await asyncio.wait({running, opening})

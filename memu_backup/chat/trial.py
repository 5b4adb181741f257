"""Tries the chat where no service runs: the bot comes, says that this is a test, and goes."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Mapping
from typing import Any

from memu_backup.chat import bot
from memu_backup.chat.account import Safe
from memu_backup.clock import now
from memu_backup.errors import ChatError, UsageError
from memu_backup.manager import Manager
from memu_backup.teller import Room, Teller

_PATIENCE_S = 60.0


class _Waiting(Teller):
    """Tells nothing, but when the room is open."""

    def __init__(self, manager: Manager) -> None:
        super().__init__(manager, now, None, expects_room=True)
        self.opened = asyncio.Event()

    def room_is_open(self, room: Room) -> None:
        super().room_is_open(room)
        self.opened.set()


async def trial(manager: Manager) -> Mapping[str, Any]:
    """See ``Room.test``; the caller sees to it that no service uses the bot's keys meanwhile. Raises ChatError."""
    account = Safe(manager.config.state_dir).account()
    if account is None:
        raise UsageError("The bot is not signed in yet. Type: memu-backup chat login")
    teller = _Waiting(manager)
    running = asyncio.ensure_future(bot.run(manager, teller, _start, now, account))
    opening = asyncio.ensure_future(teller.opened.wait())
    try:
        await asyncio.wait({running, opening}, timeout=_PATIENCE_S, return_when=asyncio.FIRST_COMPLETED)
        if running.done():
            await running
        if not opening.done():
            raise ChatError(
                f"{account.user_id} is not in the room, or its homeserver does not answer. Let one of the admins "
                f"invite it to {manager.config.backup_notification_room}, then try again."
            )
        return await teller.test_room()
    finally:
        for task in (running, opening):
            task.cancel()
        await asyncio.wait({running, opening})


def _start(work: Coroutine[Any, Any, None], name: str) -> asyncio.Task[None]:
    return asyncio.create_task(work, name=name)

"""Anna in the room of ``make demo-chat``, for whoever has no Element: ``say`` something, or ``listen``.

Each is a device of its own, with keys of its own, and signs out at its end: they do not get into each other's way.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

import aiohttp

from tests.human import ENCRYPTED, Heard, Human, signed_in
from tests.synapse import Homeserver

DEMO = Path(".demo-chat").absolute()
_LOGIN = DEMO / "login.json"
_PATIENCE_S = 15.0
_LOOK_S = 1.0
_FOREVER_S = 1e9

_USAGE = """\
python -m tests.chat_client say '!backup status'    says it in the family's room and shows the answer
python -m tests.chat_client listen                  shows what is said there, until Ctrl-C"""


@dataclass(frozen=True)
class Login:
    """How to get into the room of the demo that runs in this folder; is there as long as it runs."""

    homeserver: str
    user: str
    password: str
    room: str
    bot: str

    def keep(self) -> None:
        _LOGIN.write_text(json.dumps(asdict(self)))

    @asynccontextmanager
    async def device(self) -> AsyncIterator[Human]:
        """What was said before it was there is passed over: it has no keys for that."""
        folder = DEMO / "devices" / uuid4().hex
        async with signed_in(Homeserver(self.homeserver), self.user, self.password, folder) as anna:
            anna.pass_over(self.room)
            yield anna


async def say(login: Login, text: str) -> int:
    async with login.device() as anna:
        await anna.say(login.room, text)
        try:
            async with asyncio.timeout(_PATIENCE_S):
                while (heard := await anna.next(login.room, sender=login.bot, timeout_s=_FOREVER_S)).replaces:
                    pass  # of something that was said before
        except TimeoutError:
            print("Nobody answered. What is not meant for the bot it passes over; try: !backup help")
            return 1
    print(_text(heard))
    return 0


async def listen(login: Login) -> int:
    async with login.device() as anna:
        print("Listening; Ctrl-C ends it.", flush=True)
        while _LOGIN.exists():
            try:
                async with asyncio.timeout(_LOOK_S):
                    heard = await anna.next(login.room, timeout_s=_FOREVER_S)
            except TimeoutError:
                continue
            print(shown(heard), flush=True)
    print("The demo has ended.")
    return 0


def shown(heard: Heard) -> str:
    """Who said it, and below each other what."""
    who = heard.sender.removeprefix("@").partition(":")[0]
    text = _text(heard)
    if heard.msgtype == "m.reaction":
        return f"{who} sets {text}"
    changed = " (changes what was said)" if heard.replaces else ""
    return "\n  ".join([f"{who}{changed}:", *text.splitlines()])


def _text(heard: Heard) -> str:
    return "(this device has no key for it)" if heard.msgtype == ENCRYPTED else heard.body


async def main(argv: list[str]) -> int:
    if not (argv == ["listen"] or (argv[:1] == ["say"] and len(argv) == 2)):
        print(_USAGE)
        return 2
    try:
        login = Login(**json.loads(_LOGIN.read_text()))
    except FileNotFoundError:
        print("The demo is not running in this folder. Start it, and wait until the room is open:  make demo-chat")
        return 1
    logging.getLogger("nio").setLevel(logging.CRITICAL)  # it complains of what was said before this device was there
    try:
        return await (listen(login) if argv == ["listen"] else say(login, argv[1]))
    except aiohttp.ClientError:
        print("The homeserver of the demo does not answer; has the demo ended?")
        return 1


if __name__ == "__main__":
    try:
        sys.exit(asyncio.run(main(sys.argv[1:])))
    except KeyboardInterrupt:
        sys.exit(130)

"""Keeps the bot in touch with its homeserver, through restarts, days of absence and errors of either side."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import random
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote, urlencode
from uuid import uuid4

from nio import AsyncClient

from memu_backup.chat import homeserver as homeservers
from memu_backup.chat.account import Account, Safe
from memu_backup.chat.heard import Heard
from memu_backup.chat.hearing import FILTER, Hearing, Message
from memu_backup.chat.homeserver import call
from memu_backup.chat.keys import Keys, passed_over
from memu_backup.errors import ChatAway, ChatError, ChatRefused, LoginEnded

__all__ = ["Answer", "Message", "Reply", "Said", "Session"]

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_MS = 30_000
_FIRST_POLL_S = 120.0
_AT_ONCE_S = 1.0
_TOLD_BACK_S = 60.0
_BREAKS_S = (0.2, 2.0)
_PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0)


@dataclass(frozen=True, slots=True)
class Reply:
    """``html`` is the same in Matrix's HTML, empty where there is nothing to set off. What is asked for is done by
    ``then``, once the reply stands in the room: at most once, also where the bot is killed in between.
    """

    text: str
    html: str = ""
    then: Callable[[Said], Coroutine[Any, Any, None]] | None = None

    def content(self) -> dict[str, Any]:
        plain = {"msgtype": "m.text", "body": self.text}
        return {**plain, "format": "org.matrix.custom.html", "formatted_body": self.html} if self.html else plain


@dataclass(frozen=True, slots=True)
class Said:
    """A message of ours that stands in the room, and may be put anew."""

    event_id: str
    session: Session

    async def anew(self, reply: Reply) -> None:
        """Raises ChatError."""
        new, relation = reply.content(), {"rel_type": "m.replace", "event_id": self.event_id}
        shown = replace(reply, text=f"* {reply.text}", html="").content()
        await self.session.send({**shown, "m.new_content": new, "m.relates_to": relation})

    async def finally_anew(self, reply: Reply) -> None:
        """As ``anew``, also where the homeserver goes away for up to an hour. Raises ChatError where it stays away."""
        await patiently(partial(self.anew, reply), (*_PAUSES_S, *[_PAUSES_S[-1]] * 60))


Answer = Callable[[Message], Awaitable[Reply | None]]


class Session:
    """Listens in ``room`` and lets ``answer`` say what to reply. It takes invitations of those who ``may_invite``.

    ``on_hearing`` is called each time that something can be said in the room, after it could not; ``on_stranger`` with
    who did what that is passed over, such as an invitation of somebody else. Without ``answer`` it only speaks, and
    what is said meanwhile is heard by the next that listens.
    """

    def __init__(
        self,
        safe: Safe,
        account: Account,
        room: str,
        may_invite: frozenset[str],
        answer: Answer | None,
        on_hearing: Callable[[], None] = lambda: None,
        on_stranger: Callable[[str, str], None] = lambda _who, _what: None,
    ) -> None:
        self.room = room
        self._safe = safe
        self._account = account
        self._may_invite = may_invite
        self._answer = answer
        self._on_hearing = on_hearing
        self._on_stranger = on_stranger
        self._heard = Heard(safe.folder / "heard.json")
        self._hearing = Hearing(room, account.user_id)
        self._waiting: asyncio.Queue[Message] = asyncio.Queue()
        self._under_way: set[asyncio.Task[None]] = set()
        self._own: deque[str] = deque(maxlen=50)
        self._told_back = asyncio.Event()
        self._login_ended: LoginEnded | None = None
        self._failures = 0
        self._inside = False
        self._is_heard = False
        self._speaks: tuple[AsyncClient, Keys] | None = None
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled. Raises LoginEnded where the homeserver does not know the login any more."""
        account = self._account
        opened = homeservers.client(
            account.homeserver,
            account.user_id,
            device_id=account.device_id,
            keys=self._safe.kept_keys(account.device_id),
            pickle_key=account.pickle_key,
        )
        async with opened as client:
            client.restore_login(account.user_id, account.device_id, account.token)
            self._safe.tidy(account)
            answering = asyncio.create_task(self._answer_all())
            try:
                await self._follow(client, Keys(client))
            finally:
                self._speaks = None
                for task in (answering, *self._under_way):
                    task.cancel()
                await asyncio.gather(answering, *self._under_way, return_exceptions=True)

    async def _follow(self, client: AsyncClient, keys: Keys) -> None:
        """Poll for ever; each error, mistakes of nio among them, is a pause."""
        first = True
        while True:
            try:
                begun = time.monotonic()
                told = await self._poll(client, first=first)
                await self._after(client, keys, told)
                if not (first or _has_news(told)) and time.monotonic() - begun < _AT_ONCE_S:
                    await asyncio.sleep(_AT_ONCE_S)  # a homeserver that does not wait for news must not be overrun
                first, self._failures = False, 0
                self._note_hearing()
            except LoginEnded:
                raise
            except ChatError as error:
                await self._pause(str(error), error.wait_s if isinstance(error, ChatAway) else 0)
            except Exception as error:
                log.debug("What the chat met:", exc_info=error)
                await self._pause(f"The chat met something unexpected ({type(error).__name__}) and tries again.")

    async def _poll(self, client: AsyncClient, *, first: bool) -> dict[str, Any]:
        """The first time at once and with each room that the bot is in, whether there is something new in it or not."""
        wish = {"filter": json.dumps(FILTER), "timeout": 0 if first else _POLL_MS, "full_state": json.dumps(first)}
        if self._heard.token:
            wish["since"] = self._heard.token
        patience_s = _FIRST_POLL_S if first else _POLL_MS / 1000 + 30
        try:
            return await call(client, "GET", f"/sync?{urlencode(wish)}", patience_s=patience_s)
        except ChatRefused:
            self._heard.token = None  # it may be of another homeserver; what was answered is known by its ids
            raise

    async def _after(self, client: AsyncClient, keys: Keys, told: Mapping[str, Any]) -> None:
        keys.take(told.get("to_device", {}).get("events", []))
        await keys.top_up(told)
        await keys.mend()
        rooms = told.get("rooms", {})
        here = rooms.get("join", {}).get(self.room)
        if here is not None:
            self._inside = True
        elif self.room in rooms.get("leave", {}):
            self._inside = False
            log.warning("The bot is not in the family's room any more. Invite it, and it comes back.")
        await self._join(client, rooms.get("invite", {}))
        self._pass_over_others(rooms.get("join", {}))
        self._speaks = client, keys
        if self._inside:
            await self._take_in(keys, _events(here))
        # Only when all is answered: what is not is heard once more after a crash.
        await self._waiting.join()
        if self._login_ended:
            raise self._login_ended  # what was asked is heard by the next login
        self._heard.came_to(str(told["next_batch"]), keep=self._answer is not None, news=_has_news(told))

    async def _take_in(self, keys: Keys, events: Sequence[Mapping[str, Any]]) -> None:
        own = self._account.user_id
        self._own.extend(str(e["event_id"]) for e in events if e.get("sender") == own)
        self._told_back.set()
        if self._answer is None:
            return
        await keys.know({str(e.get("sender")) for e in events if e.get("type") == "m.room.encrypted"} - {own})
        for message in self._hearing.of(events, keys, encrypted=await keys.are_needed(self.room)):
            if message.event_id not in self._heard:
                self._waiting.put_nowait(message)

    async def _join(self, client: AsyncClient, invited: Mapping[str, Any]) -> None:
        """Accept invitations; one that was taken back meanwhile must not keep the bot from listening."""
        for room, invitation in invited.items():
            inviter = _inviter(invitation, self._account.user_id)
            if room != self.room or inviter not in self._may_invite:
                log.warning("An invitation of %s to the room %s is passed over.", inviter, room)
                self._on_stranger(inviter, "invitation")
                continue
            log.info("The bot joins the room %s.", room)
            try:
                await call(client, "POST", f"/join/{quote(room)}", {})
                self._inside = True
            except ChatRefused as error:
                log.warning("The bot could not join the room %s: %s", room, error)

    def _pass_over_others(self, joined: Mapping[str, Any]) -> None:
        for room in joined.keys() - {self.room}:
            for event in _events(joined[room]):
                if "state_key" not in event and (sender := str(event.get("sender"))) != self._account.user_id:
                    log.info("A message in another room (%s) is not for the bot.", room)
                    self._on_stranger(sender, "message in another room")

    def _note_hearing(self) -> None:
        if self._inside and not self._is_heard:
            self._on_hearing()
        self._is_heard = self._inside

    async def _pause(self, why: str, at_least_s: float = 0) -> None:
        self._is_heard = False
        pause_s = _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)]
        if self._failures == 0:  # once each time, and not with every attempt
            log.warning("%s", why)
        self._failures += 1
        pause_s *= random.uniform(0.8, 1.2)  # noqa: S311  no secret: only not all at once
        await asyncio.sleep(max(pause_s, at_least_s))

    # --- what it says ------------------------------------------------------------------------------------------------

    async def _answer_all(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                await self._answer_one(message)
            except LoginEnded as error:
                self._login_ended = error
            except ChatError as error:
                log.warning("The answer to %s could not be given: %s", message.sender, error)
            except Exception as error:
                log.error("The answer to %s broke (%s).", message.sender, type(error).__name__, exc_info=error)
            finally:
                self._waiting.task_done()

    async def _answer_one(self, message: Message) -> None:
        for pause_s in _BREAKS_S:
            try:
                await self._answer_now(message)
                return
            except ChatError:
                raise
            except Exception as error:  # a disk that stumbled, a mistake in a library: perhaps not again
                log.debug("The answer to %s broke and is tried again.", message.sender, exc_info=error)
                await asyncio.sleep(pause_s)
        await self._answer_now(message)

    async def _answer_now(self, message: Message) -> None:
        assert self._answer
        reply = await self._answer(message)
        said = await patiently(partial(self.say, reply, message.event_id)) if reply else None
        self._heard.add(message.event_id)  # after the reply: better twice than never
        if reply and reply.then and said:
            self._start(reply.then(said))

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """What takes long goes on while others are answered; it ends with the session."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if isinstance(error, ChatError):
            log.warning("How it went could not be said in the room: %s", error)
        elif error:
            log.error("What the chat asked for broke (%s).", type(error).__name__, exc_info=error)

    async def say(self, reply: Reply, key: str) -> Said:
        """Say it now. Raises ChatAway, ChatRefused; at once where the homeserver does not answer anyway.

        What was said before under the same ``key`` is not said again: not even by another process, after a kill.
        """
        return Said(await self.send(reply.content(), key), self)

    async def say_and_wait(self, reply: Reply, key: str) -> frozenset[tuple[str, str]] | None:
        """Say it, and wait until the homeserver tells it back. Who can read it, by user and device; None where that is
        everybody, as the room is not encrypted. Raises ChatError.
        """
        said = await self.say(reply, key)
        try:
            async with asyncio.timeout(_TOLD_BACK_S):
                while said.event_id not in self._own:
                    self._told_back.clear()
                    await self._told_back.wait()
        except TimeoutError as error:
            raise ChatAway(
                "The homeserver took the message and did not give it to the room within a minute."
            ) from error
        return self._speaks[1].readers(self.room) if self._speaks else None

    async def send(self, content: Mapping[str, Any], key: str | None = None) -> str:
        """Send a message as it is; its event id. Else as ``say``."""
        if self._speaks is None:
            raise ChatAway("The homeserver has not answered yet, so the chat has to wait.")
        if not self._inside:
            raise ChatAway("The bot is not in the family's room, so the chat has to wait until it is invited there.")
        async with self._one_at_a_time:
            return await self._send(*self._speaks, content, key)

    async def _send(self, client: AsyncClient, keys: Keys, content: Mapping[str, Any], key: str | None) -> str:
        name = hashlib.sha256(key.encode()).hexdigest()[:32] if key else uuid4().hex
        kind = "m.room.message"
        if await keys.are_needed(self.room):
            kind, content = "m.room.encrypted", await keys.encrypted(self.room, content)
        sent = await call(client, "PUT", f"/rooms/{quote(self.room)}/send/{kind}/memu-{name}", content)
        return str(sent["event_id"])


async def patiently(send: Callable[[], Awaitable[T]], pauses_s: Sequence[float] = _PAUSES_S) -> T:
    """Also where the homeserver goes away just then. Raises ChatError where it stays away for longer than that."""
    for pause_s in pauses_s:
        try:
            return await send()
        except ChatAway as error:
            await asyncio.sleep(max(pause_s, error.wait_s))
    return await send()


def _events(room: Mapping[str, Any] | None) -> Sequence[Mapping[str, Any]]:
    """What was said in a room; a homeserver may leave out what is empty."""
    said: Sequence[Mapping[str, Any]] = (room or {}).get("timeline", {}).get("events", ())
    return said


def _has_news(told: Mapping[str, Any]) -> bool:
    rooms = told.get("rooms", {})
    said = any(_events(room) for room in rooms.get("join", {}).values())
    return bool(said or rooms.get("invite") or rooms.get("leave") or told.get("to_device", {}).get("events"))


def _inviter(invitation: Mapping[str, Any], invited: str) -> str:
    with passed_over("An invitation"):
        for event in invitation["invite_state"]["events"]:
            if (event["type"], event["state_key"]) == ("m.room.member", invited):
                return str(event["sender"])
    return "somebody"

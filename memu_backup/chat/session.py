"""Keeps the bot in touch with its homeserver, through restarts, days of absence and errors of either side."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import random
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar
from urllib.parse import quote
from uuid import uuid4

from nio import (
    AsyncClient,
    Event,
    InviteMemberEvent,
    MatrixInvitedRoom,
    MatrixRoom,
    MegolmEvent,
    ReactionEvent,
    RoomMessageText,
    SyncResponse,
)

from memu_backup.chat import homeserver as homeservers
from memu_backup.chat.account import Account, Safe
from memu_backup.chat.heard import Heard
from memu_backup.chat.homeserver import call, good, translated
from memu_backup.chat.keys import Keys
from memu_backup.errors import ChatAway, ChatError, ChatRefused, LoginEnded

log = logging.getLogger(__name__)

T = TypeVar("T")

_POLL_MS = 30_000
_FIRST_POLL_S = 120.0
_STALE_MS = 5 * 60_000
_PAUSES_S = (1.0, 2.0, 5.0, 15.0, 60.0)


@dataclass(frozen=True, slots=True)
class Message:
    """A text that somebody wrote in the family's room, just now and readable by its members alone; or, with ``under``,
    a sign such as 👍 that they set under the message with that event id.
    """

    event_id: str
    sender: str
    text: str
    under: str | None = None


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
        """As ``anew``, also where the homeserver goes away just then. Raises ChatError where it stays away."""
        await patiently(partial(self.anew, reply))


Answer = Callable[[Message], Awaitable[Reply | None]]


class Session:
    """Listens in ``room`` and lets ``answer`` say what to reply. It takes invitations of those who ``may_invite``.

    ``on_hearing`` is called each time that something can be said in the room, after it could not; ``on_stranger`` with
    who did what that is passed over, such as an invitation of somebody else.
    """

    def __init__(
        self,
        safe: Safe,
        account: Account,
        room: str,
        may_invite: frozenset[str],
        answer: Answer,
        on_hearing: Callable[[], None] = lambda: None,
        on_stranger: Callable[[str, str], None] = lambda _who, _what: None,
    ) -> None:
        self._safe = safe
        self._account = account
        self._room = room
        self._may_invite = may_invite
        self._answer = answer
        self._on_hearing = on_hearing
        self._on_stranger = on_stranger
        self._heard = Heard(safe.folder / "heard.json")
        self._waiting: asyncio.Queue[Message] = asyncio.Queue()
        self._new: list[Message] = []
        self._known: set[str] = set()
        self._invited: set[str] = set()
        self._under_way: set[asyncio.Task[None]] = set()
        self._failures = 0
        self._is_heard = False
        self._client: AsyncClient | None = None
        self._one_at_a_time = asyncio.Lock()

    async def run(self) -> None:
        """Until cancelled. Raises LoginEnded where the homeserver does not know the login any more."""
        account = self._account
        opened = homeservers.client(
            account.homeserver,
            account.user_id,
            device_id=account.device_id,
            keys=self._safe.keys(account.device_id),
            pickle_key=account.pickle_key,
        )
        async with opened as client:
            client.restore_login(account.user_id, account.device_id, account.token)
            client.add_event_callback(self._on_text, RoomMessageText)
            client.add_event_callback(self._on_sign, ReactionEvent)
            client.add_event_callback(self._on_unreadable, MegolmEvent)
            client.add_event_callback(self._on_invite, InviteMemberEvent)
            answering = asyncio.create_task(self._answer_all())
            try:
                await self._follow(client)
            finally:
                self._client = None
                for task in (answering, *self._under_way):
                    task.cancel()
                await asyncio.gather(answering, *self._under_way, return_exceptions=True)

    async def _follow(self, client: AsyncClient) -> None:
        """Poll for ever. nio returns most errors and raises some, mistakes of its own among them; each is a pause."""
        whole = True
        while True:
            try:
                response = await self._poll(client, whole=whole)
                await self._after(client, response)
                whole, self._failures = False, 0
                self._note_hearing(client)
            except LoginEnded:
                raise
            except ChatError as error:
                await self._pause(str(error), error.wait_s if isinstance(error, ChatAway) else 0)
            except Exception as error:
                log.debug("What the chat met:", exc_info=error)
                await self._pause(f"The chat met something unexpected ({type(error).__name__}) and tries again.")

    async def _poll(self, client: AsyncClient, *, whole: bool) -> SyncResponse:
        """The first time with all that is known of the room: without it nio knows no room after a restart."""
        with translated(client.homeserver):
            async with asyncio.timeout(_FIRST_POLL_S if whole else _POLL_MS / 1000 + 30):
                response = await client.sync(0 if whole else _POLL_MS, since=self._heard.token, full_state=whole)
        good(client, response)
        return response

    async def _after(self, client: AsyncClient, response: SyncResponse) -> None:
        with translated(client.homeserver):
            if client.should_upload_keys:
                good(client, await client.keys_upload())
            if client.should_query_keys:
                good(client, await client.keys_query())
            if client.should_claim_keys:
                good(client, await client.keys_claim(client.get_users_for_key_claiming()))
        await self._join(client)
        self._client = client
        # Only now: a phone that asks right after it was added could not read what is said before its keys are known.
        for message in self._new:
            self._waiting.put_nowait(message)
        self._new.clear()
        # And only when all is answered: what is not is heard once more after a crash.
        await self._waiting.join()
        self._heard.came_to(response.next_batch)

    async def _join(self, client: AsyncClient) -> None:
        """Accept invitations; one that was taken back meanwhile must not keep the bot from listening."""
        while self._invited:
            room = self._invited.pop()
            log.info("The bot joins the room %s.", room)
            try:
                with translated(client.homeserver):
                    good(client, await client.join(room))
            except ChatRefused as error:
                log.warning("The bot could not join the room %s: %s", room, error)

    def _note_hearing(self, client: AsyncClient) -> None:
        if not self._is_heard and self._room in client.rooms:
            self._is_heard = True
            self._on_hearing()

    async def _pause(self, why: str, at_least_s: float = 0) -> None:
        self._is_heard = False
        pause_s = max(at_least_s, _PAUSES_S[min(self._failures, len(_PAUSES_S) - 1)])
        if self._failures == 0:  # once each time, and not with every attempt
            log.warning("%s", why)
        self._failures += 1
        await asyncio.sleep(pause_s * random.uniform(0.8, 1.2))  # noqa: S311  no secret: only not all at once

    # --- what it hears: only noted here, as nio waits for these before it goes on ------------------------------------

    def _on_text(self, room: MatrixRoom, event: RoomMessageText) -> None:
        if not self._is_new(room, event):
            return
        if room.encrypted and not event.decrypted:
            log.warning("A message of %s came without encryption and is passed over.", event.sender)
        elif not _is_edit(event):
            self._note(Message(event.event_id, event.sender, event.body))

    def _on_sign(self, room: MatrixRoom, event: ReactionEvent) -> None:
        """No client encrypts these; what they say yes to was asked for in an encrypted message."""
        if self._is_new(room, event):
            self._note(Message(event.event_id, event.sender, event.key, under=event.reacts_to))

    def _is_new(self, room: MatrixRoom, event: Event) -> bool:
        if event.sender == self._account.user_id or event.event_id in self._heard or event.event_id in self._known:
            return False
        if room.room_id != self._room:
            log.info("A message in another room (%s) is not for the bot.", room.room_id)
            self._on_stranger(event.sender, "message in another room")
            return False
        if event.source.get("unsigned", {}).get("age", 0) > _STALE_MS:
            log.info("A message of %s is too old to be answered.", event.sender)
            return False
        return True

    def _note(self, message: Message) -> None:
        self._known.add(message.event_id)
        self._new.append(message)

    def _on_unreadable(self, room: MatrixRoom, event: MegolmEvent) -> None:
        if room.room_id == self._room:
            log.warning("A message of %s cannot be read: its key did not come.", event.sender)

    def _on_invite(self, room: MatrixInvitedRoom, event: InviteMemberEvent) -> None:
        if event.state_key != self._account.user_id or event.membership != "invite":
            return
        if event.sender in self._may_invite and room.room_id == self._room:
            self._invited.add(room.room_id)
        else:
            log.warning("An invitation of %s to the room %s is passed over.", event.sender, room.room_id)
            self._on_stranger(event.sender, "invitation")

    # --- what it says ------------------------------------------------------------------------------------------------

    async def _answer_all(self) -> None:
        while True:
            message = await self._waiting.get()
            try:
                reply = await self._answer(message)
                said = await patiently(partial(self.say, reply, message.event_id)) if reply else None
                self._heard.add(message.event_id)  # after the reply: better twice than never
                if reply and reply.then and said:
                    self._start(reply.then(said))
            except ChatError as error:
                log.warning("The answer to %s could not be given: %s", message.sender, error)
            except Exception as error:
                log.error("The answer to %s broke (%s).", message.sender, type(error).__name__, exc_info=error)
            finally:
                self._known.discard(message.event_id)
                self._waiting.task_done()

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        """What takes long goes on while others are answered; it ends with the session."""
        task = asyncio.create_task(work)
        self._under_way.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.error("What the chat asked for broke (%s).", type(error).__name__, exc_info=error)

    async def say(self, reply: Reply, key: str) -> Said:
        """Say it now. Raises ChatAway, ChatRefused; at once where the homeserver does not answer anyway.

        What was said before under the same ``key`` is not said again: not even by another process, after a kill.
        """
        return Said(await self.send(reply.content(), key), self)

    async def send(self, content: Mapping[str, Any], key: str | None = None) -> str:
        """Send a message as it is; its event id. Else as ``say``."""
        client = self._client
        if client is None:
            raise ChatAway("The homeserver has not answered yet, so the chat has to wait.")
        async with self._one_at_a_time:
            return await self._send(client, content, key)

    async def _send(self, client: AsyncClient, content: Mapping[str, Any], key: str | None) -> str:
        if self._room not in client.rooms:
            raise ChatAway("The homeserver has not told of the family's room yet, so the answer has to wait.")
        name = hashlib.sha256(key.encode()).hexdigest()[:32] if key else uuid4().hex
        kind, keys = "m.room.message", Keys(client)
        if await keys.are_needed(self._room):
            kind, content = "m.room.encrypted", await keys.encrypted(self._room, content)
        sent = await call(client, "PUT", f"/rooms/{quote(self._room)}/send/{kind}/memu-{name}", content)
        return str(sent["event_id"])


async def patiently(send: Callable[[], Awaitable[T]]) -> T:
    """Also where the homeserver goes away just then. Raises ChatError where it stays away for minutes."""
    for pause_s in _PAUSES_S:
        try:
            return await send()
        except ChatAway as error:
            await asyncio.sleep(max(pause_s, error.wait_s))
    return await send()


def _is_edit(event: RoomMessageText) -> bool:
    """Whatever its sender put there: what breaks here would come again with each poll."""
    relation = event.source["content"].get("m.relates_to")
    return isinstance(relation, dict) and relation.get("rel_type") == "m.replace"

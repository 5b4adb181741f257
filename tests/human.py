"""A person of the household with a phone: an encrypted client that is not the bot's, and keeps its own keys."""

from __future__ import annotations

import asyncio
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, TypeVar
from urllib.parse import quote
from uuid import uuid4

import aiohttp
from nio import AsyncClient, AsyncClientConfig, ErrorResponse, SyncResponse

from tests.synapse import Homeserver

ENCRYPTED = "m.room.encrypted"
TOLD = ("m.room.message", "m.reaction", ENCRYPTED)
FILTER = {"room": {"timeline": {"limit": 100}}}
POLL_MS = 30_000
WITHOUT_ANSWER_S = 60.0

T = TypeVar("T")


@dataclass(frozen=True)
class Heard:
    """A message or a reaction as it came in.

    ``decrypted`` is False for what was sent in plaintext, which a reaction always is, and for what this device has no
    key for: that has the ``msgtype`` m.room.encrypted and no ``body``. A reaction's ``msgtype`` is m.reaction, its
    ``body`` the key. Of an edit, body, formatted_body and msgtype are the new ones.
    """

    event_id: str
    sender: str
    body: str
    formatted_body: str
    msgtype: str
    decrypted: bool
    relates_to: dict[str, Any] = field(default_factory=dict)
    content: dict[str, Any] = field(default_factory=dict)

    @property
    def replaces(self) -> str | None:
        """The event that this one edits."""
        return self.relates_to.get("event_id") if self.relates_to.get("rel_type") == "m.replace" else None


class Human:
    """One device of one account, which listens from ``login`` to ``close``.

    It trusts every device, as people do. A homeserver that is away is waited for, up to WITHOUT_ANSWER_S; whatever
    else goes wrong while it listens is raised by the next call, at the latest by ``close``.
    """

    def __init__(self, homeserver: Homeserver, client: AsyncClient, password: str) -> None:
        """Use ``Human.login``."""
        self._homeserver = homeserver
        self._client = client
        self._heard: dict[str, list[Heard]] = defaultdict(list)
        self._moved = asyncio.Event()
        self._sending = asyncio.Lock()
        self._listening: asyncio.Task[None] | None = None
        self.password = password

    @classmethod
    async def login(cls, homeserver: Homeserver, user_id: str, password: str, folder: Path) -> Self:
        """A new device, whose keys are in ``folder`` and with the homeserver. Each needs a folder of its own."""
        folder.mkdir(mode=0o700, parents=True)
        config = AsyncClientConfig(max_limit_exceeded=10, max_timeouts=0, pickle_key="a human's", store_name="keys.db")
        client = AsyncClient(homeserver.url, user_id, store_path=str(folder), config=config)
        human = cls(homeserver, client, password)
        try:
            await _good(client.login(password, device_name="phone"))
            await human._sync(0)
        except BaseException:
            await human.close()
            raise
        human._listening = asyncio.create_task(human._listen())
        human._listening.add_done_callback(lambda _: human._moved.set())
        return human

    @property
    def user_id(self) -> str:
        return str(self._client.user_id)

    @property
    def device_id(self) -> str:
        return str(self._client.device_id)

    @property
    def token(self) -> str:
        return str(self._client.access_token)

    async def close(self) -> None:
        """Raises what went wrong while it listened."""
        try:
            if self._listening is not None:
                self._listening.cancel()
                await asyncio.wait([self._listening])
                if not self._listening.cancelled():
                    self._listening.result()
        finally:
            await self._client.close()
            if self._client.store is not None:
                self._client.store.database.close()

    async def create_room(self, *, invite: Sequence[str] = (), encrypted: bool = True, name: str = "Home") -> str:
        algorithm = {"type": "m.room.encryption", "state_key": "", "content": {"algorithm": "m.megolm.v1.aes-sha2"}}
        made = await _good(
            self._client.room_create(name=name, invite=invite, initial_state=[algorithm] if encrypted else [])
        )
        room_id = str(made.room_id)
        # A sync may come in the middle of making it, and tell of a room that is not encrypted yet.
        await self._until(lambda: self._in(room_id, encrypted), 10, "does not see the room it made")
        return room_id

    def rooms(self, name: str) -> list[str]:
        """Those of this name that it is in."""
        return [room_id for room_id, room in self._client.rooms.items() if room.name == name]

    async def invite(self, room_id: str, user_id: str) -> None:
        await _good(self._client.room_invite(room_id, user_id))

    async def join(self, room_id: str) -> None:
        await _good(self._client.join(room_id))
        await self._until(lambda: self._in(room_id), 10, "does not see the room it joined")

    async def say(self, room_id: str, text: str, **more_content: Any) -> str:
        """Encrypted where the room is, for all devices that are in it now. Returns the event id, as all these do."""
        return await self._send(room_id, "m.room.message", {"msgtype": "m.text", "body": text} | more_content)

    async def react(self, room_id: str, event_id: str, key: str) -> str:
        """In plaintext, as in every client."""
        relation = {"rel_type": "m.annotation", "event_id": event_id, "key": key}
        return await self._send(room_id, "m.reaction", {"m.relates_to": relation})

    async def edit(self, room_id: str, event_id: str, text: str) -> str:
        new = {"msgtype": "m.text", "body": text}
        relation = {"rel_type": "m.replace", "event_id": event_id}
        return await self.say(room_id, f"* {text}", **{"m.new_content": new, "m.relates_to": relation})

    async def say_plain(self, room_id: str, text: str) -> str:
        """In plaintext, in an encrypted room too."""
        path = f"/_matrix/client/v3/rooms/{quote(room_id)}/send/m.room.message/{uuid4().hex}"
        content = {"msgtype": "m.text", "body": text}
        return str((await self._homeserver.ask("PUT", path, content, token=self.token))["event_id"])

    async def next(self, room_id: str, *, sender: str | None = None, timeout_s: float = 10) -> Heard:
        """What ``sender`` said next in the room, or anybody, each once, in order; what was said before it was asked for
        too.
        """
        await self._until(lambda: bool(self._said(room_id, sender)), timeout_s, f"heard nothing from {sender or 'all'}")
        first = self._said(room_id, sender)[0]
        self._heard[room_id].remove(first)
        return first

    def pass_over(self, room_id: str) -> None:
        """What was said there up to now is not given by ``next``: much of it a new device cannot read."""
        self._heard[room_id].clear()

    async def silent(self, room_id: str, *, sender: str, for_s: float) -> None:
        """Nothing that ``next`` would give comes from ``sender``."""
        until = time.monotonic() + for_s
        while (left := until - time.monotonic()) > 0 and not self._said(room_id, sender):
            await self._move(left)
        assert not self._said(room_id, sender), f"{sender} was not silent: {self._said(room_id, sender)}"

    async def device_trust(self, user_id: str) -> dict[str, Any]:
        """The raw answer about someone's devices, cross-signing keys and signatures, as this account is given it."""
        wish: dict[str, Any] = {"device_keys": {user_id: []}}
        answer = await self._homeserver.ask("POST", "/_matrix/client/v3/keys/query", wish, token=self.token)
        return dict(answer)

    def _said(self, room_id: str, sender: str | None) -> list[Heard]:
        return [heard for heard in self._heard[room_id] if sender in (None, heard.sender)]

    def _in(self, room_id: str, encrypted: bool = False) -> bool:
        room = self._client.rooms.get(room_id)
        return room is not None and room.encrypted >= encrypted

    async def _send(self, room_id: str, kind: str, content: dict[str, Any]) -> str:
        self._raise_what_went_wrong()
        async with self._sending:
            if self._client.rooms[room_id].encrypted:
                await self._look_round(room_id)
            sent = await _good(self._client.room_send(room_id, kind, content, ignore_unverified_devices=True))
            return str(sent.event_id)

    async def _look_round(self, room_id: str) -> None:
        """Who is in the room now and with which devices, whatever the last sync told: they get the key.

        nio takes a new key by itself only where a sync tells it of a member, or a query of a new device.
        """
        before = set(self._client.rooms[room_id].users)
        await _good(self._client.joined_members(room_id))
        users = set(self._client.rooms[room_id].users)
        if users != before:
            self._client.invalidate_outbound_session(room_id)
        self._client.olm.add_changed_users(users)
        await _good(self._client.keys_query())

    async def _listen(self) -> None:
        answered = time.monotonic()
        while True:
            try:
                await self._sync(POLL_MS)
                answered = time.monotonic()
            except (aiohttp.ClientConnectionError, TimeoutError):
                if time.monotonic() > answered + POLL_MS / 1000 + WITHOUT_ANSWER_S:
                    raise
                await asyncio.sleep(0.05)

    async def _sync(self, timeout_ms: int) -> None:
        client = self._client
        known = set(client.rooms)
        answer: SyncResponse = await _good(client.sync(timeout=timeout_ms, sync_filter=FILTER))
        for room_id, room in answer.rooms.join.items():
            assert not (room.timeline.limited and room_id in known), f"{self.user_id} was told of {room_id} with a gap"
            for event in room.timeline.events:
                self._hear(room_id, event.source, getattr(event, "decrypted", False))
        if client.should_upload_keys:
            await _good(client.keys_upload())
        if client.should_query_keys:
            await _good(client.keys_query())
        if client.should_claim_keys:
            await _good(client.keys_claim(client.get_users_for_key_claiming()))
        for sent in await client.send_to_device_messages():
            _check(sent)
        self._moved.set()

    def _hear(self, room_id: str, source: dict[str, Any], decrypted: bool) -> None:
        content = source.get("content", {})
        if source["type"] not in TOLD or not content:  # an empty one was redacted
            return
        relation = content.get("m.relates_to", {})
        new = content.get("m.new_content", content)
        kind = source["type"] if source["type"] != "m.room.message" else new.get("msgtype", "")
        self._heard[room_id].append(
            Heard(
                event_id=source["event_id"],
                sender=source["sender"],
                body=relation.get("key", "") if kind == "m.reaction" else new.get("body", ""),
                formatted_body=new.get("formatted_body", ""),
                msgtype=kind,
                decrypted=decrypted,
                relates_to=relation,
                content=content,
            )
        )

    async def _until(self, condition: Callable[[], bool], timeout_s: float, else_it: str) -> None:
        until = time.monotonic() + timeout_s
        while not condition():
            left = until - time.monotonic()
            others = [heard for room in self._heard.values() for heard in room if heard.sender != self.user_id]
            assert left > 0, f"{self.user_id} {else_it} within {timeout_s} s; not asked for yet: {others}"
            await self._move(left)

    async def _move(self, timeout_s: float) -> None:
        """Until the next sync is done, or the time is over."""
        self._raise_what_went_wrong()
        self._moved.clear()
        try:
            async with asyncio.timeout(timeout_s):
                await self._moved.wait()
        except TimeoutError:
            pass
        self._raise_what_went_wrong()

    def _raise_what_went_wrong(self) -> None:
        if self._listening is not None and self._listening.done():
            self._listening.result()


@asynccontextmanager
async def signed_in(homeserver: Homeserver, user_id: str, password: str, folder: Path) -> AsyncIterator[Human]:
    """A device that signs out at the end, so that nobody goes on sending keys to it. See ``Human.login``."""
    human = await Human.login(homeserver, user_id, password, folder)
    try:
        yield human
    finally:
        try:
            await human.close()
        finally:
            with suppress(aiohttp.ClientError, TimeoutError):  # the homeserver may be gone
                await homeserver.ask("POST", "/_matrix/client/v3/logout", {}, token=human.token)


async def _good(request: Any) -> Any:
    """nio returns errors as answers."""
    return _check(await request)


def _check(answer: T) -> T:
    assert not isinstance(answer, ErrorResponse), str(answer)
    return answer

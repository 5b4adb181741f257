"""The bot's part in the room's encryption: it takes keys, gives its own to who is there now, and has enough to claim.

nio brings the cryptography and the store. Its way from a sync to a message is not taken: there one event of an odd
shape loses all that came with it, a key counts as given where giving it failed, and no keys are made where none are
left. Here everything that others send is taken by itself.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import quote
from uuid import uuid4

from nio import (
    AsyncClient,
    Event,
    KeysClaimResponse,
    KeysQueryResponse,
    MegolmEvent,
    OlmEvent,
    RoomGetStateEventResponse,
    ToDeviceEvent,
)
from peewee import PeeweeException

from memu_backup.chat.homeserver import call, good, translated
from memu_backup.errors import ChatAway, ChatRefused, LoginEnded

log = logging.getLogger(__name__)

_KIND = "signed_curve25519"


class Keys:
    """Those of the device that ``client`` is signed in as."""

    def __init__(self, client: AsyncClient) -> None:
        self._client = client
        self._olm = client.olm
        self._own_device: dict[str, Any] = {}
        nios = self._olm._olm_encrypt
        self._olm._olm_encrypt = lambda session, *rest: nios(_Vouching(session, self._own_device), *rest)

    # --- what others send --------------------------------------------------------------------------------------------

    def take(self, sent: Iterable[Any]) -> None:
        """The keys among what was sent to this device; of the rest, as of verifications, the bot has no use."""
        for one in sent:
            with passed_over("A key"):
                event = ToDeviceEvent.parse_event(one)
                if isinstance(event, OlmEvent):
                    self._olm.decrypt_event(event)

    def read(self, room: str, event: MegolmEvent) -> Event | None:
        """What it says, None where its key is not here, or is not its sender's: the homeserver could set any name on a
        message, but not have it encrypted with somebody else's key.
        """
        found: Event | None = self._olm.decrypt_event(event, room)
        if found is None:
            return None
        theirs = {device.curve25519 for device in self._olm.device_store.active_user_devices(event.sender)}
        if event.sender_key not in theirs:
            log.warning("A message in the name of %s came from no device of theirs and is passed over.", event.sender)
            return None
        return found

    async def know(self, who: set[str]) -> None:
        """Learn which devices they have, before something of theirs is read. Raises ChatError."""
        if who:
            await self._query(who)

    async def mend(self) -> None:
        """Begin anew with devices whose keys got lost here, as where the bot's state came from an older backup.

        Raises ChatError.
        """
        await self._claim([(device.user_id, device.id) for device in self._olm.wedged_devices])
        self._olm.wedged_devices.clear()  # who could not be reached is found again with what they send next
        with translated(self._client.homeserver):
            await self._client.send_to_device_messages()

    # --- what others claim -------------------------------------------------------------------------------------------

    async def top_up(self, told: Mapping[str, Any]) -> None:
        """As a sync has ``told`` how many keys are left for those who write to the bot first. Raises ChatError.

        The fallback key is for when none is: new devices in a row, while the bot is away, have it to share.
        https://spec.matrix.org/v1.11/client-server-api/#one-time-and-fallback-keys
        """
        account = self._olm.account
        vodozemac = account._account
        left = told.get("device_one_time_keys_count", {_KIND: account.max_one_time_keys}).get(_KIND, 0)
        missing = account.max_one_time_keys - left - len(vodozemac.one_time_keys)
        if missing > 0:
            vodozemac.generate_one_time_keys(missing)
        if _KIND not in told.get("device_unused_fallback_key_types", [_KIND]) and not vodozemac.fallback_key:
            vodozemac.generate_fallback_key()
        one_time, fallback = vodozemac.one_time_keys, vodozemac.fallback_key
        if not one_time and not fallback:
            return
        self._olm.save_account()  # first: what is claimed of a key that was lost in a kill could never be read
        new = {
            "one_time_keys": {
                f"{_KIND}:{name}": self._signed({"key": key.to_base64()}) for name, key in one_time.items()
            },
            "fallback_keys": {
                f"{_KIND}:{name}": self._signed({"key": key.to_base64(), "fallback": True})
                for name, key in fallback.items()
            },
        }
        try:
            await call(self._client, "POST", "/keys/upload", new)
        except LoginEnded:
            raise
        except ChatRefused as error:
            # Of these it has others by the same names, as after the bot's state came from an older backup.
            log.info("Keys of the bot were not taken, it makes others: %s", error)
        account.mark_keys_as_published()
        self._olm.save_account()

    def _signed(self, key: dict[str, Any]) -> dict[str, Any]:
        return {**key, "signatures": {self._olm.user_id: {f"ed25519:{self._olm.device_id}": self._olm.sign_json(key)}}}

    # --- what the bot says -------------------------------------------------------------------------------------------

    async def are_needed(self, room: str) -> bool:
        """Whether it is encrypted; where it once was it stays so, whatever is said of it later. Raises ChatError."""
        if room not in self._client.encrypted_rooms:
            with translated(self._client.homeserver):
                state = await self._client.room_get_state_event(room, "m.room.encryption")
            if isinstance(state, RoomGetStateEventResponse):
                self._client.encrypted_rooms.add(room)
                self._client.store.save_encrypted_rooms({room})
            elif state.status_code != "M_NOT_FOUND":
                good(self._client, state)
        return room in self._client.encrypted_rooms

    async def encrypted(self, room: str, content: Mapping[str, Any]) -> dict[str, Any]:
        """A message as those can read it who are in the room now, and nobody who left it. Raises ChatError."""
        members = await self._members(room)
        there = {(who, device.id) for who in members for device in self._olm.device_store.active_user_devices(who)}
        there = {(who, device) for who, device in there if device != self._olm.device_id}
        session = self._olm.outbound_group_sessions.get(room)
        if self._olm.should_share_group_session(room) or session.users_shared_with != there:
            await self._share_new_key(room, members)
        sealed = dict(self._olm.group_encrypt(room, {"content": dict(content), "type": "m.room.message"}))
        if "m.relates_to" in content:
            sealed["m.relates_to"] = content["m.relates_to"]  # the homeserver has to see it
        return sealed

    def readers(self, room: str) -> frozenset[tuple[str, str]] | None:
        """Who was given the key of what was said last, by user and device; None where there is none."""
        session = self._olm.outbound_group_sessions.get(room)
        return frozenset(session.users_shared_with) if session else None

    async def _members(self, room: str) -> list[str]:
        """Asked for each message, and which devices they have: what syncs tell of it comes late, or in odd shapes."""
        answer = await call(self._client, "GET", f"/rooms/{quote(room)}/joined_members")
        return await self._query(answer.get("joined", {}))

    async def _share_new_key(self, room: str, members: list[str]) -> None:
        self._olm.outbound_group_sessions.pop(room, None)
        missing = self._olm.get_missing_sessions(members)
        await self._claim([(who, device) for who, devices in missing.items() for device in devices])
        given = set()
        try:
            for some, messages in self._olm.share_group_session_parallel(room, members, ignore_unverified_devices=True):
                await call(self._client, "PUT", f"/sendToDevice/m.room.encrypted/{uuid4().hex}", messages)
                given |= some
        except BaseException:
            self._olm.outbound_group_sessions.pop(room, None)  # some may not have it: nothing is said with it
            raise
        others = {who for who in members if who != self._olm.user_id}
        if others and not given:
            self._olm.outbound_group_sessions.pop(room, None)
            raise ChatAway(
                "Of those in the room nobody could be given the key, so nobody could read what is said there."
            )
        session = self._olm.outbound_group_sessions[room]
        session.users_shared_with, session.shared = given, True

    async def _query(self, users: Iterable[str]) -> list[str]:
        """Learn the devices of ``users``; those of them whose devices make sense."""
        answer = await call(self._client, "POST", "/keys/query", {"device_keys": {who: [] for who in users}})
        found = answer.get("device_keys", {})
        if own := found.get(self._olm.user_id, {}).get(self._olm.device_id):
            self._own_device = {name: value for name, value in own.items() if name != "unsigned"}
        clear = []
        for who in users:
            with passed_over(f"The devices of {who}"):
                self._olm.handle_response(KeysQueryResponse({who: found[who]} if who in found else {}, {}))
                clear.append(who)
        return clear

    async def _claim(self, devices: list[tuple[str, str]]) -> None:
        """Begin to talk with ``devices``; one that has no key to claim stays unreached."""
        if not devices:
            return
        wish: dict[str, dict[str, str]] = {}
        for who, device in devices:
            wish.setdefault(who, {})[device] = _KIND
        answer = await call(self._client, "POST", "/keys/claim", {"one_time_keys": wish})
        for who, found in answer.get("one_time_keys", {}).items():
            for device, key in found.items():
                with passed_over(f"A key of {who}"):
                    self._olm.handle_response(KeysClaimResponse({who: {device: key}}, {}))


class _Vouching:
    """A session with a device of somebody, to whom it tells the bot's own with all signatures, as nio does not.

    By that a phone that was away knows whose the key was, also where the bot has another device since, and shows no red
    shield. https://spec.matrix.org/v1.15/client-server-api/#molmv1curve25519-aes-sha2
    """

    def __init__(self, session: Any, own_device: Mapping[str, Any]) -> None:
        self._session = session
        self._told = {"sender_device_keys": own_device} if own_device else {}

    def encrypt(self, text: str) -> Any:
        return self._session.encrypt(json.dumps({**json.loads(text), **self._told}))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._session, name)


@contextmanager
def passed_over(what: str) -> Iterator[None]:
    """Around what others send: whatever its shape, the next is not kept waiting by it."""
    try:
        yield
    except (OSError, PeeweeException) as error:  # of our own disk: it says nothing about what was sent
        raise ChatAway(
            f"The bot's keys cannot be read or written ({type(error).__name__}), so the chat has to wait. Is the disk "
            "with its state full?"
        ) from error
    except Exception as error:
        log.warning("%s made no sense to the bot (%s); it goes on without.", what, type(error).__name__)
        log.debug("What made no sense:", exc_info=error)

"""Who may read what the bot says, and who can reach it, in the long run: against a real Synapse and real phones."""

from __future__ import annotations

import asyncio
import json
import shutil
import sqlite3
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing, suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from memu_backup.chat.account import Account, Safe
from memu_backup.chat.identity import vouches
from memu_backup.chat.session import Message, Reply, Said, Session
from memu_backup.errors import ChatAway
from tests.chat.conftest import Person
from tests.chat.family import PASSWORD, Family, until
from tests.human import Heard, Human
from tests.synapse import Synapse


async def repeat(message: Message) -> Reply:
    return Reply(f"heard {message.text}")


def login(family: Family) -> Account:
    account = Safe(family.home.folder / "state").account()
    assert account
    return account


async def claimed(family: Family, synapse: Synapse, times: int) -> int:
    """As ``times`` new devices that begin to talk with the bot; how many of them were given a key."""
    path, wish = "/_matrix/client/v3/keys/claim", {family.bot: {login(family).device_id: "signed_curve25519"}}
    given = 0
    for _ in range(times):
        given += bool(
            (await synapse.ask("POST", path, {"one_time_keys": wish}, token=family.anna.token))["one_time_keys"]
        )
    return given


async def left(family: Family, synapse: Synapse) -> int:
    """How many one-time keys of the bot can still be claimed."""
    told = await synapse.ask("POST", "/_matrix/client/v3/keys/upload", {}, token=login(family).token)
    return int(told["one_time_key_counts"]["signed_curve25519"])


async def full(family: Family, synapse: Synapse) -> None:
    async def is_full() -> bool:
        return await left(family, synapse) == 50

    await until(is_full)


async def readable(human: Human, family: Family, said: Said) -> bool:
    return (await same(human, family.room, family.bot, said.event_id)).decrypted


async def same(human: Human, room: str, sender: str, event_id: str) -> Heard:
    while (heard := await human.next(room, sender=sender)).event_id != event_id:
        pass
    return heard


@asynccontextmanager
async def another(synapse: Synapse, user_id: str, folder: Path) -> AsyncIterator[Human]:
    phone = await Human.login(synapse, user_id, PASSWORD, folder)
    try:
        yield phone
    finally:
        await phone.close()


async def answered(phone: Human, family: Family, text: str) -> None:
    await phone.say(family.room, text)
    while (await phone.next(family.room, sender=family.bot)).body != f"heard {text}":
        pass


@pytest.mark.slow
async def test_keys_are_made_anew_while_devices_claim_them(family: Family, synapse: Synapse) -> None:
    async with family.listening(repeat):
        await full(family, synapse)
        assert await claimed(family, synapse, 60) == 60
        await family.answered("hello")  # else it is told with the next poll
        await full(family, synapse)


@pytest.mark.slow
async def test_a_phone_reaches_the_bot_whose_keys_were_all_claimed_while_it_was_away(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    async with family.listening(repeat):
        await full(family, synapse)
    assert await claimed(family, synapse, 60) == 60, "the last ones have the fallback key"
    assert await left(family, synapse) == 0
    async with another(synapse, family.anna.user_id, tmp_path / "new phone") as phone:
        await phone.say(family.room, "from a new phone")
        async with family.listening(repeat):
            assert (await phone.next(family.room, sender=family.bot)).body == "heard from a new phone"
            await full(family, synapse)


@pytest.mark.slow
async def test_with_a_state_from_an_older_backup_it_is_reached_again(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    """Its next keys have the names of some that the homeserver has."""
    keys = Safe(family.home.folder / "state").keys(login(family).device_id)
    async with family.listening(repeat):
        await family.answered("hello")
    shutil.copytree(keys, tmp_path / "older")
    await claimed(family, synapse, 10)
    async with family.listening(repeat):
        await full(family, synapse)
    shutil.rmtree(keys)
    shutil.copytree(tmp_path / "older", keys)
    await claimed(family, synapse, 45)
    async with family.listening(repeat):
        for n in range(3):  # each brings keys of other names
            await family.anna.say(family.room, str(n))
        await full(family, synapse)
        await claimed(family, synapse, 5)  # those that nobody has the other half of
        async with another(synapse, family.anna.user_id, tmp_path / "new phone") as phone:
            await answered(phone, family, "from a new phone")


@pytest.mark.slow
async def test_with_an_older_state_it_hears_again_whoever_it_talked_with_before(family: Family, tmp_path: Path) -> None:
    anna, keys = family.anna, Safe(family.home.folder / "state").keys(login(family).device_id)
    async with family.listening(repeat):
        await family.answered("hello")
    shutil.copytree(keys, tmp_path / "older")
    for n in range(2):
        async with family.listening(repeat):
            anna._client.invalidate_outbound_session(family.room)
            await family.answered(str(n))
    shutil.rmtree(keys)
    shutil.copytree(tmp_path / "older", keys)
    (database,) = keys.glob("*.db")
    with closing(sqlite3.connect(database)) as store:  # what was used within the hour is not begun anew
        store.execute("UPDATE olmsessions SET creation_time = '2026-01-01 00:00:00.000000'")
        store.commit()
    anna._client.invalidate_outbound_session(family.room)
    async with family.listening(repeat):
        await anna.say(family.room, "lost")
        await asyncio.sleep(1)
        anna._client.invalidate_outbound_session(family.room)
        assert await family.answered("again") == "heard again"


@pytest.mark.parametrize("kicked", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["left", "kicked"])
async def test_who_left_cannot_read_what_is_said_afterwards(
    family: Family, synapse: Synapse, person: Person, kicked: bool
) -> None:
    carol = await person("carol")
    await family.anna.invite(family.room, carol.user_id)
    await carol.join(family.room)
    async with family.listening(repeat) as session:
        assert await readable(carol, family, await say(session, "before"))
        await goes(carol, family, synapse, kicked=kicked)
        said = await say(session, "after")  # at once: no sync has told of it
        assert await readable(family.anna, family, said)
        assert not await has_its_key(carol, family, said)


@pytest.mark.slow
async def test_who_left_while_the_bot_was_off_cannot_and_who_came_can_read_the_next_message(
    family: Family, synapse: Synapse, person: Person
) -> None:
    carol, dave = await person("carol"), await person("dave")
    await family.anna.invite(family.room, carol.user_id)
    await carol.join(family.room)
    async with family.listening(repeat) as session:
        assert await readable(carol, family, await say(session, "before"))
    await goes(carol, family, synapse)
    await family.anna.invite(family.room, dave.user_id)
    await dave.join(family.room)
    async with family.listening(repeat) as session:
        said = await say(session, "after")
        assert await readable(dave, family, said)
        assert not await has_its_key(carol, family, said)


@pytest.mark.slow
async def test_a_device_that_was_signed_out_cannot_read_what_is_said_afterwards(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    anna = family.anna
    tablet = await Human.login(synapse, anna.user_id, PASSWORD, tmp_path / "tablet")
    async with family.listening(repeat) as session:
        before = await say(session, "before")
        assert await readable(tablet, family, before)
        await tablet.close()
        await synapse.ask("POST", "/_matrix/client/v3/logout", {}, token=tablet.token)
        after = await say(session, "after")
        assert await readable(anna, family, after)
        assert await sealed_with(family, after) != await sealed_with(family, before)


@pytest.mark.slow
@pytest.mark.parametrize("cut_at", [b"/keys/claim", b"/sendToDevice/", b"/joined_members", b"/send/m.room.encrypted"])
async def test_where_the_homeserver_goes_while_keys_are_shared_the_message_can_be_read_in_the_end(
    family: Family, synapse: Synapse, tmp_path: Path, cut_at: bytes
) -> None:
    wire = Wire(synapse.url)
    async with wire.listening() as url:
        through(family, url)
        async with family.listening(repeat) as session:
            await say(session, "before")
            async with another(synapse, family.anna.user_id, tmp_path / "new phone") as phone:
                wire.cut_at = cut_at
                with pytest.raises(ChatAway):
                    await session.say(Reply("lost"), "lost")
                with pytest.raises(ChatAway):
                    await asyncio.wait_for(session.say(Reply("lost"), "lost"), 5)
                wire.cut_at = None
                assert await readable(phone, family, await say(session, "after"))


@pytest.mark.slow
async def test_keys_of_an_odd_shape_do_not_keep_it_from_speaking(
    family: Family, synapse: Synapse, person: Person
) -> None:
    mallory = await person("mallory")
    await family.anna.invite(family.room, mallory.user_id)
    await mallory.join(family.room)
    name = mallory.device_id
    device = {
        "user_id": mallory.user_id,
        "device_id": name,
        "algorithms": [],
        "keys": {f"ed25519:{name}": "no key", f"curve25519:{name}": "no key either"},
        "signatures": {mallory.user_id: {f"ed25519:{name}": "no signature"}},
    }
    for human in (family.anna, mallory):  # whose nio would not get past it
        assert human._listening
        human._listening.cancel()
    await synapse.ask("POST", "/_matrix/client/v3/keys/upload", {"device_keys": device}, token=mallory.token)
    async with family.listening(repeat) as session:
        assert await sealed_with(family, await say(session, "hello"))


async def say(session: Session, text: str) -> Said:
    async with asyncio.timeout(10):
        while True:
            try:
                return await session.say(Reply(text), text)
            except ChatAway:  # it has not heard of the room yet
                await asyncio.sleep(0.05)


async def goes(human: Human, family: Family, synapse: Synapse, *, kicked: bool = False) -> None:
    path = f"/_matrix/client/v3/rooms/{quote(family.room)}"
    if kicked:
        await synapse.ask("POST", f"{path}/kick", {"user_id": human.user_id}, token=family.anna.token)
    else:
        await synapse.ask("POST", f"{path}/leave", {}, token=human.token)


async def has_its_key(human: Human, family: Family, said: Said) -> bool:
    await asyncio.sleep(0.3)  # for a key to arrive that must not
    name = await sealed_with(family, said)
    return name in {session.id for session in human._client.olm.inbound_group_store}


async def sealed_with(family: Family, said: Said) -> str:
    """The name of the key that the message is encrypted with."""
    anna = family.anna
    path = f"/_matrix/client/v3/rooms/{quote(family.room)}/event/{quote(said.event_id)}"
    return str((await anna._homeserver.ask("GET", path, token=anna.token))["content"]["session_id"])


def through(family: Family, url: str) -> None:
    """The bot reaches its homeserver at ``url``."""
    file = family.home.folder / "state" / "chat" / "account.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "homeserver": url}))


class Wire:
    """To a homeserver; all connections break where a request holds ``cut_at``."""

    def __init__(self, url: str) -> None:
        self._port = int(url.rsplit(":", 1)[1])
        self._serving: set[asyncio.Task[None]] = set()
        self._writers: list[asyncio.StreamWriter] = []
        self.cut_at: bytes | None = None

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for writer in self._writers:
                writer.close()
            await asyncio.gather(*self._serving)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        from_there, there = await asyncio.open_connection("127.0.0.1", self._port)
        self._writers += writer, there
        await asyncio.gather(self._pump(reader, there), self._pump(from_there, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError):
            while data := await reader.read(65536):
                if self.cut_at and self.cut_at in data:
                    for each in self._writers:
                        each.close()
                    return
                writer.write(data)
        writer.close()


@pytest.mark.slow
async def test_a_key_says_itself_whose_device_gave_it(family: Family, monkeypatch: pytest.MonkeyPatch) -> None:
    """For phones that come back when the bot has another device already: they cannot ask for the old one any more."""
    olm, told = family.anna._client.olm, []
    handle = olm._handle_olm_event

    def noted(sender: str, sender_key: str, payload: dict[str, Any]) -> Any:
        told.append(payload)
        return handle(sender, sender_key, payload)

    monkeypatch.setattr(olm, "_handle_olm_event", noted)
    async with family.listening(repeat):
        await family.answered("hello")
    (given,) = [one for one in told if one["type"] == "m.room_key"]
    device, trust = given["sender_device_keys"], await family.anna.device_trust(family.bot)
    device_id = login(family).device_id
    assert device["device_id"] == device_id and "unsigned" not in device
    assert device["keys"][f"ed25519:{device_id}"] == given["keys"]["ed25519"]
    assert vouches(family.bot, device_id, {**trust, "device_keys": {family.bot: {device_id: device}}})
    assert {"sender", "recipient", "recipient_keys", "content"} < set(given)

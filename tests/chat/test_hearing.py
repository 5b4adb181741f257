"""What a hostile member, an absence and a quoting client do to what the bot hears: nothing that lasts."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from uuid import uuid4

import pytest

from memu_backup.chat.session import Message, Reply
from tests.chat.conftest import Person
from tests.chat.family import PASSWORD, Family, is_member, settled, until
from tests.home import Home
from tests.human import Human
from tests.service import Clock
from tests.synapse import Synapse


async def repeat(message: Message) -> Reply:
    return Reply(f"heard {message.text}")


class Hostile:
    """A member of the room who can make anything. Only the bot can read it: other clients would break."""

    def __init__(self, human: Human, family: Family, synapse: Synapse) -> None:
        self._human, self._family, self._synapse = human, family, synapse
        self._olm = human._client.olm

    async def prepare(self) -> None:
        await self._family.anna.invite(self._family.room, self._human.user_id)
        await self._human.join(self._family.room)
        await self._human._look_round(self._family.room)
        client, bot = self._human._client, [self._family.bot]
        await client.keys_claim(self._olm.get_missing_sessions(bot))
        for _, messages in self._olm.share_group_session_parallel(self._family.room, bot, True):
            path = f"/_matrix/client/v3/sendToDevice/m.room.encrypted/{uuid4().hex}"
            await self._synapse.ask("PUT", path, messages, token=self._human.token)
        self._olm.outbound_group_sessions[self._family.room].shared = True
        self._olm.inbound_group_store._entries.clear()  # nor can she herself

    async def say(self, plaintext: str) -> None:
        session = self._olm.outbound_group_sessions[self._family.room]
        await self.send({**self.sealed(), "ciphertext": session.encrypt(plaintext)})

    async def say_content(self, content: Any) -> None:
        await self.say(json.dumps({"type": "m.room.message", "room_id": self._family.room, "content": content}))

    def sealed(self) -> dict[str, Any]:
        return dict(self._olm.group_encrypt(self._family.room, {"type": "m.room.message", "content": {}}))

    async def send(self, content: Mapping[str, Any], kind: str = "m.room.encrypted") -> None:
        path = f"/_matrix/client/v3/rooms/{quote(self._family.room)}/send/{kind}/{uuid4().hex}"
        await self._synapse.ask("PUT", path, content, token=self._human.token)

    async def to_device(self, content: Mapping[str, Any], kind: str = "m.room.encrypted") -> None:
        path = f"/_matrix/client/v3/sendToDevice/{kind}/{uuid4().hex}"
        messages = {"messages": {self._family.bot: {"*": content}}}
        await self._synapse.ask("PUT", path, messages, token=self._human.token)

    def olm(self, kind: int, body: str) -> dict[str, Any]:
        (bot,) = self._olm.device_store.active_user_devices(self._family.bot)
        algorithm, key = "m.olm.v1.curve25519-aes-sha2", self._olm.account.identity_keys["curve25519"]
        return {"algorithm": algorithm, "sender_key": key, "ciphertext": {bot.curve25519: {"type": kind, "body": body}}}


CONTENTS: list[Any] = [
    {"msgtype": "m.text"},
    {"msgtype": "m.text", "body": 5},
    {"msgtype": [], "body": "x"},
    {"msgtype": "m.text", "body": "x", "m.relates_to": {"rel_type": []}, "formatted_body": {}},
    {"msgtype": "m.image", "body": "x", "file": 5},
    ["a list"],
    "a text",
    None,
]


async def test_whatever_a_hostile_member_sends_the_next_question_is_answered(
    family: Family, synapse: Synapse, person: Person, caplog: pytest.LogCaptureFixture
) -> None:
    """All in one poll, as after an absence, and then one by one."""
    mallory = Hostile(await person("mallory"), family, synapse)
    async with family.listening(repeat):
        await mallory.prepare()
        assert await family.answered("before") == "heard before"
    for listening in (False, True):
        if not listening:
            await everything(mallory)
            await family.anna.say(family.room, "question")
        async with family.listening(repeat):
            if listening:
                await everything(mallory)
                await family.anna.say(family.room, "question")
            while (heard := await family.anna.next(family.room, sender=family.bot)).body != "heard question":
                assert heard.body == "heard x", "what can be read is answered"
    assert "unexpected" not in caplog.text and "does not answer" not in caplog.text


async def everything(mallory: Hostile) -> None:
    await mallory.to_device(mallory.olm(0, "rubbish"))
    await mallory.to_device(mallory.olm(1, "rubbish"))
    await mallory.to_device({**mallory.olm(0, ""), "ciphertext": []})
    await mallory.to_device({"nothing": 1})
    await mallory.to_device({"method": "m.sas.v1", "from_device": [], "transaction_id": 5}, "m.key.verification.start")
    for content in CONTENTS:
        await mallory.say_content(content)
    await mallory.say("[" * 20_000 + "]" * 20_000)
    await mallory.say('{"type": "m.room.message", "content": {"body": 1' + "0" * 5000 + "}}")
    await mallory.say("no JSON")
    for ciphertext in ("%%%", "AwgA", {"a": 1}, None):
        await mallory.send({**mallory.sealed(), "ciphertext": ciphertext})
    await mallory.send({"algorithm": 5})
    await mallory.send({"msgtype": "m.text", "body": "deep", "deep": deep(100)}, "m.room.message")
    await mallory.send({"m.relates_to": {"rel_type": [], "event_id": {}, "key": 5}}, "m.reaction")


def deep(levels: int) -> Any:
    return json.loads('{"a":' * levels + "1" + "}" * levels)


@pytest.mark.slow
async def test_a_question_whose_key_comes_behind_many_others_is_answered(
    family: Family, synapse: Synapse, person: Person
) -> None:
    """A homeserver tells of a hundred keys at a time, and of the question with the first of them."""
    mallory = Hostile(await person("mallory"), family, synapse)
    await mallory.prepare()
    async with family.listening(repeat):
        await family.answered("before")
    for _ in range(120):
        await mallory.to_device({"nothing": 1})
    family.anna._client.invalidate_outbound_session(family.room)
    assert await family_answers(family, ["late"]) == ["heard late"]


async def family_answers(family: Family, questions: list[str]) -> list[str]:
    """What is answered to ``questions`` that were asked while the bot was away."""
    for question in questions:
        await family.anna.say(family.room, question)
    async with family.listening(repeat):
        return [(await family.anna.next(family.room, sender=family.bot)).body for _ in questions]


@pytest.mark.slow
async def test_after_an_absence_with_a_gap_the_newest_questions_are_answered(family: Family, synapse: Synapse) -> None:
    async with family.listening(repeat):
        await family.answered("before")
    for n in range(120):
        await family.anna.say_plain(family.room, str(n))
    questions = [f"question {n}" for n in range(15)]
    assert await family_answers(family, questions) == [f"heard {question}" for question in questions]


@pytest.mark.slow
async def test_what_was_asked_more_than_five_minutes_ago_is_not_answered(tmp_path: Path, database: str) -> None:
    """The homeserver is started anew under a clock that is six minutes ahead, as if they had passed."""
    clock = Clock(tmp_path, f"{datetime.now(UTC) + timedelta(minutes=6):%Y-%m-%dT%H:%M:%S}")
    with Synapse(tmp_path / "synapse") as synapse:
        bot, anna_id = [await synapse.register(name, PASSWORD) for name in ("bot", "anna")]
        anna = await Human.login(synapse, anna_id, PASSWORD, tmp_path / "phone")
        try:
            family = await settled(synapse, Home(tmp_path / "home", database), anna, bot)
            async with family.listening(repeat):
                await family.answered("before")
            await anna.say(family.room, "six minutes ago")
            synapse.stop()
            synapse.environment = {**os.environ, **clock.environment}
            synapse.start()
            assert await family_answers(family, ["now"]) == ["heard now"]
            await anna.silent(family.room, sender=bot, for_s=0.5)
        finally:
            await anna.close()


@pytest.mark.slow
@pytest.mark.parametrize(
    ("body", "said"),
    [
        ("> <@anna:family.test> !backup run\n\n!backup status", "!backup status"),
        ("> <@anna:family.test> one\n> two\n>\n> three\n\n!backup status", "!backup status"),
        ("!backup status", "!backup status"),
        ("> <@anna:family.test> !backup run", ""),
        ("> one\n\ntwo\n> three\n\nfour", "two\n> three\n\nfour"),
    ],
)
async def test_of_a_reply_only_the_own_words_are_heard(family: Family, body: str, said: str) -> None:
    async with family.listening(repeat):
        reply = {"m.relates_to": {"m.in_reply_to": {"event_id": "$any"}}}
        await family.anna.say(family.room, body, **reply)
        assert (await family.anna.next(family.room, sender=family.bot)).body == f"heard {said}"


@pytest.mark.slow
async def test_a_quote_that_is_no_reply_is_heard_as_it_is(family: Family) -> None:
    async with family.listening(repeat):
        assert await family.answered("> one\n\ntwo") == "heard > one\n\ntwo"


@pytest.mark.slow
async def test_a_bot_that_was_put_out_of_the_room_says_so_once_and_comes_back_where_it_is_invited(
    family: Family, synapse: Synapse, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    path = f"/_matrix/client/v3/rooms/{quote(family.room)}"

    async def noted() -> bool:
        return "not in the family's room any more" in caplog.text

    async with family.listening(repeat):
        await family.answered("before")
        await synapse.ask("POST", f"{path}/kick", {"user_id": family.bot}, token=family.anna.token)
        await until(noted)
        await family.anna.invite(family.room, family.bot)
        await until(lambda: is_member(family, family.bot))
        assert await family.answered("after") == "heard after"
    assert caplog.text.count("not in the family's room any more") == 1
    assert "unexpected" not in caplog.text and "tries again" not in caplog.text


@pytest.mark.slow
async def test_a_room_that_was_replaced_is_told_of(
    family: Family, synapse: Synapse, caplog: pytest.LogCaptureFixture
) -> None:
    path = f"/_matrix/client/v3/rooms/{quote(family.room)}/upgrade"

    async def noted() -> bool:
        return "The family's room was replaced by !" in caplog.text

    async with family.listening(repeat):
        await family.answered("before")
        await synapse.ask("POST", path, {"new_version": "10"}, token=family.anna.token)
        await until(noted)
    assert "unexpected" not in caplog.text

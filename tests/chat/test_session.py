"""What the bot needs of its homeserver, whatever it has to say."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest

from memu_backup.chat.account import Safe
from memu_backup.chat.heard import Heard
from memu_backup.chat.session import Message, Reply, Said, Session
from memu_backup.errors import ChatAway
from tests.chat.family import Family, until
from tests.synapse import Synapse


async def repeat(message: Message) -> Reply:
    return Reply(f"heard {message.text}")


async def test_it_never_speaks_in_plaintext_where_the_room_is_encrypted(family: Family, synapse: Synapse) -> None:
    """As where it becomes so while nobody speaks."""
    anna = family.anna
    room = await anna.create_room(invite=[family.bot], encrypted=False)
    async with replace(family, room=room).listening(repeat) as session:
        await said(session, "in the open", "first")
        assert not (await anna.next(room, sender=family.bot)).decrypted
        path = f"/_matrix/client/v3/rooms/{quote(room)}/state/m.room.encryption/"
        await synapse.ask("PUT", path, {"algorithm": "m.megolm.v1.aes-sha2"}, token=anna.token)
        await said(session, "in secret", "second")
        heard = await anna.next(room, sender=family.bot)
        assert heard.decrypted and heard.body == "in secret"


async def test_killed_between_the_answer_and_its_note_it_answers_once(family: Family) -> None:
    async with family.listening(repeat):
        await family.answered("one")
    file = family.home.folder / "state" / "chat" / "heard.json"
    before = json.loads(file.read_text())
    async with family.listening(repeat):
        await family.answered("two")
    file.write_text(json.dumps(before))
    async with family.listening(repeat):
        await until(lambda: asyncio.sleep(0, json.loads(file.read_text())["events"] != before["events"]))
        await family.anna.silent(family.room, sender=family.bot, for_s=1)


async def test_what_was_answered_is_not_done_again_where_an_older_place_to_listen_from_came_back(
    family: Family,
) -> None:
    """As after a kill: the homeserver would drop a second answer by itself, and not what is done for it."""
    done: list[str] = []

    async def answer(message: Message) -> Reply:
        async def work(_said: Said) -> None:
            done.append(message.text)

        return Reply(f"heard {message.text}", then=work)

    file = family.home.folder / "state" / "chat" / "heard.json"
    async with family.listening(answer):
        await family.answered("one")
    before = json.loads(file.read_text())["token"]
    async with family.listening(answer):
        await family.answered("two")
    file.write_text(json.dumps({**json.loads(file.read_text()), "token": before}))
    async with family.listening(answer):
        await family.answered("three")
        await until(lambda: asyncio.sleep(0, "three" in done))
    assert done == ["one", "two", "three"]


@pytest.mark.slow
async def test_an_answer_that_breaks_is_tried_again(family: Family) -> None:
    broken = [OSError("the disk stumbled"), ValueError("odd")]

    async def answer(message: Message) -> Reply:
        if broken:
            raise broken.pop()
        return Reply(f"heard {message.text}")

    async with family.listening(answer):
        assert await family.answered("one") == "heard one"
        broken += [ValueError("odd")] * 3
        await family.anna.say(family.room, "two")
        assert await family.answered("three") == "heard three"


async def test_what_was_said_under_a_key_is_not_said_again(family: Family) -> None:
    async with family.listening(repeat) as session:
        first = await said(session, "alert", "key")
    async with family.listening(repeat) as session:
        assert (await said(session, "alert", "key")).event_id == first.event_id
        await said(session, "another", "another key")
        assert [(await family.anna.next(family.room, sender=family.bot)).body for _ in range(2)] == ["alert", "another"]


async def said(session: Session, text: str, key: str) -> Said:
    async with asyncio.timeout(10):
        while True:
            try:
                return await session.say(Reply(text), key)
            except ChatAway:  # it has joined, and was not told so yet
                await asyncio.sleep(0.05)


async def test_where_the_homeserver_did_not_answer_yet_nothing_is_waited_for(family: Family) -> None:
    safe = Safe(family.home.folder / "state")
    account = safe.account()
    assert account
    session = Session(safe, account, family.room, frozenset(), repeat)
    with pytest.raises(ChatAway, match="has to wait"):
        await session.say(Reply("hello"), "key")


async def test_a_reply_may_be_put_anew_while_others_are_answered(family: Family) -> None:
    goes_on = asyncio.Event()

    async def work(said: Said) -> None:
        await goes_on.wait()
        await said.anew(Reply("done", "<b>done</b>"))

    async def answer(message: Message) -> Reply:
        return Reply("begun", then=work) if message.text == "begin" else Reply("meanwhile")

    async with family.listening(answer):
        assert await family.answered("begin") == "begun"
        assert await family.answered("hello") == "meanwhile"
        goes_on.set()
        edit = await family.anna.next(family.room, sender=family.bot)
        assert (edit.body, edit.formatted_body, edit.decrypted) == ("done", "<b>done</b>", True)
        assert edit.replaces


async def test_a_sign_is_heard_with_the_message_that_it_stands_under(family: Family) -> None:
    async def answer(message: Message) -> Reply:
        return Reply(f"{message.text} {message.under}")

    async with family.listening(answer):
        await family.anna.say(family.room, "hello")
        first = await family.anna.next(family.room, sender=family.bot)
        assert first.body == "hello None"
        await family.anna.react(family.room, first.event_id, "👍")
        assert (await family.anna.next(family.room, sender=family.bot)).body == f"👍 {first.event_id}"


@pytest.mark.slow
async def test_how_long_work_ended_is_put_anew_however_long_the_homeserver_is_away(
    family: Family, synapse: Synapse, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For as long as a homeserver may be updated: else the message would say for ever that the work goes on."""
    monkeypatch.setattr("memu_backup.chat.session._PAUSES_S", (0.1,) * 5)
    goes_on = asyncio.Event()

    async def work(said: Said) -> None:
        await goes_on.wait()
        await said.finally_anew(Reply("done"))

    async def answer(message: Message) -> Reply:
        return Reply("begun", then=work)

    async with family.listening(answer):
        assert await family.answered("begin") == "begun"
        synapse.stop()
        goes_on.set()
        await asyncio.sleep(1.5)
        await asyncio.to_thread(synapse.start)
        assert (await family.anna.next(family.room, sender=family.bot)).body == "done"


def test_what_was_heard_is_noted_without_waiting_for_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked for with each answer, and the disk may be busy with a backup; after a power cut the ages tell."""
    waits: list[int] = []
    monkeypatch.setattr("os.fsync", waits.append)
    heard = Heard(tmp_path / "heard.json")
    heard.came_to("s1")
    heard.add("$one")
    assert "$one" in Heard(tmp_path / "heard.json") and waits == []
    (tmp_path / "heard.json").write_bytes(b"")  # as after a power cut
    assert Heard(tmp_path / "heard.json").token is None

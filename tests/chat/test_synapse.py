"""The homeserver and the people that the chat is tested with do what the other tests believe of them."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.chat.conftest import Account, Person
from tests.chat.family import PASSWORD
from tests.human import Human
from tests.synapse import Refused, Synapse


async def test_two_people_talk_in_an_encrypted_room(person: Person) -> None:
    anna, ben = await person("anna"), await person("ben")
    room = await anna.create_room(invite=[ben.user_id])
    await ben.join(room)

    question = await anna.say(room, "is it raining?")
    heard = await ben.next(room, sender=anna.user_id)
    assert (heard.event_id, heard.body, heard.msgtype, heard.decrypted) == (question, "is it raining?", "m.text", True)

    answer = await ben.say(room, "no", format="org.matrix.custom.html", formatted_body="<b>no</b>")
    heard = await anna.next(room, sender=ben.user_id)
    assert (heard.body, heard.formatted_body, heard.decrypted, heard.replaces) == ("no", "<b>no</b>", True, None)

    await ben.edit(room, answer, "yes")
    heard = await anna.next(room, sender=ben.user_id)
    assert (heard.body, heard.replaces, heard.decrypted) == ("yes", answer, True)

    await anna.react(room, answer, "👍")
    heard = await ben.next(room, sender=anna.user_id)
    assert (heard.msgtype, heard.body, heard.relates_to["event_id"]) == ("m.reaction", "👍", answer)
    await ben.silent(room, sender=anna.user_id, for_s=0.1)


async def test_plaintext_in_an_encrypted_room_is_seen_as_such(person: Person) -> None:
    anna, ben = await person("anna"), await person("ben")
    room = await anna.create_room(invite=[ben.user_id])
    await ben.join(room)
    await ben.say_plain(room, "who wrote this?")
    heard = await anna.next(room, sender=ben.user_id)
    assert (heard.body, heard.decrypted) == ("who wrote this?", False)
    with pytest.raises(AssertionError, match="not silent"):
        await ben.say(room, "it was me")
        await anna.silent(room, sender=ben.user_id, for_s=5)


@pytest.mark.slow
async def test_who_joins_later_and_a_new_phone_read_what_is_said_from_then_on(
    person: Person, synapse: Synapse, tmp_path: Path
) -> None:
    anna, ben, carl = await person("anna"), await person("ben"), await person("carl")
    elsewhere = await anna.create_room(invite=[carl.user_id])
    await carl.join(elsewhere)
    await anna.say(elsewhere, "so that Carl's phone is known to Anna's")
    room = await anna.create_room(invite=[ben.user_id])
    await ben.join(room)
    await anna.say(room, "not for Carl")

    await anna.invite(room, carl.user_id)
    await carl.join(room)
    await anna.say(room, "welcome")
    heard = await carl.next(room, sender=anna.user_id)
    assert (heard.msgtype, heard.decrypted) == ("m.room.encrypted", False)
    assert (await carl.next(room, sender=anna.user_id)).body == "welcome"

    new = await Human.login(synapse, ben.user_id, PASSWORD, tmp_path / "new phone")
    try:
        last = await anna.say(room, "a new phone?")
        heard = await new.next(room, sender=anna.user_id)
        while heard.event_id != last:
            heard = await new.next(room, sender=anna.user_id)
        assert (heard.body, heard.decrypted) == ("a new phone?", True)
        await new.say(room, "yes")
        assert (await carl.next(room, sender=ben.user_id)).body == "yes"
    finally:
        await new.close()
    known = (await anna.device_trust(ben.user_id))["device_keys"][ben.user_id]
    assert set(known) == {ben.device_id, new.device_id}


async def test_the_talk_goes_on_after_synapse_was_stopped_and_after_it_was_killed(
    synapse: Synapse, person: Person
) -> None:
    anna, ben = await person("anna"), await person("ben")
    room = await anna.create_room(invite=[ben.user_id])
    await ben.join(room)
    for end in (synapse.stop, synapse.kill):
        await anna.say(room, "good night")
        assert (await ben.next(room, sender=anna.user_id)).decrypted
        end()
        await asyncio.sleep(0.2)
        await asyncio.to_thread(synapse.start)
        await ben.say(room, "good morning")
        heard = await anna.next(room, sender=ben.user_id)
        assert (heard.body, heard.decrypted) == ("good morning", True)


async def test_what_a_person_cannot_hear_any_more_fails_the_test(
    synapse: Synapse, account: Account, tmp_path: Path
) -> None:
    anna = await Human.login(synapse, await account("anna"), PASSWORD, tmp_path / "phone")
    try:
        room = await anna.create_room()
        await synapse.ask("POST", "/_matrix/client/v3/logout", {}, token=anna.token)
        with pytest.raises(AssertionError, match="M_UNKNOWN_TOKEN"):
            await anna.silent(room, sender="@ben:family.test", for_s=10)
    finally:
        with pytest.raises(AssertionError, match="M_UNKNOWN_TOKEN"):
            await anna.close()


@pytest.mark.slow
async def test_limits_of_a_synapse_of_ones_own_are_kept(tmp_path: Path) -> None:
    with Synapse(tmp_path / "synapse", {"rc_message": {"per_second": 0.1, "burst_count": 2}}) as strict:
        anna = await Human.login(strict, await strict.register("anna", PASSWORD), PASSWORD, tmp_path / "phone")
        try:
            room = await anna.create_room(encrypted=False)
            with pytest.raises(Refused) as refused:
                for _ in range(9):
                    await anna.say_plain(room, "hello?")
            assert (refused.value.status, refused.value.said["errcode"]) == (429, "M_LIMIT_EXCEEDED")
        finally:
            await anna.close()

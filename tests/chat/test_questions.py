"""Photos are gone: the family is asked in its room, once, and an admin's answer is taken."""

from __future__ import annotations

import asyncio
import json
import shutil
from datetime import timedelta
from pathlib import Path

import pytest

from memu_backup.alerts.apprise import AppriseChannel
from tests.chat.conftest import Person
from tests.chat.family import Family, joined, until
from tests.chat.test_acts import THUMB, grandma, says
from tests.chat.test_alerts import Days, runs
from tests.receiver import Receiver
from tests.synapse import Synapse

GONE = "Photos: nothing is left of 2 files. Did someone remove all 2 files?"


async def photos_go(family: Family) -> None:
    """After a good backup; the next one is suspicious."""
    await runs(family)
    shutil.rmtree(family.home.photos)
    family.home.photos.mkdir()
    await runs(family, 3)


def suspicious(family: Family) -> list[bool]:
    """Of each backup, the newest first, whether it is."""
    return [row["error_code"] == "suspicious" for row in family.home.rows()]


async def test_it_is_asked_once_and_the_thumb_of_an_admin_is_the_answer(family: Family, person: Person) -> None:
    async with family.bot_runs():
        await joined(family)
        other = await grandma(family, person)
        await photos_go(family)
        question = await family.anna.next(family.room, sender=family.bot, timeout_s=15)
        head, what, *_ = question.body.split("\n")
        assert head == "Backup Question" and what.startswith("The backup at ") and what.endswith(GONE)
        await until(lambda: asyncio.sleep(0, family.home.rows()[0]["notification_sent"] is True))
        await runs(family, 3)
        await other.react(family.room, question.event_id, THUMB)
        await family.anna.react(family.room, question.event_id, "\N{THUMBS DOWN SIGN}")
        await other.say(family.room, "!backup accept")
        await family.quiet()
        assert suspicious(family) == [True, True, False]
    async with family.bot_runs():  # the answer comes after a restart
        await family.anna.react(family.room, question.event_id, THUMB)
        said = sorted([await says(family), await says(family)])
        assert said[0].startswith("All well again\n")
        assert said[1].startswith("Good. The backups of today ") and said[1].endswith("compared with them.")
        assert suspicious(family) == [False, False, False]
        await family.anna.react(family.room, question.event_id, THUMB + "\N{EMOJI MODIFIER FITZPATRICK TYPE-4}")
        assert await says(family) == "No backup waits for an answer like that right now."
        await runs(family)
        await family.quiet()
    events = [(a["actor"], a["origin"], a["action"], a["outcome"]) for a in family.home.audit()]
    names = ", ".join(a.name for a in reversed(family.home.archives[1:3]))
    assert (family.anna.user_id, "chat", "accept", names) in events
    assert (other.user_id, "chat", "accept", "refused") in events


@pytest.mark.slow
async def test_a_word_answers_it_too(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        nothing = "No backup waits for an answer like that right now."
        assert await family.answered("!backup accept") == nothing
        await photos_go(family)
        assert GONE in await family.hears()
        oldest, newest = family.home.archives
        assert await family.answered(f"!backup accept {oldest.name}") == nothing
        assert "There is no backup 1999" in await family.answered("!backup accept 1999")
        await family.anna.say(family.room, f"!backup accept {newest.name}")
        said = sorted([await says(family), await says(family)])
        assert said[0].startswith("All well again\n") and said[1].startswith("Good. The backup of today ")


@pytest.mark.slow
async def test_without_an_answer_it_is_over_once_they_are_back(family: Family, tmp_path: Path) -> None:
    shutil.copytree(family.home.photos, tmp_path / "away")
    async with family.bot_runs():
        await joined(family)
        await photos_go(family)
        assert GONE in await family.hears()
        shutil.copytree(tmp_path / "away", family.home.photos, dirs_exist_ok=True)
        await runs(family)
        assert (await family.hears()).startswith("All well again\n")
        assert suspicious(family) == [False, True, False]
        newest = family.home.archives[-2]
        assert (await family.answered(f"!backup accept {newest.name}")).startswith("No backup waits")


async def test_where_the_room_is_away_it_is_asked_another_way(
    family: Family, synapse: Synapse, receiver: Receiver
) -> None:
    clock = Days()
    async with family.bot_runs(clock, AppriseChannel([f"json://{receiver.at}/"])):
        await joined(family)
        synapse.stop()
        await photos_go(family)
        await asyncio.sleep(1)
        clock.ahead = timedelta(minutes=11)
        await family.look()
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
        mail = json.loads(receiver.heard[0].body)
        assert mail["title"] == "Backup Question"
        assert GONE in mail["message"] and "(on the server: memu-backup accept)" in mail["message"]

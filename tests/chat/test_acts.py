"""What admins can have done in the room: by a word, or by a thumb under a question; others get silence."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from pathlib import Path

from memu_backup.alarms import Book
from memu_backup.clock import now
from tests.chat.conftest import Person
from tests.chat.family import Family, configure, joined, until
from tests.chat.test_alerts import Days
from tests.human import Human

THUMB = "\N{THUMBS UP SIGN}"


async def says(family: Family) -> str:
    """The next that the bot says or puts anew."""
    return (await family.anna.next(family.room, sender=family.bot, timeout_s=20)).body


async def grandma(family: Family, person: Person) -> Human:
    """In the room, and no admin."""
    other = await person("grandma")
    await family.anna.invite(family.room, other.user_id)
    await other.join(family.room)
    return other


async def test_a_backup_now_is_made_and_the_message_tells_how_it_went(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        begun = await family.anna.say(family.room, "!backup now")
        assert begun
        first = await family.anna.next(family.room, sender=family.bot)
        assert first.body == "The backup has begun. I will tell here how it goes."
        last = await family.anna.next(family.room, sender=family.bot, timeout_s=20)
        assert last.replaces == first.event_id
        assert last.body.startswith("The backup is done: Today ")
    (row,) = family.home.rows()
    assert (row["status"], row["trigger"]) == ("success", "manual")
    assert [(a["actor"], a["origin"], a["action"], a["outcome"]) for a in family.home.audit()] == [
        (family.anna.user_id, "chat", "backup", "success")
    ]


async def test_nobody_but_an_admin_approves_a_drive(family: Family, person: Person) -> None:
    async with family.bot_runs():
        await joined(family)
        other = await grandma(family, person)
        await other.say(family.room, "!backup trust")
        await family.quiet(1)
        nothing = "No drive waits to be approved. Plug it in first; I ask about each new one."
        assert await family.answered("!backup trust") == nothing


async def test_where_there_is_one_of_today_it_asks_and_a_thumb_is_a_yes(family: Family, person: Person) -> None:
    assert family.home.run("start").status == 0
    async with family.bot_runs():
        await joined(family)
        other = await grandma(family, person)
        asked = await family.anna.say(family.room, "!backup now")
        question = await family.anna.next(family.room, sender=family.bot)
        assert question.body.startswith("There is a good backup of today ")
        await family.anna.react(family.room, asked, THUMB)  # under another message
        await other.react(family.room, question.event_id, THUMB)  # no admin
        await family.anna.react(family.room, question.event_id, "\N{THUMBS DOWN SIGN}")
        await family.quiet(1)
        await family.anna.react(family.room, question.event_id, f"{THUMB}\N{EMOJI MODIFIER FITZPATRICK TYPE-4}")
        assert (await says(family)).startswith("The backup has begun")
        assert (await says(family)).startswith("The backup is done")
        assert await family.answered("!backup yes") == "There is nothing to say yes to right now."
    assert len(family.home.archives) == 2


async def test_a_yes_may_be_written_and_comes_too_late_after_ten_minutes(family: Family) -> None:
    assert family.home.run("start").status == 0
    clock = Days()
    async with family.bot_runs(clock):
        await joined(family)
        await family.answered("!backup now")
        clock.ahead = timedelta(minutes=11)
        assert await family.answered("!backup yes") == "There is nothing to say yes to right now."
        clock.ahead = timedelta()
        await family.answered("!backup now")
        assert (await family.answered("!backup yes")).startswith("The backup has begun")
        assert (await says(family)).startswith("The backup is done")


async def test_what_fails_says_so_in_the_same_message_and_as_an_alert(family: Family) -> None:
    configure(family, '[sources.photos]\nkind = "directory"\npath = "gone"\n')
    async with family.bot_runs():
        await joined(family)
        assert (await family.answered("!backup now")).startswith("The backup has begun")
        said = sorted([await says(family), await says(family)])
        assert said[0].startswith("Backup Alert\n")
        assert said[1] == (
            "The backup failed: Something to back up cannot be read\n"
            "Action needed: Check that all disks and folders are there"
        )


async def test_the_newest_backup_is_read_back(family: Family) -> None:
    assert family.home.run("start").status == 0
    async with family.bot_runs():
        await joined(family)
        assert (await family.answered("!backup verify")).startswith("I am reading back the backup of today ")
        assert (await says(family)).endswith("is good: every byte was read back and compared.")
        (archive,) = family.home.archives
        content = bytearray(archive.read_bytes())
        content[len(content) // 2] ^= 1
        archive.write_bytes(content)
        assert (await family.answered("!backup verify")).startswith("I am reading back")
        said = [await says(family), await says(family)]
        assert any(text.startswith("Backup Alert") for text in said)
        assert any(" is damaged: " in text for text in said)


async def test_of_several_jobs_one_is_named(family: Family) -> None:
    configure(family, more='[jobs.Photos-weekly]\ncron = "30 4 * * sun"\n')
    async with family.bot_runs():
        await joined(family)
        which = "Which backup? Write one of these:\n!backup now nightly\n!backup now Photos-weekly"
        assert await family.answered("!backup now") == which
        assert await family.answered("!backup now nihgtly") == which
        assert await family.answered("backup now") == which
        await family.anna.say(family.room, "backup now please")
        await family.quiet(1)
        assert (await family.answered("backup now Photos-weekly")).startswith("The backup has begun")
        assert (await says(family)).startswith("The backup is done")
        assert (await family.answered("Backup now Nightly")).startswith("The backup has begun"), "as telephones write"
        assert (await says(family)).startswith("The backup is done")
        listed = (await family.answered("!backup list")).splitlines()[1:]
        assert [line.rpartition(" good ")[2] for line in listed] == ["(nightly)", "(Photos-weekly)"]
    assert [row["job"] for row in family.home.rows()] == ["nightly", "Photos-weekly"]


async def test_snoozed_it_leaves_reminders_be_for_a_week(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        assert (await family.answered("!backup snooze")).startswith("No reminders until ")
    book = Book.from_json((family.home.folder / "state" / "alarms.json").read_bytes())
    assert book.snoozed_until and timedelta(days=6.9) < book.snoozed_until - now() < timedelta(days=7)


async def test_who_is_no_admin_gets_silence_and_an_audit_line(family: Family, person: Person) -> None:
    async with family.bot_runs():
        await joined(family)
        other = await grandma(family, person)
        await other.say(family.room, "backup now please")  # a sentence, and no command
        for text in ("!backup snooze", "!backup snooze", "!backup verify", "!backup yes"):
            await other.say(family.room, text)
        await other.say(family.room, "!backup help")  # asking is for everybody
        assert (await other.next(family.room, sender=family.bot)).body.startswith("I can tell")
        mallory = await person("mallory")
        await mallory.create_room(invite=[family.bot])
        await until(lambda: asyncio.sleep(0, len(family.home.audit()) == 4))
        await other.silent(family.room, sender=family.bot, for_s=0.5)
    assert sorted((a["actor"], a["action"], a["outcome"]) for a in family.home.audit()) == [
        (other.user_id, "snooze", "refused"),
        (other.user_id, "verify", "refused"),
        (other.user_id, "yes", "refused"),
        (mallory.user_id, "invitation", "refused"),
    ]
    assert not family.home.archives


async def test_a_backup_that_was_asked_for_goes_on_where_the_chat_ends(
    family: Family, synapse: object, tmp_path: Path
) -> None:
    """A login that was ended ends the chat, and no backup."""
    from memu_backup.chat.account import Safe
    from tests.synapse import Synapse

    assert isinstance(synapse, Synapse)
    account = Safe(family.home.folder / "state").account()
    assert account
    (family.home.photos / "film.mp4").write_bytes(b"film" * 50_000_000)
    async with family.bot_runs() as running:
        await joined(family)
        await family.answered("!backup now")
        await synapse.ask("POST", "/_matrix/client/v3/logout", {}, token=account.token)
        await asyncio.wait({running}, timeout=20)
        await until(lambda: asyncio.sleep(0, [row["status"] for row in family.home.rows()] == ["success"]), 30)

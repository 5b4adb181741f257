"""A parent types one word into the family's room, and the answer comes back."""

from __future__ import annotations

import asyncio
import json
import logging
import signal
import stat
import subprocess
from pathlib import Path
from urllib.parse import quote

import pytest

from memu_backup import alarms
from memu_backup.access import Access, Role
from memu_backup.chat.account import Safe
from memu_backup.chat.login import log_in
from memu_backup.clock import now
from memu_backup.errors import LoginEnded
from tests.chat.conftest import Person
from tests.chat.family import PASSWORD, Family, configure, is_member, joined, settled, until
from tests.home import Home
from tests.human import Human
from tests.receiver import Receiver
from tests.synapse import Synapse


async def test_process_message_backup_status(family: Family) -> None:
    """Memu's specification: the bot responds to the command."""
    assert family.home.run("start").status == 0
    async with family.bot_runs():
        await joined(family)
        status = await family.answered("/backup-status")
        assert status.startswith("Backup Status:\nLast backup: Today ")
        assert status == family.home.run("status").out.rstrip("\n")
        assert (await family.answered("!backup list")).startswith("Backups:\nToday ")
        assert "!backup status" in await family.answered("  Backup Help ")
        assert await family.answered("!backup stauts") == "Did you mean !backup status?"
        assert (await family.answered("!backup page")).startswith("The page is off.")
        for other in ("status", "backup the photos please", "/me backup status"):
            await family.anna.say(family.room, other)
        await family.anna.silent(family.room, sender=family.bot, for_s=1)


async def test_the_details_are_folded_below_the_status_and_not_in_its_text(family: Family) -> None:
    assert family.home.run("start").status == 0
    async with family.bot_runs():
        await joined(family)
        await family.anna.say(family.room, "!backup status")
        heard = await family.anna.next(family.room, sender=family.bot)
    assert heard.decrypted and heard.body == family.home.run("status").out.rstrip("\n")
    shown, folded = heard.formatted_body.split("<details><summary>Details</summary>")
    assert shown == f"<b>{heard.body}".replace("\n", "</b><br>", 1).replace("\n", "<br>")
    lines = family.home.run("status", "--details").out.splitlines()
    details = [line.strip() for line in lines][len(heard.body.splitlines()) :]
    assert folded == "<br>".join(details) + "</details>" and "Re-read within 30 days: " in folded
    assert "Photos: 2 files, newest from today" in folded


async def test_a_link_to_the_page_signs_in_whoever_opens_it_first_to_look(family: Family) -> None:
    with (family.home.folder / "config.toml").open("a") as config:
        config.write('[web]\nenabled = true\nurl = "https://backup.example.org"\n')
    async with family.bot_runs():
        await joined(family)
        said = await family.answered("!backup page")
    link = said.splitlines()[1]
    assert said.startswith("This signs in whoever opens it first") and link.startswith(
        "https://backup.example.org/enter?"
    )
    access = Access(family.home.folder / "state" / "web", now)
    who = access.by_session(access.redeem(link.partition("code=")[2]))
    assert (who.name, who.role) == (family.anna.user_id, Role.VIEWER)


async def test_a_disk_that_is_away_is_not_told_as_if_there_never_was_a_backup(family: Family) -> None:
    assert family.home.run("start").status == 0
    family.home.backups.rename(family.home.folder / "unplugged")
    async with family.bot_runs():
        await joined(family)
        said = await family.answered("!backup list")
    assert said.startswith("No backup can be seen right now.\n\nBackup Status:\nLast backup: Today ")
    assert "check that the backup disk is connected" in said


async def test_it_is_heard_in_a_restart_once(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        await family.answered("!backup help")
    heard = family.home.folder / "state" / "chat" / "heard.json"
    stopped_at = json.loads(heard.read_text())["token"]
    await family.anna.say(family.room, "!backup status")
    async with family.bot_runs():
        assert (await family.anna.next(family.room, sender=family.bot)).body.startswith("Backup Status:")
    # As after a kill between the answer and the note of how far it came.
    heard.write_text(json.dumps({**json.loads(heard.read_text()), "token": stopped_at}))
    async with family.bot_runs():
        await family.anna.silent(family.room, sender=family.bot, for_s=2)


async def test_what_is_not_said_to_it_by_the_family_is_not_answered(
    family: Family, synapse: Synapse, person: Person, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    mallory = await person("mallory")
    trap, den = await mallory.create_room(invite=[family.bot]), await mallory.create_room(invite=[family.bot])
    account = Safe(family.home.folder / "state").account()
    assert account
    await synapse.ask("POST", f"/_matrix/client/v3/rooms/{quote(den)}/join", {}, token=account.token)
    async with family.bot_runs():
        await joined(family)
        asked = await family.anna.say(family.room, "hello")
        edit = {"m.relates_to": {"rel_type": "m.replace", "event_id": asked}}
        await family.anna.say(family.room, "!backup status", **edit)
        await family.anna.say_plain(family.room, "!backup status")
        await family.anna.say(family.room, "!backup status", msgtype="m.notice")
        await mallory.say(den, "!backup status")
        await family.anna.silent(family.room, sender=family.bot, for_s=2)
        await mallory.silent(den, sender=family.bot, for_s=0.1)
        assert not await is_member(family, family.bot, of=trap, asking=mallory)
    anna = family.anna.user_id
    for line in (
        f"An edit by {anna} is passed over.",
        f"A message of {anna} came without encryption and is passed over.",
        f"A notice of {anna} is passed over.",
        f"A message in another room ({den}) is not for the bot.",
        f"An invitation of {mallory.user_id} to the room {trap} is passed over.",
    ):
        assert caplog.messages.count(line) == 1, line


async def test_a_phone_that_was_just_added_can_read_the_answer(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    async with family.bot_runs():
        await joined(family)
        await family.answered("!backup help")
        phone = await Human.login(synapse, family.anna.user_id, PASSWORD, tmp_path / "new phone")
        try:
            await phone.say(family.room, "!backup status")
            while not (heard := await phone.next(family.room, sender=family.bot)).decrypted:
                assert heard.body == ""  # what was said before it was there
            assert heard.body.startswith("Backup Status:")
        finally:
            await phone.close()


@pytest.mark.slow
async def test_a_homeserver_that_goes_and_comes_back_is_waited_for(family: Family, synapse: Synapse) -> None:
    synapse.stop()
    async with family.bot_runs() as running:
        await asyncio.sleep(1)
        synapse.start()
        await joined(family)
        await family.answered("!backup help")
        synapse.kill()
        await asyncio.sleep(0.5)
        synapse.start()
        assert (await family.answered("!backup status")).startswith("Backup Status:")
        assert not running.done()


@pytest.mark.slow
async def test_a_homeserver_that_asks_for_patience_gets_it(tmp_path: Path, database: str) -> None:
    with Synapse(tmp_path / "synapse", {"rc_message": {"per_second": 0.7, "burst_count": 1}}) as strict:
        bot, anna_id = [await strict.register(name, PASSWORD) for name in ("bot", "anna")]
        anna = await Human.login(strict, anna_id, PASSWORD, tmp_path / "phone")
        try:
            family = await settled(strict, Home(tmp_path / "home", database), anna, bot)
            async with family.bot_runs():
                await joined(family)
            for word in ("help", "status", "list"):
                await anna.say(family.room, f"!backup {word}")
            async with family.bot_runs():
                said = [(await anna.next(family.room, sender=bot, timeout_s=20)).body for _ in range(3)]
                assert [text.partition(" ")[0] for text in said] == ["I", "Backup", "No"]
        finally:
            await anna.close()


@pytest.mark.slow
async def test_a_message_of_an_odd_shape_does_not_keep_it_from_the_next(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        await family.anna.say(family.room, "hello", **{"m.relates_to": "nothing"})
        assert (await family.answered("!backup status")).startswith("Backup Status:")


async def test_a_login_that_was_ended_ends_the_chat_with_a_sentence(family: Family, synapse: Synapse) -> None:
    account = Safe(family.home.folder / "state").account()
    assert account
    async with family.bot_runs() as running:
        await joined(family)
        await synapse.ask("POST", "/_matrix/client/v3/logout", {}, token=account.token)
        with pytest.raises(LoginEnded, match="memu-backup chat login"):
            await asyncio.wait_for(asyncio.shield(running), 15)


@pytest.mark.slow
async def test_the_service_answers_and_ends_in_order(family: Family, tmp_path: Path) -> None:
    assert family.home.run("start").status == 0
    state = family.home.folder / "state"
    before = list(state.rglob("*"))
    service = started(family.home, tmp_path / "log")
    try:
        await joined(family)
        assert (await family.answered("!backup status")).startswith("Backup Status:\nLast backup: Today ")
        service.send_signal(signal.SIGTERM)
        assert await asyncio.to_thread(service.wait, 8) == 0
    finally:
        service.kill()
        service.wait()
    said = (tmp_path / "log").read_text()
    account = Safe(family.home.folder / "state").account()
    assert account and account.token not in said and account.pickle_key not in said
    assert "WARNING" not in said and "ERROR" not in said, said
    made = [path for path in state.rglob("*") if path not in before]
    assert {path.name for path in made} >= {"heard.json", "alarms.json", "service"}
    for path in (*made, *family.home.archives):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


@pytest.mark.slow
async def test_who_signs_the_bot_in_anew_need_not_start_the_service_anew(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    service = started(family.home, tmp_path / "log")
    try:
        await joined(family)
        await family.answered("!backup help")
        await log_in(Safe(family.home.folder / "state"), synapse.url, family.bot, PASSWORD)
        await family.anna.say(family.room, "!backup status")
        assert (await family.hears(20)).startswith("Backup Status:")
        await asyncio.sleep(1)
        assert (await family.answered("!backup help")).startswith("I can tell")
    finally:
        service.terminate()
        service.wait()
    assert "ERROR" not in (log := (tmp_path / "log").read_text()) and "unexpected" not in log


@pytest.mark.slow
async def test_a_login_that_cannot_be_read_is_told_and_taken_up_where_it_is_back(
    family: Family, tmp_path: Path, receiver: Receiver
) -> None:
    configure(family, more=f'[alerts]\nfallback = ["json://{receiver.at}/"]\n')
    assert family.home.run("start").status == 0
    state = family.home.folder / "state"
    account = state / "chat" / "account.json"
    good = account.read_text()
    account.write_text(good[:-9])
    begun = alarms.Told(now() - alarms.PATIENCE)
    alarms.write(alarms.file_in(state), alarms.Book({alarms.CHAT: alarms.Alarm(alarms.CHAT, "broken", begun)}))
    service = started(family.home, tmp_path / "log")
    try:
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
        assert "The bot does not work" in json.loads(receiver.heard[0].body)["message"]
        assert f"{account} is damaged, so the chat does not work" in (tmp_path / "log").read_text()
        account.write_text(good)
        await joined(family)
    finally:
        service.terminate()
        service.wait()


@pytest.mark.slow
async def test_a_room_without_a_bot_is_said_when_the_service_starts(family: Family, tmp_path: Path) -> None:
    (family.home.folder / "state" / "chat" / "account.json").unlink()
    service = started(family.home, tmp_path / "log")
    try:
        await until(lambda: asyncio.sleep(0, "memu-backup chat login" in (tmp_path / "log").read_text()))
    finally:
        service.terminate()
        service.wait()


def started(home: Home, log: Path, *before: str) -> subprocess.Popen[bytes]:
    """The service, where files are open to everybody; ``before`` are options that stand before the command."""
    with log.open("wb") as written:
        return subprocess.Popen(home.argv(*before, "run"), cwd=home.folder, stdout=written, stderr=written, umask=0)

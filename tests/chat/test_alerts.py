"""What the bot says by itself, in a real room and beside it, and that it says it once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from memu_backup import alarms
from memu_backup.alarms import Book
from memu_backup.alerts.apprise import AppriseChannel
from memu_backup.chat.account import Safe
from memu_backup.clock import now
from tests.chat.family import PHOTOS, Family, configure, joined, until
from tests.chat.test_bot import started
from tests.home import children, query
from tests.receiver import Receiver
from tests.synapse import Synapse

NO_DATABASE = '[sources.chat]\nkind = "postgres"\nurl = "postgresql://nobody@127.0.0.1:1/chat"\n'


class Days:
    """The real time, some days on."""

    def __init__(self) -> None:
        self.ahead = timedelta()

    def __call__(self) -> datetime:
        return now() + self.ahead


async def runs(family: Family, status: int = 0) -> None:
    ran = await asyncio.to_thread(family.home.run, "start")
    assert ran.status == status, ran


def told(family: Family) -> list[bool]:
    """Of each row, newest first, whether somebody was told."""
    return [row["notification_sent"] for row in family.home.rows()]


async def test_a_failure_is_told_once_and_then_that_all_is_well(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        configure(family, NO_DATABASE)
        await runs(family, 1)
        alert = await family.hears()
        assert alert.startswith("Backup Alert\nThe backup at ")
        assert alert.endswith(
            " failed: The database did not answer\nAction needed: Check that the database is running\n\n"
            "Use /backup-status for details"
        )
        await until(lambda: asyncio.sleep(0, told(family) == [True]))
        await runs(family, 1)
        await until(lambda: asyncio.sleep(0, told(family) == [True, True]))
        configure(family)
        await runs(family)
        assert (await family.hears()).startswith("All well again\nThe backup at ")
        await family.quiet()


async def test_what_failed_while_the_service_was_off_is_told_when_it_is_back_as_it_stands_then(family: Family) -> None:
    configure(family, NO_DATABASE)
    await runs(family, 1)
    configure(family, '[sources.photos]\nkind = "directory"\npath = "gone"\n')
    await runs(family, 1)
    async with family.bot_runs():
        assert "Something to back up cannot be read" in await family.hears()
        await until(lambda: asyncio.sleep(0, told(family) == [True, True]))
        await family.quiet()


async def test_what_failed_and_worked_since_is_told_to_nobody(family: Family) -> None:
    configure(family, NO_DATABASE)
    await runs(family, 1)
    configure(family)
    await runs(family)
    async with family.bot_runs():
        await joined(family)
        await until(lambda: asyncio.sleep(0, all(row["notification_sent"] for row in family.home.rows()[1:])))
        await family.quiet()


@pytest.mark.slow
async def test_killed_between_telling_and_noting_it_the_service_tells_it_once(
    family: Family, synapse: Synapse, tmp_path: Path
) -> None:
    configure(family, NO_DATABASE)
    await runs(family, 1)
    book = family.home.folder / "state" / "alarms.json"
    synapse.stop()
    service = started(family.home, tmp_path / "log")
    try:
        await until(lambda: asyncio.sleep(0, book.exists() and b"job:nightly" in book.read_bytes()))
        before = book.read_bytes()
        assert not Book.from_json(before).alarms["job:nightly"].told.by
        synapse.start()
        assert "The database did not answer" in await family.hears(30)
    finally:
        service.kill()
        service.wait()
    # As if the kill had come before what was said could be noted.
    book.write_bytes(before)
    await query(family.home.history, "UPDATE backup_history SET notification_sent = FALSE")
    async with family.bot_runs():
        await until(lambda: asyncio.sleep(0, told(family) == [True]))
        await family.quiet()


async def test_after_ten_minutes_without_the_room_it_goes_another_way_and_then_to_the_room(
    family: Family, synapse: Synapse, receiver: Receiver
) -> None:
    clock = Days()
    async with family.bot_runs(clock, AppriseChannel([f"json://{receiver.at}/"])):
        await joined(family)
        synapse.stop()
        configure(family, NO_DATABASE)
        await runs(family, 1)
        await asyncio.sleep(1)
        clock.ahead = timedelta(minutes=9)
        await family.look()
        await asyncio.sleep(1)
        assert receiver.heard == []
        clock.ahead = timedelta(minutes=11)
        await family.look()
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
        mail = json.loads(receiver.heard[0].body)
        assert mail["title"] == "Backup Alert"
        assert mail["message"].endswith("The family's room cannot be reached right now, so this comes another way.")
        await until(lambda: asyncio.sleep(0, told(family) == [True]))
        synapse.start()
        assert "The database did not answer" in await family.hears(40)
        assert len(receiver.heard) == 1


async def test_a_way_by_which_nothing_gets_through_is_left_alone_for_a_while(
    family: Family, synapse: Synapse, receiver: Receiver
) -> None:
    receiver.status = 500
    configure(family, NO_DATABASE)
    await runs(family, 1)
    synapse.stop()
    book = alarms.file_in(family.home.folder / "state")
    due = alarms.Told(now() - timedelta(minutes=11))
    alarms.write(book, Book({"job:nightly": alarms.Alarm("job:nightly", "database_away", due)}))
    async with family.bot_runs(fallback=AppriseChannel([f"json://{receiver.at}/"])):
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
        for _ in range(3):
            await family.look()
            await asyncio.sleep(0.3)
        assert len(receiver.heard) == 1
        assert told(family) == [False]


async def test_a_login_that_was_ended_is_told_another_way_at_once_and_in_the_status(
    family: Family, synapse: Synapse, receiver: Receiver
) -> None:
    account = Safe(family.home.folder / "state").account()
    assert account
    await runs(family)
    async with family.bot_runs(fallback=AppriseChannel([f"json://{receiver.at}/"])):
        await joined(family)
        await synapse.ask("POST", "/_matrix/client/v3/logout", {}, token=account.token)
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
    assert "signed out of the family's room" in json.loads(receiver.heard[0].body)["message"]
    said = family.home.run("status")
    assert "Health: The bot was signed out of the chat - on the server, type: memu-backup chat login" in said.out
    assert json.loads(family.home.run("status", "--json").out)["nightly"]["problems"] == ["chat_ended"]


async def test_a_run_that_was_killed_is_told_without_another_run(family: Family, receiver: Receiver) -> None:
    """In the room, and to the dead-man's switch outside."""
    expected_at(family, receiver)
    (family.home.photos / "film.mp4").write_bytes(b"film" * 20_000_000)
    async with family.bot_runs():
        await joined(family)
        running = family.home.started("start")
        await until(lambda: _row_says(family, "in_progress"))
        running.kill()
        running.communicate()
        await family.look()
        assert "failed: It was interrupted" in await family.hears(70)
        await until(lambda: asyncio.sleep(0, "/uuid/fail" in [request.path for request in receiver.heard]))


async def _row_says(family: Family, status: str) -> bool:
    try:
        return any(row["status"] == status for row in await asyncio.to_thread(family.home.rows))
    except Exception:  # before there is a table
        return False


async def test_no_good_backup_for_too_long_is_told_though_none_failed(family: Family) -> None:
    await runs(family)
    clock = Days()
    async with family.bot_runs(clock):
        await joined(family)
        await family.quiet(1)
        clock.ahead = timedelta(days=1.6)
        await family.look()
        await family.quiet(1)  # it may just be made up for
        clock.ahead += timedelta(minutes=6)
        await family.look()
        assert (await family.hears()).startswith("Backup Alert\nThere is no good backup since ")


async def test_a_completed_backup_is_told_of_where_that_is_asked_for(family: Family) -> None:
    configure(family, more="[alerts]\ncompleted = true\n")
    async with family.bot_runs():
        await joined(family)
        await runs(family)
        said = await family.hears()
        assert said.startswith("Backup Complete\nThe backup at ") and " worked (" in said
        await family.quiet()


async def test_a_report_that_is_wished_for_stands_in_the_room_once(family: Family) -> None:
    configure(family, more='[alerts]\nreports = ["daily"]\n')
    await runs(family)
    async with family.bot_runs():
        title, nightly = (await family.hears()).splitlines()
        assert (title, nightly[:24]) == ("Daily backup summary", "nightly: 1 backup made; ")
        await family.quiet()
    async with family.bot_runs():
        await joined(family)
        await family.quiet()


async def test_should_send_usb_reminder(family: Family) -> None:
    """Memu's specification: each Sunday at ten, where there is no copy for more than seven days."""
    family.home.configure(
        top=f'backup_notification_room = "{family.room}"', more=f'[chat]\nadmins = ["{family.anna.user_id}"]\n'
    )
    config = family.home.folder / "config.toml"
    config.write_text(config.read_text().replace("overdue_days = 0", "overdue_days = 7"))
    await runs(family)
    await query(family.home.history, "UPDATE backup_history SET usb_copied_at = now()")
    clock = Days()
    sunday = next_sunday_at_ten(now())
    async with family.bot_runs(clock):
        await joined(family)
        book = family.home.folder / "state" / "alarms.json"
        await until(lambda: asyncio.sleep(0, book.exists() and b'"reminded_at": null' not in book.read_bytes()))
        clock.ahead = sunday + timedelta(days=14, hours=-1) - now()
        await family.look()
        await family.quiet(1)
        clock.ahead = sunday + timedelta(days=14, minutes=-1) - now()
        await family.look()
        assert "There is no good backup since" in await family.hears()  # none was made meanwhile
        await family.quiet(1)
        clock.ahead = sunday + timedelta(days=14, minutes=1) - now()
        await family.look()
        reminder = await family.hears()
        copied = (await query(family.home.history, "SELECT usb_copied_at FROM backup_history"))[0]["usb_copied_at"]
        zone = ZoneInfo("Europe/Berlin")
        days = ((sunday + timedelta(days=14)).astimezone(zone).date() - copied.astimezone(zone).date()).days
        lines = reminder.split("\n")
        assert lines[:4] == [
            "Weekly Backup Reminder",
            f"It's been {days} days since your last USB backup.",
            "",
            "Plug in your backup drive to save a copy of your family's data.",
        ]
        assert lines[4].startswith("Current backup size: ~")
        clock.ahead += timedelta(hours=12)
        await family.look()
        await family.quiet()


async def test_a_reminder_that_was_missed_comes_when_the_machine_is_on_again(family: Family) -> None:
    if not alarms.reminder_due(now() - timedelta(days=8), now(), ZoneInfo("Europe/Berlin")):
        pytest.skip("it is nearly Sunday, and the next one is close")
    config = family.home.folder / "config.toml"
    config.write_text(config.read_text().replace("overdue_days = 0", "overdue_days = 7"))
    await runs(family)
    await query(family.home.history, "UPDATE backup_history SET usb_copied_at = now() - interval '9 days'")
    book = alarms.file_in(family.home.folder / "state")
    alarms.write(book, Book(reminded_at=now() - timedelta(days=8)))
    async with family.bot_runs():
        assert "It's been 9 days since your last USB backup." in await family.hears()
    async with family.bot_runs():
        await family.quiet()
    alarms.write(book, Book(reminded_at=now() - timedelta(days=8), snoozed_until=now() + timedelta(days=1)))
    async with family.bot_runs():
        await family.quiet()


async def test_a_history_that_stays_away_is_told_after_an_hour(family: Family) -> None:
    nowhere = "postgresql://nobody@127.0.0.1:1/nothing"
    top, more = f'backup_notification_room = "{family.room}"', f'[chat]\nadmins = ["{family.anna.user_id}"]\n'
    family.home.configure(history=nowhere, top=top, more=more)
    book = alarms.file_in(family.home.folder / "state")
    async with family.bot_runs():
        await joined(family)
        await until(lambda: asyncio.sleep(0, book.exists() and "history" in alarms.read(book).alarms))
        await family.quiet(1)
    begun = alarms.read(book)
    alarm = begun.alarms["history"]
    assert timedelta(minutes=59) < alarm.told.due - now() <= timedelta(hours=1)
    due = replace(alarm, told=replace(alarm.told, due=now()))
    alarms.write(book, replace(begun, alarms={"history": due}))
    async with family.bot_runs():
        assert "The backup history has been out of reach for an hour" in await family.hears()
    family.home.configure(top=top, more=more)
    async with family.bot_runs():
        assert await family.hears() == "All well again\nThe backup history can be reached again."


def expected_at(family: Family, receiver: Receiver) -> None:
    """Its heartbeat goes there."""
    config, heartbeat = family.home.folder / "config.toml", f'heartbeat = "http://{receiver.at}/uuid"'
    config.write_text(config.read_text().replace("[jobs.nightly]", f"[jobs.nightly]\n{heartbeat}"))


def next_sunday_at_ten(after: datetime) -> datetime:
    from memu_backup.alarms import last_reminder

    return last_reminder(after + timedelta(days=7), ZoneInfo("Europe/Berlin")).astimezone(UTC)


@pytest.mark.parametrize("status", ["success", "failed"])
async def test_a_heartbeat_is_told_of_the_beginning_and_the_end(
    family: Family, receiver: Receiver, status: str
) -> None:
    configure(family, PHOTOS if status == "success" else NO_DATABASE)
    expected_at(family, receiver)
    async with family.bot_runs():
        await joined(family)
        await runs(family, 0 if status == "success" else 1)
        end = "/uuid" if status == "success" else "/uuid/fail"
        await until(lambda: asyncio.sleep(0, end in [request.path for request in receiver.heard]))
    assert [request.path for request in receiver.heard] in (["/uuid/start", end], [end])


async def test_no_secret_is_in_any_message_or_in_the_log(family: Family, receiver: Receiver, tmp_path: Path) -> None:
    secret = "canary-7f3-secret"
    (family.home.folder / "channels").write_text(f"json://anna:{secret}@{receiver.at}/{secret}?-token={secret}\n")
    configure(family, NO_DATABASE.replace("nobody@", f"nobody:{secret}@"), '[alerts]\nfallback_file = "channels"\n')
    config = family.home.folder / "config.toml"
    heartbeat = f'[jobs.nightly]\nheartbeat = "http://{receiver.at}/{secret}"'
    at = "?" if "?" not in family.home.history else "&"
    text = config.read_text().replace("[jobs.nightly]", heartbeat)
    config.write_text(text.replace(family.home.history, f"{family.home.history}{at}password={secret}"))
    assert config.read_text().count(secret) == 3
    receiver.status = 500  # so that there is something to complain of
    service = started(family.home, tmp_path / "log", "--debug")
    try:
        await joined(family)
        said = [await family.answered(f"!backup {word}") for word in ("status", "list", "help", "now")]
        said += [await family.hears(), await family.hears()]
        said += [await family.answered("!backup status"), await family.answered("!backup verify")]
        await until(lambda: asyncio.sleep(0, any("fail" in request.path for request in receiver.heard)))
        await asyncio.sleep(0.5)
        typed = " ".join(Path(f"/proc/{pid}/cmdline").read_text() for pid in (service.pid, *children(service.pid)))
    finally:
        service.terminate()
        await asyncio.to_thread(service.wait, 10)
    log = (tmp_path / "log").read_text()
    assert any("The database did not answer" in text for text in said)
    assert "The heartbeat at" in log
    safe = Safe(family.home.folder / "state")
    account, seeds = safe.account(), json.loads((safe.folder / "identity.json").read_text()).values()
    assert account and len(seeds) == 3
    for canary in (secret, account.token, account.pickle_key, "correct horse", *seeds):
        assert canary not in log + "".join(said) + repr(family.home.rows()) + repr(family.home.audit()) + typed
        assert canary not in family.home.run("status", "--json").out + family.home.run("log", "--json").out
        assert canary not in (family.home.folder / "state" / "alarms.json").read_text()

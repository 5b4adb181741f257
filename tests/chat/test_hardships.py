"""The chat is broken in one way or another: people are told another way, and of nothing that is not so."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from memu_backup import alarms
from memu_backup.alarms import FALLBACK, Alarm, Book, Told
from memu_backup.alerts.apprise import AppriseChannel
from memu_backup.chat.account import Account, Safe
from memu_backup.chat.bot import run as bot_runs
from memu_backup.chat.heard import Heard
from memu_backup.clock import Clock, now
from memu_backup.config import Config, load
from memu_backup.errors import ChatError
from memu_backup.history import History
from memu_backup.lock import held
from memu_backup.manager import Manager, history_of
from memu_backup.model import StatusReport
from memu_backup.postgres.server import PostgresServer
from memu_backup.standing import Standing
from memu_backup.teller import Teller
from tests.chat.conftest import Person
from tests.chat.family import Family, configure, joined, start, until
from tests.chat.test_alerts import NO_DATABASE, Days, runs, told
from tests.chat.test_bot import started
from tests.home import Home, query
from tests.receiver import Receiver
from tests.synapse import Synapse

ROOM = "!room:hs"


@asynccontextmanager
async def homeserver(send: Callable[[], web.Response]) -> AsyncIterator[str]:
    """One that answers all but well; ``send`` is what it says to a message."""

    async def handle(request: web.BaseRequest) -> web.StreamResponse:
        if "/sync" in request.path:
            await asyncio.sleep(0.1)
            rooms: dict[str, Any] = {"join": {ROOM: {"timeline": {"events": []}}}}
            return web.json_response({"next_batch": "s1", "rooms": rooms})
        if "m.room.encryption" in request.path:
            return web.json_response({"errcode": "M_NOT_FOUND", "error": "none"}, status=404)
        return send() if "/send/" in request.path else web.json_response({})

    runner = web.ServerRunner(web.Server(handle, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


@asynccontextmanager
async def telling(
    home: Home,
    clock: Clock = now,
    receiver: Receiver | None = None,
    account: Account | None = None,
    kind: type[Manager] = Manager,
) -> AsyncIterator[Teller]:
    config = load(home.folder / "config.toml", {})
    fallback = AppriseChannel([f"json://{receiver.at}/"]) if receiver else None
    async with history_of(config) as history:
        manager = kind(config, history, clock)
        teller = Teller(manager, clock, fallback, expects_room=account is not None)
        tasks = [asyncio.create_task(teller.run())]
        if account:
            tasks.append(asyncio.create_task(bot_runs(manager, teller, start, clock, account)))
        try:
            yield teller
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)


async def look(home: Home) -> None:
    await query(home.history, "NOTIFY memu_backup, '{}'")


@pytest.mark.parametrize(
    "answer", [({}, 200), ({"errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": "soon"}, 429)], ids=["no id", "odd 429"]
)
async def test_a_homeserver_that_answers_nonsense_does_not_mute_the_other_way(
    tmp_path: Path, database: str, receiver: Receiver, answer: tuple[dict[str, str], int]
) -> None:
    home = Home(tmp_path / "home", database)
    home.configure(sources=NO_DATABASE, top=f'backup_notification_room = "{ROOM}"')
    assert home.run("start").status == 1
    async with homeserver(lambda: web.json_response(answer[0], status=answer[1])) as url:
        (Safe(home.folder / "state").keys("DEVICE") / "keys").touch()
        clock = Days()
        async with telling(home, clock, receiver, Account(url, "@bot:hs", "DEVICE", "token", "key")):
            await asyncio.sleep(1)
            clock.ahead = timedelta(minutes=11)
            await look(home)
            await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
            await until(lambda: asyncio.sleep(0, told_in(home) == [True]))


def told_in(home: Home) -> list[bool]:
    return [row["notification_sent"] for row in home.rows()]


@pytest.mark.slow
async def test_keys_that_cannot_be_read_are_no_reason_to_say_what_nobody_can_read(
    family: Family, receiver: Receiver
) -> None:
    configure(family, NO_DATABASE)
    clock = Days()
    async with family.bot_runs(clock, AppriseChannel([f"json://{receiver.at}/"])):
        await joined(family)
        await asyncio.sleep(1)
        (store,) = (family.home.folder / "state" / "chat" / "keys").glob("*/*.db")
        other = sqlite3.connect(store, isolation_level=None)
        other.execute("BEGIN EXCLUSIVE")
        try:
            await runs(family, 1)
            await asyncio.sleep(7)  # sqlite waits for five
            assert told(family) == [False]
            clock.ahead = timedelta(minutes=11)
            await family.look()
            await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
        finally:
            other.execute("ROLLBACK")
            other.close()
        assert "The database did not answer" in await family.hears(60)


@pytest.mark.slow
async def test_keys_that_are_damaged_are_told_and_retried(family: Family, receiver: Receiver, tmp_path: Path) -> None:
    (store,) = (family.home.folder / "state" / "chat" / "keys").glob("*/*.db")
    await runs(family)
    good = store.read_bytes()
    store.write_bytes(b"\0" * 4096 + os.urandom(4096))
    book = alarms.file_in(family.home.folder / "state")
    begun = Told(now() - timedelta(minutes=11))
    alarms.write(book, Book({alarms.CHAT: Alarm(alarms.CHAT, "broken", begun)}))
    configure(family, more=f'[alerts]\nfallback = ["json://{receiver.at}/"]\n')
    service = started(family.home, tmp_path / "log")
    try:
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)), 20)
        assert "The bot does not work" in json.loads(receiver.heard[0].body)["message"]
        assert "Health: The chat does not work" in (await asyncio.to_thread(family.home.run, "status")).out
        store.write_bytes(good)
        await joined(family)
    finally:
        service.terminate()
        service.wait()


async def test_a_login_whose_keys_are_gone_is_not_gone_on_with(family: Family, synapse: Synapse) -> None:
    safe = Safe(family.home.folder / "state")
    account = safe.account()
    assert account
    before = await family.anna.device_trust(family.bot)
    shutil.rmtree(safe.folder / "keys")
    async with family.bot_runs() as running:
        with pytest.raises(ChatError, match="memu-backup chat login"):
            await asyncio.wait_for(asyncio.shield(running), 10)
    assert (await family.anna.device_trust(family.bot))["device_keys"] == before["device_keys"]


async def test_a_failure_that_comes_as_the_history_goes_is_told_when_it_is_back(
    tmp_path: Path, database: str, postgres: PostgresServer, receiver: Receiver
) -> None:
    """Its row was read, and then the report rests on the disk alone."""
    home = Home(tmp_path / "home", database)
    assert home.run("start").status == 0
    home.configure(sources=NO_DATABASE)
    name = database.rpartition("/")[2].partition("?")[0]

    class Between(Standing):
        outage = False

        async def reports(self) -> dict[str, StatusReport]:
            if not Between.outage:
                return await super().reports()
            Between.outage = False
            await query(postgres.url(), f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS false", "SELECT 1")
            try:
                return await super().reports()
            finally:
                await query(postgres.url(), f"ALTER DATABASE {name} WITH ALLOW_CONNECTIONS true", "SELECT 1")

    class Watched(Manager):
        def __init__(self, config: Config, history: History, clock: Clock) -> None:
            super().__init__(config, history, clock)
            self.standing.__class__ = Between

    async with telling(home, now, receiver, kind=Watched):
        await asyncio.sleep(1)
        Between.outage = True
        await query(
            database,
            "INSERT INTO backup_history "
            "(filename, size_bytes, status, error_code, run_id, host, job, trigger, location) "
            "SELECT 'memu_backup_x.tar.gz', 0, 'failed', 'database_away', 'failed', host, job, trigger, "
            "regexp_replace(location, '[^/]*$', 'memu_backup_x.tar.gz') FROM backup_history",
            "SELECT 1",
        )
        await asyncio.sleep(2)
        assert not Between.outage
        await look(home)
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
    assert "The database did not answer" in receiver.heard[0].body


@pytest.mark.slow
async def test_a_way_that_failed_once_does_not_keep_it_awake(
    tmp_path: Path, database: str, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memu_backup.teller._PAUSES_S", (1.0,))
    home = Home(tmp_path / "home", database)
    home.configure(sources=NO_DATABASE)
    assert home.run("start").status == 1
    receiver.status = 500
    async with telling(home, now, receiver):
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
        home.configure()
        assert (await asyncio.to_thread(home.run, "start")).status == 0
        await asyncio.sleep(3)
        before = await asked(home)
        await asyncio.sleep(4)
        assert await asked(home) - before <= 5  # a round takes three of them, and asking as many


async def asked(home: Home) -> int:
    """How many transactions the history has seen; this question is one of them."""
    (row,) = await query(
        home.history,
        "SELECT pg_stat_force_next_flush()",
        "SELECT xact_commit FROM pg_stat_database WHERE datname = current_database()",
    )
    return int(row["xact_commit"])


@pytest.mark.slow
async def test_commands_are_left_to_the_service_where_the_chat_is_tried_without_it(family: Family) -> None:
    async with family.bot_runs():
        await joined(family)
        await family.answered("!backup help")
    await family.anna.say(family.room, "!backup now")
    ran = await asyncio.to_thread(family.home.run, "chat", "test")
    assert ran.status == 0, ran
    assert (await family.hears()).startswith("Backup Test")
    await family.quiet(1)
    assert not family.home.archives
    async with family.bot_runs():
        assert (await family.hears()).startswith("The backup has begun")
        assert (await family.anna.next(family.room, sender=family.bot, timeout_s=20)).body.startswith(
            "The backup is done"
        )


@pytest.mark.slow
async def test_a_clock_that_was_far_ahead_does_not_silence_the_reminder(family: Family) -> None:
    config = family.home.folder / "config.toml"
    config.write_text(config.read_text().replace("overdue_days = 0", "overdue_days = 7"))
    await runs(family)
    await query(family.home.history, "UPDATE backup_history SET usb_copied_at = now() - interval '9 days'")
    book = alarms.file_in(family.home.folder / "state")
    far = now() + timedelta(days=3650)
    alarms.write(book, Book(reminded_at=far, snoozed_until=far))
    async with family.bot_runs():
        await joined(family)
        await until(lambda: asyncio.sleep(0, (alarms.read(book).reminded_at or far) < far))
    assert alarms.read(book).snoozed_until is None


async def test_a_reminder_stays_owed_while_nobody_can_know(tmp_path: Path, database: str) -> None:
    home = Home(tmp_path / "home", database)
    config = home.folder / "config.toml"
    good = config.read_text().replace("overdue_days = 0", "overdue_days = 7")
    config.write_text(good)
    assert home.run("start").status == 0
    await query(database, "UPDATE backup_history SET usb_copied_at = now() - interval '9 days'")
    book, before = alarms.file_in(home.folder / "state"), now() - timedelta(days=8)
    alarms.write(book, Book(reminded_at=before))
    config.write_text(good.replace(database, "postgresql://nobody@127.0.0.1:1/nothing"))
    async with telling(home):
        await asyncio.sleep(2)
    assert alarms.read(book).reminded_at == before


async def test_who_has_no_room_any_more_is_not_told_that_the_bot_is_back(
    tmp_path: Path, database: str, receiver: Receiver
) -> None:
    home = Home(tmp_path / "home", database)
    book = alarms.file_in(home.folder / "state")
    heard = frozenset({FALLBACK})
    ended = Alarm(alarms.CHAT, alarms.SIGNED_OUT, Told(now() - timedelta(hours=1), by=heard), heard)
    alarms.write(book, Book({alarms.CHAT: ended}))
    async with telling(home, now, receiver):
        await asyncio.sleep(2)
    assert receiver.heard == []


@pytest.mark.slow
async def test_that_all_is_well_comes_by_mail_without_a_word_of_the_room(family: Family, receiver: Receiver) -> None:
    configure(family)
    heard = frozenset({FALLBACK})
    ended = Alarm(alarms.CHAT, alarms.SIGNED_OUT, Told(now() - timedelta(hours=1), by=heard), heard)
    alarms.write(alarms.file_in(family.home.folder / "state"), Book({alarms.CHAT: ended}))
    await runs(family)
    async with family.bot_runs(fallback=AppriseChannel([f"json://{receiver.at}/"])):
        await until(lambda: asyncio.sleep(0, bool(receiver.heard)))
    assert json.loads(receiver.heard[0].body)["message"] == "The bot is back in the family's room."


@pytest.mark.slow
async def test_what_the_room_takes_after_a_sleep_goes_no_other_way(
    family: Family, synapse: Synapse, receiver: Receiver
) -> None:
    clock = Days()
    async with family.bot_runs(clock, AppriseChannel([f"json://{receiver.at}/"])):
        await joined(family)
        synapse.stop()
        configure(family, NO_DATABASE)
        await runs(family, 1)
        await asyncio.sleep(2)
        await asyncio.to_thread(synapse.start)
        clock.ahead = timedelta(hours=6)
        assert "The database did not answer" in await family.hears(40)
        await asyncio.sleep(1)
        assert receiver.heard == []


async def test_a_killed_run_is_told_while_the_place_of_another_job_is_busy(
    tmp_path: Path, database: str, receiver: Receiver
) -> None:
    home = Home(tmp_path / "home", database)
    second = '[jobs.other]\nsources = ["photos"]\nat = "03:00"\nstore = "second"\n'
    stores = '[stores.first]\nkind = "archive"\ndir = "backups"\n[stores.second]\nkind = "archive"\ndir = "elsewhere"\n'
    home.configure(more=second + stores)
    config = home.folder / "config.toml"
    config.write_text(config.read_text().replace("[jobs.nightly]", '[jobs.nightly]\nstore = "first"'))
    for job in ("nightly", "other"):
        assert home.run("start", job).status == 0
    async with telling(home, now, receiver):
        with held(home.folder / "elsewhere", "a long backup"):
            await query(
                database,
                "INSERT INTO backup_history (filename, size_bytes, status, run_id, host, job, trigger, location) "
                "SELECT 'memu_backup_x.tar.gz', 0, 'in_progress', 'killed', host, job, trigger, "
                "regexp_replace(location, '[^/]*$', 'memu_backup_x.tar.gz') FROM backup_history WHERE job = 'nightly'",
            )
            await until(lambda: asyncio.sleep(0, bool(receiver.heard)))


async def test_settings_that_share_host_and_job_do_not_hide_each_others_beats(
    tmp_path: Path, database: str, receiver: Receiver
) -> None:
    one, two = Home(tmp_path / "one", database), Home(tmp_path / "two", database)
    config = one.folder / "config.toml"
    heartbeat = f'[jobs.nightly]\nheartbeat = "http://{receiver.at}/uuid"'
    config.write_text(config.read_text().replace("[jobs.nightly]", heartbeat))
    for home in (one, two):
        assert home.run("start").status == 0
    async with telling(one):
        await until(lambda: asyncio.sleep(0, [r.path for r in receiver.heard] == ["/uuid"]))


async def test_a_message_in_somebody_elses_name_is_passed_over(
    family: Family, person: Person, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a homeserver could forge it."""
    from memu_backup.chat.session import Session

    bob = await person("bob")
    await family.anna.invite(family.room, bob.user_id)
    await bob.join(family.room)
    real = Session._poll

    async def forged(self: Session, client: object, *, first: bool) -> object:
        told = await real(self, client, first=first)
        for event in told.get("rooms", {}).get("join", {}).get(family.room, {}).get("timeline", {}).get("events", []):
            if event["sender"] == bob.user_id:
                event["sender"] = family.anna.user_id
        return told

    monkeypatch.setattr(Session, "_poll", forged)
    async with family.bot_runs():
        await joined(family)
        await bob.say(family.room, "!backup snooze")
        await family.quiet(2)
        assert (await family.answered("!backup help")).startswith("I can tell")
    assert not any(line["action"] == "snooze" for line in family.home.audit())


@pytest.mark.slow
async def test_channels_that_cannot_be_read_cost_no_backup(family: Family, tmp_path: Path) -> None:
    configure(family, more='[alerts]\nfallback_file = "/nowhere/channels"\n')
    service = started(family.home, tmp_path / "log")
    try:
        await joined(family)
        assert (await family.answered("!backup status")).startswith("Backup Status:")
    finally:
        service.terminate()
        service.wait()


@pytest.mark.slow
async def test_a_login_elsewhere_is_taken_up_though_the_old_homeserver_is_gone(family: Family, tmp_path: Path) -> None:
    safe = Safe(family.home.folder / "state")
    good = safe.account()
    assert good
    safe.keep_account(replace(good, homeserver="http://127.0.0.1:1"))
    service = started(family.home, tmp_path / "log")
    try:
        await until(lambda: asyncio.sleep(0, "does not answer" in (tmp_path / "log").read_text()))
        safe.keep_account(good)
        await joined(family)
    finally:
        service.terminate()
        service.wait()


def test_a_poll_without_news_writes_nothing(tmp_path: Path) -> None:
    file = tmp_path / "heard.json"
    heard = Heard(file)
    heard.came_to("s1")
    before = file.stat().st_ino
    keep = file.open()
    heard.came_to("s2", news=False)
    assert file.stat().st_ino == before
    heard.came_to("s3", keep=False)
    assert file.stat().st_ino == before and heard.token == "s3"
    keep.close()

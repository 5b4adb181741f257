"""The service and the nights that it missed or that failed: one backup for all those missed, and three more tries."""

from __future__ import annotations

import asyncio
import os
import subprocess
from collections.abc import AsyncIterator, Coroutine
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memu_backup import lock
from memu_backup.audit import Asker
from memu_backup.config import Config, load
from memu_backup.history import History
from memu_backup.manager import Manager
from memu_backup.model import Status, Trigger
from memu_backup.nights import Nights
from memu_backup.postgres.server import PostgresServer
from tests.archives import needs_root
from tests.contracts.stores import small_disk
from tests.service import PROGRAM, Clock, Service, archives, rows, settings

AWAY = '[sources.chat]\nkind = "postgres"\nurl = "postgresql://anna@127.0.0.1:1/chat"\n'
BY_HAND_TOO = """\
[jobs.nightly]
at = "02:00"
[jobs.by-hand]
sources = ["photos"]
"""


@pytest.fixture
def photos(tmp_path: Path) -> str:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(os.urandom(50_000))
    return '[sources.photos]\nkind = "directory"\npath = "photos"\n'


@pytest.fixture
async def stopped(tmp_path: Path) -> AsyncIterator[PostgresServer]:
    """A Postgres that is there and does not run."""
    server = PostgresServer(tmp_path / "stopped")
    async with server:
        pass
    yield server
    await server.stop()


async def by_hand(config: Path, at: str) -> None:
    """A backup that somebody makes at this time (UTC)."""
    found = load(config, {})
    assert found.backup_dir
    while lock.taken(found.backup_dir):  # the service may still be tidying up after its own
        await asyncio.sleep(0.05)
    async with History(found.history_url(), found.state_dir, found.host) as history:
        manager = Manager(found, history, lambda: datetime.fromisoformat(at).replace(tzinfo=UTC))
        anna = Asker("anna", "cli")
        assert (await manager.back_up("nightly", Trigger.MANUAL, anna, new_place=True)).status is Status.SUCCESS


def status(config: Path, clock: Clock) -> list[str]:
    """What a person reads, by the service's clock."""
    environment = {**os.environ, **clock.environment}
    argv = [PROGRAM, "--config", str(config), "status"]
    shown: str = subprocess.run(argv, env=environment, stdout=subprocess.PIPE, text=True).stdout
    return shown.splitlines()


async def looks_twice(service: Service) -> None:
    """It has looked at its clock since, which it takes to be right for a second (``Clock``)."""
    await asyncio.sleep(1.1)
    before = len(service.said("WATCHDOG=1"))
    await service.until(lambda: len(service.said("WATCHDOG=1")) >= before + 3)


async def told(url: str, *columns: str) -> list[tuple[Any, ...]]:
    return [tuple(row[c] for c in columns) for row in await rows(url)]


# --- what was missed -------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_however_many_nights_it_was_off_it_makes_one_backup_when_it_starts(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database, jobs=BY_HAND_TOO)
    clock = Clock(tmp_path, "2026-11-20T08:00:00")
    async with Service(config, clock, watchdog_s=0.2) as new:
        await new.logs("The history is kept in")
        await looks_twice(new)
        await new.stop()
    assert await rows(database) == []  # it waits for its first night
    await by_hand(config, "2026-11-20T09:00:00")
    clock.set("2026-11-24T08:00:00")
    async with Service(config, clock, watchdog_s=0.2) as late:
        await late.logs("success")
        await looks_twice(late)
        assert "that was due 2026-11-21 02:00 was missed" in late.log()
        assert late.said("STATUS=the next backup is due 2026-11-25 02:00")
        await late.stop()
    async with Service(config, clock, watchdog_s=0.2) as again:
        await again.logs("The history is kept in")
        await looks_twice(again)
        clock.set("2026-11-25T00:59:59")
        await again.logs("success")
        await again.stop()
    assert await told(database, "trigger", "job") == [
        ("manual", "nightly"), ("catch_up", "nightly"), ("schedule", "nightly"),
    ]  # fmt: skip


@pytest.mark.slow
async def test_what_it_slept_through_is_made_up_for_once_when_it_wakes_unless_by_hand_since(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.ready()
        for count, woken in enumerate(("2026-11-21T07:00:00", "2026-11-24T18:00:00"), start=1):
            clock.set(woken)
            await service.logs(": success", count)
            await looks_twice(service)
        await by_hand(config, "2026-11-25T06:59:00")
        clock.set("2026-11-25T07:00:00")
        await service.logs("was made by hand since")
        clock.set("2026-11-26T00:59:59")
        await service.logs(": success", 3)
        for jump in ("2036-11-26T07:00:00", "2026-11-26T07:00:00"):
            clock.set(jump)
            await looks_twice(service)
        await service.logs("what is due for job nightly is looked up anew")
        await service.stop()
    assert await told(database, "trigger") == [("catch_up",), ("catch_up",), ("manual",), ("schedule",)]
    assert len(archives(tmp_path)) == 4


@pytest.mark.slow
async def test_with_the_history_away_what_lies_on_disk_tells_what_was_missed(
    tmp_path: Path, photos: str, stopped: PostgresServer
) -> None:
    config = settings(tmp_path, photos, history=stopped.url())
    clock = Clock(tmp_path, "2026-11-19T20:00:00")
    await by_hand(config, "2026-11-19T20:00:00")
    for note in (tmp_path / "state" / "spool").glob("*.json"):
        note.unlink()
    for begin in ("2026-11-21T07:00:00", "2026-11-21T07:30:00"):
        clock.set(begin)
        async with Service(config, clock, watchdog_s=0.2) as service:
            await service.until(lambda: len(archives(tmp_path)) == 2)
            await service.logs("cannot be reached")
            await looks_twice(service)
            await service.stop()
    assert len(archives(tmp_path)) == 2


# --- what failed -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_database_that_comes_back_in_the_pause_is_backed_up_by_the_second_attempt(
    tmp_path: Path, database: str, stopped: PostgresServer
) -> None:
    """Also where the service is killed in that pause."""
    source = f'[sources.chat]\nkind = "postgres"\nurl = "{stopped.url()}"\nglobals = false\n'
    config = settings(tmp_path, source, history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.at_two(clock)
        await service.logs("is tried again at 02:05")
        service.process.kill()
        await service.process.wait()
    asked = status(config, clock)
    assert asked[1] == "Last backup: FAILED today 2:00 AM - The database did not answer"
    assert asked[-1] == "It is tried again at 2:05 AM."
    async with stopped, Service(config, clock, watchdog_s=0.2) as again:
        await again.logs("is tried again at 02:05")
        await again.until(lambda: again.said("STATUS=the next backup is due 2026-11-21 02:05"))
        await looks_twice(again)
        assert len(await rows(database)) == 1
        clock.set("2026-11-21T01:05:10")
        await again.logs("success")
        await looks_twice(again)
        await again.stop()
    assert await told(database, "attempt", "status", "trigger") == [
        (1, "failed", "schedule"),
        (2, "success", "schedule"),
    ]
    assert status(config, clock)[-1] == "Health: All systems healthy"


@pytest.mark.slow
async def test_what_stays_away_is_tried_four_times_with_growing_pauses_and_then_left_to_the_next_night(
    tmp_path: Path, database: str
) -> None:
    config = settings(tmp_path, AWAY, history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.at_two(clock)
        for attempt in (2, 3, 4):
            await service.logs("is tried again", attempt - 1)
            (*_, last) = await rows(database)
            clock.set(f"{last['retry_at'].astimezone(UTC):%Y-%m-%dT%H:%M:%S}")
        await service.logs("failed: ", 4)
        for later in ("2026-11-21T04:00:00", "2026-11-21T20:00:00"):
            clock.set(later)
            await looks_twice(service)
        assert await service.stop() < 5
    made = await rows(database)
    pauses = [r["retry_at"] and round((r["retry_at"] - r["finished_at"]) / timedelta(minutes=1)) for r in made]
    assert [(r["attempt"], p) for r, p in zip(made, pauses, strict=True)] == [(1, 5), (2, 15), (3, 45), (4, None)]
    assert {(r["error_code"], r["trigger"]) for r in made} == {("database_away", "schedule")}


@pytest.mark.slow
async def test_what_needs_a_person_is_not_tried_again(tmp_path: Path, photos: str, database: str) -> None:
    """Not where one of two things that are wrong could pass, either."""
    config = settings(tmp_path, AWAY + photos, history=database)
    (tmp_path / "photos" / "one.jpg").unlink()
    (tmp_path / "photos").rmdir()
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.at_two(clock)
        await service.logs("2 sources cannot be backed up")
        clock.set("2026-11-21T01:30:00")
        await looks_twice(service)
    assert await told(database, "error_code", "retry_at") == [("source", None)]


@pytest.mark.slow
async def test_a_new_night_and_a_backup_by_hand_end_what_was_to_be_tried_again(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, AWAY, history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.at_two(clock)
        await service.logs("is tried again at 02:05")
        with lock.held(tmp_path / "backups", "a test"):  # so that the new night's has no row yet
            clock.set("2026-11-22T01:00:01")
            await looks_twice(service)
        await service.logs("is tried again at 02:05", 2)
        settings(tmp_path, photos, history=database)
        await by_hand(config, "2026-11-22T01:02:00")
        clock.set("2026-11-22T01:10:00")
        await looks_twice(service)
        await service.stop()
    assert await told(database, "trigger", "attempt", "status") == [
        ("schedule", 1, "failed"), ("schedule", 1, "failed"), ("manual", 1, "success"),
    ]  # fmt: skip


async def test_a_service_that_starts_at_the_very_hour_does_not_take_its_own_run_for_an_earlier_one(
    tmp_path: Path, database: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    moment = datetime(2026, 11, 21, 1, 0, tzinfo=UTC)
    config = load(settings(tmp_path, AWAY, history=database), {})
    begun: list[asyncio.Task[None]] = []
    async with History(config.history_url(), config.state_dir, config.host) as history:

        def start(work: Coroutine[Any, Any, None], _: str) -> None:
            begun.append(asyncio.create_task(work))

        clock = iter([moment - timedelta(minutes=1)])
        nights = Nights(config, Manager(config, history, lambda: moment), start, lambda: next(clock, moment))
        nights.look("nightly")
        while not begun[0].done():  # the history answers at any moment of the run, also between its row and its end
            await asyncio.gather(nights.look_back(), asyncio.sleep(0.001))
    assert caplog.text.count("is tried again at 02:05") == 1


async def test_a_backup_by_hand_that_fails_ends_neither_the_retries_nor_what_was_missed(
    tmp_path: Path, photos: str, database: str
) -> None:
    """Nor where the service is started anew in between."""
    moment = [datetime(2026, 11, 21, 0, 59, tzinfo=UTC)]
    begun: list[Coroutine[Any, Any, None]] = []
    broken, whole = (load(settings(tmp_path, s, history=database), {}) for s in (AWAY + photos, photos))
    async with History(broken.history_url(), broken.state_dir, broken.host) as history:

        def nights(config: Config) -> Nights:
            def start(work: Coroutine[Any, Any, None], _: str) -> None:
                begun.append(work)

            return Nights(config, Manager(config, history, lambda: moment[0]), start, lambda: moment[0])

        async def look(watching: Nights, minutes: int) -> None:
            moment[0] += timedelta(minutes=minutes)
            watching.look("nightly")
            while begun:
                await begun.pop()

        async def by_hand_in_vain() -> None:
            moment[0] += timedelta(minutes=1)
            failing = Manager(broken, history, lambda: moment[0])
            assert (await failing.back_up("nightly", Trigger.MANUAL, Asker("anna", "cli"))).status is Status.FAILED

        async def made() -> list[tuple[Trigger, int, Status]]:
            return [(r.trigger, r.attempt, r.status) for r in reversed(await history.runs())]

        first = nights(broken)
        await look(first, 1)
        await by_hand_in_vain()
        await look(first, 4)
        assert (await made())[-1] == (Trigger.SCHEDULE, 2, Status.FAILED)
        await by_hand_in_vain()
        again = nights(whole)
        await again.look_back()
        await look(again, 15)
        assert (await made())[-1] == (Trigger.SCHEDULE, 3, Status.SUCCESS)

        moment[0] += timedelta(hours=30)  # asleep over the next night's time
        await by_hand_in_vain()
        await look(again, 1)
        assert (await made())[-1] == (Trigger.CATCH_UP, 1, Status.SUCCESS)
        assert len(await made()) == 7

        moment[0] += timedelta(hours=24)
        await by_hand_in_vain()
        late = nights(whole)
        await late.look_back()
        await look(late, 1)
        assert (await made())[-1] == (Trigger.CATCH_UP, 1, Status.SUCCESS)


@pytest.mark.slow
@needs_root
async def test_a_disk_that_is_mounted_in_the_pause_takes_the_second_attempt(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database)
    place = tmp_path / "backups"
    (place / ".memu-backup.json").rename(tmp_path / "mark")
    clock = Clock(tmp_path)
    async with Service(config, clock, watchdog_s=0.2) as service:
        await service.at_two(clock)
        await service.logs("is tried again at 02:05")
        assert list(place.iterdir()) == []
        with small_disk(place, "10m"):
            (place / ".memu-backup.json").write_bytes((tmp_path / "mark").read_bytes())
            clock.set("2026-11-21T01:05:10")
            await service.logs("success")
            await service.stop()
            assert len(archives(tmp_path)) == 1
    assert await told(database, "attempt", "error_code") == [(1, "not_mounted"), (2, None)]

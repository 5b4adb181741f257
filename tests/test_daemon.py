"""Shows the service at work as a real process: ready, on time, one run a night, whatever the clock does."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import psutil
import pytest
from apscheduler.schedulers.asyncio import AsyncIOScheduler

from memu_backup.daemon import mend
from memu_backup.postgres.server import PostgresServer
from memu_backup.schedule import timetable
from tests.service import PROGRAM, Clock, Service, archives, audit, command, rows, settings

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.fixture
def photos(tmp_path: Path) -> str:
    """A small source, as its table in the settings."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "one.jpg").write_bytes(os.urandom(50_000))
    return '[sources.photos]\nkind = "directory"\npath = "photos"\n'


# --- systemd ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("abstract", [False, True])
async def test_it_is_ready_soon_feeds_the_watchdog_says_what_is_next_and_that_it_stops(
    tmp_path: Path, photos: str, database: str, abstract: bool
) -> None:
    config = settings(tmp_path, photos, history=database)
    clock = Clock(tmp_path, "2026-11-20T12:00:00")
    async with Service(config, clock, notify=f"@memu-test-{os.getpid()}" if abstract else None) as service:
        await service.ready()
        assert service.said("READY=1")[0] - service.begun < 10  # 2 s asked for; here others may use the machine
        await service.until(lambda: len(service.said("WATCHDOG=1")) >= 4)
        beats = service.said("WATCHDOG=1")
        assert 0.2 < (beats[3] - beats[0]) / 3 < 1  # half of 1 s is meant, and more than 1 s would be death
        assert service.said("STATUS=the next backup is due 2026-11-21 02:00")
        assert not service.said("STOPPING=1")
        await service.stop()
        await asyncio.sleep(0.05)  # until we have heard it; it has ended already
        assert service.said("STOPPING=1")


@pytest.mark.slow
async def test_it_sleeps_when_there_is_nothing_to_do(tmp_path: Path, photos: str) -> None:
    async with Service(settings(tmp_path, photos, history=None), watchdog_s=120) as service:
        await service.logs("The history is kept in embedded")
        me = psutil.Process(service.process.pid)
        await asyncio.sleep(0.5)
        before = me.cpu_times()
        await asyncio.sleep(3)
        after = me.cpu_times()
        assert (after.user + after.system) - (before.user + before.system) < 0.3  # of 3 s; it is about 0.01
        assert await service.stop() < 10
        assert service.alive() == []  # the embedded Postgres neither


# --- the night -------------------------------------------------------------------------------------------------------


async def test_the_nightly_backup_is_made_at_its_time_and_written_down(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database)
    async with Service(config, Clock(tmp_path, "2026-11-21T00:59:53")) as service:  # a busy machine takes a while
        await service.ready()
        assert archives(tmp_path) == []
        await service.logs("success")
        await service.until(lambda: service.said("STATUS=the next backup is due 2026-11-22 02:00"))
        while not (noted := await audit(database)) or noted[0][-1] == "begun":
            await asyncio.sleep(0.05)
        await service.stop()
    (archive,) = archives(tmp_path)
    (row,) = await rows(database)
    assert (row["status"], row["trigger"], row["job"], row["error"]) == ("success", "schedule", "nightly", None)
    assert (row["filename"], row["size_bytes"]) == (archive.name, archive.stat().st_size)
    late = row["created_at"] - datetime(2026, 11, 21, 1, tzinfo=UTC)
    assert timedelta() <= late < timedelta(seconds=10)  # its place is looked at first, by a busy machine
    assert archive.name == f"memu_backup_{row['created_at'].astimezone(BERLIN):%Y%m%d_%H%M%S}.tar.gz"
    assert noted == [("memu-backup", "scheduler", "backup", archive.name, "success")]


@pytest.mark.slow
async def test_a_night_in_which_the_clocks_change_has_one_backup(tmp_path: Path, photos: str, database: str) -> None:
    source = photos.replace('"photos"', f'"{tmp_path / "photos"}"')
    jobs = '[jobs.nightly]\nat = "02:30"\n'
    async with asyncio.TaskGroup() as both:
        for name, night in (("autumn", _autumn), ("spring", _spring)):
            config = settings(tmp_path / name, source, history=database, jobs=jobs, host=name)
            both.create_task(night(tmp_path / name, config))
    for name, expected in (("autumn", "25 02:30 +0200"), ("spring", "29 03:30 +0200")):
        made = [r["created_at"].astimezone(BERLIN) for r in await rows(database, name)]
        assert [f"{at:%d %H:%M %z}" for at in made] == [expected]
        assert len(archives(tmp_path / name)) == 1


async def _autumn(folder: Path, config: Path) -> None:
    clock = Clock(folder, "2026-10-25T00:29:57.5")  # 02:29:57 for the first time
    async with Service(config, clock) as service:
        await service.logs("success")
        clock.set("2026-10-25T01:29:59")  # 02:29:59 for the second time
        await _goes_on_past(service, clock, "2026-10-25T01:30:03")
        assert _last_status(service) == "STATUS=the next backup is due 2026-10-26 02:30"


async def _spring(folder: Path, config: Path) -> None:
    clock = Clock(folder, "2026-03-29T00:59:57.5")  # 01:59:57, and then it is 03:00
    async with Service(config, clock) as service:
        await service.ready()
        await service.until(lambda: clock.now() > datetime(2026, 3, 29, 1, 0, 3, tzinfo=UTC))
        assert archives(folder) == []
        clock.set("2026-03-29T01:29:59")
        await service.logs("success")
        clock.set("2026-03-29T02:29:59")
        await _goes_on_past(service, clock, "2026-03-29T02:30:03")
        assert _last_status(service) == "STATUS=the next backup is due 2026-03-30 02:30"


async def _goes_on_past(service: Service, clock: Clock, moment: str) -> None:
    """Until it is later (UTC) and the service has looked at the time and its jobs twice since."""
    await service.until(lambda: clock.now() > datetime.fromisoformat(moment).replace(tzinfo=UTC))
    before = len(service.said("WATCHDOG=1"))
    await service.until(lambda: len(service.said("WATCHDOG=1")) >= before + 3)


def _last_status(service: Service) -> str:
    return [said for _, said in service.messages if said.startswith("STATUS=")][-1]


@pytest.mark.slow
async def test_a_source_that_is_not_there_fails_the_run_and_not_the_service(
    tmp_path: Path, photos: str, database: str
) -> None:
    shutil.rmtree(tmp_path / "photos")
    clock = Clock(tmp_path)
    async with Service(settings(tmp_path, photos, history=database), clock) as service:
        await service.at_two(clock)
        await service.logs("failed: ")
        (tmp_path / "photos").mkdir()
        clock.set("2026-11-22T00:59:59")
        await service.logs("success")
        assert f"{tmp_path / 'photos'} (source photos) is not there" in service.log()
        assert "Traceback" not in service.log()
        await service.stop()
    failed, made = await rows(database)
    assert (failed["status"], failed["error_code"], made["status"]) == ("failed", "source", "success")
    assert "is not there" in failed["error"]


@pytest.mark.slow
async def test_with_the_history_away_it_is_ready_and_works_and_later_tells(tmp_path: Path, photos: str) -> None:
    server = PostgresServer(tmp_path / "away")
    config = settings(tmp_path, photos, history=server.url())
    clock = Clock(tmp_path)
    async with server:  # the first backup; an empty place waits for its history
        first = PROGRAM, "--config", str(config), "start"
        done = await asyncio.create_subprocess_exec(*first, env={**os.environ, **clock.environment})
        assert await done.wait() == 0
    async with Service(config, clock) as service:
        await service.at_two(clock)
        assert service.said("READY=1")[0] - service.begun < 10
        await service.logs("success")
        assert len(archives(tmp_path)) == 2
        async with server:
            deadline = time.monotonic() + 5
            while [(r["status"], r["trigger"]) for r in await rows(server.url())] != [
                ("success", "manual"),
                ("success", "schedule"),
            ]:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.05)
            await service.stop()


@pytest.mark.slow
async def test_each_line_of_a_run_carries_its_id_and_no_line_a_secret(
    tmp_path: Path, photos: str, database: str
) -> None:
    canary = "c4n4ry-pa55"
    broken = f'[sources.chat]\nkind = "postgres"\nurl = "postgresql://anna:{canary}@127.0.0.1:1/chat"\n'
    config = settings(
        tmp_path,
        photos + broken,
        history=f"{database}&password={canary}",
        more='log_file = "logs/memu.log"',
        jobs=NIGHTLY_TWICE,
    )
    clock = Clock(tmp_path)
    async with Service(config, clock) as service:
        await service.at_two(clock)
        await service.logs("success")
        await service.logs("is tried again")
        seen = [" ".join(p.cmdline()) for p in service.alive()]
        await service.stop()
        ids = {str(r["job"]): str(r["run_id"])[:8] for r in await rows(database)}
        lines = service.log().splitlines()
    for job, number in ids.items():
        told = [line for line in lines if f"job {job}" in line]
        mine = [line for line in told if "waits for another" not in line]  # whichever of the two came second
        assert len(mine) == (2 if job == "good" else 3)  # that it is tried again
        assert all(f"[{number}]" in line for line in mine)
    written = (tmp_path / "logs" / "memu.log").read_text()
    assert [line.split("[", 1)[1] for line in written.splitlines()] == [line.split("[", 1)[1] for line in lines]
    assert f"{(tmp_path / 'logs' / 'memu.log').stat().st_mode & 0o777:o}" == "600"
    assert canary not in "\n".join([*lines, written, *seen, *map(str, await rows(database))])


NIGHTLY_TWICE = """\
[jobs.good]
at = "02:00"
sources = ["photos"]
[jobs.bad]
at = "02:00"
sources = ["chat"]
"""


# --- two of them, and a clock that jumps -----------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_second_service_with_the_same_settings_says_who_is_there_and_ends(
    tmp_path: Path, photos: str, database: str
) -> None:
    config = settings(tmp_path, photos, history=database)
    clock = Clock(tmp_path)
    async with Service(config, clock) as first:
        await first.ready()
        second = await asyncio.to_thread(command, config, "run")
        assert second.returncode == 75
        assert f"the service for these settings, process {first.process.pid}" in second.stderr
        await first.at_two(clock)
        await first.logs("success")
        first.process.kill()
        await first.process.wait()
        async with Service(config) as third:  # the kernel has let go
            await third.ready()
            await third.stop()
    assert len(archives(tmp_path)) == 1


@pytest.mark.slow
async def test_a_clock_that_was_years_ahead_for_a_while_does_not_cost_a_night(
    tmp_path: Path, photos: str, database: str
) -> None:
    clock = Clock(tmp_path, "2026-11-20T15:00:00")
    async with Service(settings(tmp_path, photos, history=database), clock) as service:
        await service.until(lambda: service.said("STATUS=the next backup is due 2026-11-21 02:00"))
        clock.set("2036-11-20T15:00:00")
        await service.until(lambda: service.said("STATUS=the next backup is due 2036-11-21 02:00"))
        clock.set("2026-11-20T15:01:00")
        before = time.monotonic()
        await service.until(lambda: _last_status(service) == "STATUS=the next backup is due 2026-11-21 02:00")
        assert time.monotonic() - before < 10  # with a watchdog of 1 s; it is a minute at the most
        clock.set("2026-11-21T00:59:59")
        await service.logs("success")
    assert [a.name[:20] for a in archives(tmp_path)] == ["memu_backup_20261121"]


@pytest.mark.parametrize(
    ("moment", "expected"),
    [
        ("2026-07-02 02:01", "2026-07-03 02:00"),  # as it should be
        ("2026-07-02 01:55", "2026-07-03 02:00"),  # put back a little: the night has its backup
        ("2026-07-01 15:00", "2026-07-03 02:00"),
        ("2026-06-20 12:00", "2026-06-21 02:00"),  # put back by days
        ("2000-01-01 00:00", "2000-01-01 02:00"),
        ("2036-05-01 12:00", "2026-07-03 02:00"),  # missed: that is for the scheduler
    ],
)
async def test_only_due_times_that_a_wrong_clock_has_set_are_mended(moment: str, expected: str) -> None:
    scheduler = AsyncIOScheduler(timezone=BERLIN)
    scheduler.start(paused=True)
    try:
        due = datetime(2026, 7, 3, 2, tzinfo=BERLIN)
        job = scheduler.add_job(asyncio.sleep, timetable("0 2 * * *", BERLIN), args=[0], next_run_time=due)
        mend(scheduler, datetime.fromisoformat(moment).replace(tzinfo=BERLIN))
        assert f"{job.next_run_time.astimezone(BERLIN):%Y-%m-%d %H:%M}" == expected
    finally:
        scheduler.shutdown(wait=False)

"""The one door: who asks is written down, and what killed runs left is settled."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from pathlib import Path

import asyncpg
import pytest

from memu_backup import lock
from memu_backup.audit import SCHEDULER, Asker
from memu_backup.config import load
from memu_backup.errors import LockHeld, UnknownBackup, UsageError
from memu_backup.history import History, rows
from memu_backup.manager import Manager
from memu_backup.model import Level, Problem, Progress, Run, Status, Trigger
from tests.home import Home, end, managed, query, wait_until

GRANDMA = Asker("@grandma:family.example", "chat")
NOON = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    home.mark()
    return home


@pytest.fixture
async def manager(home: Home) -> AsyncIterator[Manager]:
    config = load(home.folder / "config.toml", {})
    ticks = (NOON + timedelta(milliseconds=n) for n in count())
    async with History(config.history_url(), config.state_dir, config.host) as history:
        yield Manager(config, history, lambda: next(ticks))


async def test_whoever_asks_is_written_down(manager: Manager) -> None:
    run = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    store, stored = await manager.find("latest")
    await manager.verify(store, stored, Level.FULL, GRANDMA)
    events = await manager.history.audit_log()
    assert [(e.action, e.subject, e.actor, e.origin, e.outcome) for e in events] == [
        ("verify full", run.filename, "@grandma:family.example", "chat", "good"),
        ("backup", run.filename, "@grandma:family.example", "chat", "success"),
    ]


async def test_two_at_once_in_one_process_wait_for_each_other(manager: Manager, home: Home) -> None:
    runs = await asyncio.gather(*(manager.back_up("nightly", Trigger.MANUAL, GRANDMA) for _ in range(2)))
    assert [r.status for r in runs] == [Status.SUCCESS] * 2
    assert len(home.archives) == 2


async def test_recovering_settles_what_killed_runs_left(manager: Manager, home: Home) -> None:
    whole = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
    history = manager.history
    begun = replace(whole, status=Status.IN_PROGRESS, size_bytes=0, location="", finished_at=None)
    await history.record(replace(begun, sha256=None, verified_at=None))
    begun = Run(
        "r2", "family-server", "nightly", Trigger.SCHEDULE, "memu_backup_x.tar.gz", Status.IN_PROGRESS,
        NOON + timedelta(seconds=1),
    )  # fmt: skip
    theirs = replace(begun, run_id="r3", host="other")
    await history.record(begun)
    await history.record(theirs)
    (home.backups / ".stage-0000").mkdir()
    (home.backups / "memu_backup_20260501_000000.tar.gz.partial").write_bytes(b"half")

    with lock.held(home.backups, "backup job nightly"):
        await manager.recover()  # somebody is at work: theirs is not touched
        assert (home.backups / ".stage-0000").exists()
        assert (await manager.standing.reports())["nightly"].in_progress == begun
    assert (await manager.standing.reports())["nightly"].in_progress is None

    await manager.recover()
    assert home.leftovers() == []
    rows = {r.run_id: r for r in await history.runs()}
    adopted = rows[whole.run_id]
    assert (adopted.status, adopted.size_bytes, adopted.sha256) == (Status.SUCCESS, whole.size_bytes, whole.sha256)
    assert adopted.verified_at == whole.created_at  # it was re-read before it got its name
    assert (rows["r2"].status, rows["r2"].error_code) == (Status.FAILED, "interrupted")
    assert rows["r3"] == theirs
    before = await history.runs()
    await manager.recover()
    assert await history.runs() == before


@pytest.mark.slow
async def test_a_row_follows_its_file_that_went_or_came_back_without_a_word(manager: Manager, home: Home) -> None:
    """Removed by hand, or by a run that was killed before it could say so. Where nothing newer lies there the disk may
    not be mounted, and that the newest one is missing stays an alarm.
    """
    oldest, middle, newest = [await manager.back_up("nightly", Trigger.MANUAL, GRANDMA) for _ in range(3)]
    elsewhere = replace(oldest, run_id="moved", location=f"/old/disk/{oldest.filename}")
    await manager.history.record(elsewhere)

    async def deleted() -> list[str]:
        await manager.recover()
        return [r.run_id for r in await manager.history.runs() if r.deleted_at]

    assert await deleted() == []
    (home.backups / middle.filename).rename(home.folder / "kept")
    assert await deleted() == [middle.run_id]
    (home.folder / "kept").rename(home.backups / middle.filename)
    assert await deleted() == []
    (home.backups / newest.filename).rename(home.folder / "kept")
    assert await deleted() == []
    assert (await manager.standing.reports())["nightly"].problems == (Problem.BACKUP_GONE,)
    (home.folder / "kept").rename(home.backups / newest.filename)
    home.backups.rename(home.folder / "mounted")
    home.backups.mkdir()
    assert await deleted() == []


async def test_rows_are_found_below_any_number_of_newer_ones(manager: Manager, home: Home) -> None:
    """Of other machines that share the history, or of jobs that run each minute."""
    run = await manager.back_up("nightly", Trigger.SCHEDULE, GRANDMA)
    copied = replace(run, usb_copied_at=NOON, notification_sent=True)
    await manager.history.record(replace(copied, status=Status.FAILED, error_code="damaged", error="A bit flipped."))
    await query(
        home.history,
        "INSERT INTO backup_history (filename, size_bytes, status, error_code, host, job, created_at)"
        " SELECT 'x' || n, 0, 'failed', 'disk_full', 'family-server', 'nightly', '2026-05-01 13:00Z'::timestamptz"
        " + n * interval '1 ms' FROM generate_series(1, 1000) n",
        "SELECT 1",
    )
    assert [listed.state for listed in await manager.listing()] == ["damaged"]
    assert (await manager.standing.reports())["nightly"].last_good is None
    store, stored = await manager.find("latest")
    assert (await manager.verify(store, stored, Level.FULL, GRANDMA)).good
    (row,) = await manager.history.runs(called=[run.run_id])
    assert row == replace(copied, verified_at=row.verified_at) and row.verified_at != run.verified_at


async def test_a_backup_that_was_refused_or_cancelled_is_in_the_audit_too(manager: Manager, home: Home) -> None:
    with lock.held(home.backups, "a test"):
        with pytest.raises(LockHeld):
            await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
        waiting = asyncio.create_task(manager.back_up("nightly", Trigger.SCHEDULE, GRANDMA))
        await asyncio.sleep(0.3)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
    events = await manager.history.audit_log()
    assert [(e.action, e.subject, e.outcome) for e in events] == [
        ("backup", "nightly", "interrupted"),
        ("backup", "nightly", "refused"),
    ]


@pytest.mark.slow
async def test_what_was_killed_has_begun_by_the_audit_and_what_is_refused_was_asked_for(
    manager: Manager, home: Home
) -> None:
    await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    (home.photos / "film.mp4").write_bytes(os.urandom(1_000_000) * 150)
    child = home.started("start")
    wait_until(lambda: list(home.backups.glob("*.partial")))
    end(child)
    (home.folder / "back" / "photos" / "2026").mkdir(parents=True)
    (home.folder / "back" / "photos" / "2026" / "lake.jpg").touch()
    refused = home.run("restore", "latest", "--to", "back", "--yes")
    assert refused.status == 1 and "already holds" in refused.err
    with lock.held(home.backups, "a test"):
        assert home.run("clean", "--yes").status == 0  # nothing to do, so nothing was asked for
        with pytest.raises(LockHeld):
            await manager.clean("nightly", GRANDMA, dry_run=False)
    events = {(e.action, e.subject.partition(" to ")[0], e.outcome) for e in await manager.history.audit_log()}
    (archive,) = home.archives
    assert events == {
        ("backup", archive.name, "success"),
        ("backup", "nightly", "begun"),
        ("restore", archive.name, "refused"),
        ("clean", "nightly", "refused"),
    }
    next(home.backups.glob("*.partial")).unlink()
    terminated = home.started("start")
    wait_until(lambda: list(home.backups.glob("*.partial")))
    end(terminated, signal.SIGTERM)
    assert (await manager.history.audit_log(1))[0].outcome == "interrupted"


async def test_an_error_of_the_history_that_nobody_thought_of_costs_no_backup(
    manager: Manager, home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def odd(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("unexpected")

    first = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    with monkeypatch.context() as strange:
        strange.setattr(asyncpg, "connect", odd)
        run = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
        assert run.status is Status.SUCCESS and len(home.archives) == 2
        assert (await manager.standing.reports())["nightly"].history_away
        # And where even the spool breaks, in a way of its own.
        strange.setattr(rows, "to_json", lambda _: 1 / 0)
        assert (await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)).status is Status.SUCCESS
        assert "could not be written down (ZeroDivisionError)" in caplog.text
    await manager.history.replay()
    assert await manager.history.runs() == [run, first]


async def test_what_is_unknown_is_refused_before_anything_begins(manager: Manager, home: Home) -> None:
    with pytest.raises(UsageError, match="did you mean nightly"):
        await manager.back_up("nigthly", Trigger.MANUAL, GRANDMA)
    with pytest.raises(UnknownBackup, match="There is no backup in"):
        await manager.find("latest")
    with lock.held(home.backups, "a test"), pytest.raises(LockHeld, match="a test"):
        await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    assert await manager.history.runs() == []


async def test_latest_is_the_newest_good_one(manager: Manager, home: Home) -> None:
    first = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    (home.folder / ".env").unlink()
    second = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    assert second.status is Status.PARTIAL
    assert (await manager.find("latest"))[1].name == first.filename
    damaged = replace(first, status=Status.FAILED, error_code="damaged", error="A bit flipped.")
    await manager.history.record(damaged)
    assert (await manager.find("latest"))[1].name == second.filename
    assert [s.state for s in await manager.listing()] == ["incomplete", "damaged"]


async def test_one_that_a_clock_dated_years_ahead_is_neither_the_latest_nor_what_drives_get(home: Home) -> None:
    at = [NOON + timedelta(days=900)]
    async with managed(home, at) as manager:
        ahead = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
        assert (await manager.find("latest"))[1].name == ahead.filename
        at[0] = NOON
        good = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
        assert (await manager.find("latest"))[1].name == good.filename
        assert [wanted.backup.name for wanted in await manager.visits.wanted()] == [good.filename]


async def test_settings_that_share_the_history_but_not_the_place_leave_each_others_rows_alone(
    manager: Manager, home: Home
) -> None:
    """Every preset's job is called nightly, and every root's state lies in one folder unless it is told otherwise."""
    elsewhere = {"BACKUP_DIR": str(home.backups / "other")}
    home.mark(elsewhere)
    config = load(home.folder / "config.toml", elsewhere)
    theirs = Manager(config, manager.history, lambda: NOON + timedelta(seconds=1))
    done = await manager.back_up("nightly", Trigger.MANUAL, GRANDMA)
    begun = asyncio.Event()

    def on_progress(_: Progress) -> None:
        begun.set()

    running = asyncio.create_task(manager.back_up("nightly", Trigger.MANUAL, GRANDMA, on_progress))
    await begun.wait()
    (row,) = [r for r in await manager.history.runs() if r.status is Status.IN_PROGRESS]
    assert row.location == str(home.backups / row.filename)
    await theirs.recover()  # nobody holds their folder
    assert (await theirs.standing.reports())["nightly"].problems == (Problem.NO_BACKUP,)
    first = await theirs.back_up("nightly", Trigger.MANUAL, GRANDMA)
    assert [r for r in await manager.history.runs() if r.error_code] == []
    ours = await running
    await theirs.recover()
    assert {r.run_id for r in await manager.history.runs() if r.deleted_at is None} == {
        r.run_id for r in (done, first, ours)
    }
    for each, last in ((manager, ours), (theirs, first)):
        report = (await each.standing.reports())["nightly"]
        assert (report.problems, report.last) == ((), last)


async def test_removing_a_copy_says_nothing_of_the_backup_that_still_lies_there(manager: Manager, home: Home) -> None:
    older, _ = [await manager.back_up("nightly", Trigger.MANUAL, GRANDMA) for _ in range(2)]
    copies = home.folder / "copies"
    shutil.copytree(home.backups, copies)
    config = load(home.folder / "config.toml", {"BACKUP_DIR": str(copies), "BACKUP_RETENTION_COUNT": "1"})
    theirs = Manager(config, manager.history, lambda: NOON + timedelta(days=1))
    await theirs.clean("nightly", GRANDMA, dry_run=False)
    assert not (copies / older.filename).exists() and (home.backups / older.filename).exists()
    assert [r.deleted_at for r in await manager.history.runs()] == [None, None]

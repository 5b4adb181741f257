"""The history as its users know it: what is written comes back, counted and in order."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import fields
from datetime import UTC, timedelta
from pathlib import Path
from typing import Any

import asyncpg
import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.history import History, rows
from memu_backup.history.news import CHANNEL
from memu_backup.model import Run, Status, Trigger
from tests.history.samples import NIGHT, a_drive, a_good_run, a_run, an_event


@pytest.fixture
async def history(database: str, tmp_path: Path) -> AsyncIterator[History]:
    async with History(database, tmp_path / "state", "nas") as history:
        yield history


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[Any]:
    connection = await asyncpg.connect(url)
    try:
        yield connection
    finally:
        await connection.close()


async def test_init_db_creates_backup_table(history: History, database: str) -> None:
    await history.check()
    async with connected(database) as connection:
        columns = dict(
            await connection.fetch(
                "SELECT column_name, data_type FROM information_schema.columns WHERE table_name = 'backup_history'"
            )
        )
        index = await connection.fetchval("SELECT indexdef FROM pg_indexes WHERE indexname = 'idx_backup_created'")
    assert {
        "id": "integer",
        "filename": "text",
        "size_bytes": "bigint",
        "status": "text",
        "error": "text",
        "duration_seconds": "integer",
        "usb_copied_at": "timestamp with time zone",
        "notification_sent": "boolean",
        "created_at": "timestamp with time zone",
    }.items() <= columns.items()
    assert {field.name for field in fields(Run)} <= columns.keys()
    assert index.endswith("USING btree (created_at DESC)")


async def test_record_backup(history: History) -> None:
    run = a_run()
    assert all(getattr(run, field.name) for field in fields(Run)), "the sample leaves a field at its default"
    assert await history.record(run)
    (found,) = await history.runs()
    assert found == run
    assert isinstance(found.status, Status) and isinstance(found.trigger, Trigger)
    assert found.created_at.tzinfo is UTC
    assert history.spooled() == []


@pytest.mark.parametrize("folder", ["/srv/backups", "/srv/\udcff%_\\x00", "/"])
async def test_runs_are_told_by_the_very_folder_that_their_backups_lie_in(
    history: History, tmp_path: Path, folder: str
) -> None:
    """However odd its name, and also of runs that still wait in the spool."""
    inside = f"{folder.rstrip('/')}/a.tar.gz"
    away = History("postgresql://127.0.0.1:1/x", tmp_path / "away", "nas", connect_timeout_s=0.3)
    for number, location in enumerate([inside, "", f"{inside}/b.tar.gz", f"{folder}2/a.tar.gz", "/elsewhere/a.tar.gz"]):
        for each in (history, away):
            await each.record(a_good_run(f"{number}", location=location))
    for each in (history, away):
        found, _ = await each.known_runs(directory=Path(folder))
        assert {run.run_id for run in found} == {"0", "1"}


async def test_a_run_is_written_again_in_its_own_row(history: History, database: str) -> None:
    started = Run("r", "nas", "nightly", Trigger.SCHEDULE, "a.tar.gz", Status.IN_PROGRESS, NIGHT)
    await history.record(started)
    assert await history.runs() == [started]
    ended = a_good_run("r")
    await history.record(ended)
    assert await history.runs() == [ended]
    async with connected(database) as connection:
        assert await connection.fetchval("SELECT count(*) FROM backup_history") == 1


async def test_runs_are_newest_first_and_chosen_by_host_and_job(history: History) -> None:
    for day, (host, job) in enumerate([("nas", "nightly"), ("nas", "weekly"), ("laptop", "nightly")]):
        await history.record(a_run(f"r{day}", host=host, job=job, created_at=NIGHT + timedelta(days=day)))
    assert [run.run_id for run in await history.runs()] == ["r2", "r1", "r0"]
    assert [run.run_id for run in await history.runs(host="nas")] == ["r1", "r0"]
    assert [run.run_id for run in await history.runs(job="nightly")] == ["r2", "r0"]
    assert [run.run_id for run in await history.runs(limit=1)] == ["r2"]


async def test_a_run_is_found_however_many_newer_ones_there_are(history: History) -> None:
    """By its id or by its file's name; and with the history away among those that wait for it."""
    old = a_run("old", filename="odd\udcff.tar.gz", created_at=NIGHT)
    for run in (old, *(a_run(f"r{n}", host="laptop", created_at=NIGHT + timedelta(days=n)) for n in range(1, 4))):
        await history.record(run)
    assert old not in await history.runs(limit=3)
    assert await history.runs(called=["old"]) == await history.runs(called={old.filename}) == [old]
    assert await history.runs(called=["old"], host="laptop") == await history.runs(called=[]) == []
    async with connected(history._database._url or "") as connection:
        await connection.execute(
            "INSERT INTO backup_history (filename, size_bytes, status, created_at)"
            " SELECT 'x' || n, 0, 'failed', now() + n * interval '1 s' FROM generate_series(1, 1000) n"
        )
    assert old not in await history.runs()
    assert await history.known_runs(called=["old"]) == ([old], False)


async def test_with_the_history_away_what_waits_for_it_is_known(tmp_path: Path) -> None:
    history = History("postgresql://127.0.0.1:1/x", tmp_path, "nas")
    assert not history.waiting()
    await history.audit(an_event())
    assert history.waiting() and history.spooled() == []  # what people did waits too
    newer, older = a_run("newer", created_at=NIGHT + timedelta(days=1)), a_run("older", host="laptop")
    for run in (older, newer):
        await history.record(run)
    assert await history.known_runs() == ([newer, older], True)
    assert await history.known_runs(host="laptop") == await history.known_runs(called=["older"]) == ([older], True)


async def test_get_backup_count(history: History) -> None:
    await history.record(a_good_run("good"))
    await history.record(a_good_run("good elsewhere", job="weekly"))
    await history.record(a_run("partial", deleted_at=None))
    await history.record(a_good_run("pruned", deleted_at=NIGHT))
    await history.record(a_good_run("failed", status=Status.FAILED))
    await history.record(a_good_run("running", status=Status.IN_PROGRESS))
    assert await history.backup_count() == 3
    assert await history.backup_count(job="weekly") == 1


async def test_the_audit_log_is_newest_first_and_holds_an_event_once(history: History) -> None:
    older, newer = an_event("e1"), an_event("e2", created_at=NIGHT + timedelta(seconds=1))
    for event in (older, newer, older):
        assert await history.audit(event)
    assert await history.audit_log() == [newer, older]
    assert await history.audit_log(limit=1) == [newer]


async def test_a_drive_has_one_passport_and_each_machine_its_own_drives(history: History) -> None:
    older, newer = a_drive("d1"), a_drive("d2", last_seen_at=NIGHT + timedelta(days=3), trusted_at=None, copies=0)
    for drive in (a_drive("d1", name=""), older, newer, a_drive("d3", host="laptop")):
        assert await history.know(drive)
    assert await history.drives() == [newer, older]


async def test_each_change_is_announced_whoever_writes_it(history: History, database: str) -> None:
    heard: asyncio.Queue[dict[str, str]] = asyncio.Queue()
    await history.check()
    async with connected(database) as listener:
        await listener.add_listener(CHANNEL, lambda *news: heard.put_nowait(json.loads(news[3])))
        await history.record(a_run("r", status=Status.IN_PROGRESS))
        await history.record(a_run("r", status=Status.FAILED))
        async with connected(database) as stranger:
            await stranger.execute(
                "INSERT INTO backup_history (filename, size_bytes, status) VALUES ('x', 1, 'success')"
            )
        news = [await asyncio.wait_for(heard.get(), 5) for _ in range(3)]
        await listener.remove_listener(CHANNEL, print)
    assert news[:2] == [{"run_id": "r", "status": "in_progress"}, {"run_id": "r", "status": "failed"}]
    assert news[2]["status"] == "success"
    assert {run.run_id for run in await history.runs()} == {"r", news[2]["run_id"]}


async def test_writing_from_many_sides_at_once_gives_one_row_a_run(database: str, tmp_path: Path) -> None:
    async with History(database, tmp_path, "nas") as one, History(database, tmp_path, "nas") as other:
        kept = await asyncio.gather(*(side.record(a_run(f"r{n}")) for n in range(8) for side in (one, other)))
        assert all(kept)
        assert sorted(run.run_id for run in await one.runs()) == [f"r{n}" for n in range(8)]
        assert one.spooled() == []


async def test_the_embedded_server_starts_by_itself_and_stops_with_the_history(tmp_path: Path) -> None:
    async with History(None, tmp_path, "nas") as history:
        assert await history.check() == "embedded PostgreSQL 18"
        assert await history.record(a_run())
    assert not (tmp_path / "postgres" / "data" / "postmaster.pid").exists()
    async with History(None, tmp_path, "nas") as history:
        assert await history.runs() == [a_run()]


@given(st.text(st.characters(exclude_categories=[])))
def test_every_text_survives_as_a_column_and_as_json(text: str) -> None:
    column = rows.to_text(text)
    assert "\x00" not in column
    column.encode()
    assert rows.from_text(column) == text
    run = a_run(error=text, warnings=(text,))
    assert rows.from_json(rows.to_json(run)) == run

"""A row is a debt until somebody was told of it, whatever is written over it and whether or not Postgres is there."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import asyncpg
import pytest

from memu_backup.history import History
from memu_backup.model import Run, Status
from tests.history.samples import NIGHT, a_good_run, a_run

NOBODY = "postgresql://nobody@127.0.0.1:1/nothing"


@pytest.fixture
async def history(database: str, tmp_path: Path) -> AsyncIterator[History]:
    async with History(database, tmp_path / "state", "nas") as history:
        yield history


def failed(run_id: str, nights: int = 0, **changes: object) -> Run:
    row = a_run(run_id, status=Status.FAILED, error_code="disk_full", notification_sent=False, retry_at=None)
    return replace(row, created_at=NIGHT + timedelta(days=nights), **changes)  # type: ignore[arg-type]


async def names(history: History) -> list[str]:
    runs, away = await history.news.rows()
    assert not away
    return [run.run_id for run in runs]


async def test_what_matters_is_what_is_owed_or_under_way_and_the_newest_of_each_job(history: History) -> None:
    for run in (
        failed("owed"),
        failed("told", 1, notification_sent=True),
        failed("is tried again", 1, retry_at=NIGHT),
        a_run("lacking", notification_sent=False, retry_at=None, created_at=NIGHT + timedelta(days=2)),
        a_good_run("good", created_at=NIGHT + timedelta(days=3)),
        a_good_run("newest", created_at=NIGHT + timedelta(days=4)),
        a_good_run("newest of another job", job="weekly", created_at=NIGHT + timedelta(days=5)),
        a_good_run("under way", status=Status.IN_PROGRESS, created_at=NIGHT - timedelta(days=1)),
        failed("on another machine", 6, host="other"),
    ):
        await history.record(run)
    assert await names(history) == ["newest of another job", "newest", "lacking", "owed", "under way"]


async def test_who_was_told_is_told_no_more_whatever_is_written_over_the_row(history: History) -> None:
    before = failed("one")
    await history.record(before)
    await history.record(a_good_run("newest", created_at=NIGHT + timedelta(days=1)))
    await history.news.told([before])
    assert await names(history) == ["newest"]
    await history.record(replace(before, deleted_at=NIGHT + timedelta(days=9)))
    assert await names(history) == ["newest"]
    await history.record(replace(before, error_code="damaged"))
    assert await names(history) == ["newest", "one"]


async def test_what_has_ended_otherwise_meanwhile_stays_a_debt(history: History) -> None:
    before = failed("one")
    await history.record(before)
    await history.record(replace(before, error_code="damaged"))
    await history.news.told([before])
    (row,), _ = await history.news.rows()
    assert not row.notification_sent


async def test_with_the_history_away_it_is_known_and_noted_here(database: str, tmp_path: Path) -> None:
    async with History(NOBODY, tmp_path / "state", "nas") as away:
        assert not await away.record(failed("one"))
        (row,), is_away = await away.news.rows()
        assert is_away and row.run_id == "one" and not row.notification_sent
        await away.news.told([row])
        (row,), _ = await away.news.rows()
        assert row.notification_sent
    async with History(database, tmp_path / "state", "nas") as back:
        (row,), is_away = await back.news.rows()
        assert not is_away and row.notification_sent


async def test_it_wakes_at_each_change_also_after_the_connection_was_lost(history: History, database: str) -> None:
    heard = asyncio.Event()
    following = asyncio.create_task(history.news.follow(heard.set, pause_s=0.05))

    async def wakes() -> None:
        await asyncio.wait_for(heard.wait(), 5)
        heard.clear()

    try:
        await wakes()
        await history.record(failed("one"))
        await wakes()
        await asyncio.sleep(0.2)  # what the moving of the note announced besides
        heard.clear()
        connection = await asyncpg.connect(database)
        await connection.execute(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = current_database() "
            "AND pid <> pg_backend_pid()"
        )
        await connection.close()
        await wakes()
        await history.record(failed("two"))
        await wakes()
    finally:
        following.cancel()
        await asyncio.wait([following])

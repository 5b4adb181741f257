"""Tables that are there already: the spec's own are taken over, newer ones are left alone, two may come at once."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memu_backup.errors import HistoryRefused
from memu_backup.history import History
from memu_backup.history.schema import NEWEST
from memu_backup.model import Run, Status, Trigger
from tests.history.samples import a_run
from tests.history.test_history import connected

SPEC = """
CREATE TABLE IF NOT EXISTS backup_history (
    id SERIAL PRIMARY KEY,
    filename TEXT NOT NULL,
    size_bytes BIGINT NOT NULL,
    status TEXT NOT NULL,  -- 'success', 'failed', 'in_progress'
    error TEXT,
    duration_seconds INT,
    usb_copied_at TIMESTAMP,
    notification_sent BOOLEAN DEFAULT FALSE,
    created_at TIMESTAMP DEFAULT NOW()
);

CREATE INDEX IF NOT EXISTS idx_backup_created ON backup_history(created_at DESC);

INSERT INTO backup_history
    (filename, size_bytes, status, error, duration_seconds, usb_copied_at, notification_sent, created_at)
VALUES
    ('old_1.tar.gz', 312000000, 'success', NULL, 300, '2025-01-26 12:00', NULL, '2025-01-26 02:05:00.5'),
    ('old_2.tar.gz', 0, 'failed', 'Disk full', 12, NULL, FALSE, '2025-01-27 02:05'),
    ('old_3.tar.gz', 7, 'done', NULL, NULL, NULL, TRUE, '2025-01-28 02:05'),
    ('old_0.tar.gz', 7, 'success', NULL, NULL, NULL, TRUE, NULL);
"""


async def test_the_specs_own_table_is_taken_over_with_its_rows(database: str, tmp_path: Path) -> None:
    async with connected(database) as connection:
        zone = "ALTER DATABASE " + database.partition("?")[0].rpartition("/")[2] + " SET timezone = 'Europe/Berlin'"
        await connection.execute(zone)
    async with connected(database) as connection:
        await connection.execute(SPEC)
    async with History(database, tmp_path, "nas") as history:
        assert await history.record(a_run())
        new, odd, failed, good, dateless = await history.runs()
        assert new == a_run()
        assert good == Run(
            run_id=good.run_id,
            host="",
            job="",
            trigger=Trigger.SCHEDULE,
            filename="old_1.tar.gz",
            status=Status.SUCCESS,
            created_at=datetime(2025, 1, 26, 1, 5, 0, 500_000, UTC),
            size_bytes=312_000_000,
            duration_seconds=300,
            usb_copied_at=datetime(2025, 1, 26, 11, tzinfo=UTC),
        )
        assert (failed.status, failed.error, failed.notification_sent) == (Status.FAILED, "Disk full", False)
        assert odd.status is Status.FAILED and "done" in str(odd.error)
        assert dateless.created_at == datetime(1970, 1, 1, tzinfo=UTC)
        assert len({run.run_id for run in (new, odd, failed, good, dateless)}) == 5 and good.run_id


async def test_an_old_row_that_is_written_again_keeps_its_place(database: str, tmp_path: Path) -> None:
    async with connected(database) as connection:
        await connection.execute(SPEC)
        async with History(database, tmp_path, "nas") as history:
            odd = next(run for run in await history.runs() if run.filename == "old_3.tar.gz")
            assert await history.record(odd)
        assert await connection.fetchval("SELECT status FROM backup_history WHERE id = 3") == "failed"
        assert await connection.fetchval("SELECT count(*) FROM backup_history") == 4


async def test_a_row_in_the_specs_own_words_is_still_welcome_afterwards(database: str, tmp_path: Path) -> None:
    async with History(database, tmp_path, "nas") as history, connected(database) as connection:
        await history.check()
        insert = "INSERT INTO backup_history (filename, size_bytes, status) VALUES ('x', 1, 'success')"
        await connection.execute(insert)
        await connection.execute(insert)
        assert [(run.filename, run.status) for run in await history.runs()] == [("x", Status.SUCCESS)] * 2


async def test_two_that_migrate_at_once_make_one_schema(database: str, tmp_path: Path) -> None:
    several = [History(database, tmp_path / str(n), "nas") for n in range(4)]
    assert len(set(await asyncio.gather(*(history.check() for history in several)))) == 1
    async with connected(database) as connection:
        assert await connection.fetchval("SELECT array_agg(version) FROM backup_schema") == [*range(1, NEWEST + 1)]


async def test_newer_tables_are_refused_and_the_run_is_spooled(database: str, tmp_path: Path) -> None:
    history = History(database, tmp_path, "nas")
    await history.check()
    async with connected(database) as connection:
        await connection.execute("INSERT INTO backup_schema (version) VALUES (7)")
    with pytest.raises(HistoryRefused, match=r"newer memu-backup .*version 7.* Update memu-backup"):
        await history.check()
    assert await history.record(a_run()) is False
    assert history.spooled() == [a_run()]


async def test_a_failed_step_leaves_nothing_half_done(database: str, tmp_path: Path) -> None:
    async with connected(database) as connection:
        await connection.execute(SPEC + "CREATE VIEW latest AS SELECT created_at FROM backup_history")
        with pytest.raises(HistoryRefused, match="used by a view"):
            await History(database, tmp_path, "nas").check()
        assert await connection.fetchval("SELECT to_regclass('backup_schema')") is None
        await connection.execute("DROP VIEW latest")
    assert len(await History(database, tmp_path, "nas").runs()) == 4

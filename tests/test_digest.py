"""Reports on the day, the week's space, the month and the errors: what they say, when they are sent, and that once."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from pathlib import Path

import pytest

from memu_backup import digest
from memu_backup.model import Backup, Manifest, Problem, ReportKind, Run, Status
from tests.home import Home
from tests.monday import BEFORE, BERLIN, DAY, FAILED, GOOD, HEALTHY, NIGHT, NOW, PARTIAL
from tests.receiver import Receiver
from tests.service import Clock, Service, settings

GONE = replace(GOOD, run_id="9", created_at=NIGHT - 20 * DAY, deleted_at=NIGHT - 2 * DAY)
RUNS = [
    replace(GOOD, files=1200),
    BEFORE,
    replace(PARTIAL, run_id="2", created_at=NIGHT - 3 * DAY, verified_at=None),
    replace(FAILED, run_id="3", created_at=NIGHT - 5 * DAY, error="The disk is full.\nAnd more."),
    GONE,
    replace(GOOD, run_id="4", job="media", created_at=NIGHT - 40 * DAY),
    replace(GOOD, run_id="5", created_at=NIGHT, status=Status.IN_PROGRESS),
]
REPORTS = {
    "nightly": replace(HEALTHY, last_good=RUNS[0], free_bytes=41_000_000_000, days_left=9),
    "media": replace(HEALTHY, problems=(Problem.OVERDUE,), last_good=None, stored_count=0, stored_bytes=0),
}


def stored(days: int, size_bytes: int, shared_bytes: int) -> Backup:
    at = NIGHT - days * DAY
    made = Manifest("", "", "", at, "", "home", "nightly", "", (), "", shared_bytes=shared_bytes)
    return Backup(f"{at}", Path(f"{at}"), size_bytes, at, made)


STORED = [stored(0, 312_000_000, 300_000_000), stored(1, 311_000_000, 0), stored(9, 305_000_000, 0)]


def told(kind: ReportKind, runs: list[Run] = RUNS, *, away: bool = False) -> list[str]:
    made = digest.digest(kind, REPORTS, runs, STORED, NOW.astimezone(UTC), history_away=away)
    return digest.text(made, BERLIN).splitlines()


def test_the_day() -> None:
    assert told(ReportKind.DAILY) == [
        "Daily backup summary",
        "nightly: 1 backup made; the last good one today 2:05 AM (1,200 files, 312 MB)",
        "media: 0 backups made; no good one yet",
    ]
    failed = told(ReportKind.DAILY, [FAILED])[1]
    assert (
        failed == "nightly: 0 backups made, 1 failed (Disk full); the last good one today 2:05 AM (1,200 files, 312 MB)"
    )
    suspicious = replace(PARTIAL, created_at=NIGHT, error_code="suspicious")
    assert told(ReportKind.DAILY, [suspicious])[1].startswith("nightly: 0 backups made, 1 suspicious; the last good")


def test_the_weeks_space() -> None:
    assert told(ReportKind.WEEKLY) == [
        "Weekly space usage",
        "nightly: 7 backups stored, 2.1 GB together; 628 MB of the disk, as they share files; 323 MB new and 1 backup "
        "removed in 7 days; 41 GB free; full in about 9 days",
        "media: 0 backups stored, 0 bytes together; 0 bytes new and 0 backups removed in 7 days",
    ]


def test_the_month() -> None:
    title, nightly, media = told(ReportKind.MONTHLY)
    assert title == "Monthly status report"
    assert nightly == (
        "nightly: 3 backups made, 1 incomplete, 1 failed (Disk full); 7 backups stored (2.1 GB); the last good one "
        "today 2:05 AM (1,200 files, 312 MB); health: healthy"
    )
    assert media == "media: 0 backups made; 0 backups stored (0 bytes); no good one yet; health: critical"


def test_the_errors() -> None:
    assert told(ReportKind.ERRORS) == [
        "Backup errors of the last 30 days",
        "Friday 2:05 AM, nightly: 3 files could not be read",
        "Wednesday 2:05 AM, nightly: The disk is full. And more.",
    ]
    assert told(ReportKind.ERRORS, []) == ["Backup errors of the last 30 days", "None."]
    many = [replace(FAILED, run_id=f"{n}", created_at=NIGHT - timedelta(hours=n)) for n in range(30)]
    assert told(ReportKind.ERRORS, many)[-1] == "and 10 more: memu-backup report errors --json"
    assert told(ReportKind.ERRORS, [], away=True)[-1].startswith("The history cannot be reached")


@pytest.mark.parametrize(
    ("at", "kinds"),
    [
        ("2026-01-26T07:59", {"daily"}),  # Monday, and still Sunday's
        ("2026-01-26T08:00", {"daily", "weekly", "errors"}),
        ("2026-01-27T07:59", {"daily", "weekly", "errors"}),
        ("2026-01-27T08:00", {"daily"}),
        ("2026-02-01T12:00", {"daily", "monthly"}),
        ("2026-03-29T08:00", {"daily"}),  # an hour is missing
    ],
)
def test_when_each_is_due(at: str, kinds: set[str]) -> None:
    now = datetime.fromisoformat(at).replace(tzinfo=BERLIN)
    due = list(digest.due(ReportKind, time(8), now.astimezone(UTC), BERLIN))
    assert {kind.value for kind, _ in due} == kinds and len(due) == len(kinds)
    assert all(since.astimezone(BERLIN).hour == 8 and timedelta() <= now - since < DAY for _, since in due)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


def test_each_is_asked_for_by_a_command(home: Home) -> None:
    assert home.run("report").out == "Daily backup summary\nnightly: 0 backups made; no good one yet\n"
    assert home.run("start").status == 0
    (home.photos / "2026" / "lake.jpg").unlink()
    home.configure(sources='[sources.photos]\nkind = "directory"\npath = "gone"\n')
    assert home.run("start").status == 1
    day = home.run("report", "daily").out
    assert "1 backup made, 1 failed (Something to back up cannot be read); the last good one today" in day
    assert "1 backup stored" in home.run("report", "weekly").out
    assert "health: critical" in home.run("report", "monthly").out
    assert f"nightly: {home.folder}/gone" in home.run("report", "errors").out
    as_json = home.run("report", "errors", "--json").json
    assert (as_json["kind"], as_json["jobs"]["nightly"]["failed"], len(as_json["errors"])) == ("errors", 1, 1)
    assert home.run("report", "yearly").status == 2


@pytest.mark.slow
async def test_those_that_are_wished_for_are_sent_once(tmp_path: Path, database: str, receiver: Receiver) -> None:
    (tmp_path / "photos").mkdir()
    wished = f'[usb]\noverdue_days = 0\n[alerts]\nfallback = ["json://{receiver.at}/"]\nreports = ["daily", "weekly"]\n'
    sources = '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    config = settings(tmp_path, sources, history=database, jobs="[jobs.nightly]\n", more=wished)
    clock = Clock(tmp_path, "2026-11-23T07:00:05")  # eight in Berlin, a Monday
    for count in (2, 2, 3):
        if count == 3:
            clock.set("2026-11-24T07:00:05")
        async with Service(config, clock) as service:
            await service.ready()
            await service.until(lambda count=count: len(receiver.heard) >= count)  # type: ignore[misc]
            await asyncio.sleep(3)  # and no more of them
            await service.stop()
        assert len(receiver.heard) == count
    titles = [json.loads(heard.body)["title"] for heard in receiver.heard]
    assert sorted(titles) == ["Daily backup summary", "Daily backup summary", "Weekly space usage"]

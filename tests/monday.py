"""A household on a Monday morning: what status, alerts and answers are tried with."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from zoneinfo import ZoneInfo

from memu_backup.model import Drive, Run, SourceSummary, Status, StatusReport, Trigger

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 26, 9, 0, tzinfo=BERLIN)  # a Monday
NIGHT = datetime(2026, 1, 26, 1, 5, tzinfo=UTC)
DAY = timedelta(days=1)

GOOD = Run(
    run_id="1",
    host="home",
    job="nightly",
    trigger=Trigger.SCHEDULE,
    filename="memu_backup_20260126_020500.tar.gz",
    status=Status.SUCCESS,
    created_at=NIGHT,
    size_bytes=312_000_000,
    verified_at=NIGHT + timedelta(minutes=2),
)
BEFORE = replace(GOOD, run_id="0", created_at=NIGHT - DAY)
FAILED = replace(GOOD, status=Status.FAILED, size_bytes=0, error_code="disk_full")
BY_HAND = replace(FAILED, trigger=Trigger.MANUAL, created_at=NOW - timedelta(hours=1))
PARTIAL = replace(GOOD, status=Status.PARTIAL, error="3 files could not be read")
PHOTOS = SourceSummary(
    "photos", "directory", "photos/", 12_431, 40, 0, 300_000_000, "", "", "", newest_mtime=NIGHT - DAY / 2
)
BLUE = Drive(
    drive_id="1",
    host="home",
    fs_uuid="766b434e-e409-4838-a9ca-5df547146b43",
    label="SanDisk_Family",
    filesystem="ext4",
    size_bytes=64_000_000_000,
    first_seen_at=NIGHT - 40 * DAY,
    last_seen_at=NOW - 2 * DAY,
    name="blue drive",
    trusted_at=NIGHT - 40 * DAY,
    last_copied_at=NOW - 2 * DAY,
    copies=3,
    bytes_per_second=22_000_000.0,
)
HEALTHY = StatusReport(
    problems=(),
    last=GOOD,
    last_good=GOOD,
    in_progress=None,
    stored_count=7,
    stored_bytes=2_100_000_000,
    usb_expected=True,
    usb_copied_at=NOW - 2 * DAY,
    history_away=False,
)
DETAILED = replace(HEALTHY, free_bytes=412_000_000_000, sources=(PHOTOS,))

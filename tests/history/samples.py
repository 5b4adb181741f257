"""Runs and events to write down, with every field filled."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from memu_backup.model import AuditEvent, Drill, Drive, Run, Status, Tried, Trigger

NIGHT = datetime(2026, 11, 20, 1, 0, 0, 123456, tzinfo=UTC)


def a_run(run_id: str = "run-1", **changes: Any) -> Run:
    """A partial run of the nightly job, with names that no text column would take as they are."""
    run = Run(
        run_id=run_id,
        host="nas",
        job="nightly",
        trigger=Trigger.CATCH_UP,
        filename="memu_backup_20261120_020000.tar.gz",
        status=Status.PARTIAL,
        created_at=NIGHT,
        location="/srv/backups/\udcff",
        size_bytes=5_000_000_000,
        content_bytes=6_000_000_000,
        files=30_036,
        error="Two photos could not be read; \\udcff and \\x00 and \\x5c are spelled out here.",
        error_code="source",
        duration_seconds=312,
        downtime_seconds=4.25,
        write_seconds=700.5,
        prove_seconds=89.125,
        finished_at=NIGHT + timedelta(minutes=5),
        verified_at=NIGHT + timedelta(minutes=6),
        usb_copied_at=NIGHT + timedelta(days=1),
        deleted_at=NIGHT + timedelta(days=8),
        sha256="ab" * 32,
        warnings=("photos/Zoë 🎂.jpg has vanished.", "photos/\udce9t\udce9.jpg \x00 is odd.", "a\\b"),
        notification_sent=True,
        attempt=2,
        retry_at=NIGHT + timedelta(minutes=20),
    )
    return replace(run, **changes)


def a_good_run(run_id: str = "run-1", **changes: Any) -> Run:
    return a_run(run_id, **{"status": Status.SUCCESS, "deleted_at": None, "error": None, **changes})


def a_drive(drive_id: str = "drive-1", **changes: Any) -> Drive:
    """One with every field filled, and a label that no text column would take as it is."""
    drive = Drive(
        drive_id=drive_id,
        host="nas",
        fs_uuid="1234-ABCD",
        label="odd\udcff \\x00",
        filesystem="exfat",
        size_bytes=64_000_000_000,
        first_seen_at=NIGHT,
        last_seen_at=NIGHT + timedelta(days=2),
        name="blue drive",
        kept_at="grandma's",
        marker="marker-1",
        trusted_at=NIGHT + timedelta(hours=1),
        last_copied_at=NIGHT + timedelta(days=1),
        copies=3,
        bytes_per_second=22_000_000.5,
    )
    return replace(drive, **changes)


def a_drill(drill_id: str = "drill-1", **changes: Any) -> Drill:
    """One with every field filled, and sentences that no text column would take as they are."""
    drill = Drill(
        drill_id=drill_id,
        host="nas",
        job="nightly",
        filename="memu_backup_20260104_020000.tar.gz",
        made_at=NIGHT,
        created_at=NIGHT + timedelta(hours=9),
        outcome=Tried.FAILED,
        lay_at="odd\udcff \\x00",
        finished_at=NIGHT + timedelta(hours=10),
        size_bytes=312_000_000,
        files=12,
        seconds=9.25,
        problems=("photos/\udcff.jpg did not come back.", "another"),
        unchecked=("chat: it was only compared.",),
        whole_in="memu_backup_20260103_020000.tar.gz",
    )
    return replace(drill, **changes)


def an_event(event_id: str = "event-1", **changes: Any) -> AuditEvent:
    event = AuditEvent(event_id, NIGHT, "nas", "alice", "cli", "restore", "photos/\udcff.jpg", "done")
    return replace(event, **changes)

"""Holds the texts that people read to the letter, most of all those that the Memu specification gives."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from memu_backup import errors, messages, words
from memu_backup.model import (
    Backup,
    Doubt,
    Drill,
    Loss,
    Phase,
    Problem,
    SourceSummary,
    Status,
    StatusReport,
    Tried,
    Trigger,
)
from tests.monday import BEFORE as EARLIER
from tests.monday import BERLIN, FAILED, HEALTHY, NOW
from tests.monday import GOOD as LAST


def lines(report: StatusReport) -> list[str]:
    return words.status_message(report, NOW, BERLIN).split("\n")


def test_format_status_message() -> None:
    assert words.status_message(HEALTHY, NOW, BERLIN) == (
        "Backup Status:\n"
        "Last backup: Today 2:05 AM (312 MB)\n"
        "Local backups: 7 stored (2.1 GB total)\n"
        "USB backup: 2 days ago\n"
        "Health: All systems healthy"
    )


def test_the_status_of_an_incomplete_backup() -> None:
    partial = replace(LAST, status=Status.PARTIAL, error="3 files could not be\nread.")
    assert lines(replace(HEALTHY, last=partial, last_good=EARLIER, problems=(Problem.LAST_PARTIAL,))) == [
        "Backup Status:",
        "Last backup: INCOMPLETE today 2:05 AM (312 MB) - 3 files could not be read",
        "Last good backup: Yesterday 2:05 AM (312 MB)",
        "USB backup: 2 days ago",
        "Health: Last backup is incomplete - look at what could not be read",
    ]


def test_the_status_before_the_first_backup() -> None:
    empty = replace(HEALTHY, last=None, last_good=None, usb_copied_at=None, problems=(Problem.NO_BACKUP,))
    assert lines(empty) == [
        "Backup Status:",
        "Last backup: none yet",
        "USB backup: never",
        "Health: No backup yet - start one now or wait for the first night",
    ]
    assert lines(replace(empty, in_progress=replace(LAST, status=Status.IN_PROGRESS))) == [
        "Backup Status:",
        "Last backup: the first one is running since today 2:05 AM",
        "USB backup: never",
        "Health: No backup yet - the first one is being made",
    ]


def test_the_status_while_a_backup_runs() -> None:
    running = replace(LAST, run_id="2", status=Status.IN_PROGRESS, created_at=NOW)
    assert lines(replace(HEALTHY, in_progress=running))[1:3] == [
        "Running now: a backup since today 9:00 AM",
        "Last backup: Today 2:05 AM (312 MB)",
    ]


def test_the_status_when_backups_are_overdue() -> None:
    old = replace(LAST, created_at=LAST.created_at - timedelta(days=3))
    assert lines(replace(HEALTHY, last=old, last_good=old, problems=(Problem.OVERDUE, Problem.USB_OVERDUE))) == [
        "Backup Status:",
        "Last backup: Friday 2:05 AM (312 MB)",
        "USB backup: 2 days ago",
        "Health: Backup overdue - start one now",
    ]


def test_the_status_when_the_first_attempt_failed() -> None:
    problems = (Problem.LAST_FAILED, Problem.NOTHING_GOOD)
    assert lines(replace(HEALTHY, last=FAILED, last_good=None, usb_copied_at=None, problems=problems))[1:3] == [
        "Last backup: FAILED today 2:05 AM - Disk full",
        "Last good backup: none",
    ]


def test_the_status_says_when_a_failed_backup_is_tried_again_and_then_no_more() -> None:
    failed = replace(
        HEALTHY, last=replace(FAILED, retry_at=NOW + timedelta(minutes=1)), problems=(Problem.LAST_FAILED,)
    )
    assert lines(failed)[:-1] == lines(replace(failed, last=FAILED))
    assert lines(failed)[-1] == "It is tried again at 9:01 AM."
    for over in (replace(failed, in_progress=FAILED), replace(failed, last=replace(FAILED, retry_at=NOW))):
        assert not any("tried again" in line for line in lines(over))


def test_the_status_when_the_newest_backup_is_gone() -> None:
    assert lines(replace(HEALTHY, last_good=EARLIER, problems=(Problem.BACKUP_GONE,)))[1:] == [
        "Last backup: Today 2:05 AM (312 MB)",
        "Last good backup: Yesterday 2:05 AM (312 MB)",
        "USB backup: 2 days ago",
        "Health: Backups are missing from their place - check that the backup disk is connected",
    ]


def test_the_status_while_the_history_is_away() -> None:
    assert lines(replace(HEALTHY, history_away=True, usb_copied_at=None, problems=(Problem.HISTORY_AWAY,))) == [
        "Backup Status:",
        "Last backup: Today 2:05 AM (312 MB)",
        "USB backup: not known right now",
        "Health: Backup history out of reach - check that the database is running",
        "Note: the backup history cannot be reached right now; this is told from the backups on disk.",
    ]


@pytest.mark.parametrize(
    ("problem", "days_left", "until"),
    [
        (Problem.SPACE_SHORT, 9, "at the present growth it will be full in about 9 days"),
        (Problem.SPACE_SHORT, 1, "at the present growth it will be full in about 1 day"),
        (Problem.SPACE_SHORT, 0, "at the present growth it will be full in less than a day"),
        (Problem.NO_ROOM, 0, "the next backup does not fit"),
    ],
)
def test_the_status_when_space_is_short_has_one_line_more(problem: Problem, days_left: int, until: str) -> None:
    report = replace(HEALTHY, problems=(problem,), free_bytes=12_000_000_000, days_left=days_left)
    health = {
        Problem.SPACE_SHORT: "Health: The backup disk will soon be full - free up space or add storage",
        Problem.NO_ROOM: "Health: The backup disk is too full for the next backup - free up space or add storage",
    }
    assert lines(report)[1:] == [
        "Last backup: Today 2:05 AM (312 MB)",
        "USB backup: 2 days ago",
        f"Space: The backup disk has 12 GB left for backups; {until}. "
        "Free up space, add storage, or keep fewer backups.",
        health[problem],
    ]
    assert not any(line.startswith("Space:") for line in lines(replace(report, problems=())))


def test_no_word_of_usb_where_no_drive_is_part_of_the_plan() -> None:
    assert "USB" not in words.status_message(replace(HEALTHY, usb_expected=False), NOW, BERLIN)


@pytest.mark.parametrize("problem", Problem)
def test_every_problem_has_a_line_that_says_what_to_do(problem: Problem) -> None:
    last = lines(replace(HEALTHY, problems=(problem,)))[-1]
    assert last.startswith("Health: ")
    assert " - " in last


def test_the_failure_alert_of_the_night() -> None:
    assert messages.failed(FAILED, NOW, BERLIN) == (
        "Backup Alert\n"
        "Last night's backup failed: Disk full\n"
        "Action needed: Free up space or add storage\n"
        "\n"
        "Use /backup-status for details"
    )


@pytest.mark.parametrize(
    ("trigger", "began", "subject"),
    [
        (Trigger.SCHEDULE, datetime(2026, 1, 25, 23, 30, tzinfo=BERLIN), "Last night's backup"),
        (Trigger.SCHEDULE, datetime(2026, 1, 26, 8, 30, tzinfo=BERLIN), "The backup at 8:30 AM"),
        (Trigger.MANUAL, datetime(2026, 1, 26, 2, 5, tzinfo=BERLIN), "The backup at 2:05 AM"),
        (Trigger.CATCH_UP, datetime(2026, 1, 26, 2, 5, tzinfo=BERLIN), "The backup at 2:05 AM"),
        (Trigger.SCHEDULE, datetime(2026, 1, 25, 2, 5, tzinfo=BERLIN), "The backup of yesterday 2:05 AM"),
        (Trigger.SCHEDULE, datetime(2026, 1, 23, 14, 30, tzinfo=BERLIN), "The backup of Friday 2:30 PM"),
        (Trigger.SCHEDULE, datetime(2026, 1, 2, 2, 5, tzinfo=BERLIN), "The backup of 2 Jan 2:05 AM"),
    ],
)
def test_only_a_run_of_the_timetable_in_this_night_is_last_nights(
    trigger: Trigger, began: datetime, subject: str
) -> None:
    alert = messages.failed(replace(FAILED, trigger=trigger, created_at=began), NOW, BERLIN)
    assert alert.split("\n")[1] == f"{subject} failed: Disk full"


def test_every_way_a_backup_can_fail_has_words() -> None:
    ends: list[type[errors.MemuError]] = [errors.SettingsError, errors.LockHeld, errors.Interrupted]
    ends += [errors.SourceError, errors.DatabaseError]
    ends += [errors.DatabaseAway, errors.StoreError, errors.NotMounted, errors.DiskFull, errors.WriteFailed]
    ends += [errors.NoInodes, errors.QuotaUsedUp]
    ends += [errors.ArchiveError, errors.DamagedArchive]
    ends += [errors.HalfWay, errors.ServiceError, errors.EngineError, errors.EngineAway, errors.Disturbed]
    assert {e.code for e in ends} == set(words.REASONS)
    for why in (*words.REASONS.values(), words.UNKNOWN_REASON):
        assert why.what[0].isupper()
        assert why.todo[0].isupper()
        assert not f"{why.what}{why.todo}".count(".")
    assert words.reason("never heard of") == words.reason(None) == words.UNKNOWN_REASON


@pytest.mark.parametrize(
    ("count_bytes", "told"),
    [
        (0, "0 bytes"),
        (1, "1 byte"),
        (999, "999 bytes"),
        (13_000, "13 kB"),
        (999_499, "999 kB"),
        (999_999, "1 MB"),
        (312_000_000, "312 MB"),
        (312_499_999, "312 MB"),
        (999_999_999, "1.0 GB"),
        (2_100_000_000, "2.1 GB"),
        (999_960_000_000, "1.0 TB"),
        (8_000_000_000_000, "8.0 TB"),
    ],
)
def test_sizes(count_bytes: int, told: str) -> None:
    assert words.size(count_bytes) == told


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        (-5, "0 s"),
        (0, "0 s"),
        (9, "9 s"),
        (59.6, "1 min"),
        (125, "2 min 5 s"),
        (3600, "1 h"),
        (3780, "1 h 3 min"),
        (93_600, "26 h"),
    ],
)
def test_durations(seconds: float, told: str) -> None:
    assert words.duration(seconds) == told


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (datetime(2026, 1, 26, 0, 0, tzinfo=BERLIN), "Today 12:00 AM"),
        (datetime(2026, 1, 26, 12, 30, tzinfo=BERLIN), "Today 12:30 PM"),  # ahead of now, by a clock that is
        (datetime(2026, 1, 25, 23, 59, tzinfo=BERLIN), "Yesterday 11:59 PM"),
        (datetime(2026, 1, 24, 14, 5, tzinfo=BERLIN), "Saturday 2:05 PM"),
        (datetime(2026, 1, 20, 2, 5, tzinfo=BERLIN), "Tuesday 2:05 AM"),
        (datetime(2026, 1, 19, 2, 5, tzinfo=BERLIN), "19 Jan 2:05 AM"),
        (datetime(2025, 12, 31, 2, 5, tzinfo=BERLIN), "31 Dec 2025 2:05 AM"),
        (datetime(2026, 1, 27, 2, 5, tzinfo=BERLIN), "27 Jan 2:05 AM"),
        (datetime(2036, 1, 26, 2, 5, tzinfo=BERLIN), "26 Jan 2036 2:05 AM"),
    ],
)
def test_moments(at: datetime, told: str) -> None:
    assert words.moment(at, NOW, BERLIN) == told


def test_a_moment_is_told_in_the_zone_of_the_household() -> None:
    at = datetime(2026, 1, 25, 23, 30, tzinfo=UTC)
    assert words.moment(at, NOW.astimezone(UTC), BERLIN) == "Today 12:30 AM"
    assert words.moment(at, NOW, timezone(timedelta(hours=-8))) == "Yesterday 3:30 PM"


@pytest.mark.parametrize(
    ("at", "told"),
    [
        (None, "never"),
        (datetime(2026, 1, 26, 8, 0, tzinfo=BERLIN), "today"),
        (datetime(2026, 1, 26, 23, 0, tzinfo=BERLIN), "today"),
        (datetime(2027, 1, 26, 23, 0, tzinfo=BERLIN), "today"),
        (datetime(2026, 1, 25, 23, 59, tzinfo=BERLIN), "yesterday"),
        (datetime(2026, 1, 24, 23, 59, tzinfo=BERLIN), "2 days ago"),
        (datetime(2026, 1, 14, 2, 0, tzinfo=BERLIN), "12 days ago"),
    ],
)
def test_ages_are_counted_in_nights(at: datetime | None, told: str) -> None:
    assert words.days_ago(at, NOW, BERLIN) == told


def test_backups_that_hold_a_version_are_told_by_the_days_of_those_in_a_row() -> None:
    days = [NOW - timedelta(days=n) for n in range(40)]
    assert words.held([days[:1]], NOW, BERLIN) == "in 1 backup, 26 Jan"
    assert words.held([days[:12]], NOW, BERLIN) == "in 12 backups, 15 Jan to 26 Jan"
    assert (
        words.held([days[2:40], days[:1], days[:2]], NOW, BERLIN) == "in 38 backups, 18 Dec 2025 to 24 Jan; and 3 more"
    )


@pytest.mark.parametrize(
    ("mtime_ns", "told"),
    [
        (1_769_300_000_123_456_789, "yesterday 1:13 AM"),
        (-1, "1 Jan 1970 12:59 AM"),
        (2**62, "21 Feb 2116 12:53 AM"),
        (10**21, "at an odd time"),
        (-(10**21), "at an odd time"),
    ],
)
def test_the_time_of_a_file_is_told_even_where_no_calendar_has_it(mtime_ns: int, told: str) -> None:
    assert words.changed(mtime_ns, NOW, BERLIN) == told


def test_unread_files_are_counted_in_good_english() -> None:
    assert [words.unread(n) for n in (1, 3)] == ["1 file could not be read", "3 files could not be read"]


def test_every_phase_has_a_word() -> None:
    assert set(words.PHASES) == set(Phase)


@pytest.mark.parametrize(
    ("files", "links", "says"),
    [
        (1, 0, "1 file"),
        (0, 0, "0 files"),
        (0, 1, "1 link"),
        (2, 1, "2 files and 1 link"),
        (1, 1234, "1 file and 1,234 links"),
    ],
)
def test_links_are_counted_beside_files(files: int, links: int, says: str) -> None:
    assert words.files_and_links(files, links) == says


PHOTOS = SourceSummary(
    name="photos", kind="directory", place="photos/", files=12_431, directories=40, links=0, size_bytes=98_000_000_000,
    checksum="", modes_checksum="", consistency="", newest_mtime=NOW - timedelta(days=1),
)  # fmt: skip


@pytest.mark.parametrize(
    ("newest", "told"),
    [
        (NOW, "12,431 files, newest from today"),
        (NOW - timedelta(days=1), "12,431 files, newest from yesterday"),
        (NOW - timedelta(days=3), "12,431 files, newest from Friday"),
        (NOW - timedelta(days=20), "12,431 files, newest from 6 Jan"),
        (NOW + timedelta(days=3652), "12,431 files, newest from 26 Jan 2036"),
        (datetime(9999, 12, 31, 23, 59, tzinfo=UTC), "12,431 files"),
        (None, "12,431 files"),
    ],
)
def test_a_tree_is_told_by_how_many_files_it_has_and_how_new_they_are(newest: datetime | None, told: str) -> None:
    assert words.tree(replace(PHOTOS, newest_mtime=newest), NOW, BERLIN) == told


@pytest.mark.parametrize(
    ("files", "links", "told"),
    [(0, 0, "0 files"), (1, 2, "1 file and 2 links"), (2**63 - 1, 0, "9,223,372,036,854,775,807 files")],
)
def test_an_empty_tree_and_a_huge_one(files: int, links: int, told: str) -> None:
    assert words.tree(replace(PHOTOS, files=files, links=links, newest_mtime=None), NOW, BERLIN) == told


@pytest.mark.parametrize(
    ("number", "rows", "told"),
    [
        (2, 12_034, "2 databases, 12,034 rows"),
        (1, 1, "1 database, 1 row"),
        (0, 0, "0 databases, 0 rows"),
        (3, None, "3 databases"),
    ],
)
def test_databases_are_told_by_their_rows_where_somebody_counted(number: int, rows: int | None, told: str) -> None:
    assert words.databases(number, rows) == told


def told(report: StatusReport) -> list[str]:
    return words.details(report, lambda summary, now, zone: f"{summary.files:,} of them", NOW, BERLIN)


def test_the_details_tell_what_the_last_good_backup_holds_and_how_it_was_made() -> None:
    good = replace(LAST, verified_at=LAST.created_at + timedelta(minutes=2), downtime_seconds=41.3)
    report = replace(HEALTHY, last_good=good, free_bytes=412_000_000_000)
    report = replace(report, sources=(PHOTOS, replace(PHOTOS, name="sound-box_old", files=3)))
    assert told(report) == [
        "Photos: 12,431 of them",
        "Sound box old: 3 of them",
        "Last checked: Today 2:07 AM - every byte was read back",
        "Space: 412 GB left for backups",
        "Services stood still for 41 s",
    ]


def test_the_details_of_a_failure_begin_with_what_exactly_went_wrong() -> None:
    failed = replace(LAST, status=Status.FAILED, error_code="source", error="/srv/photos is\nnot there. \x1b[2J")
    report = replace(HEALTHY, last=failed, last_good=LAST, sources=(PHOTOS,))
    assert told(report)[:2] == ["What went wrong: /srv/photos is not there. \ufffd[2J", "Photos: 12,431 of them"]
    assert told(replace(report, last_good=None)) == told(report)[:1]
    assert told(replace(report, last=LAST)) == told(report)[1:]
    assert len(told(replace(report, last=replace(failed, error="x" * 10_000)))[0]) < 500


def test_details_that_nobody_knows_are_left_out() -> None:
    unknown = replace(HEALTHY, last_good=replace(LAST, verified_at=None))
    assert told(unknown) == ["Last checked: never in full"]
    assert told(replace(unknown, history_away=True)) == ["Last checked: not known right now"]
    assert told(replace(HEALTHY, last_good=None, sources=(PHOTOS,), free_bytes=5)) == []


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"skipped": 2, "warnings": ("photos/disk is another filesystem mounted here; left out",)}, "; 2 left out"),
        ({"skipped": 2}, ""),
        ({"missing": ("photos/a.jpg vanished",)}, "; something is missing"),
    ],
)
def test_a_source_says_what_of_it_is_not_in_the_backup(changed: dict[str, Any], says: str) -> None:
    assert told(replace(HEALTHY, sources=(replace(PHOTOS, **changed),)))[0] == f"Photos: 12,431 of them{says}"


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("two\nlines: 5 files", "Two lines: 5 files"),
        ("\x1b[31mred\x07", "\ufffd[31mred\ufffd"),
        ("\u202egpj.exe\udcff", "\ufffdgpj.exe\ufffd"),
        ("x" * 100, "X" + "x" * 59 + "…"),
    ],
)
def test_a_name_from_a_hostile_archive_stays_one_short_line(name: str, shown: str) -> None:
    assert told(replace(HEALTHY, sources=(replace(PHOTOS, name=name),)))[0] == f"{shown}: 12,431 of them"


def test_an_archive_with_sources_without_end_does_not_fill_the_room() -> None:
    lines = told(replace(HEALTHY, sources=(PHOTOS,) * 1053))
    assert (len(lines), lines[50]) == (52, "… and 1,003 more")


@pytest.mark.parametrize(
    ("state", "read", "tried", "told"),
    [
        ("good", NOW, None, "whole, read back today 9:00 AM; pinned"),
        ("good", None, None, "whole; pinned"),  # nobody knows: the history is away
        ("good", NOW, Tried.WHOLE, "whole, read back today 9:00 AM; tried yesterday, and everything came back; pinned"),
        ("good", None, Tried.FAILED, "whole; tried yesterday, and NOT everything came back; pinned"),
        ("incomplete", None, None, "NOT COMPLETE: something could not be read when it was made; pinned"),
        ("suspicious", None, None, "LOOKS WRONG: photos: 9 of 10 files are gone; pinned"),
        ("damaged", NOW, None, "DAMAGED: what can be read of it goes into a folder; pinned"),
        ("unreadable", None, None, "does not tell what it holds: another program made it, or it is damaged; pinned"),
    ],
)
def test_who_has_to_choose_a_backup_is_told_how_good_it_is(
    state: str, read: datetime | None, tried: Tried | None, told: str
) -> None:
    doubts = (Doubt("photos", Loss.FILES, 10, 9),)
    backup = Backup("x.tar.gz", Path("/backups/x.tar.gz"), 1, NOW, None, pinned=True, doubts=doubts)
    drill = Drill("1", "home", "nightly", "x.tar.gz", NOW, NOW - timedelta(days=1), tried) if tried else None
    assert words.how_good(state, backup, read, drill, NOW, BERLIN) == told

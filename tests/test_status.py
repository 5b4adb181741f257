"""Puts households into good and bad states and asks whether the family would be told the truth."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from memu_backup import as_json
from memu_backup.model import (
    Backup,
    Doubt,
    Health,
    Loss,
    Manifest,
    Problem,
    Run,
    SourceSummary,
    Status,
    StatusReport,
    Trigger,
)
from memu_backup.outlook import Outlook
from memu_backup.status import assess, assess_elsewhere
from memu_backup.words import status_message

BERLIN = ZoneInfo("Europe/Berlin")
NOW = datetime(2026, 1, 26, 9, 0, tzinfo=BERLIN)
DAY = timedelta(days=1)
BACKUPS = Path("/srv/backups")


def name(days: float) -> str:
    return f"memu_backup_{(NOW - timedelta(days=days)):%Y%m%d}_020500.tar.gz"


def run(days: float = 0, status: Status = Status.SUCCESS, **changed: object) -> Run:
    """The run of 2:05 AM, ``days`` ago."""
    fields: dict[str, object] = {
        "run_id": f"run-{days}",
        "host": "home",
        "job": "nightly",
        "trigger": Trigger.SCHEDULE,
        "filename": name(days),
        "status": status,
        "created_at": (NOW - timedelta(days=days)).replace(hour=2, minute=5).astimezone(UTC),
        "size_bytes": 312_000_000 if status in (Status.SUCCESS, Status.PARTIAL) else 0,
    }
    return Run(**(fields | changed))  # type: ignore[arg-type]


def stored(runs: Sequence[Run], size_bytes: int = 300_000_000) -> list[Backup]:
    there = [r for r in runs if r.status in (Status.SUCCESS, Status.PARTIAL)]
    return [Backup(r.filename, BACKUPS / r.filename, size_bytes, r.created_at, None) for r in there]


def manifest(of: Run, *, missing: tuple[str, ...] = ()) -> Manifest:
    source = SourceSummary("photos", "directory", "photos/", 3, 1, 0, 1000, "0", "0", "at rest", missing=missing)
    return Manifest(
        "1", of.filename, of.run_id, of.created_at, "+01:00", of.host, of.job, "0.1.0", (source,), sha256sums="0"
    )


def on_disk_with_manifests(runs: Sequence[Run]) -> list[Backup]:
    return [Backup(r.filename, BACKUPS / r.filename, 312_000_000, r.created_at, manifest(r)) for r in runs]


def judged(
    runs: Sequence[Run],
    on_disk: Sequence[Backup] | None = None,
    *,
    interval: timedelta | None = DAY,
    usb_overdue_days: int = 7,
    outlook: Outlook | None = None,
    history_away: bool = False,
) -> StatusReport:
    return assess(
        runs,
        stored(runs) if on_disk is None else on_disk,
        NOW,
        interval=interval,
        usb_overdue_days=usb_overdue_days,
        outlook=outlook,
        history_away=history_away,
    )


def week(usb_days: float = 2) -> list[Run]:
    runs = [run(d) for d in range(7)]
    runs[3] = run(3, usb_copied_at=NOW - timedelta(days=usb_days))
    return runs


def test_get_backup_status_healthy() -> None:
    report = judged(week())
    assert (report.health, report.problems) == (Health.HEALTHY, ())
    assert status_message(report, NOW, BERLIN) == (
        "Backup Status:\n"
        "Last backup: Today 2:05 AM (312 MB)\n"
        "Local backups: 7 stored (2.1 GB total)\n"
        "USB backup: 2 days ago\n"
        "Health: All systems healthy"
    )


def test_get_backup_status_usb_overdue() -> None:
    report = judged(week(usb_days=12))
    assert (report.health, report.problems) == (Health.WARNING, (Problem.USB_OVERDUE,))
    assert status_message(report, NOW, BERLIN) == (
        "Backup Status:\n"
        "Last backup: Today 2:05 AM (312 MB)\n"
        "USB backup: 12 days ago\n"
        "Health: USB backup overdue - plug in your backup drive!"
    )


def test_get_backup_status_failed() -> None:
    failed = run(0, Status.FAILED, error="The disk is full.", error_code="disk_full")
    report = judged([failed, *week()[1:]])
    assert (report.health, report.problems) == (Health.CRITICAL, (Problem.LAST_FAILED,))
    assert status_message(report, NOW, BERLIN) == (
        "Backup Status:\n"
        "Last backup: FAILED today 2:05 AM - Disk full\n"
        "Last good backup: Yesterday 2:05 AM (312 MB)\n"
        "USB backup: 2 days ago\n"
        "Health: Last backup failed - free up space or add storage"
    )


def test_an_incomplete_backup_is_told_and_is_never_the_last_good_one() -> None:
    report = judged([run(0, Status.PARTIAL, error="3 files could not be read"), *week()[1:]])
    assert (report.health, report.problems) == (Health.WARNING, (Problem.LAST_PARTIAL,))
    assert report.last_good == run(1)


def test_only_incomplete_backups_are_no_good_backup() -> None:
    report = judged([run(0, Status.PARTIAL), run(1, Status.PARTIAL)], usb_overdue_days=0)
    assert (report.health, report.last_good) == (Health.WARNING, None)


def test_a_failure_in_the_past_is_over_once_a_backup_worked() -> None:
    assert judged([run(0), run(1, Status.FAILED), run(2)]).health is Health.HEALTHY


def test_a_fresh_installation_is_a_warning_not_an_alarm() -> None:
    report = judged([])
    assert (report.health, report.problems) == (Health.WARNING, (Problem.NO_BACKUP,))


def test_never_a_good_backup_after_attempts_is_critical() -> None:
    report = judged([run(0, Status.PARTIAL), run(1, Status.FAILED)])
    assert report.health is Health.CRITICAL
    assert report.problems == (Problem.NOTHING_GOOD, Problem.LAST_PARTIAL)


@pytest.mark.parametrize(("hours", "overdue"), [(35, False), (37, True)])
def test_no_good_backup_for_an_interval_and_a_half_is_overdue(hours: int, overdue: bool) -> None:
    old = run(1, created_at=NOW - timedelta(hours=hours))
    report = judged([old])
    assert (Problem.OVERDUE in report.problems) is overdue
    assert report.health is (Health.CRITICAL if overdue else Health.HEALTHY)
    assert judged([old], interval=None).health is Health.HEALTHY


def test_incomplete_backups_do_not_put_off_overdue() -> None:
    report = judged([run(0, Status.PARTIAL), run(1, Status.PARTIAL), run(3)])
    assert report.problems == (Problem.OVERDUE, Problem.LAST_PARTIAL)


def test_a_run_in_progress_is_not_the_last_one() -> None:
    running = run(0, Status.IN_PROGRESS)
    report = judged([running, *week()[1:]])
    assert (report.last, report.in_progress, report.health) == (run(1), running, Health.HEALTHY)


def test_a_row_that_a_killed_run_left_behind_is_not_in_progress() -> None:
    assert judged([run(0), run(1, Status.IN_PROGRESS)]).in_progress is None


def test_a_backup_whose_file_is_gone_is_not_the_last_good_one() -> None:
    runs = week()
    report = judged(runs, stored(runs[1:]))
    assert (report.last_good, report.health) == (runs[1], Health.CRITICAL)
    assert report.problems == (Problem.BACKUP_GONE,)


def test_an_empty_place_for_backups_is_critical_although_every_run_worked() -> None:
    report = judged(week(), [])
    assert report.problems == (Problem.BACKUP_GONE, Problem.NOTHING_GOOD)
    assert (report.stored_count, report.last_good) == (0, None)


def test_pruned_backups_are_not_missed() -> None:
    runs = [run(0), run(1), run(2, deleted_at=NOW), run(3, deleted_at=NOW)]
    assert judged(runs, stored(runs[:2])).health is Health.HEALTHY


def test_a_backup_that_was_taken_away_on_purpose_is_neither_missed_nor_good_even_if_bytes_of_it_are_left() -> None:
    runs = [run(0, deleted_at=NOW), run(1)]
    for on_disk in (stored(runs), stored(runs[1:])):
        report = judged(runs, on_disk)
        assert (report.last_good, report.problems) == (run(1), ())


def test_a_newest_backup_found_damaged_moves_the_last_good_one_back() -> None:
    runs = [run(0, Status.FAILED, error_code="damaged"), run(1)]
    report = judged(runs, stored([run(0), run(1)]))
    assert (report.last_good, report.problems) == (run(1), (Problem.LAST_FAILED,))


def test_an_older_backup_found_damaged_is_told() -> None:
    runs = [run(0), run(1, Status.FAILED, error_code="damaged")]
    assert judged(runs, stored([run(0), run(1)])).problems == (Problem.OLDER_DAMAGED,)
    assert judged(runs, stored([run(0)])).problems == ()


def test_rows_from_the_future_are_not_the_last_backup() -> None:
    ahead = run(-3650, Status.FAILED, usb_copied_at=NOW + timedelta(days=3650))
    running_ahead = run(-3651, Status.IN_PROGRESS)
    copied_ahead = run(7, usb_copied_at=NOW + timedelta(days=3650))
    report = judged([running_ahead, ahead, *week(), copied_ahead])
    assert (report.last, report.in_progress, report.health) == (run(0), None, Health.HEALTHY)
    assert report.usb_copied_at == NOW - timedelta(days=2)


def test_a_drive_never_seen_is_overdue_only_once_there_was_time_for_it() -> None:
    assert Problem.USB_OVERDUE not in judged([run(d) for d in range(7)]).problems
    assert Problem.USB_OVERDUE in judged([run(d) for d in range(9)]).problems
    assert judged([run(d) for d in range(30)], usb_overdue_days=0).health is Health.HEALTHY


def test_a_drive_copy_counts_although_its_backup_was_pruned_here() -> None:
    pruned = run(20, deleted_at=NOW, usb_copied_at=NOW - timedelta(days=1))
    runs = [run(0), pruned]
    assert judged(runs, stored(runs[:1])).health is Health.HEALTHY


def test_without_the_history_the_backups_on_disk_speak_for_themselves() -> None:
    runs = [run(0), run(1)]
    report = judged([], on_disk_with_manifests(runs), history_away=True)
    assert (report.health, report.problems) == (Health.WARNING, (Problem.HISTORY_AWAY,))
    assert report.last_good is not None
    assert (report.last_good.filename, report.last_good.created_at) == (runs[0].filename, runs[0].created_at)
    assert report.last_good.size_bytes == 312_000_000


def test_a_backup_that_says_of_itself_that_something_is_missing_is_incomplete() -> None:
    of = run(0)
    on_disk = [Backup(of.filename, BACKUPS / of.filename, 1, of.created_at, manifest(of, missing=("a.jpg",)))]
    report = judged([], on_disk)
    assert report.last is not None
    assert (report.last.status, report.last_good) == (Status.PARTIAL, None)


def test_where_nobody_can_look_the_rows_speak_and_the_report_says_so() -> None:
    def seen_from_outside(runs: Sequence[Run], *, history_away: bool = False) -> StatusReport:
        return assess(runs, None, NOW, interval=DAY, usb_overdue_days=0, history_away=history_away)

    report = seen_from_outside([run(0), run(1)])
    assert (report.problems, report.last_good) == ((Problem.CANNOT_LOOK,), run(0))
    report = seen_from_outside([], history_away=True)
    assert (report.problems, report.health) == ((Problem.CANNOT_LOOK, Problem.HISTORY_AWAY), Health.CRITICAL)
    assert status_message(report, NOW, BERLIN).splitlines()[1:3] == [
        "Last backup: not known",
        "Health: The backups cannot be looked at from here - check that the backup disk is connected, or ask as root",
    ]


def test_that_there_is_no_backup_does_not_hide_that_the_history_is_away() -> None:
    report = judged([], [], history_away=True)
    assert report.problems == (Problem.HISTORY_AWAY, Problem.NO_BACKUP)
    assert "history out of reach" in status_message(report, NOW, BERLIN)


def test_history_and_disk_do_not_count_one_backup_twice() -> None:
    failed = run(0, Status.FAILED)
    on_disk = [Backup(failed.filename, BACKUPS / failed.filename, 1, failed.created_at, manifest(failed))]
    assert judged([failed], on_disk).last_good is None


# --- suspicious ------------------------------------------------------------------------------------------------------

DOUBT = Doubt("photos", Loss.FILES, 4020, 4012)
GONE = "photos: 4,012 of 4,020 files are gone"


def doubted(runs: Sequence[Run], *names: str) -> list[Backup]:
    """What lies on the disk, of which these are suspicious."""
    return [replace(b, doubts=(DOUBT,)) if b.name in names else b for b in on_disk_with_manifests(runs)]


def test_a_suspicious_backup_is_not_the_last_good_one_whatever_its_row_says() -> None:
    told = replace(week()[0], status=Status.PARTIAL, error_code="suspicious", error=GONE)
    for runs in (week(), [told, *week()[1:]], week()[1:]):
        report = judged(runs, doubted(week(), name(0)))
        assert (report.problems, report.health) == ((Problem.SUSPICIOUS,), Health.WARNING)
        assert report.last_good and report.last_good.filename == name(1)
        assert report.in_doubt == report.last and report.doubts == (DOUBT,)
        assert report.last and (report.last.status, report.last.error) == (Status.PARTIAL, GONE)
        assert as_json.report(report)["doubts"] == [{"source": "photos", "what": "files", "before": 4020, "lost": 4012}]


def test_a_newer_backup_that_is_not_suspicious_ends_the_question_and_so_does_the_answer() -> None:
    report = judged(week(), doubted(week(), name(1)))
    assert (report.problems, report.in_doubt, report.doubts) == ((), None, ())
    told = replace(week()[0], status=Status.PARTIAL, error_code="suspicious", error=GONE)
    answered = judged([told, *week()[1:]], on_disk_with_manifests(week()))
    assert answered.problems == () and answered.last_good and answered.last_good.filename == name(0)
    assert answered.last_good.error_code is None


def test_a_failure_after_it_comes_first_and_the_question_stays() -> None:
    failed = run(0, Status.FAILED, error_code="disk_full")
    report = judged([failed, *week()[1:]], doubted(week()[1:], name(1)))
    assert report.problems == (Problem.LAST_FAILED, Problem.SUSPICIOUS, Problem.OVERDUE)
    assert report.in_doubt and report.in_doubt.filename == name(1)


def test_of_another_machine_it_is_known_from_its_rows() -> None:
    told = replace(week()[0], status=Status.PARTIAL, error_code="suspicious", error=GONE)
    report = assess_elsewhere([told, *week()[1:]], NOW)
    assert Problem.SUSPICIOUS in report.problems and report.in_doubt == told


@pytest.mark.parametrize(
    ("outlook", "problems", "health"),
    [
        (None, (), Health.HEALTHY),
        (Outlook(5, fits=True, days_left=None), (), Health.HEALTHY),
        (Outlook(5, fits=True, days_left=14), (), Health.HEALTHY),
        (Outlook(5, fits=True, days_left=13), (Problem.SPACE_SHORT,), Health.WARNING),
        (Outlook(5, fits=False, days_left=0), (Problem.NO_ROOM,), Health.CRITICAL),
    ],
)
def test_a_disk_is_told_of_two_weeks_before_it_is_full(
    outlook: Outlook | None, problems: tuple[Problem, ...], health: Health
) -> None:
    report = judged(week(), outlook=outlook)
    assert (report.problems, report.health) == (problems, health)
    assert as_json.report(report)["days_left"] == (outlook.days_left if outlook else None)


def test_as_json_has_stable_keys_and_utc() -> None:
    told = json.loads(json.dumps(as_json.report(judged(week(usb_days=12)))))
    assert list(told) == [
        "health",
        "problems",
        "last",
        "last_good",
        "in_progress",
        "stored_count",
        "stored_bytes",
        "usb_expected",
        "usb_copied_at",
        "history_away",
        "free_bytes",
        "days_left",
        "elsewhere",
        "sources",
        "drives",
        "copying",
        "in_doubt",
        "doubts",
        "coverage",
        "drill",
        "drill_late",
    ]
    assert (told["health"], told["problems"], told["in_progress"]) == ("warning", ["usb_overdue"], None)
    assert (told["stored_count"], told["stored_bytes"]) == (7, 2_100_000_000)
    assert told["last"]["created_at"] == "2026-01-26T01:05:00+00:00"
    assert told["usb_copied_at"] == "2026-01-14T08:00:00+00:00"


def test_the_report_holds_what_the_last_good_backup_says_it_holds() -> None:
    runs = [run(0, Status.FAILED), run(1), run(2)]
    older, newer = on_disk_with_manifests([runs[2], runs[1]])
    other = replace(manifest(runs[1]).sources[0], name="music", newest_mtime=NOW)
    report = judged(runs, [older, replace(newer, manifest=replace(manifest(runs[1]), sources=(other,)))])
    assert (report.last_good, report.sources) == (run(1), (other,))
    assert json.loads(json.dumps(as_json.report(report)))["sources"] == [
        {
            "name": "music",
            "kind": "directory",
            "files": 3,
            "size_bytes": 1000,
            "newest_mtime": "2026-01-26T08:00:00+00:00",
        }
    ]


def test_no_source_is_told_of_without_a_good_backup_or_a_look_at_it() -> None:
    partial = [run(0, Status.PARTIAL)]
    assert judged(partial, on_disk_with_manifests(partial)).sources == ()
    assert judged([run(0)]).sources == ()
    assert assess([run(0)], None, NOW, interval=DAY, usb_overdue_days=0).sources == ()

"""Every message that the bot can send, word for word, in ``messages.txt``: one sitting for whoever reads or translates.

``python -m tests.test_messages`` writes that file anew.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from memu_backup import messages, sources, words
from memu_backup.errors import CopyDiffers, DriveBroken, DriveFull, DriveGone, DriveReadOnly
from memu_backup.model import Copied, Copying, Doubt, Drill, Loss, Phase, Problem, Progress, Status, Tried
from tests.monday import BEFORE, BERLIN, BLUE, BY_HAND, DAY, DETAILED, FAILED, GOOD, NIGHT, NOW, PARTIAL

FILE = Path(__file__).with_name("messages.txt")
WHEN = (NOW, BERLIN)


DOUBTS = (
    Doubt("photos", Loss.FILES, 4020, 4012),
    Doubt("films", Loss.BYTES, 20_000_000_000, 12_000_000_000),
    Doubt("chat", Loss.EVERYTHING, 3, 3),
    Doubt("documents", Loss.CONTENT, 900, 871),
)
TESTED = Drill(
    drill_id="1",
    host="home",
    job="nightly",
    filename="memu_backup_20260125_020500.tar.gz",
    made_at=NIGHT - DAY,
    created_at=NOW - 22 * timedelta(hours=1),
    outcome=Tried.WHOLE,
    size_bytes=312_000_000,
    files=12_431,
    seconds=9.2,
)
NOT_ALL = replace(
    TESTED,
    outcome=Tried.FAILED,
    problems=("photos/2026/lake.jpg did not come back.",),
    whole_in="memu_backup_20260124_020500.tar.gz",
)
UNTRIED = replace(
    TESTED,
    outcome=Tried.UNTRIED,
    created_at=NOW - 29 * DAY,
    problems=("There is not enough room to try it: 400 GB needed, 90 GB free in /backups.",),
)
SUSPICIOUS = replace(PARTIAL, error_code="suspicious", error=words.doubted(DOUBTS[:1]))


def status(**changes: object) -> str:
    return words.status_message(replace(DETAILED, **changes), *WHEN)  # type: ignore[arg-type]


def statuses() -> Iterator[tuple[str, str]]:
    """What ``/backup-status`` answers; the first three are Memu's own."""
    yield "status: healthy", status()
    overdue = NOW - 12 * DAY
    yield "status: the drive is old", status(problems=(Problem.USB_OVERDUE,), usb_copied_at=overdue)
    failed = {"last": FAILED, "last_good": BEFORE}
    yield "status: the last backup failed", status(problems=(Problem.LAST_FAILED,), **failed)
    again = replace(FAILED, error_code="database_away", retry_at=NOW + timedelta(minutes=5))
    yield "status: it failed and is tried again", status(problems=(Problem.LAST_FAILED,), last=again, last_good=BEFORE)
    yield "status: incomplete", status(problems=(Problem.LAST_PARTIAL,), last=PARTIAL, last_good=BEFORE)
    asked = {"last": SUSPICIOUS, "in_doubt": SUSPICIOUS, "doubts": DOUBTS[:1], "last_good": BEFORE}
    yield "status: suspicious", status(problems=(Problem.SUSPICIOUS,), **asked)
    under_way = replace(GOOD, status=Status.IN_PROGRESS, created_at=NOW)
    yield "status: a backup is being made", status(last=BEFORE, last_good=BEFORE, in_progress=under_way)
    nothing = {"last": None, "last_good": None, "stored_count": 0, "stored_bytes": 0, "usb_copied_at": None}
    yield "status: before the first backup", status(problems=(Problem.NO_BACKUP,), **nothing)
    first = {**nothing, "in_progress": under_way}
    yield "status: the first backup is being made", status(problems=(Problem.NO_BACKUP,), **first)
    yield "status: no backup, and no disk for it", status(problems=(Problem.NOT_MARKED, Problem.NO_BACKUP), **nothing)
    for problem, what in (
        (Problem.SERVICES_DOWN, "something does not run again"),
        (Problem.CANNOT_LOOK, "nobody can look"),
        (Problem.BACKUP_GONE, "backups are missing"),
        (Problem.NOT_MARKED, "the disk is away"),
        (Problem.NOTHING_GOOD, "none is good"),
        (Problem.OVERDUE, "overdue"),
        (Problem.OLDER_DAMAGED, "an older one is damaged"),
        (Problem.CHAT_ENDED, "the bot was signed out"),
        (Problem.CHAT_BROKEN, "the bot does not work"),
    ):
        yield f"status: {what}", status(problems=(problem,))
    yield "status: no room", status(problems=(Problem.NO_ROOM,), free_bytes=3_000_000_000, days_left=0)
    yield "status: soon full", status(problems=(Problem.SPACE_SHORT,), free_bytes=41_000_000_000, days_left=9)
    away = {"history_away": True, "usb_copied_at": None}
    yield "status: the history is away", status(problems=(Problem.HISTORY_AWAY,), **away)
    yield "status: what is folded away below it", "\n".join(words.details(DETAILED, sources.told, *WHEN))
    said = "/srv/memu/photos (source photos) is not there, so it cannot be backed up. Is its disk mounted?"
    for what, test in (("went well", TESTED), ("failed", NOT_ALL), ("could not be made", UNTRIED)):
        shown = words.details(replace(DETAILED, drill=test, drill_late=test is UNTRIED), sources.told, *WHEN)
        yield f"status: what is folded away where a restore test {what}", "\n".join(shown)
    gone = replace(DETAILED, last=replace(FAILED, error_code="source", error=said), last_good=BEFORE)
    yield "status: what is folded away below a failure", "\n".join(words.details(gone, sources.told, *WHEN))


def by_itself() -> Iterator[tuple[str, str]]:
    yield "failed", messages.failed(FAILED, *WHEN)
    yield "failed: one that was made by hand, of several jobs", messages.failed(BY_HAND, *WHEN, "photos-weekly")
    yield "incomplete", messages.incomplete(PARTIAL, *WHEN)
    for doubt in DOUBTS:
        yield f"suspicious: {doubt.what}", messages.suspicious(SUSPICIOUS, [doubt], BEFORE, *WHEN)
    alone = [Doubt("env", Loss.EVERYTHING, 1, 1)]
    yield "suspicious: one file, of several jobs", messages.suspicious(SUSPICIOUS, alone, BEFORE, *WHEN, "config")
    yield "suspicious: several sources", messages.suspicious(SUSPICIOUS, DOUBTS, BEFORE, *WHEN)
    noted = [Doubt("", Loss.UNTOLD, 0, 0)]
    yield "suspicious: noted by hand, and nothing to compare with", messages.suspicious(SUSPICIOUS, noted, None, *WHEN)
    yield "overdue", messages.overdue(replace(BEFORE, created_at=NIGHT - 3 * DAY), *WHEN)
    older = [replace(GOOD, created_at=NIGHT - number * DAY) for number in range(2, 7)]
    lost = (
        "photos/lake.jpg cannot be read back. photos/lake.jpg is whole in memu_backup_20260118_020000.tar.gz; to have "
        "it back, type: memu-backup restore /srv/backups/memu_backup_20260118_020000.tar.gz --path photos/lake.jpg "
        "--to FOLDER"
    )
    bad = [replace(run, status=Status.FAILED, error_code="damaged", error=lost) for run in older]
    yield "failed: damaged", messages.failed(replace(bad[0], created_at=NIGHT), *WHEN)
    yield "damaged: one, and what it lost", messages.damaged(bad[:1], *WHEN)
    yield "damaged: several, and what they lost", messages.damaged(bad, *WHEN)
    yield "damaged: one", messages.damaged(older[:1], *WHEN)
    yield "damaged: several", messages.damaged(older, *WHEN)
    yield "drill_failed", messages.drill_failed(NOT_ALL, *WHEN)
    rows = ("chat: Database memu comes back with 49 rows in public.messages instead of 50.", *NOT_ALL.problems)
    copy = replace(NOT_ALL, problems=rows, whole_in="", lay_at="blue drive")
    yield "drill_failed: a copy on a drive, of several jobs", messages.drill_failed(copy, *WHEN, "photos-weekly")
    yield "drill_failed: whole nowhere", messages.drill_failed(replace(NOT_ALL, whole_in=""), *WHEN)
    yield "space_short", messages.space_short(41_000_000_000, 9)
    yield "no_room", messages.no_room(3_000_000_000)
    yield "services_down", messages.services_down(["immich_server", "synapse", "element", "nginx"])
    yield "history_away", messages.history_away()
    yield "signed_out", messages.signed_out()
    yield "chat_broken", messages.chat_broken()
    yield "well", messages.well(GOOD, *WHEN)
    yield "well_drill", messages.well_drill(TESTED, *WHEN)
    yield "well_space", messages.well_space(412_000_000_000)
    yield "well_services", messages.well_services()
    yield "well_history", messages.well_history()
    yield "well_chat", messages.well_chat()
    yield "completed", messages.completed(GOOD, *WHEN)
    yield "reminder", messages.reminder(NOW - 9 * DAY, 2_100_000_000, *WHEN)
    yield "reminder: never", messages.reminder(None, 0, *WHEN)
    yield "test", messages.test("home")
    yield "another_way", messages.another_way(messages.failed(FAILED, *WHEN))


def answers() -> Iterator[tuple[str, str]]:
    yield "help", messages.help()
    yield "page", messages.page("https://backup.example.org/enter?code=…")
    yield "no_page", messages.no_page()
    yield "slip", messages.slip("status")
    yield "slip: nothing near", messages.slip(None)
    listed = [(NIGHT - number * DAY, 312_000_000, "good") for number in range(12)]
    yield "listing", messages.listing(listed, *WHEN)
    several = [(at, count, f"{state} (nightly)") for at, count, state in listed[:2]]
    yield "listing: of several jobs", messages.listing(several, *WHEN)
    yield "no_list", messages.no_list(status(problems=(Problem.NOT_MARKED,)))
    yield "which_job", messages.which_job(["nightly", "photos-weekly"])
    yield "another_one", messages.another_one(GOOD, *WHEN)
    yield "nothing_asked", messages.nothing_asked()
    yield "nothing_waits", messages.nothing_waits()
    yield "which_backup", messages.which_backup([GOOD.filename, "2026-01-26"])
    yield "accepted", messages.accepted([NIGHT], "", *WHEN)
    yield (
        "accepted: two, and another is not",
        messages.accepted([NIGHT - DAY, NIGHT - 2 * DAY], SUSPICIOUS.error or "", *WHEN),
    )
    yield "running", messages.running(NOW - timedelta(minutes=12), *WHEN)
    yield "begun", messages.begun()
    yield "progress", messages.progress(Progress(Phase.CAPTURING))
    yield "progress: in numbers", messages.progress(Progress(Phase.WRITING, 1_200_000_000, 2_900_000_000))
    more = Progress(Phase.WRITING, 3_100_000_000, 3_100_000_000)
    yield "progress: more than was thought", messages.progress(more)
    yield "ended", messages.ended(replace(GOOD, created_at=NOW), *WHEN)
    yield "ended: incomplete", messages.ended(PARTIAL, *WHEN)
    yield "ended: suspicious", messages.ended(SUSPICIOUS, *WHEN)
    yield "ended: failed", messages.ended(FAILED, *WHEN)
    yield "broke", messages.broke()
    yield "checking", messages.checking(NIGHT, *WHEN)
    yield "checked", messages.checked(NIGHT, (), (), *WHEN)
    yield "checked: damaged", messages.checked(NIGHT, ("photos/lake.jpg differs.", "another"), (), *WHEN)
    yield "checked: not all", messages.checked(NIGHT, (), ("The dump could not be listed.",), *WHEN)
    yield "snoozed", messages.snoozed(NOW + 7 * DAY, *WHEN)


def of_drives() -> Iterator[tuple[str, str]]:
    new = replace(BLUE, name="", trusted_at=None, last_copied_at=None, copies=0)
    sandisk = replace(BLUE, name="")
    made = [Copied(GOOD.filename, GOOD.size_bytes, None, made=True)]
    music = Copied("music_20260125_040000.tar.gz", 41_000_000_000, None, made=True)
    yield "drive_new", messages.drive_new(new)
    locked = replace(new, label="Passport", filesystem="crypto_LUKS")
    yield "drive_unfit", messages.drive_unfit(locked, "It is locked (encrypted).")
    yield "drive_trusted", messages.drive_trusted(sandisk)
    yield "drive_copying", messages.drive_copying(BLUE, 12_000_000_000, 540)
    yield "drive_copying: without a name, and for hours", messages.drive_copying(sandisk, 900_000_000_000, 45_000)
    yield "drive_done", messages.drive_done(sandisk, made, [], ())
    yield "drive_done: of two jobs, to one with a name", messages.drive_done(BLUE, [*made, music], [], ())
    yield "drive_done: it was there already", messages.drive_done(sandisk, [], made, ())
    yield "drive_done: somebody else has it", messages.drive_done(sandisk, made, [], ("/media/anna/SanDisk_Family",))
    yield "drive_done: nobody knows who has it", messages.drive_done(sandisk, made, [], ("",))
    yield "drive_more", messages.drive_more(sandisk, made, [])
    yield "drive_free", messages.drive_free(sandisk)
    for error, why in (
        (DriveGone, "It was pulled out before the copy was done."),
        (DriveFull, "It is full: 12 GB needed, 3.1 GB free. The newest copy on it stays."),
        (DriveReadOnly, "It is write-protected."),
        (CopyDiffers, "What was read back from it is not what was written: it is broken, or smaller than it says."),
    ):
        yield f"drive_failed: {error.code}", messages.drive_failed(BLUE, why, error.code)
    odd = "It looks like a drive that gets copies, and does not carry its mark. Nothing was written on it."
    yield "drive_failed: drive_unknown", messages.drive_failed(BLUE, odd, "drive_unknown")
    yield "drive_failed: the first copy", messages.drive_failed(new, "It gives errors.", DriveBroken.code)
    yield "drive_twice", messages.drive_twice(BLUE)
    yield "which_drive", messages.which_drive([new, locked])
    yield "which_drive: none", messages.which_drive([])
    yield "may_be_pulled", messages.may_be_pulled(())
    red = replace(BLUE, name="", label="Red", kept_at="grandma's", last_copied_at=NOW - 12 * DAY, copies=1)
    yield "status: two drives", status(drives=(BLUE, red))
    at = Progress(Phase.COPYING, 5_100_000_000, 12_000_000_000)
    yield "status: a copy is being made", status(drives=(BLUE,), copying=Copying(BLUE.called, at))


def everything() -> list[tuple[str, str]]:
    return [*statuses(), *by_itself(), *answers(), *of_drives()]


def as_text() -> str:
    blocks = (f"── {name}\n\n{text}\n" for name, text in everything())
    return (
        "Every message that the bot can send, as it stands on a phone on Monday, 26 January, at nine.\n\n"
        + "\n".join(blocks)
    )


def test_every_message_is_worded_as_it_was_read() -> None:
    assert as_text() == FILE.read_text()


def test_no_message_is_missing_there() -> None:
    there = inspect.getmembers(messages, inspect.isfunction)
    public = {name for name, made in there if made.__module__ == messages.__name__ and not name.startswith("_")}
    assert public == {name.partition(":")[0] for name, _ in everything()} - {"status"}


@pytest.mark.parametrize(("name", "text"), everything())
def test_a_message_fits_on_a_phone_and_says_what_to_do(name: str, text: str) -> None:
    assert text == text.strip() and len(text) < 700 and "  " not in text
    assert not re.search(r"None|Error|Exception|traceback|\bnull\b|_at\b", text), text
    if text.startswith("Backup Alert"):
        assert "\nAction needed: " in text


def test_the_page_for_the_family_tells_what_each_of_them_means() -> None:
    page = (Path(__file__).parent.parent / "docs" / "family.md").read_text()
    health = {line for _, text in statuses() for line in text.splitlines() if line.startswith("Health: ")}
    said = {line.removeprefix("Health: ").partition(" - ")[0] for line in health}
    titles = {text.partition("\n")[0].partition(" (")[0] for _, text in by_itself()}
    titles |= {text.partition("\n")[0] for _, text in of_drives() if text.startswith("USB Backup")}
    assert sorted(told for told in said if f"| {told}" not in page) == []
    assert sorted(told for told in titles if f"| **{told}**" not in page) == []


def test_backup_status_formatting() -> None:
    """Memu's specification, 2.2, to the letter."""
    texts = dict(everything())
    assert texts["drive_done"] == (
        "USB Backup Complete\n"
        "Copied latest backup to 'SanDisk_Family' drive.\n"
        f"File: {GOOD.filename} (312 MB)\n"
        "\n"
        "Safe to remove the drive."
    )
    assert texts["status: healthy"] == (
        "Backup Status:\n"
        "Last backup: Today 2:05 AM (312 MB)\n"
        "Local backups: 7 stored (2.1 GB total)\n"
        "USB backup: 2 days ago\n"
        "Health: All systems healthy"
    )
    assert texts["status: the drive is old"] == (
        "Backup Status:\n"
        "Last backup: Today 2:05 AM (312 MB)\n"
        "USB backup: 12 days ago\n"
        "Health: USB backup overdue - plug in your backup drive!"
    )
    assert texts["status: the last backup failed"] == (
        "Backup Status:\n"
        "Last backup: FAILED today 2:05 AM - Disk full\n"
        "Last good backup: Yesterday 2:05 AM (312 MB)\n"
        "USB backup: 2 days ago\n"
        "Health: Last backup failed - free up space or add storage"
    )
    assert texts["failed"] == (
        "Backup Alert\n"
        "Last night's backup failed: Disk full\n"
        "Action needed: Free up space or add storage\n"
        "\n"
        "Use /backup-status for details"
    )
    assert texts["reminder"] == (
        "Weekly Backup Reminder\n"
        "It's been 9 days since your last USB backup.\n"
        "\n"
        "Plug in your backup drive to save a copy of your family's data.\n"
        "Current backup size: ~2.1 GB"
    )


if __name__ == "__main__":
    FILE.write_text(as_text())

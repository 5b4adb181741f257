"""What is known of drives: names that are doubtful, strangers by the dozen, a file that is damaged."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup.drives.known import Known, News
from memu_backup.drives.shelf import Copy, folder_name, newest_of, order_of, to_go
from memu_backup.drives.udev import Plug, fit_to_show
from memu_backup.errors import UsageError

AT = datetime(2026, 1, 26, 9, tzinfo=UTC)


def plug(number: int = 1, label: str = "SanDisk_Family") -> Plug:
    return Plug(
        Path(f"/dev/sd{number}"), str(number), f"{number:04}-ABCD", "exfat", "filesystem", label, "Stick", 10**9
    )


@pytest.fixture
def known(tmp_path: Path) -> Known:
    return Known(tmp_path / "drives" / "drives.json", "home")


def test_it_is_known_again_whatever_it_is_called_now(known: Known) -> None:
    drive = known.seen(plug(), AT)
    assert (drive.label, drive.trusted_at) == ("SanDisk_Family", None)
    known.change(drive.drive_id, lambda d: replace(d, name="blue drive", trusted_at=AT))
    again = known.seen(plug(label="Renamed"), AT + timedelta(days=1))
    assert (again.drive_id, again.called, again.label) == (drive.drive_id, "blue drive", "Renamed")
    assert (
        known.named("BLUE drive") == known.named("renamed") == known.named("0001-abcd") == known.named("0001") == again
    )
    assert known.of(plug(2)) is None


@pytest.mark.parametrize("said", ["", "blue", "000"])
def test_who_means_nothing_in_particular_is_told_what_there_is(known: Known, said: str) -> None:
    known.seen(plug(), AT)
    with pytest.raises(UsageError, match=r"^There is no drive called .*\. There are: SanDisk_Family\.$"):
        known.named(said)


def test_of_two_that_share_a_name_neither_is_taken(known: Known) -> None:
    for number in (1, 2):
        known.seen(plug(number), AT)
    with pytest.raises(
        UsageError,
        match=r"^There are 2 drives called sandisk_family: 000\d-ABCD \(exfat\), 000\d-ABCD \(exfat\)\. Name one so\.$",
    ):
        known.named("sandisk_family")


def test_however_many_strangers_are_plugged_in_those_that_were_approved_stay(known: Known) -> None:
    mine = known.seen(plug(1), AT)
    known.change(mine.drive_id, lambda d: replace(d, trusted_at=AT))
    for number in range(2, 60):
        known.tell(known.seen(plug(number), AT + timedelta(minutes=number)).drive_id, AT, "A new drive")
    assert len(known.drives()) == 21
    assert known.of(plug(1)) and known.of(plug(59)) and not known.of(plug(2))
    assert len(known.news()) == 20


def test_what_there_was_to_tell_goes_with_the_drive_and_makes_way_for_the_next(known: Known) -> None:
    drive = known.seen(plug(), AT)
    known.tell(drive.drive_id, AT, "seen")
    known.tell(drive.drive_id, AT + timedelta(seconds=9), "done")
    assert known.news() == {drive.drive_id: News(AT + timedelta(seconds=9), "done")}
    known.forget(drive.drive_id)
    assert (known.drives(), known.news()) == ([], {})
    with pytest.raises(UsageError, match="forgotten meanwhile"):
        known.change(drive.drive_id, lambda d: d)


def test_what_a_later_version_says_besides_is_passed_over(known: Known) -> None:
    drive = known.seen(plug(), AT)
    said = json.loads(known._file.read_text())
    said["drives"][0]["colour"] = "blue"
    known._file.write_text(json.dumps(said))
    assert known.drives() == [drive]


@pytest.mark.parametrize(
    "content", ["", "[]", '{"drives": [{"drive_id": 1}], "news": {}}', '{"drives": []}', "\0" * 100]
)
def test_a_damaged_file_knows_no_drive_and_is_written_anew(known: Known, content: str) -> None:
    known.seen(plug(), AT)
    assert not known.lost()
    known._file.write_text(content)
    assert known.drives() == [] and known.lost()
    assert known.seen(plug(), AT).trusted_at is None
    assert len(known.drives()) == 1 and not known.lost()
    assert known._file.with_suffix(".damaged").read_text() == content


def test_it_is_for_its_owner_alone(known: Known) -> None:
    known.seen(plug(), AT)
    assert known._file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("My  Passport\n", "My Passport"),
        ("\x1b[31mred\x07", "\ufffd[31mred\ufffd"),
        ("\u202egnp.exe", "\ufffdgnp.exe"),
        ("x" * 300, "x" * 40 + "…"),
        ("x" * 40 + "…", "x" * 40 + "…"),
    ],
)
def test_a_label_is_made_fit_to_be_shown(written: str, shown: str) -> None:
    assert fit_to_show(written) == shown


@pytest.mark.parametrize("host", ["home", "Anna's  server!", "../../etc", "", "a/b", "ü"])
def test_the_folder_of_a_job_is_one_plain_name(host: str) -> None:
    name = folder_name(host, "nightly")
    assert "/" not in name and not name.startswith((".", "-")) and name.endswith("_nightly") and name.count("_") == 1


def name(age: int) -> str:
    return f"memu_backup_2026012{9 - age}_020500.tar.gz"


def test_the_newest_whole_copy_never_goes_nor_what_nobody_read_back() -> None:
    copies = [Copy(name(n), (name(n),), 1, None if n in (0, 2) else "ab", order_of(name(n))) for n in range(6)]
    for keep, gone in ((1, [3, 4, 5]), (0, [3, 4, 5]), (3, [5])):
        assert to_go(copies, name(0), keep) == [copies[n] for n in gone]
    assert newest_of(copies, name(0)) == copies[1]


def test_what_a_clock_dated_ahead_neither_pushes_out_the_newest_nor_stands_for_it() -> None:
    """Of those that are dated no later than what was just copied, so many stay; the others do not count."""
    copies = [Copy(name(n), (name(n),), 1, "ab", order_of(name(n))) for n in range(6)]
    assert to_go(copies, name(3), 1) == copies[4:]
    assert newest_of(copies, name(3)) == copies[3]
    assert newest_of(copies[:3], name(3)) == copies[0]
    assert newest_of([], name(3)) is None

"""Exactly the forms that people are taught work, and whatever else a family writes is left alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.chat.grammar import WORDS, Command, Slip, parse


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize("form", ["/backup-{}", "//backup-{}", "/backup {}", "!backup-{}", "!backup {}", "backup {}"])
def test_what_is_taught_works(form: str, word: str) -> None:
    typed = form.format(word)
    for text in (typed, f"  {typed}\n", typed.upper(), typed.title(), typed.replace(" ", "  ")):
        assert parse(text) == Command(word, marked=not form.startswith("backup")), text


def test_a_backup_now_may_be_of_a_job() -> None:
    assert parse("!backup now Photos-weekly") == Command("now", "Photos-weekly")
    assert parse("/backup-now  photos\n") == Command("now", "photos")
    assert parse("backup now please") == Command("now", "please", marked=False)
    assert parse("!backup now or never") == Slip("now")
    assert parse("!backup status photos") == Slip("status")


def test_what_is_accepted_may_be_named_in_one_word() -> None:
    name = "memu_backup_20260126_020500.tar.gz"
    assert parse(f"!backup accept {name}") == Command("accept", name)
    assert parse("!backup accept it all") == Slip("accept")
    assert parse("backup accept it all") is None


@pytest.mark.parametrize(
    "text",
    [
        "", " ", "status", "help", "backup", "Backup!", "backup-status", "backup status please", "backup the photos",
        "backup now or never", "/status", "/me backup status", "is the backup status good?", "!status",
        "! backup status", "//", "!backups", "/backups are good", "/backup_photos", "!backup, please",
        "backupstatus", "the backup status", "> !backup status", "!backup status" + " " * 300,
    ],
)  # fmt: skip
def test_whatever_else_is_said_is_left_alone(text: str) -> None:
    assert parse(text) is None


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("!backup", None), ("/backup", None), ("//backup", None), ("!backup xyz", None), ("!backup stauts", "status"),
        ("/backup-lsit", "list"), ("!backup hlep", "help"), ("!backup status?", "status"),
        ("/backup status please", "status"), ("//backup status", "status"), ("!backupstatus", "status"),
        ("/Backup_Status", "status"), ("!backup: status", "status"), ("!backup.stauts", "status"),
        ("/backups-status", "status"), ("!backup - status", None),
    ],
)  # fmt: skip
def test_a_slip_of_the_finger_gets_a_suggestion(text: str, meant: str | None) -> None:
    assert parse(text) == Slip(meant)


@given(st.text())
def test_no_text_breaks_it(text: str) -> None:
    parse(text)
    assert parse(f"family: {text}") is None

"""What comes out of an archive is shown in the room as it is, and never becomes a part of the message's own form."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

from memu_backup.chat import markup
from memu_backup.model import Problem, Run, SourceSummary, Status, StatusReport, Trigger

NOW = datetime(2026, 1, 26, 9, 0, tzinfo=UTC)
GOOD = Run(
    run_id="1", host="home", job="nightly", trigger=Trigger.SCHEDULE, filename="memu_backup_20260126_020500.tar.gz",
    status=Status.SUCCESS, created_at=NOW - timedelta(hours=7), size_bytes=312_000_000,
    verified_at=NOW - timedelta(hours=6, minutes=53),
)  # fmt: skip
PHOTOS = SourceSummary(
    name="photos", kind="directory", place="photos/", files=1, directories=1, links=0, size_bytes=7,
    checksum="", modes_checksum="", consistency="",
)  # fmt: skip
HEALTHY = StatusReport(
    problems=(), last=GOOD, last_good=GOOD, in_progress=None, stored_count=1, stored_bytes=312_000_000,
    usb_expected=False, usb_copied_at=None, history_away=False, sources=(PHOTOS,),
)  # fmt: skip
NOTHING = replace(HEALTHY, problems=(Problem.NO_BACKUP,), last=None, last_good=None, sources=())


def test_an_answer_of_one_line_has_no_form() -> None:
    assert markup.headed("Did you mean <b>?").content() == {"msgtype": "m.text", "body": "Did you mean <b>?"}
    assert markup.headed("Backups:\n<b> & you").html == "<b>Backups:</b><br>&lt;b&gt; &amp; you"


def test_each_job_has_its_details_below_its_own_status() -> None:
    told = markup.status({"nightly": HEALTHY, "weekly": NOTHING}, NOW, UTC)
    assert told.text == (
        "nightly:\nBackup Status:\nLast backup: Today 2:00 AM (312 MB)\nLocal backups: 1 stored (312 MB total)\n"
        "Health: All systems healthy\n\n"
        "weekly:\nBackup Status:\nLast backup: none yet\n"
        "Health: No backup yet - start one now or wait for the first night"
    )
    assert told.html == (
        "<b>nightly:</b><br>Backup Status:<br>Last backup: Today 2:00 AM (312 MB)<br>"
        "Local backups: 1 stored (312 MB total)<br>Health: All systems healthy"
        "<details><summary>Details</summary>Photos: 1 file<br>"
        "Last checked: Today 2:07 AM - every byte was read back</details><br><br>"
        "<b>weekly:</b><br>Backup Status:<br>Last backup: none yet<br>"
        "Health: No backup yet - start one now or wait for the first night"
    )


def test_a_hostile_name_is_text_and_no_markup() -> None:
    named = replace(PHOTOS, name="</details><b>safe</b>\n\x1b[2J&")
    shown = markup.status({"nightly": replace(HEALTHY, sources=(named,))}, NOW, UTC).html
    assert "&lt;/details&gt;&lt;b&gt;safe&lt;/b&gt; \ufffd[2J&amp;: 1 file<br>" in shown
    assert (shown.count("</details>"), shown.count("<b>")) == (1, 1)
    assert shown.isprintable()

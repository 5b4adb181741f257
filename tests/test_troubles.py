"""What is wrong with a household, from its reports and the rows that nobody was told of."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

import pytest

from memu_backup.model import Doubt, Loss, Problem, Run, Status, StatusReport
from memu_backup.troubles import Found, of_jobs
from tests.monday import BEFORE, BERLIN, DAY, DETAILED, FAILED, GOOD, NOW, PARTIAL
from tests.test_messages import NOT_ALL, TESTED, UNTRIED

BROKEN = replace(DETAILED, last=FAILED, last_good=BEFORE, problems=(Problem.LAST_FAILED,))


def found(report: StatusReport, *debts: Run, completed: bool = False, **more: StatusReport) -> Found:
    reports = {"nightly": report, **more}
    return of_jobs(reports, debts, dict.fromkeys(reports, "/backups"), NOW, BERLIN, completed=completed)


def told(made: Found) -> list[tuple[str, str]]:
    return [(t.topic, t.cause) for t in made.troubles]


def test_nothing_is_wrong_with_a_healthy_household() -> None:
    made = found(replace(DETAILED, drill=TESTED))
    assert told(made) == [] and made.undecided == set()
    assert made.well["job:nightly"] == "All well again\nLast night's backup worked (312 MB)."


def test_the_newest_run_failed() -> None:
    made = found(BROKEN, FAILED)
    assert told(made) == [("job:nightly", "disk_full")]
    assert made.rows == {"job:nightly": [FAILED]} and not made.troubles[0].known
    assert found(replace(BROKEN, last=replace(FAILED, notification_sent=True))).troubles[0].known


def test_older_ones_that_nobody_was_told_of_are_settled_by_the_newest() -> None:
    older = replace(FAILED, run_id="older", created_at=FAILED.created_at - DAY)
    assert found(BROKEN, FAILED, older).settled == [older]
    assert found(DETAILED, older).settled == [older]


def test_what_is_about_to_be_tried_again_is_undecided_until_it_is_clear_that_it_is_not() -> None:
    again = replace(FAILED, retry_at=NOW + timedelta(minutes=5))
    older = replace(FAILED, run_id="older", created_at=FAILED.created_at - DAY)
    made = found(replace(BROKEN, last=again), older)
    assert made.undecided >= {"job:nightly"} and told(made) == [] and made.settled == []
    never = replace(FAILED, retry_at=NOW - timedelta(hours=3))
    assert told(found(replace(BROKEN, last=never))) == [("job:nightly", "disk_full")]


SUSPICIOUS = replace(PARTIAL, error_code="suspicious", error="photos: 4,012 of 4,020 files are gone")
ASKED = replace(
    DETAILED,
    last=SUSPICIOUS,
    last_good=BEFORE,
    problems=(Problem.SUSPICIOUS,),
    in_doubt=SUSPICIOUS,
    doubts=(Doubt("photos", Loss.FILES, 4020, 4012),),
)


def test_a_suspicious_one_is_a_question_that_stays_one_from_night_to_night() -> None:
    made = found(ASKED, SUSPICIOUS)
    assert told(made) == [("job:nightly", "suspicious photos:files")]
    assert made.rows == {"job:nightly": [SUSPICIOUS]} and made.troubles[0].asks == SUSPICIOUS.run_id
    more = (Doubt("chat", Loss.EVERYTHING, 3, 3), Doubt("photos", Loss.FILES, 4020, 4018))
    assert told(found(replace(ASKED, doubts=more[1:]))) == told(made)
    assert told(found(replace(ASKED, doubts=more))) == [("job:nightly", "suspicious chat:everything photos:files")]
    late = replace(ASKED, problems=(Problem.SUSPICIOUS, Problem.OVERDUE))
    assert told(found(late)) == told(made), "that there is no good one is why it is asked"
    failed = replace(ASKED, last=FAILED, problems=(Problem.LAST_FAILED, Problem.SUSPICIOUS))
    assert told(found(failed)) == [("job:nightly", "disk_full")]


def test_incomplete_comes_before_overdue_and_overdue_before_nothing() -> None:
    late = (Problem.OVERDUE,)
    partial = replace(DETAILED, last=PARTIAL, last_good=BEFORE, problems=(*late, Problem.LAST_PARTIAL))
    assert told(found(partial, PARTIAL)) == [("job:nightly", "partial")]
    assert told(found(replace(DETAILED, problems=late))) == [("job:nightly", "overdue")]


def test_a_backup_that_has_been_under_way_for_half_a_day_does_not_hide_that_none_is_good() -> None:
    """It may hang, as where a disk does not answer."""
    begun = replace(GOOD, status=Status.IN_PROGRESS, created_at=NOW - timedelta(hours=1))
    late = replace(DETAILED, problems=(Problem.OVERDUE,), in_progress=begun)
    assert told(found(late)) == [] and "job:nightly" in found(late).undecided
    hangs = replace(late, in_progress=replace(begun, created_at=NOW - timedelta(hours=13)))
    assert told(found(hangs)) == [("job:nightly", "overdue")]


@pytest.mark.parametrize(
    "report", [replace(DETAILED, last=None, last_good=None), replace(DETAILED, problems=(Problem.CANNOT_LOOK,))]
)
def test_where_nothing_is_known_nothing_is_called_well(report: StatusReport) -> None:
    made = found(report)
    assert "job:nightly" in made.undecided and "job:nightly" not in made.well


def test_older_backups_that_are_damaged_are_one_message_told_once() -> None:
    damaged = [
        replace(FAILED, run_id=f"d{n}", error_code="damaged", created_at=FAILED.created_at - n * DAY) for n in (2, 3)
    ]
    made = found(DETAILED, *damaged)
    assert told(made) == [("damaged:nightly", "d2 d3")]
    assert made.troubles[0].once and made.rows["damaged:nightly"] == damaged and made.settled == []


def test_space_is_told_once_a_disk_and_not_beside_a_backup_that_failed_for_it() -> None:
    short = replace(DETAILED, problems=(Problem.SPACE_SHORT,), free_bytes=41_000_000_000, days_left=9)
    assert told(found(short, weekly=short)) == [("space:/backups", "space_short")]
    none = replace(DETAILED, problems=(Problem.NO_ROOM,), free_bytes=3_000_000_000, days_left=0)
    assert told(found(none)) == [("space:/backups", "no_room")]
    assert told(found(replace(BROKEN, problems=(*BROKEN.problems, Problem.NO_ROOM)))) == [("job:nightly", "disk_full")]


def test_while_a_backup_is_made_nothing_is_said_of_space() -> None:
    made = found(replace(DETAILED, free_bytes=None))
    assert "space:/backups" in made.undecided and "space:/backups" not in made.well


def test_of_several_jobs_each_message_names_its_own() -> None:
    made = found(BROKEN, FAILED, weekly=DETAILED)
    assert made.troubles[0].text.startswith("Backup Alert (nightly)\n")
    assert made.well["job:weekly"].startswith("All well again (weekly)\n")


def test_a_backup_that_went_well_is_told_where_that_is_asked_for_and_only_soon_after() -> None:
    assert told(found(DETAILED, completed=True)) == [("completed:nightly", GOOD.run_id)]
    assert told(found(DETAILED)) == []
    assert told(found(replace(DETAILED, last=replace(GOOD, notification_sent=True)), completed=True)) == []
    old = replace(GOOD, created_at=GOOD.created_at - 2 * DAY)
    assert told(found(replace(DETAILED, last=old), completed=True)) == []
    assert GOOD.status is Status.SUCCESS


def test_a_restore_test_that_failed_is_an_alert_until_one_goes_well() -> None:
    failed = replace(DETAILED, drill=NOT_ALL)
    assert told(found(failed)) == [("drill:nightly", NOT_ALL.drill_id)]
    assert "drill:nightly" in found(replace(DETAILED, drill=TESTED)).well
    assert "drill:nightly" in found(replace(DETAILED, drill=UNTRIED)).undecided
    assert "drill:nightly" in found(replace(failed, history_away=True)).undecided

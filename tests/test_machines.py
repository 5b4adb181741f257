"""Two machines that share one history: each is told of its own backups, and with --all of the other's word too."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memu_backup.history import History
from memu_backup.model import Problem, Run, Status, Trigger
from memu_backup.status import assess_elsewhere, rhythm
from tests.home import Home, managed, query

NOW = datetime(2026, 5, 1, 12, 0, tzinfo=UTC)
DAY = timedelta(days=1)


def run_of(host: str, at: datetime, status: Status = Status.SUCCESS, **changed: object) -> Run:
    name = f"memu_backup_{at:%Y%m%d_%H%M%S}.tar.gz"
    made = Run(
        f"{host} {at}", host, "nightly", Trigger.SCHEDULE, name, status, at, f"/srv/backups/{name}", size_bytes=1000
    )
    return replace(made, **changed)  # type: ignore[arg-type]


@pytest.fixture
def homes(tmp_path: Path, database: str) -> tuple[Home, Home]:
    """Attic and cellar: one Postgres, and the same name for their only job."""
    attic, cellar = Home(tmp_path / "attic", database), Home(tmp_path / "cellar", database)
    for name, home in (("attic", attic), ("cellar", cellar)):
        settings = home.folder / "config.toml"
        settings.write_text(settings.read_text().replace("family-server", name))
    return attic, cellar


@pytest.mark.parametrize("order", [(0, 1), pytest.param((1, 0), marks=pytest.mark.slow)])
def test_each_machine_sees_its_own_and_all_shows_both(homes: tuple[Home, Home], order: tuple[int, int]) -> None:
    for number in order:
        assert homes[number].run("start").status == 0
    (homes[1].folder / ".env").unlink()
    assert homes[1].run("start").status == 3
    attic, cellar = (home.run("status", "--json") for home in homes)
    assert (attic.status, attic.json["nightly"]["stored_count"], attic.json["nightly"]["last"]["host"]) == (
        0,
        1,
        "attic",
    )
    assert (cellar.status, cellar.json["nightly"]["problems"]) == (1, ["last_partial"])

    for home, own, other in ((homes[0], "attic", "cellar"), (homes[1], "cellar", "attic")):
        told = home.run("status", "--all", "--json")
        assert told.status == 1 and list(told.json) == [own, other]
        assert {h: jobs["nightly"]["health"] for h, jobs in told.json.items()} == {
            "attic": "healthy",
            "cellar": "warning",
        }
        assert {h: jobs["nightly"]["stored_count"] for h, jobs in told.json.items()} == {"attic": 1, "cellar": 2}
        assert (told.json[own]["nightly"]["elsewhere"], told.json[other]["nightly"]["elsewhere"]) == (False, True)
    said = homes[0].run("status", "--all").out
    mine, _, theirs = said.partition("nightly on cellar:\n")
    assert mine.startswith("nightly on attic:\nBackup Status:\n") and "Note:" not in mine
    assert "Last backup: INCOMPLETE today" in theirs
    assert theirs.endswith(
        "Note: this is what that machine wrote down itself; its backups cannot be looked at from here.\n"
    )
    assert "  attic  " in homes[1].run("log").out and "  cellar  " in homes[1].run("log").out


@pytest.mark.slow
def test_all_is_healthy_only_where_every_machine_is(homes: tuple[Home, Home]) -> None:
    for home in homes:
        assert home.run("start").status == 0
    assert homes[0].run("status", "--all").status == 0
    (homes[0].photos / "2026").rename(homes[0].folder / "away")
    homes[0].photos.rmdir()
    assert homes[0].run("start").status == 1
    assert homes[1].run("status").status == 0
    assert homes[1].run("status", "--all").status == 1


@pytest.mark.slow
async def test_a_failure_of_another_machine_in_a_folder_of_the_same_name_is_not_ours(
    homes: tuple[Home, Home], tmp_path: Path
) -> None:
    attic, _ = homes
    assert attic.run("start").status == 0
    before = attic.run("status", "--json")
    async with History(attic.history, tmp_path / "state", "cellar") as history:
        for status in (Status.FAILED, Status.IN_PROGRESS):
            name = "memu_backup_x.tar.gz"
            at = datetime.now(UTC)
            theirs = run_of("cellar", at, status, run_id=status, location=str(attic.backups / name), filename=name)
            await history.record(theirs)
    after = attic.run("status", "--json")
    assert after.json["nightly"]["last"] == before.json["nightly"]["last"]
    assert (after.status, after.json["nightly"]["in_progress"]) == (0, None)
    assert attic.run("start").status == 0  # which settles what our own killed runs left, and no other's
    assert {r["status"] for r in attic.rows() if r["host"] == "cellar"} == {"failed", "in_progress"}


async def test_rows_of_another_machine_are_found_below_any_number_of_ours(homes: tuple[Home, Home]) -> None:
    attic, _ = homes
    async with managed(attic, [NOW]) as manager:
        await manager.history.record(run_of("cellar", NOW - DAY, job="old"))
        await query(
            attic.history,
            "INSERT INTO backup_history (filename, size_bytes, status, host, job, created_at)"
            " SELECT 'x' || n, 0, 'failed', 'attic', 'nightly', now() FROM generate_series(1, 1100) n",
            "INSERT INTO backup_history (filename, size_bytes, status) VALUES ('by the script', 0, 'success')",
            "SELECT 1",
        )
        reports = await manager.standing.elsewhere()
    assert list(reports) == [("cellar", "old")]


def test_without_the_history_ours_is_told_and_that_the_others_are_not_known(homes: tuple[Home, Home]) -> None:
    attic, _ = homes
    assert attic.run("start").status == 0
    settings = attic.folder / "config.toml"
    settings.write_text(settings.read_text().replace(attic.history, "postgresql://memu@127.0.0.1:9/memu"))
    told = attic.run("status", "--all")
    assert told.status == 1
    assert told.out.startswith("nightly on attic:\nBackup Status:\nLast backup: Today")
    assert "Of other machines nothing can be told: " in told.err


# --- by their own rhythm ---------------------------------------------------------------------------------------------


def nights(*hours_ago: float, **changed: Any) -> list[Run]:
    return [run_of("cellar", NOW - timedelta(hours=h), **changed) for h in hours_ago]


WEEKDAYS = [24 * d for d in range(28) if (NOW - d * DAY).weekday() < 5]


@pytest.mark.parametrize(
    ("runs", "usual"),
    [
        ([], None),
        (nights(1, 25, trigger=Trigger.MANUAL), None),
        (nights(1), DAY),
        (nights(1, 2, 3), DAY),
        (nights(*range(0, 24 * 9, 24)), DAY),
        (nights(*(24 * d for d in (0, 1, 2, 12, 13, 14, 15))), DAY),
        (nights(*(24 * 7 * w for w in range(5))), 7 * DAY),
        (nights(*WEEKDAYS), 3 * DAY),
        (nights(*range(20)), timedelta(hours=1)),
        (nights(-24 * 3650, *range(0, 24 * 9, 24)), DAY),
    ],
)
def test_a_rhythm_is_known_from_the_runs_alone(runs: list[Run], usual: timedelta | None) -> None:
    assert rhythm(runs, NOW) == usual


@pytest.mark.parametrize(("hours", "overdue"), [(35, False), (37, True)])
def test_a_machine_that_has_fallen_silent_is_overdue_by_its_own_rhythm(hours: int, overdue: bool) -> None:
    report = assess_elsewhere(nights(*(hours + 24 * d for d in range(7))), NOW)
    assert report.problems == ((Problem.OVERDUE,) if overdue else ())
    assert report.elsewhere and report.stored_count == 7
    weekly = assess_elsewhere(nights(*(hours + 24 * 7 * w for w in range(7))), NOW)
    assert weekly.problems == ()


def test_what_was_pruned_there_is_not_counted_and_a_backup_known_to_be_damaged_is_told() -> None:
    runs = nights(1, 25, 49, 73)
    runs[3] = replace(runs[3], deleted_at=NOW)
    runs[1] = replace(runs[1], status=Status.FAILED, error_code="damaged")
    report = assess_elsewhere(runs, NOW)
    assert (report.stored_count, report.stored_bytes) == (2, 2000)
    assert report.problems == (Problem.OLDER_DAMAGED,)

"""A disk that is nearly full: what is said before a run, what goes to make room, and what never does."""

from __future__ import annotations

import os
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup import lock
from memu_backup.audit import SCHEDULER
from memu_backup.model import Health, Problem, Run, Status, StatusReport, Trigger
from tests.contracts.stores import small_disk
from tests.home import Home, fingerprints, managed

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")

BEGIN = datetime(2026, 3, 1, 1, 0, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Iterator[Home]:
    """Its disk for backups, of 1 MB, has room for seven of them, of 130 kB each."""
    home = Home(tmp_path / "home", database)
    with small_disk(home.backups, "1000k"):
        home.mark()
        yield home


async def made(home: Home, nights: int, retention: str, begin: datetime = BEGIN) -> list[Run]:
    home.configure(f"retention = {{ {retention} }}\n")
    now = [begin]
    runs = []
    async with managed(home, now) as manager:
        for _ in range(nights):
            runs.append(await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER))
            now[0] += timedelta(days=1)
    return runs


def days(home: Home) -> list[str]:
    return [a.name[18:20] for a in home.archives]


async def test_a_run_for_which_there_is_no_room_is_not_begun_and_nothing_goes_for_it(home: Home) -> None:
    await made(home, 7, "keep_last = 9")
    before = fingerprints(home.backups)
    (run,) = await made(home, 1, "keep_last = 9", BEGIN + timedelta(days=7))
    assert (run.status, run.error_code) == (Status.FAILED, "disk_full")
    assert run.error and run.error.startswith(
        f"The disk that holds {home.backups} is too full for the next backup: about 1"
    )
    assert run.error.endswith(" kB free. Nothing was begun; older backups are untouched. Free up space or add storage.")
    after = fingerprints(home.backups)
    assert {n: c for n, c in after.items() if "memu_backup_" in n and "lock" not in n} == {
        n: c for n, c in before.items() if "memu_backup_" in n and "lock" not in n
    }
    assert home.leftovers() == []
    started = home.run("start", "--json")
    assert started.status == 1 and started.json["error_code"] == "disk_full"


@pytest.mark.slow
async def test_what_the_rules_let_go_anyway_goes_before_a_run_that_needs_its_room(home: Home) -> None:
    await made(home, 7, "keep_last = 9")
    (run,) = await made(home, 1, "keep_last = 6", BEGIN + timedelta(days=7))
    assert run.status is Status.SUCCESS
    assert days(home) == ["03", "04", "05", "06", "07", "08"]
    assert {e["outcome"] for e in home.audit() if e["action"] == "delete"} == {
        "It is none of those that the rules keep: the 6 newest."
    }


@pytest.mark.slow
async def test_with_min_free_the_oldest_make_room_but_for_the_pinned_and_the_newest_verified(home: Home) -> None:
    await made(home, 5, "keep_last = 9")
    assert home.run("keep", home.archives[0].name).status == 0
    home.configure('retention = { keep_last = 9, min_free = "400 kB" }\n')
    dry = home.run("clean", "--dry-run", "--json").json
    told = {d["name"][18:20]: (d["keep"], d["reason"]) for d in dry}
    assert [day for day, (keep, _) in told.items() if not keep] == ["03", "02"]
    assert "The next backup needs about 12" in told["02"][1]
    assert "and 400 kB shall stay free, but only" in told["02"][1] and "oldest that may go." in told["02"][1]

    runs = await made(home, 3, 'keep_last = 9, min_free = "400 kB"', BEGIN + timedelta(days=5))
    assert [r.status for r in runs] == [Status.SUCCESS] * 3
    assert days(home) == ["01", "06", "07", "08"]
    outcomes = [e["outcome"] for e in home.audit() if e["action"] == "delete"]
    assert outcomes and all("shall stay free" in o for o in outcomes)

    (alone,) = await made(home, 1, 'keep_last = 9, min_free = "600 kB"', BEGIN + timedelta(days=8))
    assert alone.status is Status.SUCCESS
    assert days(home) == ["01", "08", "09"]
    (no_more,) = await made(home, 1, 'keep_last = 9, min_free = "800 kB"', BEGIN + timedelta(days=9))
    assert no_more.error_code == "disk_full"
    assert days(home) == ["01", "08", "09"]


@pytest.mark.slow
async def test_nothing_goes_in_vain(home: Home) -> None:
    await made(home, 3, "keep_last = 9")
    (run,) = await made(home, 1, 'keep_last = 9, min_free = "5 MB"', BEGIN + timedelta(days=3))
    assert run.error_code == "disk_full" and run.error
    assert "needed, as the last ones took, 5 MB to stay free (min_free), " in run.error
    assert run.error.endswith("are untouched. Free up space or add storage, or lower min_free.")
    assert days(home) == ["01", "02", "03"]
    (run,) = await made(home, 1, 'keep_last = 2, min_free = "5 MB"', BEGIN + timedelta(days=4))
    assert (
        run.error and "Nothing was begun; 1 that the rules let go was removed, the others are untouched." in run.error
    )
    assert days(home) == ["02", "03"]


async def test_the_first_backup_asks_for_nothing_but_what_shall_stay_free(home: Home) -> None:
    (run,) = await made(home, 1, 'keep_last = 9, min_free = "5 MB"')
    assert run.error and "too full for the next backup: 5 MB to stay free (min_free), 1 MB free." in run.error
    (run,) = await made(home, 1, 'keep_last = 9, min_free = "800 kB"')
    assert run.status is Status.SUCCESS


async def test_the_status_tells_of_a_disk_before_it_is_full_and_what_it_tells_comes_true(home: Home) -> None:
    async def report(nights: int) -> StatusReport:
        async with managed(home, [BEGIN + timedelta(days=nights, hours=-1)]) as manager:
            return (await manager.standing.reports())["nightly"]

    await made(home, 2, "keep_last = 9")
    told = await report(2)
    assert (told.problems, told.days_left) == ((), None)
    assert told.free_bytes and 650_000 < told.free_bytes < 800_000
    await made(home, 3, "keep_last = 9", BEGIN + timedelta(days=2))
    told = await report(5)
    assert (told.health, told.problems, told.days_left) == (Health.WARNING, (Problem.SPACE_SHORT,), 2)
    runs = await made(home, 2, "keep_last = 9", BEGIN + timedelta(days=5))
    assert [r.status for r in runs] == [Status.SUCCESS] * 2
    told = await report(7)
    assert (told.health, told.problems) == (Health.CRITICAL, (Problem.NO_ROOM,))
    (refused,) = await made(home, 1, "keep_last = 9", BEGIN + timedelta(days=7))
    assert refused.error_code == "disk_full"
    home.configure("retention = { keep_last = 6 }\n")
    told = await report(7)
    assert (told.problems, told.days_left) == ((), None)


@pytest.mark.slow
async def test_while_a_backup_is_made_nothing_is_told_of_a_disk_that_it_half_fills(home: Home) -> None:
    await made(home, 7, "keep_last = 9")
    async with managed(home, [BEGIN + timedelta(days=6, hours=1)]) as manager:
        with lock.held(home.backups, "backup job nightly"):
            told = (await manager.standing.reports())["nightly"]
        assert (told.problems, told.free_bytes) == ((), None)
        assert (await manager.standing.reports())["nightly"].problems == (Problem.NO_ROOM,)


@pytest.mark.slow
async def test_nothing_goes_to_make_room_for_a_run_whose_sources_are_known_to_be_away(home: Home) -> None:
    await made(home, 3, "keep_last = 9")
    before = fingerprints(home.backups)
    home.photos.rename(home.folder / "elsewhere")
    (run,) = await made(home, 1, 'keep_last = 9, min_free = "600 kB"', BEGIN + timedelta(days=3))
    assert (run.status, run.error_code) == (Status.FAILED, "source")
    assert fingerprints(home.backups) == before
    (home.folder / "elsewhere").rename(home.photos)
    await made(home, 1, 'keep_last = 9, min_free = "600 kB"', BEGIN + timedelta(days=4))
    assert days(home) == ["02", "03", "05"]  # so it was short

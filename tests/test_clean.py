"""``clean`` says what it would do, does it only when told, and never more than it said."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path

import pytest

from memu_backup import lock
from memu_backup.audit import Asker
from tests.home import Home, fingerprints, managed


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    """Three backups, of which settings now keep one."""
    home = Home(tmp_path / "home", database)
    for _ in range(3):
        assert home.run("start").status == 0
    home.configure(top="backup_retention_count = 1")
    return home


def test_clean_removes_what_retention_lets_go_and_only_when_told(home: Home) -> None:
    oldest, middle, newest = home.archives
    dry = home.run("clean", "--dry-run")
    assert dry.status == 0 and "this was a dry run" in dry.out
    assert re.search(rf"(?m)^goes   {oldest.name} +It is none of those that the rules keep: the newest\.$", dry.out)
    assert re.search(rf"(?m)^stays  {newest.name} +It is the newest\.$", dry.out)
    decisions = home.run("clean", "--dry-run", "--json").json
    assert [(d["name"], d["keep"]) for d in decisions] == [
        (newest.name, True),
        (middle.name, False),
        (oldest.name, False),
    ]
    refused = home.run("clean", "--json")
    assert refused.status == 2 and "Add --yes" in refused.err and refused.json["error"]["code"] == "usage"
    declined = home.on_a_terminal("clean", answer="\n")
    assert declined.status == 1 and "Remove 2 backups (" in declined.out and "Nothing was changed." in declined.out
    with lock.held(home.backups, "backup job nightly"):
        assert home.run("clean", "--yes").status == 75
    assert home.archives == [oldest, middle, newest]

    cleaned = home.run("clean", "nightly", "--yes")
    assert cleaned.status == 0 and cleaned.out.splitlines()[-1].startswith("Removed 2 backups (")
    assert home.archives == [newest]
    assert len(list(home.backups.glob("*.sha256"))) == 1
    assert [bool(r["deleted_at"]) for r in home.rows()] == [False, True, True]
    why = "It is none of those that the rules keep: the newest."
    assert {(e["subject"], e["origin"], e["outcome"]) for e in home.audit() if e["action"] == "delete"} == {
        (oldest.name, "cli", why),
        (middle.name, "cli", why),
    }
    again = home.run("clean", "--yes")
    assert again.status == 0 and "Nothing has to go." in again.out
    assert home.run("status").status == 0


async def test_only_what_was_agreed_to_goes(home: Home) -> None:
    """A run may end while somebody thinks about the answer."""
    oldest, middle, newest = home.archives
    async with managed(home, [datetime.now(UTC)]) as manager:
        decisions = await manager.clean("nightly", Asker("anna", "cli"), dry_run=False, agreed=[oldest.name])
    assert [d.backup.name for d in decisions if not d.verdict.keep] == [oldest.name]
    assert home.archives == [middle, newest]


def test_a_run_says_what_it_removed_and_an_empty_place_has_no_list(home: Home) -> None:
    gone = home.archives
    ran = home.run("start")
    assert ran.status == 0
    line = ran.out.splitlines()[-1]
    assert line.startswith("Removed 3 backups (") and "), which newer ones replace: memu_backup_" in line
    assert all(archive.name in line for archive in gone)
    home.configure(top='backup_dir = "nothing"')
    home.mark()
    assert home.run("clean").out == "Nothing has to go.\n"


def test_what_others_put_there_is_not_ours_to_remove(home: Home) -> None:
    stranger = home.backups / "memu_backup_20200101_000000.tar.gz"
    stranger.write_bytes(b"\x1f\x8b not one of ours")
    (home.backups / "holiday.tar.gz").write_bytes(b"mine")
    home.configure(top='backup_retention_count = 1\n[jobs.weekly]\ncron = "0 3 * * 0"\n')
    assert home.run("start", "weekly").status == 0
    weekly = home.archives[-1]
    assert home.run("clean", "nightly", "--yes").status == 0
    assert home.run("clean", "weekly", "--yes").status == 0
    assert stranger.exists() and weekly.exists() and (home.backups / "holiday.tar.gz").exists()
    listed = home.run("list")
    assert "weekly on family-server" in listed.out and "nightly on family-server" in listed.out
    assert re.search(rf"(?m)^{stranger.name} +1 Jan 2020 1:00 AM +18 bytes +\? +unreadable", listed.out)
    which = home.run("clean", "--yes")
    assert which.status == 2 and "Which job? There are weekly, nightly." in which.err and "clean weekly" in which.err


def test_after_any_number_of_runs_that_failed_the_last_good_backup_is_still_there(home: Home) -> None:
    home.configure("retention = { keep_last = 1 }\n")
    assert home.run("start").status == 0
    good = fingerprints(home.backups)
    (home.folder / ".env").unlink()
    for _ in range(2):
        assert home.run("start").status == 3
    home.photos.rename(home.folder / "elsewhere")
    for _ in range(2):
        assert home.run("start").status == 1
    assert home.run("clean", "--yes").status == 0
    left = fingerprints(home.backups)
    assert all(left[name] == content for name, content in good.items() if not name.startswith("."))
    assert home.run("verify", "latest").status == 0


async def test_a_place_holds_so_many_of_all_its_jobs_and_one_that_is_switched_off_is_no_concern(
    tmp_path: Path, database: str
) -> None:
    home = Home(tmp_path / "home", database)
    more = (
        '[stores.local]\nkind = "archive"\nmax_backups = 3\n[jobs.weekly]\ncron = "0 3 * * sun"\n'
        '[environment]\nWEEKLY = "jobs.weekly.enabled"\n'
    )
    home.configure(more)
    for job in ("nightly", "weekly", "weekly", "nightly"):
        assert home.run("start", job).status == 0
    first, old, newer, last = [r["filename"] for r in reversed(home.rows())]
    assert [a.name for a in home.archives] == [old, newer, last]  # the first nightly one was the oldest
    home.configure(more.replace("= 3", "= 1"))
    because = "At most 1 backups may lie in this place, of all jobs together, and it is the oldest that may go."
    dry = home.run("clean", "nightly", "--dry-run", "--json").json
    assert [d for d in dry if not d["keep"]] == [{"name": old, "keep": False, "reason": because}]
    assert home.run("clean", "nightly", "--yes").status == 0
    assert [a.name for a in home.archives] == [newer, last]
    assert {row["filename"] for row in home.rows() if row["deleted_at"]} == {first, old}

    assert set(home.run("status", "--json").json) == {"nightly", "weekly"}
    off = {"WEEKLY": "off"}
    assert set(home.run("status", "--json", environ=off).json) == {"nightly"}
    assert "only by hand: memu-backup start weekly" in home.run("check", environ=off).out

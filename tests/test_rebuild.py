"""The history written anew from the backups themselves, and lost and found again by whoever asks first."""

from __future__ import annotations

import gzip
import json
import shutil
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from memu_backup import lock
from memu_backup.audit import SCHEDULER
from memu_backup.config import load
from memu_backup.manager import Manager
from memu_backup.model import Status, Trigger
from tests.home import Home, fingerprints, in_a_loop_of_its_own, managed, query

OF_NO_HELP = ("id", "finished_at", "duration_seconds", "write_seconds", "prove_seconds", "trigger", "verified_at")
"""What a backup cannot tell of its run, or tells in another way."""


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


def forget(home: Home, where: str = "TRUE") -> None:
    in_a_loop_of_its_own(query(home.history, f"DELETE FROM backup_history WHERE {where}", "SELECT 1"))


def told(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {r["filename"]: {k: v for k, v in r.items() if k not in OF_NO_HELP} for r in rows}


def changes(home: Home, *options: str) -> list[tuple[str, str]]:
    ran = home.run("history", "rebuild", "--json", *options)
    assert ran.status == 0, ran.err
    return [(c["filename"], c["what"]) for c in ran.json["changes"]]


# --- history rebuild -------------------------------------------------------------------------------------------------


def test_a_history_that_was_lost_is_written_anew_from_the_backups_once(home: Home) -> None:
    assert home.run("start").status == 0
    (home.folder / ".env").unlink()
    assert home.run("start").status == 3
    before, files = told(home.rows()), fingerprints(home.backups) | {lock.NAME: b""}
    forget(home)

    first, second = (a.name for a in home.archives)
    assert changes(home, "--dry-run") == [(second, "added"), (first, "added")]
    assert home.rows() == [], "a dry run writes nothing"
    ran = home.run("history", "rebuild")
    assert ran.status == 0 and ran.out.count("is added to the history") == 2
    assert "Wrote 2 rows" in ran.out
    after = told(home.rows())
    assert all(row.pop("notification_sent") for row in after.values()), "they are no news"
    assert after == {name: {k: v for k, v in row.items() if k != "notification_sent"} for name, row in before.items()}
    assert all(row["verified_at"] == row["created_at"] for row in home.rows())
    assert fingerprints(home.backups) | {lock.NAME: b""} == files

    rows = home.rows()
    assert "Nothing was missing" in home.run("history", "rebuild").out
    assert home.rows() == rows
    assert [(e["action"], e["outcome"]) for e in home.audit()[:2]] == [
        ("history rebuild", "nothing was missing"),
        ("history rebuild", "2 changed"),
    ]


def test_what_does_not_tell_what_it_is_is_left_out_and_named(home: Home) -> None:
    home.backups.mkdir()
    foreign = home.backups / "memu_backup_20250101_020000.tar.gz"
    subprocess.run(["tar", "-czf", foreign, "-C", home.folder, "photos"], check=True)
    (home.backups / "memu_backup_20250102_020000.tar.gz").write_bytes(b"damaged")
    ran = home.run("history", "rebuild")
    assert ran.status == 0 and ran.out.count("is left out: it does not tell what it is") == 2
    told_as_json = home.run("history", "rebuild", "--json").json
    assert {left["location"] for left in told_as_json["left_out"]} == {str(a) for a in home.archives}
    assert told_as_json["changes"] == home.rows() == []


def test_rows_of_killed_runs_and_of_files_that_are_gone_or_back_are_put_right(home: Home) -> None:
    names = [home.run("start", "--json").json["filename"] for _ in range(4)]
    never, gone, back, unsaid = names
    for name, change in (
        (never, "status = 'in_progress', size_bytes = 0"),
        (back, "deleted_at = NOW()"),
        (unsaid, "status = 'in_progress', size_bytes = 0, finished_at = NULL"),
    ):
        update = f"UPDATE backup_history SET {change} WHERE filename = '{name}'"
        in_a_loop_of_its_own(query(home.history, update, "SELECT 1"))
    for name in (never, gone):
        (home.backups / name).unlink()
    expected = {(unsaid, "completed"), (back, "came_back"), (gone, "gone"), (never, "interrupted")}
    before = home.rows()
    assert set(changes(home, "--dry-run")) == expected
    assert home.rows() == before
    assert set(changes(home)) == expected
    rows = {r["filename"]: r for r in home.rows()}
    assert (rows[never]["status"], rows[never]["notification_sent"]) == ("failed", False), "this one is owed"
    assert rows[gone]["deleted_at"] and not rows[back]["deleted_at"] and rows[unsaid]["status"] == "success"
    assert changes(home) == []


@pytest.mark.slow
async def test_another_hosts_rows_are_never_settled_nor_written_over(home: Home) -> None:
    """Only a backup of its that no row tells of is written down, under its own name."""
    home.mark()
    now = [datetime(2026, 3, 1, 1, 0, tzinfo=UTC)]
    other = load(home.folder / "config.toml", {"MEMU_BACKUP_HOST": "other", "MEMU_BACKUP_STATE_DIR": "other"})
    async with managed(home, now) as ours:
        theirs = Manager(other, ours.history, lambda: now[0])
        made = []
        for _ in range(4):
            made.append(await theirs.back_up("nightly", Trigger.SCHEDULE, SCHEDULER))
            now[0] += timedelta(days=1)
        mine = await ours.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
        under_way, removed, unknown, deleted = made
        for change in (
            f"UPDATE backup_history SET status = 'in_progress' WHERE run_id = '{under_way.run_id}'",
            f"UPDATE backup_history SET deleted_at = NOW() WHERE run_id = '{deleted.run_id}'",
            f"DELETE FROM backup_history WHERE run_id = '{unknown.run_id}'",
        ):
            await query(home.history, change, "SELECT 1")
        (home.backups / removed.filename).unlink()
        before = {r["run_id"]: r for r in home.rows()}
        await ours.recover()
        assert {r["run_id"]: r for r in home.rows()} == before, "each settles its own at its start"
        rebuilt = await ours.rebuild(SCHEDULER, dry_run=False)
    assert [(c.what, c.run.run_id, c.run.host) for c in rebuilt.changes] == [("added", unknown.run_id, "other")]
    after = {r["run_id"]: r for r in home.rows()}
    assert after.pop(unknown.run_id)["status"] == Status.SUCCESS
    assert after == before and after[mine.run_id]["status"] == Status.SUCCESS


@pytest.mark.slow
def test_a_backup_that_is_written_down_anew_hides_no_later_failure(home: Home) -> None:
    good = home.run("start", "--json").json["filename"]
    shutil.move(home.photos, home.folder / "elsewhere")
    (home.folder / ".env").rename(home.folder / "env")
    (home.folder / "nginx").rename(home.folder / "elsewhere" / "nginx")
    assert home.run("start").status == 1
    forget(home, f"filename = '{good}'")
    assert changes(home) == [(good, "added")]
    status = home.run("status", "--json").json["nightly"]
    assert "last_failed" in status["problems"]
    assert (status["last"]["status"], status["last_good"]["filename"]) == ("failed", good)


@pytest.mark.slow
def test_a_history_that_is_away_cannot_be_rebuilt_and_nothing_waits_for_it(home: Home) -> None:
    """What is written down from a backup would come over the row that the database has."""
    assert home.run("start").status == 0
    home.configure(history="postgresql://127.0.0.1:1/nowhere")
    for options in ((), ("--dry-run",)):
        ran = home.run("history", "rebuild", *options)
        assert ran.status == 1 and "cannot be reached" in ran.err
    home.run("start")
    spooled = [json.loads(p.read_text()) for p in (home.folder / "state" / "spool").glob("*-run-*.json")]
    assert [s["run"]["location"] for s in spooled] == [str(home.archives[-1])]


def test_the_next_run_writes_down_what_no_row_tells_of(home: Home) -> None:
    orphan = home.run("start", "--json").json
    forget(home)
    newer = home.run("start", "--json").json
    assert [r["run_id"] for r in home.rows()] == [orphan["run_id"], newer["run_id"]], "rows are newest first, by id"
    assert changes(home) == []


# --- the embedded history, as people meet it -------------------------------------------------------------------------


@pytest.fixture
def embedded(tmp_path: Path) -> Home:
    home = Home(tmp_path / "home", "")
    text = (home.folder / "config.toml").read_text()
    (home.folder / "config.toml").write_text(text.replace('url = ""\n', ""))
    return home


def runs_in_dump(home: Home) -> list[dict[str, Any]]:
    lines = gzip.decompress((home.backups / "backup_history_family-server.jsonl.gz").read_bytes()).splitlines()
    return [json.loads(line) for line in lines[1:]]


@pytest.mark.slow
def test_each_run_saves_the_history_beside_the_backups_and_it_comes_back_from_there(embedded: Home) -> None:
    first = embedded.run("start", "--json").json["filename"]
    shutil.move(embedded.photos, embedded.folder / "elsewhere")
    shutil.move(embedded.folder / ".env", embedded.folder / "elsewhere")
    shutil.move(embedded.folder / "nginx", embedded.folder / "elsewhere")
    assert embedded.run("start").status == 1
    saved = runs_in_dump(embedded)
    assert [line["run"]["status"] for line in saved if "run" in line] == ["success", "failed"]
    assert [line["audit"]["outcome"] for line in saved if "audit" in line] == ["success", "failed"]
    assert [b["name"] for b in embedded.run("list", "--json").json] == [first], "it is no backup"

    shutil.rmtree(embedded.folder / "state")
    asked = embedded.run("status", "--json")
    assert asked.err.count("The history was made anew, with 4 notes from") == 1, asked.err
    status = asked.json["nightly"]
    assert status["last"]["status"] == "failed", "what only the history knew is known"
    assert status["last_good"]["duration_seconds"] is not None
    assert [e["outcome"] for e in embedded.run("log", "--json").json] == ["failed", "success"]
    assert "Nothing was missing" in embedded.run("history", "rebuild").out
    assert "made anew" not in embedded.run("status").err


@pytest.mark.slow
def test_without_a_dump_the_history_comes_back_from_the_backups_alone(embedded: Home) -> None:
    made = [embedded.run("start", "--json").json["filename"] for _ in range(2)]
    shutil.rmtree(embedded.folder / "state")
    (dump,) = embedded.backups.glob("*.jsonl.gz")
    dump.unlink()
    assert embedded.run("status").status == 0, "the backups tell of themselves"
    assert {name for name, _ in changes(embedded, "--dry-run")} == set(made)
    rebuilt = embedded.run("history", "rebuild")
    assert "Wrote 2 rows" in rebuilt.out
    assert "Nothing was missing" in embedded.run("history", "rebuild").out
    assert embedded.run("status", "--json").json["nightly"]["last_good"]["filename"] == made[-1]


@pytest.mark.slow
def test_a_dry_run_makes_no_history_and_tells_what_would_come_back_of_a_lost_one(embedded: Home) -> None:
    first = embedded.run("start", "--json").json["filename"]
    shutil.move(embedded.photos, embedded.folder / "elsewhere")
    shutil.move(embedded.folder / ".env", embedded.folder / "elsewhere")
    shutil.move(embedded.folder / "nginx", embedded.folder / "elsewhere")
    failed = embedded.run("start", "--json").json["filename"]
    shutil.rmtree(embedded.folder / "state")
    before = fingerprints(embedded.folder)
    told = embedded.run("history", "rebuild", "--dry-run")
    assert told.out.count("is added to the history") == 2 and "it writes 2 rows" in told.out
    assert fingerprints(embedded.folder) == before
    assert not (embedded.folder / "state" / "postgres").exists()
    assert set(changes(embedded)) == {(first, "added"), (failed, "added")}
    assert changes(embedded) == []


def test_with_the_disk_away_nobody_is_told_that_nothing_was_missing(home: Home) -> None:
    assert home.run("start").status == 0
    home.backups.rename(home.folder / "unplugged")
    home.backups.mkdir()
    told = home.run("history", "rebuild")
    assert "its disk is probably not mounted" in told.err and "Nothing was missing" not in told.out
    assert home.run("history", "rebuild", "--json").json["away"] == [str(home.backups)]
    assert list(home.backups.iterdir()) == []

"""A run, from the command to the archive and its row: what it makes, what it leaves, and how it ends when disturbed."""

from __future__ import annotations

import hashlib
import json
import os
import re
import stat
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup import lock
from memu_backup.audit import SCHEDULER
from memu_backup.config import load
from memu_backup.manager import Manager
from memu_backup.model import Status, Trigger
from memu_backup.postgres.server import PostgresServer
from tests.home import Home, children, fingerprints, in_a_loop_of_its_own, managed, query


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


# --- what a run makes ------------------------------------------------------------------------------------------------


def test_backup_creates_directory(home: Home) -> None:
    assert not home.backups.exists()
    ran = home.run("start")
    assert (ran.status, ran.err.splitlines()[-1]) == (0, "Finishing …")
    assert stat.S_IMODE(home.backups.stat().st_mode) == 0o700
    assert len(home.archives) == 1 and home.leftovers() == []


def test_backup_includes_metadata(home: Home) -> None:
    row = home.run("start", "nightly", "--json").json
    text = subprocess.run(
        ["tar", "-xzOf", home.backups / row["filename"], "metadata.json"], check=True, capture_output=True
    ).stdout
    told = json.loads(text)
    assert (told["host"], told["job"], told["backup_name"]) == ("family-server", "nightly", row["filename"])
    assert told["utc_offset"] in ("+01:00", "+02:00")
    assert [(s["name"], s["place"], s["files"]) for s in told["sources"]] == [
        ("photos", "photos/", 2),
        ("config", "config/", 2),
    ]
    assert all(re.fullmatch("[0-9a-f]{64}", s["checksum"]) for s in told["sources"])
    assert datetime.fromisoformat(told["created_at"]).utcoffset() is not None


def test_backup_creates_valid_archive(home: Home, tmp_path: Path) -> None:
    assert home.run("start").status == 0
    (archive,) = home.archives
    subprocess.run(["sha256sum", "--quiet", "-c", f"{archive.name}.sha256"], cwd=home.backups, check=True)
    out = tmp_path / "out"
    out.mkdir()
    subprocess.run(["tar", "-xzf", archive, "-C", out], check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=out, check=True)
    assert fingerprints(out / "photos") == fingerprints(home.photos)
    assert (out / "config" / ".env").read_text() == "DOMAIN=family.example\n"
    verified = home.run("verify", "latest", "--json")
    assert verified.status == 0
    assert verified.json["good"] and verified.json["files"] == 4
    assert verified.json["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()


def test_backup_records_to_database(home: Home) -> None:
    assert home.run("start").status == 0
    (row,) = home.rows()
    (archive,) = home.archives
    assert (row["filename"], row["size_bytes"], row["status"]) == (archive.name, archive.stat().st_size, "success")
    assert row["error"] is None and row["duration_seconds"] >= 0 and row["notification_sent"] is False
    assert abs(row["created_at"] - datetime.now(UTC)) < timedelta(minutes=1)
    assert (row["host"], row["job"], row["trigger"], row["location"]) == (
        "family-server",
        "nightly",
        "manual",
        str(archive),
    )
    assert row["sha256"] == hashlib.sha256(archive.read_bytes()).hexdigest()
    assert 0 < row["write_seconds"] < 60 and 0 < row["prove_seconds"] < 60
    (event,) = home.audit()
    assert (event["action"], event["origin"], event["outcome"]) == ("backup", "cli", "success")
    assert event["actor"]


def test_backup_script_idempotent(home: Home) -> None:
    first = home.run("start", "--json")
    before = fingerprints(home.backups)
    second = home.run("start", "--json")
    assert (first.status, second.status) == (0, 0)
    assert first.json["filename"] != second.json["filename"]
    assert len(home.archives) == 2 and home.leftovers() == []
    after = fingerprints(home.backups)
    assert {n: c for n, c in after.items() if n in before and n != lock.NAME} == {
        n: c for n, c in before.items() if n != lock.NAME
    }
    assert [r["status"] for r in home.rows()] == ["success", "success"]


async def test_backup_pruning(home: Home) -> None:
    """Keeps only 7, the newest; older rows say that theirs is gone, and the audit who let it go."""
    home.mark()
    now = [datetime(2026, 3, 1, 1, 0, tzinfo=UTC)]
    async with managed(home, now) as manager:
        for _ in range(9):
            run = await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
            assert run.status is Status.SUCCESS
            now[0] += timedelta(days=1)
        events = await manager.history.audit_log()
    assert [a.name for a in home.archives] == [f"memu_backup_202603{day:02}_020000.tar.gz" for day in range(3, 10)]
    assert len(list(home.backups.glob("*.sha256"))) == 7
    assert [r["filename"][18:20] for r in home.rows() if r["deleted_at"]] == ["02", "01"]
    deleted = [(e.subject[18:20], e.actor, e.origin) for e in events if e.action == "delete"]
    assert deleted == [("02", "memu-backup", "scheduler"), ("01", "memu-backup", "scheduler")]


async def test_two_machines_with_one_history_and_one_folder_leave_each_other_alone(home: Home) -> None:
    """Both back up at 2:00, so their files are named alike but for a suffix, and rows must not be mixed up."""
    home.configure(top="backup_retention_count = 1")
    home.mark()
    now = [datetime(2026, 3, 1, 1, 0, tzinfo=UTC)]
    other = load(home.folder / "config.toml", {"MEMU_BACKUP_HOST": "other", "MEMU_BACKUP_STATE_DIR": "other"})
    async with managed(home, now) as ours:
        theirs = Manager(other, ours.history, lambda: now[0])
        first = await theirs.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
        for _ in range(2):
            mine = await ours.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
            now[0] += timedelta(days=1)
        assert {a.name for a in home.archives} == {first.filename, mine.filename}
        assert (await ours.find("latest"))[1].name == mine.filename
        assert (await theirs.find("latest"))[1].name == first.filename
        assert (await ours.standing.reports())["nightly"].stored_count == 1
    assert {(r["host"], bool(r["deleted_at"])) for r in home.rows()} == {
        ("other", False),
        ("family-server", True),
        ("family-server", False),
    }


def test_everything_made_is_for_its_user_alone(home: Home) -> None:
    """Whatever umask it is started with."""
    home.configure(top='log_file = "log/memu.log"')
    command = ["sh", "-c", 'umask 000; exec "$@"', "sh", *home.argv("start")]
    subprocess.run(command, cwd=home.folder, check=True, capture_output=True, env=home.environ | dict(os.environ))
    made = [home.folder / n for n in ("backups", "state", "log")]
    for path in [p for top in made for p in (top, *top.rglob("*"))]:
        mode = stat.S_IMODE(path.lstat().st_mode)
        assert mode == (0o700 if path.is_dir() else 0o600), f"{path} is {mode:o}"


def test_a_secret_is_nowhere_to_be_seen(tmp_path: Path, postgres: PostgresServer, database: str) -> None:
    """In settings, environment and files it stays out of arguments, output, logs, metadata and history."""
    canary = "c4n4ry-kP9"
    home = Home(tmp_path / "home", database)
    (home.folder / "history-password").write_text(f"{canary}-file\n")
    # So that pg_dump takes long enough to be seen.
    in_a_loop_of_its_own(
        query(database, "CREATE TABLE t AS SELECT n, repeat('x', 100) FROM generate_series(1, 300000) n")
    )
    place = database.partition("?")[2]
    name = database.partition("@/")[2].partition("?")[0]
    home.configure(
        top='log_file = "memu.log"',
        sources='[sources.photos]\nkind = "directory"\npath = "photos"\n'
        f'[sources.pgdata]\nkind = "postgres"\nurl = "postgresql://postgres:{canary}-url@/{name}?{place}"\n',
        history=f"postgresql://postgres@/{name}?{place}",
    )
    text = (home.folder / "config.toml").read_text()
    (home.folder / "config.toml").write_text(
        text.replace("[usb]", f'password_file = "{home.folder}/history-password"\n[usb]')
    )
    child = subprocess.Popen(
        home.argv("--debug", "start"),
        cwd=home.folder,
        env={**os.environ, "MEMU_BACKUP_SOURCES__PGDATA__URL": f"postgresql://postgres:{canary}-env@/{name}?{place}"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    seen: set[str] = set()
    while child.poll() is None:
        for pid in [child.pid, *children(child.pid)]:
            try:
                seen.add(Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode())
            except OSError:
                continue
    assert child.stdout
    said = child.stdout.read().decode()
    child.stdout.close()
    assert child.returncode == 0, said
    assert any("pg_dump" in line for line in seen), seen
    unpacked = subprocess.run(["tar", "-xzOf", home.archives[0], "metadata.json"], check=True, capture_output=True)
    rows = json.dumps([*home.rows(), *home.audit()], default=str)
    shown = home.run("config", "show")
    log_file = (home.folder / "memu.log").read_text()
    assert "postgres" in unpacked.stdout.decode() and "begins" in log_file and "********" in shown.out
    for told in (*seen, said, unpacked.stdout.decode(), rows, shown.out + shown.err, log_file):
        assert canary not in told


# --- incomplete ------------------------------------------------------------------------------------------------------


def test_an_incomplete_backup_is_its_own_thing(home: Home) -> None:
    """Exit status 3; listed as incomplete, told in the status, never the last good one, never in place of one."""
    home.configure(top="backup_retention_count = 1")
    good = home.run("start", "--json").json["filename"]
    (home.folder / ".env").unlink()
    partial = home.run("start")
    assert partial.status == 3
    assert f"{home.folder}/.env (source config) is not there" in partial.err
    assert partial.err.count(".env") == 1  # said once
    assert "incomplete" in partial.err
    listed = home.run("list", "--json").json
    assert [b["state"] for b in listed] == ["incomplete", "good"]
    status = home.run("status")
    assert status.status == 1
    assert "Last backup: INCOMPLETE" in status.out and "Last good backup: Today" in status.out
    assert home.run("show", "latest", "--json").json["metadata"]["backup_name"] == good
    again = home.run("verify", listed[0]["name"])
    assert again.status == 0
    row = home.rows()[0]
    assert row["status"] == "partial" and ".env" in row["error"]
    cleaned = home.run("clean", "--yes")
    assert cleaned.status == 0 and "Nothing has to go" in cleaned.out
    assert len(home.archives) == 2


# --- the history is away ---------------------------------------------------------------------------------------------


def test_a_run_without_its_history_is_made_and_written_down_later(
    home: Home, postgres: PostgresServer, tmp_path: Path
) -> None:
    sockets = tmp_path / "s"
    sockets.mkdir()
    name = home.history.partition("@/")[2].partition("?")[0]
    home.configure(history=f"postgresql://postgres@/{name}?host={sockets}")
    home.mark()
    ran = home.run("start", "--new-place")
    assert ran.status == 0, ran.err
    assert ran.err.count("noted down on this machine") == 1  # said once, though it is met at every turn
    assert len(home.archives) == 1
    status = home.run("status")
    assert status.status == 1  # not healthy: somebody has to look after that database
    assert "Last backup: Today" in status.out and "history cannot be reached" in status.out
    assert home.run("list").status == 0
    restored = home.run("restore", str(home.archives[0]), "--to", "back", "--yes")
    assert restored.status == 0
    assert fingerprints(home.folder / "back" / "photos") == fingerprints(home.photos)

    (sockets / ".s.PGSQL.5432").symlink_to(postgres.socket_folder / ".s.PGSQL.5432")
    assert home.run("status").status == 0
    (row,) = home.rows()
    assert (row["status"], row["filename"]) == ("success", home.archives[0].name)
    assert {(e["action"], e["outcome"]) for e in home.audit()} == {("backup", "success"), ("restore", "done")}

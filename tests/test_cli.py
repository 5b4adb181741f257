"""The commands as people meet them: what they answer, in a pipe and on a terminal, and with which exit status."""

from __future__ import annotations

import getpass
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memu_backup import __version__
from memu_backup.postgres.server import PostgresServer
from tests.home import ODD_NAMES, PROGRAM, Home, Ran, a_database, alive, in_a_loop_of_its_own, query, ran, wait_until

ESCAPE = "\x1b"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Home]:
    """Backed up once, with names that a terminal would choke on; tests only look at it."""
    with a_database(postgres) as url:
        home = Home(tmp_path_factory.mktemp("cli") / "home", url)
        for name in ODD_NAMES:
            (home.photos / name).write_bytes(b"x")
        assert home.run("start").status == 0
        yield home


@pytest.fixture
def empty(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "empty", database)


# --- what there is to type -------------------------------------------------------------------------------------------


def test_the_program_says_what_it_can_do_and_does_so_quickly(home: Home) -> None:
    begun = time.process_time(), time.monotonic()
    helped = subprocess.run([PROGRAM, "--help"], capture_output=True, text=True, check=True)
    for command in [
        "run",
        "start",
        "status",
        "find",
        "list",
        "show",
        "verify",
        "restore",
        "clean",
        "check",
        "config",
        "init",
        "log",
    ]:
        assert re.search(rf"^\W+{command} ", helped.stdout, re.MULTILINE), command
    assert time.monotonic() - begun[1] < 3  # 0.2 s where nothing else runs
    switches = [line for line in home.run("clean", "--help").out.splitlines() if line.strip().startswith("-")]
    assert len(switches) == 4 and not any("<" in line or "[" in line for line in switches)
    version = ran([PROGRAM, "--version"], home.folder, os.environ)
    assert (version.status, version.out) == (0, f"memu-backup {__version__}\n")
    for wrong in (["nonsense"], ["start", "--nonsense"], ["restore", "--to"], ["log", "-n", "0"]):
        assert home.run(*wrong).status == 2


def test_a_first_day(empty: Home) -> None:
    """Settings from the preset, nothing there yet, a look before the first backup, the first backup."""
    config = empty.folder / "config.toml"
    config.unlink()
    nothing = empty.run("status")
    assert nothing.status == 2 and "there is no such file" in nothing.err
    made = ran([PROGRAM, "init", "--preset", "memu"], empty.folder, os.environ)
    assert made.status == 0 and made.out.splitlines()[-1] == "  memu-backup check"
    assert config.stat().st_mode & 0o777 == 0o600
    again = ran([PROGRAM, "init"], empty.folder, os.environ)
    assert again.status == 2 and "is there already and was left as it is" in again.err
    checked = empty.run("check")
    assert checked.status == 1
    assert " NO  source pgdata:" in checked.out and " ok  source photos: can be backed up" in checked.out

    empty.configure()
    assert empty.run("list").out.startswith(f"There is no backup in {empty.backups} yet. Make one")
    assert empty.run("list", "--json").json == []
    assert empty.run("log").out == "Nothing has been done yet.\n"
    status = empty.run("status")
    assert status.status == 1 and "No backup yet" in status.out
    latest = empty.run("show", "latest")
    assert latest.status == 2
    assert latest.err == empty.run("list").out
    good = empty.run("check")
    lacking = [line.partition(":")[0] for line in good.out.splitlines() if line.startswith(" NO")]
    assert lacking == [" NO  the service", " NO  alerts"]
    assert f"backups in {empty.backups}: " in good.out
    assert empty.run("check", "--json").json["findings"][0]["good"] is True

    first = empty.run("start")
    assert first.status == 0
    assert re.fullmatch(
        r"memu_backup_\d{8}_\d{6}\.tar\.gz: 4 files, 120 kB in \d+ kB, "
        r"written and checked in (less than a second|\d s)\.\n",
        first.out,
    )


def test_the_status_is_in_the_words_of_the_specification(home: Home) -> None:
    status = home.run("status")
    assert status.status == 0
    assert re.fullmatch(
        r"Backup Status:\nLast backup: Today \d+:\d\d [AP]M \(\d+ kB\)\n"
        r"Local backups: 1 stored \(\d+ kB total\)\nHealth: All systems healthy\n",
        status.out,
    )
    told = home.run("status", "--json").json["nightly"]
    assert told["health"] == "healthy" and told["last"]["filename"] == home.archives[0].name


def test_the_details_say_how_many_files_and_rows_are_safe(empty: Home, postgres: PostgresServer) -> None:
    for photo in empty.photos.rglob("*.jpg"):
        os.utime(photo, (1_000_000_000, 1_000_000_000))
    assert empty.run("status", "--details").out == empty.run("status").out
    with a_database(postgres) as url:
        in_a_loop_of_its_own(query(url, "CREATE TABLE messages AS SELECT generate_series(1, 12034)", "SELECT 1"))
        empty.configure(
            sources='[sources.family-photos]\nkind = "directory"\npath = "photos"\n'
            f'[sources.chat]\nkind = "postgres"\nurl = "{url}"\nglobals = false\n'
        )
        assert empty.run("start").status == 0
    status = empty.run("status", "--details")
    assert status.out.startswith(empty.run("status").out)
    assert re.fullmatch(
        r"  Family photos: 2 files, newest from 9 Sep 2001\n  Chat: 1 database, 12,034 rows\n"
        r"  Last checked: Today \d+:\d\d [AP]M - every byte was read back\n"
        r"  Re-read within 30 days: 100 % of \d+ kB\n  Space: .* left for backups\n",
        status.out.removeprefix(empty.run("status").out),
    )
    told = empty.run("status", "--json").json["nightly"]["sources"]
    assert [(s["name"], s["kind"], s["files"]) for s in told] == [
        ("family-photos", "directory", 2),
        ("chat", "postgres", 1),
    ]
    assert told[0]["newest_mtime"] == "2001-09-09T01:46:40+00:00"


def test_everything_that_informs_does_so_for_scripts_too(home: Home) -> None:
    (listed,) = home.run("list", "--json").json
    assert listed["name"] == home.archives[0].name and listed["state"] == "good" and listed["verified_at"]
    assert (listed["job"], listed["host"], listed["files"]) == ("nightly", "family-server", 9)
    shown = home.run("show", "latest", "--files", "--json").json
    paths = {f["path"] for f in shown["files"]}
    assert {f"photos/{name}" for name in ODD_NAMES} <= paths
    assert not paths & {"metadata.json", "SHA256SUMS"}
    assert shown["metadata"]["job"] == "nightly"
    verified = home.run("verify", "--level", "quick", "--json").json
    assert (verified["good"], verified["level"], verified["problems"]) == (True, "quick", [])
    events = home.run("log", "--limit", "2", "--json").json
    assert [(e["action"], e["origin"]) for e in events] == [("verify quick", "cli"), ("backup", "cli")]
    assert all(e["actor"] and "+00:00" in e["created_at"] for e in events)
    config = home.run("config", "show", "--json").json
    assert config["backup_retention_count"] == 7 and config["host"] == "family-server"
    wrong = home.run("show", "nothing", "--json")
    assert wrong.json["error"]["code"] == "unknown_backup" and wrong.status == 2


def test_sudo_does_not_hide_who_it_was(home: Home) -> None:
    assert home.run("verify", "--level", "quick", environ={"SUDO_USER": "anna"}).status == 0
    assert home.run("log", "-n", "1", "--json").json[0]["actor"] == ("anna" if os.geteuid() == 0 else getpass.getuser())


# --- how it looks ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "argv", [("list",), ("show", "latest", "--files"), ("log",), ("status",), ("verify",), ("show", ODD_NAMES[2])]
)
def test_in_a_pipe_lines_are_plain_and_whole(home: Home, argv: tuple[str, ...]) -> None:
    shown = home.run(*argv)
    everything = shown.out + shown.err
    assert ESCAPE not in everything and "\r" not in everything and "\x07" not in everything
    if argv[-1] == "--files":
        # One line an entry, however odd its name; nothing is markup, nothing an emoji, nothing cut.
        lines = shown.out.splitlines()
        assert sum(line.endswith(".jpg") for line in lines) == 7
        for whole in ("photos/[bold red]sale[bold].jpg", "photos/:smile:.jpg", "photos/two\ufffdlines.jpg"):
            assert any(line.endswith(whole) for line in lines)
        assert any("photos/" + ODD_NAMES[4] in line for line in lines)
        assert "photos/\ufffd[31mred\ufffd.jpg" in shown.out


def test_on_a_terminal_odd_names_do_no_harm(home: Home) -> None:
    shown = home.on_a_terminal("show", "latest", "--files", columns=60)
    assert shown.status == 0
    assert f"{ESCAPE}[31mred" not in shown.out and "\x07" not in shown.out
    assert "[bold red]sale[bold].jpg" in shown.out and ":smile:.jpg" in shown.out
    assert f"{ESCAPE}[1m" in shown.out  # the head of the table, and that is all
    assert max(len(re.sub(r"\x1b\[[0-9;]*m", "", line)) for line in shown.out.splitlines()) < 250


def test_a_long_backup_shows_how_far_it_is_how_fast_and_how_long_still(empty: Home) -> None:
    (empty.photos / "film.mp4").write_bytes(os.urandom(1_000_000) * 150)
    shown = empty.on_a_terminal("start")
    assert shown.status == 0
    plain = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", shown.out)
    assert re.search(
        r"(Saving|Checking) +━+.* +\d+% +\d+\.\d/150\.\d MB +\d+(\.\d)? [kMG]?B/s +0?0:0\d", plain.replace("╸", "━")
    )
    assert "Checking" in plain
    assert plain.splitlines()[-1].startswith("memu_backup_")
    for name in ("Collecting", "Finishing"):
        lines = [line for line in plain.splitlines() if name in line]
        assert lines and not any("byte" in line or "/" in line or "?" in line for line in lines)
    in_a_pipe = empty.run("start")
    assert in_a_pipe.err.splitlines() == ["Collecting …", "Saving 150 MB …", "Checking 150 MB …", "Finishing …"]
    assert empty.run("verify").err.splitlines() == ["Checking 150 MB …"]


def test_without_an_address_the_history_is_our_own(empty: Home) -> None:
    """A Postgres under the state folder, there as long as a command runs, and no longer."""
    config = empty.folder / "config.toml"
    config.write_text(re.sub(r"(?m)^url = .*$", "", config.read_text()))
    empty.mark()
    for looking in ("status", "list", "log"):
        assert "yet" in empty.run(looking).out
    checked = empty.run("check")
    assert " ok  history: embedded PostgreSQL; will be made by the first backup" in checked.out
    assert not (empty.folder / "state").exists()
    assert empty.run("start").status == 0
    assert "ok  history: embedded PostgreSQL 18" in empty.run("check").out
    assert empty.run("start").status == 0
    first, _ = empty.archives
    assert empty.run("show", first.name.removesuffix(".tar.gz"), "--json").json["path"] == str(first)
    status = empty.run("status", "--json")
    assert (status.status, status.json["nightly"]["stored_count"]) == (0, 2)
    assert [e["action"] for e in empty.run("log", "--json").json] == ["backup", "backup"]
    assert not (empty.folder / "state" / "postgres" / "data" / "postmaster.pid").exists()


ENDLESS = """
from memu_backup import cli, console
from memu_backup.cli.shell import app, command

@app.command()
@command
async def endless() -> None:
    while True:
        console.say("x" * 10_000)

cli.main()
"""


def test_a_reader_that_has_seen_enough_is_no_error(home: Home) -> None:
    command = " ".join(f"'{a}'" for a in home.argv("show", "latest", "--files", "--json"))
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -c 1"], capture_output=True, text=True)
    assert (done.stdout, done.stderr) == ("{", "")
    # Rich has an end of its own for this; the lines have to be more than a pipe holds.
    command = f"'{sys.executable}' -c '{ENDLESS}' endless"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command} | head -c 1"], capture_output=True, text=True)
    assert (done.stdout, done.stderr, done.returncode) == ("x", "", 0)


def test_backups_that_cannot_be_looked_at_are_not_taken_for_none(empty: Home) -> None:
    """The folder, or what lies in it, is closed to whoever asks; as root a file in the folder's place is no folder."""
    assert empty.run("start").status == 0
    empty.backups.rename(empty.folder / "away")
    empty.backups.touch()
    status = empty.run("status")
    assert status.status == 1 and "cannot be read (Not a directory)" in status.err
    assert "Last backup: Today" in status.out and "Health: The backups cannot be looked at from here -" in status.out


# --- when our own code is wrong --------------------------------------------------------------------------------------


BROKEN = """
from memu_backup import cli, standing

async def reports(self):
    raise ValueError("moonlight")

standing.Standing.reports = reports
cli.main()
"""


def test_the_unexpected_is_one_sentence_with_the_details_in_the_log(empty: Home) -> None:
    def broken(*argv: str) -> Ran:
        command = [sys.executable, "-c", BROKEN, *empty.argv(*argv)[1:]]
        return ran(command, empty.folder, dict(os.environ))

    found = broken("status", "--json")
    assert found.status == 1
    assert found.err == (
        "Something unexpected happened (ValueError), so this ended early. To see the details, type: "
        "memu-backup --debug …\n"
    )
    assert found.json["error"]["code"] == "unexpected"
    detailed = broken("--debug", "status")
    assert detailed.status == 1 and "Traceback" in detailed.err and "moonlight" in detailed.err
    empty.configure(top='log_file = "memu.log"')
    logged = broken("status")
    assert logged.status == 1 and f"The details are in {empty.folder}/memu.log." in logged.err
    assert "Traceback" not in logged.err and "moonlight" in (empty.folder / "memu.log").read_text()


async def test_a_row_that_nobody_can_read_keeps_nobody_from_status_and_backup(empty: Home) -> None:
    """With a word that no version of ours ever wrote."""
    assert empty.run("start").status == 0
    constraints = await query(
        empty.history,
        "SELECT conname FROM pg_constraint WHERE conrelid = 'backup_history'::regclass AND contype = 'c'",
    )
    drops = [f"ALTER TABLE backup_history DROP CONSTRAINT {c['conname']}" for c in constraints]
    await query(empty.history, *drops, "UPDATE backup_history SET trigger = 'moonlight'", "SELECT 1")
    status = empty.run("status", "--json").json["nightly"]
    assert status["problems"] == ["history_away"] and status["last_good"]["filename"] == empty.archives[0].name
    started = empty.run("start")
    assert started.status == 0 and len(empty.archives) == 2


def test_a_log_file_that_cannot_be_written_costs_no_backup(empty: Home) -> None:
    empty.configure(top='log_file = "photos/2026/lake.jpg/log"')
    started = empty.run("start")
    assert started.status == 0
    assert "cannot be written" in started.err and "the log goes without it" in started.err


# --- the service -----------------------------------------------------------------------------------------------------


def test_the_service_runs_until_it_is_told_to_stop(empty: Home) -> None:
    service = empty.started("run")
    try:
        assert service.stderr
        line = service.stderr.readline()
        assert "memu-backup is ready; the next backup is due" in line
        begun = time.monotonic()
        service.send_signal(signal.SIGTERM)
        service.communicate(timeout=15)
        assert service.returncode == 0 and time.monotonic() - begun < 10
    finally:
        service.kill()
    wait_until(lambda: not alive(service.pid))

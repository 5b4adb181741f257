"""What stands still for a backup runs again after it, whatever happens in between, and what was off stays off."""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.gate import Gate
from tests.home import Home, Ran, wait_until
from tests.service import Service

UNIT = Path(__file__).parent.parent / "deploy" / "memu-backup.service"


@dataclass
class App:
    """A service of two scripts; that it runs is a file, and what was done to it another."""

    folder: Path

    def __post_init__(self) -> None:
        self.folder.mkdir()
        self.script("stop", 'rm -f "$0/../running"')
        self.script("start", 'touch "$0/../running"')
        self.switch(True)

    def script(self, name: str, does: str) -> None:
        file = self.folder / name
        file.write_text(f'#!/bin/sh\ncd "{self.folder}"\necho {name} >> log\n{does.replace("$0/../", "")}\n')
        file.chmod(0o700)

    def runs(self) -> bool:
        return (self.folder / "running").exists()

    def switch(self, on: bool) -> None:
        if on:
            (self.folder / "running").touch()
        else:
            (self.folder / "running").unlink(missing_ok=True)

    @property
    def log(self) -> list[str]:
        file = self.folder / "log"
        return file.read_text().split() if file.exists() else []

    def table(self, name: str = "app") -> str:
        f = self.folder
        return (
            f'[services.{name}]\nkind = "command"\nstop = ["{f}/stop"]\nstart = ["{f}/start"]\n'
            f'running = ["test", "-e", "{f}/running"]\ntimeout_s = 5\n'
        )


SOURCES = (
    '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    '[sources.chat]\nkind = "directory"\npath = "chat"\nneeds_stop = true\n'
)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    (home.folder / "chat").mkdir()
    (home.folder / "chat" / "messages").write_bytes(os.urandom(50_000_000))
    return home


@pytest.fixture
def app(tmp_path: Path, home: Home) -> App:
    app = App(tmp_path / "app")
    configure(home, app)
    return app


def configure(home: Home, *apps: App, job: str = "") -> None:
    tables = "".join(app.table(f"app{number or ''}") for number, app in enumerate(apps))
    home.configure(sources=SOURCES, more=f'consistency = "stop"\n{job}{tables}')


def journals(home: Home) -> list[Path]:
    folder = home.folder / "state" / "stopped"
    return sorted(folder.glob("*.json"))


def made(ran: Ran, home: Home) -> dict[str, object]:
    assert ran.status == 0, ran
    return dict(home.rows()[0])


def test_it_is_stopped_for_what_needs_it_and_runs_again_before_the_rest_is_read(home: Home, app: App) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(300_000_000))
    row = made(home.run("start"), home)
    assert app.log == ["stop", "start"] and app.runs()
    downtime, write = row["downtime_seconds"], row["write_seconds"]
    assert isinstance(downtime, float) and isinstance(write, float)
    assert 0 < downtime < write, "it did not wait for the film"
    assert journals(home) == []


@pytest.mark.slow
def test_with_the_window_open_for_all_it_waits_for_everything(home: Home, app: App) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(300_000_000))
    configure(home, app, job='window = "all"\n')
    row = made(home.run("start"), home)
    downtime, write = row["downtime_seconds"], row["write_seconds"]
    assert isinstance(downtime, float) and isinstance(write, float) and downtime > 0.6 * write  # the film is most of it


def test_what_was_off_stays_off(home: Home, app: App) -> None:
    app.switch(False)
    row = made(home.run("start"), home)
    assert app.log == [] and not app.runs() and row["downtime_seconds"] is None


def test_a_hot_job_stops_nothing(home: Home, app: App) -> None:
    home.configure(sources=SOURCES, more=app.table())
    made(home.run("start"), home)
    assert app.log == [] and app.runs()


def test_several_are_stopped_in_their_order_and_started_in_the_opposite_one(
    home: Home, app: App, tmp_path: Path
) -> None:
    other = App(tmp_path / "other")
    for one, name in ((app, "first"), (other, "second")):
        for verb in ("stop", "start"):
            line = "rm -f" if verb == "stop" else "touch"
            one.script(verb, f'echo {name}-{verb} >> "{tmp_path}/order"; {line} "$0/../running"')
    configure(home, app, other)
    made(home.run("start"), home)
    assert (tmp_path / "order").read_text().split() == ["first-stop", "second-stop", "second-start", "first-start"]


def test_one_that_cannot_be_stopped_fails_the_run_and_the_others_run_again(
    home: Home, app: App, tmp_path: Path
) -> None:
    stubborn = App(tmp_path / "stubborn")
    stubborn.script("stop", "exit 3")
    configure(home, app, stubborn)
    ran = home.run("start")
    assert ran.status == 1 and "was not stopped" in ran.err
    assert home.rows()[0]["error_code"] == "service"
    assert app.runs() and stubborn.runs() and journals(home) == []


def test_one_that_does_not_come_up_is_told_and_the_backup_is_good(home: Home, app: App) -> None:
    app.script("start", "exit 4")
    row = made(home.run("start"), home)
    assert row["status"] == "success" and "did not come up again" in str(row["warnings"])
    assert len(journals(home)) == 1
    ran = home.run("status")
    assert ran.status == 1 and "services recover" in ran.out
    ran = home.run("services", "recover")
    assert ran.status == 1 and "did not come up again" in ran.err
    app.script("start", 'touch "$0/../running"')
    ran = home.run("services", "recover", "--json")
    assert ran.status == 0
    assert json.loads(ran.out) == {"running_again": ["app"], "problems": []}
    assert app.runs()
    assert journals(home) == []
    assert "Nothing that a backup had stopped is down." in home.run("services", "recover").out


@pytest.fixture
def gate(home: Home) -> Iterator[Gate]:
    made = Gate(home.folder)
    yield made
    made.open()


def in_the_window(home: Home, app: App, gate: Gate) -> subprocess.Popen[str]:
    """A run that reads while the service stands still, and waits until it is let through."""
    table = app.table("app")
    home.configure(sources=f"{SOURCES}{gate.table(needs_stop=True)}", more=f'consistency = "stop"\n{table}')
    running = home.started("start")
    wait_until(lambda: gate.reached() or running.poll() is not None)
    assert running.poll() is None and not app.runs()
    return running


def test_killed_in_the_window_the_unit_brings_it_back(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    running.kill()
    running.communicate()
    assert not app.runs() and len(journals(home)) == 1
    (line,) = [one for one in UNIT.read_text().splitlines() if one.startswith("ExecStopPost=")]
    program, *words = shlex.split(line.partition("=")[2].lstrip("-"))
    assert Path(program).name == "memu-backup"
    assert home.run(*words).status == 0
    assert app.runs()
    assert journals(home) == []


@pytest.mark.slow
async def test_killed_in_the_window_the_service_brings_it_back_when_it_starts(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    running.kill()
    running.communicate()
    async with Service(home.folder / "config.toml") as service:
        await service.until(lambda: app.runs())
        await service.until(lambda: not journals(home))
        await service.stop()


def test_told_to_stop_in_the_window_it_brings_it_back_before_it_ends(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    running.send_signal(signal.SIGTERM)
    running.communicate()
    assert running.returncode != 0 and app.runs() and journals(home) == []


@pytest.mark.slow
def test_what_a_run_has_stopped_that_is_under_way_is_left_alone(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    running.send_signal(signal.SIGSTOP)
    ran = home.run("services", "recover")
    assert ran.status == 0 and not app.runs() and len(journals(home)) == 1
    running.send_signal(signal.SIGCONT)
    gate.open()
    running.communicate()
    assert running.returncode == 0 and app.runs() and journals(home) == []


@pytest.mark.slow
def test_started_by_somebody_else_in_the_window_what_was_read_is_not_kept(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    app.switch(True)
    gate.open()
    _, err = running.communicate()
    assert running.returncode == 1 and "started by somebody else" in err
    assert home.rows()[0]["error_code"] == "disturbed"
    assert app.runs() and journals(home) == [] and home.archives == []
    made(home.run("start"), home)


@pytest.mark.slow
def test_two_backups_at_once_stop_it_one_after_the_other(home: Home, app: App, tmp_path: Path) -> None:
    stores = "".join(f'[stores.{n}]\nkind = "archive"\ndir = "{n}"\n' for n in ("one", "two"))
    jobs = '[jobs.other]\nstore = "two"\nconsistency = "stop"\n'
    home.configure(sources=SOURCES, more=f'store = "one"\nconsistency = "stop"\n{stores}{jobs}{app.table()}')
    (home.folder / "chat" / "messages").write_bytes(os.urandom(200_000_000))
    running = [home.started("start", job) for job in ("nightly", "other")]
    for one in running:
        one.communicate()
    assert [one.returncode for one in running] == [0, 0]
    assert app.log == ["stop", "start"] * 2
    assert all(row["downtime_seconds"] for row in home.rows())


def test_where_nothing_can_be_written_down_nothing_is_stopped(home: Home, app: App) -> None:
    folder = home.folder / "state" / "stopped"
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("in the way")
    ran = home.run("start")
    assert ran.status == 1 and "without that nothing is stopped" in ran.err
    assert app.log == [] and app.runs()


def test_a_service_that_the_settings_do_not_know_any_more_is_named(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    running.kill()
    running.communicate()
    home.configure(sources=SOURCES)
    ran = home.run("services", "recover")
    assert ran.status == 1 and "the settings have no service app any more" in ran.err and "Start it by hand" in ran.err


def test_a_damaged_journal_is_named_and_kept(home: Home, app: App) -> None:
    folder = home.folder / "state" / "stopped"
    folder.mkdir(parents=True)
    (folder / "run.json").write_text("{")
    ran = home.run("services", "recover")
    assert ran.status == 1 and "run.json cannot be read" in ran.err and journals(home)


def test_mistakes_in_the_settings_are_told(home: Home, app: App) -> None:
    configure(home, app, job='services = ["ap"]\n')
    ran = home.run("config", "check")
    assert ran.status == 2 and "jobs.nightly.services" in ran.err and "app" in ran.err
    home.configure(sources=SOURCES, more='consistency = "stop"\n')
    ran = home.run("config", "check")
    assert ran.status == 2 and "no service to be stopped" in ran.err
    home.configure(sources=SOURCES.replace("needs_stop = true\n", ""), more=f'consistency = "stop"\n{app.table()}')
    ran = home.run("config", "check")
    assert ran.status == 2 and "none of its sources has needs_stop" in ran.err


def test_a_folder_of_its_own_for_journals_is_closed_to_others(home: Home, app: App, gate: Gate) -> None:
    running = in_the_window(home, app, gate)
    (journal,) = journals(home)
    assert journal.stat().st_mode & 0o077 == 0 and journal.parent.stat().st_mode & 0o077 == 0
    running.kill()
    running.communicate()

"""Whole nights of a compose project on a real Docker Engine: everything is in the archive, and what ran runs again."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from memu_backup.presets import template
from tests.docker_engine import BUSYBOX, Engine, compose
from tests.gate import Gate
from tests.home import Home, wait_until
from tests.service import Service

FOREVER = "trap 'exit 0' TERM; while :; do sleep 0.1; done"

UNIT = Path(__file__).parent.parent / "deploy" / "memu-backup.service"


@dataclass
class Family:
    """Memu in small: a Postgres that is written to, what needs it, a web server, and one that is off on purpose."""

    home: Home
    engine: Engine
    project: str

    def name(self, service: str) -> str:
        return f"{self.project}-{service}"

    def up(self, image: str) -> None:
        def make(service: str, *words: str, needs: str = "", flags: tuple[str, ...] = ()) -> None:
            labels = compose(self.project, service, needs)
            more = ("--restart", "unless-stopped", *flags)
            self.engine.docker("run", "--detach", "--name", self.name(service), *labels, *more, *words)

        data = f"{self.name('pgdata')}:/var/lib/postgresql/data"
        self.engine.docker("volume", "create", "--label", "com.docker.compose.volume=pgdata", self.name("pgdata"))
        make("db", image, flags=("--network", "family", "--env", "POSTGRES_PASSWORD=s3cret", "--volume", data))
        well = ("--health-cmd", "test -e /tmp/up", "--health-interval", "200ms")
        make("server", BUSYBOX, "sh", "-c", f"rm -f /tmp/up; sleep 0.3; touch /tmp/up; {FOREVER}",
             needs="db:service_started:false", flags=well)  # fmt: skip
        make("web", BUSYBOX, "sh", "-c", f"httpd -p 8080; {FOREVER}", needs="server:service_healthy:false")
        make("off", BUSYBOX, "sh", "-c", FOREVER)
        self.engine.docker("stop", "--time", "0", self.name("off"))
        self.engine.until_postgres_answers(self.name("db"))
        self.sql("CREATE TABLE messages (id serial PRIMARY KEY, body text)")
        self.sql("INSERT INTO messages (body) SELECT md5(n::text) FROM generate_series(1, 50000) n")

    def configure(self, healthy_within_s: int = 20, more: str = "") -> None:
        self.home.configure(
            sources=f'{more}[sources.photos]\nkind = "directory"\npath = "photos"\n'
            f'[sources.pgdata]\nkind = "volume"\nvolume = "{self.name("pgdata")}"\nneeds_stop = true\n'
            f'socket = "{self.engine.socket}"\n',
            more='consistency = "stop"\n'
            f'[services.memu]\nkind = "docker"\nproject = "{self.project}"\nsocket = "{self.engine.socket}"\n'
            f"stop_timeout_s = 10\nhealthy_within_s = {healthy_within_s}\n",
        )

    @property
    def gate(self) -> Gate:
        return Gate(self.home.folder)

    def sql(self, statement: str) -> str:
        return self.engine.sql(self.name("db"), statement)

    def count(self) -> int:
        return int(self.sql("SELECT count(*) FROM messages"))

    def states(self) -> dict[str, bool]:
        return {service: self.engine.runs(self.name(service)) for service in ("db", "server", "web", "off")}

    def starts(self) -> dict[str, str]:
        return {s: self.engine.inspect(self.name(s))["State"]["StartedAt"] for s in ("db", "server", "web", "off")}

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Somebody writes all the while, also before the database stands still and after it."""
        over = threading.Event()

        def write() -> None:
            inside = ["exec", self.name("db"), "psql", "-XqU", "postgres"]
            words = ["docker", "-H", f"unix://{self.engine.socket}", *inside,
                     "-c", "INSERT INTO messages (body) VALUES ('new')"]  # fmt: skip
            while not over.is_set():
                subprocess.run(words, capture_output=True)

        thread = threading.Thread(target=write)
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()


ALL_BUT_ONE = {"db": True, "server": True, "web": True, "off": False}


@pytest.fixture
def family(tmp_path: Path, database: str, engine: Engine, postgres_image: str) -> Iterator[Family]:
    found = Family(Home(tmp_path / "home", database), engine, f"n{uuid4().hex[:8]}")
    found.up(postgres_image)
    found.configure()
    yield found
    found.gate.open()
    for service in ("web", "server", "db", "off"):
        engine.docker("rm", "--force", "--volumes", found.name(service))
    engine.docker("volume", "rm", "--force", found.name("pgdata"))


def in_the_window(family: Family) -> subprocess.Popen[str]:
    """A backup that reads while all stands still, and waits until it is let through."""
    family.configure(more=family.gate.table(needs_stop=True))
    running = family.home.started("start")
    wait_until(lambda: family.gate.reached() or running.poll() is not None, 60)
    assert running.poll() is None and not any(family.states().values())
    return running


def recovered_by_the_unit(family: Family) -> None:
    """What systemd would run, where it were PID 1 here."""
    (line,) = [one for one in UNIT.read_text().splitlines() if one.startswith("ExecStopPost=")]
    _, *words = shlex.split(line.partition("=")[2].lstrip("-"))
    ran = family.home.run(*words)
    assert ran.status == 0, ran


def journals(family: Family) -> list[Path]:
    return sorted((family.home.folder / "state" / "stopped").glob("*.json"))


def row(family: Family) -> dict[str, Any]:
    return dict(family.home.rows()[0])


def test_a_night_with_everything_and_the_database_comes_back_row_by_row(family: Family, postgres_image: str) -> None:
    (family.home.photos / "film.mp4").write_bytes(os.urandom(200_000_000))
    before = family.count()
    with family.busy():
        ran = family.home.run("start")
    assert ran.status == 0, ran
    assert family.states() == ALL_BUT_ONE and journals(family) == []
    told = row(family)
    assert 0 < told["downtime_seconds"] < 30 and told["warnings"] == "[]"
    assert "Services stood still for" in family.home.run("status", "--details").out

    db, engine = family.name("db"), family.engine
    for service in ("web", "server", "db"):
        engine.docker("rm", "--force", family.name(service))
    engine.docker("volume", "rm", family.name("pgdata"))
    ran = family.home.run("restore", "--in-place", "--source", "pgdata", "--yes")
    assert ran.status == 0, ran
    engine.docker("run", "--detach", "--name", db, "--volume", f"{family.name('pgdata')}:/var/lib/postgresql/data",
                  *compose(family.project, "db"), postgres_image)  # fmt: skip
    engine.until_postgres_answers(db)
    after = family.count()
    assert after >= before
    assert family.sql("SELECT count(*) FROM messages WHERE body <> 'new' AND body = md5(id::text)") == "50000"
    assert "not properly shut down" not in engine.docker("logs", db)


@pytest.mark.slow
def test_phones_make_new_keys_by_what_memus_settings_say(family: Family) -> None:
    """In place, over what is there: by the lines of the preset Postgres is started alone, and then all the others."""
    db, engine, home = family.name("db"), family.engine, family.home
    in_synapse = ("exec", db, "psql", "-XqAtU", "postgres", "-d", "synapse", "-c")
    family.sql("CREATE DATABASE synapse")
    engine.docker(*in_synapse, "CREATE TABLE e2e_one_time_keys_json AS SELECT generate_series(1, 9) key")
    _, begin, rest = template("memu").partition("before_start = [")
    within, end, _ = rest.partition("\n]\n")
    lines = (begin + within + end).replace("{pgdata.container}", f'"{db}"')
    settings = home.folder / "config.toml"
    settings.write_text(settings.read_text().replace("needs_stop = true\n", f"needs_stop = true\n{lines}"))
    home.environ["DOCKER_HOST"] = f"unix://{engine.socket}"
    assert home.run("start").status == 0
    family.sql("DELETE FROM messages")
    ran = home.run("restore", "--in-place", "--source", "pgdata", "--yes")
    assert ran.status == 0 and "may not know of it yet" not in ran.err, ran
    assert "✓ services: as before there run" in ran.out and "✓ pgdata: " in ran.out
    assert family.count() == 50_000
    assert engine.docker(*in_synapse, "SELECT count(*) FROM e2e_one_time_keys_json").strip() == "0"
    assert family.states() == ALL_BUT_ONE
    assert ran.out.index("Running docker exec") < ran.out.index("Starting what was stopped.")
    assert family.starts()["db"] < family.starts()["server"]


@pytest.mark.slow  # as tests/test_standstill.py has it with two scripts
def test_the_photos_are_read_when_all_runs_again(family: Family) -> None:
    (family.home.photos / "film.mp4").write_bytes(os.urandom(900_000_000))
    running = family.home.started("start")
    wait_until(lambda: not any(family.states().values()), 60)
    wait_until(lambda: family.states() == ALL_BUT_ONE, 60)
    assert running.poll() is None, "the photos were read while all stood still"
    running.communicate()
    assert running.returncode == 0
    with tarfile.open(family.home.archives[0]) as archive:
        tops = list(dict.fromkeys(name.split("/")[0] for name in archive.getnames()))
    assert tops.index("pgdata") < tops.index("photos")


def test_killed_in_the_window_the_unit_brings_all_of_it_back(family: Family) -> None:
    running = in_the_window(family)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    time.sleep(1)
    assert not any(family.states().values())
    recovered_by_the_unit(family)
    assert family.states() == ALL_BUT_ONE and journals(family) == []


@pytest.mark.slow
async def test_killed_in_the_window_the_service_brings_it_back_when_it_starts(family: Family) -> None:
    running = in_the_window(family)
    running.send_signal(signal.SIGKILL)
    running.communicate()
    async with Service(family.home.folder / "config.toml") as service:
        await service.until(lambda: family.states() == ALL_BUT_ONE, 60)
        await service.until(lambda: not journals(family))
        await service.stop()


@pytest.mark.slow
def test_docker_killed_and_started_in_the_window_the_backup_is_good_and_all_runs_again(family: Family) -> None:
    running = in_the_window(family)
    family.engine.kill()
    family.engine.start()
    family.gate.open()
    _, err = running.communicate(timeout=120)
    assert running.returncode == 0, err
    assert family.states() == ALL_BUT_ONE and journals(family) == []
    assert row(family)["status"] == "success"


@pytest.mark.slow
def test_both_killed_in_the_window_as_in_a_power_cut_all_runs_again(family: Family) -> None:
    running = in_the_window(family)
    running.send_signal(signal.SIGKILL)
    family.engine.kill()
    running.communicate()
    family.engine.start()
    assert not any(family.states().values()), "who starts it but us?"
    recovered_by_the_unit(family)
    assert family.states() == ALL_BUT_ONE and journals(family) == []


@pytest.mark.slow
def test_what_docker_starts_by_itself_in_the_window_spoils_the_backup_and_not_the_next(family: Family) -> None:
    family.engine.docker("update", "--restart", "always", family.name("db"))
    running = in_the_window(family)
    family.engine.kill()
    family.engine.start()
    family.gate.open()
    _, err = running.communicate(timeout=120)
    assert running.returncode == 1 and "was started by somebody else" in err
    assert row(family)["error_code"] == "disturbed" and family.home.archives == []
    assert family.states() == ALL_BUT_ONE and journals(family) == []
    assert family.home.run("start").status == 0


@pytest.mark.slow
def test_without_docker_nothing_is_begun_and_it_is_said(family: Family) -> None:
    family.engine.kill()
    try:
        ran = family.home.run("start")
        assert ran.status == 1 and "Docker does not answer" in ran.err
        assert row(family)["error_code"] == "engine_away" and family.home.archives == []
    finally:
        family.engine.start()


@pytest.mark.slow
def test_one_that_does_not_get_well_costs_no_backup_and_is_told(family: Family) -> None:
    name = family.name("ill")
    ill = ("--health-cmd", "test ! -e /tmp/second", "--health-interval", "200ms")
    family.engine.docker("run", "--detach", "--name", name, *compose(family.project, "ill"), *ill, BUSYBOX, "sh", "-c",
                         "test -e /tmp/first && touch /tmp/second; touch /tmp/first; " + FOREVER)  # fmt: skip
    try:
        family.configure(healthy_within_s=3)
        ran = family.home.run("start")
        assert ran.status == 0, ran
        assert "its health check still fails" in str(row(family)["warnings"])
        assert family.states() == ALL_BUT_ONE
        ran = family.home.run("status")
        assert ran.status == 1 and "Not everything runs again after a backup" in ran.out
        ran = family.home.run("services", "recover")
        assert ran.status == 1 and name in ran.err
        family.engine.docker("exec", name, "rm", "/tmp/second")
        ran = family.home.run("services", "recover")
        assert ran.status == 0 and f"{name} runs again." in ran.out
        assert family.home.run("status").status == 0
    finally:
        family.engine.docker("rm", "--force", name)

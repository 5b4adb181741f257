"""deploy/Dockerfile and compose.yml in a Docker Engine of the test's own: built, started, killed, stopped.

The base image is a Debian under the name that the Dockerfile asks for: tests fetch no images.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.debian import ROOT, machine, until
from tests.home import Ran

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

DOCKERFILE = (ROOT / "deploy" / "Dockerfile").read_text()
SETTINGS = """
backup_dir = "/srv/memu/backups"
[usb]
overdue_days = 0
[sources.photos]
kind = "directory"
path = "/srv/memu/photos"
[sources.database]
kind = "postgres"
url = "postgresql://postgres@/postgres?host=/var/lib/memu-backup/postgres"
[jobs.nightly]
at = "02:00"
"""


@dataclass(frozen=True)
class Engine:
    """A Docker Engine that is this test's alone."""

    socket: Path

    def run(self, *argv: str, folder: Path = ROOT, tz: str = "Europe/Berlin") -> Ran:
        """A client's command."""
        environment = {**os.environ, "DOCKER_HOST": f"unix://{self.socket}", "DOCKER_BUILDKIT": "0", "TZ": tz}
        begun = time.monotonic()
        done = subprocess.run(argv, env=environment, cwd=folder, capture_output=True, text=True)
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)

    def good(self, *argv: str, folder: Path = ROOT) -> str:
        ran = self.run(*argv, folder=folder)
        assert ran.status == 0, ran
        return ran.out.strip()


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    if os.geteuid() != 0 or not all(map(shutil.which, ("dockerd", "docker-compose"))):
        pytest.skip("needs root, and Debian's packages docker.io and docker-compose")
    with tempfile.TemporaryDirectory() as short:  # a socket's path may have a hundred characters
        where = {"--data-root": tmp_path / "data", "--exec-root": f"{short}/exec", "--pidfile": f"{short}/pid"}
        options = [f"{name}={value}" for name, value in where.items()]
        made = Engine(Path(short) / "socket")
        with (tmp_path / "dockerd.log").open("wb") as log:
            argv = ["dockerd", *options, f"--host=unix://{made.socket}", "--bridge=none", "--iptables=false"]
            daemon = subprocess.Popen(argv, stdout=log, stderr=log)
        try:
            until(lambda: made.run("docker", "info").status == 0)
            yield made
        finally:
            if left := made.run("docker", "ps", "-aq").out.split():
                made.run("docker", "rm", "-f", *left)
            daemon.send_signal(signal.SIGTERM)
            daemon.wait(60)
            subprocess.run(["umount", "--quiet", f"{short}/exec/netns/default"])  # it leaves that


def _build(engine: Engine, folder: Path) -> None:
    name = re.findall(r"^FROM (\S+)$", DOCKERFILE, re.MULTILINE)
    folder.mkdir()
    with machine(folder) as debian:
        debian.good("sh", "-c", "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3.11-venv")
        argv = ["tar", "-C", str(debian.folder), "-c", "."]
        with subprocess.Popen(argv, stdout=subprocess.PIPE) as packing:
            importing = ["docker", "-H", f"unix://{engine.socket}", "import", "-", *name]
            subprocess.run(importing, stdin=packing.stdout, check=True, stdout=subprocess.DEVNULL)
    engine.good("docker", "build", "--network=host", "-q", "-t", "memu-backup", "-f", "deploy/Dockerfile", ".")


def _household(home: Path) -> None:
    for name in ("memu-backup", "photos", "backups", "synapse", "nginx"):
        (home / name).mkdir(parents=True)
    for name in (".env", "element-config.json", "docker-compose.yml"):
        (home / name).write_text("")
    photo = home / "photos" / "lake.jpg"
    photo.write_bytes(os.urandom(60_000))
    os.chown(photo, 1000, 1000)
    photo.chmod(0o600)


def test_it_protects_the_stack_that_it_is_part_of(engine: Engine, tmp_path: Path) -> None:
    _build(engine, tmp_path / "debian")
    home = tmp_path / "memu"
    _household(home)
    here = tmp_path / "here.yml"  # no network, and the socket of this engine
    service = {"network_mode": "none", "volumes": [f"{engine.socket}:/var/run/docker.sock"]}
    here.write_text(json.dumps({"services": {"memu-backup": service}}))
    files = ("--project-directory", str(home), "-f", str(ROOT / "deploy" / "compose.yml"), "-f", str(here))

    def compose(*argv: str) -> Ran:
        return engine.run("docker-compose", *files, *argv, folder=home)

    def typed(*argv: str) -> Ran:
        return compose("exec", "-T", "memu-backup", *argv)

    # As docs/admin.md says.
    settings = home / "memu-backup" / "config.toml"
    write = ("init", "--home", "/srv/memu", "--to", "/etc/memu-backup/config.toml")
    asked = ("-v", f"{home}/memu-backup:/etc/memu-backup", "-v", f"{engine.socket}:/var/run/docker.sock")
    engine.good("docker", "run", "--rm", "--network=none", *asked, "memu-backup", *write)
    assert 'path = "/srv/memu/photos"' in settings.read_text() and settings.stat().st_mode & 0o777 == 0o600
    settings.write_text(SETTINGS)
    assert "Write the household's time zone" in engine.run("docker-compose", *files, "config", folder=home, tz="").err
    assert compose("up", "-d", "memu-backup").status == 0
    (container,) = compose("ps", "-q").out.split()

    def inspected(what: str) -> str:
        return engine.good("docker", "inspect", "-f", f"{{{{{what}}}}}", container)

    def lacking() -> list[str]:
        said = typed("memu-backup", "check").out.splitlines()
        return [line.partition(":")[0] for line in said if line.startswith(" NO")] if said else ["nothing was said"]

    until(lambda: not {" NO  the service", "nothing was said"} & set(lacking()), 40)
    assert typed("memu-backup", "start").status == 0
    assert lacking() == [" NO  alerts"], typed("memu-backup", "check").out
    assert typed("memu-backup", "status").status == 0
    assert typed("memu-backup", "verify").out.strip().endswith("as it was written.")
    assert typed("memu-backup", "restore", "latest", "--to", "/srv/memu/backups/back", "--yes").status == 0
    back = home / "backups" / "back" / "photos" / "lake.jpg"
    assert back.read_bytes() == (home / "photos" / "lake.jpg").read_bytes()
    assert (back.stat().st_uid, back.stat().st_gid, back.stat().st_mode & 0o777) == (1000, 1000, 0o600)
    assert typed("touch", "/srv/memu/photos/lake.jpg").status == 1 and typed("touch", "/etc/probe").status == 1
    assert {p.stat().st_mode & 0o077 for p in (home / "backups").glob("*.tar.gz*")} == {0}

    # It is healthy while it answers.
    until(lambda: inspected(".State.Health.Status") == "healthy", 90)
    look = json.loads(inspected("json .Config.Healthcheck.Test"))[1:]
    (pid,) = re.findall(r"/proc/(\d+)/", typed("sh", "-c", "grep -lx memu-backup /proc/[0-9]*/comm").out)
    typed("sh", "-c", f"kill -STOP {pid}")
    hung = typed(*look)
    assert hung.status == 1 and hung.err.startswith("The service that runs did not answer"), hung

    # Killed, it comes back; stopped, it ends in order and in time.
    typed("sh", "-c", f"kill -KILL {pid}")
    until(lambda: inspected(".RestartCount") == "1" and typed(*look).status == 0, 30)
    until(lambda: typed("memu-backup", "status").status == 0, 20)
    stopped = compose("stop")
    assert stopped.status == 0 and stopped.seconds < 12 and inspected(".State.ExitCode") == "0"
    assert engine.run("docker", "logs", container).err.strip().endswith("Asked to stop.")

"""docs/recovery.md for Memu as it comes, in containers: with the settings that ``init`` writes, on a Docker Engine."""

from __future__ import annotations

import os
import re
import shutil
import stat
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.archives import plain_tree, snapshot
from tests.docker_engine import BUSYBOX, POSTGRES, Engine
from tests.home import PROGRAM
from tests.pages import ROOT, blocks, section
from tests.test_compose_night import FOREVER

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("docker-compose") is None, reason="needs Debian's docker-compose"),
]

OTHER = f'image: {BUSYBOX}\n    network_mode: none\n    command: ["sh", "-c", "{FOREVER}"]'.replace("$", "$$")
COMPOSE = f"""\
version: "3"
services:
  postgres:
    image: {POSTGRES}
    network_mode: none
    environment: {{POSTGRES_PASSWORD: not-a-real-one}}
    volumes: ["pgdata:/var/lib/postgresql/data"]
  synapse:
    {OTHER}
    volumes: ["./synapse:/data"]
  immich-server:
    {OTHER}
    volumes: ["./photos:/usr/src/app/upload"]
  ollama:
    {OTHER}
    volumes: ["ollama_data:/root/.ollama"]
volumes: {{pgdata: {{}}, ollama_data: {{}}}}
"""
OF_A_RESTORE = re.compile(r"memu-backup restore|restore\.py restore|install -D|docker compose")


@dataclass(frozen=True)
class Server:
    """What is at /srv, /etc/memu-backup and so on lies below ``folder``, and words like sudo are there."""

    folder: Path
    engine: Engine
    project: str

    @property
    def memu(self) -> Path:
        return self.folder / self.project

    def prepare(self) -> None:
        for name in ("programs", "root", "drive", "etc"):
            (self.folder / name).mkdir()
        self._program("sudo", 'exec "$@"')
        self._program("memu-backup", f'exec {PROGRAM} "$@"')
        self._program("python3", f'exec {sys.executable} "$@"')
        docker = shutil.which("docker")
        self._program("docker", f'if [ "$1" = compose ]; then shift; exec docker-compose "$@"; fi; exec {docker} "$@"')

    def _program(self, name: str, does: str) -> None:
        file = self.folder / "programs" / name
        file.write_text(f"#!/bin/sh\n{does}\n")
        file.chmod(0o755)

    def type_in(self, script: str) -> str:
        lies = {"/root/": "root", "/etc/memu-backup/": "etc", "/mnt/drive/": "drive", "/srv/memu": self.project}
        for there, here in lies.items():
            script = script.replace(there, str(self.folder / here) + "/" * there.endswith("/"))
        environ = {
            "PATH": f"{self.folder}/programs:{os.environ['PATH']}",
            "HOME": str(self.folder / "root"),
            "DOCKER_HOST": f"unix://{self.engine.socket}",
            "MEMU_BACKUP_CONFIG": str(self.folder / "etc" / "config.toml"),
            "MEMU_BACKUP_STATE_DIR": str(self.folder / "state"),
            "MEMU_BACKUP_USB__OVERDUE_DAYS": "0",
        }
        typed = subprocess.run(
            ["sh", "-euxc", f"cd; exec 2>&1; {script}"], env=environ, capture_output=True, text=True, timeout=300
        )
        assert typed.returncode == 0, typed.stdout
        return typed.stdout

    def sql(self, statement: str) -> str:
        return self.engine.sql(f"{self.project}_postgres_1", statement)

    def is_lost(self) -> None:
        self.type_in("cd /srv/memu && docker compose down --volumes --timeout 1")
        for path in self.folder.iterdir():
            if path.name not in ("drive", "programs"):
                shutil.rmtree(path)
        (self.folder / "root").mkdir()


@pytest.mark.timeout(600)
def test_memu_in_its_containers_is_lost_and_comes_back_by_the_page(
    engine: Engine, postgres_image: str, tmp_path: Path
) -> None:
    assert postgres_image == POSTGRES
    server = Server(tmp_path, engine, "memulost")
    server.prepare()
    server.memu.mkdir()
    (server.memu / "docker-compose.yml").write_text(COMPOSE)
    (server.memu / ".env").write_text(f"BACKUP_DIR={tmp_path}/backups\n")
    plain_tree(server.memu / "photos")
    (server.memu / "synapse").mkdir()
    (server.memu / "synapse" / "homeserver.yaml").write_text("server_name: family.example\n")
    server.type_in("cd /srv/memu && docker compose up -d")
    model = engine.mountpoint(f"{server.project}_ollama_data") / "model"
    model.write_bytes(os.urandom(2_000_000))
    engine.until_postgres_answers(f"{server.project}_postgres_1")
    server.sql("CREATE TABLE events AS SELECT n AS id, md5(n::text) AS body FROM generate_series(1, 5000) n")
    server.type_in("memu-backup init --preset memu --home /srv/memu --to /etc/memu-backup/config.toml")
    server.type_in("memu-backup start; memu-backup usb copy --to /mnt/drive/")

    def seen() -> tuple[object, ...]:
        engine.until_postgres_answers(f"{server.project}_postgres_1")
        folders = [snapshot(server.memu / name) for name in ("photos", "synapse", "docker-compose.yml", ".env")]
        rows = server.sql("SELECT string_agg(t::text, '|' ORDER BY id) FROM events t")
        return (*folders, rows, (engine.mountpoint(f"{server.project}_ollama_data") / "model").read_bytes())

    before = seen()
    (archive,) = (tmp_path / "drive").rglob("*.tar.gz")
    server.is_lost()

    lines = "".join(blocks(section((ROOT / "docs" / "recovery.md").read_text(), "B"), "sh", "console")).splitlines()
    kept = [line for line in lines if OF_A_RESTORE.search(line)]
    assert len(kept) == 9, kept
    script = "\n".join(kept).replace("NAME", f"{archive.parent.name}/{archive.name}")
    said = server.type_in(script.replace("SOURCES", "photos --source synapse --source pgdata --source ollama"))
    assert "All of it is back" in said
    assert seen() == before
    running = engine.docker("ps", "--filter", f"name={server.project}", "--format", "{{.Names}}").split()
    assert len(running) == 4
    assert stat.S_IMODE((tmp_path / "etc" / "config.toml").stat().st_mode) == 0o600
    server.is_lost()

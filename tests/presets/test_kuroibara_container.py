"""Kuroibara as compose runs it: ``init`` finds its containers, and its Postgres is dumped by the programs in there."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.docker_engine import BUSYBOX, Engine, compose
from tests.home import PROGRAM, Ran, ran
from tests.presets.test_kuroibara import SCHEMA

pytestmark = pytest.mark.slow

BACKEND, POSTGRES = "kuroibara-backend", "kuroibara-postgres"


class Kuroibara:
    """The compose project, its library, and what ``init`` is to find of them."""

    def __init__(self, folder: Path, engine: Engine, image: str) -> None:
        self.folder, self.engine, self.config = folder, engine, folder.parent / "config.toml"
        self.storage = folder / "storage"
        self.storage.mkdir(parents=True)
        where = {"working_dir": folder, "config_files": folder / "docker-compose.yml"}
        labels = [w for key, value in where.items() for w in ("--label", f"com.docker.compose.project.{key}={value}")]

        def run(name: str, service: str, *words: str) -> None:
            engine.docker("run", "--detach", "--name", name, *compose("kuroibara", service), *labels, *words)

        told = {"POSTGRES_USER": "kuroibara", "POSTGRES_DB": "kuroibara", "POSTGRES_PASSWORD": "s3cret p@ss"}
        environ = [word for name, value in told.items() for word in ("--env", f"{name}={value}")]
        data = "kuroibara_postgres_data:/var/lib/postgresql/data"
        run(POSTGRES, "postgres", "--network", "family", *environ, "--volume", data, image)
        run(BACKEND, "backend", "--volume", f"{self.storage}:/app/storage", BUSYBOX, "sleep", "600")
        engine.until_postgres_answers(POSTGRES)
        for statement in SCHEMA:
            self.sql(statement)
        for number in range(3):
            self.download(number)

    def sql(self, statement: str) -> str:
        return self.engine.sql(POSTGRES, statement, user="kuroibara", database="kuroibara")

    def download(self, number: int) -> None:
        """Written by its program, in its container."""
        path = f"/app/storage/chapter {number}.cbz"
        self.engine.docker("exec", BACKEND, "sh", "-c", f"head -c 3000 /dev/urandom > '{path}'")
        self.sql(f"INSERT INTO chapter (manga_id, number, file_path) SELECT id, {number}, '{path}' FROM manga LIMIT 1")

    def run(self, *argv: str) -> Ran:
        environ = {
            "PATH": "/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "DOCKER_HOST": f"unix://{self.engine.socket}",
            "MEMU_BACKUP_STATE_DIR": str(self.folder.parent / "state"),
        }
        return ran([PROGRAM, "--config", str(self.config), *argv], self.folder.parent, environ)

    def told(self) -> tuple[list[Any], dict[str, Any]]:
        """What the newest backup tells of its library, and of its database."""
        sources = {s["name"]: s for s in self.run("show", "--json").json["metadata"]["sources"]}
        compared = sources["storage"]["details"]["listed_by"]
        return [compared["first_without_file"], compared["first_without_row"]], sources["database"]


@pytest.fixture
def kuroibara(folder: Path, engine: Engine, postgres_image: str) -> Iterator[Kuroibara]:
    yield Kuroibara(folder / "kuroibara", engine, postgres_image)
    engine.docker("rm", "--force", "--volumes", BACKEND, POSTGRES)
    engine.docker("volume", "rm", "--force", "kuroibara_postgres_data")


def test_init_finds_it_and_each_full_backup_compares_library_and_database(kuroibara: Kuroibara, history: str) -> None:
    made = kuroibara.run("init", "--preset", "kuroibara", "--to", str(kuroibara.config))
    assert (made.status, made.err) == (0, "")
    home = kuroibara.folder
    assert f"Docker has Kuroibara as compose project kuroibara, in {home}." in made.out
    found = made.out.partition("Assumed, as nothing here tells:")[0]
    assert f"  sources.database: Postgres in container {POSTGRES}\n" in found
    assert f"  sources.storage: folder {kuroibara.storage}\n" in found
    text = kuroibara.config.read_text()
    kuroibara.config.write_text(f'host = "attic"\n{text}\n[history]\nurl = "{history}"\n[usb]\noverdue_days = 0\n')
    checked = kuroibara.run("check").out
    assert " ok  rows of storage: each file has its row, and each row its file" in checked, checked

    night = kuroibara.run("start", "daily")
    weekly = kuroibara.run("start", "weekly")
    assert (night.status, weekly.status) == (0, 0), (night.err, weekly.err)
    compared, database = kuroibara.told()
    version = kuroibara.engine.docker("exec", POSTGRES, "pg_dump", "--version").split()[2]
    assert compared == [[], []] and database["consistency"] == f"pg_dump {version} in one snapshot"
    assert database["details"]["databases"][0]["tables"]["public.chapter"] == 3

    kuroibara.engine.docker("exec", BACKEND, "rm", "/app/storage/chapter 1.cbz")
    (kuroibara.storage / "stray.tmp").touch()
    monthly = kuroibara.run("start", "monthly")
    missing = "Not in this backup: 1 file of storage that database names (chapter 1.cbz)."
    assert monthly.status == 0 and f"  {missing}\n" in monthly.err
    assert kuroibara.told()[0] == [["chapter 1.cbz"], ["stray.tmp"]]
    assert " NO  rows of storage: 1 file that no row" in kuroibara.run("check").out
    assert kuroibara.run("verify").status == 0
    archives = sorted((home / "backups").glob("*.tar.gz"))
    with tarfile.open(archives[0]) as tar:
        inner = tar.extractfile("metadata.json")
        assert inner and "listed_by" not in json.dumps(json.load(inner)), "a night of the database alone"

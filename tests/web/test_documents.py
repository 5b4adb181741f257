"""The curl lines of Kuroibara's and Sound Box's documents, as they are written there, at the ports of their presets."""

from __future__ import annotations

import json
import re
import shutil
import tomllib
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

import pytest

from memu_backup.postgres.server import PostgresServer
from tests.home import Home, a_database, in_a_loop_of_its_own, query
from tests.web.site import Site

CREATE = """
curl -X POST "http://localhost:8000/api/v1/backup/create" \\
  -H "Authorization: Bearer $JWT_TOKEN" \\
  -H "Content-Type: application/json" \\
  -d '{
    "backup_name": "manual_backup_20230710",
    "include_storage": true
  }'
"""
LIST = """
curl -X GET "http://localhost:8000/api/v1/backup/list" \\
  -H "Authorization: Bearer $JWT_TOKEN"
"""
DOWNLOAD = """
curl -X GET "http://localhost:8000/api/v1/backup/download/backup_20230710.tar.gz" \\
  -H "Authorization: Bearer $JWT_TOKEN" \\
  -o backup_20230710.tar.gz
"""
RESTORE = """
curl -X POST "http://localhost:8000/api/v1/backup/upload-restore" \\
  -H "Authorization: Bearer $JWT_TOKEN" \\
  -F "backup_file=@backup_20230710.tar.gz"
"""
RUN = """
curl -X POST http://localhost:5309/api/backup/run \\
    -H "Authorization: Bearer $ADMIN_TOKEN"
"""
STATUS = "curl http://localhost:5309/api/backup/status"

SOURCES = """
[sources.database]
kind = "postgres"
url = "{url}"
place = "database.sql"
[sources.storage]
kind = "directory"
path = "photos"
place = "storage.tar.gz"
[sources.backup_metadata]
kind = "label"
place = "backup_metadata.json"
keys = {{ backup_name = "{{called}}", includes_storage = "{{has:storage}}" }}
"""
JOBS = '[jobs.daily]\nat = "02:00"\nsources = ["database", "backup_metadata"]\n'


def web_of(preset: str) -> dict[str, Any]:
    text = (resources.files("memu_backup") / "presets" / f"{preset}.toml").read_text("utf-8")
    table: dict[str, Any] = tomllib.loads(re.sub(r"(?m)^\{.*\}$", "", text))["web"]
    assert table.pop("enabled") is False
    return table


def listening(folder: Path, history: str, preset: str, sources: str | None, jobs: str = "") -> Site:
    web = web_of(preset)
    home = Home(folder, history)
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in web.items())
    return Site(home, jobs, web=table, port=web["port"], sources=sources)


@pytest.fixture
def kuroibara(postgres: PostgresServer, tmp_path: Path) -> Iterator[tuple[Site, str]]:
    with a_database(postgres) as history, a_database(postgres) as url:
        site = listening(tmp_path / "home", history, "kuroibara", SOURCES.format(url=url), JOBS)
        try:
            yield site, url
        finally:
            site.stop()


def test_kuroibaras_lines_work_as_they_are_written(kuroibara: tuple[Site, str]) -> None:
    site, url = kuroibara
    in_a_loop_of_its_own(query(url, "CREATE TABLE manga (title text)", "INSERT INTO manga VALUES ('One') RETURNING 1"))
    token, folder = site.token("admin"), site.home.folder
    begun = json.loads(site.curl(CREATE, JWT_TOKEN=token).stdout)
    assert begun["job"] == "nightly", begun  # the one with storage
    assert site.ended(site.client(token), begun["run_id"])["outcome"] == "done"
    (listed,) = json.loads(site.curl(LIST, JWT_TOKEN=token).stdout)["backups"]
    said = site.home.run("show", listed["name"], "--json").json["metadata"]
    assert (listed["state"], said["called"]) == ("good", "manual_backup_20230710")
    archive = site.home.archives[-1]
    label = json.loads(site.client(token).get(f"/api/v1/backup/file/{archive.name}?path=backup_metadata.json").text)
    assert label == {"backup_name": "manual_backup_20230710", "includes_storage": True}
    begun = json.loads(site.curl(CREATE.replace("manual_", ""), JWT_TOKEN=token).stdout)
    assert site.ended(site.client(token), begun["run_id"])["outcome"] == "done"
    assert site.curl(DOWNLOAD, JWT_TOKEN=token).returncode == 0  # by what it was called
    assert (folder / "backup_20230710.tar.gz").read_bytes() == site.home.archives[-1].read_bytes()
    before = (site.home.photos / "2026" / "lake.jpg").read_bytes()
    in_a_loop_of_its_own(query(url, "UPDATE manga SET title = 'lost'", "SELECT 1"))
    shutil.rmtree(site.home.photos)
    begun = json.loads(site.curl(RESTORE, JWT_TOKEN=token).stdout)
    ended = site.ended(site.client(token), begun["run_id"])
    assert ended["outcome"] == "done", ended
    assert (site.home.photos / "2026" / "lake.jpg").read_bytes() == before
    assert in_a_loop_of_its_own(query(url, "SELECT title FROM manga")) == [{"title": "One"}]
    without = site.client(token).post("/api/v1/backup/create", json={"include_storage": False})
    assert without.json()["job"] == "daily"
    assert site.ended(site.client(token), without.json()["run_id"])["outcome"] == "done"
    assert site.home.run("restore", "--release", "--yes").status == 0


def test_sound_boxs_lines_work_as_they_are_written(tmp_path: Path, database: str) -> None:
    site = listening(tmp_path / "home", database, "soundbox", None)
    try:
        token = site.token("admin")
        told = json.loads(site.curl(STATUS).stdout)
        assert (told["enabled"], told["backup_count"], told["last_backup"]) == (True, 0, None)
        begun = json.loads(site.curl(RUN, ADMIN_TOKEN=token).stdout)
        assert site.ended(site.client(token), begun["run_id"])["outcome"] == "done"
        told = json.loads(site.curl(STATUS).stdout)
        assert (told["backup_count"], told["last_backup"]["status"]) == (1, "success")
        # Through a proxy it is asked for somebody who may be anywhere.
        for header in ("X-Forwarded-For: 203.0.113.7", "Forwarded: for=203.0.113.7", "Via: 1.1 proxy"):
            answer = json.loads(site.curl(f"{STATUS} -H '{header}'").stdout)
            assert answer["error"]["code"] == "not_allowed", answer
    finally:
        site.stop()

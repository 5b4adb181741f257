"""Kuroibara: set up by ``init``, backed up by its document's timetable, and brought back, by us and by hand."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import tarfile
import threading
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import ANY
from urllib.parse import parse_qs, urlsplit

import pytest

from memu_backup import retention, schedule
from memu_backup.audit import SCHEDULER
from memu_backup.config import Config, load
from memu_backup.manager import Manager, history_of
from memu_backup.model import Status, Trigger
from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from memu_backup.retention import Candidate
from tests.archives import snapshot
from tests.home import PROGRAM, Ran, query, ran

COMPOSE = """
services:
  backend:
    image: kuroibara/backend
    container_name: kuroibara-backend
    volumes: ['./storage:/app/storage', 'backup_data:/app/backups']
  postgres:
    image: postgres:16-alpine
    container_name: kuroibara-postgres
    volumes: ['postgres_data:/var/lib/postgresql/data']
  valkey: {image: 'valkey/valkey:latest', volumes: ['valkey_data:/data']}
volumes: {backup_data: , postgres_data: , valkey_data: }
"""

SCHEMA = (
    "CREATE TYPE manga_status AS ENUM ('ongoing', 'completed', 'unknown')",
    'CREATE TABLE "user" (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), username text UNIQUE NOT NULL,'
    " settings jsonb)",
    "CREATE TABLE manga (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), title text NOT NULL, cover_image text,"
    " status manga_status NOT NULL DEFAULT 'unknown', alternative_titles jsonb)",
    "CREATE TABLE chapter (id serial PRIMARY KEY, manga_id uuid NOT NULL REFERENCES manga, number text NOT NULL,"
    " file_path text, file_size int, readable_at timestamptz)",
    "CREATE TABLE page (id serial PRIMARY KEY, chapter_id int NOT NULL REFERENCES chapter, file_path text NOT NULL)",
    'CREATE TABLE reading_progress (user_id uuid REFERENCES "user", chapter_id int REFERENCES chapter,'
    " page int NOT NULL, PRIMARY KEY (user_id, chapter_id))",
    "INSERT INTO \"user\" (username, settings) VALUES ('anna', '{\"theme\": \"dark\"}'), ('größe', NULL)",
    "INSERT INTO manga (title, status) VALUES (E'One \\\\ Two\\n\\'three\\'', 'ongoing'), ('黒薔薇', 'completed')",
)
TABLES = ('"user"', "manga", "chapter", "page", "reading_progress")
ENVIRON = {"PATH": f"{programs()}:/usr/local/bin:/usr/bin:/bin", "LANG": "C.UTF-8"}


class Kuroibara:
    """Its folder, its database and its library."""

    def __init__(self, folder: Path, postgres: PostgresServer) -> None:
        self.folder, self.postgres = folder, postgres
        self.url = postgres.url("kuroibara").replace("//postgres@", "//kuroibara@")
        where = parse_qs(urlsplit(self.url).query)
        self.environ = ENVIRON | {
            "MEMU_BACKUP_STATE_DIR": str(folder.parent / "state"),
            "PGHOST": where["host"][0],
            "PGPORT": where["port"][0],
            "DOCKER_HOST": f"unix://{folder.parent}/nobody.sock",
        }
        self.storage.mkdir(parents=True)
        (folder / "docker-compose.yml").write_text(COMPOSE)

    @property
    def storage(self) -> Path:
        return self.folder / "storage"

    @property
    def config(self) -> Path:
        return self.folder.parent / "config.toml"

    @property
    def archives(self) -> list[Path]:
        return sorted((self.folder / "backups").glob("*.tar.gz"))

    def run(self, *argv: str, **environ: str) -> Ran:
        return ran([PROGRAM, "--config", str(self.config), *argv], self.folder.parent, self.environ | environ)

    def init(self, *argv: str) -> Ran:
        return self.run("init", "--preset", "kuroibara", "--home", str(self.folder), "--to", str(self.config), *argv)

    def settle(self, history: str) -> None:
        """What its owner changes in what ``init`` wrote: this Postgres is in no container."""
        text = self.config.read_text()
        assert 'container = "kuroibara-postgres"' in text
        text = re.sub("container = .*\n(socket = .*)?", f'url = "{self.url}"', text)
        top = 'timezone = "Europe/Berlin"\nhost = "attic"\n'
        self.config.write_text(f'{top}{text}\n[history]\nurl = "{history}"\n[usb]\noverdue_days = 0\n')

    async def create(self) -> None:
        await self.drop()
        await query(self.postgres.url(), "DROP ROLE IF EXISTS kuroibara", "SELECT 1")
        await query(self.postgres.url(), "CREATE ROLE kuroibara LOGIN SUPERUSER", "SELECT 1")
        await self.create_empty()
        await query(self.url, *SCHEMA, "SELECT 1")
        for number in range(5):
            await self.download(f"{number}")

    async def create_empty(self) -> None:
        await query(self.postgres.url(), "CREATE DATABASE kuroibara OWNER kuroibara", "SELECT 1")

    async def drop(self) -> None:
        if (self.folder.parent / "state" / "restores").exists():
            self.run("restore", "--release", "--yes")
        await query(self.postgres.url(), "DROP DATABASE IF EXISTS kuroibara WITH (FORCE)", "SELECT 1")

    async def download(self, number: str) -> None:
        """One chapter, as Kuroibara does: the file first, then the row and how far it was read."""
        file = self.storage / "manga" / "one-two" / f"chapter {number}.cbz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(os.urandom(3000))
        await query(
            self.url,
            "WITH c AS (INSERT INTO chapter (manga_id, number, file_path, file_size, readable_at)"
            f" SELECT id, '{number}', '/app/storage/{file.relative_to(self.storage)}', 3000, '2026-01-02 03:04:05+00'"
            " FROM manga LIMIT 1 RETURNING id)"
            ' INSERT INTO reading_progress SELECT u.id, c.id, 7 FROM "user" u, c RETURNING page',
        )

    async def rows(self) -> dict[str, list[dict[str, Any]]]:
        return {table: await query(self.url, f"SELECT * FROM {table} ORDER BY 1, 2") for table in TABLES}


@pytest.fixture
async def kuroibara(folder: Path, postgres: PostgresServer) -> AsyncIterator[Kuroibara]:
    made = Kuroibara(folder / "kuroibara", postgres)
    await made.create()
    yield made
    await made.drop()
    await query(postgres.url(), "DROP ROLE kuroibara", "SELECT 1")


def named(archive: Path) -> set[str]:
    with tarfile.open(archive) as tar:
        return set(tar.getnames())


def document(archive: Path) -> Any:
    with tarfile.open(archive) as tar:
        file = tar.extractfile("backup_metadata.json")
        assert file
        return json.load(file)


def test_init_says_what_it_found_and_what_it_assumed(kuroibara: Kuroibara) -> None:
    (kuroibara.folder / ".env").write_text(
        "DB_PASSWORD=s3cret\nBACKUP_PATH=/app/backups\nMAX_BACKUPS=12\nBACKUP_WEEKLY_ENABLED=False\n"
        "BACKUP_MONTHLY_ENABLED=perhaps\n"
    )
    made = kuroibara.init()
    assert (made.status, made.err) == (0, "")
    lines, home = made.out.splitlines(), kuroibara.folder
    assert f"{home}/docker-compose.yml tells of compose project kuroibara." in lines
    assumed, found = lines.index("Assumed, as nothing here tells:"), lines.index("Found:")
    assert {"  max_backups: 12", "  weekly: false", f"  sources.storage: folder {home}/storage"} <= set(
        lines[found:assumed]
    )
    assert {f"  backup_dir: {home}/backups", f"  version: {home}/VERSION"} <= set(lines[assumed:])
    assert "  sources.database: Postgres in container kuroibara-postgres" in lines[found:assumed]
    left_out = lines[lines.index("Not in the backup:") :]
    assert any(
        "kuroibara_postgres_data" in line and "its database is in the backup as SQL" in line for line in left_out
    )
    config = load(kuroibara.config, {})
    jobs = {name: config.job(name) for name in config.jobs}
    assert {name: job.cron for name, job in jobs.items()} == {
        "daily": "0 2 * * *",
        "weekly": None,
        "monthly": "0 4 1 * *",
    }
    assert {job.retention.max_in_place for job in jobs.values()} == {12}
    assert "s3cret" not in kuroibara.config.read_text() + made.out


def test_the_variables_of_its_document_are_honoured(kuroibara: Kuroibara, tmp_path: Path) -> None:
    assert kuroibara.init().status == 0
    usual = load(kuroibara.config, {})
    assert [(j.cron, j.retention.keep_last) for j in map(usual.job, usual.jobs)] == [
        ("0 2 * * *", 7),
        ("0 3 * * sun", 4),
        ("0 4 1 * *", 12),
    ]
    assert usual.job("daily").retention.max_in_place == 30
    said = {
        "BACKUP_DAILY_ENABLED": "false",
        "BACKUP_WEEKLY_ENABLED": "true",
        "BACKUP_MONTHLY_ENABLED": "0",
        "BACKUP_PATH": str(tmp_path / "elsewhere"),
        "MAX_BACKUPS": "5",
    }
    config = load(kuroibara.config, said)
    assert [config.job(name).cron for name in config.jobs] == [None, "0 3 * * sun", None]
    assert config.job("weekly").retention.max_in_place == 5
    assert config.store_of(config.job("weekly")).dir == tmp_path / "elsewhere"
    wrong = kuroibara.run("check", BACKUP_DAILY_ENABLED="perhaps", MAX_BACKUPS="none")
    assert wrong.status == 2
    assert "BACKUP_DAILY_ENABLED: must be true or false" in wrong.err
    assert "MAX_BACKUPS: must be a whole number" in wrong.err


@pytest.mark.slow
async def test_files_without_a_row_and_rows_without_a_file_are_named(kuroibara: Kuroibara, history: str) -> None:
    assert kuroibara.init().status == 0
    kuroibara.settle(history)

    def told() -> str:
        (line,) = [line for line in kuroibara.run("check").out.splitlines() if "rows of storage" in line]
        return line

    assert told() == " ok  rows of storage: each file has its row, and each row its file"
    pages = kuroibara.storage / "manga" / "pages 7"
    pages.mkdir()
    (pages / "1.jpg").touch()
    (pages / "2.jpg").touch()
    cover = kuroibara.storage / "covers" / "one\n.jpg"
    cover.parent.mkdir()
    cover.touch()
    assert told() == (
        " ok  rows of storage: 3 files that no row of database names "
        "(covers/one\N{REPLACEMENT CHARACTER}.jpg, manga/pages 7/1.jpg, manga/pages 7/2.jpg)"
    )
    # A row may name a folder; a cover may be elsewhere.
    await query(
        kuroibara.url,
        "INSERT INTO page (chapter_id, file_path) SELECT id, '/app/storage/manga/pages 7/' FROM chapter LIMIT 1",
        "UPDATE manga SET cover_image = 'https://example.org/x.jpg' WHERE title = '黒薔薇'",
        "UPDATE manga SET cover_image = E'/app/storage/covers/one\\n.jpg' WHERE title <> '黒薔薇' RETURNING id",
    )
    assert told() == " ok  rows of storage: each file has its row, and each row its file"
    for number in (0, 3):
        (kuroibara.storage / "manga" / "one-two" / f"chapter {number}.cbz").unlink()
    assert told() == (
        " NO  rows of storage: 2 rows of database whose file is missing "
        "(manga/one-two/chapter 0.cbz, manga/one-two/chapter 3.cbz)"
    )
    assert kuroibara.run("start", "weekly").status == 0  # which is no reason to make no backup

    text = kuroibara.config.read_text()
    kuroibara.config.write_text(text.replace("FROM chapter UNION", "FROM chapters UNION"))
    assert "NO" in told() and "chapters" in told()
    kuroibara.config.write_text(text.replace('"database"\nbelow', '"datbase"\nbelow'))
    wrong = kuroibara.run("check")
    assert wrong.status == 2 and "speaks of source datbase, which is not there; did you mean database?" in wrong.err
    kuroibara.config.write_text(text.replace('source = "database"\nbelow', 'source = "backup_metadata"\nbelow'))
    assert "Source backup_metadata cannot be asked which files it names" in told()
    kuroibara.config.write_text(text.replace('source = "database"\nbelow', "below"))
    assert 'sources.storage.listed_by: needs source = "…", a postgres' in kuroibara.run("check").err


@contextmanager
def downloading(kuroibara: Kuroibara) -> Iterator[None]:
    """New chapters all the time while this lasts."""
    enough = threading.Event()
    made: list[None] = []

    def go() -> None:
        while not enough.is_set():
            made.append(asyncio.run(kuroibara.download(f"live {len(made)}")))

    thread = threading.Thread(target=go)
    thread.start()
    try:
        yield
    finally:
        enough.set()
        thread.join()
    assert len(made) > 1


async def test_everything_is_lost_and_comes_back_in_place_and_by_the_lines_of_its_document(
    kuroibara: Kuroibara, tmp_path: Path, database: str
) -> None:
    (kuroibara.folder / "VERSION").write_text("0.6.1\n")
    assert kuroibara.init().status == 0
    kuroibara.settle(database)
    with downloading(kuroibara):
        weekly = kuroibara.run("start", "weekly")
    assert weekly.status == 0, weekly.err
    (archive,) = kuroibara.archives
    assert named(archive) == {
        "database.sql", "storage.tar.gz", "backup_metadata.json", "metadata.json", "SHA256SUMS", "index.jsonl"
    }  # fmt: skip
    assert kuroibara.run("verify").status == 0

    # What stands still is compared row by row and byte by byte; of what moved, each row has its file.
    quiet = kuroibara.run("start", "monthly")
    assert quiet.status == 0, quiet.err
    moving, archive = kuroibara.archives
    rows, files = await kuroibara.rows(), snapshot(kuroibara.storage)
    assert len(rows["chapter"]) > 6

    # What is there is replaced by the same.
    replaced = kuroibara.run("restore", archive.name, "--in-place", "--yes")
    assert replaced.status == 0 and "replaces database kuroibara with" in replaced.out
    assert (await kuroibara.rows(), snapshot(kuroibara.storage)) == (rows, files)

    shutil.rmtree(kuroibara.storage)
    await kuroibara.drop()
    back = kuroibara.run("restore", archive.name, "--in-place", "--yes")
    assert back.status == 0, back.err
    assert await kuroibara.rows() == rows
    assert snapshot(kuroibara.storage) == files

    for stored in (archive, moving):
        await kuroibara.drop()
        await kuroibara.create_empty()
        app = tmp_path / f"app-{stored.stem}"
        app.mkdir()
        script = (
            f"tar -xzf {stored}\npsql -U kuroibara -d kuroibara < database.sql\ntar -xzf storage.tar.gz -C {app}/\n"
        )
        folder = tmp_path / f"by-hand-{stored.stem}"
        folder.mkdir()
        by_hand = ran(["sh", "-ec", script], folder, kuroibara.environ)
        assert by_hand.status == 0 and "ERROR" not in by_hand.err
        restored = await kuroibara.rows()
        if stored == archive:
            assert restored == rows and snapshot(app / "storage") == files
        for chapter in restored["chapter"]:
            assert (app / chapter["file_path"].removeprefix("/app/")).stat().st_size == chapter["file_size"]
        assert len(restored["reading_progress"]) == 2 * len(restored["chapter"])
        told = document(stored)
        sizes = {p: (folder / p).stat().st_size for p in ("database.sql", "storage.tar.gz")}
        stamp = stored.name.removeprefix("kuroibara_backup_")[:8]
        at = datetime.fromisoformat(told.pop("created_at").replace("Z", "+00:00"))
        assert abs(at.timestamp() - stored.stat().st_mtime) < 60
        assert told == {
            "backup_name": f"{'monthly' if stored == archive else 'weekly'}_{stamp}",
            "kuroibara_version": "0.6.1",
            "includes_storage": True,
            "database_size": sizes["database.sql"],
            "storage_size": sizes["storage.tar.gz"],
        }


async def test_the_database_alone_comes_back_and_what_lies_in_storage_stays(kuroibara: Kuroibara, history: str) -> None:
    """Its second way back: a daily backup, which has the database alone. What was downloaded since has no row then."""
    assert kuroibara.init().status == 0
    kuroibara.settle(history)
    assert kuroibara.run("start", "daily").status == 0
    rows = await kuroibara.rows()
    await kuroibara.download("since")
    await query(kuroibara.url, "DELETE FROM reading_progress", "UPDATE manga SET title = 'x'", "SELECT 1")
    files = snapshot(kuroibara.storage)
    back = kuroibara.run("restore", "--in-place", "--yes", "--source", "database")
    assert back.status == 0, back
    assert await kuroibara.rows() == rows and snapshot(kuroibara.storage) == files
    assert looked_at(back) == {
        "✓ database": "5 tables and 19 rows, as in the backup",
        "✓ rows of storage": "1 file that no row of database names (manga/one-two/chapter since.cbz)",
        "✓ job daily": ANY, "✓ job weekly": ANY, "✓ job monthly": ANY,
        "✗ the service": ANY,
    }  # fmt: skip
    assert "  ☐ Log in: the library, how far each chapter was read" in back.out
    assert "Open a chapter" not in back.out


def looked_at(back: Ran) -> dict[str, object]:
    """The list, by what was looked at."""
    lines = [line.strip() for line in back.out.splitlines() if line.strip()[:1] in ("✓", "✗")]
    return {line.partition(": ")[0]: line.partition(": ")[2] for line in lines}


@pytest.mark.slow
async def test_its_four_ways_back(kuroibara: Kuroibara, history: str, tmp_path: Path) -> None:
    assert kuroibara.init().status == 0
    kuroibara.settle(history)
    assert kuroibara.run("start", "weekly").status == 0
    (archive,) = kuroibara.archives
    rows, files = await kuroibara.rows(), snapshot(kuroibara.storage)
    good = {
        "✓ database": "5 tables and 19 rows, as in the backup",
        "✓ storage": "5 files (15 kB), as in the backup",
        "✓ rows of storage": "each file has its row, and each row its file",
    }

    # Everything.
    shutil.rmtree(kuroibara.storage)
    await kuroibara.drop()
    back = kuroibara.run("restore", "--in-place", "--yes")
    assert back.status == 0 and looked_at(back).items() >= good.items(), back
    assert (await kuroibara.rows(), snapshot(kuroibara.storage)) == (rows, files)

    # The database alone: what is in storage is as it was.
    await kuroibara.download("since")
    there = snapshot(kuroibara.storage)
    back = kuroibara.run("restore", "--in-place", "--yes", "--source", "database")
    assert back.status == 0 and "✓ database" in looked_at(back)
    assert (await kuroibara.rows(), snapshot(kuroibara.storage)) == (rows, there)

    # Storage alone: the database is as it was, and rows that came since lead nowhere, which is said.
    await kuroibara.download("newer")
    kept = await kuroibara.rows()
    shutil.rmtree(kuroibara.storage)
    back = kuroibara.run("restore", "--in-place", "--yes", "--source", "storage")
    assert back.status == 0 and snapshot(kuroibara.storage) == files and await kuroibara.rows() == kept
    lost = "1 row of database whose file is missing (manga/one-two/chapter newer.cbz)"
    assert looked_at(back).items() >= {"✗ rows of storage": lost, "✓ storage": good["✓ storage"]}.items()

    # Another machine: the archive and the program are all that it has of the old one.
    carried = Path(shutil.copy(archive, tmp_path))
    await kuroibara.drop()
    new = Kuroibara(kuroibara.folder.parent / "new machine" / "kuroibara", kuroibara.postgres)
    assert new.init().status == 0
    new.settle(history)
    back = new.run("restore", str(carried), "--in-place", "--yes", "--json")
    assert back.status == 0, back
    assert (await new.rows(), snapshot(new.storage)) == (rows, files)
    told = {f"{'✓' if one['good'] else '✗'} {one['what']}": one["says"] for one in back.json["checklist"]}
    assert told.items() >= good.items() and {"✓ job weekly", f"✓ disk of {new.storage}"} <= told.keys()
    assert back.json["look_yourself"][1] == "Open a chapter: its pages appear."
    assert new.run("start", "weekly").status == 0  # and so it goes on


def timetable(config: Config, begin: datetime, end: datetime) -> Iterator[tuple[str, datetime]]:
    """What is due from then until then, in its order."""
    for name in config.jobs:
        table, at = schedule.timetable(config.job(name).cron or "", config.zone), begin
        while (due := table.next_after(at)) and due <= end:
            yield name, due
            at = due


def kept(config: Config, due: list[tuple[str, datetime]]) -> set[tuple[str, datetime]]:
    """What these settings leave of all that was due, by their own rules and after each run."""
    shelves: dict[str, list[Candidate]] = {name: [] for name in config.jobs}
    for job, at in due:
        made = Candidate(f"{job} {at:%Y%m%d}", at, partial=False, verified=True, size_bytes=1)
        shelves[job].append(made)
        policy = config.job(job).retention
        verdicts = retention.plan(shelves[job], policy, at, config.zone)
        if policy.max_in_place:
            verdicts = retention.within_place(verdicts, list(shelves.values()), policy.max_in_place, at)
        gone = {v.name for v in verdicts if not v.keep}
        shelves = {name: [b for b in shelf if b.name not in gone] for name, shelf in shelves.items()}
    return {(name, b.created_at) for name, shelf in shelves.items() for b in shelf}


@pytest.mark.slow
async def test_fourteen_months_keep_what_its_document_says(kuroibara: Kuroibara, history: str) -> None:
    """All of them by the rules; those backups that have anything to do with what is there in the end are made."""
    assert kuroibara.init().status == 0
    kuroibara.settle(history)
    config = load(kuroibara.config, kuroibara.environ)
    begin = datetime(2025, 1, 1, 12, tzinfo=UTC)
    due = sorted(timetable(config, begin, datetime(2026, 3, 10, tzinfo=UTC)), key=lambda due: due[1])
    per_job = Counter(job for job, _ in due)
    assert per_job == {"daily": 432, "weekly": 62, "monthly": 14}
    stays = kept(config, due)

    numbers = {"daily": 7, "weekly": 4, "monthly": 12}  # the table of the document
    for job, number in numbers.items():
        newest = [at for name, at in due if name == job][-number:]
        assert {at for name, at in stays if name == job} == set(newest)
    local = {(job, f"{at.astimezone(config.zone):%a %d %H:%M}") for job, at in stays}
    assert {time[-5:] for job, time in local if job == "daily"} == {"02:00"}
    assert {time[:3] + time[-6:] for job, time in local if job == "weekly"} == {"Sun 03:00"}
    assert {time[4:] for job, time in local if job == "monthly"} == {"01 04:00"}

    begun = [at for job, at in due if at not in [a for j, a in due if j == job][: -numbers[job] - 1]]
    at = [begun[0]]
    async with history_of(config) as rows:
        manager = Manager(config, rows, lambda: at[0])
        for store in manager.stores():
            store.mark(config.host, begin)
        for job, at[0] in due:
            if at[0] in begun:
                (kuroibara.storage / "newest").write_text(f"{job} {at[0]}")
                run = await manager.back_up(job, Trigger.SCHEDULE, SCHEDULER)
                assert run.status is Status.SUCCESS, run.error
        listed = await manager.listing()
    there = {(b.backup.manifest.job, b.backup.created_at) for b in listed if b.backup.manifest}
    assert there == stays
    assert {b.backup.name for b in listed} == {
        f"kuroibara_backup_{at.astimezone(config.zone):%Y%m%d_%H%M%S}.tar.gz" for _, at in stays
    }
    for archive in (b.backup for b in listed):
        assert archive.manifest
        full = archive.manifest.job != "daily"
        told = document(archive.path)
        assert ("storage.tar.gz" in named(archive.path)) == full == told["includes_storage"]
        assert (told["storage_size"] > 0) == full and told["database_size"] > 1000

    fewer = kuroibara.run("clean", "daily", "--dry-run", "--json", MAX_BACKUPS="20").json
    oldest = sorted(archive.name for archive in kuroibara.archives)[:3]
    because = "At most 20 backups may lie in this place, of all jobs together, and it is the oldest that may go."
    assert {d["name"]: d["reason"] for d in fewer if not d["keep"]} == dict.fromkeys(oldest, because)

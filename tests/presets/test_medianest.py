"""MediaNest: set up by ``init``, backed up while it works, lost, and back part by part; and no secret is told."""

from __future__ import annotations

import asyncio
import gzip
import json
import os
import shutil
import socket
import threading
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import quote
from zoneinfo import ZoneInfo

import pytest

from memu_backup.config import load
from memu_backup.retention import Policy
from tests.archives import snapshot
from tests.home import in_a_loop_of_its_own, query
from tests.presets.months import Box, contents, dated, nights
from tests.sources.conftest import DebianServer
from tests.sources.conftest import debian as debian
from tests.sources.dumps import execute
from tests.sources.redis_servers import DISKLESS, RedisServer, a_server

BERLIN = ZoneInfo("Europe/Berlin")
CANARIES = {
    "postgres_password": "c4n4ry-pg /@:p",
    "redis_password": "c4n4ry-redis-5f2",
    "jwt_secret": "c4n4ry-jwt-77aa",
    "JWT_SECRET": "c4n4ry-env-b81",
}
"""Files below secrets/, and a variable of .env."""

SCHEMA = (
    "CREATE TABLE users (id uuid PRIMARY KEY DEFAULT gen_random_uuid(), email text UNIQUE NOT NULL, role text NOT NULL"
    " DEFAULT 'USER', plex_token text, created_at timestamptz(3) NOT NULL DEFAULT '2025-01-19 18:31:00.123+00')",
    "CREATE TABLE media_requests (id serial PRIMARY KEY, user_id uuid NOT NULL REFERENCES users, title text NOT NULL,"
    " poster text UNIQUE)",
    "CREATE TABLE service_config (id serial PRIMARY KEY, service_name text UNIQUE NOT NULL, config_data jsonb,"
    " uptime numeric(5, 2))",
    "INSERT INTO users (email, role) VALUES ('größe@example.org', 'ADMIN'), (E'o\\'hara\\n@example.org', 'USER')",
    "INSERT INTO service_config (service_name, config_data, uptime) VALUES"
    " ('plex', '{\"url\": \"http://plex:32400\"}', 99.95), ('overseerr', NULL, NULL)",
)
TABLES = ("users", "media_requests", "service_config")
SOURCES = ("config", "secrets", "database", "redis", "uploads")


class MediaNest(Box):
    """On this machine itself: Postgres and Redis listen at ports that .env names, and ask for passwords."""

    def __init__(self, folder: Path, history: str, debian: DebianServer, redis: RedisServer, port: int) -> None:
        super().__init__(folder, "medianest", history)
        self.debian, self.redis = debian, redis
        self.url = (
            f"postgresql://medianest:{quote(CANARIES['postgres_password'], '')}@127.0.0.1:{debian.port}/medianest"
        )
        self.backups, self.uploads, self.secrets = (self.home / n for n in ("backups", "uploads", "secrets"))
        self.uploads.mkdir()
        self.secrets.mkdir(mode=0o700)
        for name in ("postgres_password", "redis_password", "jwt_secret"):
            (self.secrets / name).write_text(f"{CANARIES[name]}\n")
            (self.secrets / name).chmod(0o600)
        (self.home / ".env").write_text(
            f"UPLOADS_DIR=./uploads\nPOSTGRES_PORT={debian.port}\nREDIS_PORT={port}\n"
            f"JWT_SECRET={CANARIES['JWT_SECRET']}\nDATABASE_URL={self.url}\n"
        )
        for name in ("config/prometheus.yml", "infrastructure/nginx/nginx-prod.conf"):
            (self.home / name).parent.mkdir(parents=True)
            (self.home / name).write_text(f"# {name}\n")

    def settle(self) -> None:
        """What its owner changes in what ``init`` wrote, as ``check`` says."""
        text = self.file.read_text()
        assert 'path = "/var/lib/redis/dump.rdb"' in text
        self.file.write_text(
            f'log_file = "{self.folder}/log"\n' + text.replace("/var/lib/redis/dump.rdb", str(self.redis.file))
        )

    async def create(self) -> None:
        await self.create_empty()
        await query(self.url, *SCHEMA, "SELECT 1")
        self.redis.fill(200)
        for number in range(3):
            await self.upload(f"{number}")

    async def create_empty(self) -> None:
        """What its own programs set up: the account and an empty database."""
        password = CANARIES["postgres_password"]
        await execute(
            self.debian.url(),
            "DROP DATABASE IF EXISTS medianest WITH (FORCE)",
            "DROP ROLE IF EXISTS medianest",
            f"CREATE ROLE medianest LOGIN SUPERUSER PASSWORD '{password}'",
            "CREATE DATABASE medianest OWNER medianest",
            password=self.debian.password,
        )

    async def drop(self) -> None:
        self.release()
        await execute(
            self.debian.url(),
            "DROP DATABASE IF EXISTS medianest WITH (FORCE)",
            "DROP ROLE IF EXISTS medianest",
            password=self.debian.password,
        )

    async def upload(self, name: str) -> None:
        """A poster as MediaNest takes it: the file first, then its row; then a job for whoever makes it smaller."""
        file = self.uploads / name[:1] / f"{name} ä.webp"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(os.urandom(3000))
        await query(
            self.url,
            "INSERT INTO media_requests (user_id, title, poster)"
            f" SELECT id, 'Film {name}', '{file.relative_to(self.uploads)}' FROM users ORDER BY email LIMIT 1"
            " RETURNING id",
        )
        self.redis.cli("RPUSH", "bull:posters:wait", name)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Uploads all the time, and a Redis that is written to without a pause."""
        enough, made = threading.Event(), list[None]()

        def go() -> None:
            while not enough.is_set():
                made.append(asyncio.run(self.upload(f"live {len(made)}")))

        thread = threading.Thread(target=go)
        thread.start()
        try:
            with self.redis.written_to():
                yield
        finally:
            enough.set()
            thread.join()
        assert len(made) > 1

    async def rows(self) -> dict[str, list[dict[str, Any]]]:
        return {table: await query(self.url, f"SELECT * FROM {table} ORDER BY id") for table in TABLES}

    def config(self) -> Mapping[str, object]:
        names = ("config", "infrastructure")
        return {".env": (self.home / ".env").read_bytes(), **{n: contents(self.home / n) for n in names}}

    async def part(self, name: str) -> object:
        """Of a source all that there is to compare, with owners, rights and times."""
        if name == "database":
            return await self.rows()
        if name == "redis":
            return self.redis.everything()
        return self.config() if name == "config" else snapshot(self.home / name)

    async def held(self) -> dict[str, object]:
        return {name: await self.part(name) for name in SOURCES}

    async def is_lost(self, name: str) -> bool:
        if name == "database":
            return await query(self.url, "SELECT 1 FROM pg_tables WHERE tablename = 'users'") == []
        where = {"config": self.home / ".env", "redis": self.redis.file}
        return not where.get(name, self.home / name).exists()

    async def lose(self) -> None:
        """All of it, down to the accounts. The servers are installed anew, empty, and Redis does not run yet."""
        self.release()
        for path in self.home.iterdir():
            if path != self.backups:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        self.redis.end()
        self.redis.file.unlink(missing_ok=True)
        await self.create_empty()

    def back(self, backup: str, *sources: str) -> str:
        words = [word for source in sources for word in ("--source", source)]
        return self.fine("restore", backup, "--in-place", "--yes", *words).out


@pytest.fixture
async def box(folder: Path, history: str, debian: DebianServer) -> AsyncIterator[MediaNest]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    password = CANARIES["redis_password"]
    with a_server(*DISKLESS, "--port", str(port), "--requirepass", password, password=password) as redis:
        redis.start()
        made = MediaNest(folder, history, debian, redis, port)
        await made.create()
        yield made
        await made.drop()


def test_init_finds_servers_at_ports_of_this_machine_and_says_that_it_assumed_them(box: MediaNest) -> None:
    with (box.home / ".env").open("a") as env:
        env.write("BACKUP_RETENTION_DAYS=45\nBACKUP_PATH=/mnt/backup\n")
    told = box.init()
    assert (told.status, told.err) == (0, "")
    lines = told.out.splitlines()
    found, assumed = lines.index("Found:"), lines.index("Assumed, as nothing here tells:")
    assert {"  within_days: 45", f"  sources.uploads: folder {box.uploads}", "  backup_dir: /mnt/backup"} <= set(
        lines[found:assumed]
    )
    port = next(n for n in (box.home / ".env").read_text().split() if n.startswith("REDIS_PORT")).partition("=")[2]
    assert f"  sources.redis: Redis at port {port} of this machine" in lines[assumed:]
    assert f"  sources.database: Postgres at port {box.debian.port} of this machine" in lines[assumed:]
    text = box.file.read_text()
    for server in ("database", "redis"):
        part = text.partition(f"[sources.{server}]")[2].partition("[sources.")[0]
        assert "# CHECK: No container with it was found, but something listens there." in part
        assert f'password_file = "{box.secrets}/{"postgres" if server == "database" else "redis"}_password"' in part
    assert not [canary for canary in CANARIES.values() if canary in text + told.out]
    job = load(box.file, {}).job("nightly")
    assert (job.cron, job.retention, job.services) == ("0 2 * * *", Policy(within_days=45), ())
    assert job.sources == ("database", "redis", "uploads", "config", "secrets", "memu-backup")


async def test_part_by_part_and_all_together_it_comes_back_as_it_was(box: MediaNest) -> None:
    box.init()
    checked = box.run("check").out
    assert f"Redis at localhost:{box.redis.options[-3]} keeps its file at {box.redis.file}" in " ".join(checked.split())
    box.settle()
    lacking = {line[5:].split(":")[0] for line in box.run("check").out.splitlines() if line.startswith(" NO")}
    assert lacking == {"the service", "alerts"}
    box.fine("start")
    before = await box.held()
    refused = box.run("restore", "--in-place", "--yes")
    assert refused.status == 1 and "nothing" in refused.err
    looked = box.run("restore", "--in-place", "--dry-run")
    assert looked.status == 0 and "  redis: 1 file" in looked.out and "Not as it is now: " in looked.out
    assert await box.held() == before
    with box.working():
        box.fine("start")
    quiet, moving = dated(box.backups)

    # Each alone: settings and secrets first, without which the others would not be let in.
    await box.lose()
    for number, name in enumerate(SOURCES, 1):
        box.back(quiet, name)
        if name == "redis":
            box.redis.start()
        assert await box.part(name) == before[name]
        assert all([await box.is_lost(other) for other in SOURCES[number:]])

    # All together, in the two steps that its servers need.
    await box.lose()
    refused = box.run("restore", quiet, "--in-place", "--yes")
    assert f"{box.secrets}/postgres_password is not there" in refused.err and "cannot be put back" in refused.err
    assert all([await box.is_lost(name) for name in SOURCES])
    box.back(quiet, "config", "secrets")
    box.back(quiet, "database", "redis", "uploads", "memu-backup")
    box.redis.start()
    assert await box.held() == before

    # Of what moved, each part is of one moment, and each row has its file.
    await box.lose()
    box.back(moving, "config", "secrets")
    box.back(moving, "database", "redis", "uploads")
    box.redis.start()
    requests = (await box.rows())["media_requests"]
    assert len(requests) > len(before["database"]["media_requests"])  # type: ignore[index]
    assert all((box.uploads / request["poster"]).stat().st_size == 3000 for request in requests)
    counted = box.redis.cli("GET", "number")
    assert int(counted) == len(box.redis.cli("KEYS", "n:*").split()) > 0


@pytest.mark.slow
@pytest.mark.timeout(600)
async def test_ten_weeks_keep_thirty_days(box: MediaNest) -> None:
    box.init()
    box.settle()
    end = datetime.now(UTC)
    at, made = [end - timedelta(days=70)], list[date]()
    states: dict[str, dict[str, object]] = {}
    posters: dict[str, set[int]] = {}

    async def another_day(now: datetime) -> dict[str, object]:
        await box.upload(f"{now:%m%d}")
        if len(made) % 10 == 5:
            gone = f"{now - timedelta(days=3):%m%d}"
            (box.uploads / gone[:1] / f"{gone} ä.webp").unlink()
        return await box.held()

    def before(_job: str, now: datetime) -> None:
        states[f"{now.astimezone(BERLIN):%Y-%m-%d}"] = in_a_loop_of_its_own(another_day(now))

    def after(_job: str, now: datetime) -> None:
        made.append(now.astimezone(BERLIN).date())
        assert f"{now.astimezone(BERLIN):%H:%M}" == "02:00"
        assert dated(box.backups) == [str(day) for day in made if day > made[-1] - timedelta(days=30)]
        assert (box.backups / "latest").readlink() == Path(str(made[-1]))
        posters[str(made[-1])] = {p.stat().st_ino for p in (box.backups / "latest" / "uploads").rglob("*.webp")}

    async with box.managed(at) as manager:
        await nights(manager, at, end, before, after)
    kept = dated(box.backups)
    assert 69 <= len(made) <= 71 and len(kept) == 30  # a change of the clocks is among them
    shared = posters[kept[-1]] & posters[kept[-2]]
    assert len(shared) >= len(posters[kept[-2]]) - 1 > 50, "an upload that is as it was is one file in both nights"
    for day in kept:
        assert snapshot(box.backups / day / "uploads") == states[day]["uploads"]
    for day in (kept[0], kept[-1]):
        await box.lose()
        box.back(day, "config", "secrets")
        box.back(day, "database", "redis", "uploads")
        box.redis.start()
        assert await box.held() == states[day]


def unpacked(path: Path) -> bytes:
    content = path.read_bytes()
    return gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content


def leaks(content: bytes | str) -> list[str]:
    """Which of the secrets are in there, as they are or as a URL or JSON has them."""
    raw = content.encode() if isinstance(content, str) else content
    forms = {c: {c, quote(c, ""), json.dumps(c)[1:-1]} for c in CANARIES.values()}
    return [c for c, written in forms.items() if any(form.encode() in raw for form in written)]


async def test_no_secret_is_told_anywhere(box: MediaNest, history: str) -> None:
    told = [box.init()]
    box.settle()

    def tell(*argv: str, status: int | None = None) -> None:
        done = box.run(*argv)
        assert status is None or done.status == status, done
        told.append(done)

    tell("--debug", "start", status=0)
    # What goes wrong says most: another password than the server's, one whose file is empty, a server that is gone.
    for name in ("postgres_password", "redis_password"):
        file = box.secrets / name
        right = file.read_text()
        file.write_text(f"{right.strip()}{CANARIES['jwt_secret']}\n")
        tell("--debug", "start", status=1)
        tell("check", status=1)
        file.write_text("\n")
        tell("start", status=1)
        file.write_text(right)
    box.redis.end()
    tell("--debug", "start", status=1)
    tell("check", status=1)
    box.redis.start()
    tell("--debug", "start", status=3)  # whose keys are gone
    newest = dated(box.backups)[-1]
    for words in (
        ["check"], ["config", "show"], ["config", "show", "--json"],
        ["status"], ["status", "--details"], ["status", "--json"], ["status", "--brief"], ["status", "--all", "--json"],
        ["list"], ["list", "--json"], ["show", newest], ["show", newest, "--json"], ["verify", newest],
        ["find", "postgres_password"], ["find", ".env", "--json"],
        ["report", "daily"], ["report", "weekly"], ["report", "monthly"], ["report", "errors"],
        ["report", "errors", "--json"], ["log"], ["log", "--json"], ["clean", "--dry-run"],
        ["restore", newest, "--dry-run", "--json"], ["restore", newest, "--in-place", "--yes"],
        ["history", "rebuild", "--dry-run"], ["accept", newest],
    ):  # fmt: skip
        tell(*words)
    assert not {canary for done in told for canary in leaks(done.out + done.err)}
    assert "does not take the password" in "".join(done.err for done in told)

    tables = ("backup_history", "backup_audit")
    rows = [await query(history, f"SELECT row_to_json(t)::text AS row FROM {table} t") for table in tables]
    assert all(rows) and not leaks(json.dumps(rows)) and not leaks(box.file.read_text())

    # Once with a history of our own, which is saved beside the backups and in them.
    box.file.write_text(box.file.read_text().partition("\n[history]")[0])
    (box.secrets / "redis_password").rename(box.home / "aside")
    tell("start", status=1)
    (box.home / "aside").rename(box.secrets / "redis_password")
    tell("start", status=0)
    assert not {canary for done in told for canary in leaks(done.out + done.err)}
    newest = dated(box.backups)[-1]
    assert list((box.backups / newest / "memu-backup").glob("*.jsonl.gz")) and list(box.backups.glob("*.jsonl.gz"))

    # On the disk they are where they belong, which is no more than these; and it is seen that they are.
    belong = {"config/.env", "secrets/postgres_password", "secrets/redis_password", "secrets/jwt_secret",
              "memu-backup/secrets/sources.database.password_file",
              "memu-backup/secrets/sources.redis.password_file"}  # fmt: skip
    looked_at = [file for top in (box.backups, box.folder / "state", box.file.parent) for file in top.rglob("*")]
    holding = {
        file
        for file in (*looked_at, box.folder / "log")
        if file.is_file() and not file.is_symlink() and leaks(unpacked(file))
    }
    assert (box.folder / "log").stat().st_size > 1000
    assert holding == {box.backups / night / name for night in dated(box.backups) for name in belong}
    assert not [file for file in holding if "secrets" in file.parts and file.stat().st_mode & 0o077]
    assert box.backups.stat().st_mode & 0o077 == 0

"""A family's server on a Debian of its own (``tests/debian.py``), with all that is lost when it dies: photos, settings,
databases in Debian's PostgreSQL, one of SQLite, a Redis. And what there is to compare, on it and on the next one.

The network is that of the real machine, so its servers listen at sockets alone.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from tests.archives import snapshot
from tests.debian import INSTALL, Machine

SETTINGS = """
backup_dir = "/srv/backups"
host = "family-server"
[usb]
overdue_days = 0
[alerts]
fallback_file = "/etc/memu-backup/fallback"
[sources.memu-backup]
kind = "self"
[sources.photos]
kind = "directory"
path = "/srv/memu/photos"
[sources.config]
kind = "files"
paths = ["/srv/memu/.env", "/srv/memu/nginx"]
[sources.pgdata]
kind = "postgres"
url = "postgresql:///synapse?host=/run/postgresql"
databases = "all"
[sources.sonarr]
kind = "sqlite"
paths = ["/srv/sonarr/*.db"]
[sources.cache]
kind = "redis"
unixsocket = "/run/redis/s"
path = "/var/lib/redis/dump.rdb"
[jobs.nightly]
at = "02:00"
"""
SOURCES = ("config", "photos", "pgdata", "sonarr", "cache")
FALLBACK = "ntfys://not-a-real-password@127.0.0.1/family\n"

PHOTO = "2024/IMG_2041.jpg"
PHOTOS, SQLITE, BACKUPS = "/srv/memu/photos", "/srv/sonarr/sonarr.db", "/srv/backups"
DATABASES = ("synapse", "photos")

_ITS_OWN = {
    "/etc/apt/apt.conf.d/90few": 'APT::Install-Recommends "false";\n',
    "/etc/postgresql-common/createcluster.conf": "listen_addresses = ''\n",
    "/etc/systemd/system/redis-server.service.d/here.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/redis-server "
    "/etc/redis/redis.conf --supervised systemd --daemonize no --port 0 --unixsocket /run/redis/s\n",
}
_CHAT = """
CREATE ROLE synapse_user LOGIN PASSWORD 'not-a-real-one';
CREATE DATABASE synapse TEMPLATE template0 ENCODING 'UTF8' LOCALE 'C' OWNER synapse_user;
CREATE DATABASE photos OWNER root;
\\c photos
CREATE TABLE assets AS SELECT n AS id, 'photos/' || n || '.jpg' AS path FROM generate_series(1, 500) n;
\\c synapse
SET ROLE synapse_user;
CREATE TABLE events (id int PRIMARY KEY, body text NOT NULL, at timestamptz);
INSERT INTO events SELECT n, md5(n::text) || ' ä ☃', now() - n * interval '1 minute' FROM generate_series(1, 3000) n;
CREATE INDEX ON events (at);
CREATE TABLE e2e_one_time_keys_json (user_id text, key_json text);
INSERT INTO e2e_one_time_keys_json VALUES ('@anna:family.example', '{"given": "away"}');
"""
_FILL = "for i = 1, 400 do redis.call('set', 'session:' .. i, redis.sha1hex(i)) end redis.call('rpush', 'q', 1, 2, 3)"
_KEYS = (
    "local t, all = {}, redis.call('keys', '*') table.sort(all)"
    " for _, k in ipairs(all) do t[#t + 1] = k .. ' ' .. redis.sha1hex(redis.call('dump', k)) end return t"
)


def prepare(machine: Machine) -> None:
    """What is special about these Debians, before anybody types anything."""
    for path, text in _ITS_OWN.items():
        file = machine.path(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    with machine.path("/etc/hosts").open("a") as hosts:
        hosts.write(f"127.0.1.1 {machine.good('cat', '/proc/sys/kernel/hostname')}\n")
    machine.good("apt-get", "update", "-qq")
    machine.good("apt-get", "install", "-qq", "-y", "sudo")


def repository(machine: Machine, path: str) -> None:
    """Where ``git clone`` gets memu-backup from, as it is in this folder."""
    machine.clone(path)
    git = ["git", "-C", str(machine.path(path)), "-c", "user.name=t", "-c", "user.email=t@t.test"]
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "All of it"]):
        subprocess.run([*git, *words], check=True)


def set_up(machine: Machine) -> None:
    """The household and memu-backup, with a first backup, of which a copy lies on the drive."""
    prepare(machine)
    argv = ("apt-get", "install", "-qq", "-y", "postgresql", "redis-server")
    assert machine.run(*argv, timeout_s=400).status == 0
    _files(machine)
    sql(machine, "postgres", "CREATE ROLE root SUPERUSER LOGIN")
    sql(machine, "postgres", _CHAT)
    machine.good("redis-cli", "-s", "/run/redis/s", "EVAL", _FILL, "0")
    etc = machine.path("/etc/memu-backup")
    etc.mkdir(mode=0o700)
    (etc / "config.toml").write_text(SETTINGS)
    (etc / "fallback").write_text(FALLBACK)
    (etc / "fallback").chmod(0o600)
    machine.clone()
    installed = machine.run(INSTALL, "--with-packages", timeout_s=400)
    assert installed.status == 0, installed
    machine.good("memu-backup", "start")
    machine.good("mount", "/dev/drive", "/mnt")
    machine.good("memu-backup", "usb", "copy", "--to", "/mnt")
    machine.good("umount", "/mnt")


def _files(machine: Machine) -> None:
    photos = machine.path(PHOTOS)
    (photos / PHOTO).parent.mkdir(parents=True)
    (photos / PHOTO).write_bytes(b"\xff\xd8\xff" + os.urandom(300_000))
    (photos / "film.mp4").write_bytes(os.urandom(5_000_000))
    (photos / "two\nlines ä.jpg").write_bytes(os.urandom(1000))
    os.link(photos / "film.mp4", photos / "again.mp4")
    (photos / "newest").symlink_to(PHOTO)
    for path in photos.rglob("*"):
        os.chown(path, 1000, 100, follow_symlinks=False)
    (photos / "film.mp4").chmod(0o640)
    home = machine.path("/srv/memu")
    (home / ".env").write_text("DOMAIN=family.example\nSECRET=not-a-real-one\n")
    (home / ".env").chmod(0o600)
    (home / "nginx").mkdir()
    (home / "nginx" / "nginx.conf").write_text("events {}\n")
    machine.path(SQLITE).parent.mkdir()
    with closing(sqlite3.connect(machine.path(SQLITE))) as database:
        database.execute("PRAGMA journal_mode=WAL")
        database.execute("CREATE TABLE series (id INTEGER PRIMARY KEY, title TEXT)")
        database.executemany("INSERT INTO series (title) VALUES (?)", [(f"series {n}",) for n in range(700)])
        database.commit()
    os.chown(machine.path(SQLITE), 1001, 1001)


def sql(machine: Machine, database: str, statements: str) -> str:
    file = machine.path("/root/statements.sql")
    file.write_text(statements)
    script = 'exec sudo -u postgres psql -qAt -v ON_ERROR_STOP=1 -d "$0" < /root/statements.sql'
    return machine.good("sh", "-c", script, database)


@dataclass(frozen=True)
class Seen:
    """All that there is to lose: every row and who owns it, every key; bytes, owners, rights and times of the files."""

    rows: dict[str, str]
    redis: str
    series: list[tuple[object, ...]]
    photos: dict[bytes, tuple[object, ...]]
    config: dict[str, object]


def look(machine: Machine, *databases: str) -> Seen:
    """Of these databases, or of all."""
    return Seen(
        {name: row for database in databases or DATABASES for name, row in rows(machine, database).items()},
        machine.good("redis-cli", "-s", "/run/redis/s", "EVAL", _KEYS, "0"),
        _series(machine.path(SQLITE)),
        snapshot(machine.path(PHOTOS)),
        {name: snapshot(machine.path(f"/srv/memu/{name}")) for name in ("nginx", ".env")},
    )


def rows(machine: Machine, database: str) -> dict[str, str]:
    """Without the keys that were given away: they are to be forgotten."""
    of = "SELECT pg_get_userbyid(datdba), datcollate FROM pg_database WHERE datname = current_database();"
    tables = sql(machine, database, "SELECT tablename || ' ' || tableowner FROM pg_tables"
                 " WHERE schemaname = 'public' AND tablename <> 'e2e_one_time_keys_json' ORDER BY 1")  # fmt: skip
    found = {database: f"{sql(machine, database, of)}\n{tables}"}
    for table in (line.split()[0] for line in tables.splitlines()):
        found[f"{database}.{table}"] = sql(machine, database, f"COPY (SELECT * FROM {table} ORDER BY 1) TO STDOUT")
    assert len(found) > 1, found
    return found


def keys_given_away(machine: Machine) -> int:
    return int(sql(machine, "synapse", "SELECT count(*) FROM e2e_one_time_keys_json"))


def _series(file: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(f"file:{file}?mode=ro&immutable=1", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        status = file.stat()
        return [(status.st_uid, status.st_mode), *database.execute("SELECT * FROM series ORDER BY id").fetchall()]

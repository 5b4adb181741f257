"""What the tests of SQLite databases share: some as households have them, writers, and all that is in one."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from memu_backup import sqlite
from memu_backup.model import Captured
from memu_backup.sources import Source
from memu_backup.sources.sqlite import SqliteSettings, SqliteSource
from tests.archives import archive_store, back_up, returning

OWNER = 1234
SONARR = """
CREATE TABLE Series (Id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, TvdbId INTEGER NOT NULL UNIQUE,
                     Title TEXT NOT NULL COLLATE NOCASE, Path TEXT NOT NULL, Added DATETIME);
CREATE TABLE Episodes (Id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, SeriesId INTEGER NOT NULL, Overview TEXT);
CREATE UNIQUE INDEX IX_Series_Path ON Series (Path);
CREATE INDEX IX_Episodes_SeriesId ON Episodes (SeriesId);
CREATE TABLE Config (Key TEXT PRIMARY KEY, Value BLOB) WITHOUT ROWID;
"""


def of(*paths: Path | str, **more: object) -> SqliteSource:
    return SqliteSource("sonarr", SqliteSettings.model_validate({"kind": "sqlite", "paths": paths, **more}))


def sonarr(file: Path, *, wal: bool = True, series: int = 300) -> Path:
    with closing(sqlite3.connect(file)) as database:
        database.executescript(f"PRAGMA journal_mode = {'WAL' if wal else 'DELETE'};" + SONARR)
        for number in range(series):
            told = (number, f"Größe {number}", f"/tv/{number}")
            database.execute("INSERT INTO Series (TvdbId, Title, Path) VALUES (?, ?, ?)", told)
            database.execute("INSERT INTO Episodes (SeriesId, Overview) VALUES (?, ?)", (number, "o" * 300))
        database.execute("INSERT INTO Config VALUES ('ApiKey', ?)", (b"\0\xff",))
        database.commit()
    if os.geteuid() == 0:
        os.chown(file, OWNER, OWNER)
    file.chmod(0o640)
    os.utime(file, ns=(0, 1_700_000_000_123_456_789))
    return file


def rows(file: Path) -> list[str]:
    """All that is in one; of a copy in a folder of ours, as it does make files beside it."""
    with TemporaryDirectory() as folder:
        for one in (file, *sqlite.beside(file)[:2]):
            if one.exists():
                shutil.copy(one, Path(folder) / one.name)
        with closing(sqlite3.connect(Path(folder) / file.name)) as database:
            return list(database.iterdump())


def held(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*.db")):
        status = path.stat()
        attributes = (oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid, status.st_mtime_ns)
        found[path.name] = (rows(path), attributes)
    return found


async def captured_of(source: Source, stage: Path) -> Captured:
    async with source.capture(stage) as captured:
        return captured


async def backed_up(source: Source, stage: Path, tmp_path: Path) -> Path:
    """A backup of it."""
    async with source.capture(stage) as captured:
        return back_up(archive_store(tmp_path / "store"), captured)


async def returned(archive: Path, source: Source, tmp_path: Path) -> tuple[str, ...]:
    back = await returning(archive, {source.name: source}, tmp_path / "scratch")
    return await back.all_there()


WRITER = """
import os, sqlite3, sys, time
file, mode, ending, uid = sys.argv[1:5]
if int(uid) and os.geteuid() == 0:
    os.setgroups([]), os.setgid(int(uid)), os.setuid(int(uid))
database = sqlite3.connect(file, isolation_level=None, timeout=60)
database.execute(f"PRAGMA journal_mode = {mode}")
database.execute("PRAGMA synchronous = OFF")
database.execute("PRAGMA cache_size = 5")  # spills into the file before the commit
longest = 0
for number in range(int(sys.argv[5]) if len(sys.argv) > 5 else 10**9):
    begun = time.monotonic()
    database.execute("BEGIN IMMEDIATE")
    database.execute("UPDATE a SET held = held - 1, t = t + 1 WHERE id = ?", (number % 50,))
    database.execute("UPDATE b SET held = held + 1, t = t + 1 WHERE id = ?", (number * 7 % 50,))
    if number == 30 and ending == "half":
        database.execute("UPDATE filling SET content = randomblob(400)")
        print("half", flush=True)
        time.sleep(300)
    database.execute("COMMIT")
    longest = max(longest, time.monotonic() - begun)
    if number == 30 and ending == "killed":
        os.kill(os.getpid(), 9)
    if number % 50 == 0:
        print(number, round(longest, 3), flush=True)
if ending == "waits":
    print("done", flush=True)
    sys.stdin.read()
"""


def accounts(file: Path, mode: str, pages: int = 20_000) -> Path:
    """Two tables that hold 5000 together whenever one looks, in so many small pages that a copy takes steps."""
    with closing(sqlite3.connect(file)) as database:
        database.execute("PRAGMA page_size = 512")
        database.execute(f"PRAGMA journal_mode = {mode}")
        database.execute("CREATE TABLE filling (content BLOB)")
        for table in ("a", "b"):  # one at the beginning of the file, one at its end
            database.execute(f"CREATE TABLE {table} (id INTEGER PRIMARY KEY, held INT, t INT)")
            database.executemany(f"INSERT INTO {table} VALUES (?, 50, 0)", [(n,) for n in range(50)])
            if table == "a":
                database.executemany("INSERT INTO filling VALUES (?)", ((os.urandom(400),) for _ in range(pages)))
        database.commit()
    if os.geteuid() == 0:
        os.chown(file, OWNER, OWNER)
        os.chown(file.parent, OWNER, OWNER)
    return file


def total(file: Path) -> tuple[int, int]:
    """What both hold together, and how many transfers it has seen."""
    with closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (a, given), (b, taken) = (database.execute(f"SELECT sum(held), sum(t) FROM {x}").fetchone() for x in ("a", "b"))
    assert given == taken
    return a + b, given


@contextmanager
def writing(file: Path, mode: str, ending: str = "", *more: str) -> Iterator[subprocess.Popen[str]]:
    argv = [sys.executable, "-c", WRITER, str(file), mode, ending, str(OWNER), *more]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as writer:
        try:
            yield writer
        finally:
            writer.kill()


def can_still_write(file: Path, mode: str) -> None:
    """The program that it belongs to, started anew."""
    argv = [sys.executable, "-c", WRITER, str(file), mode, "", str(OWNER), "5"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)


AS_ANOTHER = """
import asyncio, json, os, pathlib, sys
from memu_backup.sources.sqlite import SqliteSettings, SqliteSource
from memu_backup.errors import SourceError
import psutil, sqlite3  # now: where they lie this user may not look
file, stage = map(pathlib.Path, sys.argv[1:])
source = SqliteSource("sonarr", SqliteSettings(kind="sqlite", paths=(file,)))
os.setgroups([]), os.setgid(4321), os.setuid(4321), os.umask(0o077)
async def main():
    try:
        async with source.capture(stage) as captured:
            print(json.dumps([str(captured.roots[0].path), captured.details["databases"][0]["integrity"]]))
    except SourceError as error:
        print(json.dumps(str(error)))
asyncio.run(main())
"""


def as_another(file: Path, home: Path) -> Any:
    """What a capture by some other user gives, with rights to read and to make files beside the database."""
    home.chmod(0o777)
    file.chmod(0o644)
    stage = Path(home.parent) / f"stage{time.monotonic_ns()}"
    stage.mkdir()
    os.chown(stage, 4321, 4321)
    done = subprocess.run(
        [sys.executable, "-c", AS_ANOTHER, file, stage], check=True, capture_output=True, text=True, timeout=60
    )
    return json.loads(done.stdout)

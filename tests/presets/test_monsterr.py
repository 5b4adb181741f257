"""Monsterr, as its own document has it: five months of a media server, its five verbs, all of it lost and back."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from tests.home import wait_until
from tests.presets.months import Box, contents, dated, given_to_its_owner, nights
from tests.receiver import Receiver
from tests.service import Service
from tests.sources.sqlite_homes import SONARR, rows

BERLIN = ZoneInfo("Europe/Berlin")
DATABASES = "Library/Application Support/Plex Media Server/Plug-in Support/Databases"
MEDIA = ("movies", "tv", "music", "books", "audiobooks")

PLEX = """
PRAGMA journal_mode = WAL;
CREATE TABLE library_sections (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, name varchar(255));
CREATE TABLE metadata_items (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, library_section_id integer,
    guid varchar(255), title varchar(255), title_sort varchar(255) COLLATE NOCASE, rating float, added_at integer(8));
CREATE INDEX index_title_sort_icu ON metadata_items (title_sort COLLATE icu_root);
CREATE INDEX index_metadata_items_on_guid ON metadata_items (guid);
CREATE TABLE metadata_item_views (id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, account_id integer, guid varchar(255));
CREATE TABLE statistics (id INTEGER PRIMARY KEY, items INTEGER NOT NULL);
INSERT INTO library_sections VALUES (1, 'Filme');
INSERT INTO statistics VALUES (1, 0);
"""
RADARR = """
PRAGMA journal_mode = WAL;
CREATE TABLE Movies (Id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, Path TEXT NOT NULL, Monitored INTEGER NOT NULL,
                     MovieMetadataId INTEGER NOT NULL UNIQUE, Added DATETIME);
CREATE TABLE MovieMetadata (Id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, TmdbId INTEGER NOT NULL UNIQUE,
                            Title TEXT COLLATE NOCASE, Overview TEXT);
CREATE TABLE History (Id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, MovieId INTEGER NOT NULL, Date DATETIME);
"""
LOGS = "CREATE TABLE Logs (Id INTEGER PRIMARY KEY AUTOINCREMENT NOT NULL, Message TEXT NOT NULL, Time DATETIME);"

PROGRAMS = """
import os, sqlite3, sys
plex, sonarr, radarr, uid = *sys.argv[1:4], int(sys.argv[4])
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
def opened(file):
    database = sqlite3.connect(file, isolation_level=None, timeout=60)
    database.create_collation("icu_root", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
    return database
def at_once(database, *statements):
    database.execute("BEGIN IMMEDIATE")
    for statement in statements:
        database.execute(*statement)
    database.execute("COMMIT")
plex, sonarr, radarr = map(opened, (plex, sonarr, radarr))
for number in range(10**9):
    guid = f"plex://{os.getpid()}/{number % 200}"
    at_once(plex, ("DELETE FROM metadata_items WHERE guid = ?", (guid,)),
            ("INSERT INTO metadata_items (library_section_id, guid, title_sort) VALUES (1, ?, ?)", (guid, "Z" + guid)),
            ("UPDATE statistics SET items = (SELECT count(*) FROM metadata_items)",))
    at_once(sonarr, ("UPDATE Episodes SET Overview = ? WHERE Id = 1", (guid * 9,)))
    at_once(radarr, ("UPDATE History SET MovieId = MovieId + 1 WHERE Id = 1",))
    if number == 20:
        print("busy", flush=True)
"""

COMPOSE = """
services:
  plex:
    image: lscr.io/linuxserver/plex:latest
    volumes: ["./config/plex:/config", "./media/movies:/movies", "./media/tv:/tv", "./media/music:/music"]
  sonarr: {image: "lscr.io/linuxserver/sonarr", volumes: ["./config/sonarr:/config", "./media/tv:/tv"]}
  radarr: {image: "lscr.io/linuxserver/radarr", volumes: ["./config/radarr:/config", "./media/movies:/movies"]}
  proxy: {image: "nginx:alpine", volumes: ["./nginx:/etc/nginx/conf.d:ro"]}
  qbittorrent: {image: "linuxserver/qbittorrent", volumes: ["./config/qbit:/config", "/srv/torrents:/downloads"]}
"""


class Monsterr(Box):
    def __init__(self, folder: Path, history: str) -> None:
        super().__init__(folder, "monsterr", history)
        config = self.home / "config"
        self.plex = config / "plex" / DATABASES / "com.plexapp.plugins.library.db"
        self.sonarr, self.radarr = config / "sonarr" / "sonarr.db", config / "radarr" / "radarr.db"
        self.databases = [self.plex, self.sonarr, self.sonarr.with_name("logs.db"), self.radarr]
        for database, schema in zip(
            self.databases, (PLEX, f"PRAGMA journal_mode = WAL;{SONARR}", LOGS, RADARR), strict=True
        ):
            database.parent.mkdir(parents=True, exist_ok=True)
            with closing(opened(database)) as made:
                made.executescript(schema)
        for name in (*(f"media/{one}" for one in MEDIA), "nginx", "config/plex", "config/sonarr", "config/radarr"):
            (self.home / name).mkdir(parents=True, exist_ok=True)
            (self.home / name / "a first one").write_bytes(os.urandom(3000))
        (self.home / "docker-compose.yml").write_text(COMPOSE)
        (self.home / ".env").write_text("PUID=1000\nPLEX_CLAIM=claim-s3cret\n")
        (config / "sonarr" / "logs").mkdir()
        (config / "sonarr" / "logs" / "sonarr.txt").write_text("not to be kept")
        given_to_its_owner(*[p for p in config.rglob("*") if "logs/" not in str(p)])
        self.backups = self.home / "backups"
        self.another_day(0)

    def another_day(self, number: int) -> None:
        """An episode came, somebody watched it; each week a film."""
        with closing(opened(self.plex)) as plex, plex:
            told = (f"plex://{number}", f"Größe {number}", f"größe {number}", number)
            plex.execute("INSERT INTO metadata_items VALUES (NULL, 1, ?, ?, ?, 7.5, ?)", told)
            plex.execute("UPDATE statistics SET items = (SELECT count(*) FROM metadata_items)")
        with closing(opened(self.sonarr)) as sonarr, sonarr:
            sonarr.execute("INSERT INTO Episodes (SeriesId, Overview) VALUES (1, ?)", ("o" * number,))
        with closing(opened(self.radarr)) as radarr, radarr:
            radarr.execute("INSERT INTO History (MovieId, Date) VALUES (?, ?)", (number, number))
        (self.home / "nginx" / "site.conf").write_text(f"# {number}\n")
        if number % 7 == 0:
            for kind in MEDIA:
                (self.home / "media" / kind / f"{number:03} ä.mkv").write_bytes(os.urandom(2000))
            gone = self.home / "media" / "tv" / f"{number - 70:03} ä.mkv"
            gone.unlink(missing_ok=True)

    @contextmanager
    def busy(self) -> Iterator[None]:
        """Its programs, which never pause."""
        owner = str(self.plex.stat().st_uid)
        argv = [sys.executable, "-c", PROGRAMS, str(self.plex), str(self.sonarr), str(self.radarr), owner]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as programs:
            try:
                assert programs.stdout and programs.stdout.readline() == "busy\n"
                yield
                assert programs.poll() is None
            finally:
                programs.terminate()

    def state(self) -> tuple[object, ...]:
        """All that is to come back."""
        folders = [contents(self.home / name) for name in ("config", "nginx", "media")]
        for name in [name for name in folders[0] if "logs/" in name or name.endswith(("-wal", "-shm", "-journal"))]:
            del folders[0][name]  # type: ignore[attr-defined]
        files = [(self.home / name).read_bytes() for name in ("docker-compose.yml", ".env")]
        return folders, files, [rows(file) for file in self.databases]

    def lose_everything(self) -> None:
        for path in self.home.iterdir():
            if path.name != "backups":
                shutil.rmtree(path) if path.is_dir() else path.unlink()


def opened(file: Path, how: str = "") -> sqlite3.Connection:
    """As Plex does it: with a collation that is known to it alone."""
    database = sqlite3.connect(f"file:{file}{how}", timeout=60, uri=True)
    database.create_collation("icu_root", lambda a, b: (a.lower() > b.lower()) - (a.lower() < b.lower()))
    return database


@pytest.fixture
def box(folder: Path, history: str) -> Monsterr:
    return Monsterr(folder, history)


def newest_of(made: list[date], count: int, period: object) -> set[date]:
    """The newest of each of the last so many days, weeks or months that have one."""
    by_period = {period(day): day for day in made}  # type: ignore[operator]
    return {by_period[one] for one in sorted(by_period)[-count:]}


def by_the_document(job: str, made: list[date]) -> list[str]:
    """7 of days, 4 of weeks, 2 of months, of what is made as often."""
    kept = newest_of(made, 2, lambda day: (day.year, day.month))
    if job != "full":
        kept |= newest_of(made, 4, lambda day: day.isocalendar()[:2])
    if job in ("config", "databases"):
        kept |= newest_of(made, 7, lambda day: day)
    return [str(day) for day in sorted(kept)]


def test_init_finds_its_programs_and_says_what_it_assumed(box: Monsterr) -> None:
    told = box.init()
    assert told.status == 0
    lines = told.out.splitlines()
    assert f"{box.home}/docker-compose.yml tells of compose project monsterr." in lines
    found, assumed = lines.index("Found:"), lines.index("Assumed, as nothing here tells:")
    plex = f"  sources.plex: SQLite databases {box.home}/config/plex/{DATABASES}/*.db"
    assert found < lines.index(plex) < assumed
    assert f"  sources.movies: folder {box.home}/media/movies" in lines[found:assumed]
    assert f"  sources.books: folder {box.home}/media/books" in lines[assumed:]
    assert any(line.startswith("  /srv/torrents: ") and "had again" in line for line in lines)
    assert "s3cret" not in told.out + box.file.read_text()
    lacking = {line[5:].split(":")[0] for line in box.run("check").out.splitlines() if line.startswith(" NO")}
    assert lacking == {"the service", "alerts"}


@pytest.mark.slow
@pytest.mark.parametrize("count", [50, 150])
async def test_months_of_it_and_all_of_it_lost(box: Monsterr, count: int) -> None:
    box.init()
    end = datetime.now(UTC)
    at, days = [end - timedelta(days=count)], [0]
    made: dict[str, list[date]] = {}
    was: dict[tuple[str, str], object] = {}

    def before(job: str, now: datetime) -> None:
        if job == "config":
            days[0] += 1
            box.another_day(days[0])
        if now > end - timedelta(days=40):
            was[job, f"{now.astimezone(BERLIN):%Y-%m-%d}"] = box.state()

    def after(job: str, now: datetime) -> None:
        made.setdefault(job, []).append(now.astimezone(BERLIN).date())
        assert dated(box.backups / job) == by_the_document(job, made[job])
        assert (box.backups / job / "latest").readlink() == Path(str(made[job][-1]))

    async with box.managed(at) as manager:
        await nights(manager, at, end, before, after)
    assert len(made["config"]) == len(made["databases"]) == count
    assert all(day.weekday() == 6 for day in made["media"]) and all(day.day == 1 for day in made["full"])
    assert len(made["media"]) in (count // 7, count // 7 + 1) and count // 31 <= len(made["full"]) <= count // 30 + 1
    as_the_document_draws_it(box)
    what_is_shared(box)
    for (job, night), state in was.items():
        if job == "databases" and night in dated(box.backups / job):
            tree = box.backups / job / night
            there = sorted(tree.rglob("*.db"))
            assert [rows(file) for file in there] == [state[2][n] for n in (0, 3, 2, 1)]  # type: ignore[index]
    the_five_verbs(box)


def as_the_document_draws_it(box: Monsterr) -> None:
    places = {"config": {"docker", "nginx", "services"}, "databases": {"plex", "sonarr", "radarr"}, "media": {*MEDIA}}
    places["full"] = set().union(*places.values())
    for job, names in places.items():
        assert {p.name for p in (box.backups / job / "latest").iterdir()} == names
    latest = box.backups / "config" / "latest"
    assert {p.name for p in (latest / "docker").iterdir()} == {"docker-compose.yml", ".env"}
    assert not [*latest.rglob("*.db"), *latest.rglob("sonarr.txt")]
    found = {str(p.relative_to(box.backups / "databases" / "latest")) for p in latest.parent.parent.joinpath(
        "databases", "latest").rglob("*.db")}  # fmt: skip
    assert found == {"plex/com.plexapp.plugins.library.db", "sonarr/sonarr.db", "sonarr/logs.db", "radarr/radarr.db"}


def what_is_shared(box: Monsterr) -> None:
    def inodes(tree: Path) -> set[int]:
        return {p.stat().st_ino for p in tree.rglob("*") if p.is_file()}

    one, other = (box.backups / "media" / night for night in dated(box.backups / "media")[-2:])
    assert len(inodes(one) & inodes(other)) > 20
    full = [box.backups / "full" / night for night in dated(box.backups / "full")]
    rest = set().union(
        *(inodes(box.backups / job) for job in ("config", "databases", "media")), inodes(box.home / "media")
    )
    assert not any(inodes(tree) & rest for tree in full)
    assert len(full) == 1 or not inodes(full[0]) & inodes(full[1])


def the_five_verbs(box: Monsterr) -> None:
    with box.busy():
        box.fine("start", "databases")
    newest = (box.backups / "databases" / "latest").resolve()
    with closing(opened(newest / "plex" / "com.plexapp.plugins.library.db", "?immutable=1")) as plex:
        assert plex.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (items,), (told,) = plex.execute("SELECT count(*) FROM metadata_items UNION ALL SELECT items FROM statistics")
        assert items == told > 20
    for job in ("config", "media"):
        box.fine("start", job)
    box.fine("start", "databases")
    status = box.fine("status").out
    assert status.count("Health: All systems healthy") == 4, status
    for job in ("config", "databases", "media", "full"):
        box.fine("verify", str(box.backups / job / "latest"))
    box.file.write_text(box.file.read_text().replace("daily = 7", "daily = 3"))
    assert box.fine("clean", "config", "--yes").out.count("goes") >= 3

    was = box.state()
    box.lose_everything()
    for job in ("config", "databases", "media"):
        box.fine("restore", str(box.backups / job / "latest"), "--in-place", "--yes")
    assert box.state() == was
    with box.busy():
        pass

    log = box.fine("log", "--limit", "500").out
    for deed in ("backup", "delete", "verify full", "clean", "put back movies"):
        assert deed in log
    reports = {"daily": "media: ", "weekly": "as they share files", "monthly": "health: healthy", "errors": "None."}
    for kind, says in reports.items():
        assert says in box.fine("report", kind).out
    shared = box.fine("list").out
    assert "New on disk" in shared and "databases on box" in shared


async def test_a_disk_that_is_too_full_is_told_before_anything_begins(box: Monsterr, receiver: Receiver) -> None:
    box.init()
    box.fine("start", "media")
    text = box.file.read_text().replace('min_free = "10 GB"', 'min_free = "900 TB"')
    box.file.write_text(f'{text}\n[alerts]\nfallback = ["json://{receiver.at}/family"]\n')
    failed = box.run("start", "media")
    assert failed.status == 1 and "too full for the next backup" in failed.err and "900.0 TB to stay" in failed.err
    assert len(dated(box.backups / "media")) == 1
    assert box.run("status").status == 1
    async with Service(box.file) as service:
        await service.ready()
        await service.until(lambda: receiver.heard)
    assert "Disk full" in json.loads(receiver.heard[0].body)["message"]


def test_a_name_that_several_have_is_told_with_their_paths(box: Monsterr) -> None:
    box.init()
    for job in ("config", "databases"):
        box.fine("start", job)
    name = wait_until(lambda: dated(box.backups / "config"))[0]
    asked = box.run("verify", name)
    assert asked.status != 0 and f"{box.backups}/config/{name}" in asked.err and f"databases/{name}" in asked.err

"""Sound Box, as its own document has it: a hundred nights, its lines word by word, and all of it lost and back."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import wave
from collections.abc import Iterator
from contextlib import closing, contextmanager
from datetime import UTC, date, datetime, timedelta
from io import BytesIO
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from memu_backup.brief import brief
from tests.home import wait_until
from tests.presets.months import Box, contents, dated, given_to_its_owner, nights
from tests.sources.sqlite_homes import rows

BERLIN = ZoneInfo("Europe/Berlin")

SCHEMA = """
PRAGMA journal_mode = WAL;
CREATE TABLE users (id TEXT PRIMARY KEY, username TEXT UNIQUE NOT NULL COLLATE NOCASE, created_at TIMESTAMP);
CREATE TABLE generations (id TEXT PRIMARY KEY, user_id TEXT REFERENCES users(id), prompt TEXT NOT NULL,
                          filename TEXT NOT NULL UNIQUE, duration REAL, plays INTEGER DEFAULT 0);
CREATE INDEX idx_generations_user ON generations(user_id);
CREATE VIRTUAL TABLE generations_fts USING fts5(prompt, content='generations', content_rowid='rowid');
CREATE TRIGGER generations_ai AFTER INSERT ON generations BEGIN
    INSERT INTO generations_fts(rowid, prompt) VALUES (new.rowid, new.prompt);
END;
CREATE TABLE stats (generations INTEGER NOT NULL);
INSERT INTO users VALUES ('u1', 'Größe', '2024-01-01');
INSERT INTO stats VALUES (0);
"""

SERVER = """
import os, sqlite3, sys
file, uid = sys.argv[1], int(sys.argv[2])
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
database = sqlite3.connect(file, isolation_level=None, timeout=60)
number = 0
while True:
    number += 1
    database.execute("BEGIN IMMEDIATE")
    told = (f"{os.getpid()}-{number}", "a storm " * 20, f"{os.getpid()}-{number}.wav")
    database.execute("INSERT INTO generations (id, user_id, prompt, filename) VALUES (?, 'u1', ?, ?)", told)
    database.execute("UPDATE stats SET generations = generations + 1")
    database.execute("COMMIT")
    if number > 200:  # of a table that is not to grow for ever
        database.execute("BEGIN IMMEDIATE")
        database.execute("DELETE FROM generations WHERE id LIKE ?", (f"{os.getpid()}-%",))
        database.execute("UPDATE stats SET generations = (SELECT count(*) FROM generations)")
        database.execute("COMMIT")
        number = 0
        print("round", flush=True)
"""


class SoundBox(Box):
    def __init__(self, folder: Path, history: str) -> None:
        super().__init__(folder, "soundbox", history)
        self.database, self.generated = self.home / "soundbox.db", self.home / "generated"
        self.backups = folder / "var" / "backups" / "soundbox"
        self.generated.mkdir()
        with closing(sqlite3.connect(self.database)) as database:
            database.executescript(SCHEMA)
        given_to_its_owner(self.home, self.generated, self.database)
        self.home.chmod(0o751)
        self.database.chmod(0o640)
        for number in range(3):
            self.generate(f"first{number}")

    def generate(self, name: str) -> None:
        """As its server does it: a sound, and its row."""
        content = BytesIO()
        with wave.open(content, "wb") as sound:
            sound.setnchannels(1)
            sound.setsampwidth(2)
            sound.setframerate(8000)
            sound.writeframes(os.urandom(8000))
        file = self.generated / f"{name}.wav"
        file.write_bytes(content.getvalue())
        given_to_its_owner(file)
        with closing(sqlite3.connect(self.database, timeout=60)) as database, database:
            told = (name, f"a bell called {name}", file.name, 0.5)
            database.execute("INSERT INTO generations VALUES (?, 'u1', ?, ?, ?, 0)", told)
            database.execute("UPDATE stats SET generations = generations + 1")

    @contextmanager
    def serving(self) -> Iterator[None]:
        """Its server, which never pauses."""
        argv = [sys.executable, "-c", SERVER, str(self.database), str(self.database.stat().st_uid)]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, text=True) as server:
            try:
                assert server.stdout and server.stdout.readline()
                yield
                assert server.poll() is None
            finally:
                server.terminate()

    def bash(self, lines: str, **dates: str) -> str:
        """Lines of the document, with other paths and dates."""
        for there, here in {"/var/backups/soundbox": self.backups, "/opt/soundbox": self.home, **dates}.items():
            lines = lines.replace(there, str(here))
        done = subprocess.run(["bash", "-euc", lines], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, (lines, done)
        return done.stdout

    def lose_everything(self) -> None:
        for path in self.home.iterdir():
            shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def box(folder: Path, history: str) -> SoundBox:
    return SoundBox(folder, history)


def fits_together(file: Path) -> None:
    """A copy of one moment: both tables count the same, and it is whole."""
    with closing(sqlite3.connect(f"file:{file}?immutable=1", uri=True)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (counted,), (told,) = database.execute("SELECT count(*) FROM generations UNION ALL SELECT * FROM stats")
        assert counted == told > 0


def by_the_document(made: list[date], today: date) -> list[str]:
    """Its program: what is as old as a cutoff stays."""
    cutoffs = today - timedelta(days=14), today - timedelta(days=74)
    return [str(d) for d in made if d >= cutoffs[0] or (d >= cutoffs[1] and d.weekday() == 6)]


def test_it_is_off_until_a_folder_is_named_and_init_says_what_it_saw(box: SoundBox) -> None:
    told = box.init()
    assert told.status == 0
    lines = told.out.splitlines()
    assert lines[0] == f"Looked for Sound Box in {box.home}. Another folder is named with --home FOLDER."
    assert lines[2].startswith("Job nightly is off, and no backup is made: backup_dir is empty.")
    assert f"  sources.database: SQLite databases {box.database}" in lines
    assert "  backup_dir (BACKUP_DIR in .env)" in lines
    assert box.run("start").status == 2
    state = box.run("status", "--brief")
    assert state.status == 1 and state.json == {
        "enabled": False,
        "backup_dir": None,
        "retention_policy": "14 days daily, then weekly for 2 months",
        "backup_time": "03:00",
        "backup_count": 0,
        "latest_backup_date": None,
        "last_backup": None,
    }
    box.environ = {"BACKUP_DIR": str(box.backups), "BACKUP_TIME": "04:30"}
    box.fine("start")
    assert "4:30 AM" in box.run("check").out
    state = box.fine("status", "--brief")
    assert (state.json["enabled"], state.json["backup_time"]) == (True, "04:30")


def test_what_its_env_says_is_taken_over(box: SoundBox) -> None:
    (box.home / ".env").write_text(f"BACKUP_DIR={box.backups}\nBACKUP_TIME=05:00\n")
    assert f"Marked {box.backups} as a place for backups." in box.init().out
    assert "# CHECK: " not in box.file.read_text()
    box.fine("start")
    assert dated(box.backups) and "5:00 AM" in box.run("check").out


@pytest.mark.slow
async def test_a_hundred_nights_and_all_of_it_lost(box: SoundBox) -> None:
    (box.home / ".env").write_text(f"BACKUP_DIR={box.backups}\n")
    box.init()
    end = datetime.now(UTC)
    at, made = [end - timedelta(days=100)], list[date]()
    was: dict[str, tuple[object, object]] = {}

    def before(_job: str, now: datetime) -> None:
        box.generate(f"{now:%m%d}")
        if len(made) % 10 == 5:
            (box.generated / f"{now - timedelta(days=3):%m%d}.wav").unlink()
        was[f"{now.astimezone(BERLIN):%Y-%m-%d}"] = rows(box.database), contents(box.generated)

    def after(_job: str, now: datetime) -> None:
        made.append(now.astimezone(BERLIN).date())
        assert now.astimezone(BERLIN).hour == 3
        assert dated(box.backups) == by_the_document(made, made[-1])
        assert (box.backups / "latest").readlink() == Path(str(made[-1]))

    async with box.managed(at) as manager:
        await nights(manager, at, end, before, after)
        state = brief(manager.config, await manager.standing.reports())
    assert len(made) == 100 and 21 <= len(dated(box.backups)) <= 23
    last = state.pop("last_backup")
    assert state == {
        "enabled": True,
        "backup_dir": str(box.backups),
        "retention_policy": "14 days daily, then weekly for 2 months",
        "backup_time": "03:00",
        "backup_count": len(dated(box.backups)),
        "latest_backup_date": str(made[-1]),
    }
    assert last == {"time": f"{made[-1]}T03:00:00", "status": "success", "size_mb": last["size_mb"], "error": None}
    assert last["size_mb"] > 0.5

    for night in dated(box.backups):
        fits_together(box.backups / night / "soundbox.db")
        assert (rows(box.backups / night / "soundbox.db"), contents(box.backups / night / "generated")) == was[night]
    the_documents_looks(box)
    the_documents_ways_back(box, was, [str(d) for d in made])
    in_place(box, was[str(made[-1])])
    by_hand(box)


def the_documents_looks(box: SoundBox) -> None:
    newest, count = dated(box.backups)[-1], len(dated(box.backups))
    assert f"latest -> {newest}" in box.bash("ls -la /var/backups/soundbox/latest")
    listed = box.bash("ls -la /var/backups/soundbox/")
    assert all(night in listed for night in dated(box.backups))
    assert "symbolic link" in box.bash("stat /var/backups/soundbox/latest")
    together = box.bash("du -sh /var/backups/soundbox/").split()
    each = box.bash("du -sh /var/backups/soundbox/*/").splitlines()
    assert len(together) == 2 and len(each) == count
    assert box.bash("du -sh --apparent-size /var/backups/soundbox/")
    took = int(box.bash("du -sk /var/backups/soundbox/").split()[0])
    alone = [int(box.bash(f"du -sk /var/backups/soundbox/{night}").split()[0]) for night in dated(box.backups)]
    assert took < sum(alone) / 3, "unchanged sounds are one file in all of them"
    ok = box.bash('sqlite3 /var/backups/soundbox/latest/soundbox.db "PRAGMA integrity_check;"')
    assert ok == "ok\n"
    there = box.bash("find /opt/soundbox/generated -type f | wc -l")
    assert there == box.bash("find /var/backups/soundbox/latest/generated -type f | wc -l") != "0\n"
    jq = subprocess.run(
        ["jq", ".last_backup.status"], input=box.fine("status", "--brief").out, capture_output=True, text=True
    )
    assert jq.stdout == '"success"\n'
    box.fine("verify")


def the_documents_ways_back(box: SoundBox, was: dict[str, tuple[object, object]], made: list[str]) -> None:
    rights = box.home.stat()
    box.lose_everything()
    box.bash("rsync -a /var/backups/soundbox/latest/ /opt/soundbox/")
    assert {p.name for p in box.home.iterdir()} == {"soundbox.db", "generated"}
    assert (rows(box.database), contents(box.generated)) == was[made[-1]]
    found = box.home.stat()
    assert (found.st_mode, found.st_uid, found.st_gid) == (rights.st_mode, rights.st_uid, rights.st_gid)
    assert box.database.stat().st_uid == rights.st_uid and stat.S_IMODE(box.database.stat().st_mode) == 0o640
    with box.serving():
        pass

    sunday = dated(box.backups)[1]
    box.lose_everything()
    box.bash("rsync -a /var/backups/soundbox/2024-01-10/ /opt/soundbox/", **{"2024-01-10": sunday})
    assert (rows(box.database), contents(box.generated)) == was[sunday]

    box.lose_everything()
    box.bash("cp /var/backups/soundbox/latest/soundbox.db /opt/soundbox/")
    assert rows(box.database) == was[made[-1]][0]


def in_place(box: SoundBox, was: tuple[object, object]) -> None:
    box.lose_everything()
    box.fine("restore", "--in-place", "--yes")
    assert (rows(box.database), contents(box.generated)) == was


def by_hand(box: SoundBox) -> None:
    """Its manual cleanup, its copy elsewhere, and a backup while its server works."""
    gone = dated(box.backups)[3]
    box.bash("rm -rf /var/backups/soundbox/2024-01-05/", **{"2024-01-05": gone})
    box.fine("clean", "--yes")
    with box.serving():
        box.fine("start")
    newest = wait_until(lambda: (box.backups / "latest").resolve())
    fits_together(newest / "soundbox.db")
    assert not [p for p in newest.iterdir() if p.name not in ("soundbox.db", "generated")]
    assert gone not in dated(box.backups)
    box.fine("verify")
    box.bash("rsync -az /var/backups/soundbox/ backup-server:/soundbox-backups/".replace(
        "backup-server:/soundbox-backups/", str(box.folder / "elsewhere")
    ))  # fmt: skip
    assert dated(box.folder / "elsewhere") == dated(box.backups)

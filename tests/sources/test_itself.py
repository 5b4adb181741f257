"""Our own settings, secrets, login and history: whole, as of one moment, and back on a machine that has none of it."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from memu_backup import config, sqlite
from memu_backup.config_shown import show
from memu_backup.errors import DamagedArchive, SourceError
from memu_backup.files import write_atomically
from memu_backup.history import History
from memu_backup.sources import House, Lacking, Source, kinds
from memu_backup.sources.itself import SelfSettings, SelfSource
from memu_backup.work import Stop
from tests.archives import Unpacked, archive_store, back_up
from tests.contracts.sources import SourceContract
from tests.sources.dumps import Captures, summary

CANARY = "c4n4ry"
TABLE = '[sources.ours]\nkind = "self"\n'


def make_store(folder: Path, rows: int = 200) -> Path:
    """A database such as the bot keeps its keys in."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    file = folder / "@bot:family.test.db"
    with closing(sqlite3.connect(file)) as database:
        database.execute("CREATE TABLE sessions (id INTEGER PRIMARY KEY, pickle BLOB)")
        database.executemany("INSERT INTO sessions (pickle) VALUES (?)", [(os.urandom(900),) for _ in range(rows)])
        database.commit()
    file.chmod(0o600)
    return file


def login(device: str) -> bytes:
    return json.dumps({"user_id": "@bot:family.test", "device_id": device, "token": CANARY}).encode()


def keep(file: Path, content: str | bytes) -> None:
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_atomically(file, content if isinstance(content, bytes) else content.encode())


def household(folder: Path) -> Path:
    keep(folder / "etc" / "config.toml", TABLE)
    keep(folder / "secret" / "url", f"postgresql://me:{CANARY}@h/db\n")
    keep(folder / "secret" / "password", CANARY)
    keep(folder / "state" / "alarms.json", "{}")
    keep(folder / "state" / "chat" / "account.json", login("DEVICE"))
    keep(folder / "state" / "chat" / "identity.json", CANARY)
    keep(folder / "state" / "chat" / "heard.json", "{}")
    make_store(folder / "state" / "chat" / "keys" / "DEVICE")
    return folder


def ours(folder: Path, history: History | None = None) -> SelfSource:
    secrets = {
        "history.url_file": folder / "secret" / "url",
        "sources.db.password_file": folder / "secret" / "password",
    }
    house = House(folder / "etc" / "config.toml", folder / "state", secrets, history)
    return SelfSource("ours", SelfSettings(kind="self").at_home(house))


def all_of(folder: Path) -> dict[str, object]:
    """Every file with its rights; of a database what is in it."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        if not path.is_file():
            continue
        content: object = path.read_bytes()
        if sqlite.is_database(path):
            with closing(sqlite3.connect(path)) as database:
                content = list(database.iterdump())
        rights = [oct(stat.S_IMODE(p.stat().st_mode)) for p in (path, path.parent)]
        found[str(path.relative_to(folder))] = (content, rights)
    return found


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir(mode=0o700)
    return tmp_path / "stage"


class TestItselfIsASource(SourceContract):
    def household(self, folder: Path) -> Path:
        return household(folder)

    def make(self, data: Path) -> Source:
        return ours(data)

    def take_away(self, data: Path) -> None:
        (data / "etc" / "config.toml").unlink()

    def lose(self, data: Path) -> None:
        for name in ("etc", "secret", "state"):
            shutil.rmtree(data / name)
            (data / name).mkdir(mode=0o700)

    def held(self, data: Path) -> object:
        return all_of(data)

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        given, there = all_of(unpacked.target / "ours"), all_of(data)
        names = {
            "config.toml": "etc/config.toml",
            "secrets/history.url_file": "secret/url",
            "secrets/sources.db.password_file": "secret/password",
            "alarms.json": "state/alarms.json",
            **{name: f"state/{name}" for name in given if name.startswith("chat/")},
        }
        assert given == {name: there[home] for name, home in names.items()}
        assert set(names.values()) == set(there)
        for path in (unpacked.target / "ours").rglob("*"):
            assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600), path

    async def test_what_goes_away_after_the_check_makes_the_backup_partial(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        """Not here: what was copied stays."""
        async with source.capture(stage) as captured:
            self.take_away(data)
            assert back_up(archive_store(tmp_path / "store"), captured).exists()


def test_the_kind_is_found_by_its_name() -> None:
    assert kinds()["self"] is SelfSource


# --- what it is ------------------------------------------------------------------------------------------------------


def test_every_file_that_holds_a_secret_is_found_by_the_setting_that_names_it(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(
        'state_dir = "state"\nlog_file = "log"\n[history]\nurl_file = "url"\npassword_file = "password"\n'
        '[alerts]\nfallback_file = "fallback"\n'
        '[sources.db]\nkind = "postgres"\nurl_file = "db url"\npassword_file = "db password"\n'
        '[sources.ldap]\nkind = "command"\ndump = ["slapcat"]\nenv_file = "env"\n'
        '[sources.photos]\nkind = "directory"\npath = "photos"\n'
        f'{TABLE}[jobs.nightly]\nheartbeat_file = "beat"\n'
    )
    found = config.load(file, {})
    assert found.secret_files() == {
        "history.url_file": tmp_path / "url",
        "history.password_file": tmp_path / "password",
        "alerts.fallback_file": tmp_path / "fallback",
        "sources.db.url_file": tmp_path / "db url",
        "sources.db.password_file": tmp_path / "db password",
        "sources.ldap.env_file": tmp_path / "env",
        "jobs.nightly.heartbeat_file": tmp_path / "beat",
    }
    assert show(found)["sources"]["ours"] == {
        "kind": "self",
        "place": "ours/",
        "needs_stop": False,
        "guard": 0.5,
        "before_start": [],
        "after_restore": [],
        "look_yourself": [],
    }
    source = found.source("ours")
    assert source.lives() == f"{file} and {tmp_path / 'state'}"


async def test_a_secret_that_is_not_there_makes_the_backup_partial_and_lacking_settings_fail_it(
    tmp_path: Path, stage: Path
) -> None:
    home = household(tmp_path / "home")
    (home / "secret" / "url").unlink()
    (warning,) = await ours(home).check()
    assert isinstance(warning, Lacking)
    assert warning == (
        f"{home}/secret/url, which history.url_file names, is not there, so it is not in the backup (source ours)."
    )
    async with ours(home).capture(stage) as captured:
        assert captured.missing == (warning,)
    (home / "etc" / "config.toml").unlink()
    with pytest.raises(SourceError, match="is not there, so source ours cannot be backed up"):
        await ours(home).check()


async def test_nothing_secret_is_told_of_it(tmp_path: Path, stage: Path) -> None:
    async with ours(household(tmp_path / "home")).capture(stage) as captured:
        assert CANARY not in repr(captured)
        assert captured.details["homes"]["chat/"] == str(tmp_path / "home" / "state" / "chat")


# --- the chat's login ------------------------------------------------------------------------------------------------


async def test_a_login_is_never_taken_without_its_keys(tmp_path: Path, stage: Path) -> None:
    home = household(tmp_path / "home")
    store = next((home / "state" / "chat" / "keys" / "DEVICE").iterdir())
    whole = store.read_bytes()
    for wrong in (b"", b"not a database", whole[:100] + b"\xff" * 4000):
        store.write_bytes(wrong)
        (stage / "one").mkdir(mode=0o700)
        async with ours(home).capture(stage / "one") as captured:
            (lost,) = captured.missing
            assert "The chat's login is not in the backup (source ours):" in lost
            assert captured.details["databases"] == []
        there = {p.name for p in (stage / "one" / "chat").iterdir()}
        assert there == {"identity.json", "heard.json"}
        shutil.rmtree(stage / "one")
    (home / "state" / "chat" / "account.json").write_bytes(b"{")
    store.write_bytes(whole)
    async with ours(home).capture(stage) as captured:
        assert "account.json is damaged" in captured.missing[0]
        assert not (stage / "chat" / "keys").exists()


async def test_a_machine_without_a_chat_has_none_in_its_backup(tmp_path: Path, stage: Path) -> None:
    home = household(tmp_path / "home")
    shutil.rmtree(home / "state")
    async with ours(home).capture(stage) as captured:
        assert captured.missing == () and not (stage / "chat").exists()
        assert await SelfSource.verify(summary(captured), Captures(captured)) == []


async def test_signed_in_anew_meanwhile_the_login_still_has_its_own_keys(tmp_path: Path, stage: Path) -> None:
    """Over and over another login takes the place of the former, whose keys go; as ``chat login`` does it."""
    home = household(tmp_path / "home")
    chat, stop, number = home / "state" / "chat", threading.Event(), 0

    def sign_in_again() -> None:
        nonlocal number
        while not stop.is_set():
            number += 1
            make_store(chat / "keys" / f"D{number}", rows=20)
            write_atomically(chat / "account.json", login(f"D{number}"))
            shutil.rmtree(chat / "keys" / f"D{number - 1}", ignore_errors=True)

    thread = threading.Thread(target=sign_in_again)
    thread.start()
    pairs = 0
    try:
        for turn in range(200):
            if turn >= 10 and pairs and number > 10:
                break
            folder = stage / str(turn)
            folder.mkdir(mode=0o700)
            async with ours(home).capture(folder) as captured:
                account = folder / "chat" / "account.json"
                keys = [p.parent.name for p in folder.rglob("*.db")]
                if account.exists():
                    assert keys == [json.loads(account.read_bytes())["device_id"]]
                    assert await SelfSource.verify(summary(captured), Captures(captured)) == []
                    pairs += 1
                else:
                    assert keys == [] and captured.missing
    finally:
        stop.set()
        thread.join()
    assert pairs and number > 10


WRITER = """
import os, sqlite3, sys, time
database = sqlite3.connect(sys.argv[1], isolation_level=None)
database.execute("PRAGMA cache_size = 5")  # spills into the file before the commit
number = 0
while True:
    number += 1
    database.execute("BEGIN IMMEDIATE")
    for table in ("a", "b"):
        database.executemany(f"INSERT INTO {table} VALUES (?, ?)", [(number, os.urandom(800)) for _ in range(40)])
    if "leave" in sys.argv:
        print("half", flush=True)
        time.sleep(300)
    database.execute("COMMIT")
    print(number, flush=True)
    time.sleep(0.01)
"""


@pytest.fixture
def written(tmp_path: Path) -> Path:
    file = tmp_path / "in use.db"
    with closing(sqlite3.connect(file)) as database:
        for table in ("a", "b"):
            database.execute(f"CREATE TABLE {table} (number INT, content BLOB)")
    return file


def counts(file: Path) -> list[Any]:
    with closing(sqlite3.connect(file)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [database.execute(f"SELECT count(*), max(number) FROM {table}").fetchone() for table in ("a", "b")]


def test_a_database_is_copied_as_of_one_moment_while_another_process_writes_to_it(
    written: Path, tmp_path: Path
) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, written], stdout=subprocess.PIPE, text=True)
    assert writer.stdout
    try:
        seen = set()
        for turn in range(20):
            before = int(writer.stdout.readline())  # written some time ago: lines wait in the pipe
            sqlite.copy(written, tmp_path / f"copy{turn}", Stop())
            a, b = counts(tmp_path / f"copy{turn}")
            assert a == b and a[0] == a[1] * 40 and a[1] >= before
            assert stat.S_IMODE((tmp_path / f"copy{turn}").stat().st_mode) == 0o600
            seen.add(a[1])
        assert len(seen) > 10
    finally:
        writer.kill()
        writer.communicate()


def test_what_a_killed_writer_left_half_done_is_not_in_the_copy(written: Path, tmp_path: Path) -> None:
    writer = subprocess.Popen([sys.executable, "-c", WRITER, written, "leave"], stdout=subprocess.PIPE, text=True)
    assert writer.stdout and writer.stdout.readline() == "half\n"
    writer.kill()
    writer.communicate()
    assert written.with_name("in use.db-journal").stat().st_size > 0 and written.stat().st_size > 20_000
    sqlite.copy(written, tmp_path / "copy", Stop())
    assert counts(tmp_path / "copy") == [(0, None), (0, None)]


async def test_a_copy_that_is_not_whole_is_found(tmp_path: Path, stage: Path) -> None:
    async with ours(household(tmp_path / "home")).capture(stage) as captured:
        (path,) = captured.details["databases"]
        told = summary(captured)
        content = Captures(captured).path(path).read_bytes()

        class Spoiled:
            def content(self, _: str) -> Iterator[bytes]:
                yield content[:8192] + b"\xff" * (len(content) - 8192)

        assert await SelfSource.verify(told, Spoiled()) == [
            f"{path} is not whole, so the bot could not go on with its login."
        ]
    assert sqlite.is_whole(iter([content]), Stop())
    with pytest.raises(DamagedArchive, match="does not say which of its files are databases"):
        await SelfSource.verify(summary(type(captured)("x", "self", "x/", (), "")), Spoiled())

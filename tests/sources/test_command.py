"""What a program writes: all of it, or a sentence; and back through another one, where nothing is in the way."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sqlite3
import sys
import time
import tracemalloc
from collections.abc import Callable
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import ValidationError

from memu_backup.errors import DiskFull, RestoreError, SourceError
from memu_backup.postgres.connection import count_rows
from memu_backup.postgres.programs import programs
from memu_backup.sources import Source, kinds
from memu_backup.sources.command import CommandSettings, CommandSource
from tests.archives import Unpacked, archive_store, back_up, needs_root, program, returning
from tests.contracts.sources import SourceContract
from tests.disks import loop_disk
from tests.home import Home
from tests.sources.dumps import Captures, execute

CANARY = "c4n4ry"
NAP = f"300.{os.getpid()}"
"""By which a sleeping child of these tests is known."""


def command(*dump: str, **more: Any) -> CommandSource:
    return CommandSource("diary", CommandSettings.model_validate({"kind": "command", "dump": dump, **more}))


async def captured(source: CommandSource, stage: Path) -> bytes:
    async with source.capture(stage) as found:
        return Captures(found).path(source.place).read_bytes()


async def refused(source: CommandSource, stage: Path) -> str:
    with pytest.raises(SourceError) as met:
        await captured(source, stage)
    told = str(met.value)
    assert "diary" in told and told.isprintable() and len(told) < 600
    return told


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    (tmp_path / "stage").mkdir(mode=0o700)
    return tmp_path / "stage"


class TestCommandIsASource(SourceContract):
    """An SQLite database, by way of its own program."""

    def household(self, folder: Path) -> Path:
        program("sqlite3")
        with closing(sqlite3.connect(folder / "home.db")) as database:
            database.execute("CREATE TABLE events (id INTEGER PRIMARY KEY, what TEXT, raw BLOB)")
            rows = [(f"it's Größe {n}\nline 2", os.urandom(50)) for n in range(2000)]
            database.executemany("INSERT INTO events (what, raw) VALUES (?, ?)", rows)
            database.commit()
        (folder / "export").write_text(f"#!/bin/sh\nexec sqlite3 -readonly '{folder}/home.db' .dump\n")
        (folder / "export").chmod(0o700)
        return folder

    def make(self, data: Path) -> Source:
        database = str(data / "home.db")
        back = {"restore": ["sqlite3", database], "empty": ["test", "!", "-e", database]}
        return command(str(data / "export"), place="smart home/home.sql", **back)

    def take_away(self, data: Path) -> None:
        (data / "export").unlink()

    def lose(self, data: Path) -> None:
        (data / "home.db").unlink()

    def held(self, data: Path) -> object:
        with closing(sqlite3.connect(data / "home.db")) as database:
            return list(database.iterdump())

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        given = unpacked.target / "smart home" / "home.sql"
        assert given.stat().st_mode & 0o777 == 0o600
        with closing(sqlite3.connect(":memory:")) as database:
            database.executescript(given.read_text())
            assert list(database.iterdump()) == self.held(data)

    async def test_what_goes_away_after_the_check_makes_the_backup_partial(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        """Not here: what was written out stays, whatever becomes of the program."""
        async with source.capture(stage) as found:
            self.take_away(data)
            assert back_up(archive_store(tmp_path / "store"), found).exists()


def test_the_kind_is_found_by_its_name() -> None:
    assert kinds()["command"] is CommandSource


@pytest.mark.parametrize(
    ("table", "says"),
    [
        ({"dump": []}, "at least 1"),
        ({"dump": [""]}, "at least 1"),
        ({"dump": "slapcat"}, "tuple"),
        ({"dump": ["a"], "place": "ldap/"}, "is one file and no folder"),
        ({"dump": ["a"], "restore": ["b"]}, "needs empty beside it"),
        ({"dump": ["a"], "empty": ["b"]}, "no effect without restore"),
        ({"dump": ["a"], "stall_s": 0}, "greater than or equal to 1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(table: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        CommandSettings.model_validate({"kind": "command", **table})


def test_it_stands_as_one_file_and_may_need_the_stop_which_window_all_does_not_decide(tmp_path: Path) -> None:
    from memu_backup.config import load

    def standing_still(more: str, job: str) -> frozenset[str]:
        table = f'[sources.ldap]\nkind = "command"\ndump = ["slapcat"]\n{more}'
        service = '[services.x]\nkind = "command"\nstop = ["true"]\nstart = ["true"]\n'
        file = tmp_path / "config.toml"
        file.write_text(
            f'{table}[sources.photos]\nkind = "directory"\npath = "x"\nneeds_stop = true\n{service}'
            f'[jobs.nightly]\nconsistency = "stop"\n{job}'
        )
        config = load(file, {})
        assert config.source("ldap").place == "ldap"
        return config.job("nightly").needs_stop

    assert standing_still("", "") == {"photos"}
    assert standing_still("", 'window = "all"') == {"photos"}
    assert standing_still("needs_stop = true\n", "") == {"photos", "ldap"}


async def test_a_postgres_that_a_command_dumps_and_takes_back_has_every_row(
    database: str, copy: str, stage: Path, tmp_path: Path
) -> None:
    await execute(
        database,
        'CREATE TABLE "größe" (id serial PRIMARY KEY, body text)',
        'INSERT INTO "größe" (body) SELECT repeat(md5(g::text), 20) FROM generate_series(1, 20000) g',
    )
    pg_dump, psql = str(programs() / "pg_dump"), str(programs() / "psql")
    (tmp_path / "environment").write_text("# where it is\nPGOPTIONS=-c statement_timeout=0\n\n PGPORT=5432 \n")
    (tmp_path / "empty").write_text(
        f"#!/bin/sh\nfound=$('{psql}' -Atc 'SELECT count(*) FROM pg_tables WHERE schemaname = $$public$$' '{copy}')"
        ' || exit 2\n[ "$found" = 0 ]\n'
    )
    (tmp_path / "empty").chmod(0o700)
    source = command(
        pg_dump, f"--dbname={database}", restore=[psql, "-q", "-v", "ON_ERROR_STOP=1", copy],
        empty=[str(tmp_path / "empty")], env_file=tmp_path / "environment", place="diary.sql",
    )  # fmt: skip
    assert await source.check() == []
    async with source.capture(stage) as found:
        archive = back_up(archive_store(tmp_path / "store"), found)
    back = await returning(archive, {"diary": source}, tmp_path / "scratch")
    await back.carry_out()
    assert await count_rows(copy) == await count_rows(database) == {'public."größe"': 20000}
    with pytest.raises(RestoreError, match="is there already"):
        await returning(archive, {"diary": source}, tmp_path / "scratch")


async def test_a_long_stream_comes_whole_and_is_not_held_in_memory(stage: Path) -> None:
    script = (
        "import hashlib, os, sys; h = hashlib.sha256(); b = os.urandom(1 << 20)\n"
        "for n in range(300): c = n.to_bytes(4) + b; h.update(c); sys.stdout.buffer.write(c)\n"
        "sys.stderr.write('x' * 30_000_000); open(sys.argv[1], 'w').write(h.hexdigest())"
    )
    tracemalloc.start()
    try:
        async with command(sys.executable, "-c", script, str(stage.parent / "hash")).capture(stage) as found:
            peak_bytes = tracemalloc.get_traced_memory()[1]
            path = Captures(found).path("diary")
            with path.open("rb") as file:
                assert hashlib.file_digest(file, "sha256").hexdigest() == (stage.parent / "hash").read_text()
    finally:
        tracemalloc.stop()
    assert path.stat().st_size == 300 * ((1 << 20) + 4)
    assert peak_bytes < 20_000_000


async def test_one_that_dies_in_the_middle_is_no_backup(stage: Path) -> None:
    told = await refused(command("sh", "-c", "head -c 5000000 /dev/zero; kill -9 $$"), stage)
    assert "was ended by SIGKILL" in told and "older backups are untouched" in told


async def test_one_that_fails_after_its_output_is_no_backup_and_its_last_words_are_told(stage: Path) -> None:
    words = "printf 'first\\n\\033[31mno such\\tentry.\\n\\n' >&2"
    told = await refused(command("sh", "-c", f"echo all of it; {words}; exit 3"), stage)
    assert "sh failed with exit status 3 (its last words: \N{REPLACEMENT CHARACTER}[31mno such" in told
    (stage / "diary").unlink()
    told = await refused(
        command("sh", "-c", "echo all of it; head -c 100000 /dev/zero | tr '\\0' x >&2; exit 3"), stage
    )
    assert "…" in told


async def test_one_that_writes_nothing_is_no_backup(stage: Path) -> None:
    assert "wrote nothing at all" in await refused(command("true"), stage)


async def test_one_that_hangs_is_given_up_with_its_children_and_one_that_is_slow_is_not(stage: Path) -> None:
    begun = time.monotonic()
    told = await refused(command("sh", "-c", f"echo a; sleep {NAP} & sleep {NAP}", stall_s=1), stage)
    assert "wrote nothing more for 1 s and was ended" in told and "stall_s" in told
    (stage / "diary").unlink()
    assert "wrote nothing more" in await refused(command("sleep", NAP, stall_s=1), stage)
    assert time.monotonic() - begun < 10
    assert _napping() == []
    (stage / "diary").unlink()
    slow = command("sh", "-c", "for n in 1 2 3 4 5; do echo $n; sleep 0.5; done", stall_s=1)
    assert await captured(slow, stage) == b"1\n2\n3\n4\n5\n"


async def test_what_a_child_of_it_still_writes_belongs_to_it(stage: Path) -> None:
    late = command("sh", "-c", "echo first; (sleep 1; echo last) & exit 0")
    assert await captured(late, stage) == b"first\nlast\n"
    (stage / "diary").unlink()
    told = await refused(command("sh", "-c", f"echo first; sleep {NAP} & exit 0", stall_s=1), stage)
    assert "wrote nothing more" in told and _napping() == []


async def test_cancelled_it_leaves_no_process_behind(stage: Path) -> None:
    running = asyncio.create_task(captured(command("sh", "-c", f"echo a; sleep {NAP} & sleep {NAP}"), stage))
    async with asyncio.timeout(10):
        while len(_napping()) < 2:
            await asyncio.sleep(0.01)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert _napping() == []


@needs_root
async def test_a_full_disk_is_told_as_such_though_the_program_ends_well(tmp_path: Path) -> None:
    """A program that does not look whether its output was taken must not pass for whole."""
    careless = "head -c 30000000 /dev/zero 2>/dev/null; exit 0"
    source = command("sh", "-c", f"{careless} & sleep {NAP}")
    with loop_disk("ext4", tmp_path, 16 << 20) as disk, pytest.raises(DiskFull, match="holds the backups is full"):
        await captured(source, disk)
    assert _napping() == []


async def test_a_program_that_is_not_there_is_told_before_anything_begins(tmp_path: Path, stage: Path) -> None:
    (tmp_path / "notes").write_text("no program")
    for program_ in ("no-such-program", "./here", str(tmp_path / "notes"), str(tmp_path)):
        source = command(program_)
        with pytest.raises(SourceError, match="is not there, or this user may not run it, so source diary cannot"):
            await source.check()
    (tmp_path / "notes").chmod(0o700)
    assert "cannot be run" in await refused(command(str(tmp_path / "notes")), stage)
    (warning,) = await command("true", restore=["no-such-program"], empty=["true"]).check()
    assert "could not be put back" in warning and "sources.diary.restore" in warning


async def test_its_environment_comes_from_a_file_and_is_never_told(tmp_path: Path, stage: Path) -> None:
    file = tmp_path / "env"
    source = command("sh", "-c", 'echo "$PASSWORD"; tr "\\0" " " </proc/$$/cmdline', env_file=file)
    assert f"{file} cannot be read (No such file" in await refused(source, stage)
    for wrong in (f"PASSWORD=1\n{CANARY}\n", f"PASSWORD=1\n{CANARY} x=1\n"):
        file.write_text(wrong)
        told = await refused(source, stage)
        assert f"Line 2 of {file}" in told and CANARY not in told
    file.write_text(f'PASSWORD={CANARY} "=$x\n')
    async with source.capture(stage) as found:
        first, rest = Captures(found).path("diary").read_text().split("\n", 1)
        assert first == f'{CANARY} "=$x' and CANARY not in rest
        assert CANARY not in repr(found)
    assert "PASSWORD" not in os.environ


# --- the way back ----------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path: Path, database: str) -> Callable[[str], Home]:
    """A household of one command, backed up once; ``back`` are the settings for its way back."""

    def made(back: str) -> Home:
        home = Home(tmp_path / "home", database)
        home.configure(sources=f'[sources.diary]\nkind = "command"\ndump = ["echo", "a diary"]\n{back}')
        ran = home.run("start")
        assert ran.status == 0, ran
        return home

    return made


def test_put_back_it_comes_to_the_program_as_it_was_given(home: Callable[[str], Home], tmp_path: Path) -> None:
    there = tmp_path / "there"
    at = home(f'restore = ["dd", "status=none", "of={there}"]\nempty = ["test", "!", "-e", "{there}"]\n')
    ran = at.run("restore", "--in-place", "--yes")
    assert ran.status == 0, ran
    assert "diary is back at where dd puts it" in ran.out
    assert there.read_text() == "a diary\n"
    ran = at.run("restore", "--in-place", "--yes")
    assert ran.status == 1 and "is there already, says test" in ran.err and "nothing was changed" in ran.err


def test_without_a_way_back_it_is_said_where_the_file_is_to_be_had(home: Callable[[str], Home]) -> None:
    at = home("")
    ran = at.run("restore", "--in-place", "--yes")
    assert ran.status == 1 and "--source diary --to FOLDER" in ran.err
    assert at.run("restore", "--source", "diary", "--to", "found", "--yes").status == 0
    assert (at.folder / "found" / "diary").read_text() == "a diary\n"


def test_where_nobody_can_see_what_is_there_nothing_is_put_back(home: Callable[[str], Home], tmp_path: Path) -> None:
    there = tmp_path / "there"
    at = home(f'restore = ["dd", "of={there}"]\nempty = ["sh", "-c", "echo away >&2; exit 2"]\n')
    ran = at.run("restore", "--in-place", "--yes")
    assert ran.status == 1 and "cannot be seen: sh failed with exit status 2 (its last words: away)" in ran.err
    assert not there.exists()


def test_a_way_back_that_fails_is_told_with_what_may_have_stayed(home: Callable[[str], Home]) -> None:
    at = home('restore = ["sh", "-c", "read line; echo it broke >&2; kill -9 $$"]\nempty = ["true"]\n')
    ran = at.run("restore", "--in-place", "--yes")
    assert ran.status == 1 and "was ended by SIGKILL (its last words: it broke)" in ran.err
    assert "may have stayed" in ran.err
    assert ("put back", "failed") in [(line["action"], line["outcome"]) for line in at.audit()]
    assert list((at.folder / "state" / "returning").iterdir()) == []


def test_killed_while_it_is_dumped_the_run_leaves_nothing(home: Callable[[str], Home]) -> None:
    at = home("")
    before = at.archives
    at.configure(sources=f'[sources.diary]\nkind = "command"\ndump = ["sh", "-c", "echo a; sleep {NAP}"]\n')
    running = at.started("start")
    deadline = time.monotonic() + 20
    while not _napping() and time.monotonic() < deadline:
        time.sleep(0.02)
    running.send_signal(signal.SIGTERM)
    running.communicate(timeout=30)
    assert at.archives == before and at.leftovers() == [] and _napping() == []


def _napping() -> list[int]:
    """The processes that nap for these tests, whoever their parent is by now."""
    found = []
    for one in psutil.process_iter():
        with suppress(psutil.Error):
            if one.cmdline() == ["sleep", NAP] and one.status() != psutil.STATUS_ZOMBIE:
                found.append(one.pid)
    return found

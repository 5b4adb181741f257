"""The files of a backup and the rows of its own database, compared as of one moment, whatever names they have."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from memu_backup.crosscheck import CrossCheck, Unlike, phrase, sentence
from memu_backup.errors import SourceError
from memu_backup.model import SourceSummary
from memu_backup.postgres import names
from memu_backup.postgres.connection import Address
from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from tests.home import Home, Ran, a_database, end, in_a_loop_of_its_own, query, wait_until

SHAPES = {"archive": ("archive", "library/"), "packed": ("archive", "library.tar.gz"), "tree": ("tree", "library/")}
WAITING = "SELECT path FROM pg_advisory_xact_lock_shared(7), files"


@pytest.fixture
def library(postgres: PostgresServer) -> Iterator[str]:
    """The database of a library, in which nothing is yet."""
    with a_database(postgres) as url:
        in_a_loop_of_its_own(
            query(url, "CREATE TABLE files (path text)", "CREATE TABLE covers (path text)", "SELECT 1")
        )
        yield url


class Household:
    """A library of files with their rows, and a job that backs up both."""

    def __init__(self, home: Home, url: str) -> None:
        self.home, self.url = home, url
        self.files, self.covers = home.folder / "library", home.folder / "covers"
        self.files.mkdir()
        self.covers.mkdir()

    def configure(self, asked: str = "SELECT path FROM files", shape: str = "archive") -> None:
        kind, place = SHAPES[shape]

        def folder(name: str, place: str, asked: str) -> str:
            rule = f'{{ source = "database", query = """{asked}""", below = "/app/" }}'
            return f'[sources.{name}]\nkind = "directory"\npath = "{name}"\nplace = "{place}"\nlisted_by = {rule}\n'

        self.home.configure(
            f'[stores.local]\nkind = "{kind}"\n',
            sources=folder("library", place, asked)
            + folder("covers", "covers/", "SELECT path FROM covers")
            + f'[sources.database]\nkind = "postgres"\nurl = "{self.url}"\nplace = "database.sql"\n',
        )

    def put(self, name: str, *, row: bool = True, file: bool = True) -> None:
        if row:
            self.sql(f"INSERT INTO files VALUES ('/app/{name}') RETURNING 1")
        if file:
            (self.files / name).parent.mkdir(parents=True, exist_ok=True)
            (self.files / name).write_text(name)

    def sql(self, *statements: str) -> list[dict[str, Any]]:
        return in_a_loop_of_its_own(query(self.url, *statements))

    def compared(self) -> dict[str, Any]:
        """What the newest backup tells of its library."""
        sources = self.home.run("show", "--json").json["metadata"]["sources"]
        (told,) = [source for source in sources if source["name"] == "library"]
        return {"warnings": told["warnings"], **told["details"].get("listed_by", {})}

    def shown(self) -> list[str]:
        return [line.strip() for line in self.home.run("show").out.splitlines()]

    def details(self) -> str:
        (line,) = [line for line in self.home.run("status", "--details").out.splitlines() if " Library: " in line]
        return line.strip()


@pytest.fixture
def house(tmp_path: Path, database: str, library: str) -> Household:
    made = Household(Home(tmp_path / "home", database), library)
    made.configure()
    for name in ("a/1.cbz", "a/2.cbz", "b/3.cbz"):
        made.put(name)
    return made


def asked(house: Household, query: str = "SELECT path FROM files") -> dict[str, str]:
    """What a backup tells of the question."""
    return {"source": "database", "database": Address.parse(house.url).database, "query": query, "below": "/app/"}


def warned(begun: Ran) -> list[str]:
    """What stands below how it went."""
    return [line.strip() for line in begun.err.splitlines() if line.startswith("  ")]


def go_on() -> None:
    """Nobody has told it to stop."""


def settle() -> None:
    """Files made before are older than what comes now, by the clock of files."""
    time.sleep(0.02)


def test_where_each_has_the_other_that_is_told(house: Household) -> None:
    settle()
    begun = house.home.run("start")
    assert (begun.status, warned(begun)) == (0, [])
    whole = {"without_file": 0, "without_row": 0, "first_without_file": [], "first_without_row": []}
    assert house.compared() == {"warnings": [], **asked(house), **whole}
    assert "library: each file has its row in database, and each row its file" in house.shown()
    assert house.details().startswith("Library: 3 files, newest from ") and ";" not in house.details()


@pytest.mark.parametrize("shape", SHAPES)
def test_what_rows_and_files_lack_of_each_other_is_told_and_costs_nothing(house: Household, shape: str) -> None:
    house.configure(shape=shape)
    (house.files / "a" / "1.cbz").unlink()
    house.put("gone.cbz", file=False)
    for name in ("stray.tmp", "pages/1.jpg", "pages/2.jpg", "b/4.cbz"):
        house.put(name, row=False)
    house.sql("INSERT INTO files VALUES ('/app/pages/') RETURNING 1")  # a row may name a folder
    settle()
    begun = house.home.run("start")
    missing = "Not in this backup: 2 files of library that database names (a/1.cbz, gone.cbz)."
    assert (begun.status, warned(begun)) == (0, [missing])
    assert house.compared() == {
        "warnings": [missing],
        **asked(house),
        "without_file": 2,
        "without_row": 2,
        "first_without_file": ["a/1.cbz", "gone.cbz"],
        "first_without_row": ["b/4.cbz", "stray.tmp"],
    }
    assert {missing, "library: 2 files that no row of database names (b/4.cbz, stray.tmp)"} <= set(house.shown())
    # The room reads these lines, too: no names.
    assert house.details().endswith("; 2 that database names are missing; 2 that no row of database names")
    (row,) = house.home.rows()
    assert (row["status"], json.loads(row["warnings"])) == ("success", [missing])
    assert house.home.run("verify").status == 0


@contextmanager
def asking(house: Household) -> Iterator[subprocess.Popen[str]]:
    """A backup that has its snapshot, and does not go on to read files before this ends."""
    house.configure(WAITING)
    settle()
    psql = [str(programs() / "psql"), "-XAtq", house.url]
    holder = subprocess.Popen(psql, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert holder.stdin and holder.stdout
    try:
        holder.stdin.write("SELECT pg_advisory_lock(7);\n\\echo locked\n")
        holder.stdin.flush()
        assert "locked" in (holder.stdout.readline().strip(), holder.stdout.readline().strip())
        started = house.home.started("start")
        wait_until(lambda: house.sql("SELECT 1 FROM pg_locks WHERE locktype = 'advisory' AND NOT granted"))
        yield started
    finally:
        holder.kill()
        holder.communicate()


def test_what_comes_after_the_snapshot_is_not_told_and_what_goes_is(house: Household) -> None:
    (house.home.folder / "old").write_text("brought along with its time")
    os.utime(house.home.folder / "old", (1, 1))
    with asking(house) as started:
        house.put("new.cbz")
        house.put("b/no row yet.cbz", row=False)
        shutil.copy2(house.home.folder / "old", house.files / "old")
        (house.files / "a" / "2.cbz").unlink()
        # Asked by the next question, which is still of the same moment.
        house.sql("INSERT INTO covers VALUES ('/app/no file.jpg') RETURNING 1")
    out, err = started.communicate(timeout=60)
    assert started.returncode == 0, (out, err)
    assert house.compared() == {
        "warnings": ["Not in this backup: 1 file of library that database names (a/2.cbz)."],
        **asked(house, WAITING),
        "without_file": 1,
        "without_row": 0,
        "first_without_file": ["a/2.cbz"],
        "first_without_row": [],
    }
    assert "covers: each file has its row in database, and each row its file" in house.shown()


@pytest.mark.slow
def test_told_to_stop_while_it_asks_nothing_stays(house: Household) -> None:
    with asking(house) as started:
        ended = end(started, signal.SIGTERM)
    assert ended.status != 0 and ended.seconds < 5
    assert not house.home.archives and not house.home.leftovers()
    assert house.home.rows()[0]["error_code"] == "interrupted"


@pytest.mark.slow
def test_a_query_that_fails_is_one_sentence_and_neither_spoils_the_dump_nor_the_next_question(
    house: Household,
) -> None:
    house.configure("SELECT file_path FROM chapters")
    (house.covers / "stray.jpg").touch()
    settle()
    begun = house.home.run("start")
    assert begun.status == 0
    (warning,) = warned(begun)
    assert warning.startswith("The files of library could not be compared with the rows of database that name them")
    assert 'relation "chapters" does not exist' in warning and warning.endswith(
        "If it is the query, correct sources.library.listed_by."
    )
    assert house.compared() == {"warnings": [warning], **asked(house, "SELECT file_path FROM chapters")}
    assert "covers: 1 file that no row of database names (stray.jpg)" in house.shown()
    sources = {s["name"]: s for s in house.home.run("show", "--json").json["metadata"]["sources"]}
    assert sources["database"]["details"]["databases"][0]["tables"] == {"public.covers": 0, "public.files": 3}
    assert house.home.run("verify").status == 0


def test_without_its_database_in_the_same_backup_nothing_is_compared(house: Household) -> None:
    config = house.home.folder / "config.toml"
    config.write_text(config.read_text().replace('at = "02:00"', 'at = "02:00"\nsources = ["library"]'))
    (house.files / "a" / "1.cbz").unlink()
    assert warned(house.home.run("start")) == []
    assert house.compared() == {"warnings": []}


# --- once more, when the backup is tried -----------------------------------------------------------------------------

IN_A_TRIAL = "SELECT path FROM files WHERE current_database() LIKE 'memu_backup_drill%'"
"""A question that brings nothing in the night."""


@pytest.mark.parametrize("shape", [pytest.param("archive", marks=pytest.mark.slow), "packed"])
def test_a_restore_test_looks_each_row_that_came_back_up_in_the_same_backup(house: Household, shape: str) -> None:
    house.configure(IN_A_TRIAL, shape)
    house.put("gone.cbz", file=False)
    assert house.home.run("start").status == 0
    assert house.compared()["without_file"] == 0
    tried = house.home.run("drill", "--json")
    assert tried.status == 1
    assert tried.json[0]["problems"] == ["library: The backup lacks 1 file that database names (gone.cbz)."]
    assert tried.json[0]["whole_in"] == ""


def test_what_a_backup_has_told_of_when_it_was_made_fails_no_restore_test(house: Household) -> None:
    house.put("gone.cbz", file=False)
    assert house.home.run("start").status == 0
    assert house.compared()["without_file"] == 1
    tried = house.home.run("drill", "--json")
    assert (tried.status, tried.json[0]["outcome"], tried.json[0]["unchecked"]) == (0, "whole", [])


# --- any names -------------------------------------------------------------------------------------------------------


def compared(rows: list[str], there: list[tuple[str, bool]], *, below: str = "", first: int = 10**6) -> Unlike:
    """``there`` says of each path whether it is a file."""
    with (
        tempfile.TemporaryDirectory() as folder,
        CrossCheck(Path(folder), of="library", source="database", query="", below=below) as check,
    ):
        check.begin()
        check.name(rows)
        for path, is_file in there:
            check.see(path, is_file=is_file)
        found = check.unlike(first, go_on)
    assert found
    return found


def test_hostile_names_are_compared_and_told_on_one_line() -> None:
    odd = ["two\nlines", "zero\x01one\x02", "\udcff\udcfe raw", "../../etc/passwd", "a!b", "a/b", "a", "größe", " "]
    files = [(name, True) for name in odd if name != "a"] + [("a", False)]
    assert compared(["/x", *[f"/x/{name}" for name in odd]], files, below="/x/") == Unlike(0, 0, (), ())
    found = compared(["/etc/passwd", *odd], [("other\nfile", True)])
    assert found.without_file == 10 and set(found.first_without_file) == {"etc/passwd", *odd}
    assert found.first_without_row == ("other\nfile",)


async def test_bytes_in_a_row_are_a_name_as_the_disk_has_it(library: str, tmp_path: Path) -> None:
    asked = "SELECT '\\xfffe2f61'::bytea UNION ALL SELECT '\\x74776f0a'::bytea UNION ALL SELECT NULL"
    with CrossCheck(tmp_path, of="library", source="database", query=asked, below="") as check:
        check.begin()
        await names.answer(Address.parse(library), [check])
        for path in ("\udcff\udcfe/a", "two\n"):
            check.see(path, is_file=True)
        assert check.unlike(10, go_on) == Unlike(0, 0, (), ())


def test_it_finds_what_sets_in_memory_find() -> None:
    """Names that sort around the slash and the line's end, folders in folders, rows for both, each several times."""
    for seed in range(300):
        dice = random.Random(seed)
        paths = [
            "/".join(dice.choices(["a", "a!", "a\n", "a\x01", "é", "\udcff"], k=dice.randint(1, 4))) for _ in range(30)
        ]
        rows, there = dice.choices(paths, k=12), {p: dice.random() < 0.7 for p in dice.choices(paths, k=20)}

        def has_row(path: str, rows: list[str] = rows) -> bool:
            return any(path == row or path.startswith(f"{row}/") for row in rows)

        without_file = {row for row in rows if row not in there}
        without_row = {path for path, is_file in there.items() if is_file and not has_row(path)}
        found = compared(rows, list(there.items()))
        assert set(found.first_without_file) == without_file and set(found.first_without_row) == without_row, seed
        assert (found.without_file, found.without_row) == (len(without_file), len(without_row))


def test_more_than_fits_in_memory_is_sorted_on_the_disk_and_the_first_ten_are_named() -> None:
    number = 100_000
    rows = [f"{n:06}/{n % 7}.cbz" for n in range(number, 0, -1)]
    there = [(row, True) for row in rows if row[:6] > "000012"] + [("000000", True)]
    found = compared(rows, there, first=10)
    assert (found.without_file, found.without_row) == (12, 1)
    assert found.first_without_file == tuple(f"{n:06}/{n % 7}.cbz" for n in range(1, 11))


def test_a_disk_that_takes_no_more_costs_the_comparison_alone(tmp_path: Path) -> None:
    with CrossCheck(tmp_path / "gone", of="library", source="database", query="", below="") as check:
        check.begin()
        check.name(map(str, range(200_000)))
        assert check.told(go_on)[1] == [
            "The files of library could not be compared with the rows of database that name them, which costs no "
            "backup. They could not be written down (No such file or directory). If it is the query, correct "
            "sources.library.listed_by."
        ]
        with pytest.raises(SourceError):
            check.unlike(1, go_on)


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ("INSERT INTO files VALUES (1) RETURNING path", "cannot execute INSERT in a read-only transaction"),
        ("SELECT 1; DROP TABLE files", "cannot insert multiple commands"),
        ("SELECT 1 / (6000 - n) FROM generate_series(1, 7000) n", "division by zero"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "went away in the middle"),
        ("SELECT", None),
    ],
)
async def test_whatever_a_query_does_nothing_is_changed_and_nothing_comes_out(
    library: str, tmp_path: Path, asked: str, why: str | None
) -> None:
    with CrossCheck(tmp_path, of="library", source="database", query=asked, below="") as check:
        check.begin()
        await names.answer(Address.parse(library), [check])
        details, warnings = check.told(go_on)
    assert ("without_file" in details["listed_by"]) == (why is None)
    assert [why in warning for warning in warnings if why] == ([True] if why else [])
    assert in_a_loop_of_its_own(query(library, "SELECT count(*) FROM files")) == [{"count": 0}]


async def test_a_query_that_takes_too_long_is_given_up_by_the_server_too(library: str, tmp_path: Path) -> None:
    with CrossCheck(tmp_path, of="library", source="database", query="SELECT pg_sleep(30)", below="") as check:
        check.begin()
        begun = time.monotonic()
        await names.answer(Address.parse(library), [check], limit_s=0.5)
        assert time.monotonic() - begun < 5
        with pytest.raises(SourceError, match=r"statement timeout|has not answered the query within"):
            check.unlike(1, go_on)
    still = "SELECT 1 FROM pg_stat_activity WHERE query LIKE 'SELECT pg_sleep(30)' AND state = 'active'"
    wait_until(lambda: not in_a_loop_of_its_own(query(library, still)), 5)


def test_what_a_strangers_backup_says_of_it_is_fit_to_be_shown() -> None:
    def told(**said: object) -> SourceSummary:
        details = {"listed_by": {"source": "d", "without_file": 0, "without_row": 0, "first_without_row": [], **said}}
        return SourceSummary("n", "directory", "n/", 0, 0, 0, 0, "", "", "", details=details)

    odd = told(source="\x1b[31m", without_row=2**62, first_without_row=["\x1b[31m\n" * 200] * 10**5)
    assert sentence(odd).isprintable() and len(sentence(odd)) < 3000 and phrase(odd).isprintable()
    for wrong in (told(without_row=-1), told(without_row="x"), told(first_without_row=3), told(source=None)):
        assert sentence(wrong) == phrase(wrong) == ""


CODE = """
import asyncio, re, sys
from pathlib import Path
from memu_backup.crosscheck import CrossCheck, Unlike
from memu_backup.postgres import names
from memu_backup.postgres.connection import Address

def peak():
    # Not ru_maxrss, which counts what the process was that has started this one.
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) // 1024

MANY = 1_000_000
name = "/app/storage/manga/a series with a rather long name {}/chapter {}.cbz"
asked = "SELECT format('" + name.replace("{}", "%s") + f"', n % 5003, n) FROM generate_series(1, {MANY}) n"
with CrossCheck(Path(sys.argv[2]), of="library", source="database", query=asked, below="/app/storage/") as check:
    check.begin()
    import asyncpg
    before = peak()
    asyncio.run(names.answer(Address.parse(sys.argv[1]), [check]))
    for n in range(2, MANY + 2):
        check.see(name.format(n % 5003, n).removeprefix("/app/storage/"), is_file=True)
    found = check.unlike(1, lambda: None)
assert (found.without_file, found.without_row) == (1, 1), found
print(peak() - before)
"""


@pytest.mark.slow
def test_a_million_rows_and_a_million_files_are_compared_in_little_memory(library: str, tmp_path: Path) -> None:
    """Which as sets in memory take some 300 MB."""
    told = subprocess.run([sys.executable, "-c", CODE, library, tmp_path], capture_output=True, text=True, timeout=300)
    assert told.stderr == "" and int(told.stdout) < 80

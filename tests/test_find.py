"""Finding a file: in which nights it is, which versions differ, and whether what is said of it is true."""

from __future__ import annotations

import io
import os
import re
import shlex
import subprocess
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memu_backup import find
from memu_backup.audit import SCHEDULER
from memu_backup.errors import UsageError
from memu_backup.find import Found, fits
from memu_backup.formats.reader import ArchiveReader
from memu_backup.formats.tar import Type
from memu_backup.model import Backup, Progress, Trigger
from memu_backup.postgres.server import PostgresServer
from memu_backup.stores import around
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, ignore, odd_tree, tree
from tests.home import ODD_NAMES, PROGRAM, Home, a_database, in_a_loop_of_its_own, managed

BEGIN = datetime(2026, 3, 2, 1, 0, tzinfo=UTC)
PHOTO, RETOUCHED = b"\xff\xd8\xff" + os.urandom(5_000), b"\xff\xd8\xff" + os.urandom(6_000)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Home]:
    """Six nights: a photo as it was, twice; retouched; as it was, twice; gone. Tests only look at it."""
    with a_database(postgres) as url:
        home = Home(tmp_path_factory.mktemp("find") / "home", url)
        for name in ODD_NAMES:
            (home.photos / name).write_bytes(b"odd")
        in_a_loop_of_its_own(_six_nights(home))
        yield home


async def _six_nights(home: Home) -> None:
    photo = home.photos / "2024" / "IMG_2041.jpg"
    photo.parent.mkdir()
    now = [BEGIN]
    home.mark()
    async with managed(home, now) as manager:
        for content in (PHOTO, PHOTO, RETOUCHED, PHOTO, PHOTO, None):
            if content is None:
                photo.unlink()
            else:
                photo.write_bytes(content)
                os.utime(photo, (1_700_000_000, 1_700_000_000))
            await manager.back_up("nightly", Trigger.SCHEDULE, SCHEDULER)
            now[0] += timedelta(days=1)


def search(backups: list[Backup], pattern: str) -> Found:
    return find.find([(around(b.path), b) for b in backups], pattern, ignore, Stop())


def test_each_version_is_told_with_the_backups_that_hold_it(home: Home) -> None:
    found = home.run("find", "IMG_2041.jpg", "--json")
    assert found.status == 0
    (photo,) = found.json["found"]
    assert (photo["path"], photo["in_newest"]) == ("photos/2024/IMG_2041.jpg", False)
    assert (photo["host"], photo["job"]) == ("family-server", "nightly")
    nights = [str(a) for a in home.archives]
    assert [(v["size_bytes"], v["backups"]) for v in photo["versions"]] == [
        (len(PHOTO), [nights[4], nights[3], nights[1], nights[0]]),
        (len(RETOUCHED), [nights[2]]),
    ]
    assert (found.json["unread"], found.json["any_case"], found.json["more"]) == ([], False, False)


def test_a_person_reads_which_nights_and_how_to_bring_it_back_and_that_works(home: Home, tmp_path: Path) -> None:
    found = home.run("find", "img_2041.JPG")
    assert (found.status, found.err) == (0, "")
    assert re.fullmatch(
        r"Nothing fits img_2041.JPG to the letter; but for capitals these do:\n"
        r"photos/2024/IMG_2041.jpg - not in the newest backup\n"
        r"  5 kB, changed 14 Nov 2023 11:13 PM: memu_backup_20260306_020000 "
        r"\(in 2 backups, 5 Mar( 2026)? to 6 Mar( 2026)?; and 2 more\)\n"
        r"  6 kB, changed 14 Nov 2023 11:13 PM: memu_backup_20260304_020000 \(in 1 backup, 4 Mar( 2026)?\)\n"
        r"To bring one back: memu-backup restore memu_backup_20260306_020000 --path photos/2024/IMG_2041.jpg "
        r"--to FOLDER\n",
        found.out,
    )
    bring_back(home, found.out, tmp_path / "back")
    assert (tmp_path / "back" / "photos" / "2024" / "IMG_2041.jpg").read_bytes() == PHOTO


def bring_back(home: Home, out: str, to: Path) -> None:
    """Type what the last line says."""
    command = out.splitlines()[-1].removeprefix("To bring one back: ").removesuffix("FOLDER")
    assert command.startswith("memu-backup restore ")
    settings = ["--config", str(home.folder / "config.toml")]
    argv = [PROGRAM, *settings, *shlex.split(command)[1:], str(to), "--yes"]
    subprocess.run(argv, check=True, capture_output=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ODD_NAMES)
def test_odd_names_do_the_terminal_no_harm_and_come_back_by_what_is_said(home: Home, tmp_path: Path, name: str) -> None:
    found = home.run("find", name)
    assert found.status == 0 and "\x1b" not in found.out and "\x07" not in found.out
    assert len(found.out.splitlines()) == 3
    bring_back(home, found.out, tmp_path / "back")
    assert (tmp_path / "back" / "photos" / name).read_bytes() == b"odd"


def test_a_name_that_nothing_fits_is_told_with_what_to_try(home: Home) -> None:
    for pattern, wider in (("Oma.jpg", "*Oma*"), ("photos/2023/**/Oma.jpg", "*Oma*"), ("*Oma*", "*part*")):
        nothing = home.run("find", pattern)
        assert (nothing.status, nothing.out) == (1, "")
        assert nothing.err.startswith(f"Nothing in any of 6 backups fits {pattern}. Try ")
        assert nothing.err.endswith(f": memu-backup find '{wider}'\n")
    assert home.run("find", "Oma.jpg", "--json").json["found"] == []


def test_globs_and_folders_are_those_of_restore_and_one_backup_can_be_asked_alone(home: Home) -> None:
    def paths(*argv: str) -> set[str]:
        return {f["path"] for f in home.run("find", *argv, "--json").json["found"]}

    everything = {"photos/2024/IMG_2041.jpg", "photos/2026/lake.jpg", "photos/2026/tent.jpg"}
    assert paths("photos/202?/**") == paths("photos/2*.jpg") == everything
    assert paths("photos/2026") == everything - {"photos/2024/IMG_2041.jpg"}
    assert paths("IMG*", "--backup", "latest") == set()
    assert paths("IMG*", "--backup", "memu_backup_20260302") == {"photos/2024/IMG_2041.jpg"}
    assert paths("IMG*", "--backup", str(home.archives[0])) == {"photos/2024/IMG_2041.jpg"}
    for wrong in ("", "/"):
        nothing = home.run("find", wrong)
        assert nothing.status == 2 and nothing.err.startswith("Say what to look for")


def test_without_settings_a_file_can_be_asked(home: Home, tmp_path: Path) -> None:
    argv = [PROGRAM, "--config", str(tmp_path / "none.toml"), "find", "IMG*", "--backup", str(home.archives[0])]
    found = subprocess.run(argv, capture_output=True, text=True, check=True)
    command = found.stdout.splitlines()[-1]
    assert f"memu-backup restore {home.archives[0]} --path" in command


def test_before_the_first_backup_it_is_said_how_to_make_one(tmp_path: Path, database: str) -> None:
    nothing = Home(tmp_path / "home", database).run("find", "IMG_2041.jpg")
    assert nothing.status == 2 and "There is no backup in" in nothing.err


# --- backups that cannot be read, or not by an index -----------------------------------------------------------------


@pytest.fixture
def two(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    for _ in range(2):
        assert home.run("start").status == 0
    return home


def test_a_damaged_backup_is_named_and_the_others_are_searched(two: Home) -> None:
    older, newer = two.archives
    with ArchiveReader(newer) as reader:
        index = reader.size_bytes - reader.index_bytes
    with newer.open("r+b") as file:
        file.seek(index + 100)
        file.write(b"rot" * 20)
    found = two.run("find", "lake.jpg")
    assert found.status == 3
    assert f"{newer.name} could not be looked into, or not to its end: " in found.err
    assert f"restore {older.name.removesuffix('.tar.gz')} --path photos/2026/lake.jpg" in found.out
    assert "not in the newest" not in found.out  # nobody can say
    newer.write_bytes(b"no archive at all")
    assert two.run("find", "lake.jpg", "--json").json["unread"][0]["path"] == str(newer)
    assert two.run("find", "Oma.jpg").status == 1


def foreign(path: Path, names: Iterator[str]) -> None:
    with tarfile.open(path, "w:gz", compresslevel=1) as archive:
        for name in names:
            entry = tarfile.TarInfo(name)
            entry.size, entry.mtime = 3, 1_600_000_000
            archive.addfile(entry, io.BytesIO(b"old"))


def test_an_archive_that_another_program_made_is_read_to_its_end(two: Home) -> None:
    foreign(two.backups / "memu_backup_20200101_020000.tar.gz", iter(["./photos/1999/beach.jpg", "photos/lake.jpg"]))
    (beach,) = two.run("find", "beach.jpg", "--json").json["found"]
    assert (beach["path"], beach["host"]) == ("photos/1999/beach.jpg", None)
    found = two.run("find", "lake.jpg")
    assert found.status == 0
    assert "photos/2026/lake.jpg (nightly on family-server)\n" in found.out
    assert "photos/lake.jpg\n  3 bytes, changed 13 Sep 2020 2:26 PM: memu_backup_20200101_020000 (in 1" in found.out


@pytest.mark.slow
def test_of_very_many_only_so_many_are_kept_and_that_is_said(two: Home) -> None:
    foreign(two.backups / "memu_backup_20200101_020000.tar.gz", (f"{n}.txt" for n in range(find.MOST + 5)))
    found = two.run("find", "*.txt", "--json").json
    assert (len(found["found"]), found["more"]) == (find.MOST, True)
    assert "These are the first 10,000; there are more." in two.run("find", "*.txt").err


# --- several jobs, machines and places -------------------------------------------------------------------------------


def test_what_several_jobs_and_machines_hold_under_one_path_is_told_apart(two: Home) -> None:
    weekly = '[jobs.weekly]\nstore = "far"\n[stores.far]\nkind = "archive"\ndir = "far"\n'
    two.configure('store = "local"\n', top=f'{weekly}[stores.local]\nkind = "archive"\n')
    assert two.run("start", "weekly").status == 0
    found = two.run("find", "photos/2026/lake.jpg")
    assert found.status == 0, found.err
    assert "photos/2026/lake.jpg (nightly on family-server)\n" in found.out
    assert "photos/2026/lake.jpg (weekly on family-server)\n" in found.out
    assert "not in the newest" not in found.out


# --- nothing is passed over ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Backup:
    if os.geteuid() != 0:
        pytest.skip("the odd tree needs root")
    folder = tmp_path_factory.mktemp("odd")
    store = archive_store(folder / "store")
    back_up(store, tree(odd_tree(folder / "photos")))
    return store.backups()[0]


@pytest.fixture(scope="module")
def paths(odd: Backup) -> list[str]:
    with ArchiveReader(odd.path) as reader:
        return [e.path for e in reader.index() if e.type is not Type.DIRECTORY]


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_is_typed_finds_just_what_fits(odd: Backup, paths: list[str], data: st.DataObject) -> None:
    """The lines of the index that are not even parsed hold nothing that was wanted."""
    path = data.draw(st.sampled_from(paths))
    begin = data.draw(st.integers(0, len(path) - 1))
    piece = path[begin : begin + data.draw(st.integers(1, 30))]
    wild = data.draw(st.sampled_from(["{}", "*{}*", "*{}", "{}*", "[{}]*", "*[!{}]", "?{}*", "./{}/", "*{}[a-z]*"]))
    pattern = wild.format(data.draw(st.sampled_from([piece, piece.upper(), path])))
    if not pattern.removeprefix("./").strip("/"):
        with pytest.raises(UsageError):
            search([odd], pattern)
        return
    expected = {p for p in paths if fits(p, pattern)} or {p for p in paths if fits(p.lower(), pattern.lower())}
    assert {f.path for f in search([odd], pattern).findings} == expected


def test_links_are_found_and_say_where_they_lead(odd: Backup) -> None:
    (link,) = search([odd], "verweis").findings
    assert (link.versions[0].type, link.versions[0].link) == (Type.SYMLINK, "2024/Ostern")
    (other_name,) = search([odd], "zweiter Name").findings
    assert other_name.versions[0].link == "photos/film.mp4" and other_name.versions[0].sha256


def test_progress_tells_of_what_is_read_and_of_no_more(odd: Backup) -> None:
    told: list[Progress] = []
    find.find([(around(odd.path), odd)] * 2, "film.mp4", told.append, Stop())
    assert [p.done_bytes for p in told] == [0, told[-1].done_bytes // 2, told[-1].total_bytes]
    assert told[-1].done_bytes < odd.size_bytes // 20

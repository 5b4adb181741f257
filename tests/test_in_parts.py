"""A copy that lies in parts, as on a FAT drive, is as good as the archive: it is proved, searched and given back."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from memu_backup import restore
from memu_backup.anywhere import look
from memu_backup.find import find
from memu_backup.formats import gzip
from memu_backup.formats.reader import ArchiveReader
from memu_backup.model import Level
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, ignore, in_parts, plain_tree, snapshot, tree
from tests.home import Home, Ran, fingerprints

NAME = "memu_backup_20260304_010000.tar.gz"


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("household"))


@pytest.fixture(scope="module")
def archive(household: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """About 10 MB."""
    archive = back_up(archive_store(tmp_path_factory.mktemp("store")), tree(household))
    assert archive.name == NAME
    return archive


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    (tmp_path / "drive").mkdir()
    return tmp_path / "drive"


@pytest.fixture
def parts(archive: Path, drive: Path) -> list[Path]:
    """Four, the index in the last."""
    return in_parts(archive, drive, 3_000_000, 5_000_000, 9_000_000)


def the_film(archive: Path) -> int:
    with ArchiveReader(archive) as reader:
        return next(e.content for e in reader.index() if e.path == "photos/film.mp4")


def where_to_cut(archive: Path, how: str) -> list[int]:
    size, film = archive.stat().st_size, the_film(archive)
    footer = size - gzip.FOOTER_BYTES
    return {
        "evenly": list(range(1_000_000, size, 1_000_000)),
        "in the footer": [footer + 30],
        "all over the footer": list(range(footer, size, 7)),
        "in a header of gzip": [film + 3, film + 17],
        "a part of one byte": [film + 100, film + 101, size - 1],
        "in the very first bytes": [1, 2, 19],
        "the index by itself": [footer - 1000, footer],
        "only one part": [],
    }[how]


CUTS = (
    "evenly", "in the footer", "all over the footer", "in a header of gzip", "a part of one byte",
    "in the very first bytes", "the index by itself", "only one part",
)  # fmt: skip


def give_back(path: Path, target: Path, *paths: str) -> restore.Restored:
    planned = restore.plan(*look(path), restore.Wanted(paths=paths), target, Stop())
    return restore.carry_out(planned, overwrite=False, on_progress=ignore, stop=Stop())


@pytest.mark.parametrize("how", CUTS)
def test_wherever_it_was_cut_everything_comes_back_and_is_proved(
    archive: Path, household: Path, drive: Path, tmp_path: Path, how: str
) -> None:
    parts = in_parts(archive, drive, *where_to_cut(archive, how))
    store = archive_store(tmp_path / "store")
    for path in (parts[-1], drive / NAME):
        backup = store.look(path)
        assert (backup.name, backup.path, backup.size_bytes) == (NAME, parts[0], archive.stat().st_size)
        assert store.checksum(backup.path) == store.checksum(archive)
        for level in Level:
            verdict = store.prove(backup.path, level, ignore, Stop())
            assert verdict.good and verdict == store.prove(archive, level, ignore, Stop())
    (drive / f"{NAME}.sha256").unlink()  # then it is taken apart, and not only compared as a whole
    assert store.prove(parts[0], Level.FULL, ignore, Stop()).good
    done = give_back(drive / NAME, tmp_path / "out")
    assert (done.lost, done.warnings) == ((), ())
    assert snapshot(tmp_path / "out" / "photos") == snapshot(household)


def test_one_file_comes_back_by_its_name(parts: list[Path], household: Path, tmp_path: Path) -> None:
    done = give_back(parts[1], tmp_path / "out", "IMG_0001.jpg")
    assert done.files == 1
    there = Path("2024", "Ostern", "IMG_0001.jpg")
    assert (tmp_path / "out" / "photos" / there).read_bytes() == (household / there).read_bytes()


def test_what_another_program_made_and_somebody_cut_is_read_too(household: Path, drive: Path, tmp_path: Path) -> None:
    """No index in it: all of it is read, front to back."""
    made = tmp_path / "by hand.tar.gz"
    subprocess.run(["tar", "-C", household.parent, "-czf", made, household.name], check=True)
    first, *_ = in_parts(made, drive, 5, 100_000, 100_001, 4_000_000)
    store = archive_store(tmp_path / "store")
    backup = store.look(first)
    assert backup.name == made.name
    verdict = store.prove(backup.path, Level.FULL, ignore, Stop())
    assert (verdict.problems, verdict.sha256) == ((), store.checksum(first))
    (found,) = find([(store, backup)], "film.mp4", ignore, Stop()).findings
    assert found.path == f"{household.name}/film.mp4"
    assert not give_back(first, tmp_path / "out").lost
    assert fingerprints(tmp_path / "out" / household.name) == fingerprints(household)


# --- what happens to parts -------------------------------------------------------------------------------------------


def verified(drive: Path, *argv: str) -> Ran:
    """By the command line, where there are no settings."""
    home = Home(drive.parent / "new", "postgresql://nobody@127.0.0.1:1/none")
    (home.folder / "config.toml").unlink()
    return home.run("verify", str(drive / NAME), *argv)


def told(ran: Ran) -> list[str]:
    """What is wrong with it, line by line."""
    assert ran.status == 1
    _, *lines, _ = ran.err[ran.err.index(f"{NAME} is damaged:") :].splitlines()
    return [line.strip() for line in lines]


def flip(part: Path, byte: int) -> None:
    content = bytearray(part.read_bytes())
    content[byte] ^= 1
    part.write_bytes(content)


def test_a_flipped_bit_names_the_file_and_the_part(archive: Path, parts: list[Path], drive: Path) -> None:
    flip(parts[2], (the_film(archive) + 4_500_000) - 5_000_000)
    film, where, part = told(verified(drive))
    assert film == "photos/film.mp4 cannot be read back." and where.startswith("A compressed block is damaged")
    assert part == f"{parts[2].name} is not the file that {NAME}.pieces.sha256 was made for."


def test_parts_without_their_list_are_found_damaged_all_the_same(archive: Path, parts: list[Path], drive: Path) -> None:
    (drive / f"{NAME}.pieces.sha256").unlink()
    assert verified(drive).status == 0
    flip(parts[2], (the_film(archive) + 4_500_000) - 5_000_000)
    shutil.rmtree(drive.parent / "new")
    assert told(verified(drive))[0] == "photos/film.mp4 cannot be read back."


@pytest.mark.parametrize("level", Level)
def test_a_part_that_is_missing_in_the_middle_is_named(parts: list[Path], drive: Path, level: Level) -> None:
    parts[1].unlink()
    ran = verified(drive, "--level", level)
    assert ran.status == 1
    assert f"{parts[1].name} is missing, so {NAME} cannot be put together." in ran.err


@pytest.mark.parametrize("level", Level)
def test_the_last_part_is_missed_by_the_list(parts: list[Path], drive: Path, level: Level) -> None:
    parts[3].unlink()
    assert told(verified(drive, "--level", level))[0] == f"{parts[3].name} is missing."


def test_without_the_last_part_what_the_others_hold_comes_back(
    parts: list[Path], household: Path, tmp_path: Path
) -> None:
    parts[3].unlink()
    planned = restore.plan(*look(parts[0]), restore.Wanted(), tmp_path / "out", Stop())
    assert planned.cut and planned.name == NAME
    restore.carry_out(planned, overwrite=False, on_progress=ignore, stop=Stop())
    there = Path("2024", "Ostern", "IMG_0001.jpg")
    assert (tmp_path / "out" / "photos" / there).read_bytes() == (household / there).read_bytes()


@pytest.mark.parametrize("number", range(4))
def test_a_cut_part_is_named(parts: list[Path], drive: Path, number: int) -> None:
    os.truncate(parts[number], parts[number].stat().st_size - 1000)
    lines = told(verified(drive))
    assert f"{parts[number].name} is not the file that {NAME}.pieces.sha256 was made for." in lines
    assert sum("pieces.sha256" in line for line in lines) == 1


def test_swapped_parts_are_named(parts: list[Path], drive: Path) -> None:
    """As who copies them by hand and mistypes a number."""
    swap(parts[1], parts[2])
    lines = told(verified(drive))
    for part in parts[1:3]:
        assert f"{part.name} is not the file that {NAME}.pieces.sha256 was made for." in lines


def test_swapped_parts_of_which_one_was_the_first_are_told(archive: Path, drive: Path) -> None:
    swap(*in_parts(archive, drive, 5_000_000))
    ran = verified(drive)
    assert ran.status == 1
    assert f"{NAME} cannot be put together: its parts are damaged, or have been renamed." in ran.err
    said = ran.err.strip().rpartition("this tells which: ")[2]
    checked = subprocess.run(["sh", "-c", said], cwd=drive, capture_output=True, text=True)
    assert checked.stdout == f"{NAME}.part001: FAILED\n{NAME}.part002: FAILED\n"


def swap(one: Path, other: Path) -> None:
    one.rename(one.with_name("aside"))
    other.rename(one)
    one.with_name("aside").rename(other)


# --- at the command line ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [NAME, f"{NAME}.part001", f"{NAME}.part004", f"./{NAME}"])
def test_on_a_new_machine_a_name_is_enough(
    parts: list[Path], household: Path, drive: Path, tmp_path: Path, name: str
) -> None:
    home = Home(tmp_path / "new", "postgresql://nobody@127.0.0.1:1/none")
    (home.folder / "config.toml").unlink()
    for file in drive.iterdir():
        shutil.copy2(file, home.folder)
    proved = home.run("verify", name)
    assert proved.status == 0 and f"{NAME} is good" in proved.out
    shown = home.run("show", name, "--files")
    assert shown.status == 0 and shown.out.startswith(f"{NAME}: ") and "photos/2024/Ostern/IMG_0001.jpg" in shown.out
    found = home.run("find", "IMG_0001.jpg", "--backup", name)
    assert found.status == 0 and f"restore {home.folder}/{NAME}.part001 --path" in found.out.replace("'", "")
    back = home.run("restore", name, "--yes")
    assert back.status == 0, back.err
    made = home.folder / f"restored_{NAME.removesuffix('.tar.gz')}" / "photos"
    assert fingerprints(made) == fingerprints(household)


def test_a_copy_in_parts_among_the_backups_is_not_taken_for_the_backup(home: Home, tmp_path: Path) -> None:
    """Its damage is its own, and nothing of it is swept away."""
    (archive,) = home.archives
    parts = in_parts(archive, home.backups, 1000)
    flip(parts[1], 100)
    assert home.run("verify", str(parts[0])).status == 1
    assert [row["status"] for row in home.rows()] == ["success"]
    assert home.run("list", "--json").json[0]["state"] == "good"
    assert home.run("verify").status == 0
    assert home.run("start").status == 0
    archive.rename(tmp_path / "away.tar.gz")
    before = set(home.backups.iterdir())
    assert home.run("start").status == 0
    assert before <= set(home.backups.iterdir())
    assert len(home.run("list", "--json").json) == len(home.archives) == 2


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    assert home.run("start").status == 0
    return home

"""A copy that is damaged: what can be read comes back, what cannot is named, and the exit status says so."""

from __future__ import annotations

import os
import shutil
import stat
from pathlib import Path

import pytest

from memu_backup.formats.index import Entry
from memu_backup.formats.reader import ArchiveReader
from tests.archives import snapshot
from tests.faulty_disk import Fault, faulty_disk, needs_fuse
from tests.rescue.drive import Said, in_parts, rescue


def entries(archive: Path) -> dict[str, Entry]:
    with ArchiveReader(archive) as reader:
        return {entry.path: entry for entry in reader.index()}


def flip(archive: Path, at: int) -> None:
    content = bytearray(archive.read_bytes())
    content[at] ^= 0x10
    archive.write_bytes(content)


def lost_of(said: Said) -> set[str]:
    lines = [line for line in said.err.splitlines() if line.startswith("Lost: ")]
    return {line.removeprefix("Lost: ").rpartition(" (")[0] for line in lines}


def all_but(lost: set[str], found: Path, source: Path) -> None:
    """Everything came back as it was but what was lost, of which nothing has the name of something whole."""
    gone = {os.fsencode(os.path.relpath(path, "photos")) for path in lost}
    got = {p: t[:7] for p, t in snapshot(found / "photos").items() if not p.endswith(b".damaged")}
    assert not [p for p, told in got.items() if p in gone and not stat.S_ISDIR(int(str(told[0])))]
    expected = {p: t[:7] for p, t in snapshot(source).items() if p not in gone}
    assert {p: t for p, t in got.items() if p not in gone} == expected  # of a lost folder, others may need the name


@pytest.mark.slow
@pytest.mark.parametrize("where", ["its first block", "its middle", "its last block"])
def test_a_flipped_bit_in_a_large_file_costs_that_file_and_its_other_name(
    drive: Path, name: str, source: Path, tmp_path: Path, where: str
) -> None:
    film = entries(drive / name)["photos/film.mp4"]
    length = film.end - film.content
    flip(drive / name, film.content + {"its first block": 100, "its middle": length // 2}.get(where, length - 5000))
    expected = {"photos/film.mp4", "photos/zweiter Name"}
    checked = rescue(drive, "check")
    assert checked.status == 1 and lost_of(checked) == expected
    assert "its checksum is another one" in checked.err
    said = rescue(drive, "restore", name, tmp_path / "found")
    assert said.status == 1 and lost_of(said) == expected
    all_but(expected, tmp_path / "found", source)
    # What can be read of it is there, under a name that says what it is.
    kept = tmp_path / "found" / "photos" / "film.mp4.damaged"
    assert kept.stat().st_size >= 4 << 20
    assert kept.read_bytes()[200 : 4 << 20] == (source / "film.mp4").read_bytes()[200 : 4 << 20]


@pytest.mark.slow
def test_wherever_a_bit_flips_what_is_not_named_is_as_it_was(
    drive: Path, name: str, source: Path, tmp_path: Path
) -> None:
    content = (drive / name).read_bytes()
    for number, at in enumerate(range(10, len(content), len(content) // 25)):
        damaged = bytearray(content)
        damaged[at] ^= 0x10
        (drive / name).write_bytes(damaged)
        found = tmp_path / f"found{number}"
        said = rescue(drive, "restore", name, found)
        assert "Traceback" not in said.err
        assert (said.status == 1) == bool(lost_of(said)), said
        all_but(lost_of(said), found, source)


def test_a_flipped_bit_among_small_files_costs_only_those_that_it_hits(
    drive: Path, name: str, source: Path, tmp_path: Path
) -> None:
    small = entries(drive / name)["photos/klein00.txt"]
    flip(drive / name, small.member + 200)
    said = rescue(drive, "restore", name, tmp_path / "found")
    lost = lost_of(said)
    assert said.status == 1 and 0 < len(lost) < 60
    assert not lost & {"photos/film.mp4", "photos/2024/Ostern/IMG_0001.jpg"}
    all_but(lost, tmp_path / "found", source)


@pytest.mark.slow
@pytest.mark.parametrize("kept", [0.02, 0.5, 0.99])
def test_of_a_copy_that_was_cut_short_all_before_the_cut_comes_back(
    drive: Path, name: str, source: Path, tmp_path: Path, kept: float
) -> None:
    os.truncate(drive / name, int((drive / name).stat().st_size * kept))
    checked = rescue(drive, "check")
    assert checked.status == 1 and "nobody can tell what it was" in checked.err
    said = rescue(drive, "restore", name, tmp_path / "found")
    assert said.status == 1 and "What comes behind is lost" in said.err
    got, whole = snapshot(tmp_path / "found" / "photos"), snapshot(source)
    assert len(got) > 1
    for path, told in got.items():
        if not path.endswith(b".damaged") and told[0] != whole[b"."][0]:
            assert told[:7] == whole[path][:7]
    listed = rescue(drive, "list", name)
    assert listed.status == 1 and "cannot be listed" in listed.err


def test_a_cut_between_two_files_is_not_taken_for_the_end(drive: Path, name: str, tmp_path: Path) -> None:
    os.truncate(drive / name, max(entry.member for entry in entries(drive / name).values()))
    said = rescue(drive, "restore", name, tmp_path / "found")
    assert said.status == 1 and lost_of(said) == set() and "What comes behind is lost" in said.err
    assert rescue(drive, "check", name).status == 1


def test_without_the_list_at_its_end_everything_comes_back_all_the_same(
    drive: Path, name: str, source: Path, tmp_path: Path
) -> None:
    flip(drive / name, (drive / name).stat().st_size - 30)
    said = rescue(drive, "restore", name, tmp_path / "found")
    assert said.status == 0 and "each compared with its checksum" in said.out
    assert snapshot(tmp_path / "found" / "photos") == snapshot(source)


@pytest.mark.parametrize("missing", [1, 4, -1])
def test_a_part_that_is_missing_costs_what_lies_in_it(
    drive: Path, name: str, source: Path, tmp_path: Path, missing: int
) -> None:
    parts = in_parts(drive / name, 1 << 20)
    gone = drive / f"{name}.part{missing % (parts + 1):03d}"
    gone.unlink()
    assert "1 of them missing" in rescue(drive).out
    checked = rescue(drive, "check", name)
    assert checked.status == 1 and f"{gone.name} is missing." in checked.err
    said = rescue(drive, "restore", name, tmp_path / "found")
    assert said.status == 1 and "Traceback" not in said.err
    if missing > 0:
        assert "photos/film.mp4" in lost_of(said) or missing == 1
        all_but(lost_of(said), tmp_path / "found", source)


def test_a_damaged_part_is_named(drive: Path, name: str) -> None:
    in_parts(drive / name, 1 << 20)
    flip(drive / f"{name}.part003", 5000)
    checked = rescue(drive, "check", name)
    assert checked.status == 1 and f"{name}.part003 is not as it was copied." in checked.err
    assert "part002" not in checked.err


@needs_fuse
def test_what_the_drive_cannot_read_costs_what_lies_there(drive: Path, name: str, source: Path, tmp_path: Path) -> None:
    film = entries(drive / name)["photos/film.mp4"]
    shutil.copytree(drive, tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("read", name, at=film.content + (5 << 20))) as disk:
        said = rescue(disk.folder, "restore", name, tmp_path / "found")
        checked = rescue(disk.folder, "check", name)
        assert disk.failed()
    expected = {"photos/film.mp4", "photos/zweiter Name"}
    assert said.status == 1 and lost_of(said) == expected, said
    assert checked.status == 1 and f"{name} cannot be read: Input/output error." in checked.err
    assert lost_of(checked) == expected
    all_but(expected, tmp_path / "found", source)


def test_without_a_checksum_beside_it_that_is_said(drive: Path, name: str) -> None:
    (drive / f"{name}.sha256").unlink()
    said = rescue(drive, "check", name)
    assert said.status == 0 and "No checksum of it lies beside it" in said.err

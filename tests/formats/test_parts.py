"""Parts read as the file that they were cut from; what is not whole, or no file, is told in a sentence."""

from __future__ import annotations

import os
import random
import resource
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from memu_backup.errors import DamagedArchive, MemuError, NotAnArchive, UnknownBackup, UsageError
from memu_backup.files import Passing
from memu_backup.formats.parts import Parts, is_there, whole
from tests.archives import in_parts

NAME = "memu_backup_20260304_010000.tar.gz"


@pytest.fixture
def parts(tmp_path: Path) -> list[Path]:
    """Seven: one of a byte, one that is empty, none as long as another."""
    (tmp_path / "drive").mkdir()
    (tmp_path / NAME).write_bytes(os.urandom(100_000))
    return in_parts(tmp_path / NAME, tmp_path / "drive", 10, 30_000, 30_001, 30_001, 77_777, 99_999)


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208


def refused(path: Path) -> MemuError:
    """What opening says; nothing stays open behind it."""
    before = open_files()
    with pytest.raises(MemuError) as told:
        Parts(path)
    assert open_files() == before
    return told.value


def test_every_stretch_of_parts_reads_as_in_one_file(parts: list[Path], tmp_path: Path) -> None:
    content = (tmp_path / NAME).read_bytes()
    opened = Parts(parts[3])
    assert opened.size_bytes == len(content)
    seams = [0, 10, 30_000, 30_001, 77_777, 99_999, 100_000]
    starts = [*(seam + by for seam in seams for by in (-1, 0, 1)), *(random.randrange(100_000) for _ in range(300))]

    def same(start: int) -> bool:
        for size in (0, 1, 2, 19, 20_000, 200_000):
            block = memoryview(bytearray(size))
            read = opened.read_into(block, start)
            if not opened.read(start, size) == bytes(block[:read]) == content[start : start + size]:
                return False
        return True

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(same, [start for start in starts if start >= 0]))
    opened.close()


def test_a_part_that_gets_shorter_while_it_is_read_ends_the_stretch(parts: list[Path], tmp_path: Path) -> None:
    content = (tmp_path / NAME).read_bytes()
    opened = Parts(parts[0])
    os.truncate(parts[1], 5)
    assert opened.read(0, 100_000) == content[:15]
    block = memoryview(bytearray(100_000))
    assert opened.read_into(block, 0) == 15 and block[:15] == content[:15]
    opened.close()


def test_any_part_and_the_name_of_the_whole_lead_to_all_of_them(parts: list[Path]) -> None:
    drive = parts[0].parent
    for path in (*parts, drive / NAME):
        assert is_there(path) and whole(path) == drive / NAME
        opened = Parts(path)
        assert (len(opened), opened.first) == (7, parts[0])
        opened.close()


def test_where_both_lie_each_is_what_it_is_called(parts: list[Path]) -> None:
    joined = parts[0].with_name(NAME)
    joined.write_bytes(b"somebody began to join them")
    for path, files in ((joined, 1), (parts[2], 7)):
        opened = Parts(path)
        assert (len(opened), opened.first) == (files, joined if files == 1 else parts[0])
        opened.close()


@pytest.mark.parametrize("missing", [0, 3, 5])
def test_a_missing_part_is_named(parts: list[Path], missing: int) -> None:
    parts[missing].unlink()
    for path in (parts[1], parts[6], parts[missing], parts[0].with_name(NAME)):
        error = refused(path)
        assert isinstance(error, DamagedArchive)
        assert str(error) == (
            f"{parts[missing].name} is missing, so {NAME} cannot be put together. Put what is missing beside the other "
            "parts, or take another copy."
        )


def test_several_missing_parts_are_counted(parts: list[Path]) -> None:
    for number in (0, 2, 3):
        parts[number].unlink()
    assert str(refused(parts[1])).startswith(f"{NAME}.part001 and 2 more parts are missing, so ")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link", "link to nowhere"])
@pytest.mark.parametrize("number", [0, 4])
def test_a_part_that_is_no_regular_file_is_refused(parts: list[Path], kind: str, number: int) -> None:
    odd = parts[number]
    elsewhere = odd.rename(odd.parent / "elsewhere")
    match kind:
        case "folder":
            odd.mkdir()
        case "pipe":
            os.mkfifo(odd)
        case "link":
            odd.symlink_to(elsewhere)
        case _:
            odd.symlink_to("nowhere")
    error = refused(parts[2])
    assert isinstance(error, NotAnArchive)
    assert str(error) == f"{odd} is not a file that can be read as an archive."


def test_what_is_not_there_is_called_that(parts: list[Path], tmp_path: Path) -> None:
    for path in (
        tmp_path / "photos.tar.gz",
        parts[0].with_name(f"{NAME}.part008"),
        tmp_path / "no" / f"{NAME}.part001",
    ):
        error = refused(path)
        assert isinstance(error, UnknownBackup) and str(error) == f"There is no file {path}."
    assert isinstance(refused(parts[0] / "x"), UsageError)
    (tmp_path / "note.part001").touch()
    assert not is_there(tmp_path / "note") and not is_there(tmp_path / "photos.tar.gz")


def test_more_parts_than_may_be_open_are_refused_in_a_sentence(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(bytes(999))
    (tmp_path / "drive").mkdir()
    made = in_parts(tmp_path / NAME, tmp_path / "drive", *range(1, 999))
    assert len(made) == 999
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (500, hard))
    try:
        error = refused(made[0])
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert isinstance(error, UsageError) and str(error) == f"{made[0]} cannot be opened: Too many open files."
    opened = Parts(made[-1])
    assert opened.read(0, 2000) == bytes(999)
    opened.close()


def test_the_kernel_forgets_what_was_read_of_each_part(parts: list[Path]) -> None:
    for part in parts:
        part.write_bytes(os.urandom(12 << 20))
    subprocess.run(["sync", *parts], check=True)
    opened = Parts(parts[0])
    passing = Passing(opened.advise)
    for offset in range(0, opened.size_bytes, 1 << 20):
        opened.read(offset, 1 << 20)
        passing.passed(offset + (1 << 20))
    assert cached(parts) < 20 << 20
    passing.end()
    assert cached(parts) == 0
    opened.read(0, opened.size_bytes)
    assert cached(parts) > opened.size_bytes / 2  # the kernel may drop some by itself
    opened.close()


def cached(paths: list[Path]) -> int:
    """Bytes of these files that lie in memory."""
    told = subprocess.run(["fincore", "-b", "-n", "-o", "RES", *paths], capture_output=True, text=True, check=True)
    return sum(map(int, told.stdout.split()))

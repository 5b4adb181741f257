"""An archive that several threads unpack comes back as if one had done it, whole or damaged."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memu_backup import restore
from memu_backup.anywhere import look
from memu_backup.errors import RestoreError
from memu_backup.feed import feed
from memu_backup.formats.reader import ArchiveReader
from memu_backup.unpack import Unpacker
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, ignore, in_parts, snapshot, tree

MB = 1_000_000


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Enough for several parts; a second name of the very first file stands in the last of them."""
    folder = tmp_path_factory.mktemp("source")
    for number in range(5):
        inside = folder / f"{number}"
        inside.mkdir(mode=0o750)
        (inside / "film.mp4").write_bytes(os.urandom(9 * MB))
        for note in range(60):
            (inside / f"note{note}").write_bytes(os.urandom(3_000))
        inside.chmod(0o550)
    os.link(folder / "0" / "film.mp4", folder / "zz.mp4")
    return folder


@pytest.fixture(scope="module")
def archive(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return back_up(archive_store(tmp_path_factory.mktemp("store")), tree(source))


def give_back(archive: Path, target: Path, *paths: str, overwrite: bool = False) -> restore.Restored:
    planned = restore.plan(*look(archive), restore.Wanted(paths=paths), target, Stop())
    return restore.carry_out(planned, overwrite=overwrite, on_progress=ignore, stop=Stop())


def test_everything_comes_back(archive: Path, source: Path, tmp_path: Path) -> None:
    done = give_back(archive, tmp_path / "out")
    assert (done.lost, done.warnings) == ((), ())
    assert snapshot(tmp_path / "out" / "photos") == snapshot(source)


def test_a_choice_from_all_over_it_comes_back_and_nothing_else(archive: Path, source: Path, tmp_path: Path) -> None:
    done = give_back(archive, tmp_path / "out", "photos/*/note7", "photos/zz.mp4")
    found = {str(p.relative_to(tmp_path / "out" / "photos")) for p in (tmp_path / "out").rglob("*") if p.is_file()}
    assert found == {*(f"{n}/note7" for n in range(5)), "zz.mp4", "0/film.mp4"}
    assert done.files == len(found)
    assert all((tmp_path / "out" / "photos" / name).read_bytes() == (source / name).read_bytes() for name in found)


def test_what_lies_behind_damage_comes_back_and_a_second_name_of_what_was_lost_is_told(
    archive: Path, source: Path, tmp_path: Path
) -> None:
    content = bytearray(archive.read_bytes())
    for film in ("0/film.mp4", "3/film.mp4"):
        content[content.index((source / film).read_bytes()[5 * MB : 5 * MB + 1000])] ^= 1
    (tmp_path / archive.name).write_bytes(content)
    done = give_back(tmp_path / archive.name, tmp_path / "out")
    assert done.lost == ("photos/0/film.mp4", "photos/3/film.mp4", "photos/zz.mp4")
    out = tmp_path / "out" / "photos"
    for path in (p for p in source.rglob("*") if p.is_file()):
        name = str(path.relative_to(source))
        if f"photos/{name}" in done.lost:
            assert not (out / name).exists()
        else:
            assert (out / name).read_bytes() == path.read_bytes()


def test_one_part_that_fails_ends_it_with_its_own_words(archive: Path, tmp_path: Path) -> None:
    planned = restore.plan(*look(archive), restore.Wanted(), tmp_path / "out", Stop())
    (tmp_path / "out" / "photos" / "2").mkdir(parents=True)
    (tmp_path / "out" / "photos" / "2" / "film.mp4").write_bytes(b"came meanwhile")
    with pytest.raises(RestoreError, match=r"photos/2/film\.mp4 is there already"):
        restore.carry_out(planned, overwrite=False, on_progress=ignore, stop=Stop())
    assert (tmp_path / "out" / "photos" / "2" / "film.mp4").read_bytes() == b"came meanwhile"


@pytest.mark.slow
def test_names_that_begin_alike_do_not_get_into_each_others_way(tmp_path: Path) -> None:
    """Each film is a part, and so a thread, of its own; in Cyrillic 25 letters are 50 bytes."""
    source = tmp_path / "source"
    source.mkdir()
    series = "Сказки бабушки на ночь, выпуск номер"
    for number in range(6):
        (source / f"{series} {number}.mp4").write_bytes(os.urandom(17 * MB))
        (source / f"{series} {number}.lnk").symlink_to(f"{number}")
        os.link(source / f"{series} {number}.mp4", source / f"{series} {number}, noch einmal.mp4")
    archive = back_up(archive_store(tmp_path / "store"), tree(source))
    for overwrite in (False, True, True):
        done = give_back(archive, tmp_path / "out", overwrite=overwrite)
        assert (done.lost, done.warnings) == ((), ())
        assert snapshot(tmp_path / "out" / "photos") == snapshot(source)


@pytest.mark.slow
def test_one_part_that_fails_ends_the_others_in_the_middle_of_a_film(tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "out"
    (source / "a").mkdir(parents=True)
    (source / "a" / "photo.jpg").write_bytes(os.urandom(17 * MB))
    (source / "film.mp4").write_bytes(bytes(300 * MB))
    archive = back_up(archive_store(tmp_path / "store"), tree(source))
    target.mkdir()
    (target / "photos").mkdir()
    (target / "photos" / "a").write_bytes(b"a file, so the photo has no place")
    put_in_place: list[int] = []
    with ArchiveReader(archive) as reader:
        entries = [e for e in reader.index() if e.path.endswith((".jpg", ".mp4"))]
        plan = {e.path: e for e in entries}
        unpacker = Unpacker(
            target, plan, overwrite=False, stop=Stop(), on_done=lambda more, _: put_in_place.append(more)
        )
        with unpacker, pytest.raises(RestoreError, match=r"photo\.jpg would be written through"):
            feed(reader, entries, unpacker, indexed=True)
    assert sum(put_in_place) < 100 * MB
    assert [p.name for p in (target / "photos").iterdir()] == ["a"]


@contextmanager
def open_files(at_most: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (at_most, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.slow
def test_very_deep_folders_come_back_where_few_files_may_be_open(tmp_path: Path) -> None:
    """Each thread holds open all folders above the file that it makes."""
    source = tmp_path / "source"
    for name in ("a", "b"):
        bottom = source / "/".join(name * 300)
        bottom.mkdir(parents=True)
        for film in ("1.mp4", "2.mp4"):
            (bottom / film).write_bytes(os.urandom(9 * MB))
    archive = back_up(archive_store(tmp_path / "store"), tree(source))
    with open_files(at_most=450):
        for overwrite in (False, True):
            done = give_back(archive, tmp_path / "out", overwrite=overwrite)
            assert (done.lost, done.warnings) == ((), ())
    assert snapshot(tmp_path / "out" / "photos") == snapshot(source)
    (tmp_path / "drive").mkdir()
    pieces = in_parts(archive, tmp_path / "drive", *range(80_000, 36 * MB, 80_000))  # which are all open, too
    with open_files(at_most=len(pieces) + 450):
        done = give_back(pieces[0], tmp_path / "again")
    assert (done.lost, done.warnings) == ((), ())
    assert snapshot(tmp_path / "again" / "photos") == snapshot(source)


def test_very_many_files_come_back_where_few_may_be_open(tmp_path: Path) -> None:
    source = tmp_path / "source"
    for name in ("a", "c"):
        (source / name).mkdir(parents=True)
        for table in range(300):
            (source / name / f"{table:03}.csv").write_bytes(b"%d,a,line,of,a,table\n" % table * 4_000)
    (source / "b.mp4").write_bytes(os.urandom(17 * MB))  # so that it is more than one part
    archive = back_up(archive_store(tmp_path / "store"), tree(source))
    with open_files(at_most=250):
        done = give_back(archive, tmp_path / "out")
    assert (done.lost, done.warnings) == ((), ())
    assert snapshot(tmp_path / "out" / "photos") == snapshot(source)

"""Blocks shared with an older archive: what has not changed costs nothing, and nothing that has is missed."""

from __future__ import annotations

import mmap
import os
import subprocess
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup.clock import now
from memu_backup.errors import DiskFull
from memu_backup.model import Backup, Level
from memu_backup.stores import Written
from memu_backup.stores.archive import ArchiveStore
from memu_backup.walk import identities
from memu_backup.work import Stop
from tests.archives import archive_store, give_back, ignore, label, needs_root, snapshot, tree
from tests.disks import loop_disk, own_bytes

pytestmark = needs_root

TOMORROW = now() + timedelta(days=1)
"""The first night: what was changed within a quarter of an hour before one is not trusted."""


def household(folder: Path) -> Path:
    (folder / "photos").mkdir(parents=True)
    (folder / "chat").mkdir()
    for number in range(4):
        (folder / "photos" / f"{number}.jpg").write_bytes(os.urandom(3_000_000 + number))
    (folder / "journal.log").write_text("Tomaten gegossen\n" * 200_000)
    for number in range(600):
        (folder / "chat" / f"{number:03}").write_bytes(os.urandom(6_000))
    return folder


@pytest.fixture(scope="module", params=["btrfs", "xfs"])
def disk(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with loop_disk(request.param, tmp_path_factory.mktemp("disk"), 400 << 20) as place:
        household(place / "household")
        yield place


@pytest.fixture
def source(disk: Path) -> Path:
    """Each test changes it in its own way; the next one takes it as it is."""
    return disk / "household"


@pytest.fixture
def store(disk: Path, request: pytest.FixtureRequest) -> Iterator[ArchiveStore]:
    store = archive_store(disk / request.node.name.partition("[")[0])
    yield store
    for path in store.directory.iterdir():
        path.unlink()


def write(store: ArchiveStore, source: Path, earlier: Backup | None, night: int, at: datetime | None = None) -> Written:
    at = at or TOMORROW + timedelta(days=night)
    tonight = replace(label(store.unused_name(at, UTC)), run_id=f"night-{night}", created_at=at)
    never = frozenset(identities([store.directory]))
    return store.write(tonight, [tree(source)], never, ignore, Stop(), earlier)


def back_up(store: ArchiveStore, source: Path, earlier: Backup | None = None, at: datetime | None = None) -> Backup:
    """``at`` stands for the moment at which it begins."""
    written = write(store, source, earlier, len(store.backups()), at)
    verdict = store.prove(written.partial_path, Level.FULL, ignore, Stop())
    assert verdict.problems == ()
    assert verdict.sha256
    store.publish(written, verdict.sha256)
    return store.backups()[0]


def own_share(backup: Backup) -> float:
    return own_bytes(backup.path) / backup.size_bytes


def restored(backup: Backup, folder: Path) -> dict[bytes, tuple[object, ...]]:
    give_back(backup.path, folder)
    return snapshot(folder / "photos")


def test_a_quiet_night_costs_next_to_nothing(store: ArchiveStore, source: Path, tmp_path: Path) -> None:
    first = back_up(store, source)
    assert own_share(first) > 0.99
    second = back_up(store, source, first)
    assert own_share(second) < 0.03  # sums and index are always new
    assert second.manifest and first.manifest
    assert (second.manifest.shares_with, second.manifest.nights_shared) == (first.name, 1)
    assert (first.manifest.shares_with, first.manifest.nights_shared, first.manifest.shared_bytes) == ("", 0, 0)
    newly_taken = second.size_bytes - second.manifest.shared_bytes
    assert abs(newly_taken - own_bytes(second.path)) <= 4096  # the last block is not full
    assert restored(second, tmp_path / "restored") == snapshot(source)


def test_an_archive_that_shares_blocks_is_read_by_tar(store: ArchiveStore, source: Path, tmp_path: Path) -> None:
    second = back_up(store, source, back_up(store, source))
    assert second.manifest and second.manifest.shares_with
    subprocess.run(["tar", "-xpzf", second.path], cwd=tmp_path, check=True)
    subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=tmp_path, check=True)


@pytest.mark.slow
def test_little_is_written_where_little_has_changed(store: ArchiveStore, source: Path, tmp_path: Path) -> None:
    first = back_up(store, source)
    (source / "chat" / "300a").write_bytes(b"a new one in the middle moves all that come after it")
    (source / "chat" / "450").write_bytes(os.urandom(5_000))
    (source / "chat" / "100").unlink()
    second = back_up(store, source, first)
    assert own_share(second) < 0.1
    assert restored(second, tmp_path / "restored") == snapshot(source)


def test_new_content_under_an_old_size_and_time_is_noticed(store: ArchiveStore, source: Path, tmp_path: Path) -> None:
    first = back_up(store, source)
    photo, another, small = source / "photos" / "1.jpg", source / "photos" / "2.jpg", source / "chat" / "200"
    for path in (photo, small):
        before = path.stat()
        with path.open("r+b") as file:
            file.write(b"retouched")
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    before = another.stat()
    fresh = another.with_name("fresh")
    fresh.write_bytes(os.urandom(before.st_size))
    os.utime(fresh, ns=(before.st_atime_ns, before.st_mtime_ns))
    fresh.rename(another)
    second = back_up(store, source, first)
    assert restored(second, tmp_path / "restored") == snapshot(source)


@pytest.mark.slow
@pytest.mark.parametrize(("minutes", "again"), [(14, True), (16, False)])
def test_a_file_changed_within_a_quarter_of_an_hour_before_the_backup_is_read_again(
    store: ArchiveStore, source: Path, minutes: int, again: bool
) -> None:
    (source / "photos" / "3.jpg").write_bytes(os.urandom(3_000_003))
    first = back_up(store, source, at=now() + timedelta(minutes=minutes))
    second = back_up(store, source, first)
    assert (own_bytes(second.path) > 3_000_000) is again


def test_what_is_written_through_mmap_without_a_new_time_is_not_missed(
    store: ArchiveStore, source: Path, tmp_path: Path
) -> None:
    """Photo programs and databases do that; only the first store to a page changes the file's times."""
    photo = source / "photos" / "0.jpg"
    with photo.open("r+b") as file, mmap.mmap(file.fileno(), 0) as mapped:
        mapped[:5] = b"first"
        before = photo.stat()
        first = back_up(store, source, at=now() + timedelta(seconds=30))
        mapped[:5] = b"later"
        if photo.stat().st_ctime_ns != before.st_ctime_ns:
            pytest.skip("the kernel was quicker and has written the page to the disk")
    second = back_up(store, source, first)
    assert restored(second, tmp_path / "restored") == snapshot(source)


def test_the_older_archive_is_not_needed_any_more(store: ArchiveStore, source: Path, tmp_path: Path) -> None:
    first = back_up(store, source)
    second = back_up(store, source, first)
    store.delete(first.path)
    assert store.prove(second.path, Level.FULL, ignore, Stop()).problems == ()
    assert restored(second, tmp_path / "restored") == snapshot(source)


def test_damage_that_was_taken_over_is_found_the_same_night(store: ArchiveStore, source: Path) -> None:
    first = back_up(store, source)
    with first.path.open("r+b") as file:
        file.seek(first.path.read_bytes().index((source / "photos" / "0.jpg").read_bytes()[:1000]))
        file.write(b"rot")
    written = write(store, source, first, 1)
    verdict = store.prove(written.partial_path, Level.FULL, ignore, Stop())
    assert any("photos/photos/0.jpg" in problem for problem in verdict.problems)
    store.discard(written)


def test_an_older_archive_that_cannot_be_read_costs_nothing_but_time(store: ArchiveStore, source: Path) -> None:
    first = back_up(store, source)
    with first.path.open("r+b") as file:  # its index is at its end
        file.seek(-5_000, os.SEEK_END)
        file.write(bytes(4_000))
    second = back_up(store, source, first)
    assert own_share(second) > 0.99
    assert second.manifest and second.manifest.shares_with == ""


def test_an_older_archive_that_was_cut_is_not_built_on(store: ArchiveStore, source: Path) -> None:
    first = back_up(store, source)
    footer = first.path.read_bytes()[-60:]
    with first.path.open("r+b") as file:
        file.truncate(first.size_bytes // 2)
        file.seek(0, os.SEEK_END)
        file.write(footer)
    second = back_up(store, source, first)
    assert second.manifest and second.manifest.shares_with == ""


def test_a_full_disk_leaves_nothing_of_the_new_one(tmp_path: Path) -> None:
    (tmp_path / "home").mkdir()
    source = household(tmp_path / "home" / "household")
    with loop_disk("xfs", tmp_path) as place:
        store = archive_store(place / "store")
        first = back_up(store, source)
        (source / "film.mp4").write_bytes(os.urandom(5_000_000))
        free = os.statvfs(place)
        with (place / "filler").open("wb") as filler:
            os.posix_fallocate(filler.fileno(), 0, free.f_bavail * free.f_frsize - (3 << 20))
        with pytest.raises(DiskFull):
            write(store, source, first, 1)
        assert [p for p in store.directory.iterdir() if ".partial" in p.name] == []
        assert store.prove(first.path, Level.FULL, ignore, Stop()).problems == ()


def test_where_blocks_cannot_be_shared_all_is_written_anew(tmp_path: Path) -> None:
    source = household(tmp_path / "household")
    with loop_disk("ext4", tmp_path, 128 << 20) as place:
        store = archive_store(place / "store")
        first = back_up(store, source)
        second = back_up(store, source, first)
        assert own_share(second) > 0.99
        assert second.manifest and second.manifest.shares_with == ""

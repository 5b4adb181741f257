"""The archive as other programs see it, and as the family gets it back."""

from __future__ import annotations

import gzip
import os
import subprocess
import tarfile
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from memu_backup import mark
from memu_backup.errors import StoreError
from memu_backup.formats.reader import ArchiveReader
from memu_backup.model import Level
from memu_backup.stores.archive import ArchiveStore
from memu_backup.words import moment
from memu_backup.work import Stop
from tests.archives import (
    TAKEN_AT,
    archive_store,
    back_up,
    give_back,
    ignore,
    needs_root,
    odd_tree,
    plain_tree,
    program,
    snapshot,
    things_never_opened,
    tree,
    write,
)  # fmt: skip
from tests.contracts.stores import StoreContract


class TestArchiveIsAStore(StoreContract):
    three_names = tuple(f"memu_backup_20260304_020000{n}.tar.gz" for n in ("", "_2", "_3"))

    def make(self, directory: Path) -> ArchiveStore:
        return archive_store(directory)


@pytest.fixture(scope="module")
def household(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return plain_tree(tmp_path_factory.mktemp("household"))


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory, household: Path) -> Path:
    return back_up(archive_store(tmp_path_factory.mktemp("store")), tree(household))


def sums_hold(folder: Path) -> bool:
    checked = subprocess.run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], cwd=folder, capture_output=True, text=True)
    assert checked.stdout == ""
    return checked.returncode == 0


@pytest.mark.parametrize("name", ["tar", "bsdtar", "busybox"])
def test_other_programs_get_everything_back(name: str, archive: Path, household: Path, tmp_path: Path) -> None:
    unpacked = subprocess.run([*program(name), "-xpzf", archive], cwd=tmp_path, capture_output=True, text=True)
    assert (unpacked.returncode, unpacked.stderr) == (0, "")
    assert sums_hold(tmp_path)
    assert contents(tmp_path / "photos") == contents(household)


def test_pythons_tarfile_gets_everything_back(archive: Path, household: Path, tmp_path: Path) -> None:
    with tarfile.open(archive) as found:
        if hasattr(tarfile, "data_filter"):  # from 3.11.4 on Python asks what may be unpacked
            found.extraction_filter = tarfile.data_filter
        found.extractall(tmp_path)
    assert sums_hold(tmp_path)
    assert contents(tmp_path / "photos") == contents(household)


def contents(folder: Path) -> dict[bytes, object]:
    """Names, bytes and links: what every program can do."""
    return {path: (known[0], known[5], known[6], known[7]) for path, known in snapshot(folder).items()}


def test_gzip_and_sha256sum_find_nothing_wrong(archive: Path) -> None:
    subprocess.run(["gzip", "-t", archive], check=True)
    checked = subprocess.run(
        ["sha256sum", "-c", f"{archive.name}.sha256"], cwd=archive.parent, capture_output=True, text=True
    )
    assert checked.stdout == f"{archive.name}: OK\n"


@needs_root
def test_every_odd_entry_comes_back_identical(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd_tree(source)
    before = snapshot(source)
    unpacked = give_back(back_up(archive_store(tmp_path / "store"), tree(source)), tmp_path / "target")
    assert unpacked.warnings == []
    after = snapshot(tmp_path / "target" / "photos")
    assert {p: (before.get(p), after.get(p)) for p in before | after if before.get(p) != after.get(p)} == {}
    for name in ("loch vorn", "loch mitte", "loch hinten", "nur loch", "viele"):
        used = [(folder / name).stat().st_blocks for folder in (source, tmp_path / "target" / "photos")]
        assert used[1] <= used[0], f"{name} was unfolded"


@pytest.mark.slow
def test_a_file_of_more_than_eight_gibibytes_comes_back(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "giant").open("wb") as file:
        file.truncate(9 << 30)
        file.seek(5 << 30)
        file.write(b"here")
    before = snapshot(source)
    archive = back_up(archive_store(tmp_path / "store"), tree(source))
    assert archive.stat().st_size < 1 << 20
    assert snapshot(give_back(archive, tmp_path / "target").target / "photos") == before
    (tmp_path / "tar").mkdir()
    subprocess.run(["tar", "-xpzf", archive], cwd=tmp_path / "tar", check=True)
    assert snapshot(tmp_path / "tar" / "photos") == before


@needs_root
def test_gnu_tar_brings_back_holes_attributes_and_acls(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    odd_tree(source)
    before = snapshot(source)
    archive = back_up(archive_store(tmp_path / "store"), tree(source))
    target = tmp_path / "target"
    target.mkdir()
    # --acls would take its ACLs from records of its own kind; as attributes they come back byte for byte.
    argv = ["tar", "--numeric-owner", "--xattrs", "--xattrs-include=*", "--delay-directory-restore", "-xpzf"]
    unpacked = subprocess.run([*argv, archive], cwd=target, capture_output=True, text=True)
    assert unpacked.returncode == 0, unpacked.stderr
    assert sums_hold(target)
    after = snapshot(target / "photos")
    assert {p: (before.get(p), after.get(p)) for p in before | after if before.get(p) != after.get(p)} == {}


@needs_root
def test_pipes_sockets_and_devices_are_counted_and_never_opened(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    (source / "photo").write_bytes(b"jpeg")
    count = things_never_opened(source)
    written = write(archive_store(tmp_path / "store"), tree(source))
    (summary,) = written.manifest.sources
    assert (summary.files, summary.skipped, summary.missing) == (1, count, ())
    assert any("pipe is a named pipe" in w for w in summary.warnings)


def test_the_metadata_tell_what_is_in_the_archive(archive: Path, household: Path) -> None:
    (backup,) = archive_store(archive.parent).backups()
    assert backup.manifest
    (source,) = backup.manifest.sources
    known = snapshot(household)
    assert source.files + source.links + source.directories == len(known)
    assert (backup.created_at, backup.manifest.utc_offset, backup.manifest.host) == (TAKEN_AT, "+01:00", "attic")
    assert (source.links, source.missing, source.warnings) == (2, (), ())


def test_a_single_stream_stands_at_the_top(tmp_path: Path) -> None:
    dump = tmp_path / "anything"
    dump.write_bytes(b"-- SQL\n" * 1000)
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").write_bytes(b"1")
    store = archive_store(tmp_path / "store")
    # Names of which one begins with the other are two sources all the same.
    path = back_up(store, tree(dump, "database.sql"), tree(tmp_path / "folder", "database.sql.d/"))
    assert b"".join(store.content(path, "database.sql")) == dump.read_bytes()


def test_the_content_of_one_file_is_that_of_its_readers(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    with (source / "holes").open("wb") as file:
        file.truncate(30 << 20)
        file.seek(20 << 20)
        file.write(b"island")
    os.link(source / "holes", source / "zz other name")
    store = archive_store(tmp_path / "store")
    path = back_up(store, tree(source))
    assert b"".join(store.content(path, "photos/holes")) == (source / "holes").read_bytes()
    assert b"".join(store.content(path, "photos/zz other name")) == (source / "holes").read_bytes()


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
def test_nobody_else_can_read_a_backup_whatever_the_umask(tmp_path: Path, umask: int) -> None:
    (tmp_path / "photo").write_bytes(b"jpeg")
    before = os.umask(umask)
    try:
        path = back_up(archive_store(tmp_path / "store"), tree(tmp_path / "photo", "photo"))
    finally:
        os.umask(before)
    assert {oct(p.stat().st_mode & 0o7777) for p in path.parent.iterdir()} == {"0o600"}
    assert oct(path.parent.stat().st_mode & 0o7777) == "0o700"


def test_a_taken_name_leaves_the_older_backup_and_its_checksum_alone(tmp_path: Path) -> None:
    (tmp_path / "photo").write_bytes(b"jpeg")
    store = archive_store(tmp_path / "store")
    written = write(store, tree(tmp_path / "photo", "photo"))
    older = store.directory / written.name
    older.write_bytes(b"older")
    sidecar = older.with_name(older.name + ".sha256")
    sidecar.write_bytes(b"its checksum")
    with pytest.raises(StoreError, match="already holds"):
        store.publish(written, "0" * 64)
    assert sorted(p.name for p in store.directory.iterdir()) == [mark.NAME, older.name, sidecar.name]
    assert (older.read_bytes(), sidecar.read_bytes()) == (b"older", b"its checksum")


def test_a_folder_and_a_link_with_a_backups_name_are_not_listed(tmp_path: Path) -> None:
    store = archive_store(tmp_path / "store")
    (store.directory / "memu_backup_20260101_020000.tar.gz").mkdir()
    (store.directory / "memu_backup_20260102_020000.tar.gz").symlink_to("/etc/passwd")
    (store.directory / "memu_backup_20260103_020000.tar.gz").write_bytes(b"no archive")
    assert [b.name for b in store.backups()] == ["memu_backup_20260103_020000.tar.gz"]


@pytest.mark.parametrize("zone", ["Etc/GMT+12", "Pacific/Kiritimati"])
def test_a_time_at_the_end_of_all_calendars_breaks_no_list(
    tmp_path: Path, zone: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever lays such a file among the backups must not silence the list of all of them."""
    monkeypatch.setenv("TZ", zone)
    time.tzset()
    try:
        store = archive_store(tmp_path)
        for at in ("00010101_000000", "00011231_235959", "99990101_000000", "99991231_235959"):
            (store.directory / f"memu_backup_{at}.tar.gz").write_bytes(b"no archive")
        here = ZoneInfo(zone)
        assert {b.created_at for b in store.backups()} == {datetime.fromtimestamp(0, UTC)}
        assert all(moment(b.created_at, TAKEN_AT, here) for b in store.backups())
    finally:
        monkeypatch.undo()
        time.tzset()


def test_an_archive_packed_again_by_hand_is_still_proved_by_its_sums(archive: Path, tmp_path: Path) -> None:
    again = tmp_path / "again.tar.gz"
    again.write_bytes(gzip.compress(gzip.decompress(archive.read_bytes()), 1))
    with ArchiveReader(again) as reader:
        assert not reader.indexed
        assert not reader.cut
    store = archive_store(tmp_path)
    assert store.prove(again, Level.FULL, ignore, Stop()).problems == ()
    assert b"".join(store.content(again, "photos/klein07.txt")) == b"7\n" * 7


def test_who_sees_whether_the_folder_can_be_written_is_not_disturbed_by_who_sweeps_it(tmp_path: Path) -> None:
    """That is looked at before the lock is asked for, while its holder may remove what looks left behind."""
    store = archive_store(tmp_path)
    done = threading.Event()

    def sweep() -> None:
        while not done.is_set():
            store.sweep()

    sweeping = threading.Thread(target=sweep)
    sweeping.start()
    try:
        for _ in range(500):
            store.prepare()
    finally:
        done.set()
        sweeping.join()
    assert [p.name for p in tmp_path.iterdir()] == [mark.NAME]

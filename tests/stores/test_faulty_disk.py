"""What a disk says that is about to die: errors while reading, and errors that come only when all seems written."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from memu_backup import mark
from memu_backup.errors import DiskFull, StoreError, WriteFailed
from memu_backup.model import Level
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, ignore, tree, write
from tests.faulty_disk import Fault, faulty_disk, needs_fuse

pytestmark = needs_fuse

CONTENT = os.urandom(300_000)


def photos(beneath: Path) -> None:
    beneath.mkdir(exist_ok=True)
    for name in ("a.jpg", "b.jpg", "c.jpg"):
        (beneath / name).write_bytes(CONTENT)


def test_a_read_error_that_goes_away_costs_nothing(tmp_path: Path) -> None:
    photos(tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("read", "b.jpg", times=2)) as disk:
        store = archive_store(tmp_path / "store")
        archive = back_up(store, tree(disk.folder))
        assert disk.failed() == ["read b.jpg"] * 2
    (there,) = store.backups()
    assert there.manifest and not there.manifest.partial
    assert b"".join(store.content(archive, "photos/b.jpg")) == CONTENT


def test_a_file_that_cannot_be_read_makes_the_backup_partial_and_is_named(tmp_path: Path) -> None:
    photos(tmp_path / "beneath")
    with faulty_disk(tmp_path, Fault("read", "b.jpg")) as disk:
        store = archive_store(tmp_path / "store")
        archive = back_up(store, tree(disk.folder))
        assert len(disk.failed()) > 1
    (there,) = store.backups()
    assert there.manifest and there.manifest.partial
    assert there.manifest.sources[0].missing == ("photos/b.jpg cannot be read: the disk reports an error",)
    for name in ("a.jpg", "c.jpg"):
        assert b"".join(store.content(archive, f"photos/{name}")) == CONTENT
    assert store.prove(archive, Level.FULL, ignore, Stop()).good


@pytest.mark.parametrize(
    ("operation", "number", "error"),
    [
        ("fsync", errno.EIO, WriteFailed),
        ("fsync", errno.ENOSPC, DiskFull),
        ("flush", errno.EIO, WriteFailed),
        ("flush", errno.ENOSPC, DiskFull),
        ("flush", errno.EDQUOT, DiskFull),
    ],
)
def test_what_the_disk_refuses_at_the_end_is_thrown_away_and_never_tried_again(
    tmp_path: Path, operation: str, number: int, error: type[StoreError]
) -> None:
    photos(tmp_path / "source")
    with faulty_disk(tmp_path, Fault(operation, "memu_backup_*.partial", number)) as disk:
        store = archive_store(disk.folder)
        older = disk.beneath / "memu_backup_20250101_020000.tar.gz"
        older.write_bytes(b"older")
        with pytest.raises(error):
            write(store, tree(tmp_path / "source"))
        assert [f.split()[0] for f in disk.failed()] == [operation]
        assert {p.name for p in disk.beneath.iterdir()} == {mark.NAME, older.name}
        assert older.read_bytes() == b"older"

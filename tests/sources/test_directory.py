"""A folder: what it asks for before it starts, and that all of it comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tarfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import pytest
from pydantic import ValidationError

from memu_backup import sources
from memu_backup.clock import now
from memu_backup.errors import DiskFull, MemuError, RestoreError, SourceError
from memu_backup.model import SourceSummary
from memu_backup.sources.directory import DirectorySettings, DirectorySource
from memu_backup.sources.files import FilesSettings, FilesSource
from tests.archives import Unpacked, archive_store, back_up, needs_root, plain_tree, snapshot
from tests.contracts.sources import SourceContract
from tests.contracts.stores import small_disk


def directory(path: Path, **more: object) -> DirectorySource:
    return DirectorySource("photos", DirectorySettings.model_validate({"kind": "directory", "path": path, **more}))


class TestDirectoryIsASource(SourceContract):
    def household(self, folder: Path) -> Path:
        return plain_tree(folder)

    def make(self, data: Path) -> DirectorySource:
        return directory(data)

    def take_away(self, data: Path) -> None:
        shutil.rmtree(data)

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        assert snapshot(unpacked.target / "photos") == snapshot(data)


class TestAPackedDirectoryIsASource(SourceContract):
    def household(self, folder: Path) -> Path:
        return plain_tree(folder)

    def make(self, data: Path) -> DirectorySource:
        return directory(data, place="storage.tar.gz")

    def take_away(self, data: Path) -> None:
        shutil.rmtree(data)

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        app = unpacked.target / "app"
        app.mkdir()
        subprocess.run(["tar", "-xzf", unpacked.target / "storage.tar.gz", "-C", app], check=True)
        assert [folder.name for folder in app.iterdir()] == ["storage"]
        assert snapshot(app / "storage") == snapshot(data)


async def packed(data: Path, folder: Path, **more: object) -> tuple[DirectorySource, Path]:
    """A source, and a backup of it in which it is packed."""
    source = directory(data, place="storage.tar.gz", **more)
    async with source.capture(folder) as captured:
        return source, back_up(archive_store(folder / "store"), captured)


async def test_what_is_packed_is_told_by_what_is_in_it_and_leaves_nothing_beside_it(tmp_path: Path) -> None:
    (tmp_path / "media" / "one").mkdir(parents=True)
    (tmp_path / "media" / "one" / "1.cbz").write_bytes(os.urandom(300_000))
    (tmp_path / "media" / "one" / "2.cbz").touch()
    (tmp_path / "media" / "one" / "cover.tmp").touch()
    (tmp_path / "media" / "closed").mkdir()
    os.mkfifo(tmp_path / "media" / "pipe")
    _, archive = await packed(tmp_path / "media", tmp_path, exclude=["*.tmp"])
    (backup,) = archive_store(tmp_path / "store").backups()
    assert backup.manifest
    (summary,) = backup.manifest.sources
    assert (summary.files, summary.place) == (1, "storage.tar.gz")
    inside = summary.details["packed"]
    assert (inside["files"], inside["directories"], inside["size_bytes"]) == (2, 3, 300_000)
    assert DirectorySource.told(summary, now(), UTC).startswith("2 files, newest from ")
    assert summary.warnings == ("storage/pipe is a named pipe; left out",)
    names = {p.name.removeprefix(archive.name) for p in archive.parent.iterdir()}
    assert names == {"", ".sha256", ".memu-backup.json"}


async def test_a_packed_file_that_is_not_what_its_metadata_says_is_told(tmp_path: Path) -> None:
    data = plain_tree(tmp_path / "data")
    _, archive = await packed(data, tmp_path)
    (backup,) = archive_store(tmp_path / "store").backups()
    assert backup.manifest
    (summary,) = backup.manifest.sources
    whole = b"".join(archive_store(tmp_path / "store").content(archive, "storage.tar.gz"))

    class Stored:
        def __init__(self, content: bytes) -> None:
            self.bytes = content

        def content(self, path: str) -> Iterator[bytes]:
            assert path == "storage.tar.gz"
            yield from (self.bytes[i : i + 1000] for i in range(0, len(self.bytes), 1000))

    assert await DirectorySource.verify(summary, Stored(whole)) == []
    inside = dict(summary.details["packed"])
    more = replace(summary, details={"packed": inside | {"files": inside["files"] + 1}})
    files = inside["files"]
    assert await DirectorySource.verify(more, Stored(whole)) == [
        f"storage.tar.gz holds {files:,} files and should hold {files + 1:,}."
    ]
    (said,) = await DirectorySource.verify(summary, Stored(whole[:-20]))
    assert said.startswith("storage.tar.gz cannot be unpacked: ")
    (said,) = await DirectorySource.verify(replace(summary, details={"packed": {"files": -1}}), Stored(whole))
    assert "does not say what is packed" in said


@needs_root
async def test_a_disk_that_cannot_hold_it_packed_is_said_before_anything_is_written(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    film = tmp_path / "data" / "film"
    with small_disk(tmp_path / "store", "1m") as disk:
        for says, content in (
            (
                r"storage\.tar\.gz is packed from 2 MB before it is stored, and only .* are free",
                os.urandom(2_000_000),
            ),
            (r"storage\.tar\.gz has become .* and has to be stored now, and only .* are free", os.urandom(600_000)),
        ):
            film.write_bytes(content)
            with pytest.raises(DiskFull, match=says):
                await packed(tmp_path / "data", tmp_path)
            assert [p.name for p in disk.iterdir()] == [".memu-backup.json"]
        with film.open("wb") as holes:
            holes.truncate(64 << 20)  # which take no room in it
        await packed(tmp_path / "data", tmp_path)


async def test_it_is_not_put_back_where_packed_and_unpacked_do_not_fit(tmp_path: Path) -> None:
    source, _ = await packed(plain_tree(tmp_path / "data"), tmp_path)
    (backup,) = archive_store(tmp_path / "store").backups()
    assert backup.manifest
    (summary,) = backup.manifest.sources
    shutil.rmtree(tmp_path / "data")
    large = replace(summary, details={"packed": dict(summary.details["packed"]) | {"size_bytes": 1 << 60}})
    with pytest.raises(RestoreError, match=r"Not enough space: .* to unpack storage\.tar\.gz \(source photos\)"):
        await source.landing(large)
    assert await source.landing(summary) == tmp_path / ".data.memu-backup"


async def test_a_strangers_packed_folder_cannot_write_beside_it(tmp_path: Path) -> None:
    source = directory(tmp_path / "home" / "data", place="storage.tar.gz")
    (tmp_path / "home").mkdir()
    summary = SourceSummary("photos", "directory", "storage.tar.gz", 1, 0, 0, 1, "", "", "", details={"packed": {}})
    for names, says in (
        (("storage", "storage/../../evil"), "could lie outside"),
        (("evil",), "holds something else than a folder storage/"),
        (("storage-of-mine",), "holds something else than a folder storage/"),
    ):
        given = tmp_path / "landing" / "storage.tar.gz"
        shutil.rmtree(given.parent, ignore_errors=True)
        given.parent.mkdir()
        with tarfile.open(given, "w:gz") as tar:
            for name in names:
                header = tarfile.TarInfo(name)
                header.type = tarfile.DIRTYPE if name == "storage" else tarfile.REGTYPE
                tar.addfile(header)
        with pytest.raises(MemuError, match=says):
            await source.prepare(given, summary, "now")
        assert not list(tmp_path.rglob("evil")) and not (tmp_path / "home" / "data").exists()


async def test_a_file_where_a_folder_should_be_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SourceError, match="is not a folder"):
        await directory(tmp_path / "file").check()


async def test_a_link_to_the_folder_is_as_good_as_the_folder(tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "photos").symlink_to("disk")
    async with directory(tmp_path / "photos").capture(tmp_path) as captured:
        assert captured.roots[0].path == tmp_path / "photos"


async def test_settings_reach_the_walk(tmp_path: Path) -> None:
    source = directory(tmp_path, exclude=["*.tmp"], cross_filesystems=True, place="pictures/of us/")
    async with source.capture(tmp_path) as captured:
        (root,) = captured.roots
    assert (root.place, root.exclude, root.cross_filesystems) == ("pictures/of us/", ("*.tmp",), True)


@pytest.mark.parametrize(
    "place", ["/photos/", "../photos/", "a//b/", "", "metadata.json/", "a\\b/", "a\nb/", "a/.tar.gz"]
)
def test_a_place_that_is_no_folder_in_the_archive_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValidationError):
        directory(tmp_path, place=place)


@contextmanager
def dead_share(folder: Path) -> Iterator[None]:
    """A filesystem whose server is there and never answers, like an NFS mount whose machine is off."""
    try:
        answering = os.open("/dev/fuse", os.O_RDWR)
    except OSError:
        pytest.skip("needs /dev/fuse")
    options = f"fd={answering},rootmode=40000,user_id=0,group_id=0"
    mount = ["mount", "-i", "-t", "fuse", "-o", options, "dead", str(folder)]
    if subprocess.run(mount, pass_fds=[answering]).returncode != 0:
        os.close(answering)
        pytest.skip("needs the right to mount")
    try:
        yield
    finally:
        os.close(answering)  # whoever still waits gets an error
        subprocess.run(["umount", "--lazy", folder], check=True)  # a child that is just being made may hold it


async def test_a_disk_that_does_not_answer_is_a_sentence_and_holds_nobody_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sources, "ANSWER_S", 0.3)
    (tmp_path / "share").mkdir()
    with dead_share(tmp_path / "share"):
        folder = directory(tmp_path / "share" / "photos")
        config = FilesSource("config", FilesSettings(kind="files", paths=(tmp_path / "share" / ".env",)))
        for one in (folder, config):
            with pytest.raises(SourceError, match=rf"disk of source {one.name} has not answered for 0\.3 s"):
                await asyncio.wait_for(one.check(), 10)
    deadline = time.monotonic() + 10
    while any(t.name == "memu-work" for t in threading.enumerate()):
        assert time.monotonic() < deadline
        await asyncio.sleep(0.01)

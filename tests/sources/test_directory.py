"""A folder: what it asks for before it starts, and that all of it comes back."""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from pydantic import ValidationError

from memu_backup import sources
from memu_backup.errors import SourceError
from memu_backup.sources.directory import DirectorySettings, DirectorySource
from memu_backup.sources.files import FilesSettings, FilesSource
from tests.archives import Unpacked, plain_tree, snapshot
from tests.contracts.sources import SourceContract


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


@pytest.mark.parametrize("place", ["/photos/", "../photos/", "a//b/", "", "metadata.json/", "a\\b/", "a\nb/"])
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

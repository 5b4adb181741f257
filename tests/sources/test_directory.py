"""A folder: what it asks for before it starts, and that all of it comes back."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest
from pydantic import ValidationError

from memu_backup.errors import SourceError
from memu_backup.sources.directory import DirectorySettings, DirectorySource
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


@pytest.mark.parametrize("place", ["photos", "/photos/", "../photos/", "a//b/", "", "metadata.json/", "a\\b/", "a\nb/"])
def test_a_place_that_is_no_folder_in_the_archive_is_refused(tmp_path: Path, place: str) -> None:
    with pytest.raises(ValidationError):
        directory(tmp_path, place=place)


def test_making_a_source_touches_nothing() -> None:
    directory(Path("/nowhere") / str(os.getpid()))

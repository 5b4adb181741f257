"""Drives with a backup and the kit."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from memu_backup.stores.archive import ArchiveStore
from tests.archives import archive_store, back_up, plain_tree, tree
from tests.rescue.drive import put_program

HOUSEHOLD = "household"


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, Path]]:
    """A household's folder and its backup, for tests that change neither."""
    folder = tmp_path_factory.mktemp("made")
    source = plain_tree(folder / HOUSEHOLD)
    store: ArchiveStore = archive_store(folder / "store")
    yield source, back_up(store, tree(source))


@pytest.fixture
def drive(made: tuple[Path, Path], tmp_path: Path) -> Path:
    """A drive of one's own with that backup."""
    _, archive = made
    folder = tmp_path / "drive"
    folder.mkdir()
    for path in (archive, archive.with_name(f"{archive.name}.sha256")):
        shutil.copy(path, folder)
    put_program(folder)
    return folder


@pytest.fixture
def name(made: tuple[Path, Path]) -> str:
    return made[1].name


@pytest.fixture
def source(made: tuple[Path, Path]) -> Path:
    return made[0]

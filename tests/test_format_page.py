"""docs/format.md is for the day on which nothing of ours is at hand: its lines are typed here as they stand there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from memu_backup.formats import gzip, index
from memu_backup.stores.archive import ArchiveStore
from tests.archives import archive_store, back_up, plain_tree, snapshot, tree

PAGE = (Path(__file__).parent.parent / "docs" / "format.md").read_text()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> ArchiveStore:
    """A store with one backup, under the name that the page uses."""
    store = archive_store(tmp_path_factory.mktemp("store"))
    path = back_up(store, tree(plain_tree(tmp_path_factory.mktemp("household"))))
    assert path.name in PAGE
    return store


def test_every_line_of_the_page_does_what_it_says(store: ArchiveStore, tmp_path: Path) -> None:
    for path in store.directory.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    lines = "\n".join(re.findall(r"```sh\n(.*?)```", PAGE, re.DOTALL)).replace("4000M", "4M")  # this one is small
    typed = subprocess.run(["sh", "-eu"], input=lines, cwd=tmp_path, capture_output=True, text=True)
    assert (typed.returncode, typed.stderr) == (0, "")
    (backup,) = store.backups()
    assert backup.manifest
    (source,) = backup.manifest.sources
    hashes = re.findall(r"\b[0-9a-f]{64}\b", typed.stdout)
    # What `tar -xO metadata.json` shows comes first; the last three are what the page computes.
    assert hashes[-3:] == [backup.manifest.sha256sums, source.checksum, source.modes_checksum]
    assert len(list(tmp_path.glob("*.part0*"))) == 3
    assert snapshot(tmp_path / "unpacked" / "photos") == snapshot(tmp_path / "restored" / "photos")
    for name in ("film.mp4", "2024/Ostern/IMG_0001.jpg"):
        assert (tmp_path / "photos" / name).read_bytes() == b"".join(store.content(backup.path, f"photos/{name}"))


def test_the_numbers_of_the_page_are_those_of_the_program(store: ArchiveStore) -> None:
    (backup,) = store.backups()
    tail = backup.path.read_bytes()[-gzip.FOOTER_BYTES :]
    assert (gzip.FOOTER_BYTES, gzip.HEADER_BYTES, gzip.ALIGNMENT) == (60, 20, 4096)
    assert (tail[12:14], tail[20:22], tail[22:24]) == (b"MB", b"MF", (26).to_bytes(2, "little"))
    assert int.from_bytes(tail[42:50], "little") == backup.size_bytes
    assert gzip.MEMBER_LIMIT == 8 << 20
    assert index.FORMAT in PAGE
    for column in index.COLUMNS:
        assert f"`{column}`" in PAGE

"""A file in which a backup says of itself what another program wants to read there."""

from __future__ import annotations

import json
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from memu_backup.model import Captured
from memu_backup.paths import relative_to
from memu_backup.sources import Source
from memu_backup.sources.directory import DirectorySettings, DirectorySource
from memu_backup.sources.label import LabelSettings, LabelSource
from tests.archives import archive_store, back_up
from tests.home import Home

KEYS = {
    "backup_name": "{called}",
    "created_at": "{created_at}",
    "kuroibara_version": "{line:version}",
    "includes_storage": "{has:storage}",
    "database_size": "{size:database}",
    "storage_size": "{size:storage}",
    "beside": "{name} at {time} on {host}, {size:storage} bytes",
}


def label(folder: Path, **keys: str) -> LabelSource:
    told = {"kind": "label", "place": "backup_metadata.json", "keys": keys or KEYS, "lines": {"version": "VERSION"}}
    with relative_to(folder):
        return LabelSource("told", LabelSettings.model_validate(told))


async def said(folder: Path, *sources: Source) -> dict[str, Any]:
    """What it says in a backup of these, whatever their order."""
    async with AsyncExitStack() as captures:
        captured: list[Captured] = []
        for source in sources:
            stage = folder / f"stage-{source.name}"
            stage.mkdir()
            captured.append(await captures.enter_async_context(source.capture(stage)))
        store = archive_store(folder / "store")
        archive = back_up(store, *captured)
    document: dict[str, Any] = json.loads(b"".join(store.content(archive, "backup_metadata.json")))
    return document


async def test_it_tells_what_the_other_program_wants_to_know(tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "1.cbz").write_bytes(b"cbz")
    (tmp_path / "VERSION").write_text("0.6.1\nand more\n")
    packed = {"kind": "directory", "path": tmp_path / "media", "place": "storage.tar.gz"}
    storage = DirectorySource("storage", DirectorySettings.model_validate(packed))
    source = label(tmp_path)
    assert await source.check() == []
    document = await said(tmp_path, source, storage)
    (size_bytes,) = [s.size_bytes for s in _summaries(tmp_path) if s.name == "storage"]
    assert document == {
        "backup_name": "nightly_20260304",
        "created_at": "2026-03-04T01:00:00.000Z",
        "kuroibara_version": "0.6.1",
        "includes_storage": True,
        "database_size": 0,
        "storage_size": size_bytes,
        "beside": f"memu_backup_20260304_010000 at 020000 on attic, {size_bytes} bytes",
    }
    assert list(document) == list(KEYS)


def _summaries(folder: Path) -> tuple[Any, ...]:
    (backup,) = archive_store(folder / "store").backups()
    assert backup.manifest
    return backup.manifest.sources


async def test_a_file_that_is_not_there_is_said_by_a_check_and_costs_nothing(tmp_path: Path) -> None:
    source = label(tmp_path, version="{line:version}", has="{has:storage}")
    assert await source.check() == [
        f'{tmp_path}/VERSION (source told) cannot be read, so backup_metadata.json says "unknown" in its place.'
    ]
    assert await said(tmp_path, source) == {"version": "unknown", "has": False}


@pytest.mark.parametrize("text", ["{nme}", "{name:x}", "{size}", "{size:}", "{}", "{line:}", "{line:other}"])
def test_what_nobody_can_tell_is_a_mistake(tmp_path: Path, text: str) -> None:
    with pytest.raises(ValidationError, match=r"which stands for nothing; there are \{name\}, "):
        label(tmp_path, key=text)


def test_it_comes_with_each_backup_and_names_sources_that_there_are(tmp_path: Path, database: str) -> None:
    home = Home(tmp_path / "home", database)
    sources = (
        '[sources.told]\nkind = "label"\nplace = "about.json"\nkeys = { photos = "{size:PHOTOS}" }\n'
        '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    )
    home.configure(sources=sources)
    wrong = home.run("check")
    assert wrong.status == 2
    assert "sources.told: speaks of source PHOTOS, which is not there" in wrong.err
    home.configure(sources=sources.replace("PHOTOS", "photos"))
    assert home.run("start").status == 0 and home.run("verify").status == 0
    assert home.run("restore", "--to", "back", "--yes").status == 0
    held = sum(file.stat().st_size for file in home.photos.rglob("*.jpg"))
    assert json.loads((home.folder / "back" / "about.json").read_text()) == {"photos": held}
    home.photos.rename(tmp_path / "lost")
    back = home.run("restore", "--in-place", "--yes")
    assert back.status == 0, back.err
    assert (home.photos / "2026" / "lake.jpg").is_file()

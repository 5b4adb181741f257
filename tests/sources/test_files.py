"""A handful of files and folders: each under its own name, and what is missing is said."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from pydantic import ValidationError

from memu_backup.sources import Lacking
from memu_backup.sources.files import FilesSettings, FilesSource
from tests.archives import Unpacked, snapshot
from tests.contracts.sources import SourceContract


def files(*paths: Path, **more: object) -> FilesSource:
    return FilesSource("config", FilesSettings.model_validate({"kind": "files", "paths": paths, **more}))


NAMES = (".env", "element-config.json", "nginx")


class TestFilesIsASource(SourceContract):
    def household(self, folder: Path) -> Path:
        (folder / ".env").write_text("PASSWORD=x\n")
        (folder / ".env").chmod(0o600)
        (folder / "element-config.json").write_text("{}\n")
        (folder / "nginx" / "conf.d").mkdir(parents=True)
        (folder / "nginx" / "conf.d" / "site.conf").write_text("server {}\n")
        return folder

    def make(self, data: Path) -> FilesSource:
        return files(*(data / name for name in NAMES))

    def take_away(self, data: Path) -> None:
        for path in sorted(data.rglob("*"), reverse=True):
            path.rmdir() if path.is_dir() else path.unlink()

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        assert self.held(unpacked.target / "config") == self.held(data)

    def held(self, data: Path) -> object:
        found = snapshot(data)
        found.pop(b".")  # the place itself is ours; only what was named is the household's
        return {path: told for path, told in found.items() if b".before-" not in path and b".memu-backup" not in path}


async def test_one_missing_file_is_a_warning_of_the_check_and_missing_in_the_backup(tmp_path: Path) -> None:
    (tmp_path / ".env").touch()
    source = files(tmp_path / ".env", tmp_path / "gone")
    (warning,) = await source.check()
    assert isinstance(warning, Lacking)
    assert str(tmp_path / "gone") in warning
    async with source.capture(tmp_path) as captured:
        assert (captured.warnings, captured.missing) == ((), (warning,))
        assert [r.place for r in captured.roots] == ["config/.env"]


AS_ANYBODY = """
import asyncio, os, pathlib, sys
from memu_backup.sources import Lacking
from memu_backup.sources import Lacking
from memu_backup.sources.files import FilesSettings, FilesSource
paths = [pathlib.Path(p) for p in sys.argv[1:]]
source = FilesSource("config", FilesSettings(kind="files", paths=paths, optional=True))
if os.geteuid() == 0:
    os.setgroups([]), os.setgid(65534), os.setuid(65534)
for warning in asyncio.run(source.check()):
    print(type(warning).__name__, warning)
"""


def test_a_file_that_may_not_be_read_is_known_before_the_backup() -> None:
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        paths = [Path(folder) / name for name in ("open", "closed", "folder")]
        paths[0].touch()
        paths[0].chmod(0o644)
        paths[1].touch(0)
        paths[2].mkdir(0o444)
        told = subprocess.run([sys.executable, "-c", AS_ANYBODY, *paths], check=True, capture_output=True, text=True)
        assert told.stdout.splitlines() == [
            f"Lacking {path} (source config) may not be read by this user." for path in paths[1:]
        ]


async def test_an_optional_file_may_be_missing(tmp_path: Path) -> None:
    (tmp_path / ".env").touch()
    async with files(tmp_path / ".env", tmp_path / "gone", optional=True).capture(tmp_path) as captured:
        assert captured.missing == ()
        assert len(captured.warnings) == 1


def test_two_paths_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValidationError, match=r"same name \(a\)"):
        files(tmp_path / "x" / "a", tmp_path / "y" / "a")


def test_no_paths_at_all_are_refused() -> None:
    with pytest.raises(ValidationError):
        files()

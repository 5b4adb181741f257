"""Backups that are off until somebody says where they are to lie."""

from __future__ import annotations

from pathlib import Path

import pytest

from memu_backup.config import load
from memu_backup.config_shown import show
from memu_backup.errors import UsageError
from tests.home import Home
from tests.service import Service, settings


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    made = Home(tmp_path / "home", database)
    made.configure(top='backup_dir = ""\n')
    return made


def test_without_a_folder_for_backups_nothing_is_made_and_all_who_ask_are_told(home: Home) -> None:
    file = home.folder / "config.toml"
    says = (
        f"Job nightly is off, and no backup is made: backup_dir is empty. Name a folder there, in {file}, or in the "
        "variable BACKUP_DIR; then make the first backup: memu-backup start\n"
    )
    for argv, status in (("start",), 2), (("start", "nightly"), 2), (("clean",), 2), (("status",), 1):
        ran = home.run(*argv)
        assert (ran.status, ran.out, ran.err) == (status, "", says)
    ran = home.run("status", "--json")
    assert (ran.status, ran.json, ran.err) == (1, {}, says)
    ran = home.run("check")
    assert ran.status == 1 and f" NO  backups: {says}" in ran.out, ran
    assert not home.backups.exists() and not list(home.folder.glob("20*"))


def test_a_variable_turns_them_on(home: Home) -> None:
    environ = {"BACKUP_DIR": str(home.folder / "disk")}
    assert home.run("start", environ=environ).status == 0
    assert home.run("status", environ=environ).status == 0
    assert len(list((home.folder / "disk").glob("*.tar.gz"))) == 1
    assert home.run("status").status == 1


def test_a_store_with_a_folder_of_its_own_is_not_off(home: Home) -> None:
    home.configure('store = "b"\n[jobs.other]\nstore = "a"\n[stores.a]\nkind = "archive"\n'
                   '[stores.b]\nkind = "archive"\ndir = "b"\n', top='backup_dir = ""\n')  # fmt: skip
    config = load(home.folder / "config.toml", {})
    assert list(config.jobs) == ["nightly"] and "Job other is off" in config.off
    assert show(config)["off"] == config.off
    with pytest.raises(UsageError, match="Job other is off"):
        config.job("other")
    assert home.run("start").status == 0


async def test_the_service_runs_all_the_same_and_says_so(tmp_path: Path) -> None:
    file = settings(tmp_path / "home", '[sources.a]\nkind = "directory"\npath = "photos"\n', history=None)
    file.write_text(file.read_text().replace('"backups"', '""'))
    async with Service(file) as service:
        await service.logs("memu-backup is ready; no job is on.")
        await service.logs("Job nightly is off, and no backup is made")

"""What ``init`` writes: settings that hold for the folder that was named, and the way from there to a first backup."""

from __future__ import annotations

import os
import tomllib
from pathlib import Path

import pytest

from memu_backup import presets
from memu_backup.config import load
from memu_backup.config_shown import show
from memu_backup.draft import Draft, draft, write
from memu_backup.errors import UsageError
from memu_backup.retention import Policy
from tests.home import PROGRAM, Home, ran

KEEPS: dict[str, tuple[str, str | None]] = {
    "kuroibara": ("backups", None),
    "medianest": ("backups", "secrets"),
    "memu": ("backups", "photos"),
    "monsterr": ("backups", "media/movies"),
    "soundbox": ("", "generated"),
}
"""Of each preset: where backups go, and some of what it protects."""


async def drafted(name: str, home: Path, to: Path) -> Draft:
    made = await draft(name, home, to.parent)
    write(made.text, to)
    return made


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("home", ["memu", 'my "memu" \\ photos', "größe", "two\nlines", "a {home} \t \x7f \U000e0001"])
async def test_a_preset_holds_the_absolute_paths_of_its_home(name: str, home: str, tmp_path: Path) -> None:
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    made = await drafted(name, tmp_path / home, file)
    config = load(file, {})
    folder, data = KEEPS[name]
    assert config.backup_dir == (tmp_path / home / folder if folder else None)
    assert data is None or str(tmp_path / home / data) in made.not_found
    assert file.stat().st_mode & 0o777 == 0o600
    text = file.read_text()
    assert ' = ".' not in text
    comment = ""
    for line in text.splitlines():
        if str(tmp_path) in line.partition("#")[0]:
            assert "CHECK" in comment
        comment = comment + line if line.startswith(("#", "paths", " ")) else ""


async def test_the_memu_preset_holds_what_memu_keeps(tmp_path: Path) -> None:
    await drafted("memu", tmp_path, tmp_path / "config.toml")
    config = load(tmp_path / "config.toml", {})
    job = config.job("nightly")
    assert (job.cron, job.retention, job.services) == ("0 2 * * *", Policy(7), ("memu",))
    places = {config.source(name).place for name in job.sources}
    assert places == {"photos/", "pgdata/", "synapse/", "ollama/", "config/", "memu-backup/"}
    assert job.needs_stop == {"pgdata", "synapse", "config"}
    assert show(config)["stores"]["local"]["prefix"] == "memu_backup"


async def test_the_variables_of_its_own_script_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / ".env").write_text(
        "export BACKUP_DIR='/mnt/disk/my backups'\nBACKUP_RETENTION_COUNT=12\n"
        "BACKUP_NOTIFICATION_ROOM=!fam:example.org\nUPLOAD_LOCATION=/mnt/photos\nDB_PASSWORD=s3cret\n"
    )
    made = await drafted("memu", tmp_path, tmp_path / "config.toml")
    config = load(tmp_path / "config.toml", {})
    assert (str(config.backup_dir), config.backup_retention_count) == ("/mnt/disk/my backups", 12)
    assert config.backup_notification_room == "!fam:example.org"
    assert tomllib.loads(made.text)["sources"]["photos"]["path"] == "/mnt/photos"
    assert "s3cret" not in made.text


async def test_a_folder_that_a_settings_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="characters in its name"):
        await draft("memu", tmp_path / os.fsdecode(b"latin-1 \xe9"), tmp_path)


def test_from_init_to_the_first_backup(tmp_path: Path, database: str) -> None:
    """The lines of README's \"Protect a real machine\", the settings in a folder of their own; without Docker."""
    memu = Home(tmp_path / "memu", database).folder
    (memu / "config.toml").unlink()
    (memu / "synapse").mkdir()
    etc = tmp_path / "etc"
    etc.mkdir(mode=0o700)
    environ = {**os.environ, "MEMU_BACKUP_STATE_DIR": str(tmp_path / "state")}
    file = etc / "config.toml"

    made = ran([PROGRAM, "init", "--preset", "memu", "--home", str(memu), "--to", str(file)], tmp_path, environ)
    assert (made.status, made.err) == (0, "")
    named = made.out.splitlines()
    assert named[0].startswith("Docker does not answer at ")
    assert named[1] == f"There is no compose file in {memu}. Is it another folder? Name it with --home FOLDER."
    assert named[2:4] == [f"Wrote {file}.", f"Marked {memu}/backups as a place for backups."]
    assert named[named.index("Not found, or this user may not see it:") + 1 : -2] == [
        "  backup_notification_room (BACKUP_NOTIFICATION_ROOM in .env)",
        f"  {memu}/element-config.json",
        f"  {memu}/docker-compose.yml",
    ]
    assert named[-1] == f"  memu-backup --config {file} check"

    checked = ran([PROGRAM, "-c", str(file), "check"], tmp_path, environ)
    assert checked.status == 1
    without_docker = {"source pgdata", "source ollama", "service memu"}
    lacking = {line[5:].split(":")[0] for line in checked.out.splitlines() if line.startswith(" NO")}
    assert lacking == without_docker | {"the service", "alerts"}
    tables = file.read_text().split("\n\n")
    needs_docker = ("[services.memu]", "[sources.pgdata]", "[sources.ollama]")
    left = "\n\n".join(t for t in tables if not any(table in t for table in needs_docker))
    file.write_text(left.replace('consistency = "stop"', ""))
    checked = ran([PROGRAM, "-c", str(file), "check"], tmp_path, environ)
    lacking = {line[5:].split(":")[0] for line in checked.out.splitlines() if line.startswith(" NO")}
    assert lacking == {"the service", "alerts"}
    started = ran([PROGRAM, "-c", str(file), "start"], tmp_path, environ)
    assert started.status == 0 and len(list((memu / "backups").glob("memu_backup_*.tar.gz"))) == 1
    assert sorted(p.name for p in etc.iterdir()) == ["config.toml"]

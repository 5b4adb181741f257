"""What ``init`` writes: settings that hold for the folder that was named, and the way from there to a first backup."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memu_backup import presets
from memu_backup.config import load
from memu_backup.config_shown import show
from memu_backup.errors import UsageError
from memu_backup.presets import write
from memu_backup.retention import Policy
from tests.home import PROGRAM, Home, ran


@pytest.mark.parametrize("name", presets.names())
@pytest.mark.parametrize("home", ["memu", 'my "memu" \\ photos', "größe"])
def test_a_preset_holds_the_absolute_paths_of_its_home(name: str, home: str, tmp_path: Path) -> None:
    file = tmp_path / "etc" / "config.toml"
    file.parent.mkdir()
    missing = write(name, file, tmp_path / home)
    config = load(file, {})
    assert config.backup_dir == tmp_path / home / "backups"
    assert {tmp_path / home / "photos", tmp_path / "etc" / "postgres-url"} <= set(missing)
    assert file.stat().st_mode & 0o777 == 0o600
    lines = file.read_text().splitlines()
    for number, line in enumerate(lines):
        if str(tmp_path) in line.partition("#")[0]:
            assert "CHECK" in lines[number - 2] + lines[number - 1] + line
        assert ' = ".' not in line and "{" not in line


def test_the_memu_preset_holds_what_memu_keeps(tmp_path: Path) -> None:
    write("memu", tmp_path / "config.toml", tmp_path)
    config = load(tmp_path / "config.toml", {})
    job = config.job("nightly")
    assert (job.cron, job.retention) == ("0 2 * * *", Policy(7))
    places = {config.source(name).place for name in job.sources}
    assert places == {"photos/", "pgdata/", "synapse/", "ollama/", "config/"}
    assert show(config)["stores"]["local"]["prefix"] == "memu_backup"


def test_a_folder_that_a_settings_file_cannot_hold_is_refused(tmp_path: Path) -> None:
    for odd in (b"two\nlines", b"latin-1 \xe9"):
        with pytest.raises(UsageError, match="characters in its name"):
            write("memu", tmp_path / "config.toml", tmp_path / os.fsdecode(odd))
    assert list(tmp_path.iterdir()) == []


def test_from_init_to_the_first_backup(tmp_path: Path, database: str) -> None:
    """The lines of README's \"Protect a real machine\", the settings in a folder of their own."""
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
    assert named[0] == f"Wrote {file}."
    assert named[1] == f"Marked {memu}/backups as a place for backups."
    assert named[3:-2] == [
        f"  {etc}/postgres-url",
        "  /var/lib/docker/volumes/memu_ollama_data/_data",
        f"  {memu}/element-config.json",
    ]
    assert named[-1] == f"  memu-backup --config {file} check"

    checked = ran([PROGRAM, "-c", str(file), "check"], tmp_path, environ)
    assert checked.status == 1
    assert {line.split(":")[0] for line in checked.out.splitlines() if line.startswith(" NO")} == {
        " NO  source pgdata",
        " NO  source ollama",
        " NO  source config",
        " NO  the service",
        " NO  alerts",
    }
    (etc / "postgres-url").write_text(database + "\n")
    before, _, after = file.read_text().partition("[sources.ollama]")
    text = before + after[after.index("[sources.config]") :]
    file.write_text(text.replace('databases = "all"', "").replace(f', "{memu}/element-config.json"', ""))
    checked = ran([PROGRAM, "-c", str(file), "check"], tmp_path, environ)
    lacking = [line.split(":")[0] for line in checked.out.splitlines() if line.startswith(" NO")]
    assert lacking == [" NO  the service", " NO  alerts"]
    started = ran([PROGRAM, "-c", str(file), "start"], tmp_path, environ)
    assert started.status == 0 and len(list((memu / "backups").glob("memu_backup_*.tar.gz"))) == 1
    assert sorted(p.name for p in etc.iterdir()) == ["config.toml", "postgres-url"]

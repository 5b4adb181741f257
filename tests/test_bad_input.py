"""What people get wrong, and what machines do to them: one sentence, an exit status, and nothing left behind."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from memu_backup.postgres.server import PostgresServer
from tests.home import Home, Ran, fingerprints, in_a_loop_of_its_own, query
from tests.sources.conftest import DebianServer, debian

__all__ = ["debian"]


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


def one_sentence(ran: Ran, status: int, *says: str) -> None:
    """Exit status, what it says, and that it says it calmly: no traceback, no class names, no empty lines."""
    assert ran.status == status, ran
    for part in says:
        assert part in ran.err, ran.err
    assert ran.err.endswith((".\n", "?\n")) or status == 2, ran.err
    for noise in ("Traceback", "Error(", "Errno", "errno", "\n\n"):
        assert noise not in ran.err, ran.err


# --- settings --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ("[sources\n", "line 1"),
        ('backup_dri = "x"', "backup_dri"),
        ("backup_retention_count = 0", "backup_retention_count"),
        ('log_flie = "memu.log"', "log_file"),
        ('[jobs.other]\nat = "25:00"', "jobs.other.at"),
        ('[jobs.other]\nsources = ["fotos"]', "fotos"),
        ('[sources.more]\nkind = "directroy"\npath = "x"', "directroy"),
        ('[sources.more]\nkind = "directory"', "sources.more.path"),
        ('[sources.more]\nkind = "directory"\npath = "x"\nplace = "../x/"', "sources.more.place"),
        ('backup_notification_room = "family"', "backup_notification_room"),
    ],
)
def test_settings_with_a_mistake_start_nothing(home: Home, settings: str, says: str) -> None:
    table = settings.startswith("[")
    home.configure(*([settings] if table else []), top="" if table else settings)
    before = fingerprints(home.folder)
    ran = home.run("start")
    one_sentence(ran, 2, "config.toml", "nothing was started", says)
    assert fingerprints(home.folder) == before and not home.backups.exists() and not (home.folder / "state").exists()


def test_every_mistake_is_told_at_once_and_variables_count_too(home: Home) -> None:
    home.configure(top='backup_dri = "x"\nbackup_retention_count = "many"')
    ran = home.run("status", "--json", environ={"MEMU_BACKUP_HSOT": "x"})
    one_sentence(ran, 2, "has 3 mistakes", "backup_dir", "MEMU_BACKUP_HSOT")
    assert ran.json["error"]["code"] == "settings"


# --- sources ---------------------------------------------------------------------------------------------------------


def failed(home: Home, *says: str, status: int = 1) -> None:
    """The run fails with these words, its row says so, and nothing is left of it."""
    ran = home.run("start")
    one_sentence(ran, status, "Backup job nightly failed: ", *says)
    assert ran.out == ""
    assert home.archives == [] and home.leftovers() == []
    row = home.rows()[0]
    assert row["status"] == "failed" and row["finished_at"] and row["size_bytes"] == 0
    assert all(part in row["error"] for part in says)
    assert home.audit()[0]["outcome"] == "failed"


def test_a_source_that_is_not_there(home: Home) -> None:
    (home.photos).rename(home.folder / "elsewhere")
    failed(home, f"{home.photos} (source photos) is not there", "Is its disk mounted?")
    told = home.run("start", "--json")
    assert (told.status, told.json["status"], told.json["error_code"]) == (1, "failed", "source")
    checked = home.run("check")
    assert checked.status == 1 and f" NO  source photos: {home.photos} (source photos) is not there" in checked.out
    assert "Mend what says NO" in checked.err
    home.photos.write_text("a file in its place")
    failed(home, f"{home.photos} (source photos) is not a folder")


def test_a_check_says_no_to_what_would_make_every_backup_incomplete(home: Home) -> None:
    (home.folder / ".env").unlink()
    checked = home.run("check")
    assert checked.status == 1 and f" NO  source config: {home.folder}/.env (source config) is not there" in checked.out


def test_several_sources_that_are_not_there_are_told_in_one_go(home: Home) -> None:
    (home.photos).rename(home.folder / "elsewhere")
    (home.folder / ".env").unlink()
    (home.folder / "nginx" / "nginx.conf").unlink()
    (home.folder / "nginx").rmdir()
    failed(home, "source photos", "None of the 2 paths of source config")
    head, photos, config = home.run("start").err.splitlines()[-3:]
    assert head == "Backup job nightly failed: 2 sources cannot be backed up:"
    assert photos.startswith(f"  {home.photos} (source photos)") and config.startswith("  None of the 2 paths")


def test_postgres_refuses_the_password(home: Home, debian: DebianServer) -> None:
    home.configure(
        sources='[sources.photos]\nkind = "directory"\npath = "photos"\n[sources.pgdata]\nkind = "postgres"\n'
        f'url = "postgresql://postgres:wr0ng-passw0rd@127.0.0.1:{debian.port}/postgres"\n'
    )
    failed(home, "source pgdata", "password")
    assert "wr0ng" not in str(home.rows()) + str(home.run("status", "--json"))


def test_postgres_is_away(home: Home) -> None:
    home.configure(sources='[sources.pgdata]\nkind = "postgres"\nurl = "postgresql://memu@127.0.0.1:1/memu"\n')
    failed(home, "source pgdata")
    assert (home.rows()[0]["error_code"], home.rows()[0]["retry_at"]) == ("database_away", None)
    assert "The database did not answer" in home.run("status").out


# --- the place for backups -------------------------------------------------------------------------------------------


def test_a_backup_directory_that_cannot_be_written(home: Home) -> None:
    (home.folder / "file").write_text("mine")
    for place in ("file", "file/below"):
        home.configure(top=f'backup_dir = "{place}"')
        failed(home, f"{home.folder}/{place} is not a folder, so no backup could be stored")
        checked = home.run("check")
        assert checked.status == 1 and f"{home.folder}/file is a file and not a folder" in checked.out
        assert home.run("status").status == 1
    assert (home.folder / "file").read_text() == "mine"


def in_a_mount(home: Home, options: str, *argv: str, then: str = "") -> Ran:
    """The command with a filesystem of its own mounted at the backups, which is gone afterwards."""
    home.backups.mkdir(exist_ok=True)
    script = f'mount -t tmpfs -o {options} none "{home.backups}" && {{ "$@"; echo "$?"; {then}; }}'
    wrapped = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")
    return home.run(*argv, prefix=wrapped)


def test_a_disk_that_cannot_be_written_to(home: Home) -> None:
    ran = in_a_mount(home, "ro", "start", then=f'ls -A "{home.backups}"')
    assert ran.out == "1\n"
    assert f"{home.backups} is read-only, so no backup could be stored." in ran.err
    assert home.rows()[0]["status"] == "failed"
    checked = in_a_mount(home, "ro", "check", then="true")
    assert f"{home.backups} cannot be written to" in checked.out


def test_a_disk_that_is_full(home: Home) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(3_000_000))
    ran = in_a_mount(home, "size=1m", "start", then=f'ls -A "{home.backups}"')
    assert ran.out == "1\n.memu-backup.json\n.memu_backup.lock\n"
    assert f"The disk that holds {home.backups} is full, so this backup was given up" in ran.err
    row = home.rows()[0]
    assert (row["status"], row["error_code"]) == ("failed", "disk_full")
    status = home.run("status")
    assert "Disk full" in status.out and "Free up space or add storage".lower() in status.out.lower()


# --- what was typed --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def backed_up(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Home:
    folder = tmp_path_factory.mktemp("bad")
    in_a_loop_of_its_own(query(postgres.url(), "DROP DATABASE IF EXISTS bad_input", "CREATE DATABASE bad_input"))
    home = Home(folder / "home", postgres.url("bad_input"))
    assert home.run("start").status == 0 and home.run("start").status == 0
    return home


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("start", "nigthly"), "There is no job called nigthly; did you mean nightly?"),
        (("clean", "weekly"), "There is no job called weekly"),
        (("verify", "--level", "ful"), "There is no level ful; there are: quick, full. Did you mean full?"),
        (("verify", "memu_backup_2020"), "There is no backup memu_backup_2020. See what there is with"),
        (("restore", "memu_backup", "--yes"), "2 backups begin with memu_backup. See what there is with"),
        (("show", "./gone.tar.gz"), "gone.tar.gz"),
        (("restore", "--source", "fotos", "--yes"), "There is no source fotos in this backup; it has photos, config."),
        (
            ("init", "--preset", "mem", "--to", "new.toml"),
            "There is no preset mem; there are: kuroibara, medianest, memu, monsterr, soundbox. Did you mean memu?",
        ),
        (("init", "--to", "gone/new.toml"), "gone/new.toml cannot be written"),
    ],
)
def test_what_there_is_not_is_told_with_what_there_is(backed_up: Home, argv: tuple[str, ...], says: str) -> None:
    before = fingerprints(backed_up.folder)
    ran = backed_up.run(*argv)
    one_sentence(ran, 2, says)
    assert ran.out == ""
    after = fingerprints(backed_up.folder)
    assert {n for n in after if n not in before} == set()


@pytest.mark.parametrize("content", [b"", b"not an archive", b"\x1f\x8b\x08 and then nothing", bytes(100_000)])
def test_a_file_that_is_no_archive(backed_up: Home, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "notes.tar.gz"
    file.write_bytes(content)
    for command in (("restore", str(file), "--to", str(tmp_path / "back"), "--yes"), ("show", str(file))):
        ran = backed_up.run(*command)
        assert ran.status in (1, 2), ran
        one_sentence(ran, ran.status, "notes.tar.gz")
    verified = backed_up.run("verify", str(file))
    assert verified.status in (1, 2) and "notes.tar.gz" in verified.err and "Traceback" not in verified.err
    assert not (tmp_path / "back").exists()


def test_a_folder_is_no_archive(backed_up: Home) -> None:
    one_sentence(backed_up.run("restore", "./photos", "--yes"), 2, "photos")
    assert list(backed_up.folder.glob("restored_*")) == []

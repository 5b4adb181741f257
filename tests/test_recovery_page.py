"""docs/recovery.md, followed line by line by somebody who has lost everything but the drive."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC
from pathlib import Path

import psutil
import pytest

from memu_backup.rescue import kit
from memu_backup.stores.archive import ArchiveStore
from tests import old_server
from tests.archives import TAKEN_AT, archive_store, back_up, plain_tree, snapshot, tree
from tests.debian import Machine, empty_drive, machine, until
from tests.killing import Moment, needs_strace, waiting_for
from tests.old_server import BACKUPS, PHOTO, PHOTOS, SOURCES, SQLITE, Seen
from tests.pages import ROOT, blocks, lines, section

PAGE = (ROOT / "docs" / "recovery.md").read_text()
MEDIA, PACKAGES = "/media/SanDisk_Family", "/var/cache/apt/archives"
STANDS_FOR = {
    "DRIVE": f"{MEDIA}/memu-backup",
    "DEVICE": "/dev/drive",
    "ADDRESS": "/root/upstream",
    "USER": "root",
    "SOURCES": " --source ".join(SOURCES),
    "BACKUPS": BACKUPS,
}
NO_PLACEHOLDERS = {"TRUNCATE", "IMG_2041", "PRAGMA", "UTF8", "C", "SHA256SUMS", "D"}


def test_whatever_stands_for_something_is_known() -> None:
    said = set(re.findall(r"\b[A-Z][A-Z_0-9]*\b", re.sub(r"#.*", "", "".join(blocks(PAGE, "sh")))))
    assert said - NO_PLACEHOLDERS == {*STANDS_FOR, "NAME", "FOLDER", "ARCHIVE"}


@pytest.fixture
def drive(tmp_path: Path) -> Path:
    """A household's drive: its folder of ours."""
    store: ArchiveStore = archive_store(tmp_path / "store")
    made = back_up(store, tree(plain_tree(tmp_path / "household")))
    folder = tmp_path / "a drive" / "memu-backup"
    (folder / "attic_nightly").mkdir(parents=True)
    for path in (made, made.with_name(f"{made.name}.sha256")):
        shutil.copy(path, folder / "attic_nightly")
    for file, content in kit("blue drive", [], TAKEN_AT, UTC).items():
        (folder / file).write_bytes(content)
    return folder


def test_a_with_python_and_nothing_else(drive: Path, tmp_path: Path) -> None:
    home, programs = tmp_path / "home", tmp_path / "programs"
    home.mkdir()
    programs.mkdir()
    (programs / "python3").symlink_to("/usr/bin/python3")
    (archive,) = drive.rglob("*.tar.gz")
    stands_for = {"DRIVE": f"'{drive}'", "NAME": str(archive.relative_to(drive))}
    before = snapshot(drive)
    script = lines(section(PAGE, "A"), STANDS_FOR | stands_for)
    typed = subprocess.run(
        ["/bin/sh", "-eu"], input=script, text=True, capture_output=True, cwd=home,
        env={"HOME": str(home), "PATH": str(programs), "LANG": "C.UTF-8"},
    )  # fmt: skip
    assert typed.returncode == 0, typed
    assert typed.stdout.splitlines()[0] == "Backups here, the newest first:" and stands_for["NAME"] in typed.stdout
    assert snapshot(home / "found" / "photos") == snapshot(tmp_path / "household")
    assert [p.name for p in (home / "pictures").rglob("*") if p.is_file()] == ["IMG_0001.jpg"]
    assert snapshot(drive) == before


# --- a server that is gone -------------------------------------------------------------------------------------------


def type_in(new: Machine, letter: str, **stands_for: str) -> str:
    """All lines of a section in one terminal, each of which has to go well. Returns what they said."""
    script = lines(section(PAGE, letter), STANDS_FOR | stands_for)
    ran = new.run("sh", "-euc", f"cd; exec 2>&1; set -x\n{script}", timeout_s=900)
    assert ran.status == 0, f"{letter} ended with {ran.status}:\n{ran.out}\n{ran.err}"
    return ran.out


@pytest.mark.slow
@pytest.mark.timeout(2400)
@needs_strace
def test_who_lost_the_server_follows_the_page_and_is_back(tmp_path: Path) -> None:
    image, packages = empty_drive(tmp_path, 96), tmp_path / "packages"
    with _a_machine(tmp_path / "old", image) as old:
        old_server.set_up(old)
        (archive,) = old.path(BACKUPS).glob("*.tar.gz")
        before = old_server.look(old)
        shutil.copytree(old.path(PACKAGES), packages)  # else all are downloaded once more
    name = f"family-server_nightly/{archive.name}"

    with _a_machine(tmp_path / "new", image) as new:
        shutil.copytree(packages, new.path(PACKAGES), dirs_exist_ok=True)
        old_server.prepare(new)
        old_server.repository(new, STANDS_FOR["ADDRESS"])
        _any_computer(new, name, before)

        said = type_in(new, "B", NAME=name)
        assert old_server.look(new) == before
        assert old_server.keys_given_away(new) == 0
        assert new.path("/etc/memu-backup/fallback").read_text() == old_server.FALLBACK
        assert new.good("systemctl", "is-active", "memu-backup") == "active"
        assert "All systems healthy" in said and archive.name in new.good("memu-backup", "log")

        old_server.sql(new, "synapse", "DELETE FROM events WHERE id > 7")
        type_in(new, "C")
        assert old_server.look(new) == before
        assert old_server.rows(new, "synapse_again")["synapse_again.events"] == before.rows["synapse.events"]

        new.good("rm", f"{PHOTOS}/{PHOTO}")
        type_in(new, "D")
        assert _bytes(old_server.look(new)) == _bytes(before)

        type_in(new, "E")
        assert old_server.sql(new, "synapse", "SELECT count(*) FROM events") == "7"

        _kill_in_the_middle(new)
        type_in(new, "F")
        assert old_server.look(new).photos == before.photos

        _lose_everything(new)
        as_a_desktop(new, "mount", "-o", "ro", "/dev/drive", MEDIA)
        folder, _, file = name.rpartition("/")
        type_in(new, "G", FOLDER=folder, ARCHIVE=file)
        at_last, chat = old_server.look(new, "synapse"), ("synapse", "synapse.events")
        assert at_last == replace(before, rows={name: before.rows[name] for name in chat})
        assert old_server.keys_given_away(new) == 0


@contextmanager
def _a_machine(folder: Path, image: Path) -> Iterator[Machine]:
    folder.mkdir()
    with machine(folder, image) as made:
        yield made


def as_a_desktop(new: Machine, *argv: str) -> None:
    new.good("mkdir", "-p", MEDIA)
    new.good(*argv)


def _any_computer(new: Machine, name: str, before: Seen) -> None:
    as_a_desktop(new, "mount", "-o", "ro", "/dev/drive", MEDIA)
    type_in(new, "A", NAME=name)
    assert snapshot(new.path("/root/found/photos")) == before.photos
    new.good("rm", "-r", "/root/found", "/root/pictures")
    as_a_desktop(new, "umount", MEDIA)


def _bytes(seen: Seen) -> set[tuple[bytes, object]]:
    """Of the photos; a folder into which something was copied is newer than it was."""
    return {(path, told[6]) for path, told in seen.photos.items()}


def _kill_in_the_middle(new: Machine) -> None:
    """While photos are put back, when they are to be exchanged."""
    argv = ("memu-backup", "restore", "latest", "--in-place", "--source", "photos", "--yes")
    started = new.start(*argv)
    until(lambda: _of(started), 20)
    with waiting_for(Moment("renameat2"), _of(started)[0]):
        started.wait(60)
    refused = new.run(*argv)
    assert refused.status == 1 and "was interrupted half-way" in refused.err, refused


def _of(started: subprocess.Popen[bytes]) -> list[int]:
    """The program itself, as seen from here."""
    return [p.pid for p in psutil.Process(started.pid).children(recursive=True) if "restore" in p.cmdline()]


def _lose_everything(new: Machine) -> None:
    new.good("systemctl", "stop", "memu-backup", "redis-server")
    for database in (*old_server.DATABASES, "synapse_again"):
        old_server.sql(new, "postgres", f"DROP DATABASE {database} WITH (FORCE)")
    old_server.sql(new, "postgres", "DROP ROLE synapse_user")
    new.good("rm", "-rf", SQLITE, PHOTOS, "/var/lib/redis/dump.rdb")

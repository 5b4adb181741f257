"""What was lost goes back to where it lives, and nothing that is there is touched."""

from __future__ import annotations

import json
import os
import shutil
import signal
from pathlib import Path

import pytest

from memu_backup import moving
from memu_backup.errors import RestoreError
from tests.archives import needs_root, snapshot
from tests.disks import loop_disk
from tests.home import Home, wait_until

SOURCES = (
    '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    '[sources.config]\nkind = "files"\npaths = [".env", "nginx"]\n'
)


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    home.configure(sources=SOURCES)
    ran = home.run("start")
    assert ran.status == 0, ran
    return home


def lose(home: Home) -> None:
    shutil.rmtree(home.photos)
    (home.folder / ".env").unlink()
    shutil.rmtree(home.folder / "nginx")


def everything(home: Home) -> dict[bytes, tuple[object, ...]]:
    found: dict[bytes, tuple[object, ...]] = {}
    for name in ("photos", ".env", "nginx"):
        if (home.folder / name).exists():
            found |= {name.encode() + b"/" + path: told for path, told in snapshot(home.folder / name).items()}
    return found


def test_all_that_was_lost_comes_back_identical(home: Home) -> None:
    before = everything(home)
    lose(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 0, ran
    assert "photos is back at" in ran.out and "All of it is back." in ran.out
    assert everything(home) == before
    assert list(home.folder.glob(".*memu-backup*")) == []
    assert ("put back", "done") in [(line["action"], line["outcome"]) for line in home.audit()]


def test_one_source_alone_comes_back(home: Home) -> None:
    before = everything(home)
    shutil.rmtree(home.photos)
    ran = home.run("restore", "--in-place", "--source", "photos", "--yes", "--json")
    assert ran.status == 0, ran
    (told,) = json.loads(ran.out)["sources"]
    assert (told["source"], told["to"], told["warnings"]) == ("photos", str(home.photos), [])
    assert everything(home) == before


def test_where_anything_is_in_the_way_nothing_at_all_is_changed(home: Home) -> None:
    shutil.rmtree(home.photos)
    before = everything(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 1 and ".env" in ran.err and "nothing was changed" in ran.err
    assert everything(home) == before and not home.photos.exists()


def test_a_dry_run_says_what_it_would_do_and_does_nothing(home: Home) -> None:
    lose(home)
    ran = home.run("restore", "--in-place", "--dry-run")
    assert ran.status == 0 and f"to {home.photos}" in ran.out and "Nothing was changed." in ran.out
    assert everything(home) == {}
    ran = home.run("restore", "--in-place")
    assert ran.status == 2 and "--yes" in ran.err and everything(home) == {}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--to", "x"), "leave it out"),
        (("--source", "fotos"), "Did you mean photos?"),
        (("--overwrite",), "leave it out"),
    ],
)
def test_what_cannot_be_meant_is_refused(home: Home, words: tuple[str, ...], says: str) -> None:
    lose(home)
    ran = home.run("restore", "--in-place", "--yes", *words)
    assert ran.status == 2 and says in ran.err and everything(home) == {}


def test_a_source_that_the_settings_do_not_know_is_named(home: Home) -> None:
    lose(home)
    home.configure(sources='[sources.pictures]\nkind = "directory"\npath = "photos"\n')
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 2 and "do not know where photos" in ran.err and everything(home) == {}


def test_of_a_damaged_backup_nothing_is_put_back_by_halves(home: Home) -> None:
    lose(home)
    (archive,) = home.archives
    with archive.open("r+b") as file:
        file.seek(4096 + 200)
        file.write(b"\xff" * 64)
    ran = home.run("restore", "--in-place", "--source", "photos", "--yes")
    assert ran.status == 1 and "damaged" in ran.err and not home.photos.exists()
    assert list(home.folder.glob(".*memu-backup*")) == []


def test_killed_in_the_middle_nothing_is_there_by_halves_and_the_next_one_does_it(home: Home) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(400_000_000))
    assert home.run("start").status == 0
    before = everything(home)
    shutil.rmtree(home.photos)
    running = home.started("restore", "--in-place", "--source", "photos", "--yes")
    landing = moving.landing(home.photos)
    wait_until(lambda: (landing / "photos").exists())
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert landing.exists() and not home.photos.exists()
    assert home.run("restore", "--in-place", "--source", "photos", "--yes").status == 0
    assert everything(home) == before and not landing.exists()


@needs_root
def test_below_a_mount_point_the_disk_is_filled_and_not_what_lies_under_it(home: Home, tmp_path: Path) -> None:
    with loop_disk("ext4", tmp_path) as disk:
        shutil.copytree(home.photos, disk / "photos")
        home.configure(sources=f'[sources.photos]\nkind = "directory"\npath = "{disk}"\nexclude = ["/lost+found/"]\n')
        assert home.run("start").status == 0
        before = snapshot(disk / "photos")
        shutil.rmtree(disk / "photos")
        assert home.run("restore", "--in-place", "--yes").status == 0
        assert snapshot(disk / "photos") == before
        assert sorted(path.name for path in disk.iterdir()) == ["lost+found", "photos"]


@needs_root
async def test_files_go_to_another_disk_too(tmp_path: Path) -> None:
    (tmp_path / "given").mkdir()
    (tmp_path / "given" / "a").write_text("a")
    os.chown(tmp_path / "given" / "a", 1234, 4321)
    before = snapshot(tmp_path / "given")
    with loop_disk("ext4", tmp_path) as disk:
        await moving.move_beside(tmp_path / "given", disk / "new" / "here")
        assert snapshot(disk / "new" / "here") == before
        with pytest.raises(RestoreError, match="Something has come to lie"):
            await moving.move_beside(tmp_path / "given", disk / "new" / "here")

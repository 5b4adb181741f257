"""``keep`` pins a backup beside itself on the disk: nothing removes it, whatever is lost, until it is released."""

from __future__ import annotations

import getpass
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from memu_backup import lock
from tests.home import Home


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    """Two backups, of which settings keep one."""
    home = Home(tmp_path / "home", database)
    for _ in range(2):
        assert home.run("start").status == 0
    home.configure(top="backup_retention_count = 1")
    return home


def test_a_pinned_backup_stays_until_it_is_released(home: Home, tmp_path: Path) -> None:
    oldest, newest = home.archives
    kept = home.run("keep", oldest.name.removesuffix(".tar.gz"))
    assert (kept.status, kept.err) == (0, "")
    assert kept.out == f"{oldest.name} is pinned: it stays until you type: memu-backup keep --release {oldest.name}\n"
    assert home.run("keep", oldest.name, "--json").json == {"name": oldest.name, "pinned": True}
    assert home.leftovers() == [] and Path(f"{oldest}.keep").stat().st_mode & 0o777 == 0o600

    listed = home.run("list")
    assert "good, pinned" in listed.out.splitlines()[2] and "pinned" not in listed.out.splitlines()[1]
    assert [b["pinned"] for b in home.run("list", "--json").json] == [False, True]
    assert home.run("show", oldest.name).out.splitlines()[0].endswith("by job nightly; pinned, so it stays")
    assert home.run("show", oldest.name, "--json").json["pinned"] is True
    assert home.run("clean", "--dry-run", "--json").json[1] == {
        "name": oldest.name,
        "keep": True,
        "reason": "It is pinned and stays until somebody lets it go: memu-backup keep --release",
    }

    shutil.rmtree(home.folder / "state")  # and with it all that we know of, but for what lies with the backups
    assert home.run("start").status == 0
    assert oldest.exists() and not newest.exists()

    released = home.run("keep", "--release", str(oldest))
    assert released.out == f"{oldest.name} is no longer pinned; it goes when its time comes.\n"
    assert home.run("clean", "--yes").status == 0
    assert len(home.archives) == 1 and not oldest.exists() and home.leftovers() == []
    events = [(e["action"], e["subject"], e["origin"], e["outcome"]) for e in reversed(home.audit())]
    assert [e for e in events if e[0] in ("keep", "release")] == [
        ("keep", oldest.name, "cli", "done"),
        ("keep", oldest.name, "cli", "done"),
        ("release", oldest.name, "cli", "done"),
    ]
    assert home.audit()[0]["actor"] == getpass.getuser()


def test_what_cannot_be_pinned_is_said_so(home: Home, tmp_path: Path) -> None:
    nothing = home.run("keep")
    assert nothing.status == 2
    unknown = home.run("keep", "memu_backup_1999")
    assert (unknown.status, unknown.out) == (2, "") and "There is no backup memu_backup_1999" in unknown.err
    copy = Path(shutil.copy(home.archives[0], tmp_path / "copy.tar.gz"))
    elsewhere = home.run("keep", str(copy))
    assert elsewhere.status == 2 and "nothing there is ever removed" in elsewhere.err
    assert not Path(f"{copy}.keep").exists()


@pytest.mark.slow
@pytest.mark.skipif(os.geteuid() != 0, reason="only root can make a file that even root cannot remove")
def test_a_pin_that_cannot_be_changed_is_said_so(home: Home) -> None:
    oldest = home.archives[0]
    subprocess.run(["mount", "--bind", home.backups, home.backups], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", home.backups], check=True)
        refused = home.run("keep", oldest.name, "--json")
        assert refused.status == 1 and refused.json["error"]["code"] == "store"
        assert "could not be pinned (Read-only file system), so it may go when its time comes" in refused.err
    finally:
        subprocess.run(["umount", home.backups], check=True)
    assert home.run("list", "--json").json[1]["pinned"] is False


@pytest.mark.slow
def test_a_run_does_not_stand_in_the_way_of_a_pin(home: Home) -> None:
    with lock.held(home.backups, "backup job nightly"):
        assert home.run("keep", home.archives[0].name).status == 0
    assert home.run("list", "--json").json[1]["pinned"] is True

"""What was lost goes back to where it lives, and nothing that is there is touched."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
from itertools import count
from pathlib import Path

import pytest

from memu_backup import moving, restores, swap
from memu_backup.audit import at_the_terminal
from memu_backup.clock import now
from memu_backup.errors import RestoreError
from tests.archives import needs_root, snapshot
from tests.disks import loop_disk
from tests.home import PHOTO, Home, in_a_loop_of_its_own, managed, wait_until
from tests.killing import Moment, needs_strace
from tests.test_standstill import App

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
    assert "All of it is back: 4 files (120 kB)." in ran.out and "is kept" not in ran.out
    assert everything(home) == before
    assert list(home.folder.glob(".*memu-backup*")) == []
    assert ("put back", "done") in [(line["action"], line["outcome"]) for line in home.audit()]


def test_one_source_alone_comes_back(home: Home) -> None:
    before = everything(home)
    shutil.rmtree(home.photos)
    ran = home.run("restore", "--in-place", "--source", "photos", "--yes", "--json")
    assert ran.status == 0, ran
    (told,) = json.loads(ran.out)["sources"]
    assert (told["source"], told["to"], told["replaces"]) == ("photos", str(home.photos), [])
    assert json.loads(ran.out)["warnings"] == {"photos": []}
    assert everything(home) == before


def spoil(home: Home) -> None:
    """Something else is there by now."""
    (home.photos / "2026" / "lake.jpg").write_bytes(b"encrypted")
    (home.photos / "new.jpg").write_bytes(b"of today")
    (home.folder / ".env").write_text("DOMAIN=wrong\n")
    shutil.rmtree(home.folder / "nginx")


def test_what_is_there_is_replaced_and_can_be_had_again_until_it_is_released(home: Home) -> None:
    before = everything(home)
    spoil(home)
    there = everything(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 0, ran
    assert f"    replaces {home.photos}, which is kept" in ran.out and "restore --undo" in ran.out
    assert everything(home) == before
    undone = home.run("restore", "--undo")
    assert undone.status == 0 and "Everything is as it was before the restore of" in undone.out
    assert everything(home) == there
    redone = home.run("restore", "--undo")
    assert redone.status == 0 and "is done. What was there before is kept." in redone.out
    assert everything(home) == before
    asked = home.run("restore", "--release")
    assert asked.status == 2 and "for good. Add --yes" in asked.err
    looked = home.run("restore", "--release", "--dry-run")
    assert looked.status == 0 and "Kept of the restore of" in looked.out and ".photos.before-" in looked.out
    assert home.run("restore", "--release", "--yes").status == 0
    assert everything(home) == before and leftovers(home) == []
    for words in ("--undo", "--resume"):
        ran = home.run("restore", words)
        assert ran.status == 2 and ran.err.count("\n") == 1, ran
    deeds = {(line["action"], line["outcome"]) for line in home.audit()}
    assert {(f"{deed} restore", "done") for deed in ("undo", "release")} <= deeds
    assert {(f"{deed} restore", "refused") for deed in ("undo", "resume")} <= deeds


def test_where_what_was_kept_is_gone_nothing_is_undone_by_halves(home: Home) -> None:
    spoil(home)
    assert home.run("restore", "--in-place", "--yes").status == 0
    given = everything(home)
    (kept,) = home.folder.glob(".photos.before-*")
    shutil.rmtree(kept)
    refused = home.run("restore", "--undo")
    assert (
        refused.status == 1 and f"{kept} is not there any more" in refused.err and "nothing was undone" in refused.err
    )
    assert everything(home) == given
    assert home.run("start").status == 0, "it is not half-way"


def test_what_was_undone_is_not_lost_to_the_next_restore(home: Home) -> None:
    """Photos that were taken between a restore and its undoing lie with what it had given back."""
    spoil(home)
    again = ("restore", "--in-place", "--source", "photos", "--yes")
    assert home.run(*again).status == 0
    (home.photos / "taken since.jpg").write_bytes(b"of tonight")
    assert home.run("restore", "--undo").status == 0
    refused = home.run(*again)
    assert refused.status == 1 and "was undone, and what it had given back is kept" in refused.err, refused
    assert home.run("restore", "--undo").status == 0
    assert (home.photos / "taken since.jpg").read_bytes() == b"of tonight"
    assert home.run(*again).status == 0  # over one that is done: each keeps what it has replaced
    assert home.run("restore", "--undo").status == 0
    assert (home.photos / "taken since.jpg").read_bytes() == b"of tonight"


def leftovers(home: Home) -> list[str]:
    return [p.name for p in home.folder.iterdir() if ".before-" in p.name or ".memu-backup" in p.name]


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


@pytest.mark.parametrize("words", [("--undo", "--dry-run"), ("--resume", "--dry-run"), ("a-backup", "--undo")])
def test_what_would_not_be_heeded_is_refused(home: Home, words: tuple[str, ...]) -> None:
    spoil(home)
    assert home.run("restore", "--in-place", "--yes").status == 0
    given = everything(home)
    ran = home.run("restore", *words)
    assert ran.status == 2 and "nothing was changed" in ran.err and everything(home) == given


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
    (home.photos / "film.mp4").write_bytes(os.urandom(60_000_000))
    assert home.run("start").status == 0
    before = everything(home)
    shutil.rmtree(home.photos)
    running = home.started("restore", "--in-place", "--source", "photos", "--yes")
    landing = swap.landing(home.photos)
    wait_until(lambda: (landing / "photos").exists())
    running.send_signal(signal.SIGKILL)
    running.communicate()
    assert landing.exists() and not home.photos.exists()
    assert home.run("restore", "--in-place", "--source", "photos", "--yes").status == 0
    assert everything(home) == before and not landing.exists()


def parts(home: Home) -> dict[str, object]:
    """By source path, what is there of it."""
    there = everything(home)
    return {
        name: {path: told for path, told in there.items() if path.split(b"/")[0] == name.encode()}
        for name in ("photos", ".env", "nginx")
    }


PHOTOS, ENV = ".photos.memu-backup/photos", ".config.memu-backup/config/.env"


@needs_strace
@pytest.mark.parametrize("after", ["--resume", "--undo"])
@pytest.mark.parametrize(
    ("place", "nth"),
    [
        (PHOTOS, 2),  # when it was exchanged, and what was there has not its own name yet
        *(pytest.param(*at, marks=pytest.mark.slow) for at in ((PHOTOS, 1), (ENV, 1), (ENV, 2), ("nginx", 1))),
    ],
)
def test_killed_while_names_are_exchanged_each_is_the_old_or_the_new_and_it_is_settled_either_way(
    home: Home, place: str, nth: int, after: str
) -> None:
    restored = parts(home)
    spoil(home)
    replaced = parts(home)
    command = ("restore", "--in-place", "--yes")
    killed = home.run(*command, prefix=Moment("renameat2", nth, home.folder / place).prefix)
    assert killed.status == -signal.SIGKILL, killed
    for name, there in parts(home).items():
        assert there in (restored[name], replaced[name]), name
    refused = home.run(*command)
    assert refused.status == 1 and "was interrupted half-way. Finish it with" in refused.err
    settled = home.run("restore", after)
    assert settled.status == 0, settled
    assert parts(home) == (restored if after == "--resume" else replaced)
    assert home.run("restore", "--release", "--yes").status == 0
    assert leftovers(home) == []


@needs_strace
@pytest.mark.parametrize("after", ["--resume", pytest.param("--undo", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("place", "nth"), [(ENV, 2), pytest.param("nginx", 1, marks=pytest.mark.slow)])
def test_what_a_program_wrote_anew_after_a_kill_is_known_for_what_was_given_back(
    home: Home, place: str, nth: int, after: str
) -> None:
    """As Redis does with its snapshot when it came up by itself after a power cut."""
    restored = parts(home)
    spoil(home)
    replaced = parts(home)
    home.run("restore", "--in-place", "--yes", prefix=Moment("renameat2", nth, home.folder / place).prefix)
    (home.folder / "anew").write_text("written since")
    (home.folder / "anew").replace(home.folder / ".env")
    settled = home.run("restore", after)
    assert settled.status == 0, settled
    if after == "--resume":
        assert (home.folder / ".env").read_text() == "written since"
        assert parts(home) | {".env": restored[".env"]} == restored
        assert home.run("restore", "--undo").status == 0
    assert parts(home) == replaced


@pytest.mark.slow
@pytest.mark.timeout(600)
@needs_strace
@pytest.mark.parametrize(
    "call", ["rename,renameat,renameat2", "mkdir,mkdirat", "unlink,unlinkat,rmdir", "fsync,fdatasync"]
)
def test_killed_at_whatever_step_each_is_the_old_or_the_new_and_it_is_settled_either_way(home: Home, call: str) -> None:
    restored = parts(home)
    for step in count(1):
        spoil(home)
        replaced = parts(home)
        ran = home.run("restore", "--in-place", "--yes", prefix=Moment(call, step).prefix)
        if ran.status == 0:
            break  # it makes no more of them
        assert ran.status == -signal.SIGKILL, (step, ran)
        for name, there in parts(home).items():
            assert there in (restored[name], replaced[name]), (step, name)
        after = ("--resume", "--undo")[step % 2]
        settled = home.run("restore", after)
        # Before the first exchange there is nothing to finish or to undo, and after the last one it is done.
        assert settled.status in (0, 2), (step, settled)
        if settled.status == 0 and after == "--undo":
            assert parts(home) == replaced, step
        assert parts(home) in (restored, replaced), step
        for words in (("--release",), ("--in-place",), ("--release",)):
            ran = home.run("restore", *words, "--yes")
            assert ran.status == 0, (step, ran)
        assert parts(home) == restored and leftovers(home) == [], step
    assert step > 2 and parts(home) == restored


@needs_strace
def test_of_what_is_released_by_halves_nothing_is_made_again(home: Home) -> None:
    spoil(home)
    assert home.run("restore", "--in-place", "--yes").status == 0
    given = everything(home)
    killed = home.run("restore", "--release", "--yes", prefix=Moment("rmdir,unlinkat", 3).prefix)
    assert killed.status == -signal.SIGKILL and leftovers(home), killed
    ran = home.run("restore", "--undo")
    assert ran.status == 1 and "only a part of it may be left" in ran.err, ran
    assert everything(home) == given
    assert home.run("restore", "--release", "--yes").status == 0
    assert everything(home) == given and leftovers(home) == []


EXCLUDE = '["/lost+found/", "thumbs/*.tmp"]'
"""Nothing of which is lost when the rest goes aside."""


@pytest.mark.slow
@needs_root
def test_below_a_mount_point_the_disk_is_filled_and_not_what_lies_under_it(home: Home, tmp_path: Path) -> None:
    with loop_disk("ext4", tmp_path) as disk:
        shutil.copytree(home.photos, disk / "photos")
        home.configure(sources=f'[sources.photos]\nkind = "directory"\npath = "{disk}"\nexclude = {EXCLUDE}\n')
        assert home.run("start").status == 0
        before = snapshot(disk / "photos")
        shutil.rmtree(disk / "photos")
        (disk / "other").write_text("of today")
        disk.chmod(0o700)
        ran = home.run("restore", "--in-place", "--yes")
        assert ran.status == 0 and "leaves out of its backups" not in ran.out, ran
        assert snapshot(disk / "photos") == before and not (disk / "other").exists()
        assert disk.stat().st_mode & 0o777 == 0o755
        assert home.run("start").status == 0
        assert ".before-" not in home.run("show", home.archives[-1].name, "--files").out
        (disk / "since").write_text("of the day after")
        assert home.run("restore", "--undo").status == 0
        assert (disk / "other").read_text() == "of today" and not (disk / "photos").exists()
        assert disk.stat().st_mode & 0o777 == 0o700 and not (disk / "since").exists()
        (disk / "once more").touch()
        assert home.run("restore", "--undo").status == 0
        assert (disk / "since").read_text() == "of the day after" and not (disk / "once more").exists()
        (disk / "since").unlink()
        assert snapshot(disk / "photos") == before and disk.stat().st_mode & 0o777 == 0o755
        assert home.run("restore", "--in-place", "--yes").status == 0
        assert len(list(disk.glob(".*.before-*"))) == 2  # neither is taken for what lives there
        assert home.run("restore", "--release", "--yes").status == 0
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


def with_app(home: Home) -> App:
    """What uses the photos."""
    app = App(home.folder / "app")
    home.configure(sources=SOURCES, more=app.table())
    return app


def test_what_uses_it_stands_still_meanwhile_and_is_told(home: Home) -> None:
    app = with_app(home)
    spoil(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 0 and "Stopped meanwhile, for moments: app." in ran.out and "stood still for" in ran.out
    assert app.log == ["stop", "start"] and app.runs()
    app.switch(False)
    assert home.run("restore", "--undo").status == 0
    assert app.log == ["stop", "start"] and not app.runs()


def test_what_is_to_run_afterwards_does_each_time_that_something_else_lies_there(home: Home) -> None:
    """Once services are up, in order, and once what two sources want; one that fails is told and costs nothing."""
    app = App(home.folder / "app")
    looks = ["sh", "-c", f"cat {app.folder}/running {home.photos}/2026/lake.jpg | wc -c >> {home.folder}/seen"]
    wants = [
        looks,
        ["sh", "-c", "echo the library is locked >&2; exit 3"],
        ["/no such program", "scan"],
        [*looks[:2], "exit 0"],
    ]
    stands = ["sh", "-c", f"test ! -e {app.folder}/running && echo still >> {home.folder}/seen"]
    both = (
        SOURCES.replace("\n[", f"\nafter_restore = {json.dumps(wants)}\n[")
        + f"after_restore = {json.dumps(wants[:1])}\nbefore_start = {json.dumps([stands])}\n"
    )
    home.configure(sources=both, more=app.table())
    spoil(home)
    assert "sources.photos.after_restore names, is not there" in " ".join(home.run("check").out.split())
    looked = home.run("restore", "--in-place", "--dry-run")
    assert looked.out.count("Run afterwards: ") == 4 and "Run before anything is started: sh" in looked.out
    assert "Run afterwards: '/no such program' scan" in looked.out
    ran = home.run("restore", "--in-place", "--yes", "--json")
    assert ran.status == 0 and ran.json["afterwards"] == wants
    assert [bool(one["problem"]) for one in ran.json["ran"]] == [False, False, True, True, False]
    assert "sh, which is to run then, says the library is locked: some program" in ran.json["ran"][2]["problem"]
    seen = home.folder / "seen"
    assert seen.read_text().split() == ["still", f"{len(PHOTO)}"]
    undone = home.run("restore", "--undo")
    assert undone.status == 0 and "then type: '/no such program' scan" in undone.err
    assert seen.read_text().split()[2:] == ["still", f"{len(b'encrypted')}"]
    assert home.run("restore", "--resume").status == 2


@needs_root
def test_what_was_put_back_is_looked_at_and_told_as_a_list(home: Home) -> None:
    """Whatever is not as it was in the backup, or as it was before: here a program has seen to that."""
    app = App(home.folder / "app")

    def settle(*wants: str) -> str:
        after = f"after_restore = {json.dumps([['sh', '-c', one] for one in wants])}\n"
        looks = 'look_yourself = ["Look at Ben\'s tent."]\n'
        home.configure(sources=f"{SOURCES.replace(chr(10) + '[', chr(10) + after + looks + '[')}", more=app.table())
        spoil(home)
        ran = home.run("restore", "--in-place", "--yes")
        assert ran.status == 0
        return ran.out

    told = settle()
    for line in (
        "✓ services: as before there run app",
        "✓ photos: 2 files (120 kB), as in the backup",
        "✓ owner of photos: nothing has another owner than what was there before",
        "✓ config: 2 files (32 bytes), as in the backup",
        f"✓ disk of {home.photos}: ",
        "✓ job nightly: due ",
        "✗ the service: does not run, so no backup is made by itself",
        "Look yourself:\n  ☐ Look at Ben's tent.\n",
    ):
        assert line in told, told
    told = settle(f"echo more > {home.photos}/more.txt")
    assert "✓ photos: 3 files (120 kB); in the backup 2 files" in told

    os.chown(home.photos, 12345, 54321)
    told = settle(f"rm {home.photos}/2026/tent.jpg {app.folder}/running")
    assert "✗ services: Had been stopped for it and may not run now: app. See why" in told
    assert "✗ photos: 1 file (60 kB); in the backup 2 files" in told
    was = home.folder.stat()
    assert f"{home.photos} belongs to {was.st_uid}:{was.st_gid}, and what was there before to 12345:54321." in told


@pytest.mark.parametrize("after", ["--resume", pytest.param("--undo", marks=pytest.mark.slow)])
@pytest.mark.parametrize("key", ["before_start", pytest.param("after_restore", marks=pytest.mark.slow)])
def test_killed_before_what_is_to_run_has_run_it_can_be_had_run(home: Home, key: str, after: str) -> None:
    """By ``--resume``; undone instead, it runs for that alone. What had been stopped runs then, too."""
    app = App(home.folder / "app")
    wants = [["sh", "-c", f"echo $PPID >> {home.folder}/ran; until test -e {home.folder}/on; do sleep 0.1; done"]]
    home.configure(sources=f"{SOURCES}{key} = {json.dumps(wants)}\n", more=app.table())
    spoil(home)
    before = everything(home)
    running = home.started("restore", "--in-place", "--yes")
    wait_until((home.folder / "ran").exists)
    assert app.runs() == (key == "after_restore")
    running.kill()
    running.communicate()
    (home.folder / "on").touch()
    ran = home.run("restore", after)
    assert ran.status == 0 and "Running sh -c" in ran.out, ran
    assert (everything(home) == before) == (after == "--undo") and app.runs()
    assert ("✓ photos: 2 files (120 kB), as in the backup" in ran.out) == (after == "--resume")
    assert len((home.folder / "ran").read_text().split()) == 2
    assert home.run("restore", "--resume").status == 2


def test_where_something_does_not_come_up_with_it_everything_is_as_it_was(home: Home) -> None:
    app = with_app(home)
    spoil(home)
    app.script("start", f'cmp "{home.photos}/2026/lake.jpg" - <<-. || exit 1\nencrypted\n.\ntouch "$0/../running"')
    (home.photos / "2026" / "lake.jpg").write_bytes(b"encrypted\n")
    there = everything(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 1, ran
    assert "app did not come up again" in ran.err and "everything is as it was before" in ran.err
    assert everything(home) == there and app.runs() and leftovers(home) == []
    assert home.run("restore", "--release", "--dry-run").out.startswith("Nothing that a restore")


def test_of_two_that_stand_still_the_one_that_does_not_come_up_is_not_forgotten(home: Home) -> None:
    app, other = with_app(home), App(home.folder / "other")
    home.configure(sources=SOURCES, more=app.table() + other.table("other"))
    spoil(home)
    app.script("start", f'cmp "{home.photos}/2026/lake.jpg" - <<-. || exit 1\nencrypted\n.\ntouch "$0/../running"')
    (home.photos / "2026" / "lake.jpg").write_bytes(b"encrypted\n")
    there = everything(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 1 and "app did not come up again" in ran.err, ran
    assert everything(home) == there and app.runs() and other.runs()


@needs_root
def test_where_one_thing_cannot_be_exchanged_none_is(home: Home) -> None:
    app = with_app(home)
    spoil(home)
    there = everything(home)
    subprocess.run(["chattr", "+i", home.folder / ".env"], check=True)
    try:
        ran = home.run("restore", "--in-place", "--yes")
    finally:
        subprocess.run(["chattr", "-i", home.folder / ".env"], check=True)
    assert ran.status == 1 and f"{home.folder}/.env could not be exchanged" in ran.err, ran
    assert everything(home) == there and app.runs() and leftovers(home) == []


@needs_strace
@pytest.mark.parametrize("after", ["--undo", pytest.param("--resume", marks=pytest.mark.slow)])
def test_killed_while_services_are_stopped_none_is_started_on_what_is_half_done(home: Home, after: str) -> None:
    app = with_app(home)
    spoil(home)
    killed = home.run("restore", "--in-place", "--yes", prefix=Moment("renameat2", 2, home.folder / PHOTOS).prefix)
    assert killed.status == -signal.SIGKILL and not app.runs()
    recovered = home.run("services", "recover")
    assert recovered.status == 1 and "Nothing is started, as the restore of" in recovered.err and not app.runs()
    begun = home.run("start")  # by the timetable, too: it is told to the family as any backup that failed
    assert begun.status == 1 and not app.runs()
    assert (
        "No backup was made, as half of what it would hold is of another day; older backups are untouched." in begun.err
    )
    assert "memu-backup restore --undo" in begun.err and len(home.archives) == 1
    assert home.rows()[0]["error_code"] == "half_way"
    assert home.run("restore", after).status == 0
    assert app.runs() and app.log == ["stop", "start"]
    assert home.run("services", "recover").status == 0


@pytest.mark.parametrize("after", ["--resume", pytest.param("--undo", marks=pytest.mark.slow)])
def test_killed_while_it_stops_what_uses_it_that_is_started_again(home: Home, after: str) -> None:
    app = with_app(home)
    spoil(home)
    there = everything(home)
    app.script("stop", 'rm -f "$0/../running"; sleep 1')
    running = home.started("restore", "--in-place", "--yes")
    wait_until(lambda: not app.runs())
    running.kill()
    running.communicate()
    assert home.run("restore", after).status == 0
    assert app.runs() and everything(home) == there and leftovers(home) == []


@pytest.mark.parametrize("first", ["database", pytest.param("photos", marks=pytest.mark.slow)])
def test_what_lies_in_the_folder_of_another_source_does_not_go_aside_with_it(
    tmp_path: Path, database: str, first: str
) -> None:
    """As a database that its program keeps beside its settings; in whatever order they stand, and whatever name the
    folder has.
    """
    home = Home(tmp_path / "home, ours", database)
    sources = {
        "database": '[sources.database]\nkind = "files"\npaths = ["photos/app.db"]\n',
        "photos": '[sources.photos]\nkind = "directory"\npath = "photos"\nexclude = ["*.db"]\n',
    }
    beside = home.photos / "app.db"

    def inside(home: Home) -> dict[bytes, tuple[object, ...]]:
        """The folder itself was written to, as its database came into it."""
        return {name: told for name, told in everything(home).items() if name != b"photos/."}

    beside.write_text("of the backup")
    home.configure(sources="".join(sources[name] for name in sorted(sources, key=lambda name: name != first)))
    assert home.run("start").status == 0
    restored = inside(home)
    beside.write_text("of today")
    (home.photos / "since.jpg").write_bytes(b"since")
    there = inside(home)
    ran = home.run("restore", "--in-place", "--yes", "--source", "photos")
    assert ran.status == 1 and f"{beside} (source database) lies in {home.photos}" in ran.err, ran
    assert "What photos leaves out of its backups (*.db) goes aside with the rest" in ran.out
    assert inside(home) == there and leftovers(home) == []
    for now_there in (restored, there, restored):
        assert home.run("restore", *(("--undo",) if leftovers(home) else ("--in-place", "--yes"))).status == 0
        assert inside(home) == now_there
    assert home.run("restore", "--release", "--yes").status == 0
    assert inside(home) == restored and leftovers(home) == []
    shutil.rmtree(home.photos)
    assert home.run("restore", "--in-place", "--yes").status == 0
    assert inside(home) == restored


def test_two_sources_that_are_unpacked_in_one_folder_do_not_spoil_each_other(home: Home) -> None:
    home.configure(
        sources='[sources.pictures]\nkind = "directory"\npath = "photos"\n'
        '[sources.photos]\nkind = "files"\npaths = [".env", "nginx"]\n'
    )
    assert home.run("start").status == 0
    before = everything(home)
    spoil(home)
    ran = home.run("restore", "--in-place", "--yes")
    assert ran.status == 0 and everything(home) == before, ran


def test_what_was_undone_while_somebody_was_asked_is_not_lost(home: Home) -> None:
    spoil(home)
    assert home.run("restore", "--in-place", "--yes").status == 0
    (home.photos / "since.jpg").write_bytes(b"since")

    async def planned_before_it_was_undone() -> None:
        async with managed(home, [now()]) as manager:
            returns = manager.returns
            planned = await returns.plan(*await manager.find("latest"), [], trusted=True)
            await returns.undo(None, at_the_terminal(), lambda _: None)
            with pytest.raises(RestoreError, match="was undone, and what it had given back is kept"):
                await returns.put_back(planned, at_the_terminal(), lambda _: None, lambda _: None)

    in_a_loop_of_its_own(planned_before_it_was_undone())
    assert home.run("restore", "--undo").status == 0
    assert (home.photos / "since.jpg").read_bytes() == b"since"


def test_no_backup_is_made_while_something_is_put_back_nor_the_other_way_round(home: Home) -> None:
    folder = home.folder / "state" / "restores"
    with restores.alone(folder):
        begun = home.run("start")
    assert begun.status == 75 and "(a restore, process" in begun.err and len(home.archives) == 1
    with restores.none_under_way(folder, "backup job nightly"), restores.none_under_way(folder, "backup job weekly"):
        refused = home.run("restore", "--in-place", "--yes")
    assert refused.status == 75 and "(backup job " in refused.err and home.run("restore", "--undo").status == 2
    assert home.run("start").status == 0


# --- what an old script made -----------------------------------------------------------------------------------------


@pytest.fixture
def bare(tmp_path: Path, database: str) -> Home:
    """Without a backup of ours."""
    bare = Home(tmp_path / "home", database)
    bare.configure(sources=SOURCES)
    return bare


def but_times(home: Home) -> dict[bytes, tuple[object, ...]]:
    """As ``everything``: tar rounds times to seconds where nobody asks it for more."""
    return {path: (*told[:4], *told[5:]) for path, told in everything(home).items()}


def by_an_old_script(home: Home, *words: str) -> Path:
    """An archive without an index, as Memu's specification lays it out; ``words`` are what tar is to take."""
    archive = home.folder / "memu_backup_20250126_020500.tar.gz"
    subprocess.run(["tar", "-czf", archive, "-C", *(words or (gathered(home), "."))], check=True)
    return archive


def gathered(home: Home) -> Path:
    old = home.folder / "memu_backup_20250126_020500"
    shutil.copytree(home.photos, old / "photos")
    (old / "config").mkdir()
    shutil.copy2(home.folder / ".env", old / "config")
    shutil.copytree(home.folder / "nginx", old / "config" / "nginx")
    (old / "database.sql").write_text("CREATE TABLE messages ();\n")
    (old / "metadata.json").write_text('{"version": "1.0", "timestamp": "20250126_020500"}')
    return old


def test_folders_of_an_old_scripts_archive_go_back_to_where_they_live_by_their_names(bare: Home) -> None:
    before = but_times(bare)
    archive = by_an_old_script(bare)
    spoil(bare)
    there = everything(bare)
    looked = bare.run("restore", str(archive), "--in-place", "--dry-run")
    assert looked.status == 0 and re.sub(r" of the \d+ [GT]B ", " of the … ", looked.out) == (
        "Would put back from memu_backup_20250126_020500.tar.gz:\n"
        f"  photos: 2 files (120 kB) to {bare.photos}\n"
        "    needs 120 kB of the … that are free there\n"
        f"    replaces {bare.photos}, which is kept\n"
        f"  config: 2 files (32 bytes) to {bare.folder}/.env, {bare.folder}/nginx\n"
        "    needs 32 bytes of the … that are free there\n"
        f"    replaces {bare.folder}/.env, which is kept\n"
        "  left out: database.sql, metadata.json: nobody knows where that belongs. To have it, type memu-backup "
        f"restore {archive} --to FOLDER\n"
        "This backup does not tell what it holds: its folders are known by their names alone. Whether a program wrote "
        "to them while they were copied, nobody knows.\n"
        "It does not lie in a folder for backups of these settings. Go on only if you know where it comes from: what "
        "is in it takes the place of yours, and commands in the dump of a database are done.\n"
        "Nothing was changed.\n"
    )
    ran = bare.run("restore", str(archive), "--in-place", "--yes")
    assert ran.status == 3, ran
    assert but_times(bare) == before
    assert bare.run("restore", "--undo").status == 0 and everything(bare) == there
    assert bare.run("restore", "--release", "--yes").status == 0
    alone = bare.run("restore", str(archive), "--in-place", "--source", "photos", "--yes")
    assert alone.status == 0, alone
    archive.write_bytes(archive.read_bytes()[:-2000])
    cut = bare.run("restore", str(archive), "--in-place", "--source", "config", "--yes")
    assert cut.status == 1 and "damaged" in cut.err and not (bare.folder / "nginx").exists(), cut


@pytest.mark.parametrize("words", ["with their whole paths", "below its own name"])
def test_so_do_those_that_tar_took_as_they_were_named(bare: Home, words: str) -> None:
    before = but_times(bare)
    if words == "with their whole paths":
        archive = by_an_old_script(bare, "/", str(bare.photos))
    else:
        archive = by_an_old_script(bare, str(bare.folder), gathered(bare).name)
    shutil.rmtree(bare.photos)
    ran = bare.run("restore", str(archive), "--in-place", "--source", "photos", "--yes")
    assert ran.status == 0, ran
    assert but_times(bare) == before


def test_where_no_folder_of_it_is_known_again_it_is_said_what_to_do(bare: Home) -> None:
    """Neither by a folder of the same name further down, nor by one that is empty or told without its rights."""
    old = bare.folder / "old"
    (old / "2025" / "photos").mkdir(parents=True)
    (old / "2025" / "photos" / "lake.jpg").write_bytes(b"another")
    (old / "config").mkdir()
    (bare.folder / "x" / "photos").mkdir(parents=True)
    (bare.folder / "x" / "photos" / "tent.jpg").write_bytes(b"one more")
    archive = bare.folder / "by hand.tar.gz"
    taken = (str(old), "2025", "config", "-C", str(bare.folder / "x"), "photos/tent.jpg")
    subprocess.run(["tar", "-czf", archive, "-C", *taken], check=True)
    there = everything(bare)
    ran = bare.run("restore", str(archive), "--in-place", "--yes")
    assert ran.status == 2 and everything(bare) == there
    assert ran.err == (
        "by hand.tar.gz does not tell what it holds, and no folder in it is known by its name as one of these "
        f"settings, so nobody knows where it belongs; nothing was changed. Type memu-backup restore '{archive}' "
        "--to FOLDER and, while what uses it is stopped, move from there what you want back.\n"
    )

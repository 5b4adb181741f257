"""The restore that asks, on a real terminal: in plain words, and nothing is changed before somebody agreed."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest

from tests.archives import needs_root, snapshot
from tests.disks import loop_disk
from tests.home import Home, Ran

SAME = "The same without questions: memu-backup "


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    home = Home(tmp_path / "home", database)
    assert home.run("start").status == 0
    return home


def plain(ran: Ran) -> str:
    """What was seen, without colours, the bar and the terminal's line ends."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", ran.out).replace("\r", "")


def without_questions(home: Home, ran: Ran) -> Ran:
    """The line that was printed at the end, as it stands there."""
    last = plain(ran).splitlines()[-1]
    assert last.startswith(SAME)
    words = shlex.split(last.removeprefix(SAME))
    assert words[:2] == ["--config", str(home.folder / "config.toml")]
    return home.run(*words[2:])


def test_the_newest_whole_backup_goes_back_to_where_it_lives(home: Home) -> None:
    before = snapshot(home.photos)
    whole = home.archives[0].name
    assert home.run("keep", whole).status == 0
    assert home.run("start").status == 0
    with home.archives[1].open("r+b") as file:
        file.seek(4096 + 200)
        file.write(b"\xff" * 64)
    assert home.run("verify", home.archives[1].name).status == 1
    (home.photos / "2026" / "lake.jpg").write_bytes(b"encrypted")
    there = snapshot(home.photos)

    ran = home.on_a_terminal("restore", answer="\n2\n1\nyes\nrestore\n", columns=120)
    seen = plain(ran)
    assert ran.status == 0 and snapshot(home.photos) == before, seen
    assert seen.startswith(
        "Nothing is changed before you have seen what will be done and agreed. To stop at any time, type q.\n\n"
        "Which backup? These are there, the newest first.\n"
    )
    assert re.search(
        r"\n1  Today \d+:\d\d [AP]M  129 kB  DAMAGED: what can be read of it goes into a folder *\n"
        r"2  Today \d+:\d\d [AP]M  129 kB  whole, read back today \d+:\d\d [AP]M; pinned *\n"
        r"d  a drive, or a file that lies elsewhere\n\n"
        r"Which one \(Enter for 2, the newest whole one\): \n",
        seen,
    )
    assert re.search(
        r"\nWhat is to come back from the backup of today \d+:\d\d [AP]M\?\n\n"
        r"1  Everything: 4 files \(120 kB\)\n"
        r"2  Photos: 2 files, newest from today\n"
        r"3  Config: 2 files, newest from today\n"
        r"f  one file or folder, by a part of its name\n\n"
        r"Which one \(Enter for 1\): 2\n",
        seen,
    )
    assert (
        "\nWhere to?\n\n"
        "1  Back to where it lives. What is there now is kept beside it, and can be had again.\n"
        "2  Into a folder, to look at it first. Nothing that is there is touched.\n\n"
        "Which one: 1\n\n"
        f"To be put back from {whole}:\n"
        f"  photos: 2 files (120 kB) to {home.photos}\n"
    ) in seen
    assert re.search(r"\n    needs 120 kB of the \d+ [GT]B that are free there\n", seen)
    assert (
        f"\n    replaces {home.photos}, which is kept\n\n"
        "To do this, type the word restore. Enter leaves all as it is: yes\n"
        "That was not the word restore.\n\n"
        "To do this, type the word restore. Enter leaves all as it is: restore\n"
    ) in seen
    assert seen.splitlines()[-1].endswith(f"restore {whole.removesuffix('.tar.gz')} --source photos --in-place --yes")

    assert home.run("restore", "--undo").status == 0 and snapshot(home.photos) == there
    assert home.run("restore", "--release", "--yes").status == 0
    again = without_questions(home, ran)
    assert again.status == 0 and snapshot(home.photos) == before, again


def test_one_file_is_found_by_a_part_of_its_name(home: Home, tmp_path: Path) -> None:
    target, name = tmp_path / "to look at", home.archives[0].name.removesuffix(".tar.gz")
    answers = f"\nf\nsunset\n2026\nake\n1\n{target}\ny\n"
    ran = home.on_a_terminal("restore", answer=answers, columns=120)
    seen = plain(ran)
    assert ran.status == 0, seen
    assert (
        "\nType a part of the name of the file or folder, such as lake, 2024 or *.docx.\n"
        "A part of its name: sunset\n"
        "Nothing in this backup has that in its name. Type less of it; or q, and look into all backups with: "
        f"memu-backup --config {home.folder}/config.toml find '*sunset*'\n"
        "A part of its name: 2026\n"
        " 1  photos/2026/  (2 files)\n"
        "Its number, or a part of another name: ake\n"
        " 1  photos/2026/lake.jpg  (60 kB)\n"
        "Its number, or a part of another name: 1\n\n"
        "It goes into a folder. From there, copy it to where you want to have it.\n"
        f"Into which folder (Enter for {home.folder}/restored_{name}): {target}\n"
    ) in seen
    given = snapshot(target)
    assert given[b"photos/2026/lake.jpg"][:7] == snapshot(home.photos)[b"2026/lake.jpg"][:7] and len(given) == 4
    shutil.rmtree(target)
    again = without_questions(home, ran)
    assert again.status == 0 and snapshot(target).keys() == given.keys(), again


def test_who_does_not_agree_has_changed_nothing(home: Home) -> None:
    before, done = all_but_state(home), home.audit()
    for answers, status in (
        ("\n2\n1\n\x03", 130),  # where the word is asked for
        ("\n2\n1\ny\nyes\nput back\n", 1),
        ("4\n0\nphotos\n", 1),
        ("\nf\nlake\nq\n", 1),
        ("\n1\n2\n\nn\n", 1),
        ("\n1\n\n", 1),  # where nothing is usual
    ):
        ran = home.on_a_terminal("restore", answer=answers, columns=120)
        assert ran.status == status and ran.out.endswith("\r\nNothing was changed.\r\n"), plain(ran)
        assert "Traceback" not in ran.out
    assert home.audit() == done and all_but_state(home) == before


def all_but_state(home: Home) -> dict[bytes, tuple[object, ...]]:
    """The history notes that it was looked at."""
    return {path: told for path, told in snapshot(home.folder).items() if not path.startswith(b"state")}


def test_who_is_not_there_is_not_asked(home: Home) -> None:
    ran = home.run("restore")
    assert ran.status == 2 and ran.out == "" and "Add --yes to do it" in ran.err
    for more in ((), ("--in-place",)):
        scripted = home.on_a_terminal("restore", *more, "--json", answer="y\n")
        assert scripted.status == 2 and "Add --yes to do it" in scripted.out and '"code": "usage"' in scripted.out
    named = home.on_a_terminal("restore", "latest", answer="n\n")
    assert named.status == 1 and plain(named).startswith("Restore 4 files (120 kB) from "), named


@needs_root
def test_where_nobody_knows_this_house_a_drive_is_enough(home: Home, tmp_path: Path) -> None:
    there = Home(tmp_path / "new", "postgresql://nobody@127.0.0.1:1/none")
    (there.folder / "config.toml").unlink()
    with loop_disk("ext4", tmp_path) as drive:
        assert home.run("usb", "copy", "--to", str(drive)).status == 0
        ran = there.on_a_terminal("restore", answer=f"{tmp_path}\n{drive}\n2\n\ny\n", columns=120)
        seen = plain(ran)
        assert ran.status == 0, seen
        assert (
            "\nThere are no usable settings on this machine: there is no such file. So nobody knows here where things "
            "lived: a backup goes into a folder, and from there you take what you need.\n\n"
            "Where does the backup lie? Type the path of the file, or of the folder where its drive is mounted.\n"
        ) in seen
        assert f"\nA drive with backups is mounted at {drive}.\n" in seen
        (given,) = there.folder.glob("restored_*")
        assert snapshot(given / "photos") == snapshot(home.photos)
        copy = next(drive.glob("memu-backup/*/*.tar.gz"))
        assert plain(ran).endswith(f" restore {copy} --source photos --to {given} --yes\n")


def test_where_disk_and_history_are_away_the_backups_may_lie_elsewhere(home: Home, tmp_path: Path) -> None:
    assert home.run("start").status == 0
    home.configure(history="postgresql://nobody@127.0.0.1:1/none")
    home.backups.rename(tmp_path / "elsewhere")
    before = snapshot(home.photos)
    shutil.rmtree(home.photos)
    ran = home.on_a_terminal("restore", answer=f"{tmp_path}/elsewhere\n\n2\n1\nrestore\n", columns=120)
    seen = plain(ran)
    assert ran.status == 0 and snapshot(home.photos) == before, seen
    assert (
        f"\n{home.backups} holds no backup, and the history cannot be reached to tell whether it should: its disk may "
        "not be mounted. Mount it and type the same again.\n\nWhere does the backup lie?"
    ) in seen
    assert "Which one (Enter for 1, the newest whole one): \n" in seen

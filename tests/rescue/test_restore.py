"""restore.py gives back what our writer wrote: every entry, from one file and from parts, and says what it does."""

from __future__ import annotations

import ast
import gzip
import os
import pty
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

import pytest

from memu_backup.formats import tar
from memu_backup.formats.gzip import pack
from memu_backup.formats.tar import Header, Type
from tests.archives import archive_store, back_up, needs_root, odd_tree, snapshot, tree
from tests.contracts.stores import small_disk
from tests.home import fingerprints
from tests.rescue.drive import ISOLATED, PROGRAM, in_parts, put_program, rescue


def oldest_python() -> tuple[str, ...] | None:
    """Python 3.8, which is as old as it may be, where this machine has one."""
    found = [shutil.which("python3.8"), *map(str, Path.home().glob(".pyenv/versions/3.8.*/bin/python3.8"))]
    for program in filter(None, found):
        if subprocess.run([program, "-c", ""], capture_output=True).returncode == 0:
            return (program, "-I", "-W", "error")
    return None


@pytest.fixture(params=["this", pytest.param("3.8", marks=pytest.mark.slow)])
def python(request: pytest.FixtureRequest) -> tuple[str, ...]:
    if request.param == "this":
        return ISOLATED
    if (old := oldest_python()) is None:
        pytest.skip("there is no Python 3.8 on this machine")
    return old


def test_it_needs_python_3_8_and_nothing_of_ours() -> None:
    parsed = ast.parse(PROGRAM.read_text(), feature_version=(3, 8))
    imported = {n.module for n in ast.walk(parsed) if isinstance(n, ast.ImportFrom)}
    imported |= {a.name for n in ast.walk(parsed) if isinstance(n, ast.Import) for a in n.names}
    assert {str(name).split(".")[0] for name in imported} <= sys.stdlib_module_names
    for module in PROGRAM.parent.parent.rglob("*.py"):
        assert "rescue.restore" not in module.read_text() and "rescue import restore" not in module.read_text()


@needs_root
def test_every_odd_entry_comes_back_as_it_was(tmp_path: Path, python: tuple[str, ...]) -> None:
    source = odd_tree(tmp_path / "source")
    drive = tmp_path / "drive"
    archive = back_up(archive_store(drive), tree(source))
    put_program(drive)
    before = fingerprints(drive)
    said = rescue(drive, "check", python=python)
    assert (said.status, said.out.splitlines()[-1]) == (
        0,
        f"{archive.name}: each of the 71 files in it is as it was saved.",
    )
    said = rescue(drive, "restore", archive.name, tmp_path / "found", python=python)
    assert said.status == 0, said
    got, expected = snapshot(tmp_path / "found" / "photos"), snapshot(source)
    # What runs as somebody else does so no more, and both are named.
    assert "1 file not running as somebody else any more (setuid); the first is photos/werkzeug" in said.err
    # Nor with what only root may say of a file.
    assert "2 files without some attributes; the first is photos/geheim" in said.err
    assert expected.pop(b"werkzeug")[1] == "0o6755" and got.pop(b"werkzeug")[1] == "0o755"
    assert expected.pop(b"ping")[-1] != () and got.pop(b"ping")[-1] == ()
    *same, attributes = expected.pop(b"geheim")
    *found, kept = got.pop(b"geheim")
    assert isinstance(attributes, tuple)
    assert found == same and kept == tuple(a for a in attributes if not a[0].startswith("trusted."))
    assert got == expected
    for name in ("loch vorn", "loch mitte", "loch hinten", "nur loch", "viele"):
        assert (tmp_path / "found" / "photos" / name).stat().st_blocks == (source / name).stat().st_blocks
    assert fingerprints(drive) == before


@pytest.mark.parametrize("part_bytes", [1 << 20, 3_333_333])
def test_parts_are_read_as_they_lie_there(
    drive: Path, name: str, source: Path, tmp_path: Path, part_bytes: int, python: tuple[str, ...]
) -> None:
    parts = in_parts(drive / name, part_bytes)
    said = rescue(drive, python=python)
    assert said.status == 0 and f"in {parts} parts   nightly of attic" in said.out
    assert rescue(drive, "check", name, python=python).status == 0
    for number, named in enumerate((name, f"{name}.part002")):
        found = tmp_path / f"found{number}"
        assert rescue(drive, "restore", named, found, python=python).status == 0
        assert snapshot(found / "photos") == snapshot(source)


def test_without_anything_it_shows_what_is_there_and_what_to_type(
    drive: Path, name: str, source: Path, tmp_path: Path
) -> None:
    older = name.replace("2026", "2025")
    (drive / "old").mkdir()
    shutil.copy(drive / name, drive / "old" / older)
    (drive / "holiday.tar.gz").write_bytes(b"the owner's")
    said = rescue(drive)
    shown = [line.strip() for line in said.out.splitlines() if "nightly of attic" in line]
    assert said.status == 0 and [line.split()[0] for line in shown] == [name, older]
    assert "holiday" not in said.all
    assert shown[0].startswith(f"{name}   2026-03-04 01:00   9.7 MB   ")
    typed = [line for line in said.out.splitlines() if line.startswith("  python3 ")]
    home = tmp_path / "home"
    home.mkdir()
    for line in typed:
        done = subprocess.run(["sh", "-c", line], cwd=drive, env={**os.environ, "HOME": str(home)}, capture_output=True)
        assert done.returncode == 0, (line, done)
    assert snapshot(home / "found" / "photos") == snapshot(source)
    assert [p.name for p in (home / "pictures").rglob("*") if p.is_file()] == ["IMG_0001.jpg"]


def test_what_is_in_it_is_listed(drive: Path, name: str) -> None:
    listed = rescue(drive, "list", name)
    assert listed.status == 0
    with tarfile.open(drive / name) as archive:
        for member in archive.getmembers():
            assert member.name in OWN or member.name in listed.out
    assert "photos: 46 files, " in listed.out
    some = rescue(drive, "list", name, "photos/klein0*")
    assert [line.split()[-1] for line in some.out.splitlines() if "klein" in line] == [
        f"photos/klein0{n}.txt" for n in range(10)
    ]


OWN = ("SHA256SUMS", "metadata.json", "index.jsonl")


@pytest.mark.parametrize("indexed", [True, False])
def test_only_what_was_asked_for_comes_back(
    drive: Path, name: str, source: Path, tmp_path: Path, indexed: bool
) -> None:
    if not indexed:
        os.truncate(drive / name, (drive / name).stat().st_size - 60)  # the footer, which says where the list is
    whole = snapshot(source)
    for number, (asked, expected) in enumerate(
        (
            (["photos/2024"], {b"2024", b"2024/Ostern", b"2024/Ostern/IMG_0001.jpg", b"2024/Oma & Opa's Garten.txt"}),
            (["*.mp4", "photos/nichts"], {b"film.mp4", b"nichts"}),
            (["./photos/2024/Ostern/"], {b"2024", b"2024/Ostern", b"2024/Ostern/IMG_0001.jpg"}),
            (["photos/zweiter Name"], {b"zweiter Name"}),
            (["photos/zweiter Name", "photos/film.mp4"], {b"zweiter Name", b"film.mp4"}),
        )
    ):
        found = tmp_path / f"found{number}"
        said = rescue(drive, "restore", name, found, *asked)
        assert said.status == 0, said
        got = snapshot(found / "photos")
        assert set(got) == expected | {b"."}
        # Which name a file's hard links are told by differs, where not all of them came along.
        assert {p: v[:7] for p, v in got.items()} == {p: v[:7] for p, v in whole.items() if p in got}
        assert not (found / "metadata.json").exists()


def test_nothing_is_ever_replaced(drive: Path, name: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter").write_text("mine")
    for target in (tmp_path / "mine", tmp_path / "mine" / "letter"):
        said = rescue(drive, "restore", name, target)
        assert said.status == 2 and "ame a new folder" in said.err
    assert fingerprints(tmp_path / "mine") == {"letter": b"mine"}
    (tmp_path / "empty").mkdir()
    assert rescue(drive, "restore", name, tmp_path / "empty").status == 0


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("rescue",), "There is no command rescue."),
        (("restore",), "`restore` needs other words"),
        (("restore", "NAME"), "`restore` needs other words"),
        (("check", "a", "b"), "`check` needs other words"),
        (("list", "none.tar.gz"), "There is no backup none.tar.gz here."),
        (("restore", "none.tar.gz", "found"), "There is no backup none.tar.gz here."),
        (("restore", "NAME", "found", "photos/nobody"), "Nothing in it is called photos/nobody."),
    ],
)
def test_who_types_something_wrong_is_told_so(drive: Path, name: str, argv: tuple[str, ...], says: str) -> None:
    said = rescue(drive, *(name if word == "NAME" else word for word in argv))
    assert said.status == 2 and says in said.err and "Traceback" not in said.err
    assert not (drive / "found").exists()


def test_a_folder_without_backups_is_told_as_such(tmp_path: Path) -> None:
    put_program(tmp_path)
    for argv in ((), ("list",), ("check",)):
        said = rescue(tmp_path, *argv)
        assert said.status == 1 and "There is no backup in" in said.err and "python3 restore.py check" in said.out


@needs_root
def test_too_little_room_is_known_before_anything_is_written(drive: Path, name: str, tmp_path: Path) -> None:
    with small_disk(tmp_path / "small", "8m") as small:
        said = rescue(drive, "restore", name, small / "found")
        assert said.status == 1 and "there is only room for" in said.err
        assert list(small.iterdir()) == []
    with small_disk(tmp_path / "inodes", "30m", ",nr_inodes=20") as small:
        said = rescue(drive, "restore", name, small / "found")
        # What no number tells beforehand is met while it is written.
        assert said.status == 1 and "The disk does not take any more" in said.err and "Traceback" not in said.err


def test_ctrl_c_ends_in_a_sentence_and_leaves_no_half_file(drive: Path, name: str, tmp_path: Path) -> None:
    """On a real terminal, where the percentages stand in one line."""
    big = tmp_path / "source"
    big.mkdir()
    (big / "film").write_bytes(os.urandom(1 << 20) * 300)
    store = archive_store(tmp_path / "big")
    archive = back_up(store, tree(big))
    put_program(archive.parent)
    ours, theirs = pty.openpty()
    found = tmp_path / "found"
    child = subprocess.Popen(
        [*ISOLATED, "restore.py", "restore", archive.name, found], cwd=archive.parent, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    deadline = time.monotonic() + 30
    # Something of it is written: -W error shows a file that was interrupted while it was being opened.
    while not any(half.stat().st_size for half in found.glob(".restoring-*")):
        assert time.monotonic() < deadline
        time.sleep(0.005)
    child.send_signal(signal.SIGINT)
    shown = b""
    while True:
        try:
            shown += os.read(ours, 65536)
        except OSError:  # the other end is closed
            break
    os.close(ours)
    assert child.wait(10) == 130
    assert b"\rRestoring" in shown and b" %" in shown and b"Stopped. The drive is as it was." in shown
    assert b"Traceback" not in shown
    assert [p for p in found.rglob("*") if p.is_file()] == []


def test_a_list_that_nobody_reads_to_its_end_ends_quietly(drive: Path, name: str) -> None:
    line = f"'{sys.executable}' -I restore.py list {name} | (exec <&-; sleep 2)"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", line], cwd=drive, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")


@needs_root
def test_who_is_not_root_owns_what_comes_back(drive: Path, name: str, source: Path) -> None:
    with tempfile.TemporaryDirectory() as theirs:
        shutil.copytree(drive, theirs, dirs_exist_ok=True)
        for path in (Path(theirs), *Path(theirs).iterdir()):
            os.chown(path, 12345, 12345)
        them = ("setpriv", "--reuid=12345", "--regid=12345", "--clear-groups", "/usr/bin/python3", "-I")
        said = rescue(Path(theirs), "restore", name, "found", python=them)
        assert said.status == 0 and "yours now, as only root can give files to others" in said.err, said
        found = Path(theirs) / "found"
        assert {p.lstat().st_uid for p in found.rglob("*")} == {12345}
        assert fingerprints(found / "photos") == fingerprints(source)


def test_a_file_with_holes_beyond_eight_gigabytes_is_understood(tmp_path: Path) -> None:
    """Its description alone, as nobody keeps so much for a test. Python's own tarfile misreads it."""
    from memu_backup.rescue.restore import Archive, Stream

    gib = 1 << 30
    header = Header("disk.img", Type.FILE, 20 * gib, extents=((gib, 9 * gib), (20 * gib, 0)))
    (tmp_path / "a.tar.gz").write_bytes(b"".join(pack(tar.encode(header))))
    entry = Stream(Archive(str(tmp_path / "a.tar.gz")).raw).entry()
    assert entry and (entry.path, entry.size, entry.stored) == ("disk.img", 20 * gib, 9 * gib)
    assert entry.extents == header.extents
    with tarfile.open(tmp_path / "a.tar.gz") as read:
        member = read.next()
        assert member and member.size != 20 * gib, "tarfile has learned it: restore.py could use it"


def test_a_map_of_holes_without_an_end_is_refused_at_once(tmp_path: Path) -> None:
    """A megabyte of archive, and hours of work for whoever puts such a line together anew for each block."""
    size_bytes = 1 << 30
    header = tar.encode(Header("disk.img", Type.FILE, size_bytes, extents=((0, size_bytes),)))
    with gzip.open(tmp_path / "a.tar.gz", "wb", 1) as archive:
        archive.write(header[: -tar.BLOCK])  # and in place of the map
        for _ in range(size_bytes >> 20):
            archive.write(b"1" * (1 << 20))
    put_program(tmp_path)
    said = rescue(tmp_path, "list", "a.tar.gz")
    assert said.status == 1 and "Traceback" not in said.err, said


def test_names_that_windows_takes_for_more_than_a_letter() -> None:
    from memu_backup.rescue.restore import local

    assert local("photos/C:evil\\..\\x?.jpg", windows=True) == "photos\\C_evil_.._x_.jpg"
    assert local("photos/\udcff a:b", windows=False) == "photos/\udcff a:b"

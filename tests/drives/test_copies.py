"""What lies on a drive after a copy, and what had to go for it: on every filesystem, in parts, and on full ones."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memu_backup.drives import mounting
from tests.drives.guests import AS_THE_UNIT, OURS, House, sha256
from tests.home import fingerprints
from tests.usb import Stick, has, needs_usb

pytestmark = needs_usb


@contextmanager
def plugged(stick: Stick) -> Iterator[None]:
    stick.plug()
    try:
        yield
    finally:
        stick.unplug()


def copies(stick: Stick) -> list[str]:
    """The archives on it, oldest first."""
    found = [name for name in stick.names() if name.startswith(OURS) and name.endswith(".tar.gz")]
    return [name.rpartition("/")[2] for name in found]


KINDS = [
    pytest.param("ext4", id="ext4"),
    pytest.param("btrfs", id="btrfs"),
    pytest.param("xfs", id="xfs"),
    pytest.param("ntfs", id="ntfs", marks=pytest.mark.skipif(not has("mkntfs"), reason="needs ntfs-3g")),
    pytest.param("exfat", id="exfat", marks=pytest.mark.skipif(not has("mkfs.exfat"), reason="needs exfatprogs")),
]


@pytest.mark.parametrize("kind", KINDS)
def test_on_every_filesystem_the_copy_is_whole_and_nothing_of_the_owners_changes(house: House, kind: str) -> None:
    stick = house.trusted(kind, "FAMILY", 330 << 20)
    with stick.mounted() as top:
        (top / "holiday.mp4").write_bytes(b"mine")
    (archive,) = house.home.archives
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
        assert ran.out.endswith("Safe to remove the drive.\n")
        again = house.run("usb", "copy")
        assert (again.status, again.seconds < 5) == (0, True)
        assert "The latest backup lies on 'FAMILY' drive already." in again.out
    with stick.mounted() as top:
        assert (top / "holiday.mp4").read_bytes() == b"mine"
        lies = top / OURS / archive.name
        assert sha256(lies) == sha256(archive)
        argv = ["sha256sum", "-c", f"{archive.name}.sha256"]
        assert subprocess.run(argv, cwd=lies.parent, capture_output=True).returncode == 0
        assert {p.name for p in (top / "memu-backup").iterdir()} == {
            "README.html",
            "drive.json",
            "family-server_nightly",
            "restore.py",
        }
    (row,) = house.home.rows()
    assert row["usb_copied_at"] is not None
    assert house.drive("FAMILY").marker


@pytest.mark.parametrize(
    "kind", ["ext4", pytest.param("ntfs", marks=pytest.mark.skipif(not has("mkntfs"), reason="needs ntfs-3g"))]
)
def test_with_no_more_rights_than_the_unit_gives_it_is_copied_to(house: House, kind: str) -> None:
    stick = house.trusted(kind, "FAMILY")
    with plugged(stick):
        ran = house.home.run("usb", "copy", prefix=(*house.hub.prefix, *AS_THE_UNIT))
    assert ran.status == 0, ran
    assert copies(stick) == [house.home.archives[0].name]


def test_it_is_mounted_so_that_nothing_on_it_is_followed_run_or_trusted(house: House) -> None:
    stick = house.trusted()
    house.back_up(80_000_000)
    with plugged(stick):
        argv = [*house.hub.prefix, *house.home.argv("usb", "copy")]
        with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL):
            copier = house.until_copier()
            lines = Path(f"/proc/{copier}/mountinfo").read_text().splitlines()
    (mine,) = [line.split() for line in lines if "/drives/mounted/" in line]
    assert {"nosuid", "nodev", "noexec", "nosymfollow"} <= set(mine[5].split(","))


def test_what_one_file_cannot_hold_goes_in_parts_that_cat_joins_and_restore_reads(house: House) -> None:
    """As FAT's 4 GiB, with a smaller limit: the error is the same."""
    stick = house.trusted()
    archive = house.back_up(20_000_000)
    with plugged(stick):
        limited = ("prlimit", "--fsize=8000000", *house.hub.prefix)
        ran = house.home.run("usb", "copy", prefix=limited)
        assert ran.status == 0, ran
        assert house.run("usb", "copy").out.count("already") == 1
    with stick.mounted() as top:
        folder = top / OURS
        parts = sorted(folder.glob(f"{archive.name}.part*"))
        assert [p.name for p in parts] == [f"{archive.name}.part{n:03}" for n in (1, 2, 3)]
        assert sum(p.stat().st_size for p in parts) == archive.stat().st_size
        shell = f"cat {archive.name}.part* | sha256sum && sha256sum --quiet -c {archive.name}.pieces.sha256"
        joined = subprocess.run(["sh", "-c", shell], cwd=folder, capture_output=True, text=True)
        assert (joined.returncode, joined.stdout.split()[0]) == (0, sha256(archive)), joined
        for file in (parts[1], folder / archive.name):
            target = house.home.folder / f"found-{file.suffix}"
            ran = house.home.run("restore", str(file), "--to", str(target), "--yes")
            assert ran.status == 0, ran
            assert fingerprints(target / "photos") == fingerprints(house.home.folder / "photos")


def test_what_lies_beside_the_copies_brings_everything_back(house: House, tmp_path: Path) -> None:
    stick = house.trusted()
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
    (archive,) = house.home.archives
    with stick.mounted() as top:
        page = (top / "memu-backup" / "README.html").read_text()
        assert archive.name in page and "SanDisk_Family" in page
        restore = ["python3", "-I", str(top / "memu-backup" / "restore.py")]
        listed = subprocess.run(restore, capture_output=True, text=True)
        assert archive.name in listed.stdout, listed
        target = tmp_path / "found"
        argv = [*restore, "restore", str(top / OURS / archive.name), str(target)]
        ran = subprocess.run(argv, capture_output=True, text=True)
        assert ran.returncode == 0, ran
    assert fingerprints(target / "photos") == fingerprints(house.home.folder / "photos")


def test_three_of_each_job_stay_and_the_oldest_go(house: House) -> None:
    stick = house.trusted()
    made = [house.home.archives[0].name]
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
        for _ in range(4):
            made.append(house.back_up(1000).name)
            ran = house.run("usb", "copy")
            assert ran.status == 0, ran
        assert f"Removed 1 older: {made[1]}" in ran.out
    assert copies(stick) == made[-3:]
    assert house.drive().copies == 3


def test_to_make_room_older_copies_of_ours_go_and_neither_the_newest_nor_anything_else(house: House) -> None:
    stick = house.trusted(size_bytes=160 << 20)
    made = [house.back_up(30_000_000).name]
    with stick.mounted() as top:
        foreign = top / "memu-backup" / "family-server_nightly"
        foreign.mkdir(parents=True)
        (foreign / "mine.tar.gz").write_bytes(os.urandom(1000))
        (top / "holiday.mp4").write_bytes(os.urandom(20_000_000))
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
        made.append(house.back_up(60_000_000).name)
        ran = house.run("usb", "copy")
        assert (ran.status, f"Removed 1 older: {made[0]}" in ran.out) == (1, False), ran
        assert ran.err.splitlines()[-1].startswith("'SanDisk_Family' drive: It is full: 1")
        assert ran.err.splitlines()[-1].endswith("free. The newest copy on it stays.")
    assert [name for name in copies(stick) if name.startswith("memu")] == [made[0]]
    with stick.mounted() as top:
        (top / "holiday.mp4").unlink()
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
    assert made[1] in copies(stick)
    assert {"memu-backup/family-server_nightly/mine.tar.gz"} <= set(stick.names())


def test_a_drive_that_cannot_be_written_to_is_said_to_be_so(house: House) -> None:
    stick = house.trusted()
    stick.plug(read_only=True)
    ran = house.run("usb", "copy")
    assert (ran.status, ran.err) == (1, "'SanDisk_Family' drive: It is write-protected.\n")
    stick.unplug()


def test_what_is_damaged_here_is_not_copied_but_noted_and_the_one_before_is(house: House) -> None:
    stick = house.trusted()
    good, bad = house.home.archives[0], house.back_up(100_000)
    content = bytearray(bad.read_bytes())
    content[len(content) // 2] ^= 1
    bad.write_bytes(content)
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
    assert copies(stick) == [good.name]
    assert "damaged" in house.home.run("list").out
    assert house.home.rows()[0]["error_code"] == "damaged"


def test_a_dry_run_writes_nothing_and_says_what_it_would(house: House) -> None:
    stick = house.trusted()
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
        newer = house.back_up(1000).name
    before = sha256(stick.image)
    with plugged(stick):
        ran = house.run("usb", "copy", "--dry-run")
        assert ran.status == 0, ran
        assert ran.out.splitlines() == [
            f"Would be copied: {newer} (131 kB)" if "131 kB" in ran.out else ran.out.splitlines()[0],
            "Nothing was written; this was a dry run.",
        ]
        assert newer in ran.out
    assert sha256(stick.image) == before


def test_to_a_folder_without_any_drive(house: House, tmp_path: Path) -> None:
    (archive,) = house.home.archives
    folder = tmp_path / "mounted by hand"
    folder.mkdir()
    ran = house.home.run("usb", "copy", "--to", str(folder))
    assert ran.status == 0, ran
    assert ran.out == f"Copied and read back: {archive.name} (129 kB)\n" or archive.name in ran.out
    assert sha256(folder / OURS / archive.name) == sha256(archive)
    told = json.loads(house.home.run("usb", "copy", "--to", str(folder), "--json").out)
    assert (told["copied"], told["there"]) == ([], [archive.name])
    assert house.home.run("usb", "copy", "--to", str(tmp_path / "nowhere")).status == 2
    assert house.home.rows()[0]["usb_copied_at"] is not None


def test_jobs_that_are_not_to_lie_on_drives_do_not(house: House) -> None:
    house.configure(more="to_drives = false\n")
    stick = house.trusted()
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert ran.status == 2
    assert ran.err == "There is no good backup yet that could be copied. Make one: memu-backup start\n"


@pytest.mark.parametrize("what", ["a link", "a pipe", "a file"])
def test_something_else_in_the_place_of_our_folder_is_left_as_it_is(house: House, what: str, tmp_path: Path) -> None:
    stick = house.trusted()
    away = tmp_path / "elsewhere"
    away.mkdir()
    with stick.mounted() as top:
        make: dict[str, Callable[[Path], None]] = {
            "a link": lambda path: path.symlink_to(away),
            "a pipe": os.mkfifo,
            "a file": Path.touch,
        }
        make[what](top / "memu-backup")
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert (ran.status, ran.err) == (
        1,
        "'SanDisk_Family' drive: Something that is no folder stands where copies are to go (memu-backup), so nothing "
        "was written. Look at it on a computer.\n",
    )
    assert list(away.iterdir()) == []


def test_a_trap_in_the_place_of_the_copy_is_left_as_it_is(house: House, tmp_path: Path) -> None:
    stick = house.trusted()
    (archive,) = house.home.archives
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
    newer = house.back_up(1000)
    target = tmp_path / "precious"
    target.write_text("mine")
    with stick.mounted() as top:
        (top / OURS / newer.name).symlink_to(target)
        os.mkfifo(top / OURS / f".{newer.name}.002.partial")
        (top / "memu-backup" / "restore.py").unlink()
        (top / "memu-backup" / "restore.py").symlink_to(target)
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert ran.status == 1
    assert "Something that is no backup stands where the copy is to go" in ran.err
    assert target.read_text() == "mine"
    assert archive.name in copies(stick)


def test_a_file_of_that_name_that_is_no_whole_copy_is_replaced(house: House) -> None:
    """Such as one of petabytes that has nothing in it."""
    stick = house.trusted()
    (archive,) = house.home.archives
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
    with stick.mounted() as top:
        os.truncate(top / OURS / archive.name, 1 << 40)
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
    with stick.mounted() as top:
        assert sha256(top / OURS / archive.name) == sha256(archive)


def test_killed_between_the_rename_and_the_reading_back_it_is_copied_anew(house: House) -> None:
    """A copy that nobody read back does not count."""
    stick = house.trusted()
    (archive,) = house.home.archives
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
    with stick.mounted() as top:
        (top / OURS / f"{archive.name}.sha256").unlink()
    with plugged(stick):
        assert "Copied latest backup" in house.run("usb", "copy").out


def test_where_somebody_else_has_it_open_it_may_not_be_pulled(house: House) -> None:
    stick = house.trusted()
    desktop = house.home.folder.parent / "media of anna"
    desktop.mkdir()
    with plugged(stick):
        house.hub.run("mount", str(stick.node), str(desktop))
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
        held = f"Do not remove the drive yet: it is still open at {desktop}. Eject it there first.\n"
        assert ran.out.endswith(held)
        assert (house.run("usb", "eject").status, house.run("usb", "eject").out) == (1, held)
        house.hub.run("umount", str(desktop))
        ran = house.run("usb", "eject")
        assert (ran.status, ran.out) == (0, "Safe to remove the drive.\n")


def test_served_by_a_program_that_lets_nobody_else_in_it_is_written_through_that(house: House) -> None:
    stick = house.trusted("ntfs", "FAMILY")
    desktop = house.home.folder.parent / "media of anna"
    desktop.mkdir()
    with plugged(stick):
        house.hub.run("mount", "-t", "ntfs-3g", str(stick.node), str(desktop))
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
        assert f"still open at {desktop}." in ran.out
        assert (desktop / OURS).exists() is False, "what is mounted in there is not seen out here"
        house.hub.run("umount", str(desktop))
    assert copies(stick) == [house.home.archives[0].name]


def test_the_mounts_are_read_as_the_kernel_writes_them() -> None:
    assert any(mount.point == Path("/") for mount in mounting.mounts())

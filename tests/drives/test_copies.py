"""What lies on a drive after a copy, and what had to go for it: on every filesystem, in parts, and on full ones."""

from __future__ import annotations

import gzip
import json
import os
import re
import shutil
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memu_backup import lock
from memu_backup.drives import mounting
from tests.archives import odd_tree, snapshot
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


needs_ntfs = pytest.mark.skipif(not has("mkntfs"), reason="needs ntfs-3g")


@pytest.mark.parametrize("kind", ["ext4", pytest.param("ntfs", marks=needs_ntfs)])
def test_with_no_more_rights_than_the_unit_gives_it_is_copied_to(house: House, kind: str) -> None:
    stick = house.trusted(kind, "FAMILY")
    with plugged(stick):
        ran = house.home.run("usb", "copy", prefix=(*house.hub.prefix, *AS_THE_UNIT))
    assert ran.status == 0, ran
    assert copies(stick) == [house.home.archives[0].name]


@pytest.mark.parametrize("kind", ["ext4", pytest.param("ntfs", marks=[needs_ntfs, pytest.mark.slow])])
def test_it_is_mounted_so_that_nothing_on_it_is_followed_run_or_trusted(house: House, kind: str) -> None:
    stick = house.trusted(kind)
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


@pytest.mark.slow
@pytest.mark.parametrize("what", ["its last part is missing", "its last part is cut off"])
def test_a_copy_that_lost_its_end_does_not_count_and_is_made_anew(house: House, what: str) -> None:
    stick = house.trusted()
    archive = house.back_up(20_000_000)
    with plugged(stick):
        limited = ("prlimit", "--fsize=8000000", *house.hub.prefix)
        assert house.home.run("usb", "copy", prefix=limited).status == 0
    with stick.mounted() as top:
        *_, last = sorted((top / OURS).glob(f"{archive.name}.part*"))
        last.unlink() if "missing" in what else os.truncate(last, 1000)
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0 and "already" not in ran.out, ran
    with stick.mounted() as top:
        assert sha256(top / OURS / archive.name) == sha256(archive)


@pytest.fixture
def library(house: House) -> Path:
    """The newest of three backups that are kept as trees."""
    odd_tree(house.home.folder / "photos" / "odd")
    house.configure(more='[stores.library]\nkind = "tree"\ndir = "library"\n')
    for _ in range(3):
        assert house.run("start").status == 0
    *_, newest = sorted((house.home.folder / "library").glob("2*"))
    return newest


def test_a_tree_goes_onto_a_drive_as_an_archive_that_is_packed_on_the_way(
    house: House, library: Path, tmp_path: Path
) -> None:
    stick = house.trusted(size_bytes=256 << 20)
    before = snapshot(house.home.folder / "library")
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
        again = house.run("usb", "copy")
        assert again.status == 0 and "already" in again.out, again
    assert snapshot(house.home.folder / "library") == before, "nothing of it was on the disk meanwhile"
    with stick.mounted() as top:
        (archive,) = (top / OURS).glob("*.tar.gz")
        assert re.fullmatch(r"memu_backup_\d{8}_\d{6}\.tar\.gz", archive.name)
        assert f"({round(archive.stat().st_size / 1e6)} MB)" in ran.out, "and not what it might have taken"
        subprocess.run(["sha256sum", "--quiet", "-c", f"{archive.name}.sha256"], cwd=archive.parent, check=True)
        verified = house.home.run("verify", str(archive))
        assert verified.status == 0, verified
        restored = house.home.run("restore", str(archive), "--to", str(tmp_path / "out"), "--yes", "--trust")
        assert restored.status == 0, restored
    assert snapshot(tmp_path / "out" / "photos") == snapshot(house.home.folder / "photos")
    assert house.drive().copies == 1
    assert [bool(row["usb_copied_at"]) for row in house.home.rows()] == [True, False, False, False]


@pytest.mark.slow
def test_a_tree_that_is_damaged_is_not_copied_but_noted_and_the_one_before_is(house: House, library: Path) -> None:
    stick = house.trusted(size_bytes=256 << 20)
    (library / "photos" / "2026" / "lake.jpg").unlink()
    (library / "photos" / "2026" / "lake.jpg").write_bytes(b"spoiled")
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0, ran
    assert [b["state"] for b in house.home.run("list", "--json").json] == ["damaged", "good", "good"]
    assert [bool(row["usb_copied_at"]) for row in house.home.rows()] == [False, True, False, False]
    assert len(copies(stick)) == 1


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


def test_copies_of_a_clock_that_was_years_ahead_do_not_push_out_the_new_one(house: House) -> None:
    stick = house.trusted()
    (archive,) = house.home.archives
    ahead = [f"memu_backup_2036010{n}_020000.tar.gz" for n in (1, 2, 3)]
    with stick.mounted() as top:
        (top / OURS).mkdir(parents=True)
        for name in ahead:
            shutil.copy(archive, top / OURS / name)
            (top / OURS / f"{name}.sha256").write_text(f"{'ab' * 32}  {name}\n")
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0 and "Removed" not in ran.out, ran
    assert copies(stick) == [archive.name, *ahead]


def test_another_backup_of_the_same_name_is_never_replaced(house: House) -> None:
    """Somebody changed the one on the server, and its checksum with it: the drive may have the only good one."""
    stick = house.trusted()
    (archive,) = house.home.archives
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
    with stick.mounted() as top:
        before = sha256(top / OURS / archive.name)
    was = archive.read_bytes()
    archive.write_bytes(was[:1000] + b"spoiled" + was[1007:])
    archive.with_name(f"{archive.name}.sha256").write_text(f"{sha256(archive)}  {archive.name}\n")
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert ran.status == 1
    assert "Another backup that has the same name lies on it already" in ran.err
    with stick.mounted() as top:
        assert sha256(top / OURS / archive.name) == before


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


@pytest.mark.slow
def test_nothing_goes_where_even_that_would_make_too_little_room(house: House) -> None:
    stick = house.trusted(size_bytes=160 << 20)
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
        house.back_up(1000)
        assert house.run("usb", "copy").status == 0
    before = copies(stick)
    house.back_up(170_000_000)
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert ran.status == 1 and "It is full" in ran.err, ran
    assert copies(stick) == before and len(before) == 2


def test_a_drive_that_is_just_being_written_to_is_not_let_go(house: House) -> None:
    stick = house.trusted()
    with plugged(stick), lock.held(house.home.folder / "state" / "drives", "a copy to SanDisk_Family"):
        for command in ("eject", "copy"):
            ran = house.run("usb", command)
            assert ran.status == 75 and "Safe to remove" not in ran.out, ran
        assert house.run("usb", "copy", "--dry-run").status == 75


def test_a_drive_that_cannot_be_written_to_is_said_to_be_so(house: House) -> None:
    stick = house.trusted()
    stick.plug(read_only=True)
    ran = house.run("usb", "copy")
    assert (ran.status, ran.err) == (1, "'SanDisk_Family' drive: It is write-protected.\n")
    stick.unplug()


def test_what_cannot_be_mounted_is_told_in_plain_words(house: House) -> None:
    stick = house.trusted()
    with stick.image.open("r+b") as image:  # what follows the superblock, by which it is still known
        image.seek(2048)
        image.write(b"\xff" * 6144)
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert (ran.status, ran.err) == (1, "'SanDisk_Family' drive: It cannot be mounted: it may be damaged.\n")


@pytest.mark.skipif("vfat" in Path("/proc/filesystems").read_text(), reason="the Linux here knows FAT")
def test_a_filesystem_that_this_linux_does_not_know_is_named(house: House) -> None:
    stick = house.trusted("vfat", label="FAMILY")
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert (ran.status, ran.err) == (1, "'FAMILY' drive: This server's Linux does not know its filesystem (vfat).\n")


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_what_people_call_it_and_where_it_is_kept_can_be_said_later(house: House) -> None:
    house.trusted()
    ran = house.run("usb", "rename", "SanDisk_Family")
    assert (ran.status, ran.out) == (2, "")
    assert "Say how it is to be called, or where it is kept" in ran.err
    ran = house.run("usb", "rename", "SanDisk_Family", "blue\x1b[31m drive", "--kept-at", "grandma's")
    assert ran.out == "SanDisk_Family is now called blue\N{REPLACEMENT CHARACTER}[31m drive, kept at grandma's.\n", ran
    ran = house.run("usb", "rename", "SanDisk_Family", "blue drive")
    assert ran.out == "SanDisk_Family is now called blue drive, kept at grandma's.\n", ran
    (row,) = house.passports()
    assert (row["name"], row["kept_at"]) == ("blue drive", "grandma's")
    assert "blue drive" in house.run("usb", "list").out


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


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a link", "a pipe", "a file"])
@pytest.mark.parametrize("where", ["memu-backup", OURS])
def test_something_else_in_the_place_of_our_folder_is_left_as_it_is(
    house: House, what: str, where: str, tmp_path: Path
) -> None:
    stick = house.trusted()
    away = tmp_path / "elsewhere"
    away.mkdir()
    with stick.mounted() as top:
        make: dict[str, Callable[[Path], None]] = {
            "a link": lambda path: path.symlink_to(away),
            "a pipe": os.mkfifo,
            "a file": Path.touch,
        }
        (top / where).parent.mkdir(exist_ok=True)
        make[what](top / where)
    with plugged(stick):
        ran = house.run("usb", "copy")
    assert (ran.status, ran.err) == (
        1,
        "'SanDisk_Family' drive: Something that is no folder stands where copies are to go "
        f"({where.rpartition('/')[2]}), so nothing was written. Look at it on a computer.\n",
    )
    assert list(away.iterdir()) == []


@pytest.mark.slow
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


@pytest.mark.slow
def test_a_strangers_archive_that_unpacks_to_no_end_holds_nothing_up(house: House) -> None:
    """The kit tells of all copies on the drive; of one without an index it would have to read all."""
    stick = house.trusted(size_bytes=512 << 20)
    name = "other_20200101_000000.tar.gz"
    zeros = gzip.compress(bytes(64 << 20), 6)
    with stick.mounted() as top:
        folder = top / "memu-backup" / "stranger_nightly"
        folder.mkdir(parents=True)
        (folder / f"{name}.sha256").write_text(f"{'0' * 64}  {name}\n")
        with (folder / name).open("wb") as archive:
            header = tarfile.TarInfo("a")
            header.size = 4000 * (64 << 20)
            archive.write(gzip.compress(header.tobuf(tarfile.PAX_FORMAT)))
            for _ in range(4000):
                archive.write(zeros)
    with plugged(stick):
        house.hub.until(lambda: "plugged in" in house.run("usb", "list").out)
        ran = house.run("usb", "copy")
    assert ran.status == 0, ran
    assert f"{OURS}/{house.home.archives[0].name}" in stick.names()


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
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


@pytest.mark.slow
def test_where_somebody_has_another_part_of_it_open_it_may_not_be_pulled(house: House) -> None:
    stick = house.hub.stick(size_bytes=300 << 20)
    _, two = stick.divide()
    house.hub.until(lambda: "ONE" in house.run("usb", "list").out)
    assert house.run("usb", "trust", "ONE").status == 0
    desktop = house.home.folder.parent / "media of anna"
    desktop.mkdir()
    house.hub.run("mount", str(two), str(desktop))
    ran = house.run("usb", "copy", "ONE")
    assert ran.status == 0 and "Safe to remove" not in ran.out, ran
    assert f"it is still open at {desktop}" in ran.out
    house.hub.run("umount", str(desktop))
    assert house.run("usb", "eject", "ONE").out == "Safe to remove the drive.\n"
    stick.unplug()


@pytest.mark.slow
def test_where_the_folder_for_our_own_state_is_a_link_it_is_copied_to_as_well(house: House, tmp_path: Path) -> None:
    state = house.home.folder / "state"
    state.rename(tmp_path / "elsewhere")
    state.symlink_to(tmp_path / "elsewhere")
    stick = house.trusted()
    with plugged(stick):
        ran = house.run("usb", "copy")
        assert ran.status == 0 and "Safe to remove the drive." in ran.out, ran
    assert len(copies(stick)) == 1


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


@pytest.mark.slow
def test_the_copy_on_a_drive_that_is_plugged_in_is_tried_too_and_nothing_on_it_changes(house: House) -> None:
    stick = house.trusted(label="FAMILY")
    archive = house.back_up(20_000_000)
    house.home.archives[0].unlink()  # whose turn it would be
    with plugged(stick):
        assert house.run("usb", "copy").status == 0
    before = sha256(stick.image)
    with plugged(stick):
        ran = house.run("drill", "--json")
    assert ran.status == 0, ran
    here, there = ran.json
    assert (here["lay_at"], there["lay_at"]) == ("", "FAMILY")
    assert (there["outcome"], there["backup"], there["unchecked"]) == ("whole", archive.name, [])
    assert sha256(stick.image) == before
    with stick.mounted() as top, (top / OURS / archive.name).open("r+b") as file:
        file.seek(10_000_000)
        file.write(b"\xff")
    with plugged(stick):
        ran = house.run("drill")
    assert ran.status == 1 and "photos/" in ran.err, ran
    assert not archive.with_name(f"{archive.name}.damaged").exists(), "the one on the server is good"

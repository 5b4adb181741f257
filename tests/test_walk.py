"""A tree is walked while it moves: nothing is followed, nothing waits, and what is lost is named."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from memu_backup.model import Level, Progress, Root, SourceSummary
from memu_backup.stores import Written
from memu_backup.stores.archive import ArchiveStore
from memu_backup.walk import DEEPEST, Identity, Skipped, identities, walk
from memu_backup.work import Stop
from tests.archives import archive_store, ignore, needs_root, things_never_opened, tree, write


def places(root: Root, skip: frozenset[Identity] = frozenset()) -> tuple[list[str], list[Skipped]]:
    left_out: list[Skipped] = []
    return [found.place for found in walk(root, skip, left_out.append)], left_out


def test_folders_come_before_what_is_in_them_and_names_in_order(tmp_path: Path) -> None:
    for name in ("b/2", "b/1", "a", "c/x/y"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert places(Root(tmp_path, "p/"))[0] == ["p", "p/a", "p/b", "p/b/1", "p/b/2", "p/c", "p/c/x", "p/c/x/y"]


def test_globs_leave_out_as_gitignore_does(tmp_path: Path) -> None:
    for name in ("keep.jpg", "x.tmp", "a/x.tmp", "cache/1", "a/cache/1", "a/b/thumbs/1", "thumbs"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, left_out = places(Root(tmp_path, "", ("*.tmp", "/cache/", "**/thumbs/")))
    assert found == ["", "a", "a/b", "a/cache", "a/cache/1", "keep.jpg", "thumbs"]
    assert left_out == []


def test_links_are_given_and_never_followed(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to(".")
    (tmp_path / "out").symlink_to("/etc")
    assert places(Root(tmp_path, "p/"))[0] == ["p", "p/loop", "p/out"]


@needs_root
def test_pipes_sockets_and_devices_are_reported_and_not_given(tmp_path: Path) -> None:
    count = things_never_opened(tmp_path)
    found, left_out = places(Root(tmp_path, "p/"))
    assert found == ["p"]
    assert len(left_out) == count
    assert not any(s.lost for s in left_out)


@needs_root
def test_a_source_that_is_a_pipe_or_a_device_is_lost_and_never_opened(tmp_path: Path) -> None:
    things_never_opened(tmp_path)
    for name, kind in (("pipe", "named pipe"), ("socket", "socket"), ("char", "device"), ("block", "device")):
        found, left_out = places(Root(tmp_path / name, name))
        assert (found, left_out) == ([], [Skipped(name, f"is a {kind} and not a file or folder", lost=True)])


@contextmanager
def mounted(*argv: str | Path) -> Iterator[None]:
    subprocess.run(["mount", *argv], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", argv[-1]], check=True)


@needs_root
def test_another_filesystem_is_entered_only_when_asked(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    with mounted("-t", "tmpfs", "tmpfs", disk):
        (disk / "inside").touch()
        found, left_out = places(Root(tmp_path, "p/"))
        assert found == ["p", "p/disk"]
        assert [(s.place, s.lost) for s in left_out] == [("p/disk", False)]
        assert places(Root(tmp_path, "p/", cross_filesystems=True))[0] == ["p", "p/disk", "p/disk/inside"]


@needs_root
def test_a_folder_mounted_into_itself_ends(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    with mounted("--bind", tmp_path, tmp_path / "a" / "b"):
        found, left_out = places(Root(tmp_path, "p/", cross_filesystems=True))
    assert found == ["p", "p/a", "p/a/b"]
    assert "contains itself" in left_out[0].reason


def test_folders_of_ours_are_not_entered(tmp_path: Path) -> None:
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "x.tar.gz").touch()
    ours = frozenset(identities([tmp_path / "store"]))
    found, left_out = places(Root(tmp_path, "p/"), ours)
    assert found == ["p"]
    assert [(s.place, s.lost) for s in left_out] == [("p/store", False)]
    found, left_out = places(Root(tmp_path / "store", "p/"), ours)
    assert found == []
    assert [(s.place, s.lost) for s in left_out] == [("p/", True)]


@pytest.mark.parametrize("depth", [600, 900])
def test_a_deep_tree_is_walked_as_far_as_descriptors_go_and_the_rest_is_told(tmp_path: Path, depth: int) -> None:
    there = os.open(tmp_path, os.O_RDONLY)
    for _ in range(depth):
        os.mkdir("d", dir_fd=there)
        below = os.open("d", os.O_RDONLY, dir_fd=there)
        os.close(there)
        there = below
    os.close(there)
    before = len(list(Path("/proc/self/fd").iterdir()))
    found, left_out = places(Root(tmp_path, "p/"))
    assert len(found) == min(depth, DEEPEST) + 1
    assert [s.lost for s in left_out] == [True] * (depth > DEEPEST)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_a_walk_that_is_given_up_leaves_no_descriptor_open(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    for name in "cde":
        (tmp_path / "a" / name).write_bytes(b"x")
    before = len(list(Path("/proc/self/fd").iterdir()))
    for steps in range(1, 7):
        walking = iter(walk(Root(tmp_path, "p/"), frozenset(), lambda _: None, ahead_bytes=1 << 20))
        for _ in range(steps):
            next(walking)
        del walking
    assert len(list(Path("/proc/self/fd").iterdir())) == before


# --- files that move while they are read -----------------------------------------------------------------------------


class Household:
    """A folder whose first file is large, so that the first progress comes while the archive is being written."""

    def __init__(self, folder: Path) -> None:
        self.source = folder / "source"
        self.source.mkdir()
        (self.source / "a first.mp4").write_bytes(os.urandom(5 << 20))
        self.store: ArchiveStore = archive_store(folder / "store")

    def file(self, size: int, name: str = "b.log") -> Path:
        path = self.source / name
        path.write_bytes(b"\1" * size)
        return path

    def back_up(self, change: Callable[[], None], *, at: str) -> tuple[Written, SourceSummary]:
        """Write, calling ``change`` once, when a block of the file called ``at`` was read."""
        done: list[Progress] = []

        def on_progress(progress: Progress) -> None:
            if done:
                return
            if progress.what.endswith(at):
                done.append(progress)
                change()
            else:
                time.sleep(0.11)  # progress comes ten times a second: now the next block is told too

        written = write(self.store, tree(self.source), on_progress=on_progress)
        assert done, "the file was not changed in time"
        verdict = self.store.prove(written.partial_path, Level.FULL, ignore, Stop())
        assert verdict.problems == (), "the archive is whole whatever its sources did"
        listed = subprocess.run(["tar", "-tzf", written.partial_path], capture_output=True, text=True)
        assert (listed.returncode, listed.stderr) == (0, "")
        return written, written.manifest.sources[0]

    def content(self, written: Written, name: str) -> bytes:
        return b"".join(self.store.content(written.partial_path, f"photos/{name}"))


@pytest.fixture
def household(tmp_path: Path) -> Household:
    return Household(tmp_path)


def test_a_file_that_shrinks_is_filled_up_and_named(household: Household) -> None:
    film = household.source / "a first.mp4"
    before = film.read_bytes()
    written, summary = household.back_up(lambda: os.truncate(film, (4 << 20) + 7), at="a first.mp4")
    assert summary.missing == ("photos/a first.mp4 became shorter while it was read; the rest is zeros in the backup",)
    assert written.manifest.partial
    expected = before[: (4 << 20) + 7]
    assert household.content(written, film.name) == expected + bytes(len(before) - len(expected))


def test_a_file_that_grows_is_there_to_its_old_end_and_the_backup_complete(household: Household) -> None:
    film = household.source / "a first.mp4"
    before = film.read_bytes()

    def grow() -> None:
        with film.open("ab") as file:
            file.write(b"more")

    written, summary = household.back_up(grow, at="a first.mp4")
    assert (summary.missing, written.manifest.partial) == ((), False)
    assert summary.warnings == ("photos/a first.mp4 grew while it was read; the backup has its first part",)
    assert household.content(written, film.name) == before


def test_a_file_rewritten_in_place_is_named(household: Household) -> None:
    film = household.source / "a first.mp4"

    def rewrite() -> None:
        with film.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"x")

    _, summary = household.back_up(rewrite, at="a first.mp4")
    assert summary.warnings == ("photos/a first.mp4 changed while it was read",)


def test_an_open_file_that_vanishes_is_there_whole(household: Household) -> None:
    film = household.source / "a first.mp4"
    before = film.read_bytes()
    written, summary = household.back_up(film.unlink, at="a first.mp4")
    assert summary.missing == ()
    assert household.content(written, film.name) == before


def test_a_file_that_vanishes_before_its_turn_is_named(household: Household) -> None:
    following, log = household.file(100, "a second"), household.file(100)

    def vanish() -> None:
        following.unlink()
        log.unlink()

    written, summary = household.back_up(vanish, at="a first.mp4")
    assert summary.missing == ("photos/b.log has vanished",)
    assert summary.files == 2
    assert household.content(written, "a second") == b"\1" * 100, "it was open already, to be read next"


def test_a_file_that_turns_into_a_link_is_not_followed(household: Household, tmp_path: Path) -> None:
    household.file(1, "a second")  # is looked at meanwhile
    folder = household.source / "b"
    folder.mkdir()
    (folder / "photo.jpg").write_bytes(b"mine")
    secrets = tmp_path / "secrets"
    secrets.mkdir()
    (secrets / "photo.jpg").write_bytes(b"a stranger's secret")

    def swap() -> None:
        shutil.rmtree(folder)
        folder.symlink_to(secrets)

    written, summary = household.back_up(swap, at="a first.mp4")
    assert b"secret" not in written.partial_path.read_bytes()
    assert (summary.files, summary.links) == (2, 1)


def test_an_entry_swapped_after_it_was_looked_at_is_not_followed(tmp_path: Path) -> None:
    """The moment between stat and open, which only an attacker meets."""
    (tmp_path / "secret").write_bytes(b"secret")
    (tmp_path / "tree").mkdir()
    for kind in ("link", "pipe"):
        victim = tmp_path / "tree" / "photo"
        victim.write_bytes(b"mine")
        for found in walk(Root(tmp_path / "tree", "p/"), frozenset(), lambda _: None):
            if found.place != "p/photo":
                continue
            victim.unlink()
            if kind == "link":
                victim.symlink_to(tmp_path / "secret")
                with pytest.raises(OSError) as met:
                    found.open()
                assert met.value.errno == errno.ELOOP
            else:
                os.mkfifo(victim)
                os.close(found.open())  # at once, and not when somebody writes to it
        victim.unlink()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_this_user_may_not_read_is_named_once() -> None:
    with tempfile.TemporaryDirectory() as open_to_all:  # which pytest's own folders are not
        folder = Path(open_to_all)
        folder.chmod(0o755)
        household = Household(folder)
        household.file(10).chmod(0)
        locked = household.source / "locked"
        locked.mkdir()
        locked.chmod(0)
        household.store.directory.chmod(0o777)
        code = (
            "import os, sys, psutil; from pathlib import Path; from tests.archives import archive_store, tree, write;"
            "os.setgid(65534); os.setuid(65534);"
            "made = write(archive_store(Path(sys.argv[1])), tree(Path(sys.argv[2])));"
            "print(*made.manifest.sources[0].missing, sep='\\n')"
        )
        argv = [sys.executable, "-c", code, str(household.store.directory), str(household.source)]
        told = subprocess.run(argv, capture_output=True, text=True)
    assert told.stderr == ""
    assert told.stdout.splitlines() == [f"photos/{name} may not be read by this user" for name in ("b.log", "locked")]


def test_a_file_that_another_program_holds_a_lease_on_is_waited_for(tmp_path: Path) -> None:
    """As Samba does for a computer that has a photo open."""
    photo = tmp_path / "photo"
    photo.write_bytes(b"jpeg")
    code = (
        "import fcntl, os, signal, sys, time\n"
        "file = os.open(sys.argv[1], os.O_RDWR)\n"
        "def give_up(*_): time.sleep(0.2); fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_UNLCK)\n"
        "signal.signal(signal.SIGIO, give_up)\n"
        "fcntl.fcntl(file, fcntl.F_SETLEASE, fcntl.F_WRLCK)\n"
        "print('held', flush=True)\n"
        "time.sleep(30)\n"
    )
    holder = subprocess.Popen([sys.executable, "-c", code, photo], stdout=subprocess.PIPE)
    try:
        assert holder.stdout
        assert holder.stdout.readline() == b"held\n"
        for found in walk(Root(photo, "photo"), frozenset(), lambda _: None):
            descriptor = found.open()
            assert os.read(descriptor, 10) == b"jpeg"
            os.close(descriptor)
    finally:
        holder.kill()
        holder.wait()
        holder.stdout and holder.stdout.close()


def test_a_file_that_got_the_inode_number_of_a_linked_one_is_read_for_itself(tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    with image.open("wb") as file:
        file.truncate(32 << 20)
    # A disk of its own: on a shared one somebody else may be given the number.
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    disk.mkdir()
    with mounted("-o", "loop", image, disk):
        _swap_inode_numbers(Household(disk))


def _swap_inode_numbers(household: Household) -> None:
    first = household.file(100, "a copy")
    os.link(first, household.source / "b copy")
    household.file(1, "a second")  # is open meanwhile, to be read next
    later = household.source / "z"
    later.mkdir()

    def swap() -> None:
        number = first.stat().st_ino
        first.unlink()
        (household.source / "b copy").unlink()
        for attempt in range(200):  # ext4 gives the lowest free number to the next file
            path = later / str(attempt)
            path.write_bytes(b"new")
            if path.stat().st_ino == number:
                os.link(path, later / "other")
                return
        raise AssertionError("the number was not given out again")

    written, _ = household.back_up(swap, at="a first.mp4")
    assert household.content(written, "a copy") == b"\1" * 100
    for path in later.iterdir():
        assert household.content(written, f"z/{path.name}") == b"new"


@needs_root
def test_a_block_that_the_disk_cannot_read_is_named_and_the_rest_is_there(tmp_path: Path) -> None:
    image, disk = tmp_path / "image", tmp_path / "disk"
    disk.mkdir()
    with image.open("wb") as file:
        file.truncate(40 << 20)
    subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", image], check=True)
    with mounted("-o", "loop", image, disk):
        (disk / "small").write_bytes(b"first")
        (disk / "film").write_bytes(b"\1" * (30 << 20))
        (disk / "lost+found").rmdir()
    with mounted("-o", "loop,ro", image, disk):
        os.truncate(image, 16 << 20)  # what lay behind is an error of the disk from now on
        store = archive_store(tmp_path / "store")
        written = write(store, tree(disk))
    (missing,) = written.manifest.sources[0].missing
    assert missing.startswith("photos/film cannot be read: the disk reports an error; around byte ")
    assert store.prove(written.partial_path, Level.FULL, ignore, Stop()).problems == ()
    assert b"".join(store.content(written.partial_path, "photos/small")) == b"first"
    film = b"".join(store.content(written.partial_path, "photos/film"))
    assert len(film) == 30 << 20
    assert film.startswith(b"\1" * (4 << 20))

"""The tree: what every store must do, and what only files as they are can be asked."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from memu_backup import restore
from memu_backup.anywhere import look
from memu_backup.clock import now
from memu_backup.errors import DamagedArchive, NotAnArchive, UsageError
from memu_backup.find import find
from memu_backup.model import Backup, Captured, Doubt, Level, Loss
from memu_backup.stores import Store, Verdict, Written
from memu_backup.stores.tree import TreeSettings, TreeStore
from memu_backup.walk import identities
from memu_backup.work import Stop
from tests.archives import ignore, label, needs_root, odd_tree, plain_tree, snapshot, tree
from tests.contracts.stores import AT, StoreContract, captured
from tests.disks import loop_disk, own_bytes
from tests.usb import has

SOON = now() + timedelta(days=2)
"""The first night: what was changed within a quarter of an hour before one is not trusted. All are from the
future, so that ``latest`` passes over none."""


def tree_store(directory: Path, links: str = "hard") -> TreeStore:
    store = TreeStore(directory, TreeSettings.model_validate({"kind": "tree", "links": links}))
    store.mark("attic", AT)
    store.prepare()
    return store


class TestTreeIsAStore(StoreContract):
    three_names = ("2026-03-04", "2026-03-04_020000", "2026-03-04_020000_2")

    def make(self, directory: Path) -> Store:
        return tree_store(directory)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return plain_tree(tmp_path / "photos")


@pytest.fixture
def store(tmp_path: Path) -> TreeStore:
    return tree_store(tmp_path / "store")


def write(store: TreeStore, what: Captured, earlier: Backup | None = None, at: datetime | None = None) -> Written:
    at = at or SOON + timedelta(days=len(store.backups()))
    tonight = replace(label(store.unused_name(at, UTC)), created_at=at, run_id=f"run {at}")
    return store.write(tonight, [what], frozenset(identities([store.directory])), ignore, Stop(), earlier)


def back_up(store: TreeStore, what: Captured, earlier: Backup | None = None, at: datetime | None = None) -> Backup:
    written = write(store, what, earlier, at)
    verdict = store.prove(written.partial_path, Level.FULL, ignore, Stop())
    assert verdict.problems == () and verdict.sha256
    store.publish(written, verdict.sha256)
    return next(b for b in store.backups() if b.name == written.name)


def verified(store: TreeStore, backup: Backup) -> Verdict:
    return store.prove(backup.path, Level.FULL, ignore, Stop())


def inodes(backup: Backup) -> dict[str, int]:
    files = (p for p in backup.path.rglob("*") if p.is_file() and not p.is_symlink())
    return {str(p.relative_to(backup.path)): p.stat().st_ino for p in files}


def given_back(store: Store, backup: Backup, target: Path, *paths: str) -> restore.Restored:
    planned = restore.plan(store, backup, restore.Wanted(paths=paths), target, Stop(), trusted=True)
    return restore.carry_out(planned, overwrite=False, on_progress=ignore, stop=Stop())


# --- as files ----------------------------------------------------------------------------------------------------


def test_what_has_not_changed_is_one_file_in_all_of_them_and_never_that_of_the_household(
    store: TreeStore, source: Path
) -> None:
    first = back_up(store, tree(source))
    (source / "film.mp4").write_bytes(b"a new one")
    (source / "nichts").chmod(0o600)
    second = back_up(store, tree(source), first)
    before, after = inodes(first), inodes(second)
    assert {path for path in after if after[path] != before[path]} == {
        "photos/film.mp4", "photos/zweiter Name", "photos/nichts",
    }  # fmt: skip
    assert second.manifest and second.manifest.shares_with == first.name
    assert second.size_bytes - second.manifest.shared_bytes == len(b"a new one")
    theirs = {p.stat().st_ino for p in source.rglob("*")}
    assert theirs.isdisjoint(before.values()) and theirs.isdisjoint(after.values())
    store.delete(first.path)
    assert verified(store, second).good
    assert snapshot(second.path / "photos") == snapshot(source)


@needs_root
def test_rsync_of_the_latest_brings_back_the_household_and_nothing_else(tmp_path: Path) -> None:
    home = tmp_path / "soundbox"
    odd_tree(home / "generated")
    os.chown(home, 33, 33)
    home.chmod(0o2750)
    store = tree_store(tmp_path / "store")
    first = back_up(store, tree(home / "generated", "generated/"))
    again = back_up(store, tree(home / "generated", "generated/"), first)
    assert (store.directory / "latest").readlink() == Path(again.name)
    (tmp_path / "there").mkdir()
    subprocess.run(["rsync", "-aHAXS", f"{store.directory}/latest/", tmp_path / "there"], check=True)
    there, was = snapshot(tmp_path / "there"), snapshot(home)
    for both in (there, was):
        (kind, mode, uid, gid, *_) = both.pop(b".")
        assert (mode, uid, gid) == ("0o2750", 33, 33), kind
    assert there == was


@needs_root
def test_everything_comes_back_by_our_own_restore(tmp_path: Path) -> None:
    odd_tree(tmp_path / "photos")
    store = tree_store(tmp_path / "store")
    backup = back_up(store, tree(tmp_path / "photos"), back_up(store, tree(tmp_path / "photos")))
    assert verified(store, backup).good
    done = given_back(store, backup, tmp_path / "out")
    assert done.lost == () and done.warnings == ()
    assert snapshot(tmp_path / "out" / "photos") == snapshot(tmp_path / "photos")


def test_one_file_is_found_and_fetched(store: TreeStore, source: Path, tmp_path: Path) -> None:
    first = back_up(store, tree(source))
    second = back_up(store, tree(source), first)
    (found,) = find([(store, first), (store, second)], "IMG_0001.jpg", ignore, Stop()).findings
    assert [b.name for b in found.versions[0].backups] == [second.name, first.name]
    given_back(store, second, tmp_path / "out", found.path)
    assert [p.name for p in (tmp_path / "out").rglob("*") if p.is_file()] == ["IMG_0001.jpg"]


def test_a_tree_without_its_notes_is_read_as_it_lies_there(store: TreeStore, source: Path, tmp_path: Path) -> None:
    """Somebody has copied the dated folder alone."""
    shutil.copytree(back_up(store, tree(source)).path, tmp_path / "stick" / "2026-01-01", symlinks=True)
    there, copied = look(tmp_path / "stick" / "2026-01-01")
    assert copied.manifest is None and not there.prove(copied.path, Level.FULL, ignore, Stop()).good
    given_back(there, copied, tmp_path / "out")
    assert {p.name for p in (tmp_path / "out" / "photos").iterdir()} == {p.name for p in source.iterdir()}
    assert b"".join(there.content(copied.path, "photos/film.mp4")) == (source / "film.mp4").read_bytes()
    with pytest.raises(UsageError, match="no file"):
        list(there.content(copied.path, "photos/none"))


# --- what may not be trusted --------------------------------------------------------------------------------------


def test_new_content_of_the_same_size_and_time_is_noticed_every_seventh_night(store: TreeStore, source: Path) -> None:
    """Of the same inode and ctime, too: the index is made to say so, as the kernel's clock is not ours."""
    backup = back_up(store, tree(source))
    for _ in range(5):
        backup = back_up(store, tree(source), backup)
    photo = source / "2024" / "Ostern" / "IMG_0001.jpg"
    times = photo.stat()
    photo.write_bytes(os.urandom(times.st_size))
    os.utime(photo, ns=(times.st_atime_ns, times.st_mtime_ns))
    told = store.directory / ".memu-backup" / backup.name / "index.jsonl"
    place = "photos/2024/Ostern/IMG_0001.jpg"
    lines = told.read_text().splitlines(keepends=True)
    (mine,) = [line for line in lines if line.startswith(f'["{place}"')]
    as_if = f"{json.dumps([*json.loads(mine)[:-1], photo.stat().st_ctime_ns])}\n"
    told.write_text("".join(as_if if line is mine else line for line in lines))
    seventh = back_up(store, tree(source), backup)
    assert (seventh.path / place).read_bytes() != photo.read_bytes(), "else this test shows nothing"
    eighth = back_up(store, tree(source), seventh)
    assert (eighth.path / place).read_bytes() == photo.read_bytes()
    assert inodes(eighth)["photos/film.mp4"] == inodes(seventh)["photos/film.mp4"]


def test_a_file_that_went_bad_is_not_handed_on_for_ever(store: TreeStore, source: Path) -> None:
    backup = back_up(store, tree(source))
    for _ in range(6):
        backup = back_up(store, tree(source), backup)
    spoil(backup.path / "photos" / "film.mp4")
    after = back_up(store, tree(source), backup)
    assert verified(store, after).good
    assert (after.path / "photos" / "film.mp4").read_bytes() == (source / "film.mp4").read_bytes()
    assert after.manifest and "film.mp4 is damaged in the backup before" in after.manifest.sources[0].warnings[0]
    assert [b.damaged for b in store.backups()][:2] == [False, True]
    assert (store.directory / "latest").readlink() == Path(after.name)


@needs_root
def test_what_somebody_gave_to_others_is_written_anew(store: TreeStore, source: Path) -> None:
    """As Sound Box's document does: chown -R www-data:www-data of all backups."""
    backup = back_up(store, tree(source))
    backup = back_up(store, tree(source), backup)
    os.chown(backup.path / "photos" / "film.mp4", 33, 33)
    (backup.path / "photos" / "klein01.txt").chmod(0o777)
    after = back_up(store, tree(source), backup)
    assert verified(store, after).good
    anew = {place for place, inode in inodes(after).items() if inode != inodes(backup)[place]}
    assert anew == {"photos/film.mp4", "photos/zweiter Name", "photos/klein01.txt"}
    assert after.manifest and not after.manifest.sources[0].warnings
    assert not any(b.damaged for b in store.backups()), "what it holds is good"


def test_what_was_removed_from_a_backup_is_told_once_by_the_next(store: TreeStore, source: Path) -> None:
    backup = back_up(store, tree(source))
    backup = back_up(store, tree(source), backup)
    for name in ("film.mp4", "klein01.txt"):
        (backup.path / "photos" / name).unlink()
    after = back_up(store, tree(source), backup)
    assert verified(store, after).good
    assert after.manifest
    told = [
        f"photos/{name} is damaged in the backup before ({backup.name}); here it is new"
        for name in ("film.mp4", "klein01.txt")
    ]
    assert sorted(after.manifest.sources[0].warnings) == told


def spoil(path: Path) -> None:
    """A block of it went bad: nothing but its content changes."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(1000)
        file.write(b"spoiled")
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


@needs_root
def test_what_is_not_as_it_was_is_named(store: TreeStore, source: Path, tmp_path: Path) -> None:
    backup = back_up(store, tree(source))
    top = backup.path / "photos"
    spoil(top / "film.mp4")
    (top / "Größe.txt").unlink()
    (top / "nichts").write_bytes(b"!")
    (top / "klein01.txt").chmod(0o777)
    (top / "verweis").unlink()
    (top / "verweis").symlink_to("/etc")
    problems = verified(store, backup).problems
    changed = "is not what it was when it was written."
    assert sorted(problems) == [
        "photos/Größe.txt is missing.",
        f"photos/film.mp4 {changed}",
        "photos/klein01.txt: its owner or rights are not what they were when it was written.",
        f"photos/nichts {changed}",
        f"photos/verweis {changed}",
    ]
    assert "photos/Größe.txt is missing." in store.prove(backup.path, Level.QUICK, ignore, Stop()).problems
    done = given_back(store, backup, tmp_path / "out")
    assert sorted(done.lost) == ["photos/Größe.txt", "photos/film.mp4", "photos/nichts", "photos/zweiter Name"]


@pytest.mark.parametrize("how", ["it is cut off", "it is of another kind", "it is not there", "it lies"])
def test_a_damaged_index_is_told_and_costs_the_next_backup_nothing(store: TreeStore, source: Path, how: str) -> None:
    first = back_up(store, tree(source))
    file = store.directory / ".memu-backup" / first.name / "index.jsonl"
    content = file.read_bytes()
    if how == "it is cut off":
        file.write_bytes(content[:3000])
    elif how == "it is of another kind":
        file.write_bytes(b"{}\n" + content)
    elif how == "it is not there":
        file.unlink()
    else:
        file.write_bytes(content.replace(b'"photos/film.mp4","file",9000001', b'"photos/film.mp4","file",9000002'))
    assert verified(store, first).problems
    second = back_up(store, tree(source), first)
    assert verified(store, second).good
    assert snapshot(second.path / "photos") == snapshot(source)


def test_links_in_a_strangers_tree_lead_nowhere(store: TreeStore, source: Path, tmp_path: Path) -> None:
    """Its index says that a file lies behind what is a link."""
    secret = tmp_path / "secret"
    secret.mkdir()
    shutil.copytree(source / "2024", secret / "2024")
    backup = back_up(store, tree(source))
    shutil.rmtree(backup.path / "photos" / "2024")
    (backup.path / "photos" / "2024").symlink_to(secret / "2024")
    with pytest.raises(DamagedArchive):
        list(store.content(backup.path, "photos/2024/Ostern/IMG_0001.jpg"))
    assert "photos/2024/Ostern/IMG_0001.jpg" in given_back(store, backup, tmp_path / "out").lost


def test_a_folder_of_backups_is_none_itself(store: TreeStore, source: Path) -> None:
    """Else all of them would come back, one beside the other."""
    back_up(store, tree(source))
    with pytest.raises(UsageError, match=r"holds backups and is none itself. Name one of them, such as .*/latest"):
        look(store.directory)


def test_a_file_is_no_tree_and_what_is_not_there_is_none(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(NotAnArchive):
        look(tmp_path / "file")
    assert TreeStore.around(tmp_path / "none") is None


# --- latest ------------------------------------------------------------------------------------------------------


def test_latest_is_the_newest_good_one(store: TreeStore, source: Path) -> None:
    def latest() -> str:
        return str((store.directory / "latest").readlink())

    good = back_up(store, tree(source))
    assert latest() == good.name
    lacking = replace(tree(source), missing=("The chat could not be had.",))
    partial = back_up(store, lacking, good)
    assert latest() == good.name
    newer = back_up(store, tree(source), partial)
    assert latest() == newer.name
    store.condemn(newer.path)
    assert latest() == good.name
    store.acquit(newer.path)
    assert latest() == newer.name
    written = write(store, tree(source), newer)
    suspicious = store.publish(written, "", (Doubt("photos", Loss.FILES, 20, 19),))
    assert latest() == newer.name
    store.accept(suspicious)
    assert latest() == suspicious.name
    store.delete(suspicious)
    store.delete(newer.path)
    assert latest() == good.name
    assert store.sweep() == []
    store.delete(good.path)
    assert not os.path.lexists(store.directory / "latest")


def test_latest_leads_somewhere_again_after_a_kill_or_an_rm(store: TreeStore, source: Path) -> None:
    good = back_up(store, tree(source))
    newer = back_up(store, tree(source), good)
    shutil.rmtree(newer.path)
    store.sweep()
    assert (store.directory / "latest").readlink() == Path(good.name)
    shutil.rmtree(good.path)
    store.sweep()
    assert not os.path.lexists(store.directory / "latest")


def test_latest_is_none_that_a_clock_dated_years_ahead_where_there_is_another(store: TreeStore, source: Path) -> None:
    today = now()
    back_up(store, tree(source), at=today + timedelta(days=900))
    good = back_up(store, tree(source), at=today)
    assert (store.directory / "latest").readlink() == Path(good.name)
    store.delete(good.path)
    assert (store.directory / "latest").exists(), "else nothing is there to lead to"


def test_what_somebody_else_calls_latest_is_left_alone(store: TreeStore, source: Path) -> None:
    (store.directory / "latest").mkdir()
    back_up(store, tree(source))
    assert (store.directory / "latest").is_dir() and not (store.directory / "latest").is_symlink()


# --- other filesystems --------------------------------------------------------------------------------------------


@needs_root
@pytest.mark.parametrize("kind", ["btrfs", "xfs"])
def test_with_reflinks_each_has_its_own_inodes_and_shares_the_blocks(tmp_path: Path, kind: str) -> None:
    with loop_disk(kind, tmp_path) as disk:
        source = plain_tree(disk / "photos")
        store = tree_store(disk / "store", "reflink")
        first = back_up(store, tree(source))
        second = back_up(store, tree(source), first)
        assert set(inodes(first).values()).isdisjoint(inodes(second).values())
        assert own_bytes(second.path / "photos" / "film.mp4") == 0
        assert second.manifest and second.manifest.shared_bytes == second.size_bytes
        assert verified(store, second).good
        assert snapshot(second.path / "photos") == snapshot(source)


@needs_root
def test_a_file_that_can_have_no_more_names_is_copied(tmp_path: Path) -> None:
    with loop_disk("ext4", tmp_path, 64 << 20) as disk:
        source = disk / "photos"
        source.mkdir()
        (source / "a.jpg").write_bytes(b"a" * 300_000)
        store = tree_store(disk / "store")
        first = back_up(store, tree(source))
        (disk / "names").mkdir()
        with pytest.raises(OSError, match="Too many links"):
            for number in range(70_000):
                os.link(first.path / "photos" / "a.jpg", disk / "names" / str(number))
        second = back_up(store, tree(source), first)
        assert inodes(second)["photos/a.jpg"] != inodes(first)["photos/a.jpg"]
        third = back_up(store, tree(source), second)
        assert inodes(third) == inodes(second)


@needs_root
@pytest.mark.skipif(not has("mount.exfat-fuse"), reason="exfat-fuse is not installed")
def test_on_a_disk_that_knows_no_links_and_no_owners_the_files_come_back_all_the_same(
    tmp_path: Path, source: Path
) -> None:
    os.chown(source / "film.mp4", 33, 33)
    image = tmp_path / "exfat.image"
    with image.open("xb") as file:
        file.truncate(128 << 20)
    subprocess.run(["mkfs.exfat", image], check=True, capture_output=True)
    disk = tmp_path / "disk"
    disk.mkdir()
    subprocess.run(["mount", "-t", "exfat-fuse", "-o", "loop", image, disk], check=True)
    try:
        store = tree_store(disk / "store")
        backup = back_up(store, tree(source), back_up(store, tree(source)))
        assert backup.manifest
        lacking = ("photos/verweis is a link, which the disk for backups cannot hold",)
        assert backup.manifest.sources[0].missing == lacking
        given_back(store, backup, tmp_path / "out")
        assert verified(store, backup).good
    finally:
        subprocess.run(["umount", disk], check=True)
    was = snapshot(source)
    del was[b"verweis"]
    assert snapshot(tmp_path / "out" / "photos") == was


def test_a_whole_one_shares_no_inode_with_any_other(store: TreeStore, source: Path) -> None:
    first = back_up(store, tree(source))
    second = back_up(store, tree(source))
    assert set(inodes(first).values()).isdisjoint(inodes(second).values())
    assert second.manifest and (second.manifest.shares_with, second.manifest.nights_shared) == ("", 0)


def test_several_sources_in_another_order_are_still_found(store: TreeStore, tmp_path: Path) -> None:
    for name in ("a", "b", "c"):
        plain_tree(tmp_path / "home" / name)
    sources = [captured(tmp_path / "home" / name, f"{name}/", name) for name in ("a", "b", "c")]

    def night(order: list[int], earlier: Backup | None) -> Backup:
        at = SOON + timedelta(days=len(store.backups()))
        tonight = replace(label(store.unused_name(at, UTC)), created_at=at, run_id=f"run {at}")
        written = store.write(tonight, [sources[n] for n in order], frozenset(), ignore, Stop(), earlier)
        verdict = store.prove(written.partial_path, Level.FULL, ignore, Stop())
        assert verdict.good
        return store.look(store.publish(written, verdict.sha256 or ""))

    first = night([0, 1, 2], None)
    second = night([2, 0, 1], first)
    assert inodes(second) == inodes(first)

"""Archives of strangers: whatever they hold, nothing is written outside the folder, nor through a link in it."""

from __future__ import annotations

import errno
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from memu_backup import unpack
from memu_backup.errors import ArchiveError, DamagedArchive, HostileArchive, Interrupted, RestoreError
from memu_backup.formats import gzip, index, tar
from memu_backup.formats.index import Entry
from memu_backup.formats.reader import ArchiveReader
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Level
from memu_backup.unpack import Unpacker
from memu_backup.work import Stop
from tests.archives import archive_store, back_up, give_back, ignore, needs_root, plain_tree, snapshot, tree
from tests.contracts.stores import small_disk


@pytest.fixture
def target(tmp_path: Path) -> Path:
    (tmp_path / "target").mkdir()
    return tmp_path / "target"


def by_hand(path: Path, entries: Iterable[tuple[Header, bytes]]) -> Path:
    """A tar.gz without any index, as anyone can make it."""
    stream = b"".join(tar.encode(h) + c + tar.padding(len(c)) for h, c in entries) + tar.END
    path.write_bytes(b"".join(gzip.pack(stream)))
    return path


def file(path: str, content: bytes = b"evil") -> tuple[Header, bytes]:
    return Header(path, Type.FILE, len(content)), content


def folder(path: str) -> tuple[Header, bytes]:
    return Header(path, Type.DIRECTORY, mode=0o755), b""


def symlink(path: str, to: str) -> tuple[Header, bytes]:
    return Header(path, Type.SYMLINK, mode=0o777, link=to), b""


def hardlink(path: str, to: str) -> tuple[Header, bytes]:
    return Header(path, Type.HARDLINK, link=to), b""


HOSTILE: dict[str, list[tuple[Header, bytes]]] = {
    "an absolute path": [file("/tmp/evil")],
    "a path upwards": [file("../evil")],
    "a path upwards in the middle": [file("a/../../evil")],
    "a path that ends upwards": [folder("a/..")],
    "an empty component": [file("a//evil")],
    "a dot": [file("a/./evil")],
    "a link, then a file through it": [symlink("a", "/tmp"), file("a/evil")],
    "a file, then a link above it": [file("a/evil"), symlink("a", "/tmp")],
    "a link to a folder within, then a file through it": [folder("b"), symlink("a", "b"), file("a/evil")],
    "a link, then a folder of its name": [symlink("a", "/tmp"), folder("a"), file("a/evil")],
    "a hard link outside": [hardlink("a", "/etc/passwd")],
    "a hard link upwards": [hardlink("a", "../../etc/passwd")],
    "a hard link to what comes later": [hardlink("a", "b"), file("b")],
    "a hard link to itself": [hardlink("a", "a")],
    "a hard link to a link": [symlink("a", "/etc/passwd"), hardlink("b", "a")],
    "a hard link to a folder": [folder("a"), hardlink("b", "a")],
    "the same name twice": [file("a"), file("a", b"other")],
    "the same name as file and folder": [file("a"), folder("a")],
    "a file under a file": [file("a"), file("a/b")],
    "a file under a hard link": [file("a"), hardlink("b", "a"), file("b/c")],
    "a link to nowhere at all": [symlink("a", "")],
    "a link longer than any": [symlink("a", "x" * 5000)],
    "a folder too deep": [folder("/".join("d" * 2000))],
}


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_before_anything_is_written(
    entries: list[tuple[Header, bytes]], target: Path, tmp_path: Path
) -> None:
    archive = by_hand(tmp_path / "a.tar.gz", [file("innocent", b"x"), *entries])
    with pytest.raises(HostileArchive, match="nothing was unpacked"):
        give_back(archive, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z"])
def test_devices_pipes_and_unknown_things_are_refused(kind: bytes, target: Path, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        made.addfile(tarfile.TarInfo("innocent"))
        info = tarfile.TarInfo("thing")
        info.type = kind
        made.addfile(info)
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(buffer.getvalue())
    with pytest.raises(HostileArchive, match="thing, which is a device or a pipe"):
        give_back(archive, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("path", ["a\0b", "\ud800", "a/\0"])
def test_names_that_no_tar_header_can_spell_are_refused(path: str) -> None:
    with pytest.raises(HostileArchive):
        unpack.judge([(path, Header(path, Type.FILE, 1))])
    with pytest.raises(HostileArchive):
        unpack.judge([("a", Header("a", Type.SYMLINK, link=path))])


def lying(original: Path, path: Path, change: dict[str, object]) -> Path:
    """Our own archive with its index written anew: the entry for photos/film.mp4 lies."""
    content = original.read_bytes()
    with ArchiveReader(original) as reader:
        entries = [replace(e, **change) if e.path == "photos/film.mp4" else e for e in reader.index()]  # type: ignore[arg-type]
    footer = gzip.read_footer(content[-gzip.FOOTER_BYTES :])
    assert footer
    lines = index.first_line() + b"".join(map(index.line, entries))
    stream = tar.encode(Header(index.NAME, Type.FILE, len(lines), 0o600)) + lines + tar.padding(len(lines)) + tar.END
    kept = content[: footer.index_offset] + b"".join(gzip.pack(stream))
    path.write_bytes(kept + gzip.footer(footer.manifest_offset, footer.index_offset, len(kept)))
    return path


LIES: dict[str, dict[str, object]] = {
    "its path": {"path": "photos/other"},
    "its path, to one that is hostile": {"path": "../evil"},
    "its type": {"type": Type.DIRECTORY},
    "its size": {"size_bytes": 1},
    "its rights": {"mode": 0o4777},
    "its time": {"mtime_ns": 5},
    "what is stored of it": {"stored_bytes": 1},
    "where it stands": {"member": 0, "inside": 0},
    "where it stands, beyond the end": {"member": 2**62},
    "where it stands, in no member": {"member": 3},
    "where its headers are": {"inside": 512},
    "where its headers are, beyond the member": {"inside": 2**40},
    "where it ends": {"end": 0},
}


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = plain_tree(tmp_path_factory.mktemp("source"))
    return back_up(archive_store(tmp_path_factory.mktemp("store")), tree(source))


@pytest.mark.parametrize("change", LIES.values(), ids=LIES.keys())
def test_an_index_that_lies_is_never_followed(change: dict[str, object], ours: Path, target: Path) -> None:
    archive = lying(ours, target.parent / "lying.tar.gz", change)
    with ArchiveReader(archive) as reader:
        (entry,) = [e for e in reader.index() if e.size_bytes == 9_000_001 or e.path == change.get("path")] or [
            next(e for e in reader.index() if e.path == "photos/film.mp4")
        ]
        with pytest.raises(ArchiveError):
            for header, content in reader.entries_with_content(entry):
                assert header.path == "photos/film.mp4"
                with Unpacker(target, unpack.judge([_planned(entry)]), **HOW) as unpacker:  # type: ignore[arg-type]
                    unpacker.put(header, content)
    assert [p for p in target.rglob("*") if p.is_file()] == []


HOW = {"overwrite": False, "stop": Stop(), "on_done": lambda _bytes, _entries: None}


def _planned(entry: Entry) -> tuple[str, Entry]:
    return entry.path, entry


@pytest.mark.parametrize("change", [c for c in LIES.values() if not {"member", "inside", "end"} & c.keys()])
def test_a_checked_index_that_lies_is_refused_before_anything_is_written(
    change: dict[str, object], ours: Path, target: Path
) -> None:
    archive = lying(ours, target.parent / "lying.tar.gz", change)
    with pytest.raises((DamagedArchive, HostileArchive)):
        give_back(archive, target)
    assert list(target.iterdir()) == []


@pytest.mark.parametrize("change", [{"path": "photos/other"}, {"size_bytes": 1}, {"sha256": "0" * 64}])
def test_proving_finds_an_index_that_lies(change: dict[str, object], ours: Path, target: Path) -> None:

    archive = lying(ours, target / ours.name, change)
    verdict = archive_store(target).prove(archive, Level.FULL, ignore, Stop())
    assert "Its index does not tell what is in it." in verdict.problems


def test_a_header_that_was_not_planned_is_refused(target: Path) -> None:
    plan = unpack.judge([("a", Header("a", Type.FILE, 4))])
    with Unpacker(target, plan, **HOW) as unpacker:  # type: ignore[arg-type]
        for header in (Header("b", Type.FILE, 4), Header("a", Type.FILE, 5), Header("a", Type.SYMLINK, link="/")):
            with pytest.raises(DamagedArchive, match="is not what the archive's index says"):
                unpacker.put(header, iter([memoryview(b"evil!")]))
    assert list(target.iterdir()) == []


def test_a_bomb_is_known_by_its_size_before_it_goes_off(tmp_path: Path) -> None:
    """A thousandth of the size on disk: what it comes to is told by the entries, and content is held to it."""
    source = tmp_path / "zeros"
    with source.open("wb") as out:
        out.write(bytes(64 << 20))
    archive = back_up(archive_store(tmp_path / "store"), tree(source, "zeros"))
    assert archive.stat().st_size < source.stat().st_size / 100
    with ArchiveReader(archive) as reader:
        assert sum(e.size_bytes for e in reader.index()) == 64 << 20


# --- what is in the target already -----------------------------------------------------------------------------------


@pytest.mark.parametrize("overwrite", [False, True])
def test_links_in_the_target_are_not_followed(target: Path, tmp_path: Path, overwrite: bool) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (target / "photos").symlink_to(outside)
    archive = by_hand(tmp_path / "a.tar.gz", [folder("photos"), file("photos/a")])
    with pytest.raises(RestoreError, match="would be written through a link"):
        give_back(archive, target, overwrite=overwrite)
    assert list(outside.iterdir()) == []


def test_a_link_where_a_file_is_to_stand_is_replaced_and_not_written_through(target: Path, tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.write_bytes(b"precious")
    archive = by_hand(tmp_path / "a.tar.gz", [file("a", b"new")])
    for make in (os.symlink, os.link):
        (target / "a").unlink(missing_ok=True)
        make(precious, target / "a")
        with pytest.raises(RestoreError, match="is there already and was left as it is"):
            give_back(archive, target)
        give_back(archive, target, overwrite=True)
        assert (target / "a").read_bytes() == b"new"
        assert precious.read_bytes() == b"precious"


def test_overwriting_a_tree_with_itself_gives_the_same_tree_and_nothing_more(ours: Path, target: Path) -> None:
    give_back(ours, target)
    before = snapshot(target)
    give_back(ours, target, overwrite=True)
    assert snapshot(target) == before


def test_without_overwriting_what_is_there_stays(ours: Path, target: Path) -> None:
    (target / "photos").mkdir()
    (target / "photos" / "film.mp4").write_bytes(b"mine")
    with pytest.raises(RestoreError):
        give_back(ours, target)
    assert (target / "photos" / "film.mp4").read_bytes() == b"mine"


def test_a_folder_where_a_file_is_to_stand_is_kept_and_told(target: Path, tmp_path: Path) -> None:
    (target / "a").mkdir()
    (target / "a" / "mine").touch()
    archive = by_hand(tmp_path / "a.tar.gz", [file("a")])
    with pytest.raises(RestoreError, match="could not be written"):
        give_back(archive, target, overwrite=True)
    assert [p.name for p in target.iterdir()] == ["a"]


def test_a_broken_restore_leaves_no_half_file(target: Path) -> None:
    plan = unpack.judge([("a", Header("a", Type.FILE, 8))])

    def breaks() -> Iterator[memoryview]:
        yield memoryview(b"half")
        raise DamagedArchive("it ends too early")

    with Unpacker(target, plan, **HOW) as unpacker, pytest.raises(DamagedArchive):  # type: ignore[arg-type]
        unpacker.put(Header("a", Type.FILE, 8), breaks())
    assert list(target.iterdir()) == []


def test_stopping_ends_in_the_middle_of_a_file(target: Path) -> None:
    stop = Stop()
    plan = unpack.judge([("a", Header("a", Type.FILE, 8))])

    def stopping() -> Iterator[memoryview]:
        yield memoryview(b"half")
        stop.set()
        yield memoryview(b"more")

    how = {**HOW, "stop": stop}
    with Unpacker(target, plan, **how) as unpacker, pytest.raises(Interrupted):  # type: ignore[arg-type]
        unpacker.put(Header("a", Type.FILE, 8), stopping())
    assert list(target.iterdir()) == []


KILLED = """
import os, signal, sys
from memu_backup.formats.tar import Header, Type
from memu_backup.unpack import Unpacker
from memu_backup.work import Stop
def content():
    yield memoryview(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
plan = {"a": Header("a", Type.FILE, 8)}
Unpacker(sys.argv[1], plan, overwrite=False, stop=Stop(), on_done=lambda *_: None).put(
    Header("a", Type.FILE, 8), content())
"""


def test_a_killed_restore_leaves_no_half_file_under_the_name_of_a_whole_one(target: Path) -> None:
    assert subprocess.run([sys.executable, "-c", KILLED, target]).returncode == -signal.SIGKILL
    (left,) = target.iterdir()
    assert left.name.endswith(".restoring") and left.read_bytes() == b"half"


def test_the_next_restore_sweeps_what_a_killed_one_left(target: Path, tmp_path: Path) -> None:
    dead = subprocess.Popen(["true"])
    dead.wait()
    for place in ("", "photos", "not ours"):
        (target / place).mkdir(exist_ok=True)
        for name in (f".61.{dead.pid}.restoring", ".61.1.restoring", ".zz.5.restoring", ".61.5.restoring~", "mine"):
            (target / place / name).write_bytes(b"half")
    plan = unpack.judge([(p, Header(p, Type.FILE, 1)) for p in ("a", "photos/a", "new/a")])
    with Unpacker(target, plan, **HOW):  # type: ignore[arg-type]
        pass
    swept = {".61.1.restoring", ".zz.5.restoring", ".61.5.restoring~", "mine"}  # process 1 lives
    assert {p.name for p in target.iterdir() if p.is_file()} == {p.name for p in (target / "photos").iterdir()} == swept
    assert (target / "not ours" / f".61.{dead.pid}.restoring").exists()
    assert not (target / "new").exists()


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_a_killed_restore_with_our_number_left_is_not_in_the_way(
    target: Path, tmp_path: Path, overwrite: bool
) -> None:
    """In a container every restore may have the same process number."""
    archive = by_hand(tmp_path / "a.tar.gz", [file("a", b"new"), symlink("b", "a")])
    for name in ("a", "b"):
        (target / f".{name.encode().hex()}.{os.getpid()}.restoring").write_bytes(b"half")
    give_back(archive, target, overwrite=overwrite)
    assert (target / "a").read_bytes() == b"new" and (target / "b").is_symlink()
    assert not overwrite or {p.name for p in target.iterdir()} == {"a", "b"}


def test_a_file_that_replaces_another_is_on_the_disk_before(
    target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    archive = by_hand(tmp_path / "a.tar.gz", [file("a", b"new"), file("b", b"new")])
    (target / "b").write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(RestoreError, match="b could not be written"):
        give_back(archive, target, overwrite=True)
    # One fsync a file takes an hour for a household; where nothing is replaced, one at the end is enough.
    assert {p.name: p.read_bytes() for p in target.iterdir()} == {"a": b"new", "b": b"old"}


def _rights(archive: Path, target: Path) -> tuple[dict[str, int], list[str]]:
    """The rights that its entries come back with, and what was warned of."""
    warnings = give_back(archive, target).warnings
    return {p.name: stat.S_IMODE(p.stat().st_mode) for p in target.iterdir()}, warnings


@needs_root
def test_nothing_runs_as_its_owner_where_the_owner_could_not_be_set(target: Path) -> None:
    modes = {"tool": 0o4755, "mail": 0o2755, "plain": 0o755}
    entries = [(Header(n, Type.FILE, 1, mode, uid=1234, gid=1234), b"x") for n, mode in modes.items()]
    shared = Header("shared", Type.DIRECTORY, mode=0o3775, uid=1234, gid=1234)
    with tempfile.TemporaryDirectory() as name:  # nobody may enter pytest's own
        open_to_all = Path(name)
        open_to_all.chmod(0o777)
        archive = by_hand(open_to_all / "a.tar.gz", [*entries, (shared, b"")])
        archive.chmod(0o644)
        assert _rights(archive, target) == ({**modes, "shared": 0o3775}, [])
        os.setegid(65534)
        os.seteuid(65534)
        try:
            rights, warnings = _rights(archive, open_to_all / "nobody")
        finally:
            os.seteuid(0)
            os.setegid(0)
    assert rights == {"tool": 0o755, "mail": 0o755, "plain": 0o755, "shared": 0o3775}
    assert [w.partition(":")[0] for w in warnings] == ["tool", "mail"]


@needs_root
def test_a_full_disk_is_told_and_leaves_no_half_file(tmp_path: Path, ours: Path) -> None:

    with small_disk(tmp_path / "disk", "5m") as disk:
        with pytest.raises(RestoreError, match="No space left"):
            give_back(ours, disk / "target")
        assert not (disk / "target" / "photos" / "film.mp4").exists()


@needs_root
def test_rights_that_the_target_hands_down_do_not_stay(ours: Path, target: Path, tmp_path: Path) -> None:
    plain = snapshot(give_back(ours, tmp_path / "plain").target / "photos")
    subprocess.run(["setfacl", "-m", "d:u:12345:rwx", target], check=True)
    assert snapshot(give_back(ours, target).target / "photos") == plain


def test_paths_longer_than_any_other_program_takes_come_back(tmp_path: Path, target: Path) -> None:
    """700 folders in one another: 7,700 bytes of path, which no single system call takes."""
    source = tmp_path / "source"
    source.mkdir()
    name, depth = "f" * 10, 700
    bottom = _descend(source, name, depth, make=True)
    try:
        written = os.open("photo", os.O_WRONLY | os.O_CREAT, dir_fd=bottom)
        os.write(written, b"jpeg")
        os.close(written)
    finally:
        os.close(bottom)
    give_back(back_up(archive_store(tmp_path / "store"), tree(source)), target)
    bottom = _descend(target / "photos", name, depth, make=False)
    try:
        found = os.open("photo", os.O_RDONLY, dir_fd=bottom)
        assert os.read(found, 100) == b"jpeg"
        os.close(found)
    finally:
        os.close(bottom)


def _descend(folder: Path, name: str, depth: int, *, make: bool) -> int:
    there = os.open(folder, os.O_RDONLY)
    for _ in range(depth):
        if make:
            os.mkdir(name, dir_fd=there)
        below = os.open(name, os.O_RDONLY, dir_fd=there)
        os.close(there)
        there = below
    return there

"""What the tests of the archive share: a store to write to, trees with odd entries, and a full look at a tree."""

from __future__ import annotations

import hashlib
import os
import shutil
import socket
import stat
import struct
import subprocess
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import chain, pairwise
from pathlib import Path

import pytest

from memu_backup import put_back, unpack
from memu_backup.anywhere import look
from memu_backup.exchange import House
from memu_backup.formats import sums
from memu_backup.formats.reader import OWN_NAMES, ArchiveReader
from memu_backup.model import Captured, Level, Progress, Root
from memu_backup.nested import Step
from memu_backup.put_back import Planned, Returned
from memu_backup.sources import Source
from memu_backup.stores import Label, Written
from memu_backup.stores.archive import ArchiveSettings, ArchiveStore
from memu_backup.walk import identities
from memu_backup.work import Stop

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="owners, mounts and capabilities are root's")

TAKEN_AT = datetime(2026, 3, 4, 1, 0, 0, tzinfo=UTC)


def ignore(_: Progress) -> None:
    """A progress that nobody looks at."""


def archive_store(directory: Path) -> ArchiveStore:
    store = ArchiveStore(directory, ArchiveSettings(kind="archive"))
    store.mark("attic", TAKEN_AT)
    store.prepare()
    return store


def label(name: str) -> Label:
    return Label(name, "5b0e1a52", TAKEN_AT, "+01:00", "attic", "nightly", "0.1.0")


def tree(path: Path, place: str = "photos/", exclude: tuple[str, ...] = (), *, cross: bool = False) -> Captured:
    """A folder (or a file) as a source captures it."""
    return Captured(
        source=place.rstrip("/"),
        kind="directory",
        place=place,
        roots=(Root(path, place, exclude, cross),),
        consistency="each file as it was when it was read",
    )


def write(
    store: ArchiveStore,
    *captured: Captured,
    on_progress: Callable[[Progress], None] = ignore,
    stop: Stop | None = None,
    never: Iterable[Path] = (),
) -> Written:
    folders = frozenset(identities([store.directory, *never]))
    return store.write(label(store.unused_name(TAKEN_AT, UTC)), captured, folders, on_progress, stop or Stop())


def back_up(store: ArchiveStore, *captured: Captured) -> Path:
    """Write, prove and publish; the archive's path."""
    written = write(store, *captured)
    verdict = store.prove(written.partial_path, Level.FULL, ignore, Stop())
    assert verdict.good, verdict.problems
    assert verdict.sha256
    return store.publish(written, verdict.sha256)


@dataclass(frozen=True)
class Unpacked:
    target: Path
    warnings: list[str]


def give_back(archive: Path, target: Path, *, overwrite: bool = False, trusted: bool = True) -> Unpacked:
    """Unpack all of the household's entries with our own unpacker."""
    target.mkdir(exist_ok=True)
    with ArchiveReader(archive) as reader:
        plan = unpack.judge((e.path, e) for e in reader.checked_index())
        unpacker = unpack.Unpacker(
            target, plan, overwrite=overwrite, stop=Stop(), on_done=lambda _bytes, _entries: None, trusted=trusted
        )
        with unpacker:
            for header, content in reader.entries_with_content():
                if header.path not in OWN_NAMES:
                    unpacker.put(header, content)
            unpacker.finish()
    return Unpacked(target, unpacker.warnings)


def in_parts(archive: Path, folder: Path, *cuts: int) -> list[Path]:
    """A copy cut at these offsets, with the sidecars that docs/format.md tells of; the paths of the parts."""
    content = archive.read_bytes()
    made = []
    for number, (start, end) in enumerate(pairwise((0, *cuts, len(content))), 1):
        made.append(folder / f"{archive.name}.part{number:03}")
        made[-1].write_bytes(content[start:end])
    (folder / f"{archive.name}.sha256").write_bytes(sums.line(sums.of(content), archive.name))
    lines = b"".join(sums.line(sums.of(part.read_bytes()), part.name) for part in made)
    (folder / f"{archive.name}.pieces.sha256").write_bytes(lines)
    return made


def snapshot(folder: Path) -> dict[bytes, tuple[object, ...]]:
    """Everything that can be told of a tree, by path: two trees are the same where these are."""
    found: dict[bytes, tuple[object, ...]] = {}
    names: dict[tuple[int, int], bytes] = {}
    root = os.fsencode(folder)
    for path in sorted(_paths(root)):
        status = os.lstat(path)
        inner = os.path.relpath(path, root)
        kind = stat.S_IFMT(status.st_mode)
        content = b""
        if stat.S_ISLNK(kind):
            content = os.fsencode(Path(os.fsdecode(path)).readlink())
        elif stat.S_ISREG(kind):
            content = _hash(path).encode()
        first = names.setdefault((status.st_dev, status.st_ino), inner)
        attributes = () if stat.S_ISLNK(kind) else tuple((a, os.getxattr(path, a)) for a in sorted(os.listxattr(path)))
        size = 0 if stat.S_ISDIR(kind) else status.st_size
        found[inner] = (
            kind, oct(stat.S_IMODE(status.st_mode)), status.st_uid, status.st_gid, status.st_mtime_ns, size, content,
            first, attributes,
        )  # fmt: skip
    return found


def _paths(root: bytes) -> list[bytes]:
    found = [root]
    for folder, folders, files in os.walk(root):
        found += [folder + b"/" + name for name in folders + files]
    return found


def _hash(path: bytes) -> str:
    with Path(os.fsdecode(path)).open("rb") as file:
        if os.fstat(file.fileno()).st_size > 1 << 30:  # a giant with holes: its ends tell enough
            start = file.read(1 << 20)
            file.seek(-(1 << 20), os.SEEK_END)
            return hashlib.sha256(start + file.read()).hexdigest()
        return hashlib.file_digest(file, "sha256").hexdigest()


def plain_tree(folder: Path) -> Path:
    """Small and large files that any tar program reads, with the names that households have."""
    (folder / "2024" / "Ostern").mkdir(parents=True)
    (folder / "leer").mkdir()
    (folder / "2024" / "Ostern" / "IMG_0001.jpg").write_bytes(b"\xff\xd8\xff" + os.urandom(700_000))
    (folder / "2024" / "Oma & Opa's Garten.txt").write_text("Tomaten\n" * 40_000)
    (folder / "film.mp4").write_bytes(os.urandom(9_000_001))
    (folder / "nichts").touch()
    (folder / "Größe.txt").write_text("ä")
    for number in range(40):
        (folder / f"klein{number:02}.txt").write_bytes(b"%d\n" % number * number)
    os.link(folder / "film.mp4", folder / "zweiter Name")
    (folder / "verweis").symlink_to("2024/Ostern")
    (folder / ("lang" * 40 + ".txt")).write_text("ein langer Name\n")
    return folder


def odd_tree(folder: Path) -> Path:
    """Every odd entry that can be given back. Needs root, and a filesystem with attributes and ACLs."""
    plain_tree(folder)
    _odd_names(folder)
    _odd_rights(folder)
    _odd_contents(folder)
    for path in (folder / "2024", folder / "leer", folder):
        os.utime(path, ns=(0, 1_111_111_111_123_456_789))
    return folder


def _odd_names(folder: Path) -> None:
    raw = os.fsencode(folder)
    for name in (b"zeilen\numbruch", b"back\\slash", b"\\n", b"\xff\xfe kein UTF-8", b"n" * 255, b" ", b"-rf", b"*"):
        Path(os.fsdecode(raw + b"/" + name)).write_bytes(name)
    Path(os.fsdecode(raw + b"/verweis \xff")).symlink_to(os.fsdecode(b"nach \xfe"))
    deep = folder / "/".join(["d" * 120] * 8)  # more than 255 bytes, and more than ustar's prefix
    deep.mkdir(parents=True)
    (deep / "tief.txt").write_text("tief")
    os.link(deep / "tief.txt", folder / "flach.txt")
    (folder / "leiter").mkdir()
    there = os.open(folder / "leiter", os.O_RDONLY)
    for _ in range(600):
        os.mkdir("x", dir_fd=there)
        below = os.open("x", os.O_RDONLY, dir_fd=there)
        os.close(there)
        there = below
    os.close(there)
    (folder / "verweis tot").symlink_to("nirgends")
    (folder / "verweis absolut").symlink_to("/etc/shadow")
    (folder / "verweis lang").symlink_to("l" * 3000)
    (folder / "schleife").symlink_to("schleife")


def _odd_rights(folder: Path) -> None:
    tool = folder / "werkzeug"
    tool.write_bytes(b"#!/bin/sh\n")
    os.chown(tool, 4_000_000_000, 1234)
    tool.chmod(0o6755)
    capability = folder / "ping"
    capability.write_bytes(b"\x7fELF")
    os.setxattr(capability, "security.capability", struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0))
    capability.chmod(0o755)
    shared = folder / "gemeinsam"
    shared.mkdir()
    shared.chmod(0o1777)
    secret = folder / "geheim"
    secret.write_bytes(b"s")
    secret.chmod(0)
    for name, value in (
        ("user.herkunft", b"\0\n=binary"),
        ("user.a=b%c", b"1"),
        ("user.\N{SNOWMAN}", b""),
        ("trusted.x", b"y"),
    ):
        os.setxattr(secret, name, value)
    os.setxattr(shared, "user.ordner", b"1")
    subprocess.run(["setfacl", "-m", "u:12345:r,g:54321:rw", str(secret)], check=True)
    subprocess.run(["setfacl", "-m", "u:12345:rwx,d:u:12345:rwx,d:o::-", str(shared)], check=True)
    (shared / "erbt").write_bytes(b"the folder's rights")
    os.lchown(folder / "verweis tot", 77, 88)
    os.utime(tool, ns=(0, -1_500_000_000))
    os.utime(secret, ns=(0, -1))
    os.utime(capability, ns=(0, 9_999_999_999 * 10**9 + 1))
    os.utime(folder / "verweis absolut", ns=(0, 999_999_999), follow_symlinks=False)


def _odd_contents(folder: Path) -> None:
    mebibyte = 1 << 20
    for name, size, data in (
        ("loch vorn", 9 * mebibyte, (8 * mebibyte,)),
        ("loch mitte", 20 * mebibyte, (0, 19 * mebibyte)),
        ("loch hinten", 9 * mebibyte, (0,)),
        ("nur loch", 9 * mebibyte, ()),
        ("viele", 40 * mebibyte, range(0, 40 * mebibyte, 2 * mebibyte)),
    ):
        with (folder / name).open("wb") as file:
            file.truncate(size)
            for start in data:
                file.seek(start)
                file.write(os.urandom(70_000))
    for size in (511, 512, 513, 256 * 1024, 256 * 1024 + 1, 4 * mebibyte, 4 * mebibyte + 1):
        (folder / f"{size} bytes").write_bytes(os.urandom(size))


def things_never_opened(folder: Path) -> int:
    """A pipe, a socket and devices; opening one of them would wait for ever or worse. Returns how many."""
    os.mkfifo(folder / "pipe")
    with socket.socket(socket.AF_UNIX) as listener:
        here = Path.cwd()
        os.chdir(folder)  # a socket's path holds 107 bytes
        try:
            listener.bind("socket")
        finally:
            os.chdir(here)
    os.mknod(folder / "char", stat.S_IFCHR | 0o600, os.makedev(1, 5))
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 0))
    return 4


def program(name: str) -> list[str]:
    """One of the programs that unpack an archive; each is in a Debian package."""
    if shutil.which(name) is None:
        pytest.skip(f"{name} is not installed; `make test` installs it for root")
    return [name, "tar"] if name == "busybox" else [name]


@dataclass(frozen=True)
class Return:
    """One archive on its way back to where its sources live."""

    house: House
    planned: Planned

    @property
    def step(self) -> Step:
        (step,) = self.planned.steps
        return step

    async def carry_out(self) -> Returned:
        return await put_back.carry_out(self.house, self.planned, TAKEN_AT, lambda _: None, ignore)

    async def all_there(self) -> tuple[str, ...]:
        """Carried out; its warnings."""
        return tuple(chain(*(await self.carry_out()).warnings.values()))


async def returning(archive: Path, sources: Mapping[str, Source], scratch: Path, *wanted: str) -> Return:
    house = House(sources, (), scratch / "stopped", scratch / "restores", scratch)
    return Return(house, await put_back.plan(house, *look(archive), wanted, trusted=True))

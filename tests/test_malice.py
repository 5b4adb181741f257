"""The malicious archives that other projects' tests and advisories describe, made anew, and archives made at random: to
our unpacker and to the rescue program alike. Nothing outside of the folder is touched, whatever becomes of the rest.
"""

from __future__ import annotations

import gzip
import io
import os
import shutil
import string
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from memu_backup.errors import MemuError
from tests.archives import archive_store, back_up, give_back, tree
from tests.rescue.drive import put_program, rescue

NAME = "memu_backup_20260305_010000.tar.gz"
EVIL = b"evil"

Member = tuple[tarfile.TarInfo, bytes]


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", content: bytes = EVIL, **more: object) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    for key, value in more.items():
        setattr(info, key, value)
    if kind == tarfile.REGTYPE:
        info.size = len(content)
    return info, content if kind == tarfile.REGTYPE else b""


def link(name: str, to: str) -> Member:
    return member(name, tarfile.SYMTYPE, to)


def hard(name: str, to: str) -> Member:
    return member(name, tarfile.LNKTYPE, to)


def folder(name: str) -> Member:
    return member(name, tarfile.DIRTYPE, mode=0o755)


def made(*members: Member, form: int = tarfile.GNU_FORMAT, headers: dict[str, str] | None = None) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form, pax_headers=headers) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def pax(*members: Member, **headers: str) -> bytes:
    """With headers for all that follows, in a global one."""
    return made(*members, form=tarfile.PAX_FORMAT, headers=headers)


def said(name: str, **headers: str) -> bytes:
    """Of one file, which by its own extended header is something else."""
    return made(member(name, pax_headers=headers), form=tarfile.PAX_FORMAT)


def with_a_body(kind: bytes, name: str, to: str) -> bytes:
    """A link that carries content, which libarchive once wrote through it."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, to, len(EVIL)
    return info.tobuf() + EVIL.ljust(512, b"\0") + bytes(1024)


def longer_than_a_path_may_be() -> bytes:
    """CVE-2025-4517, in Python: links that are longer than a path once they are followed, so nobody sees the end."""
    long, members, here = "d" * 247, list[Member](), ""
    for step in string.ascii_lowercase[:16]:
        members += [folder(f"{here}{long}"), link(f"{here}{step}", long)]
        here += f"{step}/"
    end = f"{here}{'l' * 254}"
    members += [link(end, "../" * 16), link("escape", f"{end}/../../outside"), hard("flag", "escape/precious")]
    return made(*members, member("flag"))


OTHERS: dict[str, Callable[[], bytes]] = {
    # Python's tests of its filters, and what was found in them since
    "python: a name upwards": lambda: made(member("../precious")),
    "python: a name upwards that comes back": lambda: made(member("found/../../precious")),
    "python: a link upwards beside a file of its name": lambda: made(
        link("../precious", "/tmp"), member("../precious")
    ),
    "python: parents of a link": lambda: made(
        link("current", "."), link("parent", "current/.."), member("parent/evil")
    ),
    "python: parents of a link of a link": lambda: made(
        folder("current"), link("current", "."), link("parent", "current/../.."), member("parent/precious")
    ),
    "python: an absolute link": lambda: made(link("parent", "/tmp"), member("parent/evil")),
    "python: an absolute hard link": lambda: made(hard("parent", "/etc/hostname"), member("parent")),
    "python: links that meet": lambda: made(
        folder("a"), folder("a/b"), link("a/b/up", "../.."), link("out", "a/b/up/.."), member("out/precious")
    ),
    "python: paths longer than any (CVE-2025-4517)": longer_than_a_path_may_be,
    "python: a hard link to a link outside (CVE-2025-4138)": lambda: made(
        link("x", "../precious"), hard("y", "x"), member("y")
    ),
    "python: a hard link whose name is stripped (CVE-2025-4330)": lambda: made(hard("y", "/../precious"), member("y")),
    "python: a header for all (test_pax_global_headers)": lambda: pax(member("innocent"), path="../precious"),
    # GNU tar, libarchive
    "gnu tar: a member's own upwards (CVE-2016-6321)": lambda: made(member("etc/passwd/../../../precious")),
    "gnu tar: a long name upwards": lambda: made(member("x/" * 150 + "../" * 152 + "precious")),
    "gnu tar: a long link": lambda: made(link("a", "../" * 100 + "tmp"), member("a/evil")),
    "libarchive: a hard link with content": lambda: with_a_body(tarfile.LNKTYPE, "a", "../precious"),
    "libarchive: a link with content": lambda: with_a_body(tarfile.SYMTYPE, "a", "../precious"),
    "libarchive: a link in the place of a folder": lambda: made(
        folder("d"), link("d", "../outside"), member("d/precious")
    ),
    # node-tar, tar-fs
    "node-tar: a folder exchanged for a link (CVE-2021-32803)": lambda: made(
        folder("d/"), member("d/x"), link("d", ".."), member("d/precious")
    ),
    "node-tar: more than one slash (CVE-2021-32804)": lambda: made(member("////tmp/evil")),
    "node-tar: one name, two spellings (CVE-2021-37712)": lambda: made(
        folder("caf\u00e9"), link("cafe\u0301", ".."), member("caf\u00e9/precious")
    ),
    "node-tar: backslashes (CVE-2021-37701)": lambda: made(
        folder("a\\b"), link("a", ".."), member("a\\b/..\\precious")
    ),
    "tar-fs: a hard link through a link (CVE-2024-12905)": lambda: made(
        link("a", "../outside"), hard("b", "a/precious"), member("b")
    ),
    "tar-fs: a folder that begins alike (CVE-2025-59343)": lambda: made(link("a", "../found_too"), member("a/evil")),
    # Go, Docker, zip-slip
    "go: a file's own header leads out": lambda: said("innocent", path="../precious"),
    "go: a link's own header leads out": lambda: made(
        member("a", tarfile.LNKTYPE, "b", pax_headers={"linkpath": "../precious"}), form=tarfile.PAX_FORMAT
    ),
    "go: a name with a zero in it": lambda: said("innocent", path="a\0/../../precious"),
    "go: a sparse file's name leads out": lambda: said(
        "GNUSparseFile.0/x",
        **{
            "GNU.sparse.major": "1",
            "GNU.sparse.minor": "0",
            "GNU.sparse.name": "../precious",
            "GNU.sparse.realsize": "4",
        },
    ),
    "go: a size below nothing": lambda: said("innocent", size="-1"),
    "go: a size of everything": lambda: said("innocent", size=str(2**63)),
    "go: a time that is none": lambda: said("innocent", mtime="nan"),
    "go: an owner beyond all": lambda: said("innocent", uid=str(2**64), gid="-7"),
    "docker: a link upwards, then what is in it": lambda: made(link("dir", "../outside"), member("dir/precious")),
    "docker: a hard link upwards, then its content": lambda: made(hard("dir", "../precious"), member("dir")),
    "docker: a link to all (CVE-2014-6407)": lambda: made(link("root", "/"), hard("pw", "root/etc/hostname")),
    "zip-slip: as Windows writes it": lambda: made(member("..\\..\\precious")),
    "zip-slip: far upwards": lambda: made(member("../" * 40 + "tmp/evil")),
    # Programs that look at what a backup brings
    "attributes: rights of the kernel": lambda: said("innocent", **{"SCHILY.xattr.security.capability": "\x01"}),
    "attributes: an overlay's": lambda: said("innocent", **{"SCHILY.xattr.trusted.overlay.opaque": "y"}),
    "gzip: of a gzip of a gzip": lambda: gzip.compress(made(member("innocent"))),
}


@pytest.fixture
def around(tmp_path: Path) -> Path:
    """Something that must not change, and beside it room for a folder `found`."""
    for name in ("outside", "found_too", "stick"):
        (tmp_path / name).mkdir()
    for place in (tmp_path, tmp_path / "outside"):
        (place / "precious").write_bytes(b"precious")
    return tmp_path


def beside_found(around: Path) -> dict[str, bytes]:
    """What is in all files, and in what folders; no link is followed."""
    there: dict[str, bytes] = {}
    for folder, folders, files in os.walk(around):
        if "found" in folders:
            folders.remove("found")
        there |= {folder: "\n".join(sorted(folders)).encode()}
        there |= {f"{folder}/{file}": Path(folder, file).read_bytes() for file in files}
    return there


def guarded(around: Path, unpack: Callable[[Path], bool]) -> bool:
    """Whether it was unpacked, into the new folder that it is given; all else is as before."""
    before = beside_found(around)
    done = unpack(around / "found")
    assert (
        beside_found(around) == before and not Path("/tmp/evil").exists() and Path("/etc/hostname").stat().st_nlink == 1
    )
    return done


HARMLESS = (
    "python: a header for all (test_pax_global_headers)",
    "node-tar: one name, two spellings (CVE-2021-37712)",
    "node-tar: backslashes (CVE-2021-37701)",
    "zip-slip: as Windows writes it",
    "attributes: rights of the kernel",
    "attributes: an overlay's",
)
"""Here there is nothing in them that leads anywhere, or it is left away."""


@pytest.mark.parametrize("title", OTHERS)
def test_what_did_harm_to_others_does_none_here(title: str, around: Path) -> None:
    archive = around / "stick" / NAME
    archive.write_bytes(gzip.compress(OTHERS[title](), 1))

    def by_ours(target: Path) -> bool:
        try:
            give_back(archive, target, trusted=False)
        except MemuError:
            assert not list(target.iterdir()), "something was written before it was refused"
            return False
        assert not any(os.listxattr(path, follow_symlinks=False) for path in target.rglob("*"))
        return True

    def by_rescue(target: Path) -> bool:
        told = rescue(archive.parent, "restore", NAME, target)
        assert told.status in (0, 1) and "Traceback" not in told.err
        return told.status == 0

    assert guarded(around, by_ours) == (title in HARMLESS)
    shutil.rmtree(around / "found")
    put_program(archive.parent)
    guarded(around, by_rescue)


# --- at random -------------------------------------------------------------------------------------------------------

PARTS = st.sampled_from(["a", "b", "..", ".", "", "precious", "outside", "found", "/", "x" * 260])
PATHS = st.lists(PARTS, min_size=1, max_size=4).map("/".join)
KINDS = st.sampled_from([tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
MEMBERS = st.builds(member, PATHS, KINDS, PATHS)


def within(folder: Path, archive: bytes) -> bool:
    """Whether all of it was unpacked, and nothing else was touched."""
    for place in (folder, folder / "outside"):
        place.mkdir(exist_ok=True)
        (place / "precious").write_bytes(b"precious")
    (folder / NAME).write_bytes(archive)

    def by_ours(target: Path) -> bool:
        try:
            give_back(folder / NAME, target, trusted=False)
        except MemuError:
            return False
        return True

    return guarded(folder, by_ours)


@settings(max_examples=150, deadline=None)
@given(st.lists(MEMBERS, min_size=1, max_size=6))
@example([folder("a"), link("b", "../outside"), member("a/precious")])
def test_of_whatever_is_in_an_archive_nothing_lands_outside(members: list[Member]) -> None:
    with tempfile.TemporaryDirectory() as folder_:
        within(Path(folder_), gzip.compress(made(*members), 1))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A backup of ours, with all that a tree can hold."""
    folder = tmp_path_factory.mktemp("whole")
    (folder / "source" / "a").mkdir(parents=True)
    (folder / "source" / "a" / "noise").write_bytes(os.urandom(20_000))
    (folder / "source" / "a" / "letter").write_text("Dear all, " * 500)
    (folder / "source" / "link").symlink_to("a/letter")
    (folder / "source" / "again").hardlink_to(folder / "source" / "a" / "letter")
    return back_up(archive_store(folder), tree(folder / "source")).read_bytes()


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_whatever_became_of_the_bytes_of_a_backup_it_ends_in_a_sentence(whole: bytes, data: st.DataObject) -> None:
    changed = bytearray(whole)
    for _ in range(data.draw(st.integers(1, 3))):
        where = data.draw(st.integers(0, len(changed) - 1))
        piece = data.draw(st.binary(max_size=8))
        changed[where : where + data.draw(st.integers(0, 8))] = piece
    with tempfile.TemporaryDirectory() as folder_:
        within(Path(folder_), bytes(changed))

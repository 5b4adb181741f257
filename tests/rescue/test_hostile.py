"""A stranger's archive on the drive: refused in a sentence, and nothing is written outside the folder."""

from __future__ import annotations

import io
import os
import tarfile
from pathlib import Path

import pytest

from memu_backup.formats import gzip, tar
from memu_backup.formats.tar import Header, Type
from tests.faulty_disk import needs_fuse
from tests.home import fingerprints
from tests.rescue.caseless_disk import caseless_disk
from tests.rescue.drive import ISOLATED, put_program, rescue
from tests.test_unpack import HOSTILE, LIES, by_hand, file, folder, hardlink, lying, symlink

NAME = "memu_backup_20260305_010000.tar.gz"


@pytest.fixture
def stick(tmp_path: Path) -> Path:
    """A drive with the program and, beside it, something that must not change."""
    (tmp_path / "stick").mkdir()
    (tmp_path / "precious").write_bytes(b"precious")
    put_program(tmp_path / "stick")
    return tmp_path / "stick"


def refused(stick: Path) -> str:
    """Restoring fails in a sentence, and nothing at all was made. The sentence."""
    before = fingerprints(stick.parent)
    said = rescue(stick, "restore", NAME, stick.parent / "found")
    assert said.status == 1 and "Traceback" not in said.err, said
    assert not (stick.parent / "found").exists()
    assert fingerprints(stick.parent) == before
    assert not Path("/tmp/evil").exists() and not (stick.parent.parent / "evil").exists()
    return said.err.splitlines()[-1]


@pytest.mark.parametrize("entries", HOSTILE.values(), ids=HOSTILE.keys())
def test_what_could_write_elsewhere_is_refused_before_anything_is_written(
    entries: list[tuple[Header, bytes]], stick: Path
) -> None:
    by_hand(stick / NAME, [file("innocent", b"x"), *entries])
    assert "is not to be trusted, and nothing was unpacked" in refused(stick)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE, b"Z", tarfile.GNUTYPE_SPARSE])
def test_devices_pipes_and_unknown_things_are_refused(kind: bytes, stick: Path) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as made:
        made.addfile(tarfile.TarInfo("innocent"))
        info = tarfile.TarInfo("thing")
        info.type = kind
        made.addfile(info)
    (stick / NAME).write_bytes(buffer.getvalue())
    assert "'thing', which is a device, a pipe or something unknown" in refused(stick)


@pytest.mark.parametrize("change", LIES.values(), ids=LIES.keys())
def test_an_index_that_lies_brings_back_nothing_false(
    change: dict[str, object], drive: Path, name: str, source: Path, stick: Path
) -> None:
    lying(drive / name, stick / NAME, change)
    found = stick.parent / "found"
    said = rescue(stick, "restore", NAME, found)
    assert "Traceback" not in said.err and said.status in (0, 1)
    assert not Path("/tmp/evil").exists() and not (stick.parent / "evil").exists()
    for path in found.rglob("*"):
        if path.is_file() and path.parent != found:
            assert path.read_bytes() == (source / path.relative_to(found / "photos")).read_bytes()
    if change.keys() & {"path", "type", "size_bytes", "mode", "mtime_ns"}:
        assert said.status == 1 and not (found / "photos" / "film.mp4").exists()


@pytest.mark.parametrize(
    "stream",
    [
        pytest.param(b"Dear Oma,\n" * 100, id="a letter"),
        pytest.param(b"", id="nothing"),
        pytest.param(tar.encode(Header("x" * 200, Type.FILE))[:512].replace(b"00000000", b"77777777"), id="a bad sum"),
    ],
)
def test_what_is_no_archive_is_told_as_such(stream: bytes, stick: Path) -> None:
    (stick / NAME).write_bytes(b"".join(gzip.pack(stream)))
    assert "it is no backup, or too damaged" in refused(stick)
    (stick / NAME).write_bytes(stream)
    assert "it is no backup, or too damaged" in refused(stick)


def test_a_header_of_gigabytes_does_not_fill_the_memory(stick: Path) -> None:
    info = tarfile.TarInfo("pax")
    info.type, info.size = tarfile.XHDTYPE, 4 << 30
    zeros = b"".join(gzip.pack(bytes(8 << 20)))
    (stick / NAME).write_bytes(b"".join(gzip.pack(info.tobuf())) + zeros * 512)
    said = rescue(stick, "list", NAME, python=("prlimit", "--as=1000000000", *ISOLATED))
    assert said.status == 1 and "it is no backup, or too damaged" in said.err


def test_a_file_in_the_place_of_its_list_is_no_way_out(drive: Path, name: str, stick: Path) -> None:
    """What stands behind the last entry is told by no index: only the list itself may."""
    content = (drive / name).read_bytes()
    footer = gzip.read_footer(content[-gzip.FOOTER_BYTES :])
    assert footer
    for evil in (Header("../evil", Type.FILE, 4), Header("metadata.json", Type.SYMLINK, link="/tmp/evil")):
        stream = tar.encode(evil) + b"evil" + bytes(508)
        # In the place of metadata.json, at the first byte of a member.
        put = b"".join(gzip.pack(stream))
        index = content[footer.index_offset : -gzip.FOOTER_BYTES]
        body = content[: footer.manifest_offset] + put
        whole = body + index
        (stick / NAME).write_bytes(whole + gzip.footer(footer.manifest_offset, len(body), len(whole)))
        found = stick.parent / evil.path.strip("./")
        assert rescue(stick, "restore", NAME, found).status in (0, 1)
        assert (found / "photos" / "nichts").exists()
        assert not (found / "metadata.json").is_symlink() and not (stick.parent / "evil" / "evil").exists()
        assert not os.path.lexists(found / "metadata.json") and not Path("/tmp/evil").exists()


@needs_fuse
def test_where_a_is_the_same_as_capital_a_no_link_leads_out(stick: Path) -> None:
    """What is told apart in the archive is one on the disk: here a folder, and a link in its place."""
    (stick.parent / "outside").mkdir()
    outside = str(stick.parent / "outside")
    entries = [
        symlink("A", outside), symlink("a/b/link", "x"), symlink("B", outside), file("b/file"),
        symlink("C", outside), folder("c"), file("d", b"one"), file("D", b"two"), file("E"), hardlink("e", "E"),
    ]  # fmt: skip
    by_hand(stick / NAME, entries)
    with caseless_disk(stick.parent) as disk:
        said = rescue(stick, "restore", NAME, disk / "found")
        assert said.status == 1 and "Traceback" not in said.err
        assert {line.split()[1] for line in said.err.splitlines() if line.startswith("Lost: ")} == {
            "A",
            "B",
            "C",
            "D",
            "e",
        }
        found = {str(p.relative_to(disk / "found")) for p in (disk / "found").rglob("*") if not p.is_dir()}
        assert found == {"a/b/link", "b/file", "d", "E"}
        assert (disk / "found" / "d").read_bytes() == b"one"
    assert list((stick.parent / "outside").iterdir()) == []


def test_names_do_not_speak_to_the_terminal(stick: Path) -> None:
    by_hand(stick / NAME, [file("\x1b[31mred\x07\u202e.jpg"), file("two\nlines")])
    said = rescue(stick, "list", NAME)
    assert said.status == 0 and "\\x1b[31mred\\x07\\u202e.jpg" in said.out and "two\\nlines" in said.out
    assert "\x1b" not in said.all and "\x07" not in said.all and "\u202e" not in said.all


def test_parts_with_numbers_out_of_all_bounds_are_none(stick: Path) -> None:
    for number in ("9999999999", "0", "-1", "x"):
        (stick / f"{NAME}.part{number}").write_bytes(b"x")
    said = rescue(stick, "check", NAME)
    assert said.status == 2 and "There is no backup" in said.err

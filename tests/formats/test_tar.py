"""tar headers: what is written is read back, by us and by others, and nothing in them is taken on trust."""

from __future__ import annotations

import io
import os
import struct
import subprocess
import tarfile
from collections.abc import Iterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.errors import ArchiveError, DamagedArchive, HostileArchive, NotAnArchive
from memu_backup.formats import tar
from memu_backup.formats.tar import Header, Type
from memu_backup.formats.untar import Reader

names = st.binary(min_size=1, max_size=300).filter(lambda n: b"\0" not in n and b"/" not in n)
paths = st.lists(names, min_size=1, max_size=4).map(lambda parts: os.fsdecode(b"/".join(parts)))
keys = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1, max_size=40)
headers = st.builds(
    Header,
    path=paths,
    type=st.sampled_from([Type.FILE, Type.DIRECTORY, Type.SYMLINK, Type.HARDLINK]),
    size_bytes=st.integers(0, 2000),
    mode=st.integers(0, 0o7777),
    uid=st.integers(0, 2**32 - 2),
    gid=st.integers(0, 2**32 - 2),
    user=st.text("abcäöü_", max_size=40),
    group=st.text("abcäöü_", max_size=40),
    mtime_ns=st.integers(-(2**40) * 10**9, 2**40 * 10**9),
    link=paths,
    xattrs=st.dictionaries(keys.map(lambda k: f"user.{k}"), st.binary(max_size=100), max_size=3),
)


def settled(header: Header) -> Header:
    """As it makes sense: a size for files only, a link for links only."""
    is_link = header.type in (Type.SYMLINK, Type.HARDLINK)
    size = header.size_bytes if header.type is Type.FILE else 0
    return Header(
        header.path, header.type, size, header.mode, header.uid, header.gid, header.user, header.group,
        header.mtime_ns, header.link if is_link else "", header.xattrs,
    )  # fmt: skip


def read(stream: bytes, block: int = 10_000) -> list[tuple[Header, bytes]]:
    blocks = (stream[i : i + block] for i in range(0, len(stream), block))
    return [(header, b"".join(content)) for header, content in Reader(blocks)]


def entry(header: Header, content: bytes = b"") -> bytes:
    return tar.encode(header) + content + tar.padding(len(content))


@given(st.lists(headers.map(settled), max_size=3), st.integers(1, 3000), st.randoms())
def test_whatever_is_written_is_read_back(entries: list[Header], block: int, random: object) -> None:
    contents = [os.urandom(h.size_bytes) for h in entries]
    stream = b"".join(entry(h, c) for h, c in zip(entries, contents, strict=True)) + tar.END
    assert read(stream, block) == list(zip(entries, contents, strict=True))


@given(headers.map(settled))
def test_pythons_tarfile_reads_the_same(header: Header) -> None:
    if any("\n" in key or "=" in key for key in header.xattrs):  # which its pattern for records does not take
        return
    stream = entry(header, bytes(header.size_bytes)) + tar.END
    with tarfile.open(fileobj=io.BytesIO(stream), errors="surrogateescape") as found:
        (member,) = found.getmembers()
    assert (member.name.rstrip("/"), member.size, member.mode) == (
        header.path.rstrip("/"),
        header.size_bytes,
        header.mode,
    )
    assert (member.uid, member.gid, member.linkname) == (header.uid, header.gid, header.link)
    # tarfile keeps times as floating point, which is good for microseconds at most
    assert abs(member.mtime - header.mtime_ns / 10**9) <= abs(header.mtime_ns) / 10**9 * 1e-15 + 1e-6


@given(st.lists(st.tuples(st.integers(1, 5000), st.integers(0, 3000)), max_size=150), st.integers(1, 3000))
def test_files_with_holes_are_read_back(stretches: list[tuple[int, int]], block: int) -> None:
    extents, position = [], 0
    for hole, length in stretches:
        extents.append((position + hole, length))
        position += hole + length
    header = Header("holes", Type.FILE, position + 10, extents=(*extents, (position + 10, 0)))
    content = os.urandom(header.stored_bytes)
    assert read(entry(header, content) + tar.END, block) == [(header, content)]


def test_gnu_tar_lists_a_file_of_nine_gigabytes_before_1970() -> None:
    header = Header("film", Type.FILE, 9 << 30, 0o4640, 3_000_000_000, 5, mtime_ns=-86_400 * 10**9)
    listed = subprocess.run(
        ["tar", "-tv", "--numeric-owner", "--full-time", "--utc"], input=tar.encode(header), capture_output=True
    )
    expected = b"-rwSr----- 3000000000/5    9663676416 1969-12-31 00:00:00 film"
    assert listed.stdout.split() == expected.split()


def raw(name: bytes = b"x", flag: bytes = b"0", size: bytes = b"00000000000\0", **fields: bytes) -> bytes:
    """One header block made by hand, its checksum right whatever the fields hold."""
    block = bytearray(name.ljust(100, b"\0") + b"0000644\0" + b"0000000\0" * 2 + size + b"00000000000\0" + b" " * 8)
    block += flag + fields.get("link", b"").ljust(100, b"\0") + b"ustar\x0000"
    block = block.ljust(512, b"\0")
    for at, value in (("uid", 108), ("mtime", 136)):
        if at in fields:
            block[value : value + len(fields[at])] = fields[at]
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def pax(*records: bytes, size: int | None = None) -> bytes:
    body = b"".join(records)
    return raw(b"pax", b"x", b"%011o\0" % (len(body) if size is None else size)) + body + tar.padding(len(body))


BROKEN: dict[str, tuple[bytes, type[ArchiveError]]] = {
    "nothing at all": (b"", NotAnArchive),
    "a letter": (b"Dear Oma,\n", NotAnArchive),
    "512 bytes of text": (b"text " * 200, NotAnArchive),
    "cut in its header": (entry(Header("a", Type.FILE)) + raw()[:100], DamagedArchive),
    "cut in its content": (tar.encode(Header("a", Type.FILE, 5000)) + bytes(1000), DamagedArchive),
    "without its end": (entry(Header("a", Type.FILE)), DamagedArchive),
    "a broken second header": (entry(Header("a", Type.FILE)) + b"x" * 512, DamagedArchive),
    "a negative size": (raw(size=b"\xff" * 12), DamagedArchive),
    "a size beyond all bounds": (raw(size=b"\x80" + b"\x7f" * 11), DamagedArchive),
    "a size that is no number": (raw(size=b"0000000008x\0"), DamagedArchive),
    "a pax header of gigabytes": (pax(size=0o17777777777), HostileArchive),
    "a pax header beyond 8 GiB": (raw(b"p", b"x", b"\x80" + struct.pack(">xxxQ", 1 << 40)), HostileArchive),
    "a GNU long name of gigabytes": (raw(b"l", b"L", b"17777777777\0"), HostileArchive),
    "a pax record that says more than there is": (pax(b"99 path=a\n") + raw(), DamagedArchive),
    "a pax record that says less than there is": (pax(b"5 path=a\n") + raw(), DamagedArchive),
    "a pax record of no length": (pax(b"0 path=a\n") + raw(), DamagedArchive),
    "a pax record without an end": (pax(b"10 path=ab") + raw(), DamagedArchive),
    "a pax size below zero": (pax(b"11 size=-1\n") + raw(), DamagedArchive),
    "a pax size of twenty digits": (pax(b"29 size=99999999999999999999\n") + raw(), DamagedArchive),
    "an owner below zero": (raw(uid=b"\xff" * 8), DamagedArchive),
    "the owner that chown ignores": (pax(b"18 uid=4294967295\n") + raw(), DamagedArchive),
    "a time beyond all bounds": (raw(mtime=b"\x80" + b"\x7f" * 11), DamagedArchive),
    "an old sparse file": (raw(flag=b"S"), NotAnArchive),
}


@pytest.mark.parametrize(("stream", "error"), BROKEN.values(), ids=BROKEN.keys())
def test_broken_streams_are_told_as_what_they_are(stream: bytes, error: type[ArchiveError]) -> None:
    with pytest.raises(error):
        read(stream)


@pytest.mark.parametrize(
    ("numbers", "real"),
    [(b"1\n0\n", b"10"), (b"1\n5\n20\n", b"10"), (b"2\n5\n3\n0\n3\n", b"10"), (b"9999999999\n", b"10"), (b"x\n", b"1")],
)
def test_a_lying_map_of_holes_is_damaged(numbers: bytes, real: bytes) -> None:
    records = (
        b"22 GNU.sparse.major=1\n",
        b"22 GNU.sparse.minor=0\n",
        b"%d GNU.sparse.realsize=%s\n" % (23 + len(real) + 2, real),
    )
    stream = pax(*records) + raw(size=b"%011o\0" % 522) + numbers.ljust(512, b"\0") + bytes(512) + tar.END
    with pytest.raises(DamagedArchive):
        read(stream)


@given(st.integers(0, 8 * 3000), st.integers(1, 3000))
def test_noise_in_a_stream_is_never_more_than_an_archive_error(bit: int, block: int) -> None:
    stream = bytearray(entry(Header("ä" * 120, Type.FILE, 700, xattrs={"user.a": b"1"}), bytes(700)) + tar.END)
    stream[bit // 8 % len(stream)] ^= 1 << bit % 8
    try:
        read(bytes(stream), block)
    except ArchiveError:
        pass


@pytest.mark.parametrize("kind", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT, tarfile.PAX_FORMAT])
def test_other_programs_archives_are_read(kind: int) -> None:
    path = "folder/" + ("n" * 90 if kind == tarfile.USTAR_FORMAT else "n" * 400)
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=kind) as made:
        info = tarfile.TarInfo(path)
        info.size = 600
        made.addfile(info, io.BytesIO(b"c" * 600))
        info = tarfile.TarInfo("link")
        info.type, info.linkname = tarfile.SYMTYPE, path[:90]
        made.addfile(info)
    found = read(buffer.getvalue())
    assert [(h.path, h.type, h.link, c) for h, c in found] == [
        (path, Type.FILE, "", b"c" * 600),
        ("link", Type.SYMLINK, path[:90], b""),
    ]


def test_content_that_nobody_reads_is_passed_over() -> None:
    stream = b"".join(entry(Header(name, Type.FILE, 1300), bytes(1300)) for name in "abc") + tar.END

    def blocks() -> Iterator[bytes]:
        yield stream

    assert [header.path for header, _ in Reader(blocks())] == ["a", "b", "c"]

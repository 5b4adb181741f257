"""Members that every gunzip reads, and that say where they end."""

from __future__ import annotations

import gzip as pythons
import os
import random
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st
from isal import isal_zlib

from memu_backup.errors import DamagedArchive
from memu_backup.formats import gzip

CASES = {
    "nothing": b"",
    "one byte": b"x",
    "text": b"hello, world\n" * 10_000,
    "zeros": bytes(gzip.LARGE_CHUNK),
    "noise": os.urandom(200_000),
    "a large chunk of noise": os.urandom(gzip.LARGE_CHUNK),
    "exactly one stored block": os.urandom(0xFFFF),
    "one byte more": os.urandom(0x10000),
}


def member(data: bytes) -> bytes:
    return b"".join(gzip.pack(data))


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
def test_a_member_holds_what_was_packed_and_knows_its_length(data: bytes) -> None:
    packed = member(data)
    assert gzip.unpack(packed) == data
    assert gzip.member_bytes(packed[: gzip.HEADER_BYTES]) == len(packed)
    assert pythons.decompress(packed) == data
    assert len(packed) <= len(data) * 1.001 + 60


@pytest.mark.parametrize("data", CASES.values(), ids=CASES.keys())
def test_a_fast_library_that_sums_wrongly_spoils_no_member_and_calls_none_damaged(
    data: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it makes and checks alone would pass our own look at it, and no other program's."""
    rightly = isal_zlib.crc32
    monkeypatch.setattr(isal_zlib, "crc32", lambda data: rightly(data) ^ 1)
    packed = member(data)
    assert pythons.decompress(packed) == data
    assert gzip.unpack(packed) == data


@pytest.mark.parametrize("says", [None, b"something else", b""])
def test_a_fast_library_that_inflates_wrongly_calls_no_member_damaged(
    says: bytes | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"text " * 1000
    packed = member(data)
    monkeypatch.setattr(isal_zlib, "decompressobj", lambda _: Wrong(says))
    assert gzip.unpack(packed) == data
    with pytest.raises(DamagedArchive):
        gzip.unpack(packed[:-12] + b"\0" + packed[-11:])


class Wrong:
    """A library with a fault."""

    eof, unused_data = True, b""

    def __init__(self, says: bytes | None) -> None:
        self._says = says

    def decompress(self, _: bytes, __: int) -> bytes:
        return isal_zlib.decompress(b"no gzip") if self._says is None else self._says


@given(st.binary(max_size=3000), st.integers(0, 2**32))
def test_any_bytes_come_back(data: bytes, offset: int) -> None:
    assert gzip.unpack(member(data)) == data
    gap = gzip.padding(offset)
    assert (offset + len(gap)) % gzip.ALIGNMENT == 0
    assert not gap or (gzip.unpack(gap) == b"" and gzip.member_bytes(gap) == len(gap))


@given(st.data())
def test_one_flipped_bit_never_gives_other_content(data: st.DataObject) -> None:
    content = data.draw(st.sampled_from([b"text " * 100, random.Random(1).randbytes(400)]))
    packed = bytearray(member(content))
    bit = data.draw(st.integers(0, 8 * len(packed) - 1))
    packed[bit // 8] ^= 1 << bit % 8
    try:
        assert gzip.unpack(bytes(packed)) == content  # a bit that says nothing, such as the time
    except DamagedArchive:
        pass


@pytest.mark.parametrize("cut", [1, 9, 40])
def test_a_cut_or_doubled_member_is_damaged(cut: int) -> None:
    packed = member(os.urandom(500))
    for wrong in (packed[:-cut], packed + packed, b"", packed[:cut]):
        with pytest.raises(DamagedArchive):
            gzip.unpack(wrong)


def test_a_member_that_claims_a_small_size_does_not_fill_the_memory() -> None:
    bomb = bytearray(member(bytes(gzip.LARGE_CHUNK)))
    bomb[-4:] = struct.pack("<L", 1)
    with pytest.raises(DamagedArchive):
        gzip.unpack(bytes(bomb))


def test_a_member_that_claims_gigabytes_is_none_of_ours() -> None:
    packed = bytearray(member(b"x"))
    packed[gzip.HEADER_BYTES - 4 : gzip.HEADER_BYTES] = struct.pack("<L", 2**32 - 1)
    assert gzip.member_bytes(bytes(packed)) is None


def test_the_footer_tells_where_things_are() -> None:
    footer = gzip.footer(10, 2**40, 2**41)
    assert len(footer) == gzip.FOOTER_BYTES
    assert gzip.read_footer(footer) == gzip.Footer(10, 2**40, 2**41 + len(footer))
    for wrong in (footer[:-1], b"\0" + footer[1:], member(b"x" * gzip.FOOTER_BYTES)[-gzip.FOOTER_BYTES :], b""):
        assert gzip.read_footer(wrong) is None


def test_gunzip_reads_members_gaps_and_footer_as_one_file() -> None:
    whole = b""
    for data in CASES.values():
        whole += gzip.padding(len(whole)) + member(data)
    whole += gzip.footer(1, 2, len(whole))
    for program in ("gzip", "busybox"):
        argv = [program, "-dc"] if program == "gzip" else [program, "gzip", "-dc"]
        unpacked = subprocess.run(argv, input=whole, capture_output=True, check=True)
        assert unpacked.stdout == b"".join(CASES.values())

"""gzip (RFC 1952) in many members: each can be made, checked and found by itself, and any gunzip reads them all.

Every member carries an FEXTRA subfield ``MB`` with its own length, as bgzip does with ``BC`` (SAM specification,
4.1), so that a reader hops from member to member without inflating, and inflates on all cores.
"""

from __future__ import annotations

import struct
import zlib
from contextlib import suppress
from dataclasses import dataclass

from isal import isal_zlib

from memu_backup.errors import DamagedArchive

Buffer = bytes | memoryview

LARGE_CHUNK = 4 * 1024 * 1024
"""Content of one member at most, before compression."""

ALIGNMENT = 4096
"""Block size at which btrfs and XFS can share content between two archives."""

MEMBER_LIMIT = 2 * LARGE_CHUNK
"""No member of ours is longer, packed or unpacked; what claims to be is not read into memory."""

_START = struct.Struct("<4sLBBH")  # magic, method and flags; mtime; xfl; os; length of the extra field
_OWN_LENGTH = struct.Struct("<2sHL")
_SUBFIELD = struct.Struct("<2sH")
_TRAILER = struct.Struct("<LL")
_BLOCK_START = struct.Struct("<BHH")  # of a stored block: whether it is the last, its length, and that inverted
_MAGIC = b"\x1f\x8b\x08\x04"  # deflate, FEXTRA set
_EMPTY_DEFLATE = b"\x03\x00"
_STORED_BLOCK = 0xFFFF
HEADER_BYTES = _START.size + _OWN_LENGTH.size
_FOOTER = struct.Struct("<HQQQ")
_FOOTER_VERSION = 1
_LEVEL = 1  # isal's own levels: 1 is within 1 % of the size of 2 and 3 on text, at their speed or thrice it


def _header(member_bytes: int, more: bytes = b"") -> bytes:
    own = _OWN_LENGTH.pack(b"MB", 4, member_bytes)
    return _START.pack(_MAGIC, 0, 0, 255, len(own) + len(more)) + own + more


def pack(data: Buffer) -> list[Buffer]:
    """One member that holds ``data``, as buffers to write one after another.

    What does not shrink is stored. What was compressed is inflated again with the standard library's zlib, which is
    not the library that compressed it, and stored where the two disagree. The checksum is always zlib's, and where
    content is stored the other library compares it: what both agree on, any gunzip takes.
    """
    if _shrinks(data):
        deflated = isal_zlib.compress(data, _LEVEL, wbits=-15)
        if len(deflated) < len(data) * 0.97 and zlib.decompress(deflated, -15, len(data)) == data:
            trailer = _TRAILER.pack(zlib.crc32(data), len(data))
            return [_header(HEADER_BYTES + len(deflated) + len(trailer)), deflated, trailer]
    return _stored(data)


def _shrinks(data: Buffer) -> bool:
    """Judged by three samples: most bytes of a household are photos and films, which only cost time to squeeze."""
    size, sample = len(data), 16 * 1024
    if size <= 4 * sample:
        return size > 0
    view = memoryview(data)
    starts = (0, size // 2, size - sample)
    return any(len(isal_zlib.compress(view[s : s + sample], 0, wbits=-15)) < sample * 0.9 for s in starts)


def _stored(data: Buffer) -> list[Buffer]:
    """Deflate's stored blocks (RFC 1951, 3.2.4): the bytes as they are, without one copy of them."""
    view = memoryview(data)
    blocks: list[Buffer] = []
    for start in range(0, max(len(view), 1), _STORED_BLOCK):
        block = view[start : start + _STORED_BLOCK]
        last = start + _STORED_BLOCK >= len(view)
        blocks += [_BLOCK_START.pack(last, len(block), len(block) ^ 0xFFFF), block]
    trailer = _TRAILER.pack(zlib.crc32(view), len(view))
    total = HEADER_BYTES + sum(len(b) for b in blocks) + len(trailer)
    return [_header(total), *blocks, trailer]


def padding(offset: int) -> bytes:
    """An empty member that makes what follows ``offset`` start at a multiple of ALIGNMENT; nothing where it does."""
    gap = -offset % ALIGNMENT
    if gap == 0:
        return b""
    fixed = HEADER_BYTES + _SUBFIELD.size + len(_EMPTY_DEFLATE) + _TRAILER.size
    if gap < fixed:
        gap += ALIGNMENT
    filler = gap - fixed
    return _header(gap, _SUBFIELD.pack(b"MP", filler) + bytes(filler)) + _EMPTY_DEFLATE + _TRAILER.pack(0, 0)


@dataclass(frozen=True, slots=True)
class Footer:
    """Where the last member of an archive says things are: offsets of gzip members, and the length of the whole."""

    manifest_offset: int
    index_offset: int
    archive_bytes: int


FOOTER_BYTES = HEADER_BYTES + _SUBFIELD.size + _FOOTER.size + len(_EMPTY_DEFLATE) + _TRAILER.size


def footer(manifest_offset: int, index_offset: int, offset: int) -> bytes:
    """The empty member that ends an archive; ``offset`` is where it stands."""
    body = _FOOTER.pack(_FOOTER_VERSION, manifest_offset, index_offset, offset + FOOTER_BYTES)
    extra = _SUBFIELD.pack(b"MF", len(body)) + body
    return _header(FOOTER_BYTES, extra) + _EMPTY_DEFLATE + _TRAILER.pack(0, 0)


def read_footer(tail: bytes) -> Footer | None:
    """The footer out of an archive's last FOOTER_BYTES bytes, None where they are something else."""
    if len(tail) != FOOTER_BYTES or member_bytes(tail) != FOOTER_BYTES:
        return None
    name, length = _SUBFIELD.unpack_from(tail, HEADER_BYTES)
    if name != b"MF" or length != _FOOTER.size:
        return None
    version, manifest_offset, index_offset, archive_bytes = _FOOTER.unpack_from(tail, HEADER_BYTES + _SUBFIELD.size)
    if version != _FOOTER_VERSION:
        return None
    return Footer(manifest_offset, index_offset, archive_bytes)


def member_bytes(start: Buffer) -> int | None:
    """The length of the member that begins with ``start`` (HEADER_BYTES of it), None for a gzip of someone else."""
    if len(start) < HEADER_BYTES:
        return None
    magic, _, _, _, extra = _START.unpack_from(start)
    if magic != _MAGIC or extra < _OWN_LENGTH.size:
        return None
    name, length, total = _OWN_LENGTH.unpack_from(start, _START.size)
    ours = name == b"MB" and length == 4 and HEADER_BYTES + _TRAILER.size <= total <= MEMBER_LIMIT
    return total if ours else None


def unpack(member: Buffer) -> bytes:
    """The content of one whole member, its checksum and length compared. Raises DamagedArchive.

    By the fast library, with zlib's checksum; where these do not agree zlib has the last word, by which it was looked
    at when it was made.
    """
    try:
        (checksum, size) = _TRAILER.unpack_from(member, len(member) - _TRAILER.size)
        # Both would copy these byte by byte, which they need not look at.
        if (data := _unstored(member)) is not None:
            if len(data) == size and (isal_zlib.crc32(data) == checksum or zlib.crc32(data) == checksum):
                return data
            raise DamagedArchive("a compressed block is damaged")
        # The size is a stranger's word: it bounds what is inflated and never reserves more than a member may hold.
        most = min(size, MEMBER_LIMIT) + 1
        with suppress(isal_zlib.IsalError):  # type: ignore[arg-type]  # the library's types call it an instance
            fast = isal_zlib.decompressobj(31)
            data = fast.decompress(member, most)
            if fast.eof and not fast.unused_data and (zlib.crc32(data), len(data)) == (checksum, size):
                return data
        inflater = zlib.decompressobj(31)
        data = inflater.decompress(member, most)
    except (zlib.error, struct.error) as error:
        raise DamagedArchive("a compressed block is damaged") from error
    if not inflater.eof or inflater.unused_data:
        raise DamagedArchive("a compressed block is damaged")
    return data


def _unstored(member: Buffer) -> bytes | None:
    """The content of a member that is stored blocks and nothing else, unchecked; None for every other."""
    view = memoryview(member)
    position = _START.size + _START.unpack_from(view)[4]
    blocks: list[memoryview] = []
    last = 0
    while not last:
        last, length, inverse = _BLOCK_START.unpack_from(view, position)
        if last > 1 or length != inverse ^ 0xFFFF:
            return None
        position += _BLOCK_START.size
        blocks.append(view[position : position + length])
        position += length
    return b"".join(blocks) if position == len(view) - _TRAILER.size else None

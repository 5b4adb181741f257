"""Reads a tar stream of anyone's making, and takes none of its numbers on trust.

Knows ustar, pax and GNU's long names, and files with holes in the way of pax 1.0. Sources: see ``tar``.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace

from memu_backup.errors import DamagedArchive, HostileArchive, NotAnArchive
from memu_backup.files import shown
from memu_backup.formats.tar import BLOCK, XATTR, Header, Type, byte_sum

_PAX_LIMIT = 8 * 1024 * 1024
"""No honest header is larger: a path is at most 4 KiB, all attributes of a file at most 64 KiB on ext4."""

_SPARSE_MAP_LIMIT = 64 * 1024 * 1024
_TIME_LIMIT_NS = 2**62 * 10**9
_ZEROS = 1024 * 1024

_TYPES = {b"0": Type.FILE, b"\0": Type.FILE, b"7": Type.FILE, b"1": Type.HARDLINK, b"2": Type.SYMLINK}
_TYPES[b"5"] = Type.DIRECTORY


class Reader:
    """Reads a tar stream once, front to back: ``for header, content in Reader(blocks)``.

    ``content`` yields the stored bytes of that entry (without a sparse map) and is drained by itself where it is not
    read. Raises NotAnArchive when the very first block is no tar header, DamagedArchive for a broken later one,
    HostileArchive for a header beyond all bounds.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = memoryview(b"")
        self._short = False

    def __iter__(self) -> Iterator[tuple[Header, Iterator[memoryview]]]:
        first = True
        while (found := self._header(first)) is not None:
            first = False
            header, size = found
            content = self._content(header.stored_bytes)
            yield header, content
            for _ in content:
                pass
            self._skip(-size % BLOCK)
        # Whatever follows the end is read to its end too: it belongs to the file whose checksums are being compared.
        for _ in self._blocks:
            pass

    def _header(self, first: bool) -> tuple[Header, int] | None:
        """The next entry with the size that the archive gives it, None at the end of the archive."""
        pax: dict[str, bytes] = {}
        long_name = long_link = b""
        while True:
            block = self._exactly(BLOCK) if not first else self._first_block()
            if block == bytes(BLOCK):
                return None
            raw = _parse(block, first)
            first = False
            if raw.flag in (b"x", b"g", b"L", b"K"):
                body = self._body(raw.size)
                if raw.flag == b"x":
                    pax.update(_parse_pax(body))
                elif raw.flag == b"L":
                    long_name = body.rstrip(b"\0")
                elif raw.flag == b"K":
                    long_link = body.rstrip(b"\0")
                continue
            return self._complete(raw, pax, long_name, long_link)

    def _first_block(self) -> bytes:
        try:
            return self._exactly(BLOCK)
        except DamagedArchive:
            if self._short:
                raise NotAnArchive("it holds no tar archive") from None
            raise

    def _complete(self, raw: _Raw, pax: dict[str, bytes], name: bytes, link: bytes) -> tuple[Header, int]:
        size = _bounded(_int(pax["size"]) if "size" in pax else raw.size)
        if raw.flag == b"S":
            raise _old_sparse(raw.name)
        path = pax.get("GNU.sparse.name") or pax.get("path") or name or raw.name
        kind = _TYPES.get(raw.flag, Type.OTHER)
        if kind is Type.FILE and path.endswith(b"/"):  # as the first tars told folders
            kind = Type.DIRECTORY
        header = Header(
            path=os.fsdecode(path.rstrip(b"/") if kind is Type.DIRECTORY else path),
            type=kind,
            size_bytes=size if kind is Type.FILE else 0,
            mode=raw.mode & 0o7777,
            uid=_identity(_int(pax["uid"]) if "uid" in pax else raw.uid),
            gid=_identity(_int(pax["gid"]) if "gid" in pax else raw.gid),
            user=pax.get("uname", raw.user).decode(errors="replace"),
            group=pax.get("gname", raw.group).decode(errors="replace"),
            mtime_ns=_bounded(_nanoseconds(pax["mtime"]) if "mtime" in pax else raw.mtime * 10**9, _TIME_LIMIT_NS),
            link=os.fsdecode(pax.get("linkpath") or link or raw.link),
            xattrs={_unescaped(k.removeprefix(XATTR)): v for k, v in pax.items() if k.startswith(XATTR)},
        )
        if kind is not Type.FILE:
            # Links and folders have no content; a size there (some old tars) is the file's and nothing follows.
            if kind is Type.OTHER and size:
                self._skip(size)
                return header, size
            return header, 0
        if any(k.startswith("GNU.sparse.") for k in pax):
            return self._sparse(header, pax, size), size
        return header, size

    def _sparse(self, header: Header, pax: dict[str, bytes], size: int) -> Header:
        if pax.get("GNU.sparse.major") != b"1" or pax.get("GNU.sparse.minor") != b"0":
            raise _old_sparse(os.fsencode(header.path))
        extents, map_bytes = self._sparse_extents(size)
        real = _bounded(_int(pax.get("GNU.sparse.realsize", b"0")))
        stored, end = 0, 0
        for offset, length in extents:
            if offset < end or length < 0 or offset + length > real:
                raise DamagedArchive(f"the map of holes of {shown(header.path)} is damaged")
            stored, end = stored + length, offset + length
        if map_bytes + stored != size:
            raise DamagedArchive(f"the map of holes of {shown(header.path)} is damaged")
        return replace(header, size_bytes=real, extents=extents)

    def _sparse_extents(self, size: int) -> tuple[tuple[tuple[int, int], ...], int]:
        text, wanted, map_bytes = b"", 1, 0
        numbers: list[int] = []
        while len(numbers) < wanted:
            if map_bytes >= min(size, _SPARSE_MAP_LIMIT):
                raise DamagedArchive("a map of holes is damaged")
            text += self._exactly(BLOCK)
            map_bytes += BLOCK
            *lines, text = text.split(b"\n")
            numbers += [_int(line) for line in lines]
            if numbers:
                wanted = 1 + 2 * numbers[0]
        flat = numbers[1:wanted]
        return tuple(zip(flat[::2], flat[1::2], strict=True)), map_bytes

    def _content(self, size: int) -> Iterator[memoryview]:
        while size:
            part = self._some(size)
            size -= len(part)
            yield part

    def _some(self, limit: int) -> memoryview:
        while not self._rest:
            block = next(self._blocks, None)
            if block is None:
                self._short = True
                raise DamagedArchive("it ends too early; a part of it is missing")
            self._rest = memoryview(block)
        part, self._rest = self._rest[:limit], self._rest[limit:]
        return part

    def _exactly(self, size: int) -> bytes:
        part = self._some(size)
        if len(part) == size:
            return bytes(part)
        parts = [bytes(part)]
        got = len(part)
        while got < size:
            parts.append(bytes(self._some(size - got)))
            got += len(parts[-1])
        return b"".join(parts)

    def _body(self, size: int) -> bytes:
        if size > _PAX_LIMIT:
            raise HostileArchive(
                f"It holds a header of {size} bytes, which no honest archive does; nothing was unpacked."
            )
        body = self._exactly(size)
        self._skip(-size % BLOCK)
        return body

    def _skip(self, size: int) -> None:
        while size:
            size -= len(self._some(size))


def unfold(header: Header, stored: Iterator[memoryview]) -> Iterator[bytes | memoryview]:
    """The content of a file as its readers see it: stored stretches in their places, zeros between."""
    if header.extents is None:
        yield from stored
        return
    zeros = bytes(_ZEROS)
    position = 0
    extents = iter(header.extents)
    left = 0
    for block in stored:
        while block:
            while left == 0:
                offset, left = next(extents)
                for start in range(position, offset, _ZEROS):
                    yield zeros[: min(_ZEROS, offset - start)]
                position = offset
            part, block = block[:left], block[left:]
            yield part
            position, left = position + len(part), left - len(part)
    for start in range(position, header.size_bytes, _ZEROS):
        yield zeros[: min(_ZEROS, header.size_bytes - start)]


@dataclass(frozen=True, slots=True)
class _Raw:
    name: bytes
    mode: int
    uid: int
    gid: int
    size: int
    mtime: int
    flag: bytes
    link: bytes
    user: bytes
    group: bytes


def _parse(block: bytes, first: bool) -> _Raw:
    try:
        checksum = int(block[148:156].strip(b" \0") or b"-1", 8)
    except ValueError:
        checksum = -1
    if checksum != byte_sum(block[:148] + b"        " + block[156:]):
        if first:
            raise NotAnArchive("it holds no tar archive")
        raise DamagedArchive("the description of an entry is damaged")
    name = _text(block[0:100])
    if block[257:263] == b"ustar\0" and block[345]:
        name = _text(block[345:500]) + b"/" + name
    size = _field(block[124:136])
    if size < 0:
        raise DamagedArchive("the description of an entry is damaged")
    return _Raw(
        name, _field(block[100:108]), _field(block[108:116]), _field(block[116:124]), size, _field(block[136:148]),
        block[156:157], _text(block[157:257]), _text(block[265:297]), _text(block[297:329]),
    )  # fmt: skip


def _text(value: bytes) -> bytes:
    return value.partition(b"\0")[0]


def _field(value: bytes) -> int:
    if value[0] & 0x80:
        number = int.from_bytes(value, "big") & ((1 << (8 * len(value) - 1)) - 1)
        return number - (1 << (8 * len(value) - 1)) if value[0] & 0x40 else number
    try:
        return int(value.strip(b" \0") or b"0", 8)
    except ValueError as error:
        raise DamagedArchive("the description of an entry is damaged") from error


def _int(value: bytes) -> int:
    if not value.isdigit() or len(value) > 20:
        raise DamagedArchive("a number in the description of an entry is damaged")
    return int(value)


def _bounded(value: int, limit: int = 2**63 - 1) -> int:
    """Numbers that no kernel takes, refused here rather than met as an OverflowError while unpacking."""
    if abs(value) > limit:
        raise DamagedArchive("a number in the description of an entry is beyond all bounds")
    return value


def _identity(value: int) -> int:
    """A user's or group's number; the highest one and negative ones mean "leave it" to chown(2)."""
    if not 0 <= value < 2**32 - 1:
        raise DamagedArchive("an owner in the description of an entry is beyond all bounds")
    return value


def _unescaped(key: str) -> str:
    return key.replace("%3D", "=").replace("%25", "%")


def _old_sparse(name: bytes) -> NotAnArchive:
    return NotAnArchive(
        f"{shown(os.fsdecode(name))} is stored in an older way of writing files with holes, which only GNU tar reads"
    )


def _nanoseconds(value: bytes) -> int:
    whole, _, part = value.partition(b".")
    negative = whole.startswith(b"-")
    if len(part) > 64:
        raise DamagedArchive("a time in the description of an entry is damaged")
    nanoseconds = _int(whole.removeprefix(b"-") or b"0") * 10**9 + (_int(part[:9].ljust(9, b"0")) if part else 0)
    return -nanoseconds if negative else nanoseconds


def _parse_pax(body: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    position = 0
    while position < len(body):
        space = body.find(b" ", position, position + 12)
        length = _int(body[position:space]) if space > position else 0
        record = body[space + 1 : position + length]
        key, equals, value = record[:-1].partition(b"=")
        ends_inside = space - position < length <= len(body) - position
        if not ends_inside or not equals or record[-1:] != b"\n":
            raise DamagedArchive("the description of an entry is damaged")
        records[key.decode(errors="surrogateescape")] = value
        position += length
    return records

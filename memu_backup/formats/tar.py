"""tar headers, both ways: POSIX.1-2001 (pax) as written here; ustar, pax and GNU long names as read.

Sources: POSIX pax, "Extended Interchange Format"; GNU tar manual, "Basic Tar Format" and "PAX Format, Version 1.0" for
files with holes; star(5) for ``SCHILY.xattr.*``. Python's tarfile is not used: it drops extended attributes, unfolds
holes, and raises where a file shrinks under it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum

from memu_backup.errors import DamagedArchive, HostileArchive, NotAnArchive

BLOCK = 512
END = bytes(2 * BLOCK)
_PAX_LIMIT = 8 * 1024 * 1024
"""No honest header is larger: a path is at most 4 KiB, all attributes of a file at most 64 KiB on ext4."""

_SPARSE_MAP_LIMIT = 64 * 1024 * 1024


class Type(StrEnum):
    """What an entry is. OTHER is a device, a pipe, or something we never heard of: named, never unpacked."""

    FILE = "file"
    DIRECTORY = "directory"
    SYMLINK = "symlink"
    HARDLINK = "hardlink"
    OTHER = "other"


@dataclass(frozen=True, slots=True)
class Header:
    """One entry. ``path`` has no slash at its end; names that are not UTF-8 hold surrogates (``os.fsdecode``).

    ``size_bytes`` is the file's own size. Where ``extents`` is given (offset, length), only those stretches of it
    follow in the archive, after a map of them.
    """

    path: str
    type: Type
    size_bytes: int = 0
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    user: str = ""
    group: str = ""
    mtime_ns: int = 0
    link: str = ""
    xattrs: Mapping[str, bytes] = field(default_factory=dict)
    extents: tuple[tuple[int, int], ...] | None = None

    @property
    def stored_bytes(self) -> int:
        """Bytes of content that follow in the archive, without a sparse map and without padding."""
        if self.type is not Type.FILE:
            return 0
        return self.size_bytes if self.extents is None else sum(length for _, length in self.extents)


_TYPE_FLAGS = {Type.FILE: b"0", Type.HARDLINK: b"1", Type.SYMLINK: b"2", Type.DIRECTORY: b"5"}
_TYPES = {b"0": Type.FILE, b"\0": Type.FILE, b"7": Type.FILE, b"1": Type.HARDLINK, b"2": Type.SYMLINK}
_TYPES[b"5"] = Type.DIRECTORY


def padding(size_bytes: int) -> bytes:
    """What fills the last block of ``size_bytes`` of content."""
    return bytes(-size_bytes % BLOCK)


# --- writing ---------------------------------------------------------------------------------------------------------


def encode(header: Header) -> bytes:
    """The blocks that stand before the content: a pax header where it is needed, the ustar one, a sparse map."""
    path = os.fsencode(header.path)
    name = path + (b"/" if header.type is Type.DIRECTORY else b"")
    link = os.fsencode(header.link)
    records: list[tuple[str, bytes]] = []
    size, sparse_map = header.stored_bytes, b""
    if header.extents is not None:
        sparse_map = _sparse_map(header.extents)
        size += len(sparse_map)
        records += [
            ("GNU.sparse.major", b"1"),
            ("GNU.sparse.minor", b"0"),
            ("GNU.sparse.name", name),
            ("GNU.sparse.realsize", str(header.size_bytes).encode()),
        ]
        folder, _, base = path.rpartition(b"/")
        name = b"/".join(filter(None, (folder, b"GNUSparseFile.0", base)))
    fields = _split(name)
    if fields is None:
        records.append(("path", name))
        fields = (name[:100], b"")
    if len(link) > 100:
        records.append(("linkpath", link))
    if header.mtime_ns % 10**9 or not 0 <= header.mtime_ns < 8**11 * 10**9:
        records.append(("mtime", _seconds(header.mtime_ns)))
    for key, value in (("size", size), ("uid", header.uid), ("gid", header.gid)):
        if value >= 8 ** (11 if key == "size" else 7):
            records.append((key, str(value).encode()))
    user, group = header.user.encode(), header.group.encode()
    if len(user) > 31:
        records.append(("uname", user))
    if len(group) > 31:
        records.append(("gname", group))
    records += [(f"SCHILY.xattr.{key}", value) for key, value in sorted(header.xattrs.items())]
    block = _block(fields, _TYPE_FLAGS[header.type], size, header, link[:100], user[:31], group[:31])
    return _pax(records, path) + block + sparse_map


def _split(name: bytes) -> tuple[bytes, bytes] | None:
    """ustar's name (100 bytes) and prefix (155), None where the path fits neither way."""
    if len(name) <= 100:
        return name, b""
    for at in range(len(name) - 101, min(155, len(name) - 2) + 1):
        if name[at : at + 1] == b"/" and at > 0:
            return name[at + 1 :], name[:at]
    return None


def _seconds(time_ns: int) -> bytes:
    sign, time_ns = ("-", -time_ns) if time_ns < 0 else ("", time_ns)
    return f"{sign}{time_ns // 10**9}.{time_ns % 10**9:09d}".encode()


def _number(value: int, width: int) -> bytes:
    """Octal where it fits, else base-256 (GNU and star), which older programs read and pax does not mind."""
    if 0 <= value < 8 ** (width - 1):
        return b"%0*o\0" % (width - 1, value)
    return (value + (1 << 8 * width) * (value < 0) | (0x80 << 8 * (width - 1))).to_bytes(width, "big")


def _block(
    name: tuple[bytes, bytes], flag: bytes, size: int, header: Header | None, link: bytes, user: bytes, group: bytes
) -> bytes:
    mode, uid, gid, mtime = (
        (header.mode & 0o7777, header.uid, header.gid, header.mtime_ns // 10**9) if header else (0o600, 0, 0, 0)
    )
    block = bytearray(
        name[0].ljust(100, b"\0")
        + _number(mode, 8)
        + _number(uid, 8)
        + _number(gid, 8)
        + _number(size, 12)
        + _number(mtime, 12)
        + b"        "
        + flag
        + link.ljust(100, b"\0")
        + b"ustar\x0000"
        + user.ljust(32, b"\0")
        + group.ljust(32, b"\0")
        + b"0000000\x000000000\0"
        + name[1].ljust(155, b"\0")
    ).ljust(BLOCK, b"\0")
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def _pax(records: list[tuple[str, bytes]], path: bytes) -> bytes:
    if not records:
        return b""
    if any(not _is_utf8(value) for key, value in records if not key.startswith("SCHILY")):
        # Said as POSIX wants it; GNU tar would warn of a keyword it does not know, so only where it is true.
        records = [("hdrcharset", b"BINARY"), *records]
    body = b"".join(_record(key.encode(), value) for key, value in records)
    name = b"PaxHeaders/" + path.rpartition(b"/")[2][:80]
    return _block((name, b""), b"x", len(body), None, b"", b"", b"") + body + padding(len(body))


def _record(key: bytes, value: bytes) -> bytes:
    """``LENGTH KEY=VALUE\\n``, where the length counts its own digits too."""
    rest = len(key) + len(value) + 3
    length = rest + len(str(rest))
    length = rest + len(str(length))
    return b"%d %s=%s\n" % (length, key, value)


def _is_utf8(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _sparse_map(extents: tuple[tuple[int, int], ...]) -> bytes:
    numbers = [len(extents), *(n for extent in extents for n in extent)]
    body = b"".join(b"%d\n" % n for n in numbers)
    return body + padding(len(body))


# --- reading ---------------------------------------------------------------------------------------------------------


class Reader:
    """Reads a tar stream once, front to back: ``for header, content in Reader(blocks)``.

    ``content`` yields the stored bytes of that entry (without a sparse map) and is drained by itself where it is not
    read. Raises NotAnArchive when the very first block is no tar header, DamagedArchive for a broken later one,
    HostileArchive for a header beyond all bounds.
    """

    def __init__(self, blocks: Iterable[bytes]) -> None:
        self._blocks = iter(blocks)
        self._rest = memoryview(b"")
        self._ended = False

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
            block = self._exactly(BLOCK)
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

    def _complete(self, raw: _Raw, pax: dict[str, bytes], name: bytes, link: bytes) -> tuple[Header, int]:
        size = _int(pax["size"]) if "size" in pax else raw.size
        path = pax.get("GNU.sparse.name") or pax.get("path") or name or raw.name
        kind = _TYPES.get(raw.flag, Type.OTHER)
        if kind is Type.FILE and path.endswith(b"/"):  # as the first tars told folders
            kind = Type.DIRECTORY
        header = Header(
            path=os.fsdecode(path.rstrip(b"/") if kind is Type.DIRECTORY else path),
            type=kind,
            size_bytes=size if kind is Type.FILE else 0,
            mode=raw.mode & 0o7777,
            uid=_int(pax["uid"]) if "uid" in pax else raw.uid,
            gid=_int(pax["gid"]) if "gid" in pax else raw.gid,
            user=pax.get("uname", raw.user).decode(errors="replace"),
            group=pax.get("gname", raw.group).decode(errors="replace"),
            mtime_ns=_nanoseconds(pax["mtime"]) if "mtime" in pax else raw.mtime * 10**9,
            link=os.fsdecode(pax.get("linkpath") or link or raw.link),
            xattrs={k.removeprefix("SCHILY.xattr."): v for k, v in pax.items() if k.startswith("SCHILY.xattr.")},
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
            raise NotAnArchive(
                f"{header.path} is stored in an older way of writing files with holes; use GNU tar for it."
            )
        extents, map_bytes = self._sparse_extents(size)
        real = _int(pax.get("GNU.sparse.realsize", b"0"))
        stored, end = 0, 0
        for offset, length in extents:
            if offset < end or length < 0 or offset + length > real:
                raise DamagedArchive(f"the map of holes of {header.path} is damaged")
            stored, end = stored + length, offset + length
        if map_bytes + stored != size:
            raise DamagedArchive(f"the map of holes of {header.path} is damaged")
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
    if checksum != sum(block) - sum(block[148:156]) + 8 * 32:
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
        if length <= space - position or not equals or record[-1:] != b"\n":
            raise DamagedArchive("the description of an entry is damaged")
        records[key.decode(errors="surrogateescape")] = value
        position += length
    return records


def from_status(path: str, status: os.stat_result, kind: Type, user: str, group: str) -> Header:
    """A header for something on disk, without its links, attributes and holes."""
    return Header(
        path=path,
        type=kind,
        size_bytes=status.st_size if kind is Type.FILE else 0,
        mode=stat.S_IMODE(status.st_mode),
        uid=status.st_uid,
        gid=status.st_gid,
        user=user,
        group=group,
        mtime_ns=status.st_mtime_ns,
    )

"""tar headers as written here: POSIX.1-2001 (pax), which is ustar where that is enough (``untar`` reads them).

Sources: POSIX pax, "Extended Interchange Format"; GNU tar manual, "Basic Tar Format" and "PAX Format, Version 1.0" for
files with holes; star(5) for ``SCHILY.xattr.*``. Python's tarfile is not used: it drops extended attributes, unfolds
holes, and raises where a file shrinks under it.
"""

from __future__ import annotations

import os
import stat
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType

BLOCK = 512
END = bytes(2 * BLOCK)
XATTR = "SCHILY.xattr."


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


def padding(size_bytes: int) -> bytes:
    """What fills the last block of ``size_bytes`` of content."""
    return bytes(-size_bytes % BLOCK)


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
    user, group = os.fsencode(header.user), os.fsencode(header.group)
    if len(user) > 31:
        records.append(("uname", user))
    if len(group) > 31:
        records.append(("gname", group))
    records += [(XATTR + _escaped(key), value) for key, value in sorted(header.xattrs.items())]
    block = _block(fields, _TYPE_FLAGS[header.type], size, header, link[:100], user[:31], group[:31])
    return _pax(records, path) + block + sparse_map


def _escaped(key: str) -> str:
    """An attribute's name as GNU tar writes it: the first ``=`` of a record ends its key."""
    return key.replace("%", "%25").replace("=", "%3D")


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
    block[148:156] = b"%06o\0 " % byte_sum(bytes(block))
    return bytes(block)


def byte_sum(block: bytes) -> int:
    """The sum of the bytes of a header, which is its checksum; several times in each entry, so not by ``sum``.

    The lower half of Adler-32 (RFC 1950) is one more than the sum, modulo 65521, which 256 bytes do not reach.
    """
    half = BLOCK // 2
    return (zlib.adler32(block[:half]) & 0xFFFF) + (zlib.adler32(block[half:]) & 0xFFFF) - 2


def _pax(records: list[tuple[str, bytes]], path: bytes) -> bytes:
    if not records:
        return b""
    if any(not _is_utf8(value) for key, value in records if not key.startswith("SCHILY")):
        # Said as POSIX wants it; GNU tar would warn of a keyword it does not know, so only where it is true.
        records = [("hdrcharset", b"BINARY"), *records]
    body = b"".join(_record(os.fsencode(key), value) for key, value in records)
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


def from_status(
    path: str,
    status: os.stat_result,
    kind: Type,
    user: str,
    group: str,
    xattrs: Mapping[str, bytes] = MappingProxyType({}),
) -> Header:
    """A header for something on disk, without its link and holes."""
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
        xattrs=xattrs,
    )

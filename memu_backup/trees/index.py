"""The index of a tree: one line an entry, with all that its header says.

JSON Lines, in the order of the walk. The first line names the format and the columns, each further one is an array in
that order.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO, Any

from memu_backup.errors import DamagedArchive
from memu_backup.formats.tar import Header, Type

NAME = "index.jsonl"
FORMAT = "memu-backup-tree/1"
COLUMNS = (
    "path", "type", "size_bytes", "mode", "uid", "gid", "user", "group", "mtime_ns", "link", "xattrs", "extents",
    "sha256", "since", "inode", "ctime_ns",
)  # fmt: skip
_TYPES: dict[str, Type] = {kind.value: kind for kind in Type}
_decode = json.JSONDecoder().raw_decode
_encode = json.JSONEncoder(separators=(",", ":")).encode


@dataclass(frozen=True, slots=True)
class Line:
    """One entry. ``since`` is the backup that its content was written for, empty where that is this one.

    ``inode`` and ``ctime_ns`` are those of the file on the machine it came from, by which an unchanged one is known
    again; both 0 where it may have changed while it was read.
    """

    header: Header
    sha256: str
    since: str
    inode: int
    ctime_ns: int


def first_line(*, keeps_rights: bool) -> bytes:
    """``keeps_rights`` says whether the files beside it have the owners and rights that it tells."""
    return json.dumps({"format": FORMAT, "columns": COLUMNS, "keeps_rights": keeps_rights}).encode() + b"\n"


def encode(line: Line) -> bytes:
    h = line.header
    xattrs = {key: base64.b64encode(value).decode() for key, value in h.xattrs.items()} or None
    values = [
        h.path, h.type.value, h.size_bytes, h.mode, h.uid, h.gid, h.user, h.group, h.mtime_ns, h.link, xattrs,
        h.extents, line.sha256, line.since, line.inode, line.ctime_ns,
    ]  # fmt: skip
    return _encode(values).encode() + b"\n"


def begin_of(place: str) -> tuple[bytes, bytes]:
    """What the lines of the entry at ``place``, and of those below it, begin with."""
    begin = f"[{json.dumps(place)[:-1]}".encode()
    return begin + b'"', begin + b"/"


def read_first(text: bytes) -> bool:
    """Whether it keeps rights. Raises DamagedArchive where an index does not begin as ours do."""
    try:
        head = json.loads(text)
        # A later version may say more of each entry, behind what this one knows.
        if head["format"] == FORMAT and tuple(head["columns"][: len(COLUMNS)]) == COLUMNS:
            return bool(head["keeps_rights"])
    except (ValueError, LookupError, TypeError):
        pass
    raise DamagedArchive("its index is of a kind that this version does not know")


def parse(text: bytes) -> Line:
    """One line. Raises DamagedArchive where it is none of ours."""
    try:
        values, end = _decode(text.decode())
        if text[end:].strip():
            raise ValueError
        return _line(*values[: len(COLUMNS)])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError, binascii.Error) as error:
        raise DamagedArchive("its index is damaged") from error


def _line(
    path: str,
    kind: str,
    size_bytes: int,
    mode: int,
    uid: int,
    gid: int,
    user: str,
    group: str,
    mtime_ns: int,
    link: str,
    xattrs: dict[str, str] | None,
    extents: list[Any] | None,
    sha256: str,
    since: str,
    inode: int,
    ctime_ns: int,
) -> Line:
    """Every value is of its type, and every number one that can be read at: the index may be a stranger's."""
    # Compared so, and not one by one: this is asked of each file each night.
    if not type(path) is type(user) is type(group) is type(link) is type(sha256) is type(since) is str:
        raise TypeError
    if not type(size_bytes) is type(mode) is type(uid) is type(gid) is type(inode) is int:
        raise TypeError
    if not type(mtime_ns) is type(ctime_ns) is int or (size_bytes | mode | uid | gid | inode) >> 63:
        raise ValueError
    header = Header(
        path=path,
        type=_TYPES[kind],
        size_bytes=size_bytes,
        mode=mode & 0o7777,
        uid=uid,
        gid=gid,
        user=user,
        group=group,
        mtime_ns=mtime_ns,
        link=link,
        xattrs={key: base64.b64decode(value, validate=True) for key, value in xattrs.items()} if xattrs else {},
        extents=None if extents is None else _stretches(extents, size_bytes),
    )
    return Line(header, sha256, since, inode, ctime_ns)


def _stretches(extents: list[Any], size_bytes: int) -> tuple[tuple[int, int], ...]:
    end, found = 0, []
    for start, length in extents:
        if type(start) is not int or type(length) is not int or start < end or length < 0:
            raise ValueError
        end = start + length
        found.append((start, length))
    if end > size_bytes:
        raise ValueError
    return tuple(found)


def same_rights(found: os.stat_result, header: Header) -> bool:
    return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (header.mode, header.uid, header.gid)


def lines(file: IO[bytes]) -> Iterator[tuple[int, bytes]]:
    """The lines of an open index with their offsets, from where it stands, without parsing them."""
    offset = file.tell()
    for text in file:
        yield offset, text
        offset += len(text)

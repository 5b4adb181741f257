"""The index: one line an entry, so that a file is found without reading what stands before it.

JSON Lines. The first line names the format and the columns, each further one is an array in that order.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from memu_backup.errors import DamagedArchive
from memu_backup.formats.tar import Type

NAME = "index.jsonl"
FORMAT = "memu-backup-index/1"
_LINE_LIMIT = 64 * 1024 * 1024
COLUMNS = ("path", "type", "size_bytes", "mode", "mtime_ns", "link", "sha256", "member", "inside", "content", "end")
_MORE = ("stored_bytes", "inode", "ctime_ns")
"""The next columns, which the first archives do not have."""

_TYPES: dict[str, Type] = {kind.value: kind for kind in Type}
_INTEGERS = {int}
_SHA256, _MEMBER, _END = (COLUMNS.index(name) for name in ("sha256", "member", "end"))
_decode = json.JSONDecoder().decode


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one entry lies and what to expect of it.

    Its headers begin ``inside`` bytes into the content of the gzip member at ``member``. Where ``content`` is not 0
    the file's content, and nothing else, fills the members from that offset of the archive to ``end``; else the
    content follows its headers. ``end`` is the offset of the first member that no longer belongs to the entry. All
    four are 0 in an archive without an index. ``stored_bytes`` is the size without holes, None where nobody tells.

    ``inode`` and ``ctime_ns`` are those of the file on the machine it came from, by which an unchanged one is known
    again; both 0 where it shares its member with others, may have changed while it was read, or has holes.
    """

    path: str
    type: Type
    size_bytes: int
    mode: int
    mtime_ns: int
    link: str
    sha256: str
    member: int
    inside: int
    content: int
    end: int
    stored_bytes: int | None
    inode: int = 0
    ctime_ns: int = 0

    @property
    def room_bytes(self) -> int:
        """What its content takes on a disk that knows of holes; at most, where that is not told."""
        return self.size_bytes if self.stored_bytes is None else self.stored_bytes


def first_line() -> bytes:
    return json.dumps({"format": FORMAT, "columns": COLUMNS + _MORE}).encode() + b"\n"


def line(entry: Entry) -> bytes:
    values = [
        entry.path, entry.type.value, entry.size_bytes, entry.mode, entry.mtime_ns, entry.link, entry.sha256,
        entry.member, entry.inside, entry.content, entry.end, entry.stored_bytes, entry.inode, entry.ctime_ns,
    ]  # fmt: skip
    return json.dumps(values, separators=(",", ":")).encode() + b"\n"


def parse(lines: Iterable[bytes], *, hashes: bool = True) -> Iterator[Entry]:
    """The entries of an index, without ``hashes`` with an empty ``sha256``. Raises DamagedArchive where a line is not
    one of ours.
    """
    lines = iter(lines)
    try:
        head = json.loads(next(lines, b"{}"))
        columns = tuple(head.get("columns", ()))
        # A later version may say more of each entry, behind what this one knows.
        if head.get("format") != FORMAT or columns[: len(COLUMNS)] != COLUMNS:
            raise DamagedArchive("its index is of a kind that this version does not know")
        known = len(COLUMNS)
        if columns[known : known + len(_MORE)] == _MORE:
            known += len(_MORE)
        elif columns[known : known + 1] == _MORE[:1]:
            known += 1
        member = end = 0
        for text in lines:
            values = _decode(text.decode())
            if len(values) != len(columns):
                raise ValueError
            if not hashes:
                values[_SHA256] = ""
            # Neighbours share their members: one number in memory for all of them, where there may be a million.
            member = values[_MEMBER] = member if values[_MEMBER] == member else values[_MEMBER]
            end = values[_END] = end if values[_END] == end else values[_END]
            yield _entry(*values[:known])
    except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
        raise DamagedArchive("its index is damaged") from error


def _entry(
    path: str,
    kind: str,
    size_bytes: int,
    mode: int,
    mtime_ns: int,
    link: str,
    sha256: str,
    member: int,
    inside: int,
    content: int,
    end: int,
    stored_bytes: int | None = None,
    inode: int = 0,
    ctime_ns: int = 0,
) -> Entry:
    """Every value is of its type, and every number one that can be read at: the index may be a stranger's.

    Written out, as it is done for a million files before one of them is found.
    """
    numbers = (size_bytes, mode, member, inside, content, end, inode, stored_bytes or 0)
    if not type(path) is type(link) is type(sha256) is str:
        raise TypeError
    if {*map(type, numbers), type(mtime_ns), type(ctime_ns)} != _INTEGERS or min(numbers) < 0 or max(numbers) >= 2**63:
        raise ValueError
    if stored_bytes == size_bytes:
        stored_bytes = size_bytes  # nearly always, and again one number for both
    return Entry(
        path, _TYPES[kind], size_bytes, mode, mtime_ns, link, sha256, member, inside, content, end,
        stored_bytes, inode, ctime_ns,
    )  # fmt: skip


def split(blocks: Iterable[bytes | memoryview]) -> Iterator[bytes]:
    """Blocks of bytes as lines. Raises DamagedArchive for a line that nobody of us wrote."""
    rest = b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
        if len(rest) > _LINE_LIMIT:
            raise DamagedArchive("its index is damaged")
    if rest:
        yield rest

#!/usr/bin/env python3
"""Gets things back out of a backup, on a computer that has Python 3.8 or later and nothing else of ours.

This one file lies on the drive beside the copies and is all there is, so it is longer than a file of ours should be
and knows the format by itself: https://www.rfc-editor.org/rfc/rfc1952 (gzip), POSIX pax, "GNU.sparse" 1.0, and for the
list at an archive's end, docs/format.md. An archive may be a stranger's and we may be root: all names are judged before
the first byte is written, the folder is empty when we begin, and links come last, so nothing is written through one.
"""

from __future__ import annotations

import errno
import fnmatch
import gzip
import hashlib
import io
import json
import os
import re
import shlex
import shutil
import sys
import tarfile
import time
import zlib
from typing import Any, BinaryIO, Callable, Iterator, NamedTuple

USAGE = """\
What you can type (restore.py lies on the drive; Ctrl-C stops it at any time):

  python3 restore.py                                which backups are here
  python3 restore.py list ARCHIVE [PATH ...]        what is in one
  python3 restore.py check [ARCHIVE]                is it whole? Without a name, the newest
  python3 restore.py restore ARCHIVE FOLDER [PATH ...]
                                                    everything, or only these, into a new or empty folder

ARCHIVE is a name as the first of these shows it. PATH is a name as `list` shows it: a file, a folder with all that is
in it, or a pattern in quotes, such as '*.jpg' or 'photos/2024/*'. Nothing on the drive is ever changed."""

OWN = ("SHA256SUMS", "metadata.json", "index.jsonl")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]*_(\d{4})(\d\d)(\d\d)_(\d\d)(\d\d)(\d\d)(?:_(\d+))?\.tar\.gz")
PART = re.compile(r"(.*\.tar\.gz)\.part(\d{3,4})", re.DOTALL)
BLOCK = 512
AT_ONCE = 1 << 20
HEADER_LIMIT = 8 << 20  # no honest header is larger
LIST_LIMIT = 1 << 30
MOST = 10_000_000  # entries; more than any household has
DEEPEST = 1100  # folders inside folders
FOOTER = 60
DIFFERS = "its content is not what was saved"


class Refused(Exception):
    """Ends the program: a sentence for the person, and the exit status."""

    def __init__(self, sentence: str, status: int = 1) -> None:
        super().__init__(sentence)
        self.status = status


class Damaged(Exception):
    """What was to be read here cannot be read."""


class Entry(NamedTuple):
    """A file, directory, symlink or hardlink in the archive; `other` is anything else. Times in nanoseconds."""

    path: str
    type: str
    size: int = 0
    link: str = ""
    mode: int = 0
    mtime_ns: int = 0
    uid: int = 0
    gid: int = 0
    attributes: tuple[tuple[str, bytes], ...] = ()
    extents: tuple[tuple[int, int], ...] = ()  # the stretches that are stored, as (offset, length)
    sha256: str = ""
    member: int = -1  # where in the archive its gzip member begins, -1 where nobody tells
    inside: int = 0  # and where in the content of that its header does
    stored: int = 0  # what it takes on a disk that knows of holes


def say(text: str = "") -> None:
    print(text)


def complain(text: str) -> None:
    sys.stdout.flush()
    print(text, file=sys.stderr, flush=True)


def shown(text: str) -> str:
    """A name as a terminal may show it: what is no letter or sign is spelled out."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def size(count: int) -> str:
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (10**3, "kB")):
        if count >= unit:
            return f"{count / unit:.1f} {name}"
    return f"{count} bytes"


def files(number: int) -> str:
    return f"{number:,} file{'' if number == 1 else 's'}"


class Progress:
    """How far it is, in percent: in one line on a terminal, else a line each ten percent."""

    def __init__(self, what: str, total: int) -> None:
        self._what, self._total, self._told = what, max(total, 1), -1
        self._terminal = sys.stderr.isatty()

    def at(self, position: int) -> None:
        percent = min(100, 100 * position // self._total)
        percent -= 0 if self._terminal else percent % 10
        if percent > self._told:
            self._told = percent
            line = f"{self._what} … {percent} %"
            print(f"\r{line}" if self._terminal else line, end="" if self._terminal else "\n", file=sys.stderr)
            sys.stderr.flush()

    def done(self) -> None:
        self.at(self._total)
        if self._terminal:
            print(file=sys.stderr)


# --- the archive as one file -----------------------------------------------------------------------------------------


class Archive(io.RawIOBase):
    """A backup to be read as one file, whether it lies there whole or in numbered parts. `path` is that of the whole.

    A part that is missing can be read past: all but the last are of one size.
    """

    def __init__(self, path: str) -> None:
        super().__init__()
        self.path = path
        self.name = os.path.basename(path)
        self.in_parts = not os.path.isfile(path)
        self.pieces = self._parts() if self.in_parts else [path]
        sizes = [os.path.getsize(p) if os.path.isfile(p) else -1 for p in self.pieces]
        self.missing = [p for p, found in zip(self.pieces, sizes) if found < 0]
        self._sizes = [max(sizes) if found < 0 else found for found in sizes]
        self.size_bytes = sum(self._sizes)
        self._at = 0
        self._open: io.FileIO | None = None
        self._opened = ""
        self.raw: BinaryIO = io.BufferedReader(self, AT_ONCE)

    def _parts(self) -> list[str]:
        """The paths of all parts, also of those that are missing, as far as anybody can know."""
        folder, name = os.path.split(self.path)
        listed = [os.path.basename(path) for path in sums_in(self.path + ".pieces.sha256")]
        found = [PART.fullmatch(n) for n in (*listed, *os.listdir(folder or "."))]
        numbers = [int(m[2]) for m in found if m and m[1] == name]
        return [f"{self.path}.part{number:03d}" for number in range(1, max(numbers, default=0) + 1)]

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = os.SEEK_SET, /) -> int:
        self._at = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._at, os.SEEK_END: self.size_bytes}[whence]
        return self._at

    def readinto(self, buffer: Any, /) -> int:
        start = 0
        for piece, length in zip(self.pieces, self._sizes):
            if start <= self._at < start + length:
                if piece in self.missing:
                    raise OSError(errno.ENOENT, f"{os.path.basename(piece)} is missing")
                if piece != self._opened or self._open is None:
                    self.close_piece()
                    self._open, self._opened = io.FileIO(piece), piece
                self._open.seek(self._at - start)
                got = self._open.readinto(memoryview(buffer)[: start + length - self._at]) or 0
                self._at += got
                return got
            start += length
        return 0

    def close_piece(self) -> None:
        if self._open is not None:
            self._open.close()
            self._open = None

    def close(self) -> None:
        self.close_piece()
        super().close()


def sums_in(path: str) -> dict[str, str]:
    """What a .sha256 file says, by name; nothing where there is none."""
    try:
        with open(path, "rb") as file:
            return dict(filter(None, map(sum_line, file.read(AT_ONCE).splitlines())))
    except OSError:
        return {}


def sum_line(line: bytes) -> tuple[str, str] | None:
    """Path and hash of one line of sha256sum(1), None where it is none."""
    found = re.fullmatch(rb"(\\?)([0-9a-fA-F]{64}) [ *](.+)", line.rstrip(b"\n"), re.DOTALL)
    if not found:
        return None
    name = found[3]
    if found[1]:
        name = re.sub(rb"\\([\\nr])", lambda m: {b"\\": b"\\", b"n": b"\n", b"r": b"\r"}[m[1]], name)
    return name.decode("utf-8", "surrogateescape"), found[2].decode().lower()


def found_below(folder: str) -> list[str]:
    """Our backups in a folder and up to three folders deep, the newest first; for parts, the path of the whole."""
    found: dict[str, None] = {}
    for where, folders, names in os.walk(folder):
        if where[len(folder) :].count(os.sep) >= 3:
            folders.clear()
        for name in names:
            part = PART.fullmatch(name)
            whole = part[1] if part else name
            if NAME.fullmatch(whole):
                found[os.path.join(where, whole)] = None
    return sorted(found, key=lambda path: (_moment(path), path), reverse=True)


def _moment(path: str) -> tuple[int, ...]:
    found = NAME.fullmatch(os.path.basename(path))
    return tuple(int(n or 0) for n in found.groups()) if found else ()


def home() -> str:
    return os.path.dirname(os.path.abspath(__file__))


def opened(named: str) -> Archive:
    """The archive that somebody named: by its path, by that of one of its parts, or by its name alone."""
    part = PART.fullmatch(named)
    named = part[1] if part else named
    beside = [named, os.path.join(home(), named)]
    for path in beside + [p for p in found_below(home()) if os.path.basename(p) == named]:
        try:
            archive = Archive(path)
        except OSError:
            continue
        if archive.pieces:
            return archive
    raise Refused(
        f"There is no backup {shown(named)} here. `python3 restore.py` without anything shows those that there are.", 2
    )


# --- the tar in it ---------------------------------------------------------------------------------------------------


class Stream:
    """The entries of a tar.gz from one gzip member on; `inside` bytes of that member's content are passed over.

    The headers are looked at here and not by tarfile, which takes a damaged one for the end of the archive, cuts
    times to microseconds and misreads files with holes beyond 8 GiB.
    """

    def __init__(self, raw: BinaryIO, member: int = 0, inside: int = 0) -> None:
        try:
            raw.seek(member)
        except (OSError, ValueError, OverflowError) as error:
            raise Damaged(str(error)) from error
        self._zipped = gzip.GzipFile(fileobj=raw, mode="rb")
        self._left = self._padding = 0
        self._skip(inside)

    def entry(self) -> Entry | None:
        """The next one, None at the end of the archive. What is left of the one before is passed over."""
        self._skip(self._left + self._padding)
        self._left = self._padding = 0
        pax: dict[str, bytes] = {}
        long: dict[bytes, bytes] = {}
        while True:
            block = self._exactly(BLOCK)
            if block == bytes(BLOCK):
                return None
            try:
                info = tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
                if info.type in (tarfile.XHDTYPE, tarfile.XGLTYPE):
                    records = _records(self._body(info.size))
                    pax.update(records if info.type == tarfile.XHDTYPE else {})
                elif info.type in (tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK):
                    long[info.type] = self._body(info.size).rstrip(b"\0")
                else:
                    return self._complete(info, pax, long)
            except (tarfile.HeaderError, ValueError) as error:
                raise Damaged("the description of a file is damaged") from error

    def content(self, entry: Entry) -> Iterator[tuple[int, bytes]]:
        """What is stored of a file, as (offset, block); the rest of it is holes."""
        for start, length in entry.extents:
            end = start + length
            while start < end:
                block = self._exactly(min(AT_ONCE, end - start))
                self._left -= len(block)
                yield start, block
                start += len(block)

    def _complete(self, info: tarfile.TarInfo, pax: dict[str, bytes], long: dict[bytes, bytes]) -> Entry:
        stored = int(pax.get("size", info.size))
        if not 0 <= stored < 1 << 62:
            raise ValueError
        path = pax.get("GNU.sparse.name") or pax.get("path") or long.get(tarfile.GNUTYPE_LONGNAME)
        link = pax.get("linkpath") or long.get(tarfile.GNUTYPE_LONGLINK)
        kinds = {tarfile.DIRTYPE: "directory", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}
        plain = info.type in (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
        kind = "file" if plain else kinds.get(info.type, "other")
        self._left, self._padding = (stored, -stored % BLOCK) if kind in ("file", "other") else (0, 0)
        real: int = stored
        extents: tuple[tuple[int, int], ...] = ((0, stored),)
        if kind == "file" and any(key.startswith("GNU.sparse.") for key in pax):
            real, extents = self._holes(pax)
        name = info.name if path is None else path.decode("utf-8", "surrogateescape")
        return Entry(
            path=name.rstrip("/") if kind == "directory" else name,
            type=kind,
            size=real if kind == "file" else 0,
            link=info.linkname if link is None else link.decode("utf-8", "surrogateescape"),
            mode=info.mode & 0o7777,
            mtime_ns=_nanoseconds(pax["mtime"]) if "mtime" in pax else int(info.mtime) * 10**9,
            uid=int(pax.get("uid", info.uid)),
            gid=int(pax.get("gid", info.gid)),
            attributes=tuple((_attribute(k), v) for k, v in pax.items() if k.startswith("SCHILY.xattr.")),
            extents=extents if kind == "file" else (),
            stored=sum(length for _, length in extents) if kind == "file" else 0,
        )

    def _holes(self, pax: dict[str, bytes]) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Size and stored stretches of a file with holes, from the map before its content."""
        if (pax.get("GNU.sparse.major"), pax.get("GNU.sparse.minor")) != (b"1", b"0"):
            raise ValueError
        real, text = int(pax.get("GNU.sparse.realsize", -1)), b""
        numbers: list[int] = []
        while not numbers or len(numbers) <= 2 * numbers[0]:
            if self._left < BLOCK or len(numbers) > 2 * MOST or len(text) > BLOCK:  # no number is so long
                raise ValueError
            *lines, text = (text + self._exactly(BLOCK)).split(b"\n")
            self._left -= BLOCK
            numbers += [int(line) for line in lines]
        flat = numbers[1 : 1 + 2 * numbers[0]]
        extents = tuple(zip(flat[::2], flat[1::2]))
        end = 0
        for offset, length in extents:
            if offset < end or length < 0:
                raise ValueError
            end = offset + length
        if numbers[0] < 0 or not end <= real < 1 << 62 or sum(length for _, length in extents) != self._left:
            raise ValueError
        return real, extents

    def _body(self, length: int) -> bytes:
        if not 0 <= length <= HEADER_LIMIT:
            raise ValueError
        body = self._exactly(length)
        self._skip(-length % BLOCK)
        return body

    def _exactly(self, length: int) -> bytes:
        try:
            got = self._zipped.read(length)
        except (OSError, EOFError, zlib.error) as error:
            raise Damaged(getattr(error, "strerror", None) or str(error)) from error
        if len(got) != length:
            raise Damaged("the archive ends too early")
        return got

    def _skip(self, length: int) -> None:
        while length > 0:
            length -= len(self._exactly(min(AT_ONCE, length)))


def _records(body: bytes) -> dict[str, bytes]:
    records: dict[str, bytes] = {}
    at = 0
    while at < len(body):
        space = body.index(b" ", at, at + 12)
        end = at + int(body[at:space])
        key, equals, value = body[space + 1 : end - 1].partition(b"=")
        if not space < end <= len(body) or not equals or body[end - 1 : end] != b"\n":
            raise ValueError
        records[key.decode("utf-8", "surrogateescape")] = value
        at = end
    return records


def _attribute(key: str) -> str:
    return key[len("SCHILY.xattr.") :].replace("%3D", "=").replace("%25", "%")


def _nanoseconds(value: bytes) -> int:
    found = re.fullmatch(rb"(-?)(\d{1,20})(?:\.(\d*))?", value)
    if not found:
        raise ValueError
    time_ns = int(found[2]) * 10**9 + int((found[3] or b"")[:9].ljust(9, b"0"))
    return -time_ns if found[1] else time_ns


# --- the plan: what is in it, judged ---------------------------------------------------------------------------------


class Plan(NamedTuple):
    """All entries in their order. Without the index at the archive's end nothing can be read past damage, and what
    lies behind it has no name: then `cut` says what the damage is.
    """

    entries: list[Entry]
    indexed: bool
    cut: str


def plan_of(archive: Archive) -> Plan:
    """By its index, else by reading all of it. Raises Refused for an archive that could write where it must not."""
    entries = _index(archive)
    if entries is not None:
        judge(entries)
        return Plan(entries, True, "")
    found: list[Entry] = []
    progress = Progress(f"Looking what is in {shown(archive.name)}", archive.size_bytes)
    cut = ""
    try:
        stream = Stream(archive.raw)
        while True:
            entry = stream.entry()
            if entry is None or len(found) > MOST:
                break
            found.append(entry)
            progress.at(archive.raw.tell())
    except Damaged as error:
        cut = str(error) or "it is damaged"
        if not found:
            raise Refused(f"Nothing can be read in {shown(archive.name)}: it is no backup, or too damaged.") from error
    progress.done()
    judge(found)
    return Plan(found, False, cut)


def _footer(archive: Archive) -> tuple[int, int] | None:
    """Where metadata.json and the index begin; None where no footer of ours is at the end."""
    try:
        archive.raw.seek(max(0, archive.size_bytes - FOOTER))
        tail = archive.raw.read(FOOTER)
    except OSError:
        return None
    numbers = [int.from_bytes(tail[at : at + 8], "little") for at in (26, 34, 42)]
    known = (tail[:4], tail[12:14], tail[20:22], tail[24:26]) == (b"\x1f\x8b\x08\x04", b"MB", b"MF", b"\x01\0")
    return (numbers[0], numbers[1]) if known and numbers[2] == archive.size_bytes else None


def _own(archive: Archive, which: int) -> bytes:
    """metadata.json (0) or the index (1) by the footer, empty where it cannot be read."""
    try:
        footer = _footer(archive)
        stream = Stream(archive.raw, footer[which]) if footer else None
        entry = stream.entry() if stream else None
        if stream is None or entry is None or entry.path != OWN[1 + which] or entry.size > LIST_LIMIT:
            return b""
        return b"".join(block for _, block in stream.content(entry))
    except Damaged:
        return b""


def _index(archive: Archive) -> list[Entry] | None:
    lines = io.BytesIO(_own(archive, 1))
    try:
        head = json.loads(lines.readline())
        if head["format"] != "memu-backup-index/1":
            return None
        columns, found = head["columns"], []
        for line in lines:
            said = dict(zip(columns, json.loads(line)))
            stored = said.get("stored_bytes")
            entry = Entry(
                path=str(said["path"]),
                type=str(said["type"]),
                size=int(said["size_bytes"]),
                link=str(said["link"]),
                mode=int(said["mode"]),
                mtime_ns=int(said["mtime_ns"]),
                sha256=str(said["sha256"]),
                member=int(said["member"]),
                inside=int(said["inside"]),
                stored=int(said["size_bytes"] if stored is None else stored),
            )
            found.append(entry)
        return found
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None


def judge(entries: list[Entry]) -> None:
    """Raises Refused for an archive that could write outside the folder, twice, or what is no file, folder or link."""
    kinds: dict[str, str] = {}
    folders: set[str] = set()

    def refuse(what: str) -> None:
        raise Refused(f"This archive is not to be trusted, and nothing was unpacked: it holds {what}.")

    if len(entries) > MOST:
        refuse(f"more than {files(MOST)}, which no household has")
    for entry in entries:
        path, parts, name = entry.path, entry.path.split("/"), repr(shown(entry.path))
        if "\0" in path or any(part in ("", ".", "..") for part in parts) or not _is_name(path):
            refuse(f"a file named {name}, which could lie outside the folder")
        if len(parts) > DEEPEST:
            refuse(f"{shown(path[:60])} …, which lies too deep to be made")
        if entry.type not in ("file", "directory", "symlink", "hardlink"):
            refuse(f"{name}, which is a device, a pipe or something unknown")
        if path in kinds:
            refuse(f"{name} twice")
        if entry.type == "hardlink" and kinds.get(entry.link) != "file":
            refuse(f"{name}, a link to {shown(entry.link)!r}, which is no file before it in the archive")
        if entry.type == "symlink" and not (0 < len(entry.link) < 4096 and _is_name(entry.link)):
            refuse(f"{name}, a link that leads nowhere")
        kinds[path] = entry.type
        for above in folders_of(path):
            if above in folders:
                break
            folders.add(above)
    for folder in folders:
        if kinds.get(folder, "directory") != "directory":
            refuse(f"{shown(folder)!r} as a {kinds[folder]} and something inside it")


def _is_name(text: str) -> bool:
    try:
        return b"\0" not in text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        return False


def chosen(entries: list[Entry], patterns: list[str]) -> set[str]:
    """The paths that are wanted: all, or those that a pattern names, with all that lies in them."""
    if not patterns:
        return {entry.path for entry in entries}
    found: set[str] = set()
    for pattern in patterns:
        plain = os.fsencode(pattern).decode("utf-8", "surrogateescape").rstrip("/")
        plain = plain[2:] if plain.startswith("./") else plain
        hits = {e.path for e in entries if e.path == plain or e.path.startswith(plain + "/")}
        hits = hits or {e.path for e in entries if fnmatch.fnmatchcase(e.path, plain)}
        if not hits:
            raise Refused(
                f"Nothing in it is called {shown(pattern)}. `list` instead of `restore` shows what there is.", 2
            )
        found |= hits | {e.path for e in entries if any(above in hits for above in folders_of(e.path))}
    return found


def folders_of(path: str) -> Iterator[str]:
    """The folders in which it lies, the innermost first."""
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path


# --- reading all of it, past damage ----------------------------------------------------------------------------------


class Outcome(NamedTuple):
    lost: dict[str, str]  # what could not be read or made, and why
    hashes: dict[str, str]  # SHA-256 of the content of each file that was read
    sums: dict[str, str]  # what SHA256SUMS says; empty where it was not read


Content = Iterator["tuple[int, bytes]"]
Keep = Callable[[Entry, Content], None]


def read(archive: Archive, plan: Plan, wanted: set[str], keep: Keep, what: str) -> Outcome:
    """Hands each wanted entry with its content to `keep`. What cannot be read is tried once more from where it begins,
    then it is lost; an OSError of `keep` costs the entry, or all where the disk takes no more (Refused).
    """
    outcome = Outcome({}, {}, {})
    stream: Stream | None = None
    ended = False
    progress = Progress(what, archive.size_bytes)
    for planned in plan.entries:
        if planned.path not in wanted and plan.indexed:
            stream = None  # the next one is found by the index, without reading what stands between
            continue
        if ended:
            outcome.lost[planned.path] = "the archive cannot be read so far"
            continue
        for afresh in (False, True) if stream else (True,):
            try:
                if stream is None or afresh:
                    stream = Stream(archive.raw, max(planned.member, 0), planned.inside)
                header = _expected(stream, planned)
                if planned.path in wanted:
                    _keep(stream, header, keep, outcome)
                elif planned.path == OWN[0]:
                    for _ in _hashed(stream, header, outcome):
                        pass
                break
            except Damaged as error:
                outcome.lost[planned.path] = str(error)
                stream = None
                ended = not plan.indexed
                if ended:
                    break
        progress.at(archive.raw.tell())
    if plan.indexed and len(wanted) == len(plan.entries):
        _keep_own(stream or (None if plan.entries else Stream(archive.raw)), keep, outcome)
    progress.done()
    _settle(plan, wanted, outcome)
    return outcome


def _expected(stream: Stream, planned: Entry) -> Entry:
    """The next header, where it is what was judged."""
    header = stream.entry()
    if header is None or header[:6] != planned[:6]:
        raise Damaged("what stands in its place in the archive is something else")
    return header


def _keep(stream: Stream, header: Entry, keep: Keep, outcome: Outcome) -> None:
    try:
        keep(header, _hashed(stream, header, outcome))
        outcome.lost.pop(header.path, None)
    except OSError as error:
        if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", -1), errno.EIO, errno.EROFS):
            raise Refused(
                f"The disk does not take any more ({error.strerror}), so not everything is there. "
                "Find one with more room, and begin again in a new folder."
            ) from error
        outcome.lost[header.path] = error.strerror or str(error)


def _hashed(stream: Stream, entry: Entry, outcome: Outcome) -> Content:
    if entry.type != "file":
        return
    digest, end, lines = hashlib.sha256(), 0, []
    for offset, block in stream.content(entry):
        _zeros(digest, offset - end)
        digest.update(block)
        end = offset + len(block)
        if entry.path == OWN[0] and end <= LIST_LIMIT:
            lines.append(block)
        yield offset, block
    _zeros(digest, entry.size - end)
    outcome.hashes[entry.path] = digest.hexdigest()
    outcome.sums.update(filter(None, map(sum_line, b"".join(lines).split(b"\n"))))


def _zeros(digest: Any, count: int) -> None:
    while count > 0:
        digest.update(bytes(min(AT_ONCE, count)))
        count -= AT_ONCE


def _keep_own(stream: Stream | None, keep: Keep, outcome: Outcome) -> None:
    """SHA256SUMS and metadata.json, of which the index does not tell. Lost, the hashes of the index are as good."""
    try:
        for name in OWN[:2] if stream else ():
            header = stream.entry() if stream else None
            if stream is None or header is None or (header.path, header.type) != (name, "file"):
                return
            _keep(stream, header, keep, outcome)
    except Damaged:
        pass


def _settle(plan: Plan, wanted: set[str], outcome: Outcome) -> None:
    """Compares all that was read with SHA256SUMS, or the index, and counts what else is lost with it."""
    said = {e.path: e.sha256 for e in plan.entries if e.sha256}
    said.update(outcome.sums)
    for path, found in outcome.hashes.items():
        if said.get(path, found) != found:
            outcome.lost.setdefault(path, DIFFERS)
    for entry in plan.entries:
        if entry.type == "hardlink" and entry.path in wanted and entry.link in outcome.lost:
            outcome.lost.setdefault(entry.path, f"it is one file with {shown(entry.link)}")
    known = {entry.path for entry in plan.entries}
    for path in outcome.sums:
        if path not in known:
            outcome.lost[path] = "it is in the list of files, and not in the archive"


# --- onto the disk ---------------------------------------------------------------------------------------------------


class Keeper:
    """Makes files, then hard links, symbolic links, and last the folders' rights and times, below an empty folder.

    A file gets its name when it is whole; what was read of one that is not stays beside it as NAME.damaged.
    """

    def __init__(self, target: str, renamed: dict[str, str]) -> None:
        self._target = os.path.abspath(target)
        self._windows = os.name == "nt"
        if self._windows:
            self._target = "\\\\?\\" + self._target  # else no path is longer than 260 characters
        self._half = os.path.join(self._target, f".restoring-{os.urandom(8).hex()}")
        self._renamed = renamed
        self._root = hasattr(os, "geteuid") and os.geteuid() == 0
        self._aside: set[str] = set()
        self._later: list[Entry] = []
        self.notes: dict[str, list[str]] = {}
        self.made = self.made_bytes = 0

    def keep(self, entry: Entry, content: Content) -> None:
        path = self._place(self._renamed.get(entry.path, entry.path))
        # All folders now, those of links too: where A is a, a link made later could lie in the way of one.
        self._folder(path if entry.type == "directory" else os.path.dirname(path))
        if entry.type != "file":
            self._later.append(entry)
            return
        try:
            with open(self._half, "xb") as file:
                for offset, block in content:
                    file.seek(offset)
                    file.write(block)
                file.truncate(entry.size)
            self._adorn(self._half, entry)
            self._name(self._half, path)
        except Damaged:
            self._set_aside(self._half, path)
            raise
        finally:
            if os.path.lexists(self._half):
                os.unlink(self._half)
        if path in self._aside:  # it could be read the second time
            os.unlink(path + ".damaged")
        self.made += 1
        self.made_bytes += entry.size

    def finish(self, lost: dict[str, str]) -> None:
        """Links and the folders' rights; `lost` gains what cannot be made."""
        for name in [name for name, why in lost.items() if why == DIFFERS]:
            path = self._place(self._renamed.get(name, name))
            self._set_aside(path, path)
            self.made -= 1
        for kind, make in (("hardlink", self._hard_link), ("symlink", self._symbolic_link)):
            for entry in self._later:
                if entry.type == kind and entry.path not in lost and self._renamed.get(entry.link) != entry.path:
                    try:
                        path = self._place(entry.path)
                        make(entry, path)
                        self.made += 1
                    except OSError as error:
                        lost[entry.path] = error.strerror or str(error)
        for entry in sorted(self._later, key=lambda e: e.path.count("/"), reverse=True):
            if entry.type == "directory" and entry.path not in lost:
                self._adorn(self._place(entry.path), entry)
        if hasattr(os, "sync"):
            os.sync()

    def _place(self, path: str) -> str:
        return os.path.join(self._target, local(path, self._windows))

    def _folder(self, path: str) -> None:
        if not os.path.isdir(path):
            os.makedirs(path, 0o700)

    def _name(self, made: str, path: str) -> None:
        if os.path.lexists(path):  # a disk that does not tell A from a
            raise FileExistsError(errno.EEXIST, "this disk takes its name for that of another file")
        os.rename(made, path)

    def _set_aside(self, made: str, path: str) -> None:
        """What can be read of half a film is better than none, but not under the name of a whole one."""
        try:
            if os.path.getsize(made):
                self._name(made, path + ".damaged")
                self._aside.add(path)
        except OSError:  # there is one already, or its name would be too long
            pass
        if os.path.lexists(made):
            os.unlink(made)

    def _hard_link(self, entry: Entry, path: str) -> None:
        source = self._place(self._renamed.get(entry.link, entry.link))
        if os.path.lexists(path):
            raise FileExistsError(errno.EEXIST, "this disk takes its name for that of another file")
        try:
            os.link(source, path)
        except OSError:
            shutil.copy2(source, path)
            self._note("as a copy, since no file can have two names here", entry)

    def _symbolic_link(self, entry: Entry, path: str) -> None:
        if self._windows:
            self._note("left out: links, which Windows gives to few", entry)
            return
        os.symlink(local(entry.link, False), path)
        self._adorn(path, entry)

    def _adorn(self, path: str, entry: Entry) -> None:
        link = entry.type == "symlink"
        if not self._root and hasattr(os, "geteuid") and entry.uid != os.geteuid():
            self._note("yours now, as only root can give files to others", entry)
        if self._root:
            self._try("with another owner", entry, os.lchown, path, entry.uid, entry.gid)
        for name, value in () if link else entry.attributes:
            if name.startswith(("security.", "trusted.")) or not hasattr(os, "setxattr"):
                self._note("without some attributes", entry)
            else:
                self._try("without some attributes", entry, os.setxattr, path, name, value)
        harmless = 0o3777 if entry.type == "directory" else 0o1777
        if entry.mode & harmless != entry.mode and not link:
            self._note("not running as somebody else any more (setuid)", entry)
        if not link:
            self._try("with other rights", entry, os.chmod, path, entry.mode & harmless)
        if not link or os.utime in os.supports_follow_symlinks:
            times = (entry.mtime_ns, entry.mtime_ns)
            self._try("with another time", entry, lambda: os.utime(path, ns=times, follow_symlinks=not link))

    def _try(self, failing: str, entry: Entry, do: Callable[..., Any], *how: Any) -> None:
        try:
            do(*how)
        except (OSError, OverflowError, ValueError):
            self._note(failing, entry)

    def _note(self, what: str, entry: Entry) -> None:
        paths = self.notes.setdefault(what, [])
        if entry.path not in paths[-1:]:
            paths.append(entry.path)


def local(path: str, windows: bool) -> str:
    """A path of the archive as this system spells it; what Windows takes for more than a letter becomes `_`."""
    if windows:
        return re.sub(r'[<>:"|?*\\\x00-\x1f]', "_", path).replace("/", "\\")
    return os.fsdecode(path.encode("utf-8", "surrogateescape"))


# --- the commands ----------------------------------------------------------------------------------------------------


def overview(folder: str) -> int:
    paths = found_below(folder)
    if not paths:
        complain(
            f"There is no backup in {shown(folder)}.\nPut restore.py beside the copies, or name one by its path.\n"
        )
        say(USAGE)
        return 1
    say("Backups here, the newest first:\n")
    for path in paths:
        say(f"  {_told(path)}")
    newest = shlex.quote(os.path.relpath(paths[0], folder))
    we = f"python3 {shlex.quote(sys.argv[0])}"
    say(f"\nIs the newest whole?\n  {we} check {newest}")
    say(f"\nWhat is in it?\n  {we} list {newest}")
    say(f"\nAll of it, into a new folder in your home folder:\n  {we} restore {newest} ~/found")
    say(f"\nOnly the pictures in it:\n  {we} restore {newest} ~/pictures '*.jpg'")
    say(f"\nMore: {we} help. Nothing on the drive is ever changed.")
    return 0


def _told(path: str) -> str:
    try:
        archive = Archive(path)
    except OSError as error:
        return f"{shown(os.path.basename(path))}   cannot be read ({error.strerror})"
    try:
        said = json.loads(_own(archive, 0) or b"{}")
        of = shown(f"{said['job']} of {said['host']}")
    except (ValueError, TypeError, KeyError, RecursionError):
        of = "of what, cannot be read"
    found = NAME.fullmatch(archive.name)
    when = "{}-{}-{} {}:{}".format(*found.groups()) if found else ""
    parts = f", in {len(archive.pieces)} parts" if archive.in_parts else ""
    lacks = f", {len(archive.missing)} of them missing" if archive.missing else ""
    return f"{shown(archive.name)}   {when}   {size(archive.size_bytes)}{parts}{lacks}   {of}"


def list_(archive: Archive, patterns: list[str]) -> int:
    plan = plan_of(archive)
    wanted = chosen(plan.entries, patterns)
    totals: dict[str, list[int]] = {}
    for entry in plan.entries:
        if entry.path not in wanted:
            continue
        try:
            when = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.mtime_ns // 10**9))
        except (ValueError, OverflowError, OSError):
            when = "?"
        link = {"symlink": f" -> {shown(entry.link)}", "hardlink": f" (one file with {shown(entry.link)})"}
        tail = "/" if entry.type == "directory" else link.get(entry.type, "")
        say(f"{size(entry.size) if entry.type == 'file' else '':>12}  {when:16}  {shown(entry.path)}{tail}")
        if entry.type == "file":
            total = totals.setdefault(entry.path.partition("/")[0], [0, 0])
            total[0], total[1] = total[0] + 1, total[1] + entry.size
    say()
    for place, (count, count_bytes) in totals.items():
        say(f"{shown(place)}: {files(count)}, {size(count_bytes)}")
    if plan.cut:
        complain(f"{shown(archive.name)} is damaged ({plan.cut}); what comes behind cannot be listed.")
    return 1 if plan.cut else 0


def check(archive: Archive) -> int:
    good = _check_sums(archive)
    plan = plan_of(archive)
    everything = {entry.path for entry in plan.entries}

    def pass_over(_: Entry, content: Content) -> None:
        for _block in content:
            pass

    outcome = read(archive, plan, everything, pass_over, "Comparing each file in it")
    _tell_lost(outcome.lost, plan)
    whole = [path for path in outcome.hashes if path not in outcome.lost and path not in OWN]
    how = "is as it was saved" if outcome.sums else "can be read; there is no list to compare with"
    if outcome.lost or plan.cut:
        complain(
            f"The other {files(len(whole))} can be restored. Keep this copy, and look for an older or another one."
        )
        return 1
    say(f"{shown(archive.name)}: each of the {files(len(whole))} in it {how}.")
    return 0 if good else 1


def _check_sums(archive: Archive) -> bool:
    """Compares the whole, and each part, with the .sha256 files beside it; False where one differs."""
    of_whole, of_parts = (sums_in(f"{archive.path}{end}") for end in (".sha256", ".pieces.sha256"))
    bad: list[str] = []
    whole = hashlib.sha256()
    progress = Progress(f"Comparing {shown(archive.name)} with its checksum", archive.size_bytes)
    done = 0
    for piece in archive.pieces if of_whole or of_parts else archive.missing:
        name, part = os.path.basename(piece), hashlib.sha256()
        try:
            with open(piece, "rb") as file:
                for block in iter(lambda: file.read(AT_ONCE), b""):
                    part.update(block)
                    whole.update(block)
                    done += len(block)
                    progress.at(done)
            if archive.in_parts and of_parts.get(name, part.hexdigest()) != part.hexdigest():
                bad.append(f"{shown(name)} is not as it was copied.")
        except OSError as error:
            bad.append(
                f"{shown(name)} {'is missing' if piece in archive.missing else f'cannot be read: {error.strerror}'}."
            )
    progress.done()
    said = of_whole.get(archive.name)
    if said is not None and said != whole.hexdigest() and not bad:
        bad.append(f"{shown(archive.name)} is not as it was written: its checksum is another one.")
    for sentence in bad:
        complain(sentence)
    if not of_whole and not of_parts:
        complain(f"No checksum of it lies beside it ({shown(archive.name)}.sha256), so only what is in it is compared.")
    elif not bad:
        say("Its checksum is right.")
    return not bad


def restore(archive: Archive, target: str, patterns: list[str]) -> int:
    _check_target(target)
    plan = plan_of(archive)
    wanted = chosen(plan.entries, patterns)
    renamed = _with_what_they_need(plan.entries, wanted)
    _check_room(target, sum(max(0, entry.stored) for entry in plan.entries if entry.path in wanted))
    os.umask(0o077)
    try:
        os.makedirs(target, exist_ok=True)
        keeper = Keeper(target, renamed)
        outcome = read(archive, plan, wanted, keeper.keep, f"Restoring {shown(archive.name)}")
        keeper.finish(outcome.lost)
    except OSError as error:
        raise Refused(f"Nothing can be written to {shown(target)} ({error.strerror}). Name another folder.") from error
    lost = {renamed.get(path, path): why for path, why in outcome.lost.items()}
    _tell_lost(lost, plan)
    for what, paths in keeper.notes.items():
        complain(f"Note: {files(len(paths))} {what}; the first is {shown(paths[0])}.")
    how = ", each compared with its checksum" if not plan.cut and (outcome.sums or plan.indexed) else ""
    say(f"{files(keeper.made)} ({size(keeper.made_bytes)}) lie in {shown(target)} now{how}.")
    return 1 if lost or plan.cut else 0


def _with_what_they_need(entries: list[Entry], wanted: set[str]) -> dict[str, str]:
    """Adds the folders above them and the files that hard links share. Returns what is to be called otherwise."""
    kinds = {entry.path: entry.type for entry in entries}
    renamed: dict[str, str] = {}
    for entry in entries:
        if entry.type == "hardlink" and entry.path in wanted and entry.link not in wanted:
            renamed.setdefault(entry.link, entry.path)
    above = {folder for path in wanted for folder in folders_of(path) if kinds.get(folder) == "directory"}
    wanted |= above | set(renamed)
    return renamed


def _check_target(target: str) -> None:
    try:
        if os.listdir(target):
            raise Refused(f"{shown(target)} is not empty. Nothing is ever replaced: name a new folder.", 2)
    except FileNotFoundError:
        pass
    except OSError as error:
        raise Refused(f"{shown(target)} cannot be used ({error.strerror}). Name a new folder.", 2) from error


def _check_room(target: str, needed: int) -> None:
    there = os.path.abspath(target)
    while not os.path.isdir(there):
        there = os.path.dirname(there)
    free = shutil.disk_usage(there).free
    if needed > free:
        raise Refused(
            f"This takes {size(needed)}, and there is only room for {size(free)}. Name a folder on a larger disk."
        )


def _tell_lost(lost: dict[str, str], plan: Plan) -> None:
    for path, why in lost.items():
        complain(f"Lost: {shown(path)} ({why})")
    if lost:
        complain(f"{files(len(lost))} of {len(plan.entries):,} could not be read or made.")
    if plan.cut:
        complain(f"The archive is damaged ({plan.cut}). What comes behind is lost; nobody can tell what it was.")


def main(argv: list[str]) -> int:
    command, rest = (argv[0], argv[1:]) if argv else ("", [])
    if command in ("help", "-h", "--help", "-help", "/?"):
        say(USAGE)
        return 0
    if not command or (command == "list" and not rest):
        return overview(home())
    if command == "list":
        return list_(opened(rest[0]), rest[1:])
    if command == "check" and len(rest) < 2:
        newest = found_below(home())[:1]
        if not rest and not newest:
            return overview(home())
        return check(opened(rest[0] if rest else newest[0]))
    if command == "restore" and len(rest) > 1:
        return restore(opened(rest[0]), os.path.expanduser(rest[1]), rest[2:])
    known = command in ("check", "restore")
    wrong = f"`{command}` needs other words behind it." if known else f"There is no command {shown(command)}."
    complain(f"{wrong}\n\n{USAGE}")
    return 2


def run(argv: list[str]) -> int:
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    try:
        status = main(argv)
        sys.stdout.flush()
        return status
    except Refused as refused:
        complain(str(refused))
        return refused.status
    except KeyboardInterrupt:
        complain(
            "\nStopped. The drive is as it was. What is in the new folder is not everything: begin again in another."
        )
        return 130
    except BrokenPipeError:  # `list | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        return 0
    except OSError as error:
        complain(f"It could not be done: {error.strerror or error}.")
        return 1


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))

"""Re-reads an archive and compares every byte with what the archive says of itself."""

from __future__ import annotations

import logging
from array import array
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from itertools import zip_longest

from memu_backup.errors import ArchiveError, DamagedArchive
from memu_backup.files import shown
from memu_backup.formats import hashing, manifest, sums
from memu_backup.formats.hashing import Digest, HashThread
from memu_backup.formats.index import Entry
from memu_backup.formats.reader import OWN_NAMES, ArchiveReader, agree
from memu_backup.formats.tally import Seen
from memu_backup.formats.tar import Header, Type
from memu_backup.formats.untar import unfold
from memu_backup.model import Manifest

log = logging.getLogger(__name__)

_NAMED = 20

_SMALL = 256 * 1024
_UNSETTLED = 1000


@dataclass(frozen=True, slots=True)
class Proof:
    """What was found. ``problems`` are sentences; ``sha256`` is that of the archive file, where all of it was read.

    ``compared`` is False where it tells nothing that its content could be compared with. ``spoiled`` are the paths of
    damaged files, the first of them.
    """

    problems: tuple[str, ...]
    files: int
    content_bytes: int
    sha256: str | None = None
    compared: bool = True
    spoiled: tuple[str, ...] = ()


def quick(reader: ArchiveReader) -> Proof:
    """Length, metadata and index, in milliseconds; not the content."""
    if not reader.indexed:
        return Proof(
            (f"{reader.path.name} has no index at its end: it was cut off, or another program made it.",), 0, 0
        )
    if not reader.whole:
        return Proof((f"{reader.path.name} is not as long as it was when it was written.",), 0, 0)
    try:
        made = reader.manifest()
        files = content_bytes = 0
        for entry in reader.index():
            files += entry.type is Type.FILE
            content_bytes += entry.size_bytes
    except ArchiveError as error:
        return Proof((f"{reader.path.name} is damaged: {error}.",), 0, 0)
    found = Proof((), files, content_bytes, compared=made is not None)
    if made and (found.files, found.content_bytes) != (made.files, made.size_bytes):
        return Proof(
            (f"{reader.path.name}: its index and its metadata do not agree.",), found.files, found.content_bytes
        )
    return found


def unchanged(reader: ArchiveReader, sha256: str, tick: Callable[[int, int, str], None]) -> Proof | None:
    """Every byte, by the checksum that the archive had when all that is in it was compared; None where it has another,
    or cannot be read: a full look then says what of it. Raises Interrupted.
    """
    found = quick(reader)
    if found.problems or not found.compared or reader.cut:
        return None
    hash_ = hashing.new()
    told = read = 0
    with suppress(DamagedArchive):
        for block in reader.raw():
            hash_.update(block)
            read += len(block)
            done = found.content_bytes * read // reader.size_bytes  # told in bytes of content, as its total is
            tick(done - told, 0, "")
            told = done
    return replace(found, sha256=sha256) if hash_.hexdigest() == sha256 else None


def full(reader: ArchiveReader, tick: Callable[[int, int, str], None]) -> Proof:
    """Every byte, hash, count and mode. Names the files that are damaged. Raises Interrupted, and NotAnArchive."""
    check = _Pass(reader, tick)
    try:
        check.run()
    except DamagedArchive as error:
        log.debug("The damage in %s:", reader.path.name, exc_info=error)
        return check.proof(_damage(reader, str(error), check.spoiled))
    problems = [] if reader.whole else [f"{reader.path.name} is not as long as it was when it was written."]
    if reader.cut:
        problems.append(f"{reader.path.name} lacks its last bytes, by which single files are found.")
    problems += check.problems()
    return check.proof(tuple(problems))


class _Pass:
    def __init__(self, reader: ArchiveReader, tick: Callable[[int, int, str], None]) -> None:
        self._reader = reader
        self._tick = tick
        self._whole = hashing.new()
        self._seen: list[Seen] = []
        self._manifest: Manifest | None = None
        self._files = self._bytes = 0
        self._own_files = self._own_bytes = 0
        self._lines = array("q")
        self._lines_hash = hashing.new()
        self._hashes: dict[str, str] = {}
        self._index: Iterator[Entry] | None = None
        self._sums_differ = self._index_differs = False
        self._unsettled: deque[tuple[Header, Digest | None]] = deque()
        self._finished = False
        self.spoiled: list[str] = []

    def run(self) -> None:
        self._manifest = self._reader.manifest() if self._reader.indexed else None
        self._seen = [Seen(s) for s in self._manifest.sources] if self._manifest else []
        self._index = self._reader.index() if self._reader.indexed else None
        linked = set(self._reader.link_targets())
        with (
            HashThread() as whole,
            HashThread() as contents,
            closing(self._reader.entries_with_content(on_bytes=lambda b: whole.update(self._whole, b))) as entries,
        ):
            for header, content in entries:
                if header.path in OWN_NAMES:
                    self._settle(linked)
                    self._own(header, content)
                else:
                    self._entry(header, content, contents)
                    self._settle(linked, but=_UNSETTLED)
            self._settle(linked)
        self._index_differs |= self._index is not None and next(self._index, None) is not None
        if self._manifest is None:  # another program's: what is called as our own files are is the household's
            self._files, self._bytes = self._files + self._own_files, self._bytes + self._own_bytes
        self._finished = True

    def _compare(self, header: Header, digest: str) -> None:
        if self._index is None or self._index_differs:
            return
        entry = next(self._index, None)
        self._index_differs = entry is None or not agree(entry, header) or entry.sha256 != digest

    def _own(self, header: Header, content: Iterator[memoryview]) -> None:
        self._own_files += header.type is Type.FILE
        self._own_bytes += header.size_bytes
        if header.path == manifest.SUMS_NAME and self._lines_differ(content):
            self._sums_differ = True
        elif header.path == manifest.NAME and self._manifest is None:
            self._manifest = self._reader.told(content)

    def _lines_differ(self, content: Iterator[memoryview]) -> bool:
        hash_ = hashing.new()
        for block in content:
            hash_.update(block)
        return hash_.hexdigest() != self._lines_hash.hexdigest()

    def _entry(self, header: Header, content: Iterator[memoryview], hasher: HashThread) -> None:
        digest: Digest | None = None
        if header.type is Type.FILE:
            blocks = self._counted(header, content)
            if header.size_bytes <= _SMALL and header.extents is None:
                digest = hasher.small(b"".join(blocks))  # not what it lies in, which may be a thousand times as large
            else:
                hash_ = hashing.new()
                for block in blocks:
                    hasher.update(hash_, block)
                digest = hasher.digest(hash_)
            self._files += 1
            self._bytes += header.size_bytes
            self._tick(0, 1, header.path)
        self._unsettled.append((header, digest))

    def _counted(self, header: Header, content: Iterator[memoryview]) -> Iterator[bytes | memoryview]:
        for block in unfold(header, content):
            self._reader.stop.check()  # a hole may be larger than any disk, and takes no reading
            self._tick(len(block), 0, header.path)
            yield block

    def _settle(self, linked: set[str], *, but: int = 0) -> None:
        """Compare what was read, in its order, once its hashes are there; the last few may still be under way."""
        while len(self._unsettled) > but:
            header, digest = self._unsettled.popleft()
            self._compare_entry(header, digest.result() if digest else "", linked)

    def _compare_entry(self, header: Header, digest: str, linked: set[str]) -> None:
        if header.type is Type.HARDLINK:
            digest = self._hashes.get(header.link, "")
        elif digest and (header.path in linked or not self._reader.indexed):
            self._hashes[header.path] = digest
        self._compare(header, digest)
        line = sums.line(digest, header.path) if digest else b""
        if line:
            self._lines.append(hash(line))
        self._lines_hash.update(line)
        self._count(header, line)

    def _count(self, header: Header, line: bytes) -> None:
        seen = next((s for s in self._seen if manifest.lies_in(header.path, s.summary.place)), None)
        if seen is None:
            return
        seen.add(header, line)

    def problems(self) -> list[str]:
        found = [p for seen in self._seen for p in seen.problems()]
        if self._sums_differ and self._manifest:
            found += self._differing_lines()
        if self._index_differs and not found:
            found.append("Its index does not tell what is in it.")
        if self._manifest and self._manifest.sha256sums != self._lines_hash.hexdigest() and not found:
            found.append(f"{manifest.SUMS_NAME} is not the one that was written.")
        return found

    def _differing_lines(self) -> Iterator[str]:
        """The files whose line in SHA256SUMS is not what was read just now."""
        named = 0
        for line, here in zip_longest(self._reader.own_lines(manifest.SUMS_NAME), self._lines):
            if line is not None and hash(line + b"\n") != here and (said := sums.parse(line)) and named < _NAMED:
                named += 1
                self.spoiled.append(said[1])
                yield f"{shown(said[1])} is not what it was when it was written."

    def proof(self, problems: tuple[str, ...]) -> Proof:
        sha256 = self._whole.hexdigest() if self._finished else None
        compared, spoiled = self._manifest is not None, tuple(self.spoiled)
        return Proof(problems, self._files, self._bytes, sha256, compared=compared, spoiled=spoiled)


def _damage(reader: ArchiveReader, what: str, spoiled: list[str]) -> tuple[str, ...]:
    """The files that a damaged stretch belongs to come first: they are what somebody misses."""
    whole = f"{reader.path.name} is damaged: {what}."
    if not reader.indexed:
        return whole, "It has no index, so what lies behind the damage can only be tried: gzip and tar read up to it."
    try:
        paths = list(reader.damaged())
    except ArchiveError:
        return whole, "Its index is damaged too."
    spoiled += paths[:_NAMED]
    found = [f"{shown(path)} cannot be read back." for path in paths[:_NAMED]]
    if len(paths) > _NAMED:
        found.append(f"… and {len(paths) - _NAMED:,} more, which lie beside them.")
    if not found:
        return whole, "Every file in it can be read back all the same; the damage is between them."
    return *found, f"{what[:1].upper()}{what[1:]}."

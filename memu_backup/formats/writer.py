"""Writes an archive: entries in, a tar of gzip members out, with sums, metadata, index and footer at its end."""

from __future__ import annotations

import errno
import io
import os
import stat
import tempfile
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from memu_backup import files
from memu_backup.files import Found, Identity, Skipped, shown
from memu_backup.formats import gzip, hashing, index, manifest, sums, tar
from memu_backup.formats.hashing import Hash, HashThread
from memu_backup.formats.intake import ZEROS, Reading, describe, xattrs
from memu_backup.formats.members import MemberWriter, Slot
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Captured, Manifest, SourceSummary
from memu_backup.work import Stop

SMALL = 256 * 1024
"""Files up to this size share a member; above it each has members of its own, aligned."""

SHARED = 1024 * 1024
"""Content at which a shared member is closed."""

_WORTHWHILE_HOLE = 1024 * 1024
"""Holes below this in sum are written as zeros: every tar can read that, and it costs nothing."""

_LISTED = 100

Tick = Callable[[int, int, str], None]
"""Content bytes and files done since the last call, and what is being read now."""


@dataclass(slots=True)
class _Pending:
    """An entry whose members are on their way; it goes into sums and index once they have an offset."""

    header: Header
    head: Slot | None
    inside: int
    digest: Future[str] | None
    first: Slot | None = None
    last: Slot | None = None


@dataclass(slots=True)
class _Linked:
    """A file with several names, until all of them were met."""

    header: Header
    digest: Future[str]
    names_left: int


@dataclass(slots=True)
class _Tally:
    """What a source comes to while it is written."""

    captured: Captured
    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0
    skipped: int = 0
    newest_ns: int | None = None
    sums: Hash = field(default_factory=hashing.new)
    modes: Hash = field(default_factory=hashing.new)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    linked: dict[Identity, _Linked] = field(default_factory=dict)

    def summary(self) -> SourceSummary:
        return SourceSummary(
            name=self.captured.source,
            kind=self.captured.kind,
            place=self.captured.place,
            files=self.files,
            directories=self.directories,
            links=self.links,
            size_bytes=self.size_bytes,
            checksum=self.sums.hexdigest(),
            modes_checksum=self.modes.hexdigest(),
            consistency=self.captured.consistency,
            newest_mtime=_moment(self.newest_ns),
            skipped=self.skipped,
            details=self.captured.details,
            warnings=_shorten((*self.captured.warnings, *self.notes)),
            missing=_shorten(tuple(dict.fromkeys((*self.captured.missing, *self.lost)))),
        )


def _moment(time_ns: int | None) -> datetime | None:
    """None also for what btrfs and XFS can hold and a calendar cannot."""
    if time_ns is None or not 0 <= time_ns < 253_402_300_800 * 10**9:
        return None
    return datetime.fromtimestamp(time_ns // 10**9, UTC)


def _shorten(sentences: tuple[str, ...]) -> tuple[str, ...]:
    more = len(sentences) - _LISTED
    return sentences if more <= 0 else (*sentences[:_LISTED], f"… and {more} more")


def mode_line(header: Header) -> bytes:
    """What ``modes_checksum`` is made of: type, mode, owner and path of every entry, a line each."""
    return f"{header.type.value} {header.mode:o} {header.uid}:{header.gid} ".encode() + os.fsencode(header.path) + b"\n"


def _version(header: Header) -> tuple[int, int]:
    return header.size_bytes, header.mtime_ns


class ArchiveWriter:
    """Writes one archive to ``descriptor``. Use as a context manager; call ``add`` a source, then ``finish`` once.

    ``folder`` is where the archive lies; what grows with the number of files goes there too, without a name. What is
    wrong with a source goes into its summary. Raises StoreError (DiskFull, WriteFailed) and Interrupted.
    """

    def __init__(self, descriptor: int, folder: Path, stop: Stop, tick: Tick, *, gentle: bool = False) -> None:
        self._folder = folder
        self._out = MemberWriter(descriptor, folder, stop, gentle=gentle)
        self._hasher = HashThread(gentle=gentle)
        self._stop = stop
        self._tick = tick
        self._shared = bytearray()
        self._in_shared: list[_Pending] = []
        self._pending: deque[_Pending] = deque()
        self._sums: IO[bytes] = tempfile.SpooledTemporaryFile(8 << 20, dir=str(folder))  # noqa: SIM115
        self._index: IO[bytes] = tempfile.SpooledTemporaryFile(8 << 20, dir=str(folder))  # noqa: SIM115
        self._index.write(index.first_line())
        self._sums_hash = hashing.new()
        self._tally = _Tally(Captured("", "", "", (), ""))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._out.__exit__(kind, error, trace)
        self._hasher.__exit__(kind, error, trace)
        for scratch in (self._sums, self._index):
            with suppress(OSError):  # a full disk says no once more while closing; it was told already
                scratch.close()

    def add(self, captured: Captured, skip: frozenset[Identity]) -> SourceSummary:
        """Write everything of one source. ``skip`` are folders never entered."""
        tally = self._tally = _Tally(captured)

        def report(found: Skipped) -> None:
            tally.skipped += not found.lost
            if found.lost:
                tally.lost.append(f"{shown(found.place)} {found.reason}")
            elif "socket" not in found.reason:  # every running service has some; nobody needs to read of them
                tally.notes.append(f"{shown(found.place)} {found.reason}; left out")

        for root in captured.roots:
            for found in files.walk(root, skip, report):
                self._stop.check()
                try:
                    self._entry(found)
                except OSError as error:  # the source's: trouble with our own disk has become a StoreError
                    report(Skipped(found.place, files.reason(error), lost=True))
        self._settle()
        return tally.summary()

    def finish(self, made: Manifest) -> Manifest:
        """Write sums, metadata, index and footer. Returns ``made`` with the checksum of the sums filled in."""
        self._settle()
        made = replace(made, sha256sums=self._sums_hash.hexdigest())
        mtime_ns = int(made.created_at.timestamp()) * 10**9
        self._own_file(manifest.SUMS_NAME, self._sums, mtime_ns)
        document = io.BytesIO()
        document.write(manifest.encode(made))
        manifest_slot = self._own_file(manifest.NAME, document, mtime_ns)
        index_slot = self._own_file(index.NAME, self._index, mtime_ns, tar.END)
        length = self._out.flush()
        self._out.raw(gzip.footer(manifest_slot.offset, index_slot.offset, length))
        return made

    # --- one entry ---------------------------------------------------------------------------------------------------

    def _entry(self, found: Found) -> None:
        mode = found.status.st_mode
        if stat.S_ISDIR(mode):
            self._directory(found)
        elif stat.S_ISLNK(mode):
            header = replace(describe(found, found.status, Type.SYMLINK), link=found.readlink())
            self._tally.links += 1
            self._share(header, b"", None)
        else:
            self._file(found)

    def _directory(self, found: Found) -> None:
        descriptor = found.open()
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISDIR(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "", found.place)
            header = replace(describe(found, status, Type.DIRECTORY), xattrs=self._xattrs(descriptor, found))
        finally:
            os.close(descriptor)
        self._tally.directories += 1
        self._share(header, b"", None)

    def _file(self, found: Found) -> None:
        if found.status.st_nlink > 1 and self._another_name(found):
            return
        descriptor = found.open()
        try:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "", found.place)
            header = replace(describe(found, status, Type.FILE), xattrs=self._xattrs(descriptor, found))
            if status.st_size - status.st_blocks * 512 >= _WORTHWHILE_HOLE:
                extents = files.data_extents(descriptor, status.st_size)
                if status.st_size - sum(length for _, length in extents) >= _WORTHWHILE_HOLE:
                    # GNU tar makes a hole at the end only where an empty stretch marks it.
                    header = replace(header, extents=(*extents, (status.st_size, 0)))
            reading = Reading(descriptor, header, self._tally.lost, self._stop)
            digest = self._content(header, reading)
            self._look_again(header, status, os.fstat(descriptor), reading.told)
        finally:
            os.close(descriptor)
        if status.st_nlink > 1:
            self._tally.linked[status.st_dev, status.st_ino] = _Linked(header, digest, status.st_nlink - 1)

    def _another_name(self, found: Found) -> bool:
        """Stores a further name of a file that is in the archive already; False where it is not that file."""
        identity = (found.status.st_dev, found.status.st_ino)
        known = self._tally.linked.get(identity)
        # A file that was removed gives its inode number to the next one, which has to be read for itself.
        if known is None or _version(known.header) != (found.status.st_size, found.status.st_mtime_ns):
            return False
        known.names_left -= 1
        if known.names_left == 0:
            del self._tally.linked[identity]
        self._tally.links += 1
        self._share(replace(describe(found, found.status, Type.HARDLINK), link=known.header.path), b"", known.digest)
        return True

    def _xattrs(self, descriptor: int, found: Found) -> dict[str, bytes]:
        values, complete = xattrs(descriptor)
        if not complete:
            self._tally.notes.append(
                f"{shown(found.place)} has more attributes than an archive can hold; some are left out"
            )
        return values

    def _content(self, header: Header, reading: Reading) -> Future[str]:
        if header.size_bytes <= SMALL and header.extents is None:
            data = b"".join(reading.pieces())
            digest = hashing.known(sums.of(data))
            self._share(header, data, digest)
            self._tick(len(data), 1, header.path)
        else:
            digest = self._large(header, reading)
            self._tick(0, 1, header.path)
        self._tally.files += 1
        self._tally.size_bytes += header.size_bytes
        self._tally.newest_ns = max(self._tally.newest_ns or 0, header.mtime_ns)
        return digest

    def _look_again(self, header: Header, before: os.stat_result, after: os.stat_result, told: bool) -> None:
        if after.st_size > before.st_size:
            # Not a loss: all that was there when it was opened is in the backup (docs/decisions/0004).
            self._tally.notes.append(f"{shown(header.path)} grew while it was read; the backup has its first part")
        elif after.st_mtime_ns != before.st_mtime_ns and not told:
            self._tally.notes.append(f"{shown(header.path)} changed while it was read")

    # --- into members ------------------------------------------------------------------------------------------------

    def _share(self, header: Header, data: bytes, digest: Future[str] | None) -> None:
        pending = _Pending(header, None, len(self._shared), digest)
        self._shared += tar.encode(header) + data + tar.padding(len(data))
        self._in_shared.append(pending)
        self._pending.append(pending)
        if len(self._shared) >= SHARED:
            self._close_shared()

    def _large(self, header: Header, reading: Reading) -> Future[str]:
        pieces = reading.placed_pieces()
        first = next(pieces, None)  # before the header goes out: it may turn out that the file cannot be read
        pending = _Pending(header, None, len(self._shared), None)
        self._shared += tar.encode(header)
        self._in_shared.append(pending)
        self._close_shared()
        hash_ = hashing.new()
        position, stored = 0, 0
        for offset, data in chain([first] if first else [], pieces):
            self._hash_hole(hash_, offset - position)
            self._hasher.update(hash_, data)
            pending.last = self._out.put(data, aligned=pending.first is None)
            pending.first = pending.first or pending.last
            position, stored = offset + len(data), stored + len(data)
            self._tick(len(data), 0, header.path)
        self._hash_hole(hash_, header.size_bytes - position)
        pending.digest = self._hasher.digest(hash_)
        self._shared += tar.padding(stored)
        self._pending.append(pending)
        self._note_written()
        return pending.digest

    def _hash_hole(self, hash_: Hash, size_bytes: int) -> None:
        """SHA256SUMS is checked on the unpacked file, where a hole reads as zeros."""
        while size_bytes > 0:
            self._stop.check()
            part = ZEROS if size_bytes >= len(ZEROS) else ZEROS[:size_bytes]
            self._hasher.update(hash_, part)
            self._tick(len(part), 0, "")
            size_bytes -= len(part)

    def _close_shared(self) -> None:
        if not self._shared:
            return
        slot = self._out.put(bytes(self._shared))
        for pending in self._in_shared:
            pending.head = slot
        self._shared.clear()
        self._in_shared.clear()
        self._note_written()

    def _settle(self) -> None:
        self._close_shared()
        self._out.flush()
        self._note_written()

    def _note_written(self) -> None:
        """Entries whose last member has its place go into sums and index, in their order in the archive."""
        while self._pending:
            pending = self._pending[0]
            last = pending.last or pending.head
            if last is None or pending.head is None or last.end < 0:
                return
            self._pending.popleft()
            header = pending.header
            digest = pending.digest.result() if pending.digest else ""
            self._tally.modes.update(mode_line(header))
            line = sums.line(digest, header.path) if digest else b""
            self._tally.sums.update(line)
            self._sums_hash.update(line)
            entry = index.Entry(
                path=header.path,
                type=header.type,
                size_bytes=header.size_bytes,
                mode=header.mode,
                mtime_ns=header.mtime_ns,
                link=header.link,
                sha256=digest,
                member=pending.head.offset,
                inside=pending.inside,
                content=pending.first.offset if pending.first else 0,
                end=last.end,
                stored_bytes=header.stored_bytes,
            )
            with self._our_disk():
                self._sums.write(line)
                self._index.write(index.line(entry))

    # --- our own files at the end ------------------------------------------------------------------------------------

    @contextmanager
    def _our_disk(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise files.storing(error, self._folder) from error

    def _own_file(self, path: str, content: IO[bytes], mtime_ns: int, end: bytes = b"") -> Slot:
        self._close_shared()
        size_bytes = content.tell()
        with self._our_disk():
            content.seek(0)
        first = self._out.put(tar.encode(Header(path, Type.FILE, size_bytes, 0o600, mtime_ns=mtime_ns)))
        while True:
            with self._our_disk():
                piece = content.read(gzip.LARGE_CHUNK)
            if not piece:
                break
            self._out.put(piece)
        if rest := tar.padding(size_bytes) + end:
            self._out.put(rest)
        return first

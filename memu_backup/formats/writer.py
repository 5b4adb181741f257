"""Writes an archive: entries in, a tar of gzip members out, with sums, metadata, index and footer at its end."""

from __future__ import annotations

import errno
import io
import os
import stat
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from memu_backup import files
from memu_backup.files import shown
from memu_backup.formats import gzip, hashing, index, manifest, sums, tar
from memu_backup.formats.earlier import Earlier, Place
from memu_backup.formats.hashing import Digest, HashThread
from memu_backup.formats.intake import ZEROS, Reading, describe, version, xattrs
from memu_backup.formats.members import MemberWriter, Slot
from memu_backup.formats.tally import Linked, Tally, mode_line
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Captured, Manifest, SourceSummary
from memu_backup.walk import Found, Identity, Skipped, walk
from memu_backup.work import Stop

SMALL = 256 * 1024
"""Files up to this size share a member; above it each has members of its own, aligned."""

SHARED = 1024 * 1024
"""Content at which a shared member is closed, whatever comes next."""

SHARED_LEAST = 32 * 1024
"""Content at which it is closed by an entry in ``_CUT``, judged by its name: so that after a file that is new or has
grown the members soon hold again what they held in an earlier archive."""

_CUT = 8

_WORTHWHILE_HOLE = 1024 * 1024
"""Holes below this in sum are written as zeros: every tar can read that, and it costs nothing."""

Tick = Callable[[int, int, str], None]
"""Content bytes and files done since the last call, and what is being read now."""


@dataclass(slots=True)
class _Pending:
    """An entry whose members are on their way; it goes into sums and index once they have an offset."""

    header: Header
    head: Slot | None
    inside: int
    digest: Digest | None
    identity: tuple[int, int] = (0, 0)
    first: Slot | None = None
    last: Slot | None = None


def _version(header: Header) -> tuple[int, int]:
    return header.size_bytes, header.mtime_ns


class ArchiveWriter:
    """Writes one archive to ``descriptor``. Use as a context manager; call ``add`` a source, then ``finish`` once.

    ``begun_at`` is when the run began: what was changed shortly before is read again the next time.
    ``folder`` is where the archive lies; what grows with the number of files goes there too, without a name. What is
    wrong with a source goes into its summary. What has not changed since ``earlier`` is taken over from it;
    ``shares_blocks`` tells whether anything was. Raises StoreError (DiskFull, WriteFailed), SharedDamage, Interrupted.
    """

    def __init__(
        self,
        descriptor: int,
        folder: Path,
        stop: Stop,
        tick: Tick,
        begun_at: datetime,
        earlier: Earlier | None = None,
        *,
        gentle: bool = False,
    ) -> None:
        self.shares_blocks = False
        self._begun_ns = int(begun_at.timestamp() * 10**9)
        self._earlier = earlier
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
        self._tally = Tally(Captured("", "", "", (), ""))

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
        tally = self._tally = Tally(captured)

        def report(found: Skipped) -> None:
            tally.skipped += not found.lost
            if found.lost:
                tally.lost.append(f"{shown(found.place)} {found.reason}")
            elif "socket" not in found.reason:  # every running service has some; nobody needs to read of them
                tally.notes.append(f"{shown(found.place)} {found.reason}; left out")

        # What is large and may be taken over is not read.
        ahead_bytes = SMALL if self._earlier else sys.maxsize
        for root in captured.roots:
            for found in walk(root, skip, report, ahead_bytes=ahead_bytes):
                self._stop.check()
                try:
                    self._entry(found)
                except OSError as error:  # the source's: trouble with our own disk has become a StoreError
                    report(Skipped(found.place, files.reason(error), lost=True))
        self._settle()
        return tally.summary()

    def finish(self, made: Manifest) -> Manifest:
        """Write sums, metadata, index and footer. Returns ``made`` with what is known only now filled in: the checksum
        of the sums, and how much is shared.
        """
        self._settle()
        shared_bytes = self._earlier.shared_bytes if self._earlier else 0
        made = replace(made, sha256sums=self._sums_hash.hexdigest(), shared_bytes=shared_bytes)
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
            header = describe(found, status, Type.DIRECTORY, self._xattrs(descriptor, found))
        finally:
            os.close(descriptor)
        self._tally.directories += 1
        self._share(header, b"", None)

    def _file(self, found: Found) -> None:
        if found.status.st_nlink > 1 and self._another_name(found):
            return
        descriptor = found.open()
        try:
            if found.status.st_size <= SMALL and self._small(found, descriptor):
                return
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise FileNotFoundError(errno.ENOENT, "", found.place)
            header = describe(found, status, Type.FILE, self._xattrs(descriptor, found))
            if status.st_size - status.st_blocks * 512 >= _WORTHWHILE_HOLE:
                extents = files.data_extents(descriptor, status.st_size)
                if status.st_size - sum(length for _, length in extents) >= _WORTHWHILE_HOLE:
                    # GNU tar makes a hole at the end only where an empty stretch marks it.
                    header = replace(header, extents=(*extents, (status.st_size, 0)))
            digest = self._content(header, self._reading(descriptor, header, status))
        finally:
            os.close(descriptor)
        if status.st_nlink > 1:
            self._tally.linked[status.st_dev, status.st_ino] = Linked(header, digest, status.st_nlink - 1)

    def _small(self, found: Found, descriptor: int) -> bool:
        """Store a small file that nobody touched since it was found, which most are, with as few calls as that takes.

        False where it is not so; nothing was stored then, and nothing told.
        """
        status = found.status
        if status.st_nlink > 1:
            return False
        attributes, complete = xattrs(descriptor)
        try:
            data = os.pread(descriptor, status.st_size, 0)
        except OSError:
            return False
        if not complete or len(data) != status.st_size or version(os.fstat(descriptor)) != version(status):
            return False
        header = describe(found, status, Type.FILE, attributes)
        self._share(header, data, hashing.Known(sums.of(data)))
        self._count(header)
        self._tick(len(data), 1, header.path)
        return True

    def _reading(self, descriptor: int, header: Header, status: os.stat_result) -> Reading:
        return Reading(descriptor, header, status, self._tally.lost, self._stop, self._begun_ns)

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

    def _content(self, header: Header, reading: Reading) -> Digest:
        digest: Digest
        if header.size_bytes <= SMALL and header.extents is None:
            data = b"".join(reading.pieces())
            digest = hashing.Known(sums.of(data))
            self._share(header, data, digest)
            self._tick(len(data), 1, header.path)
        elif kept := self._earlier and self._earlier.file(header, reading.identity()):
            digest = self._take_over(header, kept)
        else:
            digest = self._large(header, reading)
            self._tick(0, 1, header.path)
        if note := reading.note():
            self._tally.notes.append(f"{shown(header.path)} {note}")
        self._count(header)
        return digest

    def _count(self, header: Header) -> None:
        self._tally.files += 1
        self._tally.size_bytes += header.size_bytes
        self._tally.newest_ns = max(self._tally.newest_ns or 0, header.mtime_ns)

    # --- into members ------------------------------------------------------------------------------------------------

    def _share(self, header: Header, data: bytes, digest: Digest | None) -> None:
        pending = _Pending(header, None, len(self._shared), digest)
        self._shared += tar.encode(header) + data + tar.padding(len(data))
        self._in_shared.append(pending)
        self._pending.append(pending)
        if len(self._shared) >= (SHARED if zlib.crc32(os.fsencode(header.path)) % _CUT else SHARED_LEAST):
            self._close_shared()

    def _large(self, header: Header, reading: Reading) -> Digest:
        pieces = reading.placed_pieces()
        first = next(pieces, None)  # before the header goes out: it may turn out that the file cannot be read
        pending = self._header_alone(header)
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
        pending.identity = reading.identity()
        self._shared += tar.padding(stored)
        self._pending.append(pending)
        self._note_written()
        return pending.digest

    def _take_over(self, header: Header, kept: index.Entry) -> Digest:
        """A file that has not changed: its content is shared with the earlier archive, its headers are today's."""
        pending = self._header_alone(header)
        pending.digest = hashing.Known(kept.sha256)
        pending.identity = (kept.inode, kept.ctime_ns)
        pending.first = pending.last = self._take((kept.content, kept.end))
        self._shared += tar.padding(header.size_bytes)
        self._pending.append(pending)
        self._note_written()
        self._tick(header.size_bytes, 1, header.path)
        return pending.digest

    def _take(self, place: Place) -> Slot:
        assert self._earlier
        self.shares_blocks = True
        return self._out.take(place[1] - place[0], partial(self._earlier.copy, place))

    def _header_alone(self, header: Header) -> _Pending:
        """Write the headers of a file whose content goes into members of its own."""
        pending = _Pending(header, None, len(self._shared), None)
        self._shared += tar.encode(header)
        self._in_shared.append(pending)
        self._close_shared()
        return pending

    def _hash_hole(self, hash_: hashing.Hash, size_bytes: int) -> None:
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
        content = bytes(self._shared)
        worthwhile = len(content) >= SHARED_LEAST
        place = None
        if self._earlier and worthwhile:
            place = self._earlier.member(self._in_shared[0].header.path, content)
        slot = self._take(place) if place else self._out.put(content, aligned=worthwhile)
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
                inode=pending.identity[0],
                ctime_ns=pending.identity[1],
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

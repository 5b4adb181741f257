"""Writes an archive: entries in, a tar of gzip members out, with sums, metadata, index and footer at its end."""

from __future__ import annotations

import io
import os
import sys
import tempfile
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from memu_backup import files
from memu_backup.files import Tick
from memu_backup.formats import gzip, hashing, index, manifest, sums, tar
from memu_backup.formats.earlier import Earlier, Place
from memu_backup.formats.gather import SMALL, Gathering
from memu_backup.formats.hashing import Digest, HashThread
from memu_backup.formats.intake import ZEROS, Reading
from memu_backup.formats.members import MemberWriter, Slot
from memu_backup.formats.tally import Tally, mode_line
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Captured, Manifest, Root, SourceSummary
from memu_backup.walk import Found, Identity
from memu_backup.work import Stop

SHARED = 1024 * 1024
"""Content at which a shared member is closed, whatever comes next. What is larger than ``gather.SMALL`` has members of
its own, aligned."""

SHARED_LEAST = 32 * 1024
"""Content at which it is closed by an entry in ``_CUT``, judged by its name: so that after a file that is new or has
grown the members soon hold again what they held in an earlier archive."""

_CUT = 8


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


def _placed(header: Header, content: Iterator[memoryview]) -> Iterator[tuple[int, bytes]]:
    """Stored content with the offsets at which it belongs."""
    extents = iter(((0, header.size_bytes),) if header.extents is None else header.extents)
    position = left = 0
    for block in content:
        view = block
        while view:
            while left == 0:
                position, left = next(extents)
            piece = bytes(view[:left])
            yield position, piece
            position, left, view = position + len(piece), left - len(piece), view[len(piece) :]


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
        self._begun_at = begun_at
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
        gathering = Gathering(captured, self, self._stop, self._tick, self._begun_at)
        self._tally = gathering.tally
        # What is large and may be taken over is not read.
        gathering.run(skip, SMALL if self._earlier else sys.maxsize)
        self._settle()
        return self._tally.summary()

    def take_in(self, summary: SourceSummary, entries: Iterable[tuple[Header, Iterator[memoryview], str]]) -> None:
        """Write what a backup of another form has of one source: headers, stored content, and SHA-256 of files.

        Raises what ``entries`` raise, and as ``add``.
        """
        self._tally = Tally(Captured(summary.name, summary.kind, summary.place, (), summary.consistency))
        for header, content, sha256 in entries:
            self._stop.check()
            if header.size_bytes > SMALL or header.extents is not None:
                self._read(header, _placed(header, content), lambda: (0, 0))
            else:
                data = b"".join(content)
                of_data = sums.of(data) if header.type is Type.FILE else sha256
                self.small(header, data, hashing.Known(of_data) if of_data else None, (0, 0))
        self._settle()

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

    def end(self) -> None:
        """In place of ``finish``: end it as any program's tar, without files of our own."""
        self._settle()
        self._out.put(tar.END)
        self._out.flush()

    # --- what is gathered --------------------------------------------------------------------------------------------

    def begin(self, root: Root) -> None:
        """All members look alike."""

    def unread(self, found: Found) -> None:  # noqa: ARG002  its headers are today's
        return None

    def small(self, header: Header, data: bytes, digest: Digest | None, known_by: Identity) -> None:  # noqa: ARG002
        pending = _Pending(header, None, len(self._shared), digest)
        self._shared += tar.encode(header) + data + tar.padding(len(data))
        self._in_shared.append(pending)
        self._pending.append(pending)
        if len(self._shared) >= (SHARED if zlib.crc32(os.fsencode(header.path)) % _CUT else SHARED_LEAST):
            self._close_shared()

    def large(self, header: Header, descriptor: int, reading: Reading) -> Digest:  # noqa: ARG002
        kept = self._earlier and self._earlier.file(header, reading.identity())
        return self._take_over(header, kept) if kept else self._read(header, reading.placed_pieces(), reading.identity)

    # --- into members ------------------------------------------------------------------------------------------------

    def _read(
        self, header: Header, pieces: Iterator[tuple[int, bytes | memoryview]], identity: Callable[[], Identity]
    ) -> Digest:
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
        pending.identity = identity()
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
        self._tick(header.size_bytes, 0, header.path)
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

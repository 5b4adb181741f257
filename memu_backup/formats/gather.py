"""Goes through what a source hands out, gives each entry to whoever writes it, counts, and tells what was lost."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping
from dataclasses import replace
from datetime import datetime
from typing import Protocol

from memu_backup import files
from memu_backup.files import shown
from memu_backup.formats import hashing, sums
from memu_backup.formats.hashing import Digest
from memu_backup.formats.intake import Reading, describe, identity, version, xattrs
from memu_backup.formats.tally import Linked, Tally
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Captured, Root
from memu_backup.walk import Found, Identity, Skipped, walk
from memu_backup.work import Stop

SMALL = 256 * 1024
"""Files up to this size are handed on in one piece."""

_WORTHWHILE_HOLE = 1024 * 1024
"""Holes below this in sum are written as zeros: every tar can read that, and it costs nothing."""


class Sink(Protocol):
    """Who writes entries down. OSErrors of its own disk have to come out as StoreErrors: those of a source are told of
    in the backup and cost it nothing else.
    """

    def begin(self, root: Root) -> None:
        """What comes next is found below ``root``."""
        ...

    def unread(self, found: Found) -> tuple[Header, Digest] | None:
        """A file that is known not to have changed, and is written down without being opened; None for all others."""
        ...

    def small(self, header: Header, data: bytes, digest: Digest | None, known_by: Identity) -> None:
        """An entry with all its content. ``known_by`` is as ``Reading.identity``."""
        ...

    def large(self, header: Header, descriptor: int, reading: Reading) -> Digest:
        """A file of more than ``SMALL``, or with holes. What cannot be read from its first byte on raises OSError, and
        must leave nothing.
        """
        ...


def _version(header: Header) -> tuple[int, int]:
    return header.size_bytes, header.mtime_ns


class Gathering:
    """One source on its way into ``sink``. ``begun_at`` is when the run began: what was changed shortly before is not
    known again the next time.
    """

    def __init__(self, captured: Captured, sink: Sink, stop: Stop, tick: files.Tick, begun_at: datetime) -> None:
        self.tally = Tally(captured)
        self._sink = sink
        self._stop = stop
        self._tick = tick
        self._begun_ns = int(begun_at.timestamp() * 10**9)

    def run(self, skip: frozenset[Identity], ahead_bytes: int) -> None:
        """``skip`` are folders never entered; for ``ahead_bytes`` see ``walk``. Raises StoreError, Interrupted."""
        crosscheck = self.tally.captured.crosscheck
        for root in self.tally.captured.roots:
            self._sink.begin(root)
            for found in walk(root, skip, self._report, ahead_bytes=ahead_bytes):
                self._stop.check()
                try:
                    self._entry(found)
                except OSError as error:  # the source's: trouble with our own disk has become a StoreError
                    self._report(Skipped(found.place, files.reason(error), lost=True))
                    continue
                if crosscheck:
                    is_file, changed_ns = stat.S_ISREG(found.status.st_mode), found.status.st_ctime_ns
                    crosscheck.see(found.place[len(root.place) :], is_file=is_file, changed_ns=changed_ns)
        if crosscheck:
            self.tally.compared, warnings = crosscheck.told(self._stop.check)
            self.tally.notes += warnings

    def _report(self, found: Skipped) -> None:
        self.tally.skipped += not found.lost
        if found.lost:
            self.tally.lost.append(f"{shown(found.place)} {found.reason}")
        elif "socket" not in found.reason:  # every running service has some; nobody needs to read of them
            self.tally.notes.append(f"{shown(found.place)} {found.reason}; left out")

    def _entry(self, found: Found) -> None:
        mode = found.status.st_mode
        if stat.S_ISDIR(mode):
            self._directory(found)
        elif stat.S_ISLNK(mode):
            header = replace(describe(found, found.status, Type.SYMLINK), link=found.readlink())
            self.tally.links += 1
            self._sink.small(header, b"", None, (0, 0))
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
        self.tally.directories += 1
        self._sink.small(header, b"", None, (0, 0))

    def _file(self, found: Found) -> None:
        if found.status.st_nlink > 1 and self._another_name(found):
            return
        if unread := self._sink.unread(found):
            header, digest = unread
            self._count(header)
            self._tick(header.size_bytes, 1, header.path)
            self._remember(found.status, header, digest)
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
            digest = self._content(header, descriptor, status)
        finally:
            os.close(descriptor)
        self._remember(status, header, digest)

    def _remember(self, status: os.stat_result, header: Header, digest: Digest) -> None:
        if status.st_nlink > 1:
            self.tally.linked[status.st_dev, status.st_ino] = Linked(header, digest, status.st_nlink - 1)

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
        self._sink.small(header, data, hashing.Known(sums.of(data)), identity(status, self._begun_ns))
        self._count(header)
        self._tick(len(data), 1, header.path)
        return True

    def _another_name(self, found: Found) -> bool:
        """Stores a further name of a file that was written down already; False where it is not that file."""
        of = (found.status.st_dev, found.status.st_ino)
        known = self.tally.linked.get(of)
        # A file that was removed gives its inode number to the next one, which has to be read for itself.
        if known is None or _version(known.header) != (found.status.st_size, found.status.st_mtime_ns):
            return False
        known.names_left -= 1
        if known.names_left == 0:
            del self.tally.linked[of]
        self.tally.links += 1
        header = replace(describe(found, found.status, Type.HARDLINK), link=known.header.path)
        self._sink.small(header, b"", known.digest, (0, 0))
        return True

    def _xattrs(self, descriptor: int, found: Found) -> Mapping[str, bytes]:
        values, complete = xattrs(descriptor)
        if not complete:
            self.tally.notes.append(
                f"{shown(found.place)} has more attributes than an archive can hold; some are left out"
            )
        return values

    def _content(self, header: Header, descriptor: int, status: os.stat_result) -> Digest:
        digest: Digest
        reading = Reading(descriptor, header, status, self.tally.lost, self._stop, self._begun_ns)
        if header.size_bytes <= SMALL and header.extents is None:
            data = b"".join(reading.pieces())
            digest = hashing.Known(sums.of(data))
            self._sink.small(header, data, digest, reading.identity())
            self._tick(len(data), 1, header.path)
        else:
            digest = self._sink.large(header, descriptor, reading)
            self._tick(0, 1, header.path)
        if note := reading.note():
            self.tally.notes.append(f"{shown(header.path)} {note}")
        self._count(header)
        return digest

    def _count(self, header: Header) -> None:
        self.tally.files += 1
        self.tally.size_bytes += header.size_bytes
        self.tally.newest_ns = max(self.tally.newest_ns or 0, header.mtime_ns)

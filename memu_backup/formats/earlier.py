"""Takes over from an earlier archive what has not changed since, by sharing its blocks and not by writing them again.

btrfs and XFS can do that (ioctl_ficlonerange(2)). Sharing changes nothing in what is read: each archive is whole by
itself, stays so when the other is deleted, and is proved whole after it was written.
"""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from isal import isal_zlib

from memu_backup.errors import ArchiveError, SharedDamage, UsageError
from memu_backup.formats import gzip
from memu_backup.formats.index import Entry
from memu_backup.formats.reader import ArchiveReader
from memu_backup.formats.tar import Header, Type
from memu_backup.work import Stop

log = logging.getLogger(__name__)

_FICLONERANGE = 0x4020940D
_RANGE = struct.Struct("=qQQQ")  # source, offset in it, length, offset in the target
_BLOCK = 1024 * 1024

Place = tuple[int, int]
"""Where members begin and end in an archive; the beginning is a multiple of ``gzip.ALIGNMENT``."""


class Earlier:
    """An archive of ours, open at ``descriptor``, to take over from.

    Large files are known again by their path, size, times and inode; members that small files share by every byte.
    ``shared_bytes`` is how much of it was shared up to now, without what had to be copied.
    """

    def __init__(self, reader: ArchiveReader, descriptor: int) -> None:
        """Reads the index. Raises DamagedArchive."""
        self.shared_bytes = 0
        self._descriptor = descriptor
        self._name = reader.path.name
        self._files: dict[str, Entry] = {}
        self._members: dict[str, Place] = {}
        if reader.indexed and reader.whole:
            self._remember(reader)

    def _remember(self, reader: ArchiveReader) -> None:
        member = -1
        for entry in reader.index():
            if entry.content and entry.type is Type.FILE and entry.inode and _shareable(entry.content, entry.end):
                self._files[entry.path] = entry
            if entry.member != member and not entry.content and _shareable(entry.member, entry.end):
                self._members[entry.path] = (entry.member, entry.end)
            member = entry.member

    def file(self, header: Header, identity: Place) -> Entry | None:
        """The same file, where nothing about it has changed. ``identity`` is its inode and ctime."""
        found = self._files.get(header.path)
        now = (header.size_bytes, header.mtime_ns, *identity)
        return found if found and (found.size_bytes, found.mtime_ns, found.inode, found.ctime_ns) == now else None

    def member(self, first: str, content: bytes) -> Place | None:
        """The member that begins with the entry ``first`` and unpacks to just this content."""
        place = self._members.get(first)
        if place is None:
            return None
        try:
            packed = os.pread(self._descriptor, place[1] - place[0], place[0])
            # The fast library will do: whatever is not the same comes to nothing worse than being written anew.
            return place if isal_zlib.decompress(packed, 31, len(content)) == content else None
        except (isal_zlib.IsalError, OSError):  # type: ignore[misc]  # the library's types call it an instance
            return None

    def copy(self, place: Place, target: int, offset: int) -> None:
        """Bring a range to ``target`` at ``offset``, a multiple of ``gzip.ALIGNMENT``: whole blocks are shared, the
        rest of the last one is copied.

        Raises OSError of the target, and SharedDamage where this archive cannot be read.
        """
        start, end = place
        whole = (end - start) // gzip.ALIGNMENT * gzip.ALIGNMENT
        try:
            if whole:
                _share(self._descriptor, start, whole, target, offset)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            whole = 0  # it has shared this block as often as it can, or another reason to say no here
        self.shared_bytes += whole
        for position in range(start + whole, end, _BLOCK):
            data = self._read(position, min(_BLOCK, end - position))
            while data:
                written = os.pwrite(target, data, offset + position - start)
                position, data = position + written, data[written:]

    def _read(self, position: int, size: int) -> bytes:
        try:
            data = os.pread(self._descriptor, size, position)
        except OSError as error:
            raise SharedDamage(f"{self._name} cannot be read at byte {position:,} ({error.strerror}).") from error
        if len(data) != size:
            raise SharedDamage(f"{self._name} ends before byte {position + size:,}.")
        return data


def _shareable(start: int, end: int) -> bool:
    return start % gzip.ALIGNMENT == 0 and end - start >= gzip.ALIGNMENT


def _share(source: int, start: int, length: int, target: int, offset: int) -> None:
    fcntl.ioctl(target, _FICLONERANGE, _RANGE.pack(source, start, length, offset))


def _can_share(source: int, target: int) -> bool:
    """Whether the filesystem can do it: tried with the first block."""
    try:
        _share(source, 0, gzip.ALIGNMENT, target, 0)
        os.ftruncate(target, 0)
    except OSError:
        return False
    return True


@contextmanager
def opened(path: Path, target: int, stop: Stop) -> Iterator[Earlier | None]:
    """The archive at ``path``; None where nothing of it can be taken over into the empty file ``target``."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        log.warning("%s cannot be opened (%s), so everything is written anew.", path.name, error.strerror)
        yield None
        return
    try:
        yield _look(path, descriptor, stop) if _can_share(descriptor, target) else None
    finally:
        os.close(descriptor)


def _look(path: Path, descriptor: int, stop: Stop) -> Earlier | None:
    try:
        with ArchiveReader(path, stop) as reader:
            return Earlier(reader, descriptor)
    except (ArchiveError, UsageError) as error:  # damaged; or removed meanwhile
        log.warning("%s cannot be read (%s), so everything is written anew.", path.name, error)
        return None

"""Reads what goes into an archive: each file to the length in its header, whatever its owner does meanwhile."""

from __future__ import annotations

import grp
import os
import pwd
import time
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import cache, partial
from types import MappingProxyType

from memu_backup import files
from memu_backup.files import Passing, shown
from memu_backup.formats import gzip, tar
from memu_backup.formats.tar import Header, Type
from memu_backup.walk import Found
from memu_backup.work import Stop

_READ_TRIES = 3
_XATTRS_LIMIT = 1024 * 1024
_REST_NS = 15 * 60 * 10**9
"""A file that was changed this shortly before the run may be changed again without another ctime. What is written
through mmap gets its time with the first store to a page that is on the disk, and later ones none until the kernel has
brought it there again, which it begins after 30 seconds and may take minutes over."""

ZEROS = bytes(gzip.LARGE_CHUNK)


class Reading:
    """Reads exactly as many bytes as the header says, whatever the file does meanwhile, and tells what it did.

    ``begun_ns`` is when the run began, in nanoseconds since 1970.
    """

    def __init__(
        self, descriptor: int, header: Header, before: os.stat_result, lost: list[str], stop: Stop, begun_ns: int
    ) -> None:
        self._descriptor, self._header, self._lost, self._stop = descriptor, header, lost, stop
        self._before, self._begun_ns = before, begun_ns
        self.told = self._given = False

    def pieces(self) -> Iterator[bytes]:
        return (data for _, data in self.placed_pieces())

    def placed_pieces(self) -> Iterator[tuple[int, bytes]]:
        whole = ((0, self._header.size_bytes),)
        passing = Passing(partial(os.posix_fadvise, self._descriptor))
        for start, length in whole if self._header.extents is None else self._header.extents:
            for offset in range(start, start + length, gzip.LARGE_CHUNK):
                self._stop.check()
                data = self._exactly(offset, min(gzip.LARGE_CHUNK, start + length - offset))
                self._given = True
                yield offset, data
                passing.passed(offset + len(data))
        passing.end()

    def identity(self) -> tuple[int, int]:
        """Inode and ctime, by which the same file is known again another night; zeros where it may have moved."""
        after = self._after()
        if after is None:
            return 0, 0
        same = version(after) == version(self._before) and not self.told
        return identity(after, self._begun_ns) if same and self._header.extents is None else (0, 0)

    def note(self) -> str:
        """What its owner did meanwhile, as half a sentence; nothing where it was left alone, or a loss was told."""
        after = self._after()
        if after is None:
            return "could not be looked at again after it was read" if not self.told else ""
        if after.st_size > self._before.st_size:
            # Not a loss: all that was there when it was opened is in the backup (docs/decisions/0004).
            return "grew while it was read; the backup has its first part"
        moved = after.st_mtime_ns != self._before.st_mtime_ns and not self.told
        return "changed while it was read" if moved else ""

    def _after(self) -> os.stat_result | None:
        """What it is now; None where nobody can say, as of a file that has vanished from its network share.

        By now it is in the archive, and nothing that goes wrong with it may lead away from there.
        """
        try:
            return os.fstat(self._descriptor)
        except OSError:
            return None

    def _exactly(self, offset: int, size: int) -> bytes:
        data = self._read(offset, size)
        if len(data) == size:
            return data
        parts = [data]
        got = len(data)
        while got < size:
            part = self._read(offset + got, size - got)
            if not part:
                self._tell("became shorter while it was read; the rest is zeros in the backup")
                part = ZEROS[: size - got]
            parts.append(part)
            got += len(part)
        return b"".join(parts)

    def _read(self, offset: int, size: int) -> bytes:
        for attempt in range(_READ_TRIES):
            try:
                return os.pread(self._descriptor, size, offset)
            except OSError as error:
                if attempt == _READ_TRIES - 1:
                    if not self._given:  # nothing of it was written yet: better no file than one of zeros
                        raise OSError(error.errno, error.strerror, self._header.path) from error
                    self._tell(f"{files.reason(error)}; around byte {offset:,} the backup has zeros instead")
                time.sleep(0.05)
        return ZEROS[:size]

    def _tell(self, what: str) -> None:
        if not self.told:
            self._lost.append(f"{shown(self._header.path)} {what}")
        self.told = True


def identity(status: os.stat_result, begun_ns: int) -> tuple[int, int]:
    """Inode and ctime; zeros for what was changed too shortly before the run to be known by them."""
    rested = begun_ns - status.st_ctime_ns > _REST_NS
    return (status.st_ino, status.st_ctime_ns) if rested and status.st_ino < 2**63 else (0, 0)


def version(status: os.stat_result) -> tuple[int, int, int, int, int]:
    """What stays the same for as long as nobody touches a file."""
    return status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino, status.st_dev


def describe(
    found: Found, status: os.stat_result, kind: Type, attributes: Mapping[str, bytes] = MappingProxyType({})
) -> Header:
    return tar.from_status(found.place, status, kind, _user(status.st_uid), _group(status.st_gid), attributes)


def xattrs(descriptor: int) -> tuple[dict[str, bytes], bool]:
    """Extended attributes, ACLs among them, and whether these are all: XFS can hold more than any header may."""
    values: dict[str, bytes] = {}
    room = _XATTRS_LIMIT
    complete = True
    with suppress(OSError):  # a filesystem without them
        for name in os.listxattr(descriptor):
            with suppress(OSError):  # gone meanwhile, or for others' eyes
                value = os.getxattr(descriptor, name)
                room -= len(value)
                if room < 0:
                    complete = False
                    break
                values[name] = value
    return values, complete


@cache
def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return ""


@cache
def _group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return ""

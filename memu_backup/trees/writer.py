"""Writes a tree: what is new is copied, and what has not changed is one file with that of the backup before."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import stat
import sys
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from memu_backup import files
from memu_backup.descent import FOLDER_FLAGS, Descent
from memu_backup.errors import DamagedArchive
from memu_backup.files import Settling, Tick, shown
from memu_backup.formats import hashing, manifest, sums
from memu_backup.formats.gather import Gathering
from memu_backup.formats.hashing import Digest, HashThread, Known
from memu_backup.formats.intake import Reading
from memu_backup.formats.tally import Tally, mode_line
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Captured, Manifest, Root, SourceSummary
from memu_backup.rights import Rights
from memu_backup.trees import index
from memu_backup.trees.copying import FULL, Copying, Unreadable, copy_range, write
from memu_backup.trees.earlier import Earlier
from memu_backup.trees.index import Line
from memu_backup.walk import Found, Identity
from memu_backup.work import Stop

log = logging.getLogger(__name__)

_NEW = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
_OLD = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
_FICLONE = 0x40049409
_SETTLED = 64 * 1024


class TreeWriter:
    """Fills the empty folder ``root``, and ``notes`` beside it with index, sums and metadata. Use as a context manager;
    call ``add`` a source, then ``finish`` once.

    ``begun_at`` is when the run began. What has not changed since ``earlier`` shares its inode, or with ``reflink`` its
    blocks. ``shared_bytes`` is how much that was, ``kept`` as in ``Written``, ``spoiled`` are paths whose file there is
    not what it was.
    Raises StoreError (DiskFull, WriteFailed), Interrupted.
    """

    def __init__(
        self,
        root: Path,
        notes: Path,
        stop: Stop,
        tick: Tick,
        begun_at: datetime,
        earlier: Earlier | None,
        *,
        reflink: bool = False,
    ) -> None:
        self.shared_bytes = 0
        self.kept: Counter[str] = Counter()
        self.spoiled: list[str] = []
        self._folder, self._notes = root.parent, notes
        self._stop, self._tick, self._begun_at = stop, tick, begun_at
        self._earlier, self._reflink = earlier, reflink
        self._known: Line | None = None
        self._folders: list[Header] = []
        self._homes: set[Path | None] = set()
        self._sums_hash = hashing.new()
        self._tally = Tally(Captured("", "", "", (), ""))
        self._hasher = HashThread(gentle=True)
        self._copying = Copying(self._hasher, stop, tick)
        self._settling = Settling()
        with self._our_disk():
            self._root = os.open(root, FOLDER_FLAGS)
            self._sums: IO[bytes] = (notes / manifest.SUMS_NAME).open("xb")
            self._index: IO[bytes] = (notes / index.NAME).open("xb")
            self._index.write(index.first_line(keeps_rights=_keeps_rights(self._root)))
        self._way = Descent(self._root)
        self._rights = Rights(self._root, trusted=True)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._hasher.__exit__(kind, error, trace)
        self._way.close()
        self._settling.close()
        os.close(self._root)
        for file in (self._sums, self._index):
            with suppress(OSError):  # a full disk says no once more while closing; it was told already
                file.close()

    def add(self, captured: Captured, skip: frozenset[Identity]) -> SourceSummary:
        """Write everything of one source. ``skip`` are folders never entered."""
        gathering = Gathering(captured, self, self._stop, self._tick, self._begun_at)
        self._tally = gathering.tally
        gathering.run(skip, 0 if self._earlier and not self._earlier.rereads else sys.maxsize)
        self._tally.notes += self._rights.warnings
        self._rights.warnings.clear()
        return self._tally.summary()

    def finish(self, made: Manifest) -> Manifest:
        """Give folders their rights and times, and bring all of it to the disk. Returns ``made`` with what is known
        only now filled in.
        """
        made = replace(made, sha256sums=self._sums_hash.hexdigest(), shared_bytes=self.shared_bytes)
        with self._our_disk():
            for header in sorted(self._folders, key=lambda h: h.path.count("/"), reverse=True):
                self._stop.check()
                self._rights.adorn(self._way.folder_of(f"{header.path}/"), header)
            self._adorn_top()
            self._way.close()
            files.write_atomically(self._notes / manifest.NAME, manifest.encode(made), replace=False)
            for file in (self._sums, self._index):
                file.flush()
                os.fsync(file.fileno())
            files.sync_folder(self._notes)
            files.sync_filesystem(self._root)  # once: an fsync for each file takes an hour for a household
        return made

    def _adorn_top(self) -> None:
        """``rsync -a TREE/ HOME/`` gives its rights to HOME: they are those of the folder that all of it came from."""
        mode = 0o755
        home = self._homes.pop() if len(self._homes) == 1 else None
        if home:
            with suppress(OSError):
                found = home.stat()
                mode = found.st_mode & 0o7777
                self._rights.own(self._root, Header("", Type.DIRECTORY, uid=found.st_uid, gid=found.st_gid))
        os.fchmod(self._root, mode)

    # --- what is gathered --------------------------------------------------------------------------------------------

    def begin(self, root: Root) -> None:
        place = root.place.removesuffix("/")
        if not root.path.is_relative_to(self._folder):  # where it was written out first says nothing
            self._homes.add(root.path.parent if place == root.path.name else None)
        try:
            if self._earlier:
                self._earlier.begin(root.place)
        except (DamagedArchive, OSError) as error:
            log.warning("The backup before cannot be linked to: %s.", error)
            self._earlier = None

    def unread(self, found: Found) -> tuple[Header, Digest] | None:
        known = self._known = self._found_before(found.place)
        if not known or not self._earlier or self._earlier.rereads or not known.inode:
            return None
        of = found.status
        now = (of.st_size, of.st_mtime_ns, of.st_ino, of.st_ctime_ns)
        if now != (known.header.size_bytes, known.header.mtime_ns, known.inode, known.ctime_ns):
            return None
        if not self._linked(known):
            self._known = None  # nor is it worth a second look once it was read
            return None
        # Most lines stay as they are from night to night.
        text = self._earlier.text if known.since else index.encode(replace(known, since=self._earlier.name))
        self._note(known, text)
        return known.header, Known(known.sha256)

    def small(self, header: Header, data: bytes, digest: Digest | None, known_by: Identity) -> None:
        sha256 = digest.result() if digest else ""
        since = ""
        with self._our_disk():
            if header.type is Type.DIRECTORY:
                self._way.folder_of(f"{header.path}/", make=True)
                self._folders.append(header)
            elif header.type is Type.FILE:
                since = self._taken_over(header, sha256) or self._written(header, (data,))
            else:
                try:
                    self._link(header)
                except _NoLinks:
                    self._tally.links -= 1
                    self._tally.lost.append(f"{shown(header.path)} is a link, which the disk for backups cannot hold")
                    return
        self._note(Line(header, sha256, since, *known_by))

    def large(self, header: Header, descriptor: int, reading: Reading) -> Digest:
        sha256 = self._copying.hashed(header, reading) if self._same(header) else ""
        since = self._taken_over(header, sha256)
        if not since:
            sha256 = self._copied(header, descriptor, reading)
        self._note(Line(header, sha256, since, *reading.identity()))
        return Known(sha256)

    def _found_before(self, path: str) -> Line | None:
        """Where the index of the backup before is damaged, the rest is written anew."""
        try:
            return self._earlier.find(path) if self._earlier else None
        except (DamagedArchive, OSError) as error:
            log.warning("The backup before cannot be linked to any more: %s.", error)
            self._earlier = None
            return None

    # --- taken over --------------------------------------------------------------------------------------------------

    def _same(self, header: Header) -> Line | None:
        """The entry in the backup before where everything but perhaps its content is as it was."""
        return self._known if self._known and self._known.header == header else None

    def _taken_over(self, header: Header, sha256: str) -> str:
        """The backup that the content was written for, if the one before has it; else empty."""
        known = self._same(header)
        if known and self._earlier and known.sha256 == sha256 and self._linked(known):
            return known.since or self._earlier.name
        return ""

    def _linked(self, known: Line) -> bool:
        """Whether the file of the backup before has a name here too. Raises StoreError."""
        assert self._earlier
        found = self._earlier.is_as_it_was(known)
        if not found:
            self.spoiled.append(known.header.path)
            self._tally.notes.append(
                f"{shown(known.header.path)} is damaged in the backup before ({self._earlier.name}); here it is new"
            )
            return False
        if not (self._reflink or self._earlier.has_its_rights(known, found)):
            return False  # its content is good, and is copied
        try:  # as `_our_disk`, which takes as long as the rest of it, a million times
            done = self._cloned(known.header) if self._reflink else self._named(known.header.path)
        except OSError as error:
            raise files.storing(error, self._folder) from error
        if done:
            self.shared_bytes += known.header.size_bytes
            self.kept[self._tally.captured.source] += known.header.size_bytes > 0
        return done

    def _named(self, path: str) -> bool:
        assert self._earlier
        name = path.rpartition("/")[2]
        there, here = self._earlier.folder_of(path), self._way.folder_of(path, make=True)
        try:
            os.link(name, name, src_dir_fd=there, dst_dir_fd=here, follow_symlinks=False)
        except OSError as error:
            if error.errno in FULL:
                raise
            return False  # as many names as a file can have, or a filesystem that knows of one only
        return True

    def _cloned(self, header: Header) -> bool:
        assert self._earlier
        name = header.path.rpartition("/")[2]
        original = os.open(name, _OLD, dir_fd=self._earlier.folder_of(header.path))
        try:
            with self._new(header) as target:
                try:
                    fcntl.ioctl(target, _FICLONE, original)
                except OSError as error:
                    if error.errno in FULL:
                        raise
                    raise _CannotShare from error
                self._rights.adorn(target, header)
        except _CannotShare:
            return False
        finally:
            os.close(original)
        return True

    # --- written -----------------------------------------------------------------------------------------------------

    @contextmanager
    def _new(self, header: Header) -> Iterator[int]:
        """A new file, which goes where this ends in an error. Raises OSError."""
        folder, name = self._way.folder_of(header.path, make=True), header.path.rpartition("/")[2]
        descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
        try:
            yield descriptor
        except BaseException:
            with suppress(OSError):
                os.unlink(name, dir_fd=self._way.folder_of(header.path))
            raise
        finally:
            os.close(descriptor)

    def _written(self, header: Header, pieces: Iterable[bytes]) -> str:
        """Returns nothing, as nothing was taken over."""
        with self._new(header) as descriptor:
            for piece in pieces:
                write(descriptor, piece)
            self._rights.adorn(descriptor, header)
            if header.size_bytes >= _SETTLED:
                self._settling.add(descriptor, header.size_bytes)
        return ""

    def _link(self, header: Header) -> None:
        name = header.path.rpartition("/")[2]
        if header.type is Type.SYMLINK:
            folder = self._way.folder_of(header.path, make=True)
            try:
                os.symlink(header.link, name, dir_fd=folder)
            except OSError as error:
                if error.errno in (errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS):
                    raise _NoLinks from error
                raise
            self._rights.adorn_link(name, header, folder)
            return
        folder = os.dup(self._way.folder_of(header.path, make=True))  # going to the other's folder closes this one
        try:
            there = self._way.folder_of(header.link)
            os.link(header.link.rpartition("/")[2], name, src_dir_fd=there, dst_dir_fd=folder, follow_symlinks=False)
        except OSError as error:
            if error.errno in FULL:
                raise
            self._copy_of_another_name(header, folder, name)
        finally:
            os.close(folder)

    def _copy_of_another_name(self, header: Header, folder: int, name: str) -> None:
        """Where a filesystem knows of no links, or of no more of them, the content stands there twice."""
        there = self._way.folder_of(header.link)
        original = os.open(header.link.rpartition("/")[2], _OLD, dir_fd=there)
        try:
            found = os.fstat(original)
            descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
            try:
                copy_range(original, descriptor, 0, found.st_size)
                os.ftruncate(descriptor, found.st_size)
                self._rights.adorn(descriptor, replace(header, mtime_ns=found.st_mtime_ns))
            finally:
                os.close(descriptor)
        finally:
            os.close(original)

    def _copied(self, header: Header, source: int, reading: Reading) -> str:
        """Returns its SHA-256. Raises OSError where the source cannot be read from its first byte on."""
        try:
            with self._our_disk(), self._new(header) as target:
                sha256 = self._copying.copy(header, source, reading, target)
                self._rights.adorn(target, header)
                self._settling.add(target, header.stored_bytes)
        except Unreadable as error:
            raise error.error from error
        return sha256

    # --- written down ------------------------------------------------------------------------------------------------

    def _note(self, line: Line, encoded: bytes = b"") -> None:
        header = line.header
        self._tally.modes.update(mode_line(header))
        of_sums = sums.line(line.sha256, header.path) if line.sha256 else b""
        self._tally.sums.update(of_sums)
        self._sums_hash.update(of_sums)
        try:
            self._sums.write(of_sums)
            self._index.write(encoded or index.encode(line))
        except OSError as error:
            raise files.storing(error, self._folder) from error

    @contextmanager
    def _our_disk(self) -> Iterator[None]:
        """An OSError in here is one of the disk that backups are written to."""
        try:
            yield
        except OSError as error:
            raise files.storing(error, self._folder) from error


class _NoLinks(Exception):
    """A filesystem without symbolic links."""


class _CannotShare(Exception):
    """This filesystem, or this file, shares no blocks."""


def _keeps_rights(folder: int) -> bool:
    """Whether a file in there can have any owner and any rights: tried out."""
    name = ".rights"
    try:
        descriptor = os.open(name, _NEW, 0o600, dir_fd=folder)
        try:
            wanted = (0o640, 12345, 12345)
            os.fchown(descriptor, *wanted[1:])
            os.fchmod(descriptor, wanted[0])
            found = os.fstat(descriptor)
            return (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == wanted
        finally:
            os.close(descriptor)
            os.unlink(name, dir_fd=folder)
    except OSError:
        return False

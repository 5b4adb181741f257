"""Our folder on a drive: the marker by which the drive is known, and the copies that lie there.

    memu-backup/
        drive.json            the marker
        README.html, restore.py
        HOST_JOB/             the copies of one job of one machine
            NAME.tar.gz, or NAME.tar.gz.part001 … where the filesystem takes no file of that size
            NAME.tar.gz.sha256, NAME.tar.gz.pieces.sha256

A copy is whole once its .sha256 lies there, which is written when it was read back. All is reached by descriptors, and
no link is followed: what lies on a drive may be a stranger's. Blocks, all of it.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Self

from memu_backup.errors import ArchiveError, DriveBroken, DriveError, DriveFull, DriveGone, DriveReadOnly, UsageError
from memu_backup.formats import parts, sums
from memu_backup.formats.reader import ArchiveReader

FOLDER = "memu-backup"
MARKER, FORMAT = "drive.json", "memu-backup-drive/1"
SIDECAR, PARTS = ".sha256", parts.LIST

_LONGEST_NOTE = 1 << 20
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ARCHIVE = re.compile(
    r"(?P<name>[A-Za-z0-9][A-Za-z0-9_-]*_(?P<at>\d{8}_\d{6})(?:_(?P<n>\d+))?\.tar\.gz)(?P<part>\.part\d{3})?"
)
_UNFINISHED = re.compile(rf"\.{_ARCHIVE.pattern}({re.escape(SIDECAR)}|{re.escape(PARTS)}|\.\d{{3}})?\.partial")
_GONE = frozenset({errno.ENODEV, errno.ENXIO, errno.ENOMEDIUM, errno.ESHUTDOWN})


def trouble(error: OSError, *, there: bool = True) -> DriveError:
    """What an OSError of a drive means; ``there`` says whether it is still plugged in."""
    if not there or error.errno in _GONE:
        return DriveGone("It was pulled out before the copy was done.")
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DriveFull("It is full.")
    if error.errno in (errno.EROFS, errno.EACCES, errno.EPERM):
        return DriveReadOnly("It is write-protected.")
    return DriveBroken(f"It gives errors ({os.strerror(error.errno or 0)}): it may be broken.")


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy on a drive. ``files`` are its parts in order, or the one file; ``sha256`` is of the whole, and None where
    it was never read back, or a part is missing. By ``order`` they are sorted as they were made.
    """

    name: str
    files: tuple[str, ...]
    size_bytes: int
    sha256: str | None
    order: tuple[str, int] = field(compare=False)


def marker_on(top: int) -> str:
    """The id that a drive carries; empty where it carries none that can be read. Writes nothing."""
    try:
        folder = os.open(FOLDER, _FOLDER_FLAGS, dir_fd=top)
        try:
            said = json.loads(_note(folder, MARKER) or b"null")
        finally:
            os.close(folder)
        return str(said["id"]) if said["format"] == FORMAT else ""
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return ""


def copies_on(top: int, host: str, job: str) -> list[Copy]:
    """Those of one job, newest first. Writes nothing. Raises DriveError."""
    with reading(top, host, job) as shelf:
        return shelf.copies() if shelf else []


@contextmanager
def reading(top: int, host: str, job: str) -> Iterator[JobShelf | None]:
    """The folder for copies of one job as it lies there, None without one. Writes nothing. Raises DriveError."""
    descriptors: list[int] = []
    with telling():
        try:
            with suppress(FileNotFoundError):
                for name in (FOLDER, folder_name(host, job)):
                    with _no_folder(name):
                        above = descriptors[-1] if descriptors else top
                        descriptors.append(os.open(name, _FOLDER_FLAGS, dir_fd=above))
            yield JobShelf(descriptors[-1]) if len(descriptors) == 2 else None
        finally:
            for descriptor in descriptors:
                os.close(descriptor)


class Shelf:
    """The folder ``memu-backup`` at the top of a drive, of which ``top`` is a descriptor. Use as a context manager.

    Made where it is not there. Raises DriveBroken where something else is in its place, and DriveError.
    """

    def __init__(self, top: int) -> None:
        self._top = top
        with telling():
            self._folder = _folder(top, FOLDER)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._folder)

    def space(self) -> tuple[int, int]:
        """Bytes free for us, and those of the whole drive."""
        with telling():
            found = os.fstatvfs(self._folder)
        return found.f_bavail * found.f_frsize, found.f_blocks * found.f_frsize

    def mark(self, marker: str, host: str, name: str, at: datetime) -> None:
        """Write the marker, atomically; ``name``, ``host`` and ``at`` (aware) are for whoever finds the drive."""
        said = {"format": FORMAT, "id": marker, "name": name, "host": host, "trusted_at": at.isoformat()}
        self.put(MARKER, f"{json.dumps(said, indent=1)}\n".encode())

    def put(self, name: str, content: bytes) -> None:
        """A small file at the top of our folder, whole or not at all."""
        with telling():
            _write(self._folder, name, content)

    def job(self, host: str, job: str) -> JobShelf:
        """The folder for copies of one job, made where it is not there."""
        with telling():
            return JobShelf(_folder(self._folder, folder_name(host, job)))

    def jobs(self) -> list[str]:
        """The folders in ours."""
        with telling(), os.scandir(self._folder) as entries:
            return sorted(e.name for e in entries if e.is_dir(follow_symlinks=False))

    def named(self, folder: str) -> JobShelf:
        """One of ``jobs``."""
        with telling():
            return JobShelf(os.open(folder, _FOLDER_FLAGS, dir_fd=self._folder))


class JobShelf:
    """The copies of one job; ``descriptor`` is that of their folder. Use as a context manager."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.descriptor)

    def copies(self) -> list[Copy]:
        """Newest first, by their names; also those that nobody has read back."""
        pieces: dict[str, dict[str, int]] = {}
        with telling(), os.scandir(self.descriptor) as entries:
            for entry in entries:
                found = _ARCHIVE.fullmatch(entry.name)
                if found and entry.is_file(follow_symlinks=False):
                    pieces.setdefault(found["name"], {})[entry.name] = entry.stat(follow_symlinks=False).st_size
        copies = [
            Copy(name, tuple(sorted(sizes)), sum(sizes.values()), self._checked(name, sizes), order_of(name))
            for name, sizes in pieces.items()
        ]
        return sorted(copies, key=lambda copy: copy.order, reverse=True)

    def _checked(self, name: str, files: Collection[str]) -> str | None:
        if sorted(files) != [name] and sorted(files) != [f"{name}.part{n:03}" for n in range(1, len(files) + 1)]:
            return None
        try:
            said = sums.parse(_note(self.descriptor, name + SIDECAR) or b"")
        except OSError:
            return None
        return said[0] if said and said[1] == name and self._has_its_end(min(files)) else None

    def _has_its_end(self, file: str) -> bool:
        """Whether an archive is as long as its last bytes say: its last part may be missing, or be cut off."""
        with suppress(ArchiveError, UsageError), ArchiveReader(path_of(self.descriptor, file)) as reader:
            return reader.indexed and reader.whole
        return False

    def vouch(self, name: str, sha256: str, pieces: Sequence[tuple[str, int, str]]) -> None:
        """Note that a copy was read back: from here on it is whole."""
        with telling():
            if len(pieces) > 1:
                lines = b"".join(sums.line(of_piece, piece) for piece, _, of_piece in pieces)
                _write(self.descriptor, name + PARTS, lines)
            _write(self.descriptor, name + SIDECAR, sums.line(sha256, name))

    def remove(self, copy: Copy) -> None:
        """What vouches for it goes first: half of a copy is never taken for one."""
        with telling():
            for name in (copy.name + SIDECAR, copy.name + PARTS, *copy.files):
                with suppress(FileNotFoundError):
                    os.unlink(name, dir_fd=self.descriptor)
            os.fsync(self.descriptor)

    def clear(self, name: str, sha256: str | None) -> None:
        """Make room for a copy of that name and checksum: what was not finished, or is not whole any more, goes.

        Raises DriveBroken for what is no file, and for a whole copy of another backup, which stays.
        """
        with telling():
            for left in os.listdir(self.descriptor):  # noqa: PTH208  Path knows no descriptors
                if left.startswith(f".{name}.") and left.endswith(".partial"):
                    os.unlink(left, dir_fd=self.descriptor)
        if there := next((c for c in self.copies() if c.name == name), None):
            if there.sha256 not in (None, sha256):
                raise DriveBroken(
                    f"Another backup that has the same name lies on it already ({name}). It was left as it is, and "
                    "nothing was copied: the one on the server may have been changed since."
                )
            self.remove(there)
        try:
            os.stat(name, dir_fd=self.descriptor, follow_symlinks=False)
        except OSError:
            return
        raise DriveBroken(
            f"Something that is no backup stands where the copy is to go ({FOLDER}/…/{name}). Look at it on a computer."
        )

    def sweep(self) -> None:
        """Remove what a copy left behind that was killed."""
        with telling():
            with os.scandir(self.descriptor) as entries:
                left = [entry.name for entry in entries if _UNFINISHED.fullmatch(entry.name)]
            for name in left:
                with suppress(FileNotFoundError, IsADirectoryError):
                    os.unlink(name, dir_fd=self.descriptor)


def folder_name(host: str, job: str) -> str:
    """The same for the same machine and job, and fit for every filesystem."""
    return f"{re.sub(r'[^A-Za-z0-9.-]+', '-', host).strip('.-') or 'server'}_{job}"


def order_of(name: str) -> tuple[str, int]:
    """By which the archives of a job are sorted as they were made; all of other names come first."""
    found = _ARCHIVE.fullmatch(name)
    return (found["at"], int(found["n"] or 1)) if found else ("", 0)


def to_go(copies: Iterable[Copy], newest: str, keep: int) -> list[Copy]:
    """What ``keep`` copies of a job leave no place for, of those newest first, when ``newest`` was just copied.

    Never that one; and those that were dated by a clock that was ahead do not count.
    """
    whole = [copy for copy in copies if copy.sha256 and copy.order <= order_of(newest)]
    return whole[max(1, keep) :]


def newest_of(copies: Sequence[Copy], latest: str) -> Copy | None:
    """The one that must not go while there is no newer one: the newest whole one that is no newer than ``latest``, else
    the newest whole one of all.
    """
    whole = [copy for copy in copies if copy.sha256]
    return next((copy for copy in whole if copy.order <= order_of(latest)), whole[0] if whole else None)


@contextmanager
def telling() -> Iterator[None]:
    """Around what is done on a drive. Raises DriveError for an OSError."""
    try:
        yield
    except OSError as error:
        raise trouble(error) from error


def _folder(parent: int, name: str) -> int:
    with _no_folder(name):
        with suppress(FileExistsError):
            os.mkdir(name, 0o700, dir_fd=parent)
            os.fsync(parent)
        return os.open(name, _FOLDER_FLAGS, dir_fd=parent)


@contextmanager
def _no_folder(name: str) -> Iterator[None]:
    """Raises DriveBroken where something else stands in its place."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOTDIR, errno.ELOOP):
            raise
        raise DriveBroken(
            f"Something that is no folder stands where copies are to go ({name}), so nothing was written. Look at it "
            "on a computer."
        ) from error


def _note(folder: int, name: str) -> bytes | None:
    """What a small file says; None where it is none. Raises OSError."""
    descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    try:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size > _LONGEST_NOTE:
            return None
        return os.read(descriptor, _LONGEST_NOTE)
    finally:
        os.close(descriptor)


def _write(folder: int, name: str, content: bytes) -> None:
    partial = f".{name}.partial"
    with suppress(FileNotFoundError):
        os.unlink(partial, dir_fd=folder)
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    descriptor = os.open(partial, flags, 0o600, dir_fd=folder)
    try:
        view = memoryview(content)
        while view:
            view = view[os.write(descriptor, view) :]
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    os.rename(partial, name, src_dir_fd=folder, dst_dir_fd=folder)  # a link of that name is replaced, not followed
    os.fsync(folder)


def path_of(descriptor: int, name: str = "") -> Path:
    """A path that leads below an open folder, for what takes paths."""
    return Path(f"/proc/self/fd/{descriptor}") / name

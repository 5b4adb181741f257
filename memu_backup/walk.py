"""Walks a tree that moves, on descriptors, so that a folder swapped for a link meanwhile leads nowhere."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup.files import reason
from memu_backup.model import Root

if TYPE_CHECKING:
    from pathspec import GitIgnoreSpec

Identity = tuple[int, int]
"""Device and inode: the same file or folder, whatever its name."""

DEEPEST = 800
"""Folders inside folders that are followed: each of them is open meanwhile, and a process may open 1024 files."""

_LEASE_TRIES = 30
_AHEAD = 8 * 1024 * 1024
"""Of a larger file the kernel itself reads ahead, once it is begun."""


@dataclass(slots=True)
class Found:
    """One entry of a tree. ``place`` is its path in the backup, without a slash at its end.

    ``folder`` is the open descriptor of the folder that holds it, good only until the walk goes on; None for the root
    itself, which is then opened by ``name`` as a path.
    """

    place: str
    name: str
    folder: int | None
    status: os.stat_result
    _descriptor: int | None = None

    def open(self) -> int:
        """A descriptor for reading, the caller's from here on. Never follows a link below the root, never waits for the
        writer of a fifo.
        """
        if self._descriptor is not None:
            descriptor, self._descriptor = self._descriptor, None
            return descriptor
        for _ in range(_LEASE_TRIES):
            try:
                return self._open()
            except BlockingIOError:  # Samba holds a lease on it for a client, and was just asked to give it up
                time.sleep(0.1)
        return self._open()

    def begin(self, limit_bytes: int) -> None:
        """Open it, and let the disk begin to bring it, where it is a file of at most so many bytes."""
        if not (stat.S_ISREG(self.status.st_mode) and 0 < self.status.st_size <= limit_bytes):
            return
        with suppress(OSError):  # said when its turn comes
            self._descriptor = self._open()
            os.posix_fadvise(self._descriptor, 0, _AHEAD, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close what was begun and not opened since."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    def readlink(self) -> str:
        return os.readlink(self.name, dir_fd=self.folder)

    def _open(self) -> int:
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (os.O_NOFOLLOW if self.folder is not None else 0)
        try:
            return os.open(self.name, flags | os.O_NOATIME, dir_fd=self.folder)
        except PermissionError:  # O_NOATIME is for the owner and root
            return os.open(self.name, flags, dir_fd=self.folder)


@dataclass(frozen=True, slots=True)
class Skipped:
    """An entry that a walk did not give. ``lost`` is True where it should have been in the backup."""

    place: str
    reason: str
    lost: bool


def walk(
    root: Root, skip: frozenset[Identity], report: Callable[[Skipped], None], *, ahead_bytes: int = 0
) -> Iterator[Found]:
    """Everything below ``root``, folders before their content, names in byte order.

    Works on descriptors, so that a folder swapped for a link meanwhile leads nowhere. ``skip`` names folders that are
    never entered (our own). What is left out, or could not be read, goes to ``report``. The root itself is given too
    where it is a file; its content alone where it is a folder, as ``root.place`` already names it. While one entry is
    looked at, the disk begins to bring the next, where that is a file of at most ``ahead_bytes``.
    """
    try:
        top = root.path.stat()
    except OSError as error:
        report(Skipped(root.place, reason(error), lost=True))
        return
    if (top.st_dev, top.st_ino) in skip:
        report(Skipped(root.place, "is where memu-backup keeps its own files", lost=True))
        return
    if not (stat.S_ISDIR(top.st_mode) or stat.S_ISREG(top.st_mode)):
        # Asked for by name, so its content was meant; opening it could wait for ever or wind a tape.
        report(Skipped(root.place, f"is a {_special(top.st_mode)} and not a file or folder", lost=True))
        return
    yield Found(root.place.removesuffix("/"), str(root.path), None, top)
    if not stat.S_ISDIR(top.st_mode):
        return
    try:
        descriptor = os.open(root.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        report(Skipped(root.place, reason(error), lost=True))
        return
    top = os.fstat(descriptor)
    yield from _Walker(root, _exclusions(root), skip, report, ahead_bytes).below(descriptor, (top.st_dev, top.st_ino))


def _exclusions(root: Root) -> GitIgnoreSpec | None:
    if not root.exclude:
        return None
    from pathspec import GitIgnoreSpec  # slow to import, and only needed where something is excluded

    return GitIgnoreSpec.from_lines(root.exclude)


@dataclass(slots=True)
class _Level:
    """A folder that the walk is inside of."""

    descriptor: int
    inner: str
    identity: Identity
    names: list[str]


@dataclass(slots=True)
class _Walker:
    root: Root
    spec: GitIgnoreSpec | None
    skip: frozenset[Identity]
    report: Callable[[Skipped], None]
    ahead_bytes: int
    levels: list[_Level] = field(default_factory=list)
    ahead: Found | None = None

    def below(self, descriptor: int, identity: Identity) -> Iterator[Found]:
        """A loop and not a recursion: someone's tree may be deeper than Python's stack."""
        found: Found | None = None
        try:
            self._enter(descriptor, "", identity)
            while self.levels:
                level = self.levels[-1]
                found, self.ahead = self.ahead or self._next(level), None
                if found is None:
                    os.close(self.levels.pop().descriptor)
                elif stat.S_ISDIR(found.status.st_mode):
                    yield found
                    self._descend(level, found)
                else:
                    if self.ahead_bytes and (ahead := self._next(level)):
                        self.ahead = ahead
                        ahead.begin(self.ahead_bytes)
                    yield found
                    found.close()
        finally:
            for level in self.levels:
                os.close(level.descriptor)
            for begun in (found, self.ahead):
                if begun:
                    begun.close()

    def _enter(self, descriptor: int, inner: str, identity: Identity) -> None:
        try:
            names = sorted(os.listdir(descriptor), reverse=True)  # taken from the end
        except OSError as error:
            self.report(Skipped(self.root.place + inner, reason(error), lost=True))
            names = []
        self.levels.append(_Level(descriptor, inner, identity, names))

    def _next(self, level: _Level) -> Found | None:
        """The next entry of a folder that is to be given, None at its end."""
        while level.names:
            if found := self._entry(level, level.names.pop()):
                return found
        return None

    def _entry(self, level: _Level, name: str) -> Found | None:
        inner = level.inner + name
        place = self.root.place + inner
        try:
            status = os.stat(name, dir_fd=level.descriptor, follow_symlinks=False)
        except OSError as error:
            self.report(Skipped(place, reason(error), lost=True))
            return None
        mode = status.st_mode
        if self.spec and self.spec.match_file(inner + ("/" if stat.S_ISDIR(mode) else "")):
            return None
        if not (stat.S_ISDIR(mode) or stat.S_ISREG(mode) or stat.S_ISLNK(mode)):
            self.report(Skipped(place, f"is a {_special(mode)}", lost=False))
            return None
        if (status.st_dev, status.st_ino) in self.skip:
            self.report(Skipped(place, "is where memu-backup keeps its own files", lost=False))
            return None
        return Found(place, name, level.descriptor, status)

    def _descend(self, level: _Level, found: Found) -> None:
        identity = (found.status.st_dev, found.status.st_ino)
        if any(identity == above.identity for above in self.levels):
            self.report(Skipped(found.place, "is a folder that contains itself (a bind mount)", lost=False))
        elif len(self.levels) >= DEEPEST:
            self.report(Skipped(found.place, f"lies more than {DEEPEST} folders deep", lost=True))
        elif identity[0] != self.levels[0].identity[0] and not self.root.cross_filesystems:
            self.report(Skipped(found.place, "is another filesystem mounted here", lost=False))
        else:
            self._open(level, found, identity)

    def _open(self, level: _Level, found: Found, identity: Identity) -> None:
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(found.name, flags, dir_fd=level.descriptor)
        except OSError as error:
            self.report(Skipped(found.place, reason(error), lost=True))
            return
        self._enter(descriptor, f"{level.inner}{found.name}/", identity)


def identities(folders: Iterable[Path]) -> Iterator[Identity]:
    """What ``walk`` is to skip; folders that are not there need no skipping."""
    for folder in folders:
        with suppress(OSError):
            status = folder.stat()
            yield status.st_dev, status.st_ino


def measure(roots: Iterable[Root], skip: frozenset[Identity], check: Callable[[], None]) -> int:
    """The bytes of all files below ``roots``, for a progress bar; ``check`` is called for each entry and may raise."""
    total = 0
    for root in roots:
        for found in walk(root, skip, lambda _: None):
            check()
            total += found.status.st_size if stat.S_ISREG(found.status.st_mode) else 0
    return total


def _special(mode: int) -> str:
    kinds = {stat.S_IFIFO: "named pipe", stat.S_IFSOCK: "socket", stat.S_IFBLK: "device", stat.S_IFCHR: "device"}
    return kinds.get(stat.S_IFMT(mode), "special file")

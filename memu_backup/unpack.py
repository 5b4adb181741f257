"""Puts entries of an archive onto the disk, below one folder and nowhere else.

An archive may be a stranger's and we may be root. So everything is judged before the first byte is written, all work
goes through descriptors of folders that were opened without following links, only files, folders and links are made,
and links come last, so that nothing is ever written through one.
"""

from __future__ import annotations

import copy
import errno
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Protocol

from memu_backup.descent import Descent
from memu_backup.errors import DamagedArchive, HostileArchive, RestoreError
from memu_backup.files import Settling, rename_without_replacing, shown, sync_filesystem
from memu_backup.formats.tar import Header, Type
from memu_backup.rights import Rights
from memu_backup.walk import DEEPEST
from memu_backup.work import Stop

_DEEPEST = DEEPEST + 100
"""Folders inside folders: what a walk gives, and some more for the place of the source."""

_MOST = 10_000_000
"""Entries in one archive; a plan for more does not fit into the memory of a small machine."""

_LONGEST_LINK = 4095
_BLOCK = 4 * 1024 * 1024
_SETTLED = 64 * 1024
_TEMPORARY = re.compile(r"\.[0-9a-f]{2,100}\.([0-9]{1,10})\.restoring")

OnDone = Callable[[int, int], None]
"""Bytes and entries put in place since the last call; comes from whatever thread puts them."""


class Planned(Protocol):
    """What one entry is allowed to become, an ``index.Entry`` mostly; headers met later are held to it."""

    @property
    def type(self) -> Type: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def link(self) -> str: ...


def judge(entries: Iterable[tuple[str, Planned]]) -> Mapping[str, Planned]:
    """All entries by path, in order. Raises HostileArchive for any that could write outside, or twice, or worse."""
    plan: dict[str, Planned] = {}
    folders: set[str] = set()
    for path, planned in entries:
        _judge_path(path)
        if planned.type is Type.OTHER:
            raise HostileArchive(f"It holds {shown(path)}, which is a device or a pipe; nothing was unpacked.")
        if len(plan) >= _MOST:
            raise HostileArchive(f"It holds more than {_MOST:,} files, which no household does; nothing was unpacked.")
        if path in plan:
            raise HostileArchive(f"It holds {shown(path)} twice; nothing was unpacked.")
        target = plan.get(planned.link) if planned.type is Type.HARDLINK else None
        if planned.type is Type.HARDLINK and (target is None or target.type is not Type.FILE):
            raise HostileArchive(
                f"{shown(path)} is a link to {shown(planned.link)}, which is no file before it in the archive; "
                "nothing was unpacked."
            )
        if planned.type is Type.SYMLINK and not _is_link_text(planned.link):
            raise HostileArchive(f"It holds {shown(path)}, a link that leads nowhere; nothing was unpacked.")
        plan[path] = planned
        parent = path.rpartition("/")[0]
        while parent and parent not in folders:
            folders.add(parent)
            parent = parent.rpartition("/")[0]
    for folder in folders:
        if folder in plan and plan[folder].type is not Type.DIRECTORY:
            raise HostileArchive(
                f"It holds {shown(folder)} as a {plan[folder].type} and something inside it; nothing was unpacked."
            )
    return plan


def _judge_path(path: str) -> None:
    parts = path.split("/")
    if path.startswith("/") or not _is_name(path) or any(p in ("", ".", "..") for p in parts):
        raise HostileArchive(
            f"It holds a file named {shown(path)!r}, which could lie outside the folder; nothing was unpacked."
        )
    if len(parts) > _DEEPEST:
        raise HostileArchive(f"It holds {shown(path)}, which lies too deep to be made; nothing was unpacked.")


def _is_name(text: str) -> bool:
    """Whether the kernel can be asked for it: an index can spell what no tar header can."""
    try:
        return b"\0" not in os.fsencode(text)
    except UnicodeEncodeError:
        return False


def _is_link_text(text: str) -> bool:
    return 0 < len(text) <= _LONGEST_LINK and _is_name(text)


class Unpacker:
    """Makes entries below ``target``, an existing folder. Use as a context manager; on success call ``finish``.

    ``plan`` is what ``judge`` returned, narrowed to what is wanted. With ``overwrite`` existing files are replaced,
    each at once; without it the first one met raises RestoreError. As another user than root, owners stay ours, and
    files are no longer setuid or setgid; nor are they, nor do they keep capabilities, where the archive is not
    ``trusted``. A file has its name only once it is whole.
    """

    def __init__(
        self,
        target: Path,
        plan: Mapping[str, Planned],
        *,
        overwrite: bool,
        stop: Stop,
        on_done: OnDone,
        trusted: bool = False,
    ) -> None:
        self._plan = plan
        self._overwrite = overwrite
        self._stop = stop
        self._on_done = on_done
        self._root = os.open(target, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        self._way = Descent(self._root)
        self._rights = Rights(self._root, trusted=trusted)
        self._settling = Settling()
        self._folders: list[Header] = []
        self._links: list[Header] = []
        self.warnings = self._rights.warnings

    def __enter__(self) -> Unpacker:
        self._sweep()
        self._way.close()  # the threads that restore need as many for themselves
        return self

    def __exit__(self, *_: object) -> None:
        self._way.close()
        self._settling.close()
        os.close(self._root)

    @contextmanager
    def another(self) -> Iterator[Unpacker]:
        """One more for another thread, that puts entries into the same target; ``finish`` is for the first alone."""
        other = copy.copy(self)
        other._way, other._settling = Descent(self._root), Settling()
        try:
            yield other
        finally:
            other._way.close()
            other._settling.close()

    def put(self, header: Header, content: Iterator[bytes | memoryview]) -> None:
        """Make one entry; ``content`` is its stored bytes. Raises RestoreError, DamagedArchive, Interrupted."""
        planned = self._plan.get(header.path)
        if planned is None or (planned.type, planned.size_bytes, planned.link) != _promise(header):
            raise DamagedArchive(f"{shown(header.path)} is not what the archive's index says of it")
        try:
            if header.type is Type.DIRECTORY:
                self._way.folder_of(header.path + "/", make=True)
                self._folders.append(header)
            elif header.type is Type.FILE:
                self._file(header, content)
            else:
                self._links.append(header)
        except OSError as error:
            raise _failed(header.path, error) from error

    def make_private_folder(self, path: str) -> None:
        """Make a folder of which the archive no longer tells anything but the name. Raises RestoreError."""
        try:
            self._way.folder_of(path + "/", make=True)
        except OSError as error:
            raise _failed(path, error) from error
        self._rights.warn(f"{shown(path)}: this folder's owner, rights and time cannot be read any more")

    def finish(self) -> None:
        """Make the links, set the folders' rights and times, the innermost first, and bring all of it to the disk."""
        for header in self._links:
            self._stop.check()
            try:
                self._link(header)
            except OSError as error:
                raise _failed(header.path, error) from error
            self._on_done(0, 1)
        for header in sorted(self._folders, key=lambda h: h.path.count("/"), reverse=True):
            try:
                self._rights.adorn(self._way.folder_of(header.path + "/", make=True), header)
            except OSError as error:
                raise _failed(header.path, error) from error
            self._on_done(0, 1)
        try:
            sync_filesystem(self._root)  # once for all of it: an fsync a file takes an hour for a household
        except OSError as error:
            raise RestoreError(
                f"The disk reports an error ({error.strerror}), so what was restored may not be on it. "
                "Check the disk and restore again."
            ) from error

    def _sweep(self) -> None:
        """Remove what killed restores left half-made in the folders that this one writes to."""
        for folder in sorted({path.rpartition("/")[0] for path in self._plan}):
            with suppress(OSError):  # not there yet, or a conflict that is met, and told, later
                descriptor = self._way.folder_of(f"{folder}/" if folder else "")
                for name in os.listdir(descriptor):  # noqa: PTH208  Path knows no descriptors
                    left = _TEMPORARY.fullmatch(name)
                    if left and not _is_at_work(int(left[1])):
                        os.unlink(name, dir_fd=descriptor)

    # --- files and links ---------------------------------------------------------------------------------------------

    def _file(self, header: Header, content: Iterator[bytes | memoryview]) -> None:
        folder = self._way.folder_of(header.path, make=True)
        name = header.path.rpartition("/")[2]
        made = _temporary()  # a kill must not leave half a photo under the name of a whole one
        descriptor = os.open(
            made, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder
        )
        try:
            try:
                self._fill(descriptor, header, content)
                self._rights.adorn(descriptor, header)
                if self._overwrite and _is_there(folder, name):
                    os.fsync(descriptor)  # else a power cut could take the old content and the new
            finally:
                os.close(descriptor)
            if self._overwrite:
                os.rename(made, name, src_dir_fd=folder, dst_dir_fd=folder)
            else:
                rename_without_replacing(made, name, folder=folder)
        except BaseException:
            with suppress(FileNotFoundError):
                os.unlink(made, dir_fd=folder)
            raise
        self._on_done(0, 1)

    def _fill(self, descriptor: int, header: Header, content: Iterator[bytes | memoryview]) -> None:
        extents = iter(((0, header.size_bytes),) if header.extents is None else header.extents)
        position = left = 0
        for block in content:
            view = memoryview(block)
            while view:
                self._stop.check()
                while left == 0:
                    position, left = next(extents)
                written = os.pwrite(descriptor, view[: min(left, _BLOCK)], position)
                position, left, view = position + written, left - written, view[written:]
                self._on_done(written, 0)
        os.ftruncate(descriptor, header.size_bytes)  # a hole at the end
        if header.stored_bytes >= _SETTLED:
            self._settling.add(descriptor, header.stored_bytes)

    def _link(self, header: Header) -> None:
        name = header.path.rpartition("/")[2]
        folder = os.dup(self._way.folder_of(header.path, make=True))  # going to the target's folder closes the first
        try:
            made = _temporary() if self._overwrite else name
            if header.type is Type.SYMLINK:
                os.symlink(header.link, made, dir_fd=folder)
                self._rights.adorn_link(made, header, folder)
            else:
                source = self._way.folder_of(header.link)
                target = header.link.rpartition("/")[2]
                os.link(target, made, src_dir_fd=source, dst_dir_fd=folder, follow_symlinks=False)
            if made != name:
                _take_the_place(folder, made, name)
        finally:
            os.close(folder)


def _promise(header: Header) -> tuple[Type, int, str]:
    return header.type, header.size_bytes, header.link


def _temporary() -> str:
    """A name to make something under. By chance: a part of its own name may be another thread's too, and in a
    container the restore that was killed, or one that runs beside us, has our number.
    """
    return f".{os.urandom(8).hex()}.{os.getpid()}.restoring"


def _is_at_work(process: int) -> bool:
    """Whether it is another process, which may be restoring into the same folder. Ours has made nothing yet."""
    return process != os.getpid() and os.path.exists(f"/proc/{process}")  # noqa: PTH110  no error whatever it is


def _is_there(folder: int, name: str) -> bool:
    try:
        os.stat(name, dir_fd=folder, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return True


def _take_the_place(folder: int, made: str, name: str) -> None:
    try:
        os.rename(made, name, src_dir_fd=folder, dst_dir_fd=folder)
    finally:
        # Where it failed; and rename(2) leaves both names where they are one file already.
        with suppress(FileNotFoundError):
            os.unlink(made, dir_fd=folder)


def _failed(path: str, error: OSError) -> RestoreError:
    if error.errno == errno.EEXIST:
        return RestoreError(f"{shown(path)} is there already and was left as it is. Restore to an empty folder.")
    if error.errno == errno.ELOOP or error.errno == errno.ENOTDIR:
        return RestoreError(
            f"{shown(path)} would be written through a link or a file that lies in its way; it was not. "
            "Restore to an empty folder."
        )
    return RestoreError(f"{shown(path)} could not be written ({error.strerror}); what was there before is as it was.")

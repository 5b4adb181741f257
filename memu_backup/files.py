"""Files on this machine: write so that a power cut leaves old or new, publish atomically, say what went wrong."""

from __future__ import annotations

import ctypes
import errno
import os
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memu_backup.errors import DiskFull, MemuError, NoInodes, QuotaUsedUp, StoreError, WriteFailed

Tick = Callable[[int, int, str], None]
"""Content bytes and files done since the last call, and what is being read now."""

_MOST_EXTENTS = 100_000
_FORGOTTEN_AT_ONCE = 16 * 1024 * 1024
_SETTLING_BYTES = 48 * 1024 * 1024
SETTLING_FILES = 32
"""As many are open at most: a process may often open no more than 1024."""


def reason(error: OSError) -> str:
    """An OSError as half a sentence for people."""
    known = {
        errno.ENOENT: "has vanished",
        errno.ENOTDIR: "has vanished",
        errno.EACCES: "may not be read by this user",
        errno.EPERM: "may not be read by this user",
        errno.ELOOP: "has turned into a symbolic link",
        errno.EIO: "cannot be read: the disk reports an error",
        errno.ESTALE: "has vanished from its network share",
    }
    return known.get(error.errno or 0, f"cannot be read: {os.strerror(error.errno or 0)}")


def shown(path: str) -> str:
    """A path inside a sentence: on one line, of bearable length, whatever its bytes."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in path)
    return plain if len(plain) <= 200 else f"{plain[:100]}…{plain[-99:]}"


def may_give_away() -> bool:
    """Whether this process may set owners: root, or an account that was given CAP_CHOWN, as in a container.

    The set of effective capabilities is in /proc/self/status, see proc(5); CAP_CHOWN is its lowest bit.
    """
    if os.geteuid() == 0:
        return True
    status = Path("/proc/self/status").read_text()
    return bool(int(status.partition("CapEff:")[2].split()[0], 16) & 1)


def data_extents(descriptor: int, size_bytes: int) -> tuple[tuple[int, int], ...]:
    """The stretches (offset, length) of a file that hold data; what lies between them is holes. lseek(2), SEEK_DATA.

    Small holes are taken for data, larger ones too the more there are, so that their map stays small.
    """
    extents: list[tuple[int, int]] = []
    smallest_hole = 64 * 1024
    position = 0
    while position < size_bytes:
        try:
            start = os.lseek(descriptor, position, os.SEEK_DATA)
            end = min(os.lseek(descriptor, start, os.SEEK_HOLE), size_bytes)
        except OSError as error:
            if error.errno == errno.ENXIO:  # nothing but a hole from here on
                break
            return ((0, size_bytes),)  # a filesystem that does not know of holes
        if start >= end:
            break
        extents.append((start, end - start))
        position = end
        if len(extents) > _MOST_EXTENTS:
            extents = _merged(extents, smallest_hole)
            smallest_hole *= 2
    return tuple(_merged(extents, 64 * 1024))


def _merged(extents: list[tuple[int, int]], smallest_hole: int) -> list[tuple[int, int]]:
    merged = extents[:1]
    for start, length in extents[1:]:
        before = merged[-1]
        if start - (before[0] + before[1]) < smallest_hole:
            merged[-1] = (before[0], start + length - before[0])
        else:
            merged.append((start, length))
    return merged


class Passing:
    """Goes through an open file from ``offset`` on and lets the kernel forget what lies behind.

    ``advise`` is posix_fadvise(2) for it: offset, size in bytes, advice.

    Else a backup would fill the memory with what nobody asks for again, and push out what the family's services keep
    there; and new memory is dearer than what was just given back, on virtual machines by far.
    """

    def __init__(self, advise: Callable[[int, int, int], None], offset: int = 0) -> None:
        self._advise = advise
        self._forgotten = offset

    def passed(self, offset: int) -> None:
        """Nothing before ``offset`` is needed any more."""
        if offset - self._forgotten >= _FORGOTTEN_AT_ONCE:
            self._forget(offset - self._forgotten)
            self._forgotten = offset

    def end(self, offset: int = 0) -> None:
        """Nothing of it is needed any more, or nothing before ``offset``, where others read on."""
        if offset == 0 or offset > self._forgotten:
            self._forget(offset and offset - self._forgotten)

    def _forget(self, size_bytes: int) -> None:
        with suppress(OSError):
            self._advise(self._forgotten, size_bytes, os.POSIX_FADV_DONTNEED)


class Settling:
    """Files just written: the disk begins with them at once, and the kernel forgets them when they are on it.

    Else it would wait with gigabytes, and whoever needs them on the disk for all of it. Close it in the end.
    """

    def __init__(self) -> None:
        self._files: deque[tuple[int, int]] = deque()
        self._bytes = 0

    def add(self, descriptor: int, size_bytes: int) -> None:
        """An open file that is written."""
        with suppress(OSError):  # whatever is wrong with the disk is told when all of it is brought there
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            self._files.append((os.dup(descriptor), size_bytes))
            self._bytes += size_bytes
        while self._bytes > _SETTLING_BYTES or len(self._files) > SETTLING_FILES:
            self._forget_oldest()

    def close(self) -> None:
        while self._files:
            self._forget_oldest()

    def _forget_oldest(self) -> None:
        descriptor, size_bytes = self._files.popleft()
        self._bytes -= size_bytes
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        with suppress(OSError):  # whoever wrote it has closed it before, and was told
            os.close(descriptor)


def no_room(number: int | None, where: Path, named: str) -> DiskFull | None:
    """What it means that nothing more could be written below ``where``, which people know as ``named``.

    None where the error ``number`` says something else.
    """
    kind = DiskFull
    if number == errno.EDQUOT:
        kind = QuotaUsedUp
        what, todo = f"The quota for {named} is used up", "Raise the quota or free up space."
    elif number != errno.ENOSPC:
        return None
    elif _inodes_used_up(where):
        kind = NoInodes
        what = f"The disk that holds {named} has no room for more files (no inodes left)"
        todo = "Remove files that are not needed any more: how many they are is what counts, not how large."
    else:
        what, todo = f"The disk that holds {named} is full", "Free up space or add storage."
    return kind(f"{what}, so this backup was given up; older backups are untouched. {todo}")


def _inodes_used_up(where: Path) -> bool:
    try:
        found = os.statvfs(where if where.is_dir() else where.parent)
    except OSError:
        return False
    return found.f_files > 0 and found.f_favail == 0


def storing(error: OSError, where: Path) -> MemuError:
    """What an OSError met while writing to ``where`` means for the backup."""
    if full := no_room(error.errno, where, str(where)):
        return full
    if error.errno == errno.EEXIST:
        return StoreError(
            f"{where} already holds a file of the name that this backup was to have; it was left as it is. "
            "Start the backup again."
        )
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT, errno.ENOTDIR):
        why = {errno.EROFS: "is read-only", errno.ENOENT: "is not there", errno.ENOTDIR: "is not a folder"}
        return StoreError(
            f"{where} {why.get(error.errno, 'cannot be written by this user')}, so no backup could be stored. "
            "Check backup_dir, its disk and its rights."
        )
    return WriteFailed(
        f"The disk that holds {where} reports an error ({os.strerror(error.errno or 0)}), so what was written was "
        "thrown away; older backups are untouched. Check the disk."
    )


@contextmanager
def writer(file: Path, named: str) -> Iterator[Callable[[bytes], None]]:
    """What writes to ``file``, which is made and which only we can read; its disk holds what people know as ``named``.

    Raises DiskFull and its like, here and as it writes.
    """

    def refused(error: OSError) -> MemuError:
        return no_room(error.errno, file, named) or storing(error, file.parent)

    def write(block: bytes) -> None:
        rest = memoryview(block)
        try:
            while rest:
                rest = rest[os.write(descriptor, rest) :]
        except OSError as error:
            raise refused(error) from error

    try:
        descriptor = os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise refused(error) from error
    try:
        yield write
    finally:
        os.close(descriptor)


_libc = ctypes.CDLL(None, use_errno=True)


def sync_filesystem(descriptor: int) -> None:
    """Bring all that was written to the filesystem of ``descriptor`` to its disk: syncfs(2). Raises OSError."""
    if _libc.syncfs(descriptor) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def sync_folder(folder: Path) -> None:
    """Make a rename or a removal in ``folder`` last through a power cut. Raises OSError."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


_RENAME_NOREPLACE, _RENAME_EXCHANGE = 1, 2
_AT_FDCWD = -100


def rename_without_replacing(old: Path | str, new: Path | str, *, folder: int | None = None) -> None:
    """renameat2(2) with RENAME_NOREPLACE, in the open ``folder`` where one is given. Raises FileExistsError, OSError.

    Filesystems that do not know the flag (NFS, some FUSE ones) get a look before the rename instead, which is enough
    where nobody else makes files of that name meanwhile.
    """
    where = _AT_FDCWD if folder is None else folder
    result = _libc.renameat2(where, os.fsencode(old), where, os.fsencode(new), _RENAME_NOREPLACE)
    if result == 0:
        return
    number = ctypes.get_errno()
    if number not in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        raise OSError(number, os.strerror(number), str(new))
    with suppress(FileNotFoundError):
        os.stat(new, dir_fd=folder, follow_symlinks=False)
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(new))
    os.rename(old, new, src_dir_fd=folder, dst_dir_fd=folder)


def exchange(one: Path, other: Path) -> bool:
    """renameat2(2) with RENAME_EXCHANGE: each takes the place of the other at once. False where the filesystem does not
    know how (NFS, some FUSE ones); nothing was done then. Raises OSError.
    """
    if _libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(other))


def write_atomically(
    path: Path, content: bytes, mode: int = 0o600, *, replace: bool = True, lasting: bool = True
) -> None:
    """Give ``path`` this content; after a crash it is the old file or the new one, whole.

    Without ``lasting`` that holds for a kill alone, and no disk is waited for: a power cut may leave an empty file.
    Raises OSError, FileExistsError where it exists and shall not be replaced.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}.partial")
    with suppress(FileNotFoundError):  # left by a killed one; in a container every process has our number
        partial.unlink()
    descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(descriptor, view) :]
            if lasting:
                os.fsync(descriptor)
        finally:
            os.close(descriptor)
        if replace:
            partial.rename(path)
        else:
            rename_without_replacing(partial, path)
    except BaseException:
        with suppress(FileNotFoundError):
            partial.unlink()
        raise
    if lasting:
        sync_folder(path.parent)

"""An archive's bytes, whether it lies in one file or in the numbered parts that FAT's limit of 4 GiB asks for."""

from __future__ import annotations

import errno
import os
import re
import stat
from bisect import bisect_right
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from memu_backup.errors import DamagedArchive, NotAnArchive, UnknownBackup, UsageError
from memu_backup.formats import hashing, sums

LIST = ".pieces.sha256"
"""Behind NAME.tar.gz: a file with a line of sha256sum for each part."""

# No more than 999: each is held open, and a process may often open no more than 1024.
_PART = re.compile(r"(?P<whole>.+\.tar\.gz)\.part(?P<number>(?!000)\d{3})", re.DOTALL | re.ASCII)
_BLOCK = 1024 * 1024


def whole(path: Path) -> Path:
    """NAME.tar.gz for each part of it; every other path as it is."""
    match = _PART.fullmatch(path.name)
    return path.with_name(match["whole"]) if match else path


def is_there(path: Path) -> bool:
    """Whether an archive lies at ``path``, as a file or in parts."""
    first = _numbered(whole(path), 1)
    return path.is_file() or (whole(first) != first and first.is_file())


def _numbered(archive: Path, number: int) -> Path:
    return archive.with_name(f"{archive.name}.part{number:03}")


def _files(path: Path) -> list[Path]:
    """The files to join for ``path``: itself, or all its parts. Raises OSError, DamagedArchive where one is missing."""
    archive = whole(path)
    if path == archive and os.path.lexists(path):
        return [path]
    matches = (_PART.fullmatch(name) for name in os.listdir(path.parent))  # noqa: PTH208  only their names
    numbers = {int(match["number"]) for match in matches if match and match["whole"] == archive.name}
    last = max(numbers, default=0)
    if path not in (archive, *(_numbered(archive, number) for number in range(1, last + 1))):
        return [path]  # nothing is there, as opening it will tell
    missing = [_numbered(archive, number).name for number in range(1, last) if number not in numbers]
    if missing:
        more = len(missing) - 1
        what = f"{missing[0]} and {more} more parts are missing" if more else f"{missing[0]} is missing"
        raise DamagedArchive(
            f"{what}, so {archive.name} cannot be put together. Put what is missing beside the other parts, or take "
            "another copy."
        )
    return [_numbered(archive, number) for number in range(1, last + 1)] or [path]


@dataclass(frozen=True, slots=True)
class _Part:
    """An open file, and the stretch of the archive that it holds."""

    path: Path
    descriptor: int
    start: int
    end: int


class Parts:
    """One archive, open, read at offsets as if it lay in one file; by several threads at once, too.

    ``path`` is that of the archive (which stands for its parts where they lie there alone), or of any of its parts.
    Raises UnknownBackup when nothing is there, NotAnArchive when it is no file, DamagedArchive when a part is missing,
    UsageError when it cannot be opened; the other methods OSError.
    """

    def __init__(self, path: Path) -> None:
        self.size_bytes = 0
        self._parts: list[_Part] = []
        with ExitStack() as opened:
            try:
                for file in _files(path):
                    self._open(file, opened)
            except FileNotFoundError as error:
                raise UnknownBackup(f"There is no file {path}.") from error
            except OSError as error:
                raise UsageError(f"{path} cannot be opened: {error.strerror}.") from error
            self._opened = opened.pop_all()
        self._starts = [part.start for part in self._parts]

    def _open(self, file: Path, opened: ExitStack) -> None:
        is_part = whole(file) != file
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        try:
            descriptor = os.open(file, flags | (os.O_NOFOLLOW if is_part else 0))
        except OSError as error:
            if is_part and error.errno == errno.ELOOP:
                raise _no_file(file) from error
            raise
        opened.callback(os.close, descriptor)
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise _no_file(file)
        self._parts.append(_Part(file, descriptor, self.size_bytes, self.size_bytes + status.st_size))
        self.size_bytes += status.st_size

    def close(self) -> None:
        self._opened.close()

    def __len__(self) -> int:
        """How many files are open."""
        return len(self._parts)

    @property
    def first(self) -> Path:
        """By this path it is found again, also where the joined archive comes to lie beside its parts."""
        return self._parts[0].path

    def read(self, offset: int, size_bytes: int) -> bytes:
        """So many bytes; fewer at the end only, or where a file has become shorter."""
        blocks = []
        for descriptor, at, length in self._places(offset, size_bytes):
            blocks.append(os.pread(descriptor, length, at))
            if len(blocks[-1]) < length:
                break
        return blocks[0] if len(blocks) == 1 else b"".join(blocks)

    def read_into(self, block: memoryview, offset: int) -> int:
        """As ``read``; how many bytes there were."""
        read = 0
        for descriptor, at, length in self._places(offset, len(block)):
            got = os.preadv(descriptor, [block[read : read + length]], at)
            read += got
            if got < length:
                break
        return read

    def advise(self, offset: int, size_bytes: int, advice: int) -> None:
        """posix_fadvise(2) for a stretch, 0 bytes for all from there on; whatever the kernel says to it."""
        for descriptor, at, length in self._places(offset, size_bytes or self.size_bytes):
            with suppress(OSError):
                os.posix_fadvise(descriptor, at, length, advice)

    def _places(self, offset: int, size_bytes: int) -> Iterator[tuple[int, int, int]]:
        """The descriptors, offsets and lengths that make up a stretch."""
        number = bisect_right(self._starts, offset) - 1
        while size_bytes > 0 and number < len(self._parts):
            part = self._parts[number]
            length = min(size_bytes, part.end - offset)
            if length > 0:
                yield part.descriptor, offset - part.start, length
                offset, size_bytes = offset + length, size_bytes - length
            number += 1

    def missing(self) -> list[str]:
        """Sentences about parts that the list beside them names and that are not there, such as the last."""
        here = {part.path.name for part in self._parts}
        return [f"{name} is missing." for name in self._listed() if name not in here]

    def spoiled(self, check: Callable[[], None]) -> Iterator[str]:
        """Sentences about parts that are not what the list says, each read to its end; ``check`` may stop that."""
        listed, name = self._listed(), f"{whole(self.first).name}{LIST}"
        for part in self._parts:
            if part.path.name not in listed:
                continue
            hash_ = hashing.new()
            try:
                for offset in range(part.start, part.end, _BLOCK):
                    check()
                    hash_.update(self.read(offset, min(_BLOCK, part.end - offset)))
            except OSError as error:
                yield f"{part.path.name} cannot be read: its disk reports an error ({error.strerror})."
                continue
            if hash_.hexdigest() != listed[part.path.name]:
                yield f"{part.path.name} is not the file that {name} was made for."

    def _listed(self) -> dict[str, str]:
        """The checksums of the parts by their names; empty where there is no list, or one that cannot be read."""
        archive = whole(self.first)
        file = archive.with_name(archive.name + LIST)
        if archive == self.first or not file.is_file():
            return {}
        with suppress(OSError), file.open("rb") as lines:
            found = [sums.parse(line) for line in lines.read(_BLOCK).splitlines()]
            return {f[1]: f[0] for f in found if f and (m := _PART.fullmatch(f[1])) and m["whole"] == archive.name}
        return {}


def _no_file(path: Path) -> NotAnArchive:
    return NotAnArchive(f"{path} is not a file that can be read as an archive.")

"""The backup before: what of it may be linked to, found in step with a walk that goes the same way."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from memu_backup.descent import FOLDER_FLAGS, Descent
from memu_backup.errors import DamagedArchive
from memu_backup.formats import hashing
from memu_backup.formats.tar import Type
from memu_backup.trees import index
from memu_backup.trees.index import Line

_BLOCK = 1024 * 1024


class Earlier:
    """A tree called ``name`` at ``root`` with its ``index`` beside it. Use as a context manager. Raises OSError,
    DamagedArchive.

    With ``rereads`` nothing is taken for unchanged by its times, and what is linked to is read before.
    """

    def __init__(self, name: str, root: Path, index_file: Path, *, rereads: bool) -> None:
        self.name, self.rereads = name, rereads
        self._root = os.open(root, FOLDER_FLAGS)
        try:
            self._file: IO[bytes] = index_file.open("rb")
            try:
                self._keeps_rights = index.read_first(self._file.readline())
            except BaseException:
                self._file.close()
                raise
        except BaseException:
            os.close(self._root)
            raise
        self._first = self._file.tell()
        self._way = Descent(self._root)
        self._below = self._inside = ""
        self._next: Line | None = None
        self._given = False
        self.text = b""
        """The line of the entry found last, as it stands in the index."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._way.close()
        self._file.close()
        os.close(self._root)

    def begin(self, place: str) -> None:
        """Go to the entries at ``place`` and below it; they mostly follow those of the place before."""
        self._below = place.removesuffix("/")
        self._inside = f"{self._below}/"
        wanted, at = index.begin_of(self._below), self._file.tell()
        if self._file.readline().startswith(wanted):
            self._file.seek(at)
        else:
            self._file.seek(self._first)
            while (text := self._file.readline()) and not text.startswith(wanted):
                pass
            self._file.seek(-len(text), os.SEEK_CUR)
        self._advance()

    def find(self, path: str) -> Line | None:
        """The entry of that path. Paths have to be asked for in the order of the walk, each once. Raises
        DamagedArchive.
        """
        if self._given:
            self._advance()
        if self._next and self._next.header.path != path:  # seldom: a folder, or what is gone or new
            wanted = path.split("/")
            while self._next and self._next.header.path.split("/") < wanted:
                self._advance()
        self._given = self._next is not None and self._next.header.path == path
        return self._next if self._given else None

    def _advance(self) -> None:
        self._given = False
        self.text = text = self._file.readline()
        self._next = line = index.parse(text) if text else None
        if line and not line.header.path.startswith(self._inside) and line.header.path != self._below:
            self._file.seek(-len(text), os.SEEK_CUR)  # where the next place begins
            self._next = None

    def folder_of(self, path: str) -> int:
        """The open folder that holds ``path``, see ``Descent``. Raises OSError."""
        return self._way.folder_of(path)

    def is_as_it_was(self, line: Line) -> os.stat_result | None:
        """How the file is there, where it still holds what its line says, as far as its inode tells; by all its bytes
        where this one ``rereads``. Else None.
        """
        header = line.header
        try:
            name = header.path.rpartition("/")[2]
            found = os.stat(name, dir_fd=self.folder_of(header.path), follow_symlinks=False)
            if not stat.S_ISREG(found.st_mode) or found.st_size != header.size_bytes or header.type is not Type.FILE:
                return None
            return found if not self.rereads or self._sha256(header.path, name) == line.sha256 else None
        except OSError:
            return None

    def has_its_rights(self, line: Line, found: os.stat_result) -> bool:
        """Whether owner and rights are those of its line, too, where this disk keeps any: somebody may have typed
        chown -R over all backups.
        """
        return not self._keeps_rights or index.same_rights(found, line.header)

    def _sha256(self, path: str, name: str) -> str:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self.folder_of(path))
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            hash_ = hashing.new()
            while block := os.read(descriptor, _BLOCK):
                hash_.update(block)
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return hash_.hexdigest()
        finally:
            os.close(descriptor)


def opened(name: str, root: Path, index_file: Path, *, rereads: bool) -> Earlier | None:
    """None where it cannot be read: everything is written anew then."""
    try:
        return Earlier(name, root, index_file, rereads=rereads)
    except (OSError, DamagedArchive):
        return None

"""Reads a tree: by its index, or where there is none as it lies there."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import Self

from memu_backup import files
from memu_backup.descent import Descent
from memu_backup.errors import DamagedArchive, NotAnArchive, UnknownBackup, UsageError
from memu_backup.files import Passing, shown
from memu_backup.formats import hashing, manifest
from memu_backup.formats.index import Entry
from memu_backup.formats.intake import describe, xattrs
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Manifest, Root
from memu_backup.trees import index
from memu_backup.trees.index import Line
from memu_backup.walk import Found, Skipped, walk
from memu_backup.work import Stop

_BLOCK = 4 * 1024 * 1024
_MANIFEST_LIMIT = 64 * 1024 * 1024

Content = Iterator[memoryview]


class TreeReader:
    """One tree at ``root``, with its ``notes`` beside it. Use as a context manager.

    Raises UnknownBackup where nothing is there, NotAnArchive where it is no folder, UsageError where it cannot be
    opened. ``indexed`` says whether there is an index of ours; without it everything works, by walking through it.
    """

    whole = True
    cut = False
    open_files = 2
    keeps_rights = False
    """Known once a line of the index was read."""

    def __init__(self, root: Path, notes: Path, stop: Stop | None = None) -> None:
        self.root, self.stop = root, stop or Stop()
        self._notes = notes
        try:
            self._root = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise UnknownBackup(f"There is no backup {root}.") from error
        except NotADirectoryError as error:
            raise NotAnArchive(f"{root} is no folder.") from error
        except OSError as error:
            raise UsageError(f"{root} cannot be opened: {error.strerror}.") from error

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._root)

    @property
    def descriptor(self) -> int:
        """Of the open tree."""
        return self._root

    @property
    def indexed(self) -> bool:
        return (self._notes / index.NAME).is_file()

    @property
    def index_bytes(self) -> int:
        try:
            return (self._notes / index.NAME).stat().st_size
        except OSError:
            return 1  # nobody knows how long a walk takes

    def manifest(self) -> Manifest | None:
        """What the tree says of itself; None where it says nothing. Raises DamagedArchive."""
        try:
            with (self._notes / manifest.NAME).open("rb") as file:
                content = file.read(_MANIFEST_LIMIT)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise DamagedArchive(f"its {manifest.NAME} cannot be read ({error.strerror})") from error
        return manifest.decode(content)

    # --- what is in it -----------------------------------------------------------------------------------------------

    def lines(self) -> Iterator[Line]:
        """The whole index. Raises DamagedArchive."""
        with closing(self._texts()) as texts:
            yield from (index.parse(text) for _, text in texts)

    def index(self, only: Callable[[bytes], bool] | None = None, *, hashes: bool = True) -> Generator[Entry]:
        """See ``stores.Opened``. An entry's ``member`` and ``end`` tell where its content would lie if all of them lay
        one after the other, ``inside`` where its line is.
        """
        if not self.indexed:
            yield from (_entry(header, "", 0, 0) for header, _ in self.entries_with_content())
            return
        at = 0
        with closing(self._texts()) as texts:
            for offset, text in texts:
                if only and not only(text):
                    continue
                line = index.parse(text)
                entry = _entry(line.header, line.sha256 if hashes else "", at, offset)
                at = entry.end
                yield entry

    def _texts(self, offset: int = 0) -> Generator[tuple[int, bytes]]:
        try:
            with (self._notes / index.NAME).open("rb") as file:
                self.keeps_rights = index.read_first(file.readline())
                if offset:
                    file.seek(offset)
                for found in index.lines(file):
                    self.stop.check()
                    yield found
        except OSError as error:
            raise DamagedArchive(f"its index cannot be read ({error.strerror})") from error

    def readable(self) -> Generator[Entry | Manifest]:
        """See ``stores.Opened``; a file that cannot be read to its end is left out."""
        with closing(self.entries_with_content()) as found:
            for header, content in found:
                try:
                    for _ in content:
                        pass
                except DamagedArchive:
                    continue
                yield _entry(header, "", 0, 0)
        if made := self.manifest():
            yield made

    def entries_with_content(self) -> Generator[tuple[Header, Content]]:
        """See ``stores.Opened``."""
        with closing(self.all_with_content()) as found:
            yield from ((header, content) for header, content, _ in found)

    def all_with_content(self) -> Generator[tuple[Header, Content, str]]:
        """As ``entries_with_content``, with the SHA-256 of files where that is known. Raises DamagedArchive."""
        way = Descent(self._root)
        try:
            if self.indexed:
                for line in self.lines():
                    yield line.header, self._content(way, line.header, line.sha256), line.sha256
            else:
                for header in self._walked():
                    yield header, self._content(way, header, ""), ""
        finally:
            way.close()

    def stretch(self, first: Entry, last: Entry) -> Generator[tuple[Header, Content]]:
        """See ``stores.Opened``."""
        way = Descent(self._root)
        try:
            with closing(self._texts(first.inside)) as texts:
                for _, text in texts:
                    line = index.parse(text)
                    yield line.header, self._content(way, line.header, line.sha256)
                    if line.header.path == last.path:
                        return
        finally:
            way.close()

    def content(self, path: str) -> Iterator[bytes]:
        """The bytes of one file, holes as zeros. Raises UsageError when there is no such file, DamagedArchive."""
        header, sha256 = self._find(path)
        if header and header.type is Type.HARDLINK:
            header, sha256 = self._find(header.link)
        if header is None or header.type is not Type.FILE:
            raise UsageError(f"There is no file {shown(path)} in {self.root.name}.")
        way = Descent(self._root)
        try:
            yield from map(bytes, self._content(way, replace(header, extents=None), sha256))
        finally:
            way.close()

    def _find(self, path: str) -> tuple[Header | None, str]:
        if not self.indexed:
            return next((header for header in self._walked() if header.path == path), None), ""
        begin = index.begin_of(path)[0]
        with closing(self._texts()) as texts:
            for _, text in texts:
                if text.startswith(begin):
                    line = index.parse(text)
                    return line.header, line.sha256
        return None, ""

    # --- as it lies there --------------------------------------------------------------------------------------------

    def _walked(self) -> Iterator[Header]:
        """What a tree without an index holds."""
        lost: list[Skipped] = []
        for found in walk(Root(self.root, ""), frozenset(), lost.append):
            self.stop.check()
            if found.place:
                yield _described(found)
        if broken := next((skipped for skipped in lost if skipped.lost), None):
            raise DamagedArchive(f"{shown(broken.place)} {broken.reason}")

    def _content(self, way: Descent, header: Header, sha256: str) -> Content:
        """What is stored of a file: as long as its header says, and where that is known what it was when it was
        written. Raises DamagedArchive.
        """
        if header.type is not Type.FILE:
            return
        try:
            descriptor = open_file(way, header.path)
        except OSError as error:
            raise DamagedArchive(f"{shown(header.path)} {files.reason(error)}") from error
        try:
            yield from self._blocks(descriptor, header, sha256)
        except OSError as error:
            raise DamagedArchive(f"{shown(header.path)} {files.reason(error)}") from error
        finally:
            os.close(descriptor)

    def _blocks(self, descriptor: int, header: Header, sha256: str) -> Content:
        changed = DamagedArchive(f"{shown(header.path)} is not what it was when it was written")
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode) or found.st_size != header.size_bytes:
            raise changed
        hash_ = hashing.new()
        passing = Passing(lambda offset, size, advice: os.posix_fadvise(descriptor, offset, size, advice))
        for start, length in ((0, header.size_bytes),) if header.extents is None else header.extents:
            for offset in range(start, start + length, _BLOCK):
                self.stop.check()
                block = os.pread(descriptor, min(_BLOCK, start + length - offset), offset)
                if len(block) != min(_BLOCK, start + length - offset):
                    raise changed
                hash_.update(block)
                yield memoryview(block)
                passing.passed(offset + len(block))
        passing.end()
        # The hash of one with holes is that of its zeros too, and a hole may be larger than any disk.
        if sha256 and header.extents is None and hash_.hexdigest() != sha256:
            raise changed


def open_file(way: Descent, path: str) -> int:
    """A descriptor for reading. Raises OSError."""
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
    return os.open(path.rpartition("/")[2], flags, dir_fd=way.folder_of(path))


def _entry(header: Header, sha256: str, at: int, line: int) -> Entry:
    return Entry(
        path=header.path,
        type=header.type,
        size_bytes=header.size_bytes,
        mode=header.mode,
        mtime_ns=header.mtime_ns,
        link=header.link,
        sha256=sha256,
        member=at,
        inside=line,
        content=0,
        end=at + header.stored_bytes,
        stored_bytes=header.stored_bytes,
    )


def _described(found: Found) -> Header:
    mode = found.status.st_mode
    if stat.S_ISLNK(mode):
        return replace(describe(found, found.status, Type.SYMLINK), link=found.readlink())
    kind = Type.DIRECTORY if stat.S_ISDIR(mode) else Type.FILE
    try:
        descriptor = found.open()
    except OSError as error:
        raise DamagedArchive(f"{shown(found.place)} {files.reason(error)}") from error
    try:
        return describe(found, os.fstat(descriptor), kind, xattrs(descriptor)[0])
    finally:
        os.close(descriptor)

"""Reads an archive: ours by its index, anyone else's tar.gz by a full pass."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from itertools import chain, islice, zip_longest
from pathlib import Path
from types import TracebackType
from typing import Self

from memu_backup.errors import DamagedArchive, NotAnArchive, NotThere
from memu_backup.files import Passing, shown
from memu_backup.formats import gzip, index, manifest, untar
from memu_backup.formats.gzip import Footer
from memu_backup.formats.index import Entry
from memu_backup.formats.inflate import inflate
from memu_backup.formats.members import read_members
from memu_backup.formats.parts import LIST, Parts, whole
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Manifest
from memu_backup.work import Stop

OWN_NAMES = frozenset({manifest.NAME, manifest.SUMS_NAME, index.NAME})
"""Files at the top of an archive of ours that are not the household's; anyone else's may hold such names too."""

_BLOCK = 1024 * 1024
_AHEAD = 8 * _BLOCK
_MANIFEST_LIMIT = 64 * 1024 * 1024

OnBytes = Callable[[memoryview], None]
"""Sees the archive's own bytes as they are read, front to back."""


@dataclass(frozen=True, slots=True)
class _Place:
    """A stretch of the archive to read members from."""

    start: int
    end: int


class ArchiveReader:
    """One archive, open for reading, in one file or in parts. Use as a context manager.

    ``path`` is also that of any part; the reader's own is then that of the whole. Raises as ``Parts``, NotAnArchive for
    something else, DamagedArchive when its disk cannot read it. ``indexed`` says whether it carries our footer; without
    it everything works, by reading it all.
    """

    def __init__(self, path: Path, stop: Stop | None = None) -> None:
        self.path = whole(path)
        self.stop = stop or Stop()
        self.parts = Parts(path)
        self.size_bytes = self.parts.size_bytes
        try:
            self._footer = self._read_footer()
        except OSError as error:
            self.parts.close()
            raise DamagedArchive(
                f"{self.path} cannot be read: its disk reports an error ({error.strerror})."
            ) from error
        except BaseException:
            self.parts.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.parts.close()

    @property
    def indexed(self) -> bool:
        return self._footer is not None

    @property
    def whole(self) -> bool:
        """Whether it is as long as it says; always True where it says nothing."""
        return self._footer is None or self._footer.archive_bytes == self.size_bytes

    @property
    def cut(self) -> bool:
        """Whether it was written by us and lacks the footer that each of ours ends with."""
        return self._footer is None and gzip.member_bytes(self._read(0, gzip.HEADER_BYTES)) is not None

    @property
    def open_files(self) -> int:
        return len(self.parts)

    @property
    def index_bytes(self) -> int:
        """How much of it has to be read to know what is in it: the index at its end, or else all of it."""
        return self.size_bytes - (self._footer.index_offset if self._footer else 0)

    def _read_footer(self) -> Footer | None:
        tail = self.parts.read(max(0, self.size_bytes - gzip.FOOTER_BYTES), gzip.FOOTER_BYTES)
        found = gzip.read_footer(tail)
        if found and found.manifest_offset < found.index_offset < found.archive_bytes:
            return found
        if self.parts.read(0, 2) != b"\x1f\x8b":
            if len(self.parts) > 1:
                raise DamagedArchive(
                    f"{self.path.name} cannot be put together: its parts are damaged, or have been renamed. In their "
                    f"folder, this tells which: sha256sum -c {self.path.name}{LIST}"
                )
            raise NotAnArchive(f"{self.path} is not a tar.gz archive.")
        return None

    def manifest(self) -> Manifest | None:
        """What the archive says of itself, in milliseconds where it has a footer; None where it says nothing, or is
        another program's. Raises DamagedArchive.
        """
        if self._footer is None:
            for header, content in self.entries_with_content():
                if header.path == manifest.NAME and header.type is Type.FILE:
                    return self.told(content)
            return None
        with closing(self._tar(_Place(self._footer.manifest_offset, self._footer.index_offset))) as found:
            return self.told(_own(found, manifest.NAME))

    def told(self, content: Iterator[memoryview]) -> Manifest | None:
        """What a metadata.json in this archive says; None where it is another program's. Raises DamagedArchive."""
        document = bytearray()
        for block in content:
            document += block
            if len(document) > _MANIFEST_LIMIT:
                break
        if not (self.indexed or self.cut or manifest.claims(bytes(document))):
            return None
        if len(document) > _MANIFEST_LIMIT:
            raise DamagedArchive(f"its {manifest.NAME} is larger than any of ours")
        return manifest.decode(bytes(document))

    def index(self, only: Callable[[bytes], bool] | None = None, *, hashes: bool = True) -> Generator[Entry]:
        """Every entry of the household in the archive's order. Without a footer this reads the whole archive, gives
        all that is in it (see ``is_own``), and ``member`` and its like are 0. Raises DamagedArchive.

        ``only`` sees the lines of an index before they are parsed, and leaves out those to which it says no. Without
        ``hashes`` a million entries take a seventh less of memory.
        """
        if self._footer is None:
            for header, _ in self.entries_with_content():
                yield _entry(header)
            return
        with closing(self._tar(_Place(self._footer.index_offset, self.size_bytes))) as found:
            lines = index.split(_own(found, index.NAME))
            if only:
                head = islice(lines, 1)
                lines = chain(head, filter(only, lines))
            yield from index.parse(lines, hashes=hashes)

    def link_targets(self) -> Iterator[str]:
        """The files of which hard links are in the index; none without one. Raises DamagedArchive."""
        if self._footer is None:
            return
        # Most households have none, and looking for the word takes a tenth of parsing everything.
        with closing(self.index(lambda line: b'"hardlink"' in line)) as entries:
            yield from (entry.link for entry in entries if entry.type is Type.HARDLINK)

    def checked_index(self) -> Iterator[Entry]:
        """As ``index``, but each entry is compared with the archive's own headers, by a pass over all of it.

        For what a stranger handed in: an index that lies is found before anything is unpacked. Raises DamagedArchive.
        """
        if self._footer is None:
            yield from self.index()
            return
        with closing(self.entries_with_content()) as found:
            headers = (header for header, _ in found if header.path not in OWN_NAMES)
            for entry, header in zip_longest(self.index(), headers):
                if entry is None or header is None or not agree(entry, header):
                    raise DamagedArchive("its index does not tell what is in it")
                yield entry

    def content(self, path: str) -> Iterator[bytes]:
        """The bytes of one file in the archive, holes as zeros. Raises UsageError when there is no such file."""
        entry = self._find(path)
        if entry and entry.type is Type.HARDLINK:
            entry = self._find(entry.link)
        if entry is None or entry.type is not Type.FILE:
            raise NotThere(f"There is no file {shown(path)} in {self.path.name}.")
        with closing(self.entries_with_content(entry)) as found:
            for header, stored in found:
                yield from (bytes(block) for block in untar.unfold(header, stored))
                return

    def _find(self, path: str) -> Entry | None:
        with closing(self.index()) as entries:
            return next((e for e in entries if e.path == path), None)

    def entries_with_content(
        self, only: Entry | None = None, on_bytes: OnBytes | None = None
    ) -> Generator[tuple[Header, Iterator[memoryview]]]:
        """The headers with their stored content, read once, front to back; ``only`` gives that one entry.

        Includes our own files at the end. Raises NotAnArchive, DamagedArchive, Interrupted.
        """
        if only is None or self._footer is None:
            with closing(self._tar(_Place(0, self.size_bytes), on_bytes=on_bytes)) as everything:
                for header, content in everything:
                    if only is None or header.path == only.path:
                        yield header, content
            return
        with closing(self._tar(_Place(only.member, only.end), only.inside)) as found:
            first = next(found, None)
            if first is None or not agree(only, first[0]):
                raise DamagedArchive("its index points to the wrong place")
            yield first

    def readable(self) -> Generator[Entry | Manifest]:
        """What can be read front to back without the index: entries, each once all of its content was read, and the
        manifest, which stands behind the last of them. Raises DamagedArchive where that ends.
        """
        ours = self.indexed or self.cut
        with closing(self.entries_with_content()) as found:
            for header, content in found:
                if header.path == manifest.NAME and header.type is Type.FILE:
                    told = self.told(content)
                    if told:
                        yield told
                for _ in content:
                    pass
                if not (ours and header.path in OWN_NAMES):
                    yield _entry(header)

    def stretch(self, first: Entry, last: Entry) -> Generator[tuple[Header, Iterator[memoryview]]]:
        """The headers with their stored content from one entry of the index on, to where another ends.

        Without threads of its own: several stretches may be read at once. What stands behind ``last`` in the same
        member may come too, cut off. Raises DamagedArchive, Interrupted.
        """
        yield from self._tar(_Place(first.member, last.end), first.inside, alone=True)

    def own_lines(self, name: str) -> Iterator[bytes]:
        """The lines of one of our own files at the end, found by a full pass; none where there is no such file."""
        with closing(self.entries_with_content()) as found:
            for header, content in found:
                if header.path == name:
                    yield from index.split(content)
                    return

    def damaged(self) -> Iterator[str]:
        """The paths of the files and links that lie, wholly or in part, where the archive cannot be inflated."""
        known: tuple[int, int, bool] = (-1, -1, False)
        for entry in self.index():
            # What stands in the same member as the entry before shares its fate.
            start, end = entry.member, entry.content or entry.end
            if known[:2] != (start, end):
                known = (start, end, self._inflates(start, end))
            whole = known[2] and (not entry.content or self._inflates(entry.content, entry.end))
            if not whole and entry.type is not Type.DIRECTORY:
                yield entry.path

    def _inflates(self, offset: int, end: int) -> bool:
        while offset < end:
            self.stop.check()
            try:
                size = gzip.member_bytes(self._read(offset, gzip.HEADER_BYTES))
                gzip.unpack(self._read(offset, size or 0))
            except DamagedArchive:
                return False
            assert size  # nothing unpacks out of no bytes
            offset += size
        return True

    # --- bytes -------------------------------------------------------------------------------------------------------

    def _tar(
        self, place: _Place, inside: int = 0, on_bytes: OnBytes | None = None, *, alone: bool = False
    ) -> Generator[tuple[Header, Iterator[memoryview]]]:
        # One with our footer is read by members from the start: a broken first header is damage, not another program.
        ours = self.indexed or gzip.member_bytes(self._read(place.start, gzip.HEADER_BYTES)) is not None
        blocks = self._by_members(place, on_bytes, alone) if ours else self._inflated(place, on_bytes)
        try:
            for header, content in untar.Reader(_without_first(blocks, inside)):
                if header.path != ".":  # the packed folder itself, as `tar -C photos .` names it
                    yield _at_top(header), content
        except NotAnArchive as error:
            if self.indexed:
                raise DamagedArchive(str(error)) from error
            raise NotAnArchive(f"{self.path} is not a backup archive: {error}.") from error
        finally:
            blocks.close()

    def _by_members(self, place: _Place, on_bytes: OnBytes | None, alone: bool) -> Generator[bytes]:
        if alone:
            yield from (gzip.unpack(self._read(offset, size)) for offset, size in self._members(place))
            return
        with closing(read_members(self._members(place), self._read)) as members:
            for packed, content in members:
                if on_bytes:
                    on_bytes(memoryview(packed))
                yield content

    def raw(self) -> Iterator[memoryview]:
        """The archive's own bytes from front to back, a block good until the next. Raises as ``_read``."""
        block = memoryview(bytearray(_BLOCK))
        passing = Passing(self.parts.advise)
        offset = 0
        while size := self._fill(block, offset):
            self.stop.check()
            yield block[:size]
            offset += size
            passing.passed(offset)
        passing.end()

    def _fill(self, block: memoryview, offset: int) -> int:
        try:
            return self.parts.read_into(block, offset)
        except OSError as error:
            raise _unreadable(offset, error) from error

    def _members(self, place: _Place) -> Iterator[tuple[int, int]]:
        """Where they lie and how long they are; the disk is told to begin with what follows. Raises DamagedArchive."""
        offset = place.start
        passing = Passing(self.parts.advise, offset)
        begun = offset
        while offset < place.end:
            self.stop.check()
            size = gzip.member_bytes(self._read(offset, gzip.HEADER_BYTES))
            if size is None or offset + size > self.size_bytes:
                raise DamagedArchive(f"it cannot be read from byte {offset:,} on")
            while begun < min(offset + size + _AHEAD, place.end):
                self.parts.advise(begun, _BLOCK, os.POSIX_FADV_WILLNEED)
                begun += _BLOCK
            yield offset, size
            offset += size
            passing.passed(offset)
        passing.end(offset)

    def _inflated(self, place: _Place, on_bytes: OnBytes | None) -> Generator[bytes]:
        def read(offset: int, size: int) -> bytes:
            self.stop.check()
            block = self._read(offset, size)
            if on_bytes:
                on_bytes(memoryview(block))
            return block

        return inflate(read, place.start, place.end)

    def _read(self, offset: int, size: int) -> bytes:
        try:
            return self.parts.read(offset, size)
        except OverflowError as error:
            raise DamagedArchive("its index points to the wrong place") from error
        except OSError as error:
            raise _unreadable(offset, error) from error


def _unreadable(offset: int, error: OSError) -> DamagedArchive:
    return DamagedArchive(f"the disk cannot read it at byte {offset:,} ({error.strerror})")


def _without_first(blocks: Iterator[bytes], count: int) -> Iterator[bytes]:
    for block in blocks:
        if count >= len(block):
            count -= len(block)
            continue
        yield block[count:]
        count = 0


def _entry(header: Header) -> Entry:
    return Entry(
        header.path, header.type, header.size_bytes, header.mode, header.mtime_ns, header.link, "", 0, 0, 0, 0,
        header.stored_bytes,
    )  # fmt: skip


def _own(found: Iterator[tuple[Header, Iterator[memoryview]]], name: str) -> Iterator[memoryview]:
    header, content = next(found, (None, iter(())))
    if header is None or header.path != name or header.type is not Type.FILE:
        raise DamagedArchive("its footer points to the wrong place")
    return content


def is_own(path: str, made: Manifest | None) -> bool:
    """Whether it is one of our own files; in an archive that has no manifest of ours it is the household's."""
    return made is not None and path in OWN_NAMES


def agree(entry: Entry, header: Header) -> bool:
    """Whether the index and the archive itself tell the same of an entry."""
    told = (entry.path, entry.type, entry.size_bytes, entry.mode, entry.mtime_ns, entry.link)
    if told != (header.path, header.type, header.size_bytes, header.mode, header.mtime_ns, header.link):
        return False
    return entry.stored_bytes in (None, header.stored_bytes)


def _at_top(header: Header) -> Header:
    """A header as other programs write it (``./photos``), by the name it has here."""
    if not header.path.startswith("./"):
        return header
    link = header.link.removeprefix("./") if header.type is Type.HARDLINK else header.link
    return replace(header, path=header.path.removeprefix("./"), link=link)

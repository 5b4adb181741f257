"""Re-reads a tree and compares every file with what the index says of it."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice

from memu_backup import files
from memu_backup.descent import Descent
from memu_backup.errors import DamagedArchive
from memu_backup.files import Tick, shown
from memu_backup.formats import hashing, manifest, sums
from memu_backup.formats.members import THREADS
from memu_backup.formats.proof import Proof
from memu_backup.formats.tally import Seen
from memu_backup.formats.tar import Type
from memu_backup.model import Manifest
from memu_backup.trees.index import Line, same_rights
from memu_backup.trees.reader import TreeReader, open_file
from memu_backup.work import be_gentle

_NAMED = 20
_AT_ONCE = 64
_BLOCK = 1024 * 1024
_RIGHTS = ": its owner or rights are not what they were when it was written."


def quick(reader: TreeReader) -> Proof:
    """Metadata and index, and whether each file is there and as long as it was; not the content."""
    return _Pass(reader, lambda *_: None, reads=False).run()


def full(
    reader: TreeReader,
    tick: Tick,
    *,
    new_alone: bool = False,
    only: Callable[[str, str], bool] | None = None,
    read: dict[tuple[int, int], str] | None = None,
) -> Proof:
    """Every byte, hash, count and mode; ``new_alone`` looks only at what was written for this tree: what is linked was
    read when it was written, and looked at when it was linked. Raises Interrupted.

    ``only`` says by SHA-256 and path which entries are looked at; the index is always read to its end. In ``read`` are
    the hashes of files that somebody has just read, by device and inode; they are compared and not read again, and
    what is read is added.
    """
    return _Pass(reader, tick, reads=True, new_alone=new_alone, only=only, read=read).run()


class _Pass:
    def __init__(
        self,
        reader: TreeReader,
        tick: Tick,
        *,
        reads: bool,
        new_alone: bool = False,
        only: Callable[[str, str], bool] | None = None,
        read: dict[tuple[int, int], str] | None = None,
    ) -> None:
        self._reader, self._tick, self._reads, self._new_alone = reader, tick, reads, new_alone
        self._only, self._read = only, read
        self._files = self._bytes = 0
        self._problems: list[str] = []
        self._spoiled: list[str] = []
        self._lines_hash = hashing.new()

    def run(self) -> Proof:
        name = self._reader.root.name
        if not self._reader.indexed:
            return Proof((f"{name} has no index beside it: nobody can tell whether it is whole.",), 0, 0)
        try:
            made = self._reader.manifest()
            seen = [Seen(s) for s in made.sources] if made else []
            self._go_through(seen)
        except DamagedArchive as error:
            self._problems.append(f"{name} is damaged: {error}.")
            return self._proof(None)
        if made is None:
            self._problems.append(f"{name} has no {manifest.NAME} beside it.")
        elif not self._problems:
            agree = not any(list(s.problems()) for s in seen) and made.sha256sums == self._lines_hash.hexdigest()
            if not agree:
                self._problems.append(f"{name}: its index and its metadata do not agree.")
        return self._proof(made)

    def _proof(self, made: Manifest | None) -> Proof:
        more = len(self._problems) - _NAMED
        named = self._problems if more <= 0 else [*self._problems[:_NAMED], f"… and {more:,} more."]
        return Proof(
            tuple(named),
            self._files,
            self._bytes,
            self._lines_hash.hexdigest(),
            compared=made is not None,
            spoiled=tuple(self._spoiled[:_NAMED]),
        )

    def _go_through(self, seen: list[Seen]) -> None:
        lines = self._reader.lines()
        with ThreadPoolExecutor(THREADS, "memu-prove", initializer=be_gentle) as pool:
            while batch := list(islice(lines, _AT_ONCE * THREADS)):
                for line in batch:
                    self._count(line, seen)
                if self._new_alone:
                    batch = self._new_of(batch)
                if self._only:
                    batch = [line for line in batch if self._only(line.sha256, line.header.path)]
                stretches = [batch[n : n + _AT_ONCE] for n in range(0, len(batch), _AT_ONCE)]
                for problems in pool.map(self._looked_at, stretches):
                    self._problems += problems.values()
                    self._spoiled += [path for path, problem in problems.items() if not problem.endswith(_RIGHTS)]

    def _new_of(self, batch: list[Line]) -> list[Line]:
        linked = [line.header for line in batch if line.since]
        self._tick(sum(header.size_bytes for header in linked), len(linked), "")
        return [line for line in batch if not line.since]

    def _count(self, line: Line, seen: list[Seen]) -> None:
        header = line.header
        text = sums.line(line.sha256, header.path) if line.sha256 else b""
        self._lines_hash.update(text)
        if header.type is Type.FILE:
            self._files += 1
            self._bytes += header.size_bytes
        of = next((s for s in seen if manifest.lies_in(header.path, s.summary.place)), None)
        if of:
            of.add(header, text)

    def _looked_at(self, lines: list[Line]) -> dict[str, str]:
        way = Descent(self._reader.descriptor)
        try:
            return {line.header.path: problem for line in lines if (problem := self._problem(way, line))}
        finally:
            way.close()

    def _problem(self, way: Descent, line: Line) -> str:
        """What is wrong with one entry, in a sentence; empty where nothing is. Raises Interrupted."""
        self._reader.stop.check()
        path = line.header.path
        try:
            found = os.stat(path.rpartition("/")[2], dir_fd=way.folder_of(path), follow_symlinks=False)
            return self._difference(way, line, found)
        except FileNotFoundError:
            return f"{shown(path)} is missing."
        except OSError as error:
            return f"{shown(path)} {files.reason(error)}."

    def _difference(self, way: Descent, line: Line, found: os.stat_result) -> str:
        header = line.header
        changed = f"{shown(header.path)} is not what it was when it was written."
        kinds = {Type.DIRECTORY: stat.S_ISDIR, Type.SYMLINK: stat.S_ISLNK}
        if not kinds.get(header.type, stat.S_ISREG)(found.st_mode):
            return changed
        if header.type is Type.SYMLINK:
            target = os.readlink(header.path.rpartition("/")[2], dir_fd=way.folder_of(header.path))
            return "" if target == header.link else changed
        if header.type is Type.FILE:
            if found.st_size != header.size_bytes:
                return changed
            if self._reads and self._content(way, line, (found.st_dev, found.st_ino)) != line.sha256:
                return changed
        if self._reader.keeps_rights and header.type is not Type.HARDLINK and not same_rights(found, header):
            return f"{shown(header.path)}{_RIGHTS}"
        return ""

    def _content(self, way: Descent, line: Line, inode: tuple[int, int]) -> str:
        if self._read is None:
            return self._sha256(way, line)
        if known := self._read.get(inode):
            self._tick(line.header.size_bytes, 1, line.header.path)
            return known
        return self._read.setdefault(inode, self._sha256(way, line))

    def _sha256(self, way: Descent, line: Line) -> str:
        """From the disk, as far as nothing else has it in memory."""
        descriptor = open_file(way, line.header.path)
        try:
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            hash_ = hashing.new()
            for block in _blocks(descriptor):
                self._reader.stop.check()
                hash_.update(block)
                self._tick(len(block), 0, line.header.path)
            with suppress(OSError):
                os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            self._tick(0, 1, line.header.path)
            return hash_.hexdigest()
        finally:
            os.close(descriptor)


def _blocks(descriptor: int) -> Iterator[bytes]:
    while block := os.read(descriptor, _BLOCK):
        yield block

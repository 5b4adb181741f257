"""Packs a tree into an archive on its way somewhere else: to a drive, which takes archives alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from threading import Thread

from memu_backup.errors import DamagedArchive
from memu_backup.formats.tar import Header
from memu_backup.formats.writer import ArchiveWriter
from memu_backup.model import Manifest, SourceSummary
from memu_backup.trees.reader import Content, TreeReader
from memu_backup.work import Stop

_Entry = tuple[Header, Content, str]


def archive_name(made: Manifest) -> str:
    """What an archive of the same moment would be called; it carries the local time of then."""
    hours, minutes = made.utc_offset[1:].split(":")
    offset = timedelta(hours=int(hours), minutes=int(minutes)) * (-1 if made.utc_offset[0] == "-" else 1)
    return f"memu_backup_{made.created_at + offset:%Y%m%d_%H%M%S}.tar.gz"


def most_bytes(made: Manifest) -> int:
    """What the archive may take at most: content that does not shrink, and headers."""
    return made.size_bytes + 2048 * (made.files + sum(s.directories + s.links for s in made.sources))


@contextmanager
def stream(reader: TreeReader, scratch: Path, stop: Stop) -> Iterator[int]:
    """A descriptor to read the archive from, as it is made; nothing of it is ever on the disk that holds the tree.

    ``scratch`` is a folder for what grows with the number of files. Raises DamagedArchive at the end, where the tree
    was not what it was when it was written: what was read until then is no archive. Whoever stops reading before the
    end stops the packing.
    """
    reading, writing = os.pipe()
    failed: list[Exception] = []

    def work() -> None:
        try:
            _pack(reader, writing, scratch, stop)
        except Exception as error:
            failed.append(error)
        finally:
            os.close(writing)

    thread = Thread(target=work, name="memu-pack-tree", daemon=True)
    thread.start()
    try:
        yield reading
    except BaseException:
        stop.set()
        failed.clear()
        raise
    finally:
        os.close(reading)
        thread.join()
    if failed:
        raise failed[0]


def _pack(reader: TreeReader, descriptor: int, scratch: Path, stop: Stop) -> None:
    made = reader.manifest()
    if made is None:
        raise DamagedArchive("it does not tell what it holds")
    whole = replace(made, name=archive_name(made), shares_with="", nights_shared=0, shared_bytes=0)
    with (
        ArchiveWriter(descriptor, scratch, stop, lambda *_: None, made.created_at, gentle=True) as writer,
        closing(reader.all_with_content()) as entries,
    ):
        waiting: list[_Entry] = []
        for summary in made.sources:
            writer.take_in(summary, _of(summary, entries, waiting))
        if whole.sha256sums != writer.finish(whole).sha256sums:
            raise DamagedArchive("its index does not tell what is in it")


def _of(summary: SourceSummary, entries: Iterator[_Entry], waiting: list[_Entry]) -> Iterator[_Entry]:
    """The entries of one source, which follow one another; the first of the next one waits."""
    place = summary.place.removesuffix("/")
    while True:
        found = waiting.pop() if waiting else next(entries, None)
        if found is None:
            return
        path = found[0].path
        if path != place and not path.startswith(f"{place}/"):
            waiting.append(found)
            return
        yield found

"""Brings entries out of an archive to whoever unpacks them: on all cores, and past what is damaged."""

from __future__ import annotations

import resource
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import closing, suppress
from dataclasses import dataclass

from memu_backup.errors import DamagedArchive
from memu_backup.files import SETTLING_FILES
from memu_backup.formats.index import Entry
from memu_backup.formats.members import THREADS
from memu_backup.formats.tar import Header, Type
from memu_backup.stores import Opened
from memu_backup.unpack import Unpacker
from memu_backup.work import Stop

_PART = 16 * 1024 * 1024
"""As many bytes of the archive one thread takes at a time."""

_OTHER_FILES = 100
"""As many may be open that have nothing to do with restoring."""

_GAP = 1024 * 1024
"""As many bytes that nobody wants are read to come to the next that somebody does."""


def feed(reader: Opened, entries: Sequence[Entry], unpacker: Unpacker, *, indexed: bool) -> list[Entry]:
    """Unpack everything that can be read, also what stands behind damage. Returns what could not be read.

    By an index on all cores: it tells where everything lies, and nothing but links depends on what came before.
    Raises RestoreError and Interrupted.
    """
    if not indexed:
        left = {e.path: e for e in entries}
        with suppress(DamagedArchive):
            _put(reader.entries_with_content(), left, unpacker.put)
        return list(left.values())
    with ThreadPoolExecutor(_threads(entries, reader.open_files), "memu-restore") as pool:
        enough = Stop()
        parts = [pool.submit(_feed_part, reader, part, unpacker, enough) for part in _parts(entries)]
        done, rest = wait(parts, return_when=FIRST_EXCEPTION)
        enough.set()
        for part in rest:
            part.cancel()
    for part in done:
        part.result()  # what failed tells why, before those that were ended for it
    fed = [part.result() for part in parts]
    lost = {e.path for part in fed for e in part.lost}
    for header in (header for part in fed for header in part.links):
        lost.add(header.path)
        with suppress(DamagedArchive):
            if header.link not in lost:
                unpacker.put(header, iter(()))
                lost.remove(header.path)
    return [e for e in entries if e.path in lost]


def _threads(entries: Sequence[Entry], open_files: int) -> int:
    """As many as there are cores; fewer where each would hold so much open that the system says no."""
    deepest = max((e.path.count("/") for e in entries), default=0)
    allowed, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return max(1, min(THREADS, (allowed - _OTHER_FILES - open_files) // (deepest + 2 + SETTLING_FILES)))


@dataclass(frozen=True, slots=True)
class _Fed:
    """What became of a part: entries that could not be read, and hard links, of which the files may be elsewhere."""

    lost: list[Entry]
    links: list[Header]


def _feed_part(reader: Opened, part: Sequence[Entry], unpacker: Unpacker, enough: Stop) -> _Fed:
    """``enough`` ends it in the middle: a restore that failed must not go on to the end of a long film."""
    left = {e.path: e for e in part}
    fed = _Fed([], [])
    with unpacker.another() as mine:

        def until_enough(content: Iterator[memoryview]) -> Iterator[memoryview]:
            for block in content:
                enough.check()
                yield block

        def put(header: Header, content: Iterator[memoryview]) -> None:
            enough.check()
            if header.type is Type.HARDLINK:
                fed.links.append(header)
            else:
                mine.put(header, until_enough(content))

        while left:
            first = next(iter(left.values()))
            with suppress(DamagedArchive):
                _put(reader.stretch(first, part[-1]), left, put)
            if left.pop(first.path, None):  # else it ended further on, and is taken up there
                fed.lost.append(first)
    return fed


def _parts(entries: Sequence[Entry]) -> Iterator[Sequence[Entry]]:
    """Stretches of entries that are worth a thread's while, without long ones of others between them."""
    begin = 0
    for number in range(1, len(entries)):
        here, before = entries[number].member, entries[number - 1]
        if here - before.end > _GAP or here - entries[begin].member > _PART or here < before.member:
            yield entries[begin:number]
            begin = number
    if entries:
        yield entries[begin:]


def _put(
    found: Generator[tuple[Header, Iterator[memoryview]]],
    left: dict[str, Entry],
    put: Callable[[Header, Iterator[memoryview]], None],
) -> None:
    with closing(found):
        for header, content in found:
            if header.path in left:
                put(header, content)
                del left[header.path]
            if not left:
                break

"""All rows beside the archives, as lines of JSON that people can read and every version of Postgres can take back."""

from __future__ import annotations

import asyncio
import gzip
import json
import logging
import os
import stat
import time
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from io import BytesIO
from itertools import chain, count
from pathlib import Path
from urllib.parse import quote

from memu_backup.files import rename_without_replacing, write_atomically
from memu_backup.history import rows
from memu_backup.history.rows import Note
from memu_backup.history.schema import Connection
from memu_backup.model import Run, Status

log = logging.getLogger(__name__)

FORMAT = "memu-backup-history/1"

_PREFIX, _SUFFIX = "backup_history_", ".jsonl.gz"
_BATCH = 500
_LEFT_OVER_S = 3600.0
_CUT = (EOFError, OSError, zlib.error)
_NONSENSE = (ValueError, KeyError, TypeError, AttributeError, RecursionError)


class Unreadable(Exception):
    """A dump that is damaged, or of a later format; its words fit into a sentence."""


@dataclass(frozen=True, slots=True)
class Dump:
    """One that lies in a folder. ``content`` is packed, some hundred bytes a row: the disk is done with."""

    path: Path
    host: str
    made_at: datetime
    content: bytes


def path_in(folder: Path, host: str) -> Path:
    """Where the dump of this machine's history lies. Machines that share a folder do not write over each other's."""
    return folder / f"{_PREFIX}{quote(host, safe='')[:150]}{_SUFFIX}"


def best_first(dumps: Sequence[Dump], host: str) -> list[Dump]:
    """This machine's own before others', the newest first: what is taken from one, none behind it changes."""
    return sorted(dumps, key=lambda d: (d.host == host, d.made_at), reverse=True)


def available(folder: Path) -> list[Dump]:
    """All dumps in a folder, whoever wrote them. What cannot be read is logged and left out. Blocks."""
    found = []
    for path in present(folder):
        try:
            found.append(fetched(path))
        except (OSError, Unreadable) as error:
            log.warning("The saved history %s cannot be read (%s).", path, reason(error))
    return found


def present(folder: Path) -> list[Path]:
    """Where they lie. In a folder that cannot be read there are none."""
    try:
        return sorted(p for p in folder.iterdir() if p.name.startswith(_PREFIX) and p.name.endswith(_SUFFIX))
    except OSError:
        return []


def fetched(path: Path) -> Dump:
    """Raises OSError, Unreadable."""
    with open(path, "rb", opener=_opened) as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise Unreadable("it is no file")
        content = file.read()
    try:
        with gzip.open(BytesIO(content)) as lines:
            head = json.loads(lines.readline())
        made_at = datetime.fromisoformat(head["made_at"])
        if head["format"] != FORMAT or made_at.tzinfo is None:
            raise Unreadable("it was written by another version of memu-backup")
        return Dump(path, head["host"], made_at, content)
    except (*_CUT, *_NONSENSE) as error:
        raise Unreadable("it is damaged") from error


def former(path: Path) -> Dump | None:
    """What is about to be replaced; one that cannot be read is set aside, as it may be all that is left. Blocks.

    Raises OSError.
    """
    try:
        return fetched(path)
    except FileNotFoundError:
        return None
    except Unreadable as error:
        aside = _aside(path)
        rename_without_replacing(path, aside)
        log.warning("The saved history %s cannot be read (%s); it is kept as %s.", path, error, aside.name)
        return None


def keep(dump: Dump) -> None:
    """Set a copy aside of what is about to be replaced and could not all be taken back. Blocks. Raises OSError."""
    aside = _aside(dump.path)
    write_atomically(aside, dump.content, replace=False)
    log.warning("Not all of the saved history %s could be taken over; it is kept as %s.", dump.path, aside.name)


def _aside(path: Path) -> Path:
    names = (path.with_name(f"{path.name}.unreadable{number}") for number in chain([""], count(-2, -1)))
    return next(name for name in names if not os.path.lexists(name))


def _opened(name: str, flags: int) -> int:
    return os.open(name, flags | os.O_NOFOLLOW | os.O_NONBLOCK)


async def load(connection: Connection, dump: Dump) -> tuple[int, bool]:
    """Add the rows that are not there yet; those that are there are newer and stay as they are.

    How many were added, and whether it could be read as a whole. Of a damaged one, all that can be read counts. Lets
    asyncpg's errors through; the caller has begun a transaction.
    """
    added, whole = 0, True
    batches = _batches(dump.content)
    try:
        while batch := await asyncio.to_thread(next, batches, None):
            keys, refused = await rows.add(connection, batch)
            added += len(keys)
            whole = whole and not refused
    except Unreadable as error:
        _tell(dump, error)
        whole = False
    return added, whole


def runs(dump: Dump) -> list[Run]:
    """All that can be read of them. Blocks."""
    found: list[Run] = []
    try:
        for batch in _batches(dump.content):
            found += [note for note in batch if isinstance(note, Run)]
    except Unreadable as error:
        _tell(dump, error)
    return found


def _tell(dump: Dump, error: Unreadable) -> None:
    log.warning("Of the saved history %s not all is left: %s. What can be read of it counts.", dump.path, error)


def _batches(content: bytes) -> Iterator[list[Note]]:
    """Raises Unreadable when all that can be read was given, and that was not all."""
    batch: list[Note] = []
    nonsense = 0
    cut: Exception | None = None
    try:
        with gzip.open(BytesIO(content)) as lines:
            lines.readline()
            for line in lines:
                try:
                    batch.append(rows.from_json(line))
                except _NONSENSE:
                    nonsense += 1
                if len(batch) == _BATCH:
                    yield batch
                    batch = []
    except _CUT as error:
        cut = error
    if batch:
        yield batch
    if cut:
        raise Unreadable("it cannot be read to its end") from cut
    if nonsense:
        raise Unreadable(f"{nonsense} of its lines {'is' if nonsense == 1 else 'are'} damaged")


async def packed(connection: Connection, host: str, made_at: datetime, *, ended: bool = False) -> bytes:
    """What a dump holds: all rows as they are at one moment, in the order in which they were first written; with
    ``ended`` without the runs that are under way, of which nobody elsewhere could tell how they ended.

    Unpacked, only a few hundred rows are in memory at once. Lets asyncpg's errors through.
    """
    out = BytesIO()
    with gzip.GzipFile(filename="", fileobj=out, mode="wb", mtime=0) as lines:
        head = {"format": FORMAT, "host": host, "made_at": made_at.isoformat()}
        lines.write(json.dumps(head).encode() + b"\n")
        async for notes in rows.everything(connection, _BATCH):
            told = [n for n in notes if not (ended and isinstance(n, Run) and n.status is Status.IN_PROGRESS)]
            await asyncio.to_thread(lines.writelines, [rows.to_json(note, indent=None) + b"\n" for note in told])
    return out.getvalue()


def publish(content: bytes, path: Path) -> None:
    """Put it in the place of the former one, whole or not at all. Raises OSError."""
    for left_over in path.parent.glob(f".{path.name}.*.partial"):  # of a process that was killed
        with suppress(OSError):
            if time.time() - left_over.stat().st_mtime > _LEFT_OVER_S:
                left_over.unlink()
    write_atomically(path, content)


def reason(error: Exception) -> str:
    """Half a sentence for people."""
    if isinstance(error, TimeoutError):
        return "its disk does not answer"
    return (error.strerror or "it cannot be opened").lower() if isinstance(error, OSError) else str(error)

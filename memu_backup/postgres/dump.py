"""Writes dumps with pg_dump and pg_dumpall, and tells of one whether it is whole."""

from __future__ import annotations

import asyncio
import errno
import os
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from memu_backup import files, process, words
from memu_backup.errors import DatabaseAway, DatabaseError, SourceError
from memu_backup.postgres.connection import Address
from memu_backup.postgres.reach import Reach
from memu_backup.postgres.tools import Tools, reason
from memu_backup.work import Stop

STALL_S = 1800.0
"""How long a dump may bring nothing before its server counts as hung: it would hang every night that comes, too."""

_LAST_WORDS = {"plain": b"PostgreSQL database dump complete", "globals": b"PostgreSQL database cluster dump complete"}
_TAIL_BYTES = 1024
_BACKUPS = "the backups"
"""What lies beside them is gone before anybody could look for it there."""


async def write_dump(reach: Reach, argv: list[str], address: Address, file: Path, stall_s: float) -> None:
    """Run pg_dump or pg_dumpall into ``file``, which only we can read. Raises DiskFull, SourceError and its like."""
    with _told(address, file, stall_s) as outcome:
        os.close(os.open(file, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        async with _growing(lambda: file.stat().st_size, stall_s):
            outcome.done = await reach.into_file(argv, address, file)


async def write_copy(reach: Reach, tools: Tools, address: Address, folder: Path, stall_s: float) -> None:
    """Copy the whole server with pg_basebackup into ``folder``, which is empty, while it runs; with what it takes of
    the write-ahead log to be whole. Raises as ``write_dump``.
    """
    argv = [tools.program("pg_basebackup"), "--checkpoint=fast"]
    with _told(address, folder, stall_s) as outcome:
        async with _growing(lambda: _bytes_below(folder), stall_s):
            outcome.done = await reach.into_folder(argv, address, folder)


def _bytes_below(folder: Path) -> int:
    found = 0
    for path in folder.rglob("*"):
        with suppress(FileNotFoundError):  # it writes meanwhile, and renames
            found += path.lstat().st_size
    return found


@dataclass(slots=True)
class _Outcome:
    done: process.Completed | None = None


@contextmanager
def _told(address: Address, file: Path, stall_s: float) -> Iterator[_Outcome]:
    """What went wrong in the block, or with the program that it ran, as an error of ours."""
    outcome = _Outcome()
    try:
        yield outcome
    except TimeoutError as error:
        raise DatabaseAway(
            f"{address.server} gave nothing more of database {address.database} for {words.duration(stall_s)}, so its "
            "dump was given up; older backups are untouched. Look whether that server hangs, and try again."
        ) from error
    except OSError as error:
        raise files.no_room(error.errno, file, _BACKUPS) or SourceError(
            f"Database {address.database} could not be written out beside the backups ({error.strerror}); "
            "older backups are untouched."
        ) from error
    done = outcome.done
    if done is None or done.returncode == 0:
        return
    told = done.stderr.decode(errors="replace")
    why = address.without_secret(reason(done))
    for number in (errno.ENOSPC, errno.EDQUOT):
        if os.strerror(number) in told and (full := files.no_room(number, file, _BACKUPS)):
            raise full
    # What libpq itself says, in English because of LC_ALL; the server's own messages may be in any language.
    if any(m in told for m in ("server closed the connection", "connection to server ", "could not receive data")):
        raise DatabaseAway(
            f"{address.server} went away while database {address.database} was dumped ({why}); "
            "older backups are untouched. Try again when it is back."
        )
    raise DatabaseError(
        f"{address.server}: database {address.database} could not be dumped ({why}); older backups are untouched."
    )


@asynccontextmanager
async def _growing(size: Callable[[], int], stall_s: float) -> AsyncIterator[None]:
    """Raises TimeoutError, with the block cancelled, once ``size`` has not grown for ``stall_s``, or a tenth more."""

    async def watch(limit: asyncio.Timeout) -> None:
        size_bytes = 0
        while True:
            await asyncio.sleep(stall_s / 10)
            if (grown := await asyncio.to_thread(size)) != size_bytes and not limit.expired():
                size_bytes = grown
                limit.reschedule(asyncio.get_running_loop().time() + stall_s)

    async with asyncio.timeout(stall_s) as limit:
        watching = asyncio.create_task(watch(limit))
        try:
            yield
        finally:
            watching.cancel()


def not_listed(tables: Sequence[str], listing: Sequence[str]) -> list[str]:
    """Those of the ``tables`` (each as ``connection.qualified``) that are not in a dump's own list."""
    listed: set[str] = set()
    for line in listing:
        words = line.partition(" TABLE DATA ")[2].split(" ")
        listed.update(" ".join(words[:end]) for end in range(2, len(words) + 1))  # a name may hold spaces
    return [t for t in tables if _as_listed(t) not in listed]


def _as_listed(name: str) -> str:
    """``schema.table`` as pg_restore prints it: without quotes, on one line."""
    parts, quoted = [""], False
    for letter in name.replace('""', "\0"):
        if letter == '"':
            quoted = not quoted
        elif letter == "." and not quoted:
            parts.append("")
        else:
            parts[-1] += letter
    return " ".join(parts).replace("\0", '"').replace("\n", " ").replace("\r", " ")


def is_finished(kind: str, blocks: Iterator[bytes], stop: Stop) -> bool:
    """Whether a dump in SQL, ``plain`` or ``globals``, has its last words. Blocks; raises Interrupted."""
    tail = b""
    for block in blocks:
        stop.check()
        tail = (tail + block)[-_TAIL_BYTES:]
    return _LAST_WORDS[kind] in tail

"""Copies of SQLite databases that are in use, each as of one moment, and whether a copy is whole."""

from __future__ import annotations

import errno
import os
import sqlite3
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from urllib.parse import quote

from memu_backup.errors import SourceError
from memu_backup.work import Stop

BESIDE = ("-journal", "-wal", "-shm")
"""How names end of what lies beside a database and belongs to it; a copy holds what is in them."""

_MAGIC = b"SQLite format 3\0"
_BUSY_S, _PAUSE_S = 30.0, 0.02


def is_database(file: Path) -> bool:
    """By its first bytes. Blocks. Raises OSError."""
    with file.open("rb") as content:
        return content.read(len(_MAGIC)) == _MAGIC


def copy(file: Path, target: Path) -> None:
    """Into ``target``, which is made and which only we can read, while others write to ``file``. Blocks.

    It is opened for writing: what a killed program left half-done in it is undone first, as that program would do it.
    Raises SourceError, also where it is written to without a pause for 30 s, and OSError of ``target``.
    https://www.sqlite.org/backup.html
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    until = time.monotonic() + _BUSY_S

    def not_for_ever(*_: int) -> None:
        if time.monotonic() > until:
            raise SourceError(f"{file} is written to all the time, so it cannot be copied.")

    try:
        with (
            closing(sqlite3.connect(f"file:{quote(str(file))}?mode=rw", uri=True)) as original,
            closing(sqlite3.connect(target)) as copied,
        ):
            original.backup(copied, progress=not_for_ever, sleep=_PAUSE_S)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_FULL:  # not of the module's own
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        raise SourceError(f"{file} cannot be copied ({error}); it may be damaged.") from error


def is_whole(blocks: Iterator[bytes], stop: Stop) -> bool:
    """Whether these are the bytes of a database that SQLite finds in order. Blocks. Raises Interrupted."""
    with tempfile.NamedTemporaryFile() as file:
        for block in blocks:
            stop.check()
            file.write(block)
        file.flush()
        try:
            with closing(sqlite3.connect(file.name)) as database:
                return database.execute("PRAGMA quick_check").fetchall() == [("ok",)]
        except sqlite3.Error:
            return False

"""Copies of SQLite databases that are in use, each as of one moment, and what SQLite finds in a copy."""

from __future__ import annotations

import errno
import os
import re
import sqlite3
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Literal
from urllib.parse import quote

from memu_backup import files
from memu_backup.errors import CannotCheck, Interrupted, SourceError
from memu_backup.work import Stop

BESIDE = ("-journal", "-wal", "-shm")
"""How names end of what lies beside a database and belongs to it; a copy holds what is in them."""

WHOLE, IN_PART, DAMAGED = "ok", "structure only: ", "damaged: "
"""What ``check`` tells, or begins with."""

_MAGIC = b"SQLite format 3\0"
_BUSY_S, _PAUSE_S = 30.0, 0.02
_PAGES_A_STEP = 4096
_MOST_RESTARTS, _MOST_ATTEMPTS = 3, 5
_BLOCK_BYTES = 1 << 20
_ROOMY = Path("/var/tmp")  # noqa: S108  /tmp may be memory; the file has no name that anybody could know before
_LINES_TOLD = 3

_UNKNOWN_COLLATION = re.compile(r"no such collation sequence: (.+)", re.DOTALL)
_ABOUT_CONTENT = re.compile(r"(NULL|NUMERIC|TEXT) value in ")
"""What the program once let in, though its own rules forbid it; the file is in order."""


class Damaged(SourceError):
    """SQLite cannot make sense of it; its bytes can still be had by ``salvage``."""


class _WrittenTooOften(Exception):
    """Others have written between the steps, so that SQLite began from the start again and again."""


def journal_mode(file: Path) -> Literal["wal", "rollback"] | None:
    """By its first bytes; None where it is no database, or an encrypted one. Blocks. Raises OSError.

    https://www.sqlite.org/fileformat.html: bytes 0 to 15, and 19.
    """
    with file.open("rb") as content:
        start = content.read(20)
    if not start.startswith(_MAGIC):
        return None
    return "wal" if start[19:] == b"\x02" else "rollback"


def is_database(file: Path) -> bool:
    """By its first bytes. Blocks. Raises OSError."""
    return journal_mode(file) is not None


def beside(file: Path) -> list[Path]:
    """What may belong to it, whether it is there or not: SQLite follows a link, and so do these."""
    real = file.resolve()
    return [real.with_name(real.name + end) for end in BESIDE]


def changed_ns(file: Path) -> int:
    """When its content was last changed, also where that is only in its -wal yet. Blocks. Raises OSError."""
    found = file.stat().st_mtime_ns
    with suppress(OSError):
        log = beside(file)[1].stat()
        found = max(found, log.st_mtime_ns if log.st_size else 0)
    return found


# --- copies ----------------------------------------------------------------------------------------------------------


def copy(file: Path, target: Path, stop: Stop) -> None:
    """Into ``target``, which is made and which only we can read, while others write to ``file``. Blocks.

    What a killed program left half-done is undone first, as that program would do it: in the file where we may write
    to it, else in the copy. Nothing is left beside the file that its program could not open.
    Raises Damaged, SourceError, Interrupted, and OSError of ``target``. https://www.sqlite.org/backup.html
    """
    os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
    try:
        _copy(file, target, stop)
    except sqlite3.Error as error:
        raise _meant(error, file, target) from error


def _copy(file: Path, target: Path, stop: Stop) -> None:
    with _reading(file):
        in_wal = journal_mode(file) == "wal"
        ours = os.geteuid() in (0, file.stat().st_uid)
    _, log, shared = beside(file)
    # To open one in WAL mode makes both files. What root makes, SQLite gives to the owner of the database; what anybody
    # else makes stays theirs, and the program could not write any more.
    if in_wal and not (log.exists() and shared.exists()):
        closed = not log.exists() and not shared.exists()
        if (closed or not ours) and _copy_at_rest(file, target, stop, attempts=1 if ours else _MOST_ATTEMPTS):
            return
        if not ours:
            raise _never_at_rest(file)
    try:
        _copy_online(file, target, stop, in_wal=in_wal, ours=ours)
    except sqlite3.Error as error:
        if _primary(error) not in (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_READONLY):
            raise
        if not _copy_at_rest(file, target, stop, attempts=_MOST_ATTEMPTS):
            raise _never_at_rest(file) from error


def _never_at_rest(file: Path) -> SourceError:
    return SourceError(
        f"{file} is written to all the time and may only be read here, so no copy of it would be of one moment; run "
        "memu-backup as root, or as the user to whom it belongs."
    )


def _copy_online(file: Path, target: Path, stop: Stop, *, in_wal: bool, ours: bool) -> None:
    """Raises sqlite3.Error, and as ``copy``."""
    how = "mode=rw" if ours else "mode=ro&readonly_shm=1"
    address = f"file:{quote(os.fsencode(file.resolve()))}?{how}"
    with closing(sqlite3.connect(address, uri=True, isolation_level=None, timeout=1)) as original:
        if not in_wal:  # to hold it would hold up everybody who writes
            with suppress(_WrittenTooOften):
                _back_up(original, target, _in_steps(file, stop))
                return
        _hold(original, stop)
        _back_up(original, target, lambda *_: stop.check())


def _hold(original: sqlite3.Connection, stop: Stop) -> None:
    """From now on it is read as of this moment. Raises sqlite3.Error, also where it is locked for 30 s."""
    until = time.monotonic() + _BUSY_S
    original.execute("BEGIN")
    while True:
        stop.check()
        try:
            original.execute("PRAGMA user_version").fetchall()  # reads, and makes nothing of the tables
            return
        except sqlite3.Error as error:
            if _primary(error) != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                raise
            time.sleep(_PAUSE_S)


def _in_steps(file: Path, stop: Stop) -> Callable[[int, int, int], None]:
    """What is called after each step: it lets others write. Raises _WrittenTooOften, SourceError, Interrupted."""
    until, left, restarts = time.monotonic() + _BUSY_S, -1, 0

    def after(status: int, remaining: int, _: int) -> None:
        nonlocal until, left, restarts
        stop.check()
        if status == sqlite3.SQLITE_OK:
            restarts += 0 <= left <= remaining
            until, left = time.monotonic() + _BUSY_S, remaining
            if restarts > _MOST_RESTARTS:
                raise _WrittenTooOften
            time.sleep(_PAUSE_S)
        elif status != sqlite3.SQLITE_DONE and time.monotonic() > until:
            raise _locked(file)

    return after


def _locked(file: Path) -> SourceError:
    return SourceError(
        f"{file} has been locked for {_BUSY_S:g} s by the program that uses it; have that stand still meanwhile "
        "(needs_stop)."
    )


def _back_up(original: sqlite3.Connection, target: Path, progress: Callable[[int, int, int], None]) -> None:
    os.truncate(target, 0)
    with closing(sqlite3.connect(target, isolation_level=None)) as copied:
        copied.execute("PRAGMA journal_mode = OFF")  # after a crash nobody looks at it again
        copied.execute("PRAGMA synchronous = OFF")
        original.backup(copied, pages=_PAGES_A_STEP, progress=progress, sleep=_PAUSE_S)


def _copy_at_rest(file: Path, target: Path, stop: Stop, *, attempts: int) -> bool:
    """The bytes of one to which nobody writes meanwhile; whether that was so. Raises as ``copy``, and sqlite3.Error."""
    for _ in range(attempts):
        before = _states(file)
        _copy_bytes(file, target, stop)
        if _states(file) == before:
            _settle(target)
            return True
        time.sleep(_PAUSE_S)
    return False


def salvage(file: Path, target: Path, stop: Stop) -> None:
    """The bytes of a damaged one, into the ``target`` that ``copy`` has made. Blocks.

    Raises SourceError where the disk does not give them, Interrupted, and OSError of ``target``.
    """
    _copy_bytes(file, target, stop)
    with suppress(sqlite3.Error):
        _settle(target)
    for journal in beside(target):
        journal.unlink(missing_ok=True)


def _states(file: Path) -> list[tuple[int, int, int] | None]:
    """By which it can be told that somebody wrote, but for what lies in memory: the -shm. Raises SourceError."""
    found: list[tuple[int, int, int] | None] = []
    with _reading(file):
        for path in (file, *beside(file)[:2]):
            try:
                status = path.stat()
                found.append((status.st_ino, status.st_size, status.st_mtime_ns))
            except FileNotFoundError:
                found.append(None)
    return found


def _copy_bytes(file: Path, target: Path, stop: Stop) -> None:
    """With its journals, beside ``target``."""
    for one, there in zip((file, *beside(file)[:2]), (target, *beside(target)[:2]), strict=True):
        there.unlink(missing_ok=True)
        with _reading(file):
            try:
                content = one.open("rb")
            except FileNotFoundError:
                if one == file:
                    raise
                continue
        with content, there.open("xb") as written:
            while True:
                stop.check()
                with _reading(file):
                    block = content.read(_BLOCK_BYTES)
                if not block:
                    break
                written.write(block)


def _settle(target: Path) -> None:
    """Bring into a copy what the journals beside it hold. Raises sqlite3.Error."""
    if not any(path.exists() for path in beside(target)):
        return
    with closing(sqlite3.connect(target, isolation_level=None)) as copied:
        copied.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()  # rolls back what is hot, too
    for journal in beside(target):
        journal.unlink(missing_ok=True)


@contextmanager
def _reading(file: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise SourceError(f"{file} {files.reason(error)}.") from error


def _primary(error: sqlite3.Error) -> int:
    """Its code without what is told more exactly; 0 for an error of Python's module."""
    return int(getattr(error, "sqlite_errorcode", 0)) & 0xFF


def _meant(error: sqlite3.Error, file: Path, target: Path) -> Exception:
    code = _primary(error)
    if code in (sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
        try:  # SQLite does not tell which of the two files it was, nor a quota from a full disk
            with target.open("ab") as written:
                written.write(bytes(_BLOCK_BYTES))
        except OSError as refused:
            return refused
        if code == sqlite3.SQLITE_FULL:
            return OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
        return _locked(file)
    kind = Damaged if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) else SourceError
    return kind(f"{file} cannot be copied ({error}); it may be damaged.")


# --- is it whole? ----------------------------------------------------------------------------------------------------


def check(file: Path, stop: Stop) -> str:
    """What SQLite finds in a database to which nobody writes: WHOLE, IN_PART and why, or DAMAGED and what. Blocks.

    Rows that break the program's own rules are no damage: those of NOT NULL are left out here, those of CHECK SQLite
    itself leaves out for who may only read. Raises Interrupted, and OSError where the disk does not give it.
    """
    address = f"file:{quote(os.fsencode(file))}?mode=ro&immutable=1"
    try:
        with closing(sqlite3.connect(address, uri=True, isolation_level=None)) as database:
            asked = _Asked(database, stop)
            said = asked.all()
    except sqlite3.Error as error:
        stop.check()
        if _primary(error) == sqlite3.SQLITE_IOERR:
            raise OSError(errno.EIO, os.strerror(errno.EIO)) from error
        said, unknown = [str(error)], []
    else:
        unknown = asked.unknown
    if said:
        return DAMAGED + files.shown("; ".join(said[:_LINES_TOLD]))
    return IN_PART + files.shown(", ".join(unknown)) if unknown else WHOLE


class _Asked:
    """A database that is asked whether it is whole; ``unknown`` is what SQLite would need for the whole of it."""

    def __init__(self, database: sqlite3.Connection, stop: Stop) -> None:
        self.unknown: list[str] = []
        self._database = database
        self._collations: set[str] = set()
        database.set_progress_handler(lambda: _asked(stop), 100_000)

    def all(self) -> list[str]:
        """What is wrong with it, in SQLite's words. Raises sqlite3.Error."""
        try:
            return self._ask("")
        except sqlite3.OperationalError as error:
            if _primary(error) != sqlite3.SQLITE_ERROR:
                raise
            self.unknown.append(str(error))  # such as the tokenizer of a virtual table
        real = "SELECT name FROM sqlite_master WHERE type = 'table' AND rootpage > 0"
        tables = [name for (name,) in self._database.execute(real).fetchall()]
        return [line for name in tables for line in self._ask(name)]

    def _ask(self, table: str) -> list[str]:
        while True:
            # In an order that is not known nobody can look anything up; pages, cells and rows can still be looked at.
            pragma = "quick_check" if self._collations else "integrity_check"
            within = "({})".format('"{}"'.format(table.replace('"', '""'))) if table else ""
            try:
                said = [str(line) for (line,) in self._database.execute(f"PRAGMA {pragma}{within}")]
            except sqlite3.OperationalError as error:
                name = _UNKNOWN_COLLATION.fullmatch(str(error))
                if name is None or name[1] in self._collations:
                    raise
                self._collations.add(name[1])
                self._database.create_collation(name[1], lambda a, b: (a > b) - (a < b))
                self.unknown.append(f"collation {name[1]} is not known here")
            else:
                return [line for line in said if line != "ok" and not _ABOUT_CONTENT.match(line)]


def _asked(stop: Stop) -> int:
    """For SQLite, which ends what it does at anything but 0."""
    try:
        stop.check()
    except Interrupted:
        return 1
    return 0


def is_whole(blocks: Iterator[bytes], stop: Stop) -> bool:
    """Whether these are the bytes of a database in which SQLite finds no damage. Blocks.

    Raises Interrupted, what ``blocks`` raises, and CannotCheck where there is no room for them.
    """
    try:
        file = tempfile.NamedTemporaryFile(dir=_ROOMY if _ROOMY.is_dir() else None)  # noqa: SIM115  closed below
    except OSError as error:
        raise _no_look(error) from error
    with file:
        for block in blocks:
            stop.check()
            try:
                file.write(block)
            except OSError as error:
                raise _no_look(error) from error
        try:
            file.flush()
            return not check(Path(file.name), stop).startswith(DAMAGED)
        except OSError as error:
            raise _no_look(error) from error


def _no_look(error: OSError) -> CannotCheck:
    return CannotCheck(
        "A database could not be looked at, which says nothing against it: it has to be written to "
        f"{_ROOMY} for that, and that failed ({error.strerror}). Make room there, and check again."
    )

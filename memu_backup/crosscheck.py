"""Files, and rows of a database that name them: which of the one lack the other. Both may be millions, and are sorted
on the disk.
"""

from __future__ import annotations

import heapq
import logging
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from types import TracebackType
from typing import IO, Annotated, Any, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memu_backup.errors import SourceError
from memu_backup.files import shown
from memu_backup.model import SourceSummary

log = logging.getLogger(__name__)

_DETAIL = "listed_by"
_NAMED_FIRST = 10
_IN_MEMORY = 1 << 17
_LOOK_EVERY = 4096

_CLOCK_OF_FILES = 5
"""CLOCK_REALTIME_COARSE, see clock_gettime(2): by the finer clocks a new file may be some milliseconds old."""

_ROW, _FILE, _YOUNG, _OTHER = b"r", b"f", b"y", b"o"
_TO_KEY = bytes.maketrans(b"/\n", b"\0/")
"""What is in a folder sorts right behind it, and no key holds the end of a line: names have neither / nor a zero."""
_TO_PATH = bytes.maketrans(b"\0/", b"/\n")

_Count = Annotated[int, Field(ge=0, lt=2**63)]


@dataclass(frozen=True, slots=True)
class Unlike:
    """How rows and files differ: how many there are, and the first of them by name."""

    without_file: int
    without_row: int
    first_without_file: tuple[str, ...]
    first_without_row: tuple[str, ...]


class _Asked(BaseModel):
    """What metadata.json tells of a question; of a backup that may be a stranger's."""

    model_config = ConfigDict(hide_input_in_errors=True)

    source: str
    database: str
    query: str
    below: str


class _Told(BaseModel):
    """And of the answer, which an older version told without the question."""

    model_config = ConfigDict(hide_input_in_errors=True)

    source: str
    without_file: _Count
    without_row: _Count
    first_without_row: tuple[str, ...]


class CrossCheck:
    """Compares the files of source ``of`` with the rows that ``query`` gives of a ``database`` of ``source``, one path
    each, which may begin with ``below``. A row may name a folder, and so all that is in it. Use as a context manager.

    ``begin`` comes first, then ``name`` with all rows, then ``see`` with each entry, then ``unlike`` or ``told`` once.
    What does not fit in memory lies in ``folder``, without a name. Whatever goes wrong is kept until the end: no
    backup fails for it. All but ``begin`` and ``fail`` may block.

    In a backup the rows come first, all of one moment, and the files are read afterwards. So a file that came or was
    changed since that moment has its row later, if at all, and is not told to be without one: what counts is its ctime,
    as an mtime can be brought along from elsewhere. A program that writes the file first and the row a little later may
    be caught in between; that file is told, which is no trouble, and not again the next time. A file that went since
    that moment is missing from the backup, and is told so: brought back, the row would lead nowhere. The moment is
    taken from the clock by which the kernel stamps files; that of another machine, whose disk they lie on, may differ.
    """

    def __init__(self, folder: Path, *, of: str, source: str, query: str, below: str, database: str = "") -> None:
        self.source, self.query, self.database = source, query, database
        self.of, self._below = of, below
        self._as_of_ns: int | None = None
        self._failure = ""
        self._entries = _Sorted(folder)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._entries.close()

    @property
    def was_asked(self) -> bool:
        return self._as_of_ns is not None

    def begin(self, database: str = "") -> None:
        """It is this one that is asked, and the moment that the rows are of is now, or soon."""
        self.database = database or self.database
        self._as_of_ns = time.clock_gettime_ns(_CLOCK_OF_FILES)

    def name(self, paths: Iterable[str]) -> None:
        """What rows name."""
        for path in paths:
            folder = f"{path}/"  # it may name the one that all of them begin with
            inside = folder.removeprefix(self._below).strip("/") if folder.startswith(self._below) else path
            self._add(inside, _ROW)

    def see(self, path: str, *, is_file: bool, changed_ns: int = 0) -> None:
        """What is there: a path relative to the folder, and the ctime of a file."""
        if self._as_of_ns is not None:
            self._add(path, _OTHER if not is_file else _YOUNG if changed_ns >= self._as_of_ns else _FILE)

    def fail(self, why: str) -> None:
        """A sentence that says why the rows are not known."""
        self._failure = self._failure or why

    def unlike(self, first: int, check: Callable[[], None]) -> Unlike | None:
        """None where nobody was asked for rows; ``first`` of the names at most. Raises SourceError where something
        failed, and what ``check`` raises, which is called now and then.
        """
        if self._as_of_ns is None and not self._failure:
            return None
        if not self._failure:
            try:
                return _compared(self._entries, first, check)
            except OSError as error:
                self.fail(f"The disk that holds the backups reports an error ({error.strerror}).")
        raise SourceError(
            f"The files of {self.of} could not be compared with the rows of {self.source} that name them, which costs "
            f"no backup. {self._failure} If it is the query, correct sources.{self.of}.listed_by."
        )

    def told(self, check: Callable[[], None]) -> tuple[Mapping[str, Any], Sequence[str]]:
        """What a backup's metadata says of it: details, and warnings. Raises what ``check`` raises."""
        asked = {"source": self.source, "database": self.database, "query": self.query, "below": self._below}
        try:
            unlike = self.unlike(_NAMED_FIRST, check)
        except SourceError as error:
            return {_DETAIL: asked}, [str(error)]
        if unlike is None:
            return {}, []
        warnings = []
        if unlike.without_file:
            which = f"of {self.of} that {self.source} names"
            missing = counted(unlike.without_file, "file", which, unlike.first_without_file)
            warnings.append(f"Not in this backup: {missing}.")
        return {_DETAIL: asked | asdict(unlike)}, warnings

    def _add(self, path: str, kind: bytes) -> None:
        if not path or self._failure:  # the folder itself
            return
        try:
            self._entries.add(os.fsencode(path).translate(_TO_KEY), kind)
        except OSError as error:
            self.fail(f"They could not be written down ({error.strerror}).")


class _Sorted:
    """Keys with a kind, in their order whatever their number: in memory up to a limit, then in sorted files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._added: list[tuple[bytes, bytes]] = []
        self._runs: list[IO[bytes]] = []
        self._files = ExitStack()

    def add(self, key: bytes, kind: bytes) -> None:
        """Raises OSError."""
        self._added.append((key, kind))
        if len(self._added) >= _IN_MEMORY:
            run: IO[bytes] = tempfile.TemporaryFile(dir=self._folder)  # noqa: SIM115  until the end
            self._files.enter_context(run)
            self._added.sort()
            run.writelines(b"%b%b\n" % entry for entry in self._added)
            self._runs.append(run)
            self._added.clear()

    def __iter__(self) -> Iterator[tuple[bytes, bytes]]:
        """Raises OSError."""
        self._added.sort()
        for run in self._runs:
            run.seek(0)
        return heapq.merge(self._added, *(((line[:-2], line[-2:-1]) for line in run) for run in self._runs))

    def close(self) -> None:
        self._files.close()


def _compared(entries: Iterable[tuple[bytes, bytes]], first: int, check: Callable[[], None]) -> Unlike:
    without_file = without_row = 0
    files: list[str] = []
    rows: list[str] = []
    covered = None  # by a row that names a folder: what begins so has its row
    for number, (key, group) in enumerate(groupby(entries, itemgetter(0))):
        if number % _LOOK_EVERY == 0:
            check()
        kinds = {kind for _, kind in group}
        is_covered = covered is not None and key.startswith(covered)
        if _ROW in kinds:
            covered = covered if is_covered else key + b"\0"
            if len(kinds) == 1:
                without_file += 1
                if len(files) < first:
                    files.append(_path(key))
        elif _FILE in kinds and not is_covered:
            without_row += 1
            if len(rows) < first:
                rows.append(_path(key))
    return Unlike(without_file, without_row, tuple(files), tuple(rows))


def _path(key: bytes) -> str:
    return os.fsdecode(key.translate(_TO_PATH))


# --- once more, with what a backup brings back -----------------------------------------------------------------------


def again(summary: SourceSummary, folder: Path) -> CrossCheck | None:
    """What asks the same of a database that was brought back; None where the backup tells of no question."""
    try:
        asked = _Asked.model_validate(dict(summary.details).get(_DETAIL))
    except ValidationError:
        return None
    return CrossCheck(folder, of=summary.name, **asked.model_dump())


def beyond(summary: SourceSummary, source: str, found: Unlike) -> str:
    """A sentence about files that rows of ``source``, brought back, name in vain, beyond those that the backup has told
    of when it was made; nothing where there are none.
    """
    told = _told(summary)
    known = told.without_file if told else 0
    if found.without_file <= known:
        return ""
    missing = counted(found.without_file, "file", f"that {shown(source)} names", found.first_without_file)
    before = f"; {known:,} {'was' if known == 1 else 'were'} missing already when it was made" if known else ""
    return f"The backup lacks {missing}{before}."


# --- told ------------------------------------------------------------------------------------------------------------


def counted(number: int, noun: str, which: str, names: Sequence[str]) -> str:
    """3 files that no row names (a, b and 1 more); nothing where there are none."""
    if not number:
        return ""
    more = f" and {number - len(names):,} more" if number > len(names) else ""
    return f"{number:,} {noun}{'' if number == 1 else 's'} {which} ({', '.join(map(shown, names))}{more})"


def sentence(summary: SourceSummary) -> str:
    """What a comparison found beyond what is a warning, with names; nothing where none was made."""
    told = _told(summary)
    if told is None:
        return ""
    if told.without_row:
        which = f"that no row of {shown(told.source)} names"
        return (
            f"{shown(summary.name)}: {counted(told.without_row, 'file', which, told.first_without_row[:_NAMED_FIRST])}"
        )
    if told.without_file:
        return ""
    return f"{shown(summary.name)}: each file has its row in {shown(told.source)}, and each row its file"


def phrase(summary: SourceSummary) -> str:
    """The same and the warning without names, for where the family reads along, to stand behind what else is told."""
    told = _told(summary)
    if told is None:
        return ""
    verb = "is" if told.without_file == 1 else "are"
    missing = f"; {told.without_file:,} that {shown(told.source)} names {verb} missing" if told.without_file else ""
    return missing + (f"; {told.without_row:,} that no row of {shown(told.source)} names" if told.without_row else "")


def _told(summary: SourceSummary) -> _Told | None:
    try:
        return _Told.model_validate(dict(summary.details).get(_DETAIL))
    except ValidationError:
        return None

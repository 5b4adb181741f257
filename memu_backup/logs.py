"""Log lines for the journal: on stderr, each with the run it belongs to; also to a file that rotates, on request."""

from __future__ import annotations

import logging
import os
import sys
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from memu_backup import words

run_id: ContextVar[str] = ContextVar("run_id", default="-")
"""The run that the current task works for; set once where the run begins, inherited by all it starts."""

_FILE_BYTES = 5_000_000
_FILES = 5
_STAMPED = "%(asctime)s %(levelname)-7s [%(run)s] %(message)s"

log = logging.getLogger(__name__)


class _WithRun(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.run = run_id.get()[:8]
        return True


class _Sentence(logging.Formatter):
    """The bare sentence for somebody at a terminal, without a traceback."""

    def format(self, record: logging.LogRecord) -> str:
        return words.printable(record.getMessage())


class _Once(logging.Filter):
    """Lets each sentence through once: that the history is away is met at every turn of a command."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        sentence = record.getMessage()
        new = sentence not in self._said
        self._said.add(sentence)
        return new


class _Stderr(logging.StreamHandler[TextIO]):
    """Writes to what stderr is at the moment: a progress bar puts something else there to stay below the lines."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr  # setStream would flush the old one, which may be closed by now
        super().emit(record)


def configure(file: Path | None = None) -> None:
    """For the service: everything from INFO on goes to stderr and, if given, to ``file`` (5 MB each, 5 of them).

    A file that cannot be written is told of and done without: it must not cost the family a backup.
    """
    # The journal has the time already.
    stamp = _STAMPED.removeprefix("%(asctime)s ") if "JOURNAL_STREAM" in os.environ else _STAMPED
    _install(_stderr(logging.INFO, logging.Formatter(stamp)), file)


def configure_for_people(file: Path | None = None, *, debug: bool = False) -> None:
    """For a command: warnings go to stderr as bare sentences (``debug``: everything, with tracebacks).

    ``file`` is told all that it would be told by the service.
    """
    stderr = _stderr(logging.DEBUG, logging.Formatter(_STAMPED)) if debug else _stderr(logging.WARNING, _Sentence())
    if not debug:
        stderr.addFilter(_Once())
    _install(stderr, file)


def file_in_use() -> Path | None:
    """The log file that is being written, for a hint where to look."""
    files = (h.baseFilename for h in logging.getLogger().handlers if isinstance(h, RotatingFileHandler))
    return next((Path(name) for name in files), None)


def _stderr(level: int, formatter: logging.Formatter) -> logging.Handler:
    handler = _Stderr()
    handler.setLevel(level)
    handler.setFormatter(formatter)
    handler.addFilter(_WithRun())
    return handler


def _install(stderr: logging.Handler, file: Path | None) -> None:
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    root.addHandler(stderr)
    root.setLevel(min(stderr.level, logging.INFO))
    # What libraries say of themselves is for their authors.
    for library in ("apscheduler", "asyncio"):
        logging.getLogger(library).setLevel(logging.WARNING)
    if file is not None:
        _add_file(root, file)


def _add_file(root: logging.Logger, file: Path) -> None:
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handler = RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES - 1, encoding="utf-8")
    except OSError as error:
        log.warning("The log file %s cannot be written (%s), so the log goes without it.", file, error.strerror)
        return
    handler.setLevel(logging.INFO)
    handler.setFormatter(logging.Formatter(_STAMPED))
    handler.addFilter(_WithRun())
    root.addHandler(handler)

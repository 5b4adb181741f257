"""Log lines for the journal: on stderr, each with the run it belongs to; also to a file that rotates, on request."""

from __future__ import annotations

import logging
import os
import sys
from contextvars import ContextVar
from logging.handlers import RotatingFileHandler
from pathlib import Path

run_id: ContextVar[str] = ContextVar("run_id", default="-")
"""The run that the current task works for; set once where the run begins, inherited by all it starts."""

_FILE_BYTES = 5_000_000
_FILES = 5


class _WithRun(logging.Filter):
    def filter(self, record: logging.LogRecord) -> bool:
        record.run = run_id.get()[:8]
        return True


def configure(file: Path | None = None, level: int = logging.INFO) -> None:
    """Send everything to stderr and, if given, to ``file`` (5 MB each, 5 of them). Raises OSError for the file."""
    stamped = "%(asctime)s %(levelname)-7s [%(run)s] %(message)s"
    # The journal has the time already.
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    handlers[0].setFormatter(logging.Formatter(stamped.removeprefix("%(asctime)s ") if _in_journal() else stamped))
    if file is not None:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        handlers.append(RotatingFileHandler(file, maxBytes=_FILE_BYTES, backupCount=_FILES - 1))
        handlers[1].setFormatter(logging.Formatter(stamped))
    root = logging.getLogger()
    for old in root.handlers[:]:
        root.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.addFilter(_WithRun())
        root.addHandler(handler)
    root.setLevel(level)
    logging.getLogger("apscheduler").setLevel(logging.WARNING)


def _in_journal() -> bool:
    return "JOURNAL_STREAM" in os.environ

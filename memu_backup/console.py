"""How things look on a terminal, and in a file or pipe, where bars and colours would be noise."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from memu_backup import words
from memu_backup.model import Phase, Progress
from memu_backup.stores import OnProgress

out = Console(highlight=False, soft_wrap=True)
err = Console(stderr=True, highlight=False, soft_wrap=True)

_PLAIN_EVERY_S = 10.0


def say(text: str = "") -> None:
    """Plain text as it is: names of files are never taken for markup."""
    out.print(text, markup=False)


def complain(text: str) -> None:
    err.print(text, markup=False)


def print_json(document: Any) -> None:
    """Not by Rich: what a script reads has no colours and no line breaks of ours."""
    sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns that a phone's terminal still shows; ``right`` are the numbers of those that hold numbers."""
    shown = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        shown.add_column(name, justify="right" if number in right else "left", overflow="fold")
    for row in rows:
        shown.add_row(*(escape(cell) for cell in row))
    out.print(shown, soft_wrap=False)


def confirmed(question: str) -> bool:
    """Ask on the terminal; only ``y`` and ``yes`` are a yes."""
    err.print(f"{question} [y/N] ", markup=False, end="")
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def interactive() -> bool:
    return sys.stdin.isatty() and err.is_terminal


@contextmanager
def progress() -> Iterator[OnProgress]:
    """A bar with rate and time left on a terminal, else a plain line now and then; on stderr either way."""
    if not err.is_terminal:
        yield _Plain()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TaskProgressColumn(),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeRemainingColumn(compact=True),
        console=err,
        transient=False,
    )
    tasks: dict[Phase, TaskID] = {}

    def show(moment: Progress) -> None:
        for phase, task in tasks.items():
            if phase is not moment.phase and not bars.tasks[task].finished:
                bars.update(task, completed=bars.tasks[task].total or 1, total=bars.tasks[task].total or 1)
        if moment.phase not in tasks:
            tasks[moment.phase] = bars.add_task(words.PHASES[moment.phase], total=None)
        bars.update(tasks[moment.phase], completed=moment.done_bytes, total=moment.total_bytes)

    with bars:
        yield show
        for task in bars.tasks:
            bars.update(task.id, total=task.completed or 1, completed=task.completed or 1)


class _Plain:
    """One line a phase and then one each ten seconds, for logs and pipes."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._next = 0.0

    def __call__(self, moment: Progress) -> None:
        new = moment.phase is not self._phase
        if not new and time.monotonic() < self._next:
            return
        self._phase, self._next = moment.phase, time.monotonic() + _PLAIN_EVERY_S
        line = words.PHASES[moment.phase]
        if moment.total_bytes:
            line += f": {words.size(moment.done_bytes)} of {words.size(moment.total_bytes)}"
        if new or moment.total_bytes:
            complain(f"{line} …")

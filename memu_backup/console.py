"""How things look on a terminal, and in a file or pipe, where bars and colours would be noise."""

from __future__ import annotations

import asyncio
import getpass
import json
import os
import signal
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, TextIO

from memu_backup import words
from memu_backup.errors import Declined, MemuError
from memu_backup.model import Phase, Progress
from memu_backup.stores import OnProgress

if TYPE_CHECKING:  # Rich draws tables and bars; most commands say a sentence and are to answer at once
    from rich.console import Console, RenderableType

_PLAIN_EVERY_S = 10.0
_TRIES = 3


@contextmanager
def saying() -> Iterator[None]:
    """Around what writes to stdout, which may be a file on a full disk. Raises MemuError, BrokenPipeError."""
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        say_no_more()  # Python would try again at its end
        raise MemuError(f"What there is to say could not be written ({error.strerror}).") from error


def say_no_more() -> None:
    """Drop whatever else would go to stdout."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say(text: str = "") -> None:
    """Text for people, as it is: names of files are never taken for markup, nor by the terminal for commands."""
    with saying():
        _write(sys.stdout, f"{words.printable(text)}\n")


def complain(text: str) -> None:
    """As ``say``, on stderr."""
    _write(sys.stderr, f"{words.printable(text)}\n")


def _write(stream: TextIO, text: str) -> None:
    stream.write(text)
    stream.flush()  # what is said on the two streams is to be read in its order


def _console(stream: TextIO) -> Console:
    from rich.console import Console

    class Unbroken(Console):
        def on_broken_pipe(self) -> None:
            """Called where it is caught: whoever runs the command decides what it means, Rich would end with 1."""
            raise BrokenPipeError

    return Unbroken(file=stream, highlight=False, emoji=False)  # no emoji: a photo may well be called :smile:.jpg


def print_json(document: Any) -> None:
    """Not by Rich: what a script reads has no colours and no line breaks of ours."""
    with saying():
        sys.stdout.write(json.dumps(document, indent=2, default=str) + "\n")


def table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int] = ()) -> None:
    """Columns that a phone's terminal still shows; ``right`` are the numbers of those that hold numbers.

    In a pipe each row is one line, however long, so that a script finds whole names in it.
    """
    shown = [[" ".join(words.printable(cell).split("\n")) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        _plain_table(columns, shown, right)
        return
    from rich.table import Table
    from rich.text import Text

    folded = Table(box=None, pad_edge=False, header_style="bold")
    for number, name in enumerate(columns):
        folded.add_column(name, justify="right" if number in right else "left", overflow="fold")
    for row in shown:
        folded.add_row(*(Text(cell) for cell in row))
    with saying():
        _console(sys.stdout).print(folded)


def _plain_table(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[int]) -> None:
    widths = [max(len(cell) for cell in column) for column in zip(columns, *rows, strict=True)]
    for row in (columns, *rows):
        cells = [
            cell.rjust(width) if number in right else cell.ljust(width)
            for number, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        say("  ".join(cells).rstrip())


async def confirmed(question: str) -> None:
    """Ask on the terminal; only ``y`` and ``yes`` are a yes. Raises Declined."""
    if (await _line(f"{question} [y/N] ")).lower() not in ("y", "yes"):
        raise Declined


async def answered(question: str, usual: str = "") -> str:
    """What somebody types, ``usual`` for Enter. Raises Declined for ``q``, and for Enter where nothing is usual."""
    said = await _line(f"{question}: ") or usual
    if said.lower() in ("", "q", "quit"):
        raise Declined
    return said


async def chosen(question: str, among: Collection[str], usual: str = "") -> str:
    """One of ``among``, as ``answered``. Raises Declined after three answers that are none of them."""
    for _ in range(_TRIES):
        said = (await answered(question, usual)).lower()
        if said in among:
            return said
        complain("That is none of these. Type a number or a letter from the list, or q to stop.")
    raise Declined


async def typed(word: str, question: str) -> None:
    """Have somebody type ``word``. Raises Declined for anything else, three times, and as ``answered``."""
    for _ in range(_TRIES):
        if await answered(question) == word:
            return
        complain(f"That was not the word {word}.")
    raise Declined


async def _line(question: str) -> str:
    """Raises Declined for Ctrl-C and Ctrl-D."""
    _write(sys.stderr, words.printable(question))
    loop = asyncio.get_running_loop()
    there = asyncio.Event()
    # Not readline alone: while it blocks, no signal gets through to the loop.
    loop.add_reader(sys.stdin.fileno(), there.set)
    try:
        await there.wait()
    except asyncio.CancelledError:
        _write(sys.stderr, "\n")
        raise Declined(interrupted=True) from None
    finally:
        loop.remove_reader(sys.stdin.fileno())
    line = sys.stdin.readline()
    if not line:  # Ctrl-D ends no line
        _write(sys.stderr, "\n")
        raise Declined
    return line.strip()


def ask(question: str, *, secret: bool = False) -> str:
    """A line that somebody types, who sees no ``secret``. Ctrl-C and Ctrl-D end the command."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)  # asyncio's would wait for the end of the line
    try:
        return (getpass.getpass(question) if secret else input(question)).strip()
    except EOFError:
        _write(sys.stderr, "\n")
        raise KeyboardInterrupt from None
    finally:
        signal.signal(signal.SIGINT, before)


def interactive() -> bool:
    """Whether somebody is there who can be asked."""
    return sys.stdin.isatty() and sys.stderr.isatty()


def watched() -> bool:
    """Whether somebody is there who can be asked, and sees what is said."""
    return interactive() and sys.stdout.isatty()


@contextmanager
def progress() -> Iterator[OnProgress]:
    """A bar with rate and time left on a terminal, else a plain line now and then; on stderr either way."""
    if not sys.stderr.isatty():
        yield _Plain()
        return
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        ProgressColumn,
        Task,
        TaskID,
        TaskProgressColumn,
        TextColumn,
        TimeRemainingColumn,
        TransferSpeedColumn,
    )
    from rich.progress import Progress as Bars

    class Counted(ProgressColumn):
        """A column only where bytes are counted: to collect and to finish has no length that is known."""

        def __init__(self, column: ProgressColumn) -> None:
            super().__init__()
            self._column = column

        def render(self, task: Task) -> RenderableType:
            return self._column(task) if task.fields["counted"] else ""

    # They go when the work is done or has failed: what remains on the screen is the sentence that says which.
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=20),
        *map(
            Counted,
            (TaskProgressColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn(compact=True)),
        ),
        console=_console(sys.stderr),
        transient=True,
    )
    tasks: dict[Phase, TaskID] = {}

    def show(moment: Progress) -> None:
        for phase, task in tasks.items():
            if phase is not moment.phase and not bars.tasks[task].finished:
                bars.update(task, completed=bars.tasks[task].total or 1, total=bars.tasks[task].total or 1)
        if moment.phase not in tasks:
            tasks[moment.phase] = bars.add_task(words.PHASES[moment.phase], total=None, counted=False)
        counted = bool(moment.total_bytes or moment.done_bytes)
        bars.update(tasks[moment.phase], completed=moment.done_bytes, total=moment.total_bytes, counted=counted)

    with bars:
        yield show


@contextmanager
def progress_if_long() -> Iterator[OnProgress]:
    """As ``progress``, for work that mostly takes no time: what is over within a second is not spoken of."""
    begun = time.monotonic()

    def show(moment: Progress) -> None:
        if time.monotonic() - begun > 1:
            on_progress(moment)

    with progress() as on_progress:
        yield show


class _Plain:
    """One line a phase and then one each ten seconds, for logs and pipes."""

    def __init__(self) -> None:
        self._phase: Phase | None = None
        self._next = 0.0

    def __call__(self, moment: Progress) -> None:
        begins = moment.phase is not self._phase
        if not begins and time.monotonic() < self._next:
            return
        self._phase, self._next = moment.phase, time.monotonic() + _PLAIN_EVERY_S
        name = words.PHASES[moment.phase]
        if begins:
            complain(f"{name} {words.size(moment.total_bytes)} …" if moment.total_bytes else f"{name} …")
        elif moment.total_bytes:
            complain(f"{name}: {words.size(moment.done_bytes)} of {words.size(moment.total_bytes)} …")

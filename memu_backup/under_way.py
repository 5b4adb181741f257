"""What is done in this process right now, by whom and how far it is: whoever looks on is told, and may cancel it."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import TypeVar
from uuid import uuid4

from memu_backup.audit import Asker
from memu_backup.clock import Clock
from memu_backup.errors import Interrupted, MemuError, NotThere
from memu_backup.model import Progress
from memu_backup.stores import OnProgress
from memu_backup.work import ended

T = TypeVar("T")

_PACE_S = 0.5
"""How often whoever looks on is told, at most."""

_REMEMBERED = 20


class Outcome(StrEnum):
    """What became of it. What ``FAILED`` only says so where it raised: a backup that failed has a row that tells."""

    DONE = "done"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True)
class Activity:
    """``what`` is done (backup, verify, restore …) with ``subject``. ``step`` is the latest sentence about it; once it
    has ended, ``outcome`` and ``ended_at`` (aware) are set, and ``step`` says what is wrong, if anything.
    """

    id: str
    what: str
    subject: str
    asker: Asker
    begun_at: datetime
    progress: Progress | None = None
    step: str = ""
    outcome: Outcome | None = None
    ended_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Note:
    """Where the work itself tells how far it is; from any thread."""

    progress: OnProgress
    step: Callable[[str], None]

    def and_to(self, other: OnProgress) -> OnProgress:
        """Both are told."""

        def told(moment: Progress) -> None:
            self.progress(moment)
            other(moment)

        return told


class UnderWay:
    """Of one process. ``_latest`` and ``_steps`` are what work has told last, by id."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._running: dict[str, Activity] = {}
        self._ended: deque[Activity] = deque(maxlen=_REMEMBERED)
        self._tasks: dict[str, asyncio.Task[object]] = {}
        self._cancelled_by: dict[str, Asker] = {}
        self._latest: dict[str, Progress] = {}
        self._steps: dict[str, str] = {}
        self._bell = asyncio.Event()

    def all(self) -> tuple[Activity, ...]:
        """What runs, and the last that have ended; the newest first."""
        running = [
            replace(a, progress=self._latest.get(a.id), step=self._steps.get(a.id, "")) for a in self._running.values()
        ]
        return (*reversed(running), *reversed(self._ended))

    def of(self, activity_id: str) -> Activity:
        """Raises NotThere where there is none of that id any more."""
        for activity in self.all():
            if activity.id == activity_id:
                return activity
        raise NotThere("Nothing of that id is under way, nor has it ended lately. The runs tell what was done before.")

    async def carry_out(
        self,
        what: str,
        subject: str,
        asker: Asker,
        work: Callable[[Note], Awaitable[T]],
        *,
        activity_id: str = "",
    ) -> T:
        """Do it while others look on. Raises what it raises, and Interrupted where somebody has cancelled it; when
        cancelled itself, returns only after the work has ended.
        """
        key = activity_id or str(uuid4())
        note = Note(lambda moment: self._latest.__setitem__(key, moment), lambda s: self._steps.__setitem__(key, s))

        async def done() -> T:  # begun here: what is cancelled before that, is not
            return await work(note)

        task = asyncio.create_task(done(), name=f"{what} {subject}")
        self._running[key] = Activity(key, what, subject, asker, self._clock())
        self._tasks[key] = task
        self._ring()
        try:
            if await ended(task, task.cancel):
                task.cancelled() or task.exception()
                raise asyncio.CancelledError
            if task.cancelled() and key in self._cancelled_by:
                by = self._cancelled_by[key].actor
                raise Interrupted(f"It was cancelled by {by}; older backups, and what was there before, are untouched.")
            return task.result()
        finally:
            self._end(key, task)

    def cancel(self, activity_id: str, asker: Asker) -> Activity:
        """Ask it to end; it tidies up first. Raises NotThere where it does not run any more."""
        activity = self.of(activity_id)
        if activity.outcome:
            raise NotThere(f"That has ended already ({activity.outcome}), so there is nothing to cancel.")
        self._cancelled_by[activity_id] = asker
        self._tasks[activity_id].cancel()
        return activity

    async def watch(self) -> AsyncIterator[tuple[Activity, ...]]:
        """As ``all``: now, and again whenever something has changed. Costs nothing while nothing is done."""
        shown = None
        while True:
            bell = self._bell
            if (there := self.all()) != shown:
                shown = there
                yield there
            if self._running:
                await asyncio.sleep(_PACE_S)
            else:
                await bell.wait()

    def _end(self, key: str, task: asyncio.Task[T]) -> None:
        activity = replace(self._running.pop(key), progress=self._latest.pop(key, None), step=self._steps.pop(key, ""))
        del self._tasks[key]
        by = self._cancelled_by.pop(key, None)
        error = None if task.cancelled() else task.exception()
        outcome = Outcome.CANCELLED if task.cancelled() else Outcome.FAILED if error else Outcome.DONE
        step = str(error) if isinstance(error, MemuError) else f"Cancelled by {by.actor}." if by else activity.step
        self._ended.append(replace(activity, outcome=outcome, step=step, ended_at=self._clock()))
        self._ring()

    def _ring(self) -> None:
        self._bell.set()
        self._bell = asyncio.Event()

"""One run: lock, capture, write, re-read, publish, record, prune. Whatever happens, a row tells of it."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path

from memu_backup import __version__, clean, files, lock, logs, verify, words
from memu_backup.clock import Clock, now
from memu_backup.errors import DamagedArchive, Interrupted, LockHeld, MemuError, SourceError
from memu_backup.history import History
from memu_backup.model import Captured, Phase, Progress, Run, Status, Trigger
from memu_backup.retention import KeepLast
from memu_backup.sources import Source
from memu_backup.stores import Label, OnProgress, Store, Written
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

_LAST_WORDS_S = 3.0
"""How long a cancelled run may take to write its row down; the spool needs a moment, Postgres may not answer."""

_LOCK_POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that one run needs. ``never`` are folders of ours that no source may pull in."""

    run_id: str
    job: str
    sources: tuple[Source, ...]
    store: Store
    keep: KeepLast
    host: str
    zone: tzinfo
    trigger: Trigger
    never: tuple[Path, ...] = ()
    patient: bool = False


async def run(order: Order, history: History, on_progress: OnProgress, clock: Clock = now) -> Run:
    """Make one backup and return its row, which tells how it went: no failure of the backup itself is raised.

    Raises LockHeld, with nothing begun and no row, when another run holds the directory; a ``patient`` order waits
    instead. When cancelled, ends its children and threads, removes what is half-done, writes the row as failed and
    raises CancelledError.
    """
    logs.run_id.set(order.run_id)
    begun = time.monotonic()
    row = Run(
        run_id=order.run_id,
        host=order.host,
        job=order.job,
        trigger=order.trigger,
        filename=order.store.unused_name(clock(), order.zone),
        status=Status.IN_PROGRESS,
        created_at=clock(),
    )

    def ended(row: Run) -> Run:
        return replace(row, finished_at=clock(), duration_seconds=round(time.monotonic() - begun))

    try:
        order.store.prepare()
        async with _locked(order, on_progress):
            row = replace(row, filename=order.store.unused_name(row.created_at, order.zone))
            await history.record(row)
            log.info("Backup job %s begins, to be %s.", order.job, row.filename)
            order.store.sweep()
            row = ended(await _made(order, row, on_progress, clock))
            await history.record(row)
            log.info("Backup job %s: %s, %s.", order.job, row.status, words.size(row.size_bytes))
            await _prune(order, history, clock)
    except LockHeld:
        raise
    except asyncio.CancelledError:
        row = ended(_failed(row, Interrupted("The backup was interrupted; older backups are untouched.")))
        with suppress(TimeoutError):
            await asyncio.wait_for(history.record(row), _LAST_WORDS_S)
        raise
    except MemuError as error:
        log.error("Backup job %s failed: %s", order.job, error)
        row = ended(_failed(row, error))
        await history.record(row)
    except Exception as error:
        log.exception("Backup job %s failed unexpectedly.", order.job)
        row = ended(_failed(row, MemuError(f"Something unexpected happened ({type(error).__name__}: {error})")))
        await history.record(row)
    return row


def _failed(row: Run, error: MemuError) -> Run:
    return replace(row, status=Status.FAILED, error=str(error), error_code=error.code)


@asynccontextmanager
async def _locked(order: Order, on_progress: OnProgress) -> AsyncIterator[None]:
    while True:
        try:
            with lock.held(order.store.directory, f"backup job {order.job}"):
                yield
            return
        except LockHeld:
            if not order.patient:
                raise
        on_progress(Progress(Phase.WAITING))
        await asyncio.sleep(_LOCK_POLL_S)


async def _made(order: Order, row: Run, on_progress: OnProgress, clock: Clock) -> Run:
    on_progress(Progress(Phase.CAPTURING))
    await _check(order.sources)
    async with _stage(order) as stage, AsyncExitStack() as captures:
        captured = []
        for source in order.sources:
            on_progress(Progress(Phase.CAPTURING, what=source.name))
            folder = stage / source.name
            folder.mkdir(mode=0o700)
            captured.append(await captures.enter_async_context(source.capture(folder)))
        written = await _write(order, row, captured, on_progress)
    try:
        sha256 = await _proved(order, written, on_progress)
        on_progress(Progress(Phase.PUBLISHING))
        location = order.store.publish(written, sha256)
    except BaseException:
        order.store.discard(written)
        raise
    made = written.manifest
    missing = [m for s in made.sources for m in s.missing]
    return replace(
        row,
        status=Status.PARTIAL if made.partial else Status.SUCCESS,
        error=(missing[0] if len(missing) == 1 else words.unread(len(missing))) if missing else None,
        location=str(location),
        size_bytes=written.size_bytes,
        content_bytes=made.size_bytes,
        files=made.files,
        sha256=sha256,
        verified_at=clock(),
        warnings=tuple(w for s in made.sources for w in (*s.missing, *s.warnings)),
    )


async def _check(sources: Sequence[Source]) -> None:
    """All of them, before the first is touched; what is wrong with several is said in one go."""
    wrong: list[MemuError] = []
    for source in sources:
        try:
            for warning in await source.check():
                log.warning("%s", warning)
        except SourceError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        raise type(wrong[0])(" ".join(str(error) for error in wrong)) from wrong[0]


@asynccontextmanager
async def _stage(order: Order) -> AsyncIterator[Path]:
    """A private folder beside the backups for what has to be written out first, such as dumps."""
    stage = order.store.stage(order.run_id)
    try:
        yield stage
    finally:
        await asyncio.to_thread(shutil.rmtree, stage, ignore_errors=True)


async def _write(order: Order, row: Run, captured: Sequence[Captured], on_progress: OnProgress) -> Written:
    label = Label(
        name=row.filename,
        run_id=row.run_id,
        created_at=row.created_at,
        utc_offset=_offset(row.created_at, order.zone),
        host=row.host,
        job=row.job,
        version=__version__,
    )
    stop = Stop()
    never = frozenset(files.identities((order.store.directory, *order.never)))
    roots = [root for c in captured for root in c.roots]
    total = await in_thread(lambda: files.measure(roots, never, stop.check), stop, gentle=True)
    report = _of(total, on_progress)
    return await in_thread(lambda: order.store.write(label, captured, never, report, stop), stop, gentle=True)


def _of(total_bytes: int, on_progress: OnProgress) -> OnProgress:
    return lambda progress: on_progress(replace(progress, total_bytes=max(total_bytes, progress.done_bytes)))


def _offset(at: datetime, zone: tzinfo) -> str:
    text = f"{at.astimezone(zone):%z}"
    return f"{text[:3]}:{text[3:5]}"


async def _proved(order: Order, written: Written, on_progress: OnProgress) -> str:
    """Re-read what lies on the disk; what cannot be read back now is no backup."""
    report = _of(written.manifest.size_bytes, on_progress)
    verdict = await verify.prove(order.store, written.partial_path, written.manifest, report)
    if not verdict.good or verdict.sha256 is None:
        raise DamagedArchive(
            f"What was written could not be read back ({verdict.problems[0]}), so it was thrown away; "
            "older backups are untouched. Check the disk that holds them."
        )
    return verdict.sha256


async def _prune(order: Order, history: History, clock: Clock) -> None:
    """The backup is made and recorded: whatever goes wrong here is a warning, not a failure of it."""
    try:
        plan = await clean.plan(order.store, order.job, order.host, order.keep, history, clock())
        for backup in await clean.apply(plan, order.store, history, clock()):
            log.info("Removed %s: newer backups are there.", backup.name)
    except MemuError as error:
        log.warning("Old backups could not be cleaned up: %s", error)

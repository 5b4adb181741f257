"""One run: lock, check, make room, capture, write, re-read, publish, record, prune. A row tells of it in any case."""

from __future__ import annotations

import asyncio
import logging
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path

from memu_backup import __version__, clean, files, guard, lock, logs, place, restores, share, verify, walk, words
from memu_backup.clean import OnRemoved
from memu_backup.clock import Clock, now
from memu_backup.crosscheck import CrossCheck
from memu_backup.errors import (
    DamagedArchive,
    DiskFull,
    Disturbed,
    HalfWay,
    Interrupted,
    LockHeld,
    MemuError,
    SharedDamage,
    SourceError,
    StoreError,
)
from memu_backup.history import History
from memu_backup.model import Backup, Captured, Doubt, Phase, Progress, Run, Status, Trigger
from memu_backup.recover import recover
from memu_backup.retention import Policy
from memu_backup.services import Service
from memu_backup.sources import Names, Source, crosscheck
from memu_backup.standstill import Still, standstill
from memu_backup.status import adopted, failed
from memu_backup.stores import Label, OnProgress, Store, Verdict, Written
from memu_backup.work import Stop, ended, in_thread

log = logging.getLogger(__name__)

_LAST_WORDS_S = 3.0
"""How long a cancelled run may take to write its row down; the spool needs a moment, Postgres may not answer."""

_LOCK_POLL_S = 2.0


@dataclass(frozen=True, slots=True)
class Order:
    """Everything that one run needs. ``never`` are folders of ours that no source may pull in.

    A failed run is tried again ``again_after`` its end, if its cause can pass; None where this is the last ``attempt``.
    ``new_place`` is somebody's word that the folder may be empty although backups were made in it.
    ``on_removed`` is told of each older backup that retention lets go at the end; ``called`` is what somebody named
    this one, or empty. A ``full`` one shares nothing with older ones. ``guards`` say for each source which part of it
    has to be lost for the backup to be suspicious.

    While the sources that ``needs_stop`` names are read, ``services`` stand still; which ones ran is written down in
    ``journals`` before. Nothing is read while something is put back, of which ``restores`` tells.
    """

    run_id: str
    job: str
    called: str
    sources: tuple[Source, ...]
    store: Store
    keep: Policy
    host: str
    zone: tzinfo
    trigger: Trigger
    on_removed: OnRemoved
    restores: Path
    never: tuple[Path, ...] = ()
    patient: bool = False
    attempt: int = 1
    again_after: timedelta | None = None
    new_place: bool = False
    services: tuple[Service, ...] = ()
    needs_stop: frozenset[str] = frozenset()
    journals: Path = Path()
    full: bool = False
    guards: Mapping[str, float] = field(default_factory=dict)


async def run(order: Order, history: History, on_progress: OnProgress, clock: Clock = now) -> Run:
    """Make one backup and return its row, which tells how it went: no failure of the backup itself is raised.

    Raises, with nothing begun and no row, LockHeld when another run holds the directory (a ``patient`` order waits
    instead) and BackupsMissing as ``place.ready``. When cancelled, ends its children and threads, removes what is
    half-done, writes the row as failed and raises CancelledError; once the backup has its name, the row says so even
    then.
    """
    logs.run_id.set(order.run_id)
    try:
        async with _locked(order, history, on_progress, clock):
            return await _run_alone(order, history, on_progress, clock)
    except StoreError as error:  # of the folder itself: nothing had begun
        log.error("Backup job %s failed: %s", order.job, error)
        row = _not_begun(order, error, clock)
        await history.note(row)
        return row


def _new_row(order: Order, at: datetime, filename: str) -> Run:
    return Run(
        run_id=order.run_id,
        host=order.host,
        job=order.job,
        trigger=order.trigger,
        filename=filename,
        status=Status.IN_PROGRESS,
        created_at=at,
        location=str(order.store.directory / filename),
        attempt=order.attempt,
    )


def _failed(order: Order, row: Run, error: MemuError, clock: Clock) -> Run:
    """In one piece with when it is tried again: whoever is killed after this leaves no doubt about it."""
    again = clock() + order.again_after if order.again_after and error.retryable else None
    return replace(failed(row, error), retry_at=again)


def _not_begun(order: Order, error: MemuError, clock: Clock) -> Run:
    at = clock()
    # The disk may be what does not answer: it is asked nothing.
    row = _failed(order, _new_row(order, at, order.store.name(at, order.zone)), error, clock)
    return replace(row, finished_at=clock(), duration_seconds=0)


async def _run_alone(order: Order, history: History, on_progress: OnProgress, clock: Clock) -> Run:
    """The run, with the directory's lock held."""
    begun = time.monotonic()
    # Only now: a patient order may have waited for hours, and the name may have been given meanwhile.
    at = clock()
    row = _new_row(order, at, order.store.unused_name(at, order.zone))

    def ended(row: Run) -> Run:
        return replace(row, finished_at=clock(), duration_seconds=round(time.monotonic() - begun))

    cause: Exception | None = None
    try:
        await history.note(row)
        log.info("Backup job %s begins, to be %s.", order.job, row.filename)
        await _tidied(order, history, clock)
        on_progress(Progress(Phase.CAPTURING))
        await asyncio.to_thread(_must_be_settled, order.restores)
        await _check(order.sources)  # before older backups make room for a run that could be known to fail
        await _with_room(order, history, clock)
        row = await _made(order, row, history, on_progress, clock)
    except asyncio.CancelledError:
        log.warning("Backup job %s was interrupted.", order.job)
        interrupted = Interrupted("The backup was interrupted; older backups are untouched.")
        row = ended(_failed(order, row, interrupted, clock))
        try:
            await _sweep(order.store)
        finally:
            await history.note(row, _LAST_WORDS_S)
        raise
    except MemuError as error:
        row = _failed(order, row, error, clock)
    except Exception as error:
        # Not the error's own words: nobody knows what a stranger's exception quotes.
        unexpected = MemuError(
            f"Something unexpected happened ({type(error).__name__}), so no backup was made; older backups are "
            "untouched. Start it again; if it stays so, show the log to whoever looks after this machine."
        )
        row, cause = failed(row, unexpected), error
    row = ended(row)
    await history.note(row)
    if row.status is Status.FAILED:
        await _sweep(order.store)
        log.error("Backup job %s failed: %s", order.job, row.error, exc_info=cause)
    else:
        log.info("Backup job %s: %s, %s.", order.job, row.status, words.size(row.size_bytes))
        await _prune(order, history, clock)
    return row


def _must_be_settled(folder: Path) -> None:
    try:
        restores.must_be_settled(folder)
    except HalfWay as error:
        raise HalfWay(
            f"No backup was made, as half of what it would hold is of another day; older backups are untouched. {error}"
        ) from error


async def _tidied(order: Order, history: History, clock: Clock) -> None:
    """Whatever is wrong with what older runs left, or with their rows, must not cost this night's backup."""
    try:
        await recover(order.store, order.host, order.job, history, clock, but=order.run_id)
    except Exception as error:
        log.warning("What earlier runs left could not be tidied up (%s).", type(error).__name__, exc_info=error)


async def _sweep(store: Store) -> None:
    try:
        await in_thread(store.sweep, Stop())
    except StoreError as error:
        log.warning("What is left of the run is removed by the next one: %s", error)


@asynccontextmanager
async def _locked(order: Order, history: History, on_progress: OnProgress, clock: Clock) -> AsyncIterator[None]:
    by_hand, waits = order.trigger is Trigger.MANUAL, False
    while True:
        # Each time anew: the disk may be unmounted as soon as whoever we wait for lets go of it.
        await place.ready(order.store, order.host, history, clock, by_hand=by_hand, new=order.new_place)
        try:
            purpose = f"backup job {order.job}"
            with lock.held(order.store.directory, purpose), restores.none_under_way(order.restores, purpose):
                yield
            return
        except LockHeld:
            if not order.patient:
                raise
        if not waits:
            waits = True
            log.info("Backup job %s waits for another backup, or a restore, to end.", order.job)
        on_progress(Progress(Phase.WAITING))
        try:
            await asyncio.sleep(_LOCK_POLL_S)
        except asyncio.CancelledError:
            gave_up = Interrupted(
                "The backup was interrupted while it waited for another; older backups are untouched."
            )
            await history.note(_not_begun(order, gave_up, clock), _LAST_WORDS_S)
            raise


async def _made(order: Order, row: Run, history: History, on_progress: OnProgress, clock: Clock) -> Run:
    before = await share.before(order.store, order.job, order.host, row.created_at, history)
    earlier = None if order.full else share.with_earlier(order.store, before)
    try:
        return await _made_with(order, row, before, earlier, on_progress, clock)
    except SharedDamage as error:
        assert earlier
        log.warning("%s This backup is made once more, and shares nothing with older ones.", error)
    await share.look_back(order.store, earlier, history, on_progress, clock)
    await place.found(order.store, order.host, history)  # what could not be read may have been pulled out
    return await _made_with(order, row, before, None, on_progress, clock)


async def _made_with(
    order: Order, row: Run, before: Backup | None, earlier: Backup | None, on_progress: OnProgress, clock: Clock
) -> Run:
    still = [source for source in order.sources if source.name in order.needs_stop]
    moving = [source for source in order.sources if source not in still]
    async with _stage(order) as stage, AsyncExitStack() as captures:
        checks = [captures.enter_context(c) for s in order.sources if (c := crosscheck(s, stage))]

        async def captured(sources: Sequence[Source]) -> list[Captured]:
            each = (_captured(order, source, checks, stage, on_progress) for source in sources)
            return [await captures.enter_async_context(one) for one in each]

        later = await captured(moving)  # before anything stands still: dumps take their time
        async with standstill(order.services if still else (), order.journals, order.run_id) as stop:
            first = await captured(still)
            begun = time.monotonic()
            written = await _write(order, row, (first, stop.release, later), earlier, on_progress)
            row = replace(row, write_seconds=_since(begun))
    row = replace(row, downtime_seconds=stop.downtime_s)
    try:
        _must_have_stood_still(stop)
        begun = time.monotonic()
        verdict, sha256 = await _proved(order, written, on_progress)
        row = replace(row, prove_seconds=_since(begun))
        on_progress(Progress(Phase.PUBLISHING))
        doubts = await guard.doubts(order.store, written, before, order.guards)
        location = await _published(order.store, written, sha256, doubts)
    except BaseException:
        await in_thread(lambda: order.store.discard(written), Stop())
        raise
    made = Backup(written.name, location, written.size_bytes, row.created_at, written.manifest, doubts=doubts)
    row = adopted(row, made)
    verified_at = None if verdict.unchecked else clock()
    warnings = (*row.warnings, *stop.problems, *verdict.unchecked)
    return replace(row, sha256=sha256, verified_at=verified_at, warnings=warnings)


def _must_have_stood_still(stop: Still) -> None:
    if stop.disturbed:
        raise Disturbed(
            f"{', '.join(stop.disturbed)} had been stopped for the backup and was started by somebody else while its "
            "data was read, so what was read may not fit together. It was thrown away; older backups are untouched. "
            "Start it again."
        )


@asynccontextmanager
async def _captured(
    order: Order, source: Source, checks: Sequence[CrossCheck], stage: Path, on_progress: OnProgress
) -> AsyncIterator[Captured]:
    """Databases before files are read: all captures come before the first is written."""
    on_progress(Progress(Phase.CAPTURING, what=source.name))
    folder = stage / source.name
    try:
        folder.mkdir(mode=0o700)
    except OSError as error:
        raise files.storing(error, order.store.directory) from error
    if isinstance(source, Names):
        source = source.asking([check for check in checks if check.source == source.name])
    async with source.capture(folder) as captured:
        yield replace(captured, crosscheck=next((check for check in checks if check.of == source.name), None))


def _in_turn(still: Iterable[Captured], then: Callable[[], None], moving: Iterable[Captured]) -> Iterator[Captured]:
    """The next is asked for once one was read to its end: what stands still may go on as soon as ``still`` was."""
    yield from still
    then()
    yield from moving


async def _published(store: Store, written: Written, sha256: str, doubts: Sequence[Doubt]) -> Path:
    """Where it lies under its name. What has its name is a backup, and its row has to say so: who is cancelled
    meanwhile hears of it only at the next ``await``, which is that of the row.
    """
    publishing = asyncio.ensure_future(asyncio.to_thread(store.publish, written, sha256, doubts))
    cancelled = await ended(publishing)
    task = asyncio.current_task()
    if cancelled and task:
        task.uncancel()
        task.cancel()
    return publishing.result()


def _since(begun: float) -> float:
    return round(time.monotonic() - begun, 3)


async def _check(sources: Sequence[Source]) -> None:
    """All of them, before the first is touched; what is wrong with several is said in one go."""
    wrong: list[MemuError] = []
    for source in sources:
        try:
            for warning in await source.check():
                log.info("%s", warning)  # the capture says it again, and the row keeps it
        except SourceError as error:
            wrong.append(error)
    if len(wrong) == 1:
        raise wrong[0]
    if wrong:
        lines = (f"{len(wrong)} sources cannot be backed up:", *map(str, wrong))
        gravest = min(wrong, key=lambda error: error.retryable)  # waiting helps where it helps all of them
        raise type(gravest)("\n  ".join(lines)) from gravest


@asynccontextmanager
async def _stage(order: Order) -> AsyncIterator[Path]:
    """A private folder beside the backups for what has to be written out first, such as dumps."""
    stage = await in_thread(lambda: order.store.stage(order.run_id), Stop())
    try:
        yield stage
    finally:
        await in_thread(lambda: shutil.rmtree(stage, ignore_errors=True), Stop())


async def _write(
    order: Order,
    row: Run,
    captured: tuple[Sequence[Captured], Callable[[], None], Sequence[Captured]],
    earlier: Backup | None,
    on_progress: OnProgress,
) -> Written:
    """``captured`` is what has to stand still, what to call once it was read, and the rest."""
    still, then, moving = captured
    label = Label(
        name=row.filename,
        run_id=row.run_id,
        created_at=row.created_at,
        utc_offset=_offset(row.created_at, order.zone),
        host=row.host,
        job=row.job,
        version=__version__,
        called=order.called,
    )
    stop = Stop()
    never = frozenset(walk.identities((order.store.directory, *order.never)))
    async with _with_total((*still, *moving), earlier, never, on_progress) as report:
        work = partial(order.store.write, label, _in_turn(still, then, moving), never, report, stop, earlier)
        return await in_thread(work, stop, gentle=True)


@asynccontextmanager
async def _with_total(
    captured: Sequence[Captured], earlier: Backup | None, never: frozenset[walk.Identity], on_progress: OnProgress
) -> AsyncIterator[OnProgress]:
    """Tells how much there is: about as much as last time, or what a second walk finds meanwhile."""
    if earlier and earlier.manifest:
        yield verify.with_total(earlier.manifest.size_bytes, on_progress)
        return
    stop = Stop()
    roots = [root for c in captured for root in c.roots]
    measure = partial(walk.measure, roots, never, stop.check)
    measuring = asyncio.ensure_future(in_thread(measure, stop, gentle=True))

    def report(moment: Progress) -> None:
        if measuring.done() and not measuring.cancelled() and measuring.exception() is None:
            moment = replace(moment, total_bytes=max(measuring.result(), moment.done_bytes))
        on_progress(moment)

    try:
        yield report
    finally:
        measuring.cancel()
        await asyncio.gather(measuring, return_exceptions=True)


def _offset(at: datetime, zone: tzinfo) -> str:
    text = f"{at.astimezone(zone):%z}"
    return f"{text[:3]}:{text[3:5]}"


async def _proved(order: Order, written: Written, on_progress: OnProgress) -> tuple[Verdict, str]:
    """Re-read what lies on the disk, and its SHA-256; what cannot be read back now is no backup.

    What a source could not look at is a warning: every byte was compared all the same.
    """
    verdict = await verify.prove(order.store, written.partial_path, written.manifest, on_progress)
    if verdict.problems or verdict.sha256 is None:
        why = verdict.problems[0].removesuffix(".")
        thrown_away = f"What was written could not be read back ({why}), so it was thrown away"
        if written.manifest.shares_with:
            raise SharedDamage(f"{thrown_away}. It shares blocks with older backups, which may be damaged too.")
        raise DamagedArchive(f"{thrown_away}; older backups are untouched. Check the disk that holds them.")
    for sentence in verdict.unchecked:
        log.info("%s", sentence)  # the row keeps it as a warning
    return verdict, verdict.sha256


async def _with_room(order: Order, history: History, clock: Clock) -> None:
    """Better said now than by a write that fails after an hour. Raises DiskFull; no other trouble costs the backup."""
    try:
        await clean.make_room(_shelf(order), history, clock(), order.on_removed)
    except DiskFull:
        raise
    except Exception as error:
        log.warning("Whether the disk has room could not be seen (%s).", type(error).__name__, exc_info=error)


def _shelf(order: Order) -> clean.Shelf:
    return clean.Shelf(order.store, order.job, order.host, order.keep, order.zone)


async def _prune(order: Order, history: History, clock: Clock) -> None:
    """The backup is made and recorded: whatever goes wrong here is a warning, not a failure of it."""
    try:
        plan = await clean.plan(_shelf(order), history, clock())
        await clean.apply(plan, order.store, history, clock(), order.on_removed)
    except MemuError as error:
        log.warning("Old backups could not be cleaned up: %s", error)
    except Exception as error:
        log.warning("Old backups could not be cleaned up (%s).", type(error).__name__, exc_info=error)

"""Proves that a backup can be read back: quick by its index, full by every byte, and by what its sources know."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from memu_backup import whole
from memu_backup.clock import Clock, now
from memu_backup.errors import ArchiveError, CannotCheck, HistoryAway, MemuError, UnknownBackup, UsageError
from memu_backup.history import History
from memu_backup.model import Backup, Level, Manifest, Run, SourceSummary, Status
from memu_backup.sources import Reader, kinds
from memu_backup.status import adopted, from_backup
from memu_backup.stores import OnProgress, Portion, Store, Verdict
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Stored:
    """A backup as a source's own check sees it."""

    store: Store
    path: Path

    def content(self, path: str) -> Iterator[bytes]:
        return self.store.content(self.path, path)


async def prove(
    store: Store,
    path: Path,
    manifest: Manifest | None,
    on_progress: OnProgress,
    level: Level = Level.FULL,
    portion: Portion | None = None,
) -> Verdict:
    """Re-read a backup that need not be published yet, or a ``portion`` of it. A full look at the whole also asks each
    source (does the dump list?).

    Raises NotAnArchive and OSError-free ArchiveErrors only where nothing could be looked at; all else is in the
    verdict: a problem, or unchecked where a source could not look. When cancelled, its threads and children have ended
    before this returns.
    """
    stop = Stop()
    total_bytes = manifest.size_bytes // (portion.of if portion else 1) if manifest else 0
    report = with_total(total_bytes, on_progress) if manifest else on_progress
    verdict = await in_thread(lambda: store.prove(path, level, report, stop, portion), stop, gentle=True)
    if level is Level.QUICK or portion or manifest is None or not verdict.good:
        return verdict
    problems: list[str] = []
    unchecked: list[str] = []
    for summary in manifest.sources:
        try:
            problems += await _ask(summary, _Stored(store, path))
        except (ArchiveError, UsageError) as error:
            problems.append(f"{summary.name}: {str(error).removesuffix('.')}.")
        except MemuError as error:
            unchecked.append(f"{summary.name}: {str(error).removesuffix('.')}.")
    return replace(verdict, problems=tuple(problems), unchecked=tuple(unchecked))


def with_total(total_bytes: int, on_progress: OnProgress) -> OnProgress:
    """Tells ``on_progress`` how much there is, which may be an estimate."""
    return lambda moment: on_progress(replace(moment, total_bytes=max(total_bytes, moment.done_bytes)))


async def _ask(summary: SourceSummary, reader: Reader) -> list[str]:
    """What the source itself finds. Raises CannotCheck for whatever says nothing about its part of the backup."""
    kind = kinds().get(summary.kind)
    if kind is None:
        raise CannotCheck(
            f"this version does not know the kind {summary.kind}, so only the bytes were compared. Check it with the "
            "memu-backup that made it, or a newer one."
        )
    try:
        return await kind.verify(summary, reader)
    except MemuError:
        raise
    except Exception as error:
        log.warning("The check of source %s broke (%s).", summary.name, type(error).__name__, exc_info=error)
        raise CannotCheck(
            f"its own check broke ({type(error).__name__}), so only the bytes were compared. Try again; if it stays "
            "so, show the log to whoever looks after this machine."
        ) from error


async def verify(
    store: Store,
    backup: Backup,
    level: Level,
    host: str,
    history: History,
    on_progress: OnProgress,
    clock: Clock = now,
    *,
    copies: whole.Copies | None = None,
    portion: Portion | None = None,
) -> Verdict:
    """Prove a backup that lies in its store and note the outcome there and in its row: good and when, or damaged.

    A damaged one stops being the last good one; it is not removed. Where a part could not be checked and nothing is
    known to be damaged, the row stays as it is, as where no more than a ``portion`` was looked at. One without a row
    (the history was lost) gets it from its own metadata. With the history away the row tells the outcome only where it
    still waits here. ``copies`` are where its damaged files may be whole, which the verdict then says.

    Raises UnknownBackup where it was removed meanwhile, so that nothing is known of it.
    """
    verdict = await prove(store, backup.path, backup.manifest, on_progress, level, portion)
    if not verdict.problems and (verdict.unchecked or portion or level is Level.QUICK):
        return verdict
    await _noted(store, backup, verdict)
    if verdict.spoiled and copies:
        found = await copies.told(store, backup, verdict.spoiled)
        first, *rest = verdict.problems
        verdict = replace(verdict, problems=(f"{first} {found[0]}", *rest, *found[1:]) if found else verdict.problems)
    row = await _row(history, backup, host)
    if row is not None:
        try:
            await history.record(_told(row, backup, verdict, clock))
        except HistoryAway as error:
            log.warning("The outcome for %s could not be written down: %s", backup.name, error)
    return verdict


async def _noted(store: Store, backup: Backup, verdict: Verdict) -> None:
    try:
        await asyncio.to_thread(store.condemn if verdict.problems else store.acquit, backup.path)
    except UnknownBackup:
        raise
    except MemuError as error:  # the row tells it all the same
        log.warning("%s", error)


async def _row(history: History, backup: Backup, host: str) -> Run | None:
    made = backup.manifest
    runs, away = await history.known_runs(called=[made.run_id if made else backup.name])
    for row in runs:
        # The name alone says little: two machines that share a history name their backups alike.
        mine = row.run_id == made.run_id if made else (row.host, row.filename) == (host, backup.name)
        if mine:
            return row
    return None if away or made is None else from_backup(backup)


def _told(row: Run, backup: Backup, verdict: Verdict, clock: Clock) -> Run:
    if verdict.problems:
        told = row.error_code == "damaged" and row.notification_sent
        found = replace(row, status=Status.FAILED, error_code="damaged", error=verdict.problems[0], retry_at=None)
        return replace(found, notification_sent=told)  # the family is to hear of it, and of what it knows not again
    # It may have been called damaged, by a disk that could not read it once and can again.
    return replace(adopted(row, replace(backup, damaged=False)) if backup.manifest else row, verified_at=clock())

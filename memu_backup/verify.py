"""Proves that a backup can be read back: quick by its index, full by every byte, and by what its sources know."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from memu_backup.clock import Clock, now
from memu_backup.errors import ArchiveError, HistoryAway
from memu_backup.history import History
from memu_backup.model import Backup, Level, Manifest, Run, Status
from memu_backup.sources import kinds
from memu_backup.stores import OnProgress, Store, Verdict
from memu_backup.work import Stop, in_thread


@dataclass(frozen=True, slots=True)
class _Stored:
    """A backup as a source's own check sees it."""

    store: Store
    path: Path

    def content(self, path: str) -> Iterator[bytes]:
        return self.store.content(self.path, path)


async def prove(
    store: Store, path: Path, manifest: Manifest | None, on_progress: OnProgress, level: Level = Level.FULL
) -> Verdict:
    """Re-read a backup that need not be published yet. A full look also asks each source (does the dump list?).

    Raises NotAnArchive and OSError-free ArchiveErrors only where nothing could be looked at; all else is a problem in
    the verdict. When cancelled, its threads and children have ended before this returns.
    """
    stop = Stop()
    verdict = await in_thread(lambda: store.prove(path, level, on_progress, stop), stop, gentle=True)
    if level is Level.QUICK or manifest is None or not verdict.good:
        return verdict
    problems: list[str] = []
    for summary in manifest.sources:
        kind = kinds().get(summary.kind)
        if kind is None:
            problems.append(f"{summary.name} is of kind {summary.kind}, which this version does not know.")
            continue
        try:
            problems += await kind.verify(summary, _Stored(store, path))
        except ArchiveError as error:
            problems.append(f"{summary.name}: {error}.")
    return replace(verdict, problems=tuple(problems))


async def verify(
    store: Store, backup: Backup, level: Level, history: History, on_progress: OnProgress, clock: Clock = now
) -> Verdict:
    """Prove a published backup and write the outcome into its row: the date of a full success, or that it is damaged.

    A damaged one stops being the last good one; it is not removed.
    """
    verdict = await prove(store, backup.path, backup.manifest, on_progress, level)
    row = await _row(history, backup)
    if row is not None and (not verdict.good or level is Level.FULL):
        await history.record(_told(row, backup, verdict, clock))
    return verdict


async def _row(history: History, backup: Backup) -> Run | None:
    try:
        runs = await history.runs()
    except HistoryAway:
        runs = history.spooled()
    return next((r for r in runs if r.filename == backup.name and r.status is not Status.IN_PROGRESS), None)


def _told(row: Run, backup: Backup, verdict: Verdict, clock: Clock) -> Run:
    if not verdict.good:
        return replace(row, status=Status.FAILED, error_code="damaged", error=verdict.problems[0])
    if row.error_code != "damaged":
        return replace(row, verified_at=clock())
    # The disk could not read it once and can again: it is what it was.
    partial = backup.manifest is not None and backup.manifest.partial
    return replace(
        row,
        status=Status.PARTIAL if partial else Status.SUCCESS,
        error_code=None,
        error=None,
        verified_at=clock(),
    )

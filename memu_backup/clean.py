"""Removes the backups that retention lets go. ``retention`` decides, this does, and writes it down."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from memu_backup import retention
from memu_backup.errors import HistoryAway
from memu_backup.history import History
from memu_backup.model import Backup, Run
from memu_backup.retention import Candidate, KeepLast, Verdict
from memu_backup.stores import Store

log = logging.getLogger(__name__)

OnRemoved = Callable[[Backup], Awaitable[None]]
"""Told of each backup that was removed, once it is gone."""


@dataclass(frozen=True, slots=True)
class Decision:
    """One stored backup and what becomes of it."""

    backup: Backup
    verdict: Verdict


async def plan(
    store: Store, job: str, host: str, keep: KeepLast, history: History, now: datetime
) -> tuple[Decision, ...]:
    """What would happen to each backup of this job of this host, newest first. Changes nothing.

    Only backups that say themselves that they are this job's are looked at: others in the folder are not ours to
    judge. Raises StoreError.
    """
    stored = await asyncio.to_thread(store.backups)
    mine = [b for b in stored if b.manifest and (b.manifest.job, b.manifest.host) == (job, host)]
    rows, _ = await history.known_runs(called=[b.manifest.run_id for b in mine if b.manifest])
    damaged = {r.run_id for r in rows if r.error_code == "damaged"}
    candidates = [
        # A backup gets its name only after it was re-read, so one that is listed was verified, unless found otherwise.
        Candidate(
            name=b.name,
            created_at=b.created_at,
            partial=b.manifest.run_id in damaged or b.manifest.partial,
            verified=b.manifest.run_id not in damaged,
            size_bytes=b.size_bytes,
        )
        for b in mine
        if b.manifest
    ]
    by_name = {b.name: b for b in mine}
    return tuple(Decision(by_name[v.name], v) for v in retention.plan(candidates, keep, now))


async def apply(
    decisions: Sequence[Decision], store: Store, history: History, now: datetime, on_removed: OnRemoved
) -> list[Backup]:
    """Remove what is to go; the caller holds the directory's lock. Returns what was removed. Raises StoreError."""
    going = [d.backup for d in decisions if not d.verdict.keep]
    if not going:
        return []
    # By run and not by name: two machines that share a history name their backups alike. With the history away, rows
    # tell of files that are gone; the next run mends that.
    known, _ = await history.known_runs(called=[b.manifest.run_id for b in going if b.manifest])
    rows = {r.run_id: r for r in known}
    for backup in going:
        await asyncio.to_thread(store.delete, backup.path)
        row = rows.get(backup.manifest.run_id) if backup.manifest else None
        try:
            if row is not None and not await asyncio.to_thread(_lies_elsewhere, row, backup.path):
                await history.record(replace(row, deleted_at=now))
        except HistoryAway as error:
            log.warning("That %s was removed could not be written down: %s", backup.name, error)
        await on_removed(backup)
    return going


def _lies_elsewhere(row: Run, removed: Path) -> bool:
    """Whether what was removed was a copy, and the backup that the row tells of is still in its place."""
    return row.location not in ("", str(removed)) and os.path.lexists(row.location)

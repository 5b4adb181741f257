"""Removes the backups that retention lets go. ``retention`` decides, this does, and writes it down."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path

from memu_backup import retention
from memu_backup.errors import HistoryAway
from memu_backup.history import History
from memu_backup.model import Backup, Run
from memu_backup.retention import Candidate, Policy, Verdict
from memu_backup.stores import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Shelf:
    """The backups of one job of one machine, and what is to stay of them. ``zone`` is the household's."""

    store: Store
    job: str
    host: str
    policy: Policy
    zone: tzinfo


@dataclass(frozen=True, slots=True)
class Decision:
    """One stored backup and what becomes of it."""

    backup: Backup
    verdict: Verdict


OnRemoved = Callable[[Decision], Awaitable[None]]
"""Told of each backup that was removed, once it is gone."""


async def plan(shelf: Shelf, history: History, now: datetime) -> tuple[Decision, ...]:
    """What would happen to each backup on the shelf, newest first. Changes nothing.

    Only backups that say themselves that they are this job's are looked at: others in the folder are not ours to
    judge. Raises StoreError.
    """
    mine = await _candidates(shelf, history)
    verdicts = retention.plan(list(mine), shelf.policy, now, shelf.zone)
    by_name = {candidate.name: backup for candidate, backup in mine.items()}
    return tuple(Decision(by_name[v.name], v) for v in verdicts)


async def _candidates(shelf: Shelf, history: History) -> dict[Candidate, Backup]:
    stored = await asyncio.to_thread(shelf.store.backups)
    mine = [
        (b, b.manifest) for b in stored if b.manifest and (b.manifest.job, b.manifest.host) == (shelf.job, shelf.host)
    ]
    rows, _ = await history.known_runs(called=[made.run_id for _, made in mine])
    damaged = {r.run_id for r in rows if r.error_code == "damaged"}
    return {
        # A backup gets its name only after it was re-read, so one that is listed was verified, unless found otherwise.
        Candidate(
            name=b.name,
            created_at=b.created_at,
            partial=made.run_id in damaged or made.partial,
            verified=made.run_id not in damaged,
            size_bytes=b.size_bytes,
            pinned=b.pinned,
        ): b
        for b, made in mine
    }


async def apply(
    decisions: Sequence[Decision], store: Store, history: History, now: datetime, on_removed: OnRemoved
) -> None:
    """Remove what is to go; the caller holds the directory's lock. Raises StoreError."""
    going = [d for d in decisions if not d.verdict.keep]
    if not going:
        return
    # By run and not by name: two machines that share a history name their backups alike. With the history away, rows
    # tell of files that are gone; the next run mends that.
    known, _ = await history.known_runs(called=[d.backup.manifest.run_id for d in going if d.backup.manifest])
    rows = {r.run_id: r for r in known}
    for decision in going:
        backup = decision.backup
        await asyncio.to_thread(store.delete, backup.path)
        row = rows.get(backup.manifest.run_id) if backup.manifest else None
        try:
            if row is not None and not await asyncio.to_thread(_lies_elsewhere, row, backup.path):
                await history.record(replace(row, deleted_at=now))
        except HistoryAway as error:
            log.warning("That %s was removed could not be written down: %s", backup.name, error)
        log.info("Removed %s. %s", backup.name, decision.verdict.reason)
        await on_removed(decision)


def _lies_elsewhere(row: Run, removed: Path) -> bool:
    """Whether what was removed was a copy, and the backup that the row tells of is still in its place."""
    return row.location not in ("", str(removed)) and os.path.lexists(row.location)

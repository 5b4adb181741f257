"""Writes the history anew from the backups themselves: a row for each that has none, in all places of a household."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memu_backup import catalog, lock, place
from memu_backup.clock import Clock
from memu_backup.errors import LockHeld
from memu_backup.history import History
from memu_backup.model import Backup, Run
from memu_backup.recover import Change, What, adopt, as_adopted, settle
from memu_backup.stores import Store

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Rebuilt:
    """``changes`` are the rows that are new or different; ``left_out`` lies there and tells nothing of
    itself. ``away`` are places without their mark, of which the disk is probably not mounted."""

    changes: tuple[Change, ...]
    left_out: tuple[Backup, ...]
    away: tuple[Path, ...]

    def followed_by(self, later: Rebuilt) -> Rebuilt:
        """What both changed, each row once, as it was in the end."""
        changes = {change.run.run_id: change for change in (*self.changes, *later.changes)}
        return Rebuilt(tuple(changes.values()), later.left_out, later.away)


def told(stores: Sequence[Store]) -> list[Run]:
    """A row for each backup in these places, whosever it is, from what it says of itself. Blocks. Raises StoreError."""
    return [as_adopted(store, stored) for store in stores for stored in store.backups() if stored.manifest]


async def rebuild(
    stores: Sequence[Store], jobs: Mapping[str, Store], host: str, history: History, clock: Clock, *, dry_run: bool
) -> Rebuilt:
    """Write down each backup in ``stores`` of which no row tells, whatever host and job it names, and settle the rows
    of ``jobs`` (each with its place) of ``host``; those of other hosts are left as they are. Again finds nothing to do.
    A ``dry_run`` says what would be done, and of a history of our own that is lost, what comes back by itself.

    A place where a run is under way is settled by that run. Raises HistoryAway, StoreError.
    """
    stored = await catalog.backups(stores)
    left_out = tuple(there for _, there in stored if there.manifest is None)
    away = tuple([s.directory for s in stores if not await place.asked(s, s.marked)])
    if dry_run and (lost := await history.lost()) is not None:
        return Rebuilt(tuple(Change(What.ADDED, run) for run in lost), left_out, away)
    changes = await _missing(stored, history) if dry_run else []
    for store in stores if not dry_run else ():
        changes += await adopt(store, [there for its, there in stored if its is store], history)
    for job, store in jobs.items():
        if store.directory not in away:
            changes += await _settled(store, host, job, history, clock, dry_run=dry_run)
    changes.sort(key=lambda change: change.run.created_at, reverse=True)
    return Rebuilt(tuple(changes), left_out, away)


async def _missing(stored: Sequence[tuple[Store, Backup]], history: History) -> list[Change]:
    lying = {there.manifest.run_id: (store, there) for store, there in stored if there.manifest}
    known = {row.run_id for row in await history.runs(called=lying.keys(), limit=None)}
    missing = [both for run_id, both in lying.items() if run_id not in known]
    return [Change(What.ADDED, await asyncio.to_thread(as_adopted, store, there)) for store, there in missing]


async def _settled(store: Store, host: str, job: str, history: History, clock: Clock, *, dry_run: bool) -> list[Change]:
    if dry_run:
        busy = lock.taken(store.directory)
        return [] if busy else await settle(store, host, job, history, clock, dry_run=True)
    try:
        with lock.held(store.directory, "history rebuild"):
            return await settle(store, host, job, history, clock)
    except LockHeld as error:
        log.debug("It is settled by whoever is at work there.", exc_info=error)
        return []

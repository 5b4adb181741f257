"""Settles what a killed run left: its files, and its row, so that each run is told of once, as what it came to."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum

from memu_backup import place
from memu_backup.clock import Clock, now
from memu_backup.errors import HistoryAway, Interrupted
from memu_backup.history import History
from memu_backup.model import Backup, Run, Status
from memu_backup.status import adopted, failed, from_backup
from memu_backup.stores import Store
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

_KILLED = "The backup was interrupted: the program was killed or the machine went off. Older backups are untouched."


class What(StrEnum):
    """What a row did not tell as it is. The words never change once released."""

    ADDED = "added"
    COMPLETED = "completed"
    INTERRUPTED = "interrupted"
    GONE = "gone"
    CAME_BACK = "came_back"
    ACCEPTED = "accepted"


@dataclass(frozen=True, slots=True)
class Change:
    """A row as it has to be, and what was wrong with it."""

    what: What
    run: Run


async def recover(
    store: Store, host: str, job: str, history: History, clock: Clock = now, *, but: str | None = None
) -> None:
    """Remove what killed runs left in ``store`` and settle their rows; the caller holds the directory's lock.

    Backups of this host and job of which no row tells are written down, see ``adopt``; the rest is ``settle``.
    ``but`` is the run that is under way.
    """
    for name in await in_thread(store.sweep, Stop()):
        log.info("Removed %s, left behind by a run that was killed.", name)
    rows, stored = await _known(store, host, job, history)
    told = {row.run_id for row in rows}
    mine = [b for b in stored if b.manifest and b.manifest.made_by(host, job)]
    try:
        await adopt(store, [b for b in mine if b.manifest and b.manifest.run_id not in told], history)
    except HistoryAway as error:
        log.debug("Backups without a row wait for the history.", exc_info=error)
    await _settle(store, rows, stored, history, clock(), but)


async def adopt(store: Store, stored: Sequence[Backup], history: History) -> list[Change]:
    """Write down those of which no row tells, from what they say of themselves; no row that is there changes.

    Raises HistoryAway.
    """
    runs = await asyncio.to_thread(lambda: [as_adopted(store, b) for b in stored if b.manifest])
    added = await history.adopt(runs)
    for run in added:
        log.info("%s had no row in the history; it was written down from what the backup says of itself.", run.filename)
    return [Change(What.ADDED, run) for run in added]


def as_adopted(store: Store, backup: Backup) -> Run:
    """The row of a backup that has none (and a manifest). Nobody is told of it again: it is no news."""
    return replace(
        from_backup(backup),
        sha256=store.checksum(backup.path),
        verified_at=backup.created_at,
        notification_sent=True,
    )


async def settle(
    store: Store,
    host: str,
    job: str,
    history: History,
    clock: Clock = now,
    *,
    dry_run: bool = False,
) -> list[Change]:
    """Bring rows in line with the files, or say what would be done; the caller holds the lock, unless it is dry.

    A run whose backup lies there under its name was killed just before it could say so: its row is completed from
    the backup itself. The others failed. Rows of backups that went without a word say so from now on, and those of
    backups that came back no longer do. Runs into another directory may be under way: they are left alone, and so is
    what another host or job did.
    """
    rows, stored = await _known(store, host, job, history)
    if dry_run:
        return await asyncio.to_thread(_changes, store, rows, stored, clock())
    return await _settle(store, rows, stored, history, clock())


async def _settle(
    store: Store,
    rows: Sequence[Run],
    stored: Sequence[Backup],
    history: History,
    moment: datetime,
    but: str | None = None,
) -> list[Change]:
    changes = await asyncio.to_thread(_changes, store, [row for row in rows if row.run_id != but], stored, moment)
    for change in changes:
        await history.note(change.run)
    return changes


async def _known(store: Store, host: str, job: str, history: History) -> tuple[list[Run], list[Backup]]:
    rows, _ = await history.known_runs(host=host, job=job, directory=store.directory, quiet=True)
    return rows, await place.asked(store, store.backups)


def _changes(store: Store, rows: Sequence[Run], stored: Sequence[Backup], moment: datetime) -> list[Change]:
    killed = [r for r in rows if r.status is Status.IN_PROGRESS]
    there = {b.manifest.run_id: b for b in stored if b.manifest}
    return [
        *(_ended(row, stored, store, moment) for row in killed),
        *(Change(What.GONE, replace(row, deleted_at=moment)) for row in _gone(rows, stored)),
        *(
            Change(What.CAME_BACK, replace(row, deleted_at=None))
            for row in rows
            if row.deleted_at and row.run_id in there
        ),
        *(
            Change(What.ACCEPTED, adopted(row, there[row.run_id]))
            for row in rows
            if row.suspicious and row.deleted_at is None and row.run_id in there and not there[row.run_id].doubts
        ),
    ]


def _ended(row: Run, stored: Sequence[Backup], store: Store, moment: datetime) -> Change:
    made = _backup_of(row, stored)
    sha256 = store.checksum(made.path) if made else None
    run = replace(settled(row, stored), sha256=sha256, finished_at=moment)
    return Change(What.COMPLETED if made else What.INTERRUPTED, run)


def settled(row: Run, stored: Sequence[Backup]) -> Run:
    """What became of a run that was killed: made, if its backup lies there, or else failed.

    What has its name was re-read before it got it.
    """
    made = _backup_of(row, stored)
    if made is None:
        return failed(row, Interrupted(_KILLED))
    return replace(adopted(row, made), verified_at=made.created_at)


def _backup_of(row: Run, stored: Sequence[Backup]) -> Backup | None:
    return next((b for b in stored if b.manifest and b.manifest.run_id == row.run_id), None)


def _gone(rows: Sequence[Run], stored: Sequence[Backup]) -> list[Run]:
    """Rows of backups that were removed by a run that was killed before it could say so, or by hand.

    Only where a newer backup of the same job lies there: where a disk is not mounted nothing does, and that the newest
    one is missing has to stay an alarm.
    """
    ids = {r.run_id: r for r in rows}
    newest = max((r.created_at for b in stored if b.manifest and (r := ids.get(b.manifest.run_id))), default=None)
    return [
        r
        for r in rows
        if newest and r.created_at < newest and r.deleted_at is None
        if r.size_bytes and r.location and not os.path.lexists(r.location)
    ]

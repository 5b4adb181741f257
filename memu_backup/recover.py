"""Settles what a killed run left: its files, and its row, so that each run is told of once, as what it came to."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Sequence
from dataclasses import replace

from memu_backup.clock import Clock, now
from memu_backup.errors import Interrupted
from memu_backup.history import History
from memu_backup.model import Backup, Run, Status
from memu_backup.status import adopted, failed
from memu_backup.stores import Store
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

_KILLED = "The backup was interrupted: the program was killed or the machine went off. Older backups are untouched."


async def recover(
    store: Store, host: str, job: str, history: History, clock: Clock = now, *, but: str | None = None
) -> None:
    """Remove what killed runs left in ``store`` and settle their rows; the caller holds the directory's lock.

    A run whose backup lies there under its name was killed just before it could say so: its row is completed from
    the backup itself. The others failed. ``but`` is the run that is under way. Rows of backups that went without a
    word say so from now on, and those of backups that came back no longer do. Runs into another directory may be
    under way: they are left alone.
    """
    for name in await in_thread(store.sweep, Stop()):
        log.info("Removed %s, left behind by a run that was killed.", name)
    rows, _ = await history.known_runs(host=host, job=job, directory=store.directory, quiet=True)
    stored = await asyncio.to_thread(store.backups)
    for row in rows:
        if row.status is Status.IN_PROGRESS and row.run_id != but:
            await history.note(replace(await _completed(row, stored, store), finished_at=clock()))
    for row in await asyncio.to_thread(_gone, rows, stored):
        await history.note(replace(row, deleted_at=clock()))
    there = {b.manifest.run_id for b in stored if b.manifest}
    for row in rows:
        if row.deleted_at and row.run_id in there:
            await history.note(replace(row, deleted_at=None))


def settled(row: Run, stored: Sequence[Backup]) -> Run:
    """What became of a run that was killed: made, if its backup lies there, or else failed.

    What has its name was re-read before it got it.
    """
    made = _backup_of(row, stored)
    if made is None:
        return failed(row, Interrupted(_KILLED))
    return replace(adopted(row, made), verified_at=made.created_at)


async def _completed(row: Run, stored: Sequence[Backup], store: Store) -> Run:
    made = _backup_of(row, stored)
    sha256 = await asyncio.to_thread(store.checksum, made.path) if made else None
    return replace(settled(row, stored), sha256=sha256)


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

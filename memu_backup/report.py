"""Gathers what is known of a job, rows and files and the disk, for ``status`` to judge. Always answers."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from datetime import datetime, timedelta

from memu_backup import catalog, clean, lock, place, recover, schedule, status
from memu_backup.clean import Shelf
from memu_backup.clock import Clock
from memu_backup.errors import StoreError
from memu_backup.history import History
from memu_backup.model import Backup, Drill, Run, Status, StatusReport
from memu_backup.stores import Store

log = logging.getLogger(__name__)


async def of_job(
    shelf: Shelf,
    history: History,
    clock: Clock,
    *,
    interval: timedelta | None,
    usb_overdue_days: int,
    usb_copied_at: datetime | None = None,
    drills: Sequence[Drill] | None = None,
) -> StatusReport:
    """Where a job stands; what is handed in besides is as ``status.assess`` takes it.

    With the history away, from what lies on disk and in the spool.
    """
    busy, marked = await _busy_and_marked(shelf.store)
    runs, away, stored, mine = await _known(shelf, history)
    told = {r.run_id for r in runs}
    if beyond := [b.manifest.run_id for b in mine if b.manifest and b.manifest.run_id not in told]:
        runs += (await history.known_runs(called=beyond, quiet=True))[0]
    ahead = None
    if stored is not None and not busy and not lock.taken(shelf.store.directory):
        runs = [recover.settled(r, mine) if r.status is Status.IN_PROGRESS else r for r in runs]
        # Not while a run writes: what it takes is neither free nor a backup yet. Nor below an empty mount point.
        if marked:
            ahead = await clean.look_ahead(shelf, catalog.with_rows(mine, runs), clock())
    return status.assess(
        runs,
        None if stored is None else mine,
        clock(),
        marked=marked,
        interval=interval,
        usb_overdue_days=usb_overdue_days,
        outlook=ahead,
        history_away=away,
        usb_copied_at=usb_copied_at,
        drills=drills,
    )


async def elsewhere(history: History, host: str, clock: Clock) -> dict[tuple[str, str], StatusReport]:
    """Where the jobs of other machines than ``host`` stand that share a history, by host and job: from their rows
    alone, and by the rhythm of their runs, as nobody here knows their settings or sees their disks. Raises HistoryAway.
    """
    found = {}
    for other, job in await history.origins():
        if other not in ("", host):
            found[other, job] = status.assess_elsewhere(await history.runs(host=other, job=job), clock())
    return found


async def attempts(shelf: Shelf, history: History, clock: Clock) -> list[Run]:
    """The newest runs of a job, newest first, without those that were dated by a clock that was ahead.

    After 15 s or so where the history is away: by what lies on disk and waits in the spool.
    """
    runs, _, _, mine = await _known(shelf, history)
    latest = clock() + schedule.SLACK
    return [run for run in status.with_unrecorded(runs, mine) if run.created_at <= latest]


async def _known(shelf: Shelf, history: History) -> tuple[list[Run], bool, list[Backup] | None, list[Backup]]:
    """The rows of a job, whether the history is away, what lies in its place, and what of that is this job's."""
    # By directory: other settings may share host, job and history with these.
    where = shelf.store.directory
    runs, away = await history.known_runs(host=shelf.host, job=shelf.job, directory=where, quiet=True)
    stored = await _seen(shelf.store)
    mine = [b for b in stored or () if b.manifest and b.manifest.made_by(shelf.host, shelf.job)]
    return runs, away, stored, mine


async def _seen(store: Store) -> list[Backup] | None:
    """What lies there; None where it cannot be looked at: the folder, or what is in it, is closed to this user, or the
    disk does not answer.
    """
    try:
        stored = await place.seen(store, store.backups)
    except StoreError as error:
        log.warning("%s", error)
        return None
    closed = any(b.manifest is None and not os.access(b.path, os.R_OK) for b in stored)
    return None if closed else stored


async def _busy_and_marked(store: Store) -> tuple[bool, bool]:
    """Whether a run is under way there, and the mark is. As if all were well where nobody can look: ``_seen`` tells."""
    try:
        return await place.seen(store, lambda: (lock.taken(store.directory), store.marked()))
    except StoreError:
        return False, True

"""Removes the backups that retention lets go. ``retention`` decides, this does, and writes it down."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, tzinfo
from pathlib import Path

from memu_backup import catalog, outlook, retention, words
from memu_backup.errors import DiskFull, HistoryAway, StoreError
from memu_backup.history import History
from memu_backup.model import Backup, Run
from memu_backup.outlook import Outlook
from memu_backup.retention import Candidate, Policy, Room, Verdict
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


async def plan(shelf: Shelf, history: History, now: datetime, *, for_next: bool = False) -> tuple[Decision, ...]:
    """What would happen to each backup on the shelf, newest first. Changes nothing.

    Only backups that say themselves that they are this job's are looked at: others in the folder are not ours to
    judge, other than where the policy has a maximum for all jobs of this machine together: those that it takes of
    other jobs follow at the end. ``for_next`` also makes room for the next one, where the policy says what shall stay
    free. Raises StoreError.
    """
    most = shelf.policy.max_in_place
    stored = await _candidates(shelf, history, every_job=most is not None)
    mine = {c: b for c, b in stored.items() if b.manifest and b.manifest.job == shelf.job}
    room = await _room(shelf, mine, now) if mine and for_next and shelf.policy.min_free_bytes else None
    verdicts = retention.plan(list(mine), shelf.policy, now, shelf.zone, room)
    if most is not None:
        jobs: dict[str, list[Candidate]] = {}
        for candidate, backup in stored.items():
            jobs.setdefault(backup.manifest.job if backup.manifest else "", []).append(candidate)
        verdicts = retention.within_place(verdicts, list(jobs.values()), most, now)
    by_name = {candidate.name: backup for candidate, backup in stored.items()}
    return tuple(Decision(by_name[v.name], v) for v in verdicts)


async def _candidates(shelf: Shelf, history: History, *, every_job: bool = False) -> dict[Candidate, Backup]:
    job = None if every_job else shelf.job
    return _as_candidates(shelf.store, await catalog.of_job(shelf.store, shelf.host, job, history))


def _as_candidates(store: Store, mine: Iterable[Backup]) -> dict[Candidate, Backup]:
    return {
        # A backup gets its name only after it was re-read, so one that is listed was verified, unless found otherwise.
        Candidate(
            name=b.name,
            created_at=b.created_at,
            partial=not b.good,
            verified=not b.damaged,
            size_bytes=b.size_bytes,
            pinned=b.pinned,
            nights_shared=b.manifest.nights_shared,
            shared_bytes=b.manifest.shared_bytes,
            whole_every=store.whole_every,
            suspicious=bool(b.doubts),
        ): b
        for b in mine
        if b.manifest
    }


async def look_ahead(shelf: Shelf, mine: Sequence[Backup], now: datetime) -> Outlook | None:
    """How long the disk will do for the shelf, of which the caller has the backups already. None where the disk cannot
    be asked.
    """
    try:
        free_bytes = await asyncio.to_thread(_free_bytes, shelf.store.directory)
    except StoreError as error:
        log.debug("%s", error)  # a folder that is still to be made, or what else status says of it
        return None
    return outlook.look_ahead(_as_candidates(shelf.store, mine), shelf.policy, now, shelf.zone, free_bytes)


async def _room(shelf: Shelf, candidates: Iterable[Candidate], now: datetime) -> Room:
    free_bytes = await asyncio.to_thread(_free_bytes, shelf.store.directory)
    return Room(retention.next_size(candidates, now), shelf.policy.min_free_bytes or 0, free_bytes)


def _free_bytes(directory: Path) -> int:
    try:
        disk = os.statvfs(directory)
    except OSError as error:
        raise StoreError(
            f"Nobody can tell how much of the disk that holds {directory} is free ({error.strerror}). Check that disk."
        ) from error
    return disk.f_bavail * disk.f_frsize


async def make_room(shelf: Shelf, history: History, now: datetime, on_removed: OnRemoved) -> None:
    """See to it that the next backup fits on the disk; the caller holds the directory's lock.

    Only where it is short: what retention lets go anyway goes now, and where the policy says what shall stay free, more
    go from the oldest, if that is enough. Raises DiskFull when it still does not fit, StoreError.
    """
    room = await _room(shelf, await _candidates(shelf, history), now)
    if not room.short_bytes:
        return
    decisions = await plan(shelf, history, now, for_next=True)
    await apply(decisions, shelf.store, history, now, on_removed)
    removed = sum(not d.verdict.keep for d in decisions)
    # As much as before is needed: what went was not only in the way, the estimate rested on it.
    room = replace(room, free_bytes=await asyncio.to_thread(_free_bytes, shelf.store.directory))
    if room.short_bytes:
        waiting = " Older backups that could make room stay, as the newest looks wrong: memu-backup status tells."
        asked = any(d.backup.doubts for d in decisions) and all(d.verdict.keep for d in decisions)
        raise DiskFull(_no_room(shelf.store.directory, room, removed) + waiting * asked)


def _no_room(directory: Path, room: Room, removed: int) -> str:
    asked = room.min_free_bytes > 0
    needs = [f"about {words.size(room.next_bytes)} needed, as the last ones took"] if room.next_bytes else []
    needs += [f"{words.size(room.min_free_bytes)} to stay free (min_free)"] if asked else []
    rest = (
        f"{removed} that the rules let go {'was' if removed == 1 else 'were'} removed, the others"
        if removed
        else "older backups"
    )
    return (
        f"The disk that holds {directory} is too full for the next backup: {', '.join(needs)}, "
        f"{words.size(room.free_bytes)} free. Nothing was begun; {rest} are untouched. "
        f"Free up space or add storage{', or lower min_free' if asked else ''}."
    )


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

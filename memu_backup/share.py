"""With which older backup a night may share blocks, and which others are damaged with it where those blocks are."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from datetime import datetime

from memu_backup import catalog, place, verify
from memu_backup.clock import Clock
from memu_backup.errors import MemuError
from memu_backup.history import History
from memu_backup.model import Backup, Level
from memu_backup.stores import OnProgress, Store

log = logging.getLogger(__name__)


async def before(store: Store, job: str, host: str, now: datetime, history: History) -> Backup | None:
    """The backup that tonight's is compared with, and may share blocks with; None for the first. Raises nothing.

    The newest that is neither damaged nor suspicious: what an unmounted disk left is nothing to build on. None from the
    future, where a clock was wrong: it would stay the newest for years, and with it the count of nights.
    """
    try:
        mine = await catalog.of_job(store, host, job, history)
    except Exception as error:
        log.warning("What was there before is not known (%s), so everything is written anew.", type(error).__name__)
        return None
    return next((b for b in mine if not (b.damaged or b.doubts or b.is_ahead(now))), None)


def with_earlier(store: Store, newest: Backup | None) -> Backup | None:
    """``newest`` where tonight's may share blocks with it; None where it is to be written whole."""
    if newest is None or newest.manifest is None:
        return None
    is_turn = store.whole_every is not None and newest.manifest.nights_shared + 1 >= store.whole_every
    return None if is_turn else newest


async def look_back(store: Store, earlier: Backup, history: History, on_progress: OnProgress, clock: Clock) -> None:
    """Verify ``earlier`` and those before it that may hold the same blocks, until one is good, and write it down.

    A damaged one is known from then on: no later backup builds on it, and retention does not rely on it. What cannot be
    looked at is told in the log. Raises nothing; when cancelled, its thread has ended before this returns.
    """
    try:
        stored = await place.asked(store, store.backups)
    except MemuError as error:
        log.warning("Whether backups before %s are damaged too is not known: %s", earlier.name, error)
        stored = []
    for older in _lineage(stored, earlier):
        assert older.manifest
        try:
            host = older.manifest.host
            verdict = await verify.verify(store, older, Level.FULL, host, history, on_progress, clock)
        except MemuError as error:
            log.warning("%s could not be looked at: %s", older.name, error)
            continue
        if not verdict.problems:
            return
        log.warning("%s is damaged too: %s Do not rely on it.", older.name, verdict.problems[0])


def _lineage(stored: Sequence[Backup], newest: Backup) -> list[Backup]:
    """A backup, the one it shares blocks with, and so on, back to one that was written whole.

    One of them that is gone, or does not tell what it is, is passed over: all before it may have its blocks.
    """
    lineage = [newest]
    known = {b.name for b in stored if b.manifest}
    for there in stored:
        made, after = there.manifest, lineage[-1].manifest
        if not made or not after or (made.job, made.host) != (after.job, after.host):
            continue
        before = there.created_at < lineage[-1].created_at and made.nights_shared < after.nights_shared
        if there.name == after.shares_with or (before and after.shares_with not in known):
            lineage.append(there)
    return lineage

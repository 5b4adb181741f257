"""Sees to it that backups go where backups belong: never below the empty mount point of a disk that is away."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

from memu_backup.clock import Clock
from memu_backup.errors import BackupsMissing, NotMounted
from memu_backup.history import History
from memu_backup.history.rows import is_stored
from memu_backup.model import Run
from memu_backup.stores import Store

_ANEW = "or, if backups are to begin anew here, type: memu-backup start --new-place"


async def found(store: Store) -> None:
    """Raises NotMounted where the folder does not carry its mark, StoreError where this user may not look."""
    if not await asyncio.to_thread(store.marked):
        raise NotMounted(
            f"{store.directory} does not carry the mark of a place for backups, so its disk is probably not mounted. "
            "No backup was made; nothing was written or removed there. Mount it; or, if this is to be a new place, "
            "make one backup by hand: memu-backup start"
        )


async def ready(store: Store, host: str, history: History, clock: Clock, *, by_hand: bool, new: bool) -> None:
    """See that ``store`` is in its place and can be written.

    A backup made ``by_hand`` marks a folder without mark, unless backups of ``host`` should lie there and none does:
    disk is probably not mounted, and only who says that the place is ``new`` gets a second home for the backups. That
    raises BackupsMissing; otherwise raises NotMounted, StoreError. Only what is marked is written to.
    """
    if by_hand and not await asyncio.to_thread(store.marked):
        if not new:
            await _refuse_a_second_home(store, host, history)
        await asyncio.to_thread(store.mark, host, clock())
    await found(store)
    await asyncio.to_thread(store.prepare)


async def _refuse_a_second_home(store: Store, host: str, history: History) -> None:
    rows, away = await history.known_runs(host=host, directory=store.directory, quiet=True)
    lost = [r for r in rows if r.location and is_stored(r)]
    if not (lost or away):
        return
    if await asyncio.to_thread(store.backups):
        return
    if lost:
        raise BackupsMissing(f"{_missing(store, lost)} Nothing was begun. Mount it and type the same again; {_ANEW}")
    raise BackupsMissing(
        f"{store.directory} holds no backup and carries no mark of a place for backups, and the history cannot be "
        "reached to tell whether there should be any. Nothing was begun. If its disk is not mounted, mount it and "
        f"type the same again; {_ANEW}"
    )


def _missing(store: Store, lost: Sequence[Run]) -> str:
    one = len(lost) == 1
    return (
        f"{'The backup' if one else f'{len(lost)} backups'} made in {store.directory} {'is' if one else 'are'} not "
        f"there ({'' if one else 'the newest is '}{lost[0].filename}), and that folder carries no mark of a place for "
        "backups: its disk is probably not mounted."
    )

"""What can be done with a backup that lies anywhere, such as on a drive: without settings, and with nothing noted."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup import verify
from memu_backup.model import Backup, Level, Progress
from memu_backup.paths import absolute
from memu_backup.stores import OnProgress, Store, Verdict
from memu_backup.stores.archive import ArchiveSettings, ArchiveStore
from memu_backup.work import Stop, in_thread

if TYPE_CHECKING:  # what does the long work is imported when it is asked for
    from memu_backup import restore
    from memu_backup.find import Found


def nobody_watches(_: Progress) -> None:
    return


def look(file: Path) -> tuple[Store, Backup]:
    """The backup in a file, and a store to read it by. Raises UnknownBackup, ArchiveError, UsageError."""
    file = absolute(file)
    store = ArchiveStore(file.parent, ArchiveSettings(kind="archive"))
    return store, store.look(file)


async def prove(store: Store, stored: Backup, level: Level, on_progress: OnProgress = nobody_watches) -> Verdict:
    """Re-read a backup. Raises NotAnArchive."""
    return await verify.prove(store, stored.path, stored.manifest, on_progress, level)


async def give_back(
    planned: restore.Plan, *, overwrite: bool, on_progress: OnProgress = nobody_watches
) -> restore.Restored:
    """Carry out a plan of ``restore.plan``. Raises as ``restore.carry_out``."""
    from memu_backup import restore

    stop = Stop()
    work = partial(restore.carry_out, planned, overwrite=overwrite, on_progress=on_progress, stop=stop)
    return await in_thread(work, stop)


async def search(backups: Sequence[Backup], pattern: str, on_progress: OnProgress = nobody_watches) -> Found:
    """Look for a file in backups. Raises UsageError for an empty pattern."""
    from memu_backup import find

    stop = Stop()
    return await in_thread(lambda: find.find(backups, pattern, on_progress, stop), stop)

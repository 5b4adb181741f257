"""What can be done with a backup that lies anywhere, such as on a drive: without settings, and with nothing noted."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup import verify
from memu_backup.drives import shelf
from memu_backup.errors import MemuError, NotAnArchive, UnknownBackup, UsageError
from memu_backup.model import Backup, Level, Progress
from memu_backup.paths import absolute
from memu_backup.stores import OnProgress, Store, Verdict, around
from memu_backup.work import Stop, in_thread
from memu_backup.work import look as look_at_disk

if TYPE_CHECKING:  # what does the long work is imported when it is asked for
    from memu_backup import restore
    from memu_backup.find import Found

_ANSWER_S = 5.0
_ARCHIVE = re.compile(r"\.tar\.gz(\.part001)?$")


def nobody_watches(_: Progress) -> None:
    return


def look(file: Path) -> tuple[Store, Backup]:
    """The backup at a path, and a store to read it by. Raises UnknownBackup, ArchiveError, UsageError."""
    file = absolute(file)
    store = around(file)
    return store, store.look(file)


def lying_at(path: Path) -> list[tuple[Store, Backup]]:
    """The backup at a path, or all that lie in a folder and those below it, as on a drive; newest first. Blocks.

    Follows no link in there. Raises UnknownBackup where there is none, ArchiveError, UsageError.
    """
    try:
        return [look(path)]
    except (NotAnArchive, UsageError):
        if not path.is_dir():
            raise
    found = list[tuple[Store, Backup]]()
    for folder in (path, *_folders(path), *_folders(path / shelf.FOLDER)):
        for one in _entries(folder):
            if one.is_dir(follow_symlinks=False) or _ARCHIVE.search(one.name):
                with suppress(MemuError):
                    found.append(look(Path(one.path)))
    if not found:
        raise UnknownBackup(f"There is no backup in {path}. Is the drive mounted there?")
    return sorted(found, key=lambda both: both[1].created_at, reverse=True)


def _folders(path: Path) -> list[Path]:
    return [Path(entry.path) for entry in _entries(path) if entry.is_dir(follow_symlinks=False)]


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    """Without links."""
    with suppress(OSError), os.scandir(folder) as entries:
        return [entry for entry in entries if not entry.is_symlink()]
    return []


async def drives_here() -> list[Path]:
    """Where drives with our copies are mounted, by a desktop or by hand."""
    from memu_backup import rescue
    from memu_backup.drives import mounting

    def look_around() -> list[Path]:
        disks = [mount.point for mount in mounting.mounts() if mount.source.startswith("/dev/")]
        return sorted({point for point in disks if (point / shelf.FOLDER / rescue.PROGRAM).is_file()})

    with suppress(OSError, TimeoutError):
        return await look_at_disk(look_around, _ANSWER_S)
    return []


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


async def search(
    backups: Sequence[tuple[Store, Backup]], pattern: str, on_progress: OnProgress = nobody_watches
) -> Found:
    """Look for a file in backups. Raises UsageError for an empty pattern."""
    from memu_backup import find

    stop = Stop()
    return await in_thread(lambda: find.find(backups, pattern, on_progress, stop), stop)

"""The mark by which a folder is known as a place for backups: below an empty mount point nothing is to be written."""

from __future__ import annotations

import errno
import json
import os
import stat
import uuid
from contextlib import suppress
from datetime import datetime
from pathlib import Path

from memu_backup import files
from memu_backup.errors import StoreError

NAME = ".memu-backup.json"
FORMAT = "memu-backup-place/1"


def is_there(folder: Path) -> bool:
    """Whether ``folder`` carries the mark; what it says is not read. Raises StoreError where this user may not look.

    A disk that gives errors is as good as none: what is not known to carry it does not.
    """
    try:
        return stat.S_ISREG((folder / NAME).lstat().st_mode)
    except PermissionError as error:
        raise StoreError(
            f"{folder} is closed to this user, so nobody can tell whether its disk is mounted. Nothing was written or "
            "removed there. Type the same with sudo, or correct the rights of that folder."
        ) from error
    except OSError:
        return False


def make(folder: Path, host: str, at: datetime) -> None:
    """Make ``folder`` (0700) where it is not there, and mark it (0600), atomically; a mark that is there stays.

    ``host`` and ``at`` (aware) are written into it, for whoever finds the disk. Raises StoreError, DiskFull.
    """
    said = {"format": FORMAT, "id": str(uuid.uuid4()), "made_at": at.isoformat(), "host": host}
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not is_there(folder):
            with suppress(FileExistsError):  # another process was quicker
                files.write_atomically(folder / NAME, f"{json.dumps(said, indent=1)}\n".encode(), replace=False)
    except FileExistsError as error:
        taken = NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
        raise files.storing(taken, folder) from error
    except OSError as error:
        raise files.storing(error, folder) from error

"""Notes beside a backup, shared by the kinds of stores. Most are empty files, as they have to be made on a full disk
too; why a backup is suspicious is written down before it gets its name.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

from memu_backup import files
from memu_backup.errors import StoreError, UnknownBackup
from memu_backup.model import Doubt, Loss

_MOST_BYTES = 1024 * 1024
_UNTOLD = (Doubt("", Loss.UNTOLD, 0, 0),)


def note(backup: Path, file: Path, failed: str, meaning: str) -> None:
    """Make ``file`` for a ``backup`` that is there. Lasts through a power cut.

    ``failed`` and ``meaning`` are for the sentence. Raises UnknownBackup when the backup is not there, StoreError.
    """
    try:
        # It is there first, so that nothing removes the backup between the look and the note.
        os.close(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600))
        if not backup.exists():
            file.unlink()
            raise UnknownBackup(f"{failed}: it is not there any more.")
        files.sync_folder(file.parent)
    except FileNotFoundError as error:
        raise UnknownBackup(f"{failed}: it is not there any more.") from error
    except OSError as error:
        raise StoreError(
            f"{failed} ({error.strerror}), so {meaning}. Check the disk that holds it and its rights."
        ) from error


def take_back(file: Path, meaning: str) -> None:
    """Remove ``file``, if it is there. Raises StoreError."""
    try:
        file.unlink(missing_ok=True)
        with suppress(FileNotFoundError):
            files.sync_folder(file.parent)
    except OSError as error:
        raise StoreError(
            f"{file} could not be removed ({error.strerror}), so {meaning}. Check the disk that holds it and its "
            "rights."
        ) from error


def doubts_as_json(doubts: Sequence[Doubt]) -> bytes:
    return json.dumps([asdict(doubt) for doubt in doubts], indent=1).encode() + b"\n"


def doubts_in(file: Path) -> tuple[Doubt, ...]:
    """None where there is no ``file``; one that tells nothing says all the same that something is wrong."""
    try:
        with file.open("rb") as opened:
            found = json.loads(opened.read(_MOST_BYTES))
        return (
            tuple(Doubt(str(d["source"]), Loss(d["what"]), int(d["before"]), int(d["lost"])) for d in found) or _UNTOLD
        )
    except FileNotFoundError:
        return _UNTOLD if file.is_symlink() else ()
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return _UNTOLD


def remove_tree(path: Path) -> None:
    """A folder or a file and all that is in it, and through no link. Raises OSError."""
    with suppress(FileNotFoundError):
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()

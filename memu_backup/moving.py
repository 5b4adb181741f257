"""Moves what was given back to where it lives. Nothing that lies there is ever replaced."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from memu_backup import process, swap
from memu_backup.errors import RestoreError
from memu_backup.files import rename_without_replacing, sync_folder
from memu_backup.swap import OF_THE_DISK

_PROBE = ".memu-backup-probe"
"""An empty file that is there for a moment, or until the next restore after a kill."""


def is_free(home: Path) -> bool:
    """Whether there is nothing, or nothing but an empty folder. Raises OSError."""
    try:
        return {entry.name for entry in home.iterdir()} <= OF_THE_DISK
    except FileNotFoundError:
        return not os.path.lexists(home)
    except NotADirectoryError:
        return False


def move_in(given: Path, home: Path) -> None:
    """Let the folder ``given`` be ``home``, which ``is_free``, at once; where a disk is mounted there, entry by entry.

    Raises RestoreError; what is there by then, of others, stays as it is.
    """
    home = home.resolve()
    try:
        if home.is_mount():
            for entry in sorted(given.iterdir()):
                rename_without_replacing(entry, home / entry.name)
            status = given.stat()
            os.chown(home, status.st_uid, status.st_gid)
            home.chmod(status.st_mode & 0o7777)
            given.rmdir()
        else:
            given.rename(home)  # takes the place of an empty folder, and of nothing else
        sync_folder(home.parent)
    except OSError as error:
        raise _not_moved(home, error) from error


async def move_beside(given: Path, home: Path) -> None:
    """Let the file or folder ``given`` be ``home``, which may lie on another disk and is not there yet.

    Raises RestoreError, also where something is there.
    """
    try:
        try:
            home.parent.mkdir(parents=True, exist_ok=True)
            rename_without_replacing(given, home)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            await _copied(given, home)
        sync_folder(home.parent)
    except OSError as error:
        raise _not_moved(home, error) from error


async def near(given: Path, home: Path) -> Path:
    """``given``, or where that lies on another disk a copy of it beside ``home``: what can be renamed to ``home``.

    Raises RestoreError.
    """
    try:
        home.parent.mkdir(parents=True, exist_ok=True)
        if _on_one_disk(given.parent, home.parent):
            return given
        beside = home.with_name(f".{home.name}.memu-backup")
        swap.clear(beside)
        await _copied(given, beside)
    except OSError as error:
        raise _not_moved(home, error) from error
    return beside


def _on_one_disk(one: Path, other: Path) -> bool:
    """Whether something can be renamed from one folder into the other: not so where one of them is mounted a second
    time, though it is the same filesystem. Raises OSError.
    """
    here, there = one / _PROBE, other / _PROBE
    try:
        here.touch(mode=0o600)
        here.rename(there)  # also over one that was left by a kill
        return True
    except OSError as error:
        if error.errno == errno.EXDEV:
            return False
        raise
    finally:
        for probe in (here, there):
            probe.unlink(missing_ok=True)


async def _copied(given: Path, home: Path) -> None:
    """By cp(1), which knows owners, holes, links and attributes."""
    partial = home.with_name(f".{home.name}.memu-backup")
    if partial.is_dir() and not partial.is_symlink():
        shutil.rmtree(partial)
    else:
        partial.unlink(missing_ok=True)
    done = await process.run(["cp", "-a", "--no-target-directory", "--", str(given), str(partial)])
    if done.returncode != 0:
        raise RestoreError(
            f"{home} did not come back: {done.last_error_line}. See to that, remove {partial}, then restore it again."
        )
    rename_without_replacing(partial, home)


def _not_moved(home: Path, error: OSError) -> RestoreError:
    if error.errno in (errno.EEXIST, errno.ENOTEMPTY):
        return RestoreError(f"Something has come to lie at {home} meanwhile; it stays. Move it away, then try again.")
    return RestoreError(f"{home} could not be put back ({os.strerror(error.errno or 0)}).")

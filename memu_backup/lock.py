"""One run at a time for a backup directory, across processes: flock(2) on a file in it that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from memu_backup import files
from memu_backup.errors import LockHeld

NAME = ".memu_backup.lock"

_SECOND_LOOK_S = 0.05
"""``taken`` holds the lock for a moment while it looks; that is no reason to send anybody away."""


_ADVICE = "Wait until it is done, or look with: memu-backup status"


@contextmanager
def held(directory: Path, purpose: str, advice: str = _ADVICE, *, shared: bool = False) -> Iterator[None]:
    """Hold ``directory`` for ``purpose`` ("backup job nightly"); the kernel lets go when the process ends, however.
    Several may hold it ``shared``, and then nobody else.

    Raises LockHeld with who holds it and the ``advice``, StoreError where the file cannot be made or the filesystem
    knows no locks.
    """
    descriptor = _taken(directory, advice, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    try:
        _sign(descriptor, purpose)
        yield
    finally:
        os.close(descriptor)


@contextmanager
def briefly(file: Path) -> Iterator[None]:
    """Nobody else is in here meanwhile who names the same ``file``, which is made (0600); waits for who is.

    For a few file operations only, never while waiting for a server. Raises OSError.
    """
    descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def taken(directory: Path) -> bool:
    """Whether somebody holds ``directory`` right now, this process included. True where that cannot be seen."""
    try:
        descriptor = os.open(directory / NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def _taken(directory: Path, advice: str, how: int) -> int:
    """The lock file, open and locked. One that was removed since it was opened keeps nobody else out."""
    while True:
        try:
            descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise files.storing(error, directory) from error
        try:
            _take(descriptor, directory, advice, how)
            if _is_there(descriptor, directory):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _is_there(descriptor: int, directory: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), (directory / NAME).lstat())
    except FileNotFoundError:
        return False
    except OSError as error:
        raise files.storing(error, directory) from error


def _take(descriptor: int, directory: Path, advice: str, how: int) -> None:
    for patience_s in (_SECOND_LOOK_S, None):
        try:
            fcntl.flock(descriptor, how | fcntl.LOCK_NB)
            return
        except BlockingIOError as error:
            if patience_s is None:
                raise LockHeld(
                    f"{_holder(descriptor)} is using {directory} right now, so nothing was started. {advice}"
                ) from error
            time.sleep(patience_s)
        except OSError as error:
            raise files.storing(error, directory) from error


def _sign(descriptor: int, purpose: str) -> None:
    # On a full disk there is no room for the name, and `clean` is just what is wanted then.
    with suppress(OSError):
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "purpose": purpose}).encode(), 0)


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"Another memu-backup ({said['purpose']}, process {int(said['pid'])})"
    except (ValueError, KeyError, TypeError):  # caught between taking the lock and signing it
        return "Another memu-backup"

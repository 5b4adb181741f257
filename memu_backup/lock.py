"""One run at a time for a backup directory, across processes: flock(2) on a file in it that says who holds it."""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from memu_backup import files
from memu_backup.errors import LockHeld

NAME = ".memu_backup.lock"


@contextmanager
def held(directory: Path, purpose: str) -> Iterator[None]:
    """Hold ``directory`` for ``purpose`` ("backup job nightly"); the kernel lets go when the process ends, however.

    Raises LockHeld with who holds it, StoreError where the file cannot be made.
    """
    try:
        descriptor = os.open(directory / NAME, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise files.storing(error, directory) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise LockHeld(
                f"{_holder(descriptor)} is using {directory} right now, so nothing was started. "
                "Wait until it is done, or look with: memu-backup status"
            ) from error
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "purpose": purpose}).encode(), 0)
        yield
    finally:
        os.close(descriptor)


def _holder(descriptor: int) -> str:
    try:
        said = json.loads(os.pread(descriptor, 4096, 0))
        return f"Another memu-backup ({said['purpose']}, process {int(said['pid'])})"
    except (ValueError, KeyError, TypeError):  # caught between taking the lock and signing it
        return "Another memu-backup"

"""The newest backup in which a damaged file is whole, found by its hash and proved by reading it there."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

from memu_backup import find
from memu_backup.errors import MemuError
from memu_backup.files import shown
from memu_backup.formats import hashing
from memu_backup.model import Backup
from memu_backup.stores import Store
from memu_backup.words import printable
from memu_backup.work import Stop, in_thread

_NAMED = 3
"""So many damaged files are looked for: who has one back asks ``find`` for the others."""


class Copies:
    """Where files may be whole: in ``lying``, which need not be sorted. What was found once is known as long as this
    lasts: many backups may share a file that went bad.
    """

    def __init__(self, lying: Sequence[tuple[Store, Backup]]) -> None:
        self._newest_first = sorted(lying, key=lambda both: (both[1].created_at, both[1].name), reverse=True)
        self._found: dict[tuple[str, str], Backup | None] = {}

    async def told(self, store: Store, damaged: Backup, paths: Sequence[str]) -> list[str]:
        """For each of ``paths`` in a backup a sentence: in which other one it is whole, the newest, and what to type;
        of the first three. Files of which nobody knows what they were are passed over.
        """
        stop = Stop()
        return await in_thread(lambda: self._sentences(store, damaged, paths[:_NAMED], stop), stop, gentle=True)

    def _sentences(self, store: Store, damaged: Backup, paths: Sequence[str], stop: Stop) -> list[str]:
        hashes = _hashes(store, damaged, paths, stop)
        told = []
        for path in paths:
            if sha256 := hashes.get(path):
                if (path, sha256) not in self._found:
                    self._found[path, sha256] = self._newest(path, sha256, damaged, stop)
                told.append(_sentence(path, self._found[path, sha256]))
        return told

    def _newest(self, path: str, sha256: str, damaged: Backup, stop: Stop) -> Backup | None:
        bad = [damaged.path]
        for store, there in self._newest_first:
            if there.path in bad or any(_is_one(there.path / path, spoiled / path) for spoiled in bad):
                continue
            if _hashes(store, there, [path], stop).get(path) != sha256:
                continue
            if _is_whole(store, there, path, sha256, stop):
                return there
            bad.append(there.path)
        return None


def _sentence(path: str, there: Backup | None) -> str:
    name = shown(path)
    if there is None:
        return (
            f"No backup that can be read has that {name} whole. If it is where it lives, make a new backup now: "
            "memu-backup start"
        )
    typed = shlex.join(["memu-backup", "restore", str(there.path), "--path", path, "--to", "FOLDER"])
    return f"{name} is whole in {there.name}; to have it back, type: {printable(typed)}"


def _is_one(file: Path, other: Path) -> bool:
    """Whether backups share a file as it lies on the disk: then it is read once."""
    try:
        return os.path.samestat(file.lstat(), other.lstat())
    except (OSError, ValueError):
        return False


def _hashes(store: Store, backup: Backup, paths: Iterable[str], stop: Stop) -> dict[str, str]:
    wanted = set(paths)
    try:
        with store.open(backup.path, stop) as reader:
            if not reader.indexed:
                return {}
            lines = reader.index(find.may_fit(sorted(wanted)))
            return {entry.path: entry.sha256 for entry in lines if entry.path in wanted and entry.sha256}
    except (MemuError, OSError):
        return {}


def _is_whole(store: Store, backup: Backup, path: str, sha256: str, stop: Stop) -> bool:
    hash_ = hashing.new()
    try:
        for block in store.content(backup.path, path):
            stop.check()
            hash_.update(block)
    except (MemuError, OSError):
        stop.check()
        return False
    return hash_.hexdigest() == sha256

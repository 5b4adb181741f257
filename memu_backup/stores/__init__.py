"""Where backups lie: one file a kind. A module in this folder that defines ``STORE`` is a kind."""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict, Field

from memu_backup.model import Backup, Captured, Level, Manifest, Progress
from memu_backup.paths import LocalPath
from memu_backup.walk import Identity
from memu_backup.work import Stop

OnProgress = Callable[[Progress], None]
"""Called from the working thread, a few times a second."""


class StoreSettings(BaseModel):
    """What every ``[stores.NAME]`` table may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    dir: LocalPath | None = Field(
        default=None, description="the folder that holds the backups: backup_dir unless given"
    )


@dataclass(frozen=True, slots=True)
class Label:
    """What is known of a backup before it is written; the rest of its manifest comes from the writing."""

    name: str
    run_id: str
    created_at: datetime
    utc_offset: str
    host: str
    job: str
    version: str


@dataclass(frozen=True, slots=True)
class Written:
    """A backup that is whole on disk but not yet under its name."""

    name: str
    partial_path: Path
    size_bytes: int
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found. ``problems`` are sentences that name the file concerned; any of them means damaged.

    ``unchecked`` are sentences about what nobody could look at, such as a dump without a pg_restore that reads it:
    that part is neither proven nor damaged. Good is what has neither. ``compared`` is False where it carries no
    checksums: all of it can be read, which is all that can be said.
    """

    level: Level
    problems: tuple[str, ...]
    files: int
    content_bytes: int
    sha256: str | None = None
    unchecked: tuple[str, ...] = ()
    compared: bool = True

    @property
    def good(self) -> bool:
        return not self.problems and not self.unchecked


class Store(Protocol):
    """A place that keeps whole backups. All methods block; call them in one thread a unit (``work.in_thread``)."""

    kind: ClassVar[str]
    Settings: ClassVar[type[StoreSettings]]
    directory: Path

    def __init__(self, directory: Path, settings: Any) -> None: ...

    def marked(self) -> bool:
        """Whether the folder carries the mark of a place for backups. Raises StoreError where nobody may look."""
        ...

    def mark(self, host: str, at: datetime) -> None:
        """Make the folder (0700) and mark it, saying which machine did so ``at`` which moment; again is no error.

        Lasts through a power cut. Raises StoreError, DiskFull.
        """
        ...

    def prepare(self) -> None:
        """See that the folder can be written. Raises StoreError."""
        ...

    def name(self, at: datetime, zone: tzinfo) -> str:
        """The name for a backup begun ``at``, which carries local time; asks no disk."""
        ...

    def unused_name(self, at: datetime, zone: tzinfo) -> str:
        """The ``name``, with a suffix where that exists."""
        ...

    def stage(self, run_id: str) -> Path:
        """A new, private, empty folder on the store's filesystem; the caller removes it, else ``sweep`` does."""
        ...

    def write(
        self,
        label: Label,
        captured: Iterable[Captured],
        never: frozenset[Identity],
        on_progress: OnProgress,
        stop: Stop,
        earlier: Backup | None = None,
    ) -> Written:
        """Write everything captured, flushed to the disk, under a partial name. On any error nothing of it stays.

        The next of ``captured`` is asked for when the one before was read to its end.
        ``never`` are folders of ours that no source may pull in. What has not changed since ``earlier``, a backup in
        this store, may be taken over from it instead of being read and written again; the manifest says so.
        Raises DiskFull, WriteFailed, StoreError, Interrupted, and SharedDamage where ``earlier`` cannot be read.
        """
        ...

    def prove(self, path: Path, level: Level, on_progress: OnProgress, stop: Stop) -> Verdict:
        """Re-read a backup (a published one or a partial one) and compare it with what it says of itself."""
        ...

    def publish(self, written: Written, sha256: str) -> Path:
        """Give it its name, atomically and without replacing anything. Only now does ``backups`` show it."""
        ...

    def discard(self, written: Written) -> None:
        """Throw an unpublished backup away."""
        ...

    def sweep(self) -> list[str]:
        """Remove what killed runs left behind; the caller holds the lock. Returns the names removed."""
        ...

    def backups(self) -> list[Backup]:
        """Every published backup, newest first."""
        ...

    def content(self, backup: Path, path: str) -> Iterator[bytes]:
        """The bytes of one file inside a backup. Raises DamagedArchive, UsageError when it is not in there."""
        ...

    def checksum(self, backup: Path) -> str | None:
        """The SHA-256 that was noted beside a backup when it was made; None where none can be read."""
        ...

    def delete(self, backup: Path) -> None:
        """Remove a published backup; it stops being listed before the first byte of it goes.

        One that is pinned is left alone: raises StoreError.
        """
        ...

    def pin(self, backup: Path) -> None:
        """Mark a published backup as one to keep, beside it on the disk, so that no lost history forgets it.

        Lasts through a power cut; again is no error. Raises UnknownBackup when it is not there, StoreError.
        """
        ...

    def release(self, backup: Path) -> None:
        """Take the mark away; without one is no error. Raises StoreError."""
        ...

    def condemn(self, backup: Path) -> None:
        """Note that a backup was found damaged, beside it on the disk, so that no lost history takes it for good.

        Lasts through a power cut; again is no error. Raises UnknownBackup when it is not there, StoreError.
        """
        ...

    def acquit(self, backup: Path) -> None:
        """Take that note away; without one is no error. Raises StoreError."""
        ...


@cache
def kinds() -> Mapping[str, type[Store]]:
    """Every kind of store there is, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.STORE.kind: m.STORE for m in modules if hasattr(m, "STORE")}

"""Where backups lie: one file a kind. A module in this folder that defines ``STORE`` is a kind."""

from __future__ import annotations

import importlib
import pkgutil
import time
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Annotated, Any, ClassVar, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from memu_backup.formats import manifest
from memu_backup.formats.index import Entry
from memu_backup.formats.proof import Proof
from memu_backup.formats.tar import Header
from memu_backup.model import Backup, Captured, Copied, Doubt, Level, Manifest, Phase, Progress, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.walk import Identity
from memu_backup.work import Stop

OnProgress = Callable[[Progress], None]
"""Called from the working thread, a few times a second."""


def _checked_folder(name: str) -> str:
    if not name.strip("/ ") or name.startswith("/") or ".." in PurePosixPath(name).parts:
        raise ValueError('is no folder below another, such as "config"; what lies elsewhere is for dir')
    return name


class StoreSettings(BaseModel):
    """What every ``[stores.NAME]`` table may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    dir: LocalPath | None = Field(
        default=None, description="the folder that holds the backups: backup_dir unless given"
    )
    max_backups: int | None = Field(default=None, ge=1, description="at most so many in it, of all jobs together")
    folder: Annotated[str, AfterValidator(_checked_folder)] | None = Field(
        default=None, description="a folder below it, for this store alone"
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
    called: str = ""

    def manifest(self, sources: tuple[SourceSummary, ...]) -> Manifest:
        """What is known once these are written."""
        return Manifest(
            format=manifest.FORMAT,
            name=self.name,
            run_id=self.run_id,
            created_at=self.created_at,
            utc_offset=self.utc_offset,
            host=self.host,
            job=self.job,
            version=self.version,
            sources=sources,
            sha256sums="",
            called=self.called,
        )


def written_by(add: Callable[[Captured], SourceSummary], captured: Iterable[Captured], label: Label) -> Manifest:
    """Have each written by ``add``, in turn; those that tell of the others come last. Raises as ``add``."""
    summaries: list[SourceSummary] = []
    last: list[Captured] = []
    for one in captured:
        if one.tell:
            last.append(one)
        else:
            summaries.append(add(one))
    for one in last:
        if one.tell:
            one.tell(label.manifest(tuple(summaries)))
        summaries.append(add(one))
    return label.manifest(tuple(summaries))


@dataclass(frozen=True, slots=True)
class Written:
    """A backup that is whole on disk but not yet under its name.

    ``kept`` counts for each source files that are not empty and were taken over from the backup before as they are, at
    the same path: there are at least so many.
    """

    name: str
    partial_path: Path
    size_bytes: int
    manifest: Manifest
    kept: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a verification found. ``problems`` are sentences that name the file concerned; any of them means damaged.

    ``unchecked`` are sentences about what nobody could look at, such as a dump without a pg_restore that reads it:
    that part is neither proven nor damaged. Good is what has neither. ``compared`` is False where it carries no
    checksums: all of it can be read, which is all that can be said. ``spoiled`` are the paths of damaged files, the
    first of them.
    """

    level: Level
    problems: tuple[str, ...]
    files: int
    content_bytes: int
    sha256: str | None = None
    unchecked: tuple[str, ...] = ()
    compared: bool = True
    spoiled: tuple[str, ...] = ()

    @classmethod
    def of(cls, found: Proof, level: Level, problems: tuple[str, ...]) -> Self:
        return cls(
            level,
            problems,
            found.files,
            found.content_bytes,
            found.sha256,
            compared=found.compared,
            spoiled=found.spoiled,
        )

    @property
    def good(self) -> bool:
        return not self.problems and not self.unchecked


@dataclass(frozen=True, slots=True)
class Portion:
    """Number ``number`` of ``of`` portions of all files in a store, the same ones in each backup: it goes by their
    content. ``read`` are the SHA-256 of those that were read in this pass, by device and inode, so that a file
    that many backups share is read once and compared with what each of them says.
    """

    number: int
    of: int
    read: dict[tuple[int, int], str] = field(default_factory=dict)

    def holds(self, sha256: str, path: str) -> bool:
        """Whether a file of that content is in it; what has none goes by its path."""
        return zlib.crc32((sha256 or path).encode("utf-8", "surrogatepass")) % self.of == self.number


@dataclass(frozen=True, slots=True)
class Piece:
    """What is re-read in one go: of all ``backups`` a ``portion``, or all of one. ``name`` stays the same from night to
    night. All of it was proved at ``proved_at`` or later, when it was made. ``size_bytes`` is to be read, an estimate.
    """

    name: str
    backups: tuple[Backup, ...]
    size_bytes: int
    proved_at: datetime
    portion: Portion | None = None


class Meter:
    """Adds up ticks and passes them on ten times a second at most."""

    def __init__(self, phase: Phase, on_progress: OnProgress) -> None:
        self._phase, self._on_progress = phase, on_progress
        self._bytes = self._files = 0
        self._what = ""
        self._next = 0.0

    def tick(self, more_bytes: int, more_files: int, what: str) -> None:
        self._bytes += more_bytes
        self._files += more_files
        self._what = what or self._what
        if time.monotonic() >= self._next:
            self.flush()

    def flush(self) -> None:
        self._next = time.monotonic() + 0.1
        self._on_progress(Progress(self._phase, self._bytes, None, self._files, self._what))


class Opened(Protocol):
    """A backup that is open for reading. Use as a context manager. All methods block, and raise DamagedArchive,
    Interrupted.

    ``indexed`` says whether single files can be found without reading all of it, ``index_bytes`` how much has to be
    read to know what is in it. Not ``whole`` is what is shorter than it says, ``cut`` what lacks its end.
    """

    @property
    def indexed(self) -> bool: ...
    @property
    def whole(self) -> bool: ...
    @property
    def cut(self) -> bool: ...
    @property
    def index_bytes(self) -> int: ...
    @property
    def open_files(self) -> int: ...

    def __enter__(self) -> Self: ...
    def __exit__(self, *_: Any) -> None: ...

    def manifest(self) -> Manifest | None:
        """What it says of itself; None where it says nothing, or is another program's."""
        ...

    def index(self, only: Callable[[bytes], bool] | None = None, *, hashes: bool = True) -> Generator[Entry]:
        """Every entry in its order; ``only`` may leave out lines of the index before they are parsed."""
        ...

    def readable(self) -> Generator[Entry | Manifest]:
        """What can be read from front to back: entries, and the manifest behind the last of them."""
        ...

    def entries_with_content(self) -> Generator[tuple[Header, Iterator[memoryview]]]:
        """Everything from front to back, with its stored content."""
        ...

    def stretch(self, first: Entry, last: Entry) -> Generator[tuple[Header, Iterator[memoryview]]]:
        """From one entry of the index to another; several threads may read stretches at once."""
        ...


class Store(Protocol):
    """A place that keeps whole backups. All methods block; call them in one thread a unit (``work.in_thread``)."""

    kind: ClassVar[str]
    Settings: ClassVar[type[StoreSettings]]
    whole_every: ClassVar[int | None]
    """Every so many backups one shares nothing with another; None where each may, as its store sees to its health."""
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

    def pieces(self, backups: Sequence[Backup]) -> list[Piece]:
        """How all of these, which lie here, are re-read piece by piece."""
        ...

    def prove(
        self, path: Path, level: Level, on_progress: OnProgress, stop: Stop, portion: Portion | None = None
    ) -> Verdict:
        """Re-read a backup (a published one or a partial one) and compare it with what it says of itself; of its files
        only a ``portion``, where ``pieces`` says so.
        """
        ...

    def publish(self, written: Written, sha256: str, doubts: Sequence[Doubt] = ()) -> Path:
        """Give it its name, atomically and without replacing anything. Only now does ``backups`` show it.

        Its ``doubts`` are noted beside it before, so that it never counts as good, not even for a moment or after a
        kill.
        """
        ...

    def discard(self, written: Written) -> None:
        """Throw an unpublished backup away."""
        ...

    def sweep(self) -> list[str]:
        """Put in order what killed runs left behind; the caller holds the lock. Returns the names removed."""
        ...

    def backups(self) -> list[Backup]:
        """Every published backup, newest first."""
        ...

    @classmethod
    def around(cls, path: Path) -> Self | None:
        """What reads a backup at ``path``, wherever that lies; None where there is none of this kind. Asks the disk."""
        ...

    def look(self, path: Path) -> Backup:
        """One backup, wherever it lies and whatever its name. Raises UnknownBackup, ArchiveError, UsageError."""
        ...

    def open(self, backup: Path, stop: Stop) -> Opened:
        """Raises UnknownBackup, NotAnArchive, DamagedArchive, UsageError."""
        ...

    def copied_as(self, backup: Backup) -> Copied:
        """As what a backup goes to a drive. Asks the disk."""
        ...

    def stream(self, backup: Path, stop: Stop) -> AbstractContextManager[int]:
        """A descriptor to read it from as an archive, from front to back; a file's or a pipe's.

        Raises DamagedArchive at the end where what was read is no whole backup, and OSError.
        """
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

    def accept(self, backup: Path) -> None:
        """Take the doubts away: it is as it should be. Without any is no error. Raises StoreError."""
        ...


def around(path: Path) -> Store:
    """What reads the backup at ``path``, which may turn out to be none. Asks the disk."""
    return next(store for kind in kinds().values() if (store := kind.around(path)))


@cache
def kinds() -> Mapping[str, type[Store]]:
    """Every kind of store there is, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.STORE.kind: m.STORE for m in modules if hasattr(m, "STORE")}

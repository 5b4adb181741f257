"""The nouns of the project. Frozen, without behaviour beyond what follows from their own fields.

All times are aware datetimes in UTC, all sizes are bytes, all durations are seconds. Paths inside an archive are
``str`` with ``/`` between parts; bytes that are not UTF-8 stand in them as surrogates (``os.fsdecode``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Any


class Status(StrEnum):
    """What became of a run. ``PARTIAL`` is a backup that can be restored but lacks something."""

    IN_PROGRESS = "in_progress"
    SUCCESS = "success"
    PARTIAL = "partial"
    FAILED = "failed"


class Trigger(StrEnum):
    """What set a run off."""

    SCHEDULE = "schedule"
    MANUAL = "manual"
    CATCH_UP = "catch_up"


class Level(StrEnum):
    """How deep a verification looks."""

    QUICK = "quick"
    FULL = "full"


@dataclass(frozen=True, slots=True)
class Root:
    """One file or one directory tree on this machine, and where it stands in the backup.

    ``place`` ends in ``/`` for a directory (its content goes below it) and names a file otherwise.
    ``exclude`` holds globs relative to ``path``, in gitignore manner: ``*.tmp`` anywhere, ``/cache/`` at the top,
    ``**`` across folders.
    """

    path: Path
    place: str
    exclude: tuple[str, ...] = ()
    cross_filesystems: bool = False


@dataclass(frozen=True, slots=True)
class Captured:
    """What a source hands to a store: trees that hold still, or of which it is said how they move.

    ``consistency`` is one phrase for people ("pg_dump in one snapshot"). ``details`` is JSON for metadata.json and
    never holds a secret. ``warnings`` are sentences; a warning alone does not make a run partial, ``missing`` does:
    things that were asked for and could not be had.
    """

    source: str
    kind: str
    place: str
    roots: tuple[Root, ...]
    consistency: str
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class SourceSummary:
    """One source as metadata.json tells it. ``checksum`` is the SHA-256 of its lines in SHA256SUMS."""

    name: str
    kind: str
    place: str
    files: int
    directories: int
    links: int
    size_bytes: int
    checksum: str
    modes_checksum: str
    consistency: str
    newest_mtime: datetime | None = None
    skipped: int = 0
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup says of itself (metadata.json). ``utc_offset`` is that of the machine, as ``+02:00``.

    ``shares_with`` is the older backup that it shares blocks with on the disk, empty where it was written whole;
    ``nights_shared`` counts the backups in a row, this one too, that were not. ``shared_bytes`` is how much of the
    archive it shares so: the rest is what it newly took of the disk.
    """

    format: str
    name: str
    run_id: str
    created_at: datetime
    utc_offset: str
    host: str
    job: str
    version: str
    sources: tuple[SourceSummary, ...]
    sha256sums: str
    shares_with: str = ""
    nights_shared: int = 0
    shared_bytes: int = 0

    @property
    def size_bytes(self) -> int:
        """Bytes of content before compression."""
        return sum(s.size_bytes for s in self.sources)

    @property
    def files(self) -> int:
        return sum(s.files for s in self.sources)

    @property
    def partial(self) -> bool:
        return any(s.missing for s in self.sources)

    def made_by(self, host: str, job: str) -> bool:
        return (self.host, self.job) == (host, job)


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that lies in a store. ``manifest`` is None where the archive tells nothing of itself.

    ``pinned`` says that somebody asked to keep it, whatever retention says, ``damaged`` that it was found to be. Where
    it lies in parts, ``path`` is the first of them, and ``name`` that of the whole.
    """

    name: str
    path: Path
    size_bytes: int
    created_at: datetime
    manifest: Manifest | None
    pinned: bool = False
    damaged: bool = False


@dataclass(frozen=True, slots=True)
class Run:
    """One row of ``backup_history``.

    ``run_id`` is the key by which a row is written and written again. ``filename`` and ``location`` are final from
    the start, with ``size_bytes`` 0 until the backup lies there; only what others wrote has no location.
    ``write_seconds`` lasts until what was written is on the disk, ``prove_seconds`` is the re-reading after it.
    ``error`` is the sentence, ``error_code`` the stable code of ``errors``. ``deleted_at`` is set when the backup was
    pruned. ``attempt`` counts the tries for one night from 1; ``retry_at`` is set on a failed one that is to be tried
    again, and stays. A failed run with neither ``retry_at`` nor ``notification_sent`` is an alert still owed.
    """

    run_id: str
    host: str
    job: str
    trigger: Trigger
    filename: str
    status: Status
    created_at: datetime
    location: str = ""
    size_bytes: int = 0
    content_bytes: int = 0
    files: int = 0
    error: str | None = None
    error_code: str | None = None
    duration_seconds: int | None = None
    downtime_seconds: float | None = None
    write_seconds: float | None = None
    prove_seconds: float | None = None
    finished_at: datetime | None = None
    verified_at: datetime | None = None
    usb_copied_at: datetime | None = None
    deleted_at: datetime | None = None
    sha256: str | None = None
    warnings: tuple[str, ...] = ()
    notification_sent: bool = False
    attempt: int = 1
    retry_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Drive:
    """One row of ``backup_drives``: a drive for copies of backups, or one that was only seen.

    ``fs_uuid`` is its filesystem's and tells one drive from another on ``host``; ``marker`` is the id in the file that
    was written on it, empty until then. ``label`` is what its owner wrote on it, fit to be shown, and may be empty;
    ``name`` is what the household calls it, and ``kept_at`` where it is kept. Without ``trusted_at`` nobody approved it
    and nothing is written on it. ``last_copied_at`` is when the newest whole copy on it was made, ``copies`` how many
    there are, and ``bytes_per_second`` how fast the last one went, re-reading included.
    """

    drive_id: str
    host: str
    fs_uuid: str
    label: str
    filesystem: str
    size_bytes: int
    first_seen_at: datetime
    last_seen_at: datetime
    name: str = ""
    kept_at: str = ""
    marker: str = ""
    trusted_at: datetime | None = None
    last_copied_at: datetime | None = None
    copies: int = 0
    bytes_per_second: float | None = None

    @property
    def called(self) -> str:
        """What people know it by."""
        return self.name or self.label or self.fs_uuid


@dataclass(frozen=True, slots=True)
class AuditEvent:
    """Who did what, when and from where. ``origin`` is ``cli``, ``chat``, ``web`` or ``scheduler``."""

    event_id: str
    created_at: datetime
    host: str
    actor: str
    origin: str
    action: str
    subject: str = ""
    outcome: str = ""


class Phase(StrEnum):
    """Where a long piece of work stands; the words for it are in ``words``."""

    WAITING = "waiting"
    CAPTURING = "capturing"
    WRITING = "writing"
    VERIFYING = "verifying"
    PUBLISHING = "publishing"
    RESTORING = "restoring"
    SEARCHING = "searching"
    COPYING = "copying"
    COMPARING = "comparing"


@dataclass(frozen=True, slots=True)
class Progress:
    """A moment of long work. ``total_bytes`` is None where it is not known; it is an estimate where sources grow."""

    phase: Phase
    done_bytes: int = 0
    total_bytes: int | None = None
    files: int = 0
    what: str = ""


@dataclass(frozen=True, slots=True)
class Copying:
    """A copy to a drive that is under way: what people call the drive, and how far it is."""

    called: str
    progress: Progress


class Health(StrEnum):
    """How much the family has to worry."""

    HEALTHY = "healthy"
    WARNING = "warning"
    CRITICAL = "critical"


class Problem(StrEnum):
    """What is not as it should be, the most pressing first; the codes never change once released."""

    SERVICES_DOWN = "services_down"
    LAST_FAILED = "last_failed"
    CANNOT_LOOK = "cannot_look"
    BACKUP_GONE = "backup_gone"
    NOT_MARKED = "not_marked"
    NOTHING_GOOD = "nothing_good"
    OVERDUE = "overdue"
    NO_ROOM = "no_room"
    LAST_PARTIAL = "last_partial"
    OLDER_DAMAGED = "older_damaged"
    SPACE_SHORT = "space_short"
    HISTORY_AWAY = "history_away"
    CHAT_ENDED = "chat_ended"
    CHAT_BROKEN = "chat_broken"
    NO_BACKUP = "no_backup"
    USB_OVERDUE = "usb_overdue"


_CRITICAL = frozenset(
    {
        Problem.SERVICES_DOWN,
        Problem.LAST_FAILED,
        Problem.CANNOT_LOOK,
        Problem.BACKUP_GONE,
        Problem.NOT_MARKED,
        Problem.NOTHING_GOOD,
        Problem.OVERDUE,
        Problem.NO_ROOM,
    }
)


@dataclass(frozen=True, slots=True)
class StatusReport:
    """Where a household's backups stand at one moment; made by ``status.assess``, put into words by ``words``.

    ``problems`` is sorted, the most pressing first. ``last`` is the newest run that has ended, ``last_good`` the
    newest complete backup that still lies in its place, which is too old from ``overdue_at`` on. ``usb_expected`` is
    False where no drive is part of the plan. With ``history_away`` the report rests on what lies on disk, and copies on
    drives are not known. Where nobody can look at the backups (CANNOT_LOOK), it rests on the rows, and what is stored
    is not known. ``free_bytes`` and ``days_left`` are those of ``outlook.Outlook``; None, too, where the disk cannot be
    asked or a backup is being made. With ``elsewhere`` it tells of another machine, by nothing but what that one wrote
    down. ``sources`` is what ``last_good`` says it holds; empty where there is none, or nobody can look at it.
    ``drives`` are those that get copies, and ``copying`` is what one of them gets right now.
    """

    problems: tuple[Problem, ...]
    last: Run | None
    last_good: Run | None
    in_progress: Run | None
    stored_count: int
    stored_bytes: int
    usb_expected: bool
    usb_copied_at: datetime | None
    history_away: bool
    overdue_at: datetime | None = None
    free_bytes: int | None = None
    days_left: int | None = None
    elsewhere: bool = False
    sources: tuple[SourceSummary, ...] = ()
    drives: tuple[Drive, ...] = ()
    copying: Copying | None = None

    @property
    def health(self) -> Health:
        if any(p in _CRITICAL for p in self.problems):
            return Health.CRITICAL
        return Health.WARNING if self.problems else Health.HEALTHY

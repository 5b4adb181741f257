"""The nouns of the project. Frozen, without behaviour beyond what follows from their own fields.

All times are aware datetimes in UTC, all sizes are bytes, all durations are seconds. Paths inside an archive are
``str`` with ``/`` between parts; bytes that are not UTF-8 stand in them as surrogates (``os.fsdecode``).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from memu_backup.crosscheck import CrossCheck

CLOCK_SLACK = timedelta(days=1)
"""A backup dated further ahead than this was written while a clock was wrong."""


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
    ``**`` across folders. A directory that is ``packed`` is to be one file, a tar.gz of its own: ``place`` names that.
    """

    path: Path
    place: str
    exclude: tuple[str, ...] = ()
    cross_filesystems: bool = False
    packed: bool = False


@dataclass(frozen=True, slots=True)
class Captured:
    """What a source hands to a store: trees that hold still, or of which it is said how they move.

    ``consistency`` is one phrase for people ("pg_dump in one snapshot"). ``details`` is JSON for metadata.json and
    never holds a secret. ``warnings`` are sentences; a warning alone does not make a run partial, ``missing`` does:
    things that were asked for and could not be had. ``tell`` is called with what is known of the backup once all the
    others are stored, and writes the root down only then; it blocks, and raises StoreError. ``crosscheck`` is shown
    each entry that is stored, and tells in the end how they differ from the rows of a database that name them.
    """

    source: str
    kind: str
    place: str
    roots: tuple[Root, ...]
    consistency: str
    details: Mapping[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    tell: Callable[[Manifest], None] | None = None
    crosscheck: CrossCheck | None = None


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
    """What a backup says of itself (metadata.json). ``utc_offset`` is that of the machine, as ``+02:00``; ``called`` is
    what somebody named it who asked for it, empty where nobody did.

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
    called: str = ""
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


class Loss(StrEnum):
    """What a source seems to have lost; the words never change once released. ``UNTOLD``: somebody said so by hand."""

    FILES = "files"
    BYTES = "bytes"
    EVERYTHING = "everything"
    ENTRIES = "entries"
    CONTENT = "content"
    UNTOLD = "untold"


@dataclass(frozen=True, slots=True)
class Doubt:
    """Why a backup looks wrong: of ``before`` files of a source, ``lost`` are gone, or hold other content. Bytes, or
    rows and keys of a database of which all are gone (``ENTRIES``), where ``what`` says so.
    """

    source: str
    what: Loss
    before: int
    lost: int


@dataclass(frozen=True, slots=True)
class Backup:
    """A backup that lies in a store. ``manifest`` is None where the archive tells nothing of itself.

    ``pinned`` says that somebody asked to keep it, whatever retention says, ``damaged`` that it was found to be. With
    ``doubts`` it is suspicious, until somebody says that it is as it should be. Where it lies in parts, ``path`` is the
    first of them, and ``name`` that of the whole.
    """

    name: str
    path: Path
    size_bytes: int
    created_at: datetime
    manifest: Manifest | None
    pinned: bool = False
    damaged: bool = False
    doubts: tuple[Doubt, ...] = ()

    @property
    def good(self) -> bool:
        """Whether people can rely on it, as far as anybody knows."""
        return self.manifest is not None and not (self.manifest.partial or self.damaged or self.doubts)

    def is_ahead(self, now: datetime) -> bool:
        """Whether a clock was wrong when it was made, and not merely another machine's."""
        return self.created_at > now + CLOCK_SLACK

    @property
    def taken_bytes(self) -> int:
        """What the disk lost by it when it was made: its size without what it shares with older ones."""
        return max(0, self.size_bytes - (self.manifest.shared_bytes if self.manifest else 0))


def newest_good(backups: Iterable[Backup], now: datetime) -> Backup | None:
    """Of several, newest first. One that a clock dated ahead of ``now`` only where there is no other: it would stay the
    newest for years.
    """
    good = [b for b in backups if b.good]
    return next((b for b in good if not b.is_ahead(now)), good[0] if good else None)


@dataclass(frozen=True, slots=True)
class Copied:
    """The archive that a backup is on a drive. ``size_bytes`` is at most so many where it is not ``made`` yet, and
    ``sha256`` then None, as for one beside which none was noted.
    """

    name: str
    size_bytes: int
    sha256: str | None
    made: bool


@dataclass(frozen=True, slots=True)
class Run:
    """One row of ``backup_history``.

    ``run_id`` is the key by which a row is written and written again. ``filename`` and ``location`` are final from
    the start, with ``size_bytes`` 0 until the backup lies there; only what others wrote has no location.
    ``write_seconds`` lasts until what was written is on the disk, ``prove_seconds`` is the re-reading after it.
    A suspicious backup is a partial one whose ``error_code`` says so, until somebody accepts it.
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

    @property
    def suspicious(self) -> bool:
        return self.error_code == "suspicious"


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


class Tried(StrEnum):
    """What became of trying to bring a backup back. ``BEGUN`` stays where the trial was killed; ``UNTRIED`` is one that
    could not be made, which says nothing about the backup.
    """

    BEGUN = "begun"
    WHOLE = "whole"
    FAILED = "failed"
    UNTRIED = "untried"
    INTERRUPTED = "interrupted"


@dataclass(frozen=True, slots=True)
class Drill:
    """One row of ``backup_drills``: a backup was brought back to a scratch place and tried there.

    ``filename`` and ``made_at`` are the backup's, and ``lay_at`` is what people call where it lay: empty for the place
    of its job. ``seconds`` is how long it took, ``size_bytes`` what came back. ``problems`` are sentences: what is
    wrong with the backup, or why it could not be tried; ``unchecked`` what of it could only be compared. ``whole_in``
    is the newest other backup in which all that failed is whole, empty where there is none or nobody looked.
    """

    drill_id: str
    host: str
    job: str
    filename: str
    made_at: datetime
    created_at: datetime
    outcome: Tried
    lay_at: str = ""
    finished_at: datetime | None = None
    size_bytes: int = 0
    files: int = 0
    seconds: float = 0.0
    problems: tuple[str, ...] = ()
    unchecked: tuple[str, ...] = ()
    whole_in: str = ""


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
    REHEARSING = "rehearsing"


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


@dataclass(frozen=True, slots=True)
class Coverage:
    """How much of what is stored was read back within ``every_days``; ``oldest_at`` is when the longest unread was.
    ``behind`` is what needs somebody to look after it.
    """

    every_days: int
    total_bytes: int
    read_bytes: int
    oldest_at: datetime | None
    behind: bool


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
    SUSPICIOUS = "suspicious"
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


class ReportKind(StrEnum):
    """What people can have told of a time that is past, see ``digest``."""

    DAILY = "daily"
    WEEKLY = "weekly"
    MONTHLY = "monthly"
    ERRORS = "errors"


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
    ``in_doubt`` is the newest backup where it is suspicious, for its ``doubts``: nobody has said yet that it is as it
    should be. ``drives`` are those that get copies, and ``copying`` is what one of them gets right now. ``coverage`` is
    that of all that is stored, where it was asked for.
    ``drill`` is the restore test to tell of (``rotation.telling``), and ``drill_late`` says that the last one is too
    long ago.
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
    in_doubt: Run | None = None
    doubts: tuple[Doubt, ...] = ()
    coverage: Coverage | None = None
    drill: Drill | None = None
    drill_late: bool = False

    @property
    def health(self) -> Health:
        if any(p in _CRITICAL for p in self.problems):
            return Health.CRITICAL
        return Health.WARNING if self.problems else Health.HEALTHY

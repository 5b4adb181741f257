"""What machines read of the nouns: the same for a script at the command line and for a program that asks over HTTP.

The keys stay as they are. Times are ISO 8601 in UTC, sizes bytes. Pure.
"""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from typing_extensions import TypedDict  # pydantic reads the standard library's from Python 3.12 on

from memu_backup.catalog import Listed
from memu_backup.digest import Digest, JobPart
from memu_backup.model import (
    AuditEvent,
    Copying,
    Coverage,
    Doubt,
    Drill,
    Drive,
    Run,
    SourceSummary,
    StatusReport,
)

if TYPE_CHECKING:  # it lives above us, and is only read
    from memu_backup.access import Token
    from memu_backup.find import Found
    from memu_backup.nested import Step
    from memu_backup.put_back import Planned
    from memu_backup.replacing import Taking
    from memu_backup.restores import Restore
    from memu_backup.under_way import Activity


class RunJson(TypedDict):
    run_id: str
    host: str
    job: str
    trigger: str
    filename: str
    status: str
    created_at: str
    finished_at: str | None
    verified_at: str | None
    usb_copied_at: str | None
    size_bytes: int
    duration_seconds: int | None
    downtime_seconds: float | None
    write_seconds: float | None
    prove_seconds: float | None
    error: str | None
    error_code: str | None
    attempt: int
    retry_at: str | None
    warnings: list[str]


class DriveJson(TypedDict):
    called: str
    name: str
    label: str
    fs_uuid: str
    filesystem: str
    size_bytes: int
    kept_at: str
    trusted_at: str | None
    first_seen_at: str
    last_seen_at: str
    last_copied_at: str | None
    copies: int


class CoverageJson(TypedDict):
    every_days: int
    total_bytes: int
    read_bytes: int
    oldest_at: str | None
    behind: bool


class DrillJson(TypedDict):
    drill_id: str
    job: str
    backup: str
    made_at: str
    lay_at: str
    outcome: str
    created_at: str
    finished_at: str | None
    files: int
    size_bytes: int
    seconds: float
    problems: list[str]
    unchecked: list[str]
    whole_in: str


class DoubtJson(TypedDict):
    source: str
    what: str
    before: int
    lost: int


class CopyingJson(TypedDict):
    drive: str
    phase: str
    done_bytes: int
    total_bytes: int | None


class SourceJson(TypedDict):
    name: str
    kind: str
    files: int
    size_bytes: int
    newest_mtime: str | None


class ReportJson(TypedDict):
    health: str
    problems: list[str]
    last: RunJson | None
    last_good: RunJson | None
    in_progress: RunJson | None
    stored_count: int
    stored_bytes: int
    usb_expected: bool
    usb_copied_at: str | None
    history_away: bool
    free_bytes: int | None
    days_left: int | None
    elsewhere: bool
    sources: list[SourceJson]
    drives: list[DriveJson]
    copying: CopyingJson | None
    in_doubt: RunJson | None
    doubts: list[DoubtJson]
    coverage: CoverageJson | None
    drill: DrillJson | None
    drill_late: bool


class ListedJson(TypedDict):
    name: str
    path: str
    created_at: str
    size_bytes: int
    taken_bytes: int
    content_bytes: int | None
    files: int | None
    job: str | None
    host: str | None
    state: str
    pinned: bool
    doubts: list[DoubtJson]
    verified_at: str | None


class EventJson(TypedDict):
    event_id: str
    created_at: str
    host: str
    actor: str
    origin: str
    action: str
    subject: str
    outcome: str


class ProgressJson(TypedDict):
    phase: str
    done_bytes: int
    total_bytes: int | None
    files: int
    what: str


class ActivityJson(TypedDict):
    id: str
    what: str
    subject: str
    actor: str
    origin: str
    begun_at: str
    progress: ProgressJson | None
    step: str
    outcome: str | None
    ended_at: str | None


class TakingJson(TypedDict):
    where: str
    needed_bytes: int
    free_bytes: int | None


class StepJson(TypedDict):
    source: str
    kind: str
    files: int
    size_bytes: int
    to: str
    replaces: list[str]
    changed: list[str]
    room_bytes: int
    free_bytes: int
    taking: TakingJson | None


class PlannedJson(TypedDict):
    archive: str
    sources: list[StepJson]
    stops: list[str]
    left_out: list[str]
    before_start: list[list[str]]
    afterwards: list[list[str]]
    doubts: list[str]
    hindrances: list[str]


class RestoreJson(TypedDict):
    restore: str
    backup: str
    state: str
    kept: list[str]


class TokenJson(TypedDict):
    id: str
    name: str
    role: str
    created_at: str
    expires_at: str
    revoked_at: str | None
    used_at: str | None


def token(told: Token) -> TokenJson:
    return {
        "id": told.id,
        "name": told.name,
        "role": told.role.value,
        "created_at": moment(told.created_at),
        "expires_at": moment(told.expires_at),
        "revoked_at": _time(told.revoked_at),
        "used_at": _time(told.used_at),
    }


def report(told: StatusReport) -> ReportJson:
    return {
        "health": told.health.value,
        "problems": [p.value for p in told.problems],
        "last": _run(told.last),
        "last_good": _run(told.last_good),
        "in_progress": _run(told.in_progress),
        "stored_count": told.stored_count,
        "stored_bytes": told.stored_bytes,
        "usb_expected": told.usb_expected,
        "usb_copied_at": _time(told.usb_copied_at),
        "history_away": told.history_away,
        "free_bytes": told.free_bytes,
        "days_left": told.days_left,
        "elsewhere": told.elsewhere,
        "sources": list(map(_source, told.sources)),
        "drives": list(map(drive, told.drives)),
        "copying": _copying(told.copying),
        "in_doubt": _run(told.in_doubt),
        "doubts": list(map(doubt, told.doubts)),
        "coverage": coverage(told.coverage),
        "drill": drill(told.drill) if told.drill else None,
        "drill_late": told.drill_late,
    }


def run(row: Run) -> RunJson:
    return {
        "run_id": row.run_id,
        "host": row.host,
        "job": row.job,
        "trigger": row.trigger.value,
        "filename": row.filename,
        "status": row.status.value,
        "created_at": moment(row.created_at),
        "finished_at": _time(row.finished_at),
        "verified_at": _time(row.verified_at),
        "usb_copied_at": _time(row.usb_copied_at),
        "size_bytes": row.size_bytes,
        "duration_seconds": row.duration_seconds,
        "downtime_seconds": row.downtime_seconds,
        "write_seconds": row.write_seconds,
        "prove_seconds": row.prove_seconds,
        "error": row.error,
        "error_code": row.error_code,
        "attempt": row.attempt,
        "retry_at": _time(row.retry_at),
        "warnings": list(row.warnings),
    }


def drive(told: Drive) -> DriveJson:
    return {
        "called": told.called,
        "name": told.name,
        "label": told.label,
        "fs_uuid": told.fs_uuid,
        "filesystem": told.filesystem,
        "size_bytes": told.size_bytes,
        "kept_at": told.kept_at,
        "trusted_at": _time(told.trusted_at),
        "first_seen_at": moment(told.first_seen_at),
        "last_seen_at": moment(told.last_seen_at),
        "last_copied_at": _time(told.last_copied_at),
        "copies": told.copies,
    }


def coverage(told: Coverage | None) -> CoverageJson | None:
    if told is None:
        return None
    return {
        "every_days": told.every_days,
        "total_bytes": told.total_bytes,
        "read_bytes": told.read_bytes,
        "oldest_at": _time(told.oldest_at),
        "behind": told.behind,
    }


def drill(told: Drill) -> DrillJson:
    return {
        "drill_id": told.drill_id,
        "job": told.job,
        "backup": told.filename,
        "made_at": moment(told.made_at),
        "lay_at": told.lay_at,
        "outcome": told.outcome.value,
        "created_at": moment(told.created_at),
        "finished_at": _time(told.finished_at),
        "files": told.files,
        "size_bytes": told.size_bytes,
        "seconds": told.seconds,
        "problems": list(told.problems),
        "unchecked": list(told.unchecked),
        "whole_in": told.whole_in,
    }


def doubt(told: Doubt) -> DoubtJson:
    return {"source": told.source, "what": told.what.value, "before": told.before, "lost": told.lost}


def listed(told: Listed) -> ListedJson:
    there, made = told.backup, told.backup.manifest
    return {
        "name": there.name,
        "path": str(there.path),
        "created_at": there.created_at.isoformat(),
        "size_bytes": there.size_bytes,
        "taken_bytes": there.taken_bytes,
        "content_bytes": made.size_bytes if made else None,
        "files": made.files if made else None,
        "job": made.job if made else None,
        "host": made.host if made else None,
        "state": told.state,
        "pinned": there.pinned,
        "doubts": list(map(doubt, there.doubts)),
        "verified_at": _time(told.verified_at),
    }


def event(told: AuditEvent) -> EventJson:
    return {
        "event_id": told.event_id,
        "created_at": told.created_at.isoformat(),
        "host": told.host,
        "actor": told.actor,
        "origin": told.origin,
        "action": told.action,
        "subject": told.subject,
        "outcome": told.outcome,
    }


def moment(at: datetime) -> str:
    return at.astimezone(UTC).isoformat()


def activity(told: Activity) -> ActivityJson:
    at = told.progress
    return {
        "id": told.id,
        "what": told.what,
        "subject": told.subject,
        "actor": told.asker.actor,
        "origin": told.asker.origin,
        "begun_at": moment(told.begun_at),
        "progress": {
            "phase": at.phase.value,
            "done_bytes": at.done_bytes,
            "total_bytes": at.total_bytes,
            "files": at.files,
            "what": at.what,
        }
        if at
        else None,
        "step": told.step,
        "outcome": told.outcome.value if told.outcome else None,
        "ended_at": _time(told.ended_at),
    }


def planned(told: Planned) -> PlannedJson:
    return {
        "archive": str(told.backup.path),
        "sources": list(map(_step, told.steps)),
        "stops": list(told.stops),
        "left_out": list(told.left_out),
        "before_start": list(map(list, told.before_start)),
        "afterwards": list(map(list, told.afterwards)),
        "doubts": list(told.doubts),
        "hindrances": list(told.hindrances),
    }


def _step(told: Step) -> StepJson:
    return {
        "source": told.summary.name,
        "kind": told.summary.kind,
        "files": told.summary.files,
        "size_bytes": told.summary.size_bytes,
        "to": told.source.lives(),
        "replaces": list(told.replaces),
        "changed": list(told.changed),
        "room_bytes": told.unpacking.room_bytes,
        "free_bytes": told.unpacking.free_bytes,
        "taking": _taking(told.taking) if told.taking else None,
    }


def _taking(told: Taking) -> TakingJson:
    return {"where": told.where, "needed_bytes": told.needed_bytes, "free_bytes": told.free_bytes}


def restore(told: Restore) -> RestoreJson:
    return {"restore": told.stamp, "backup": told.backup, "state": told.state.value, "kept": kept(told)}


def kept(told: Restore) -> list[str]:
    """Where what a restore has replaced lies; names of databases too."""
    return [one.old for swaps in told.swaps.values() for one in swaps if not one.only_rights and one.had is not False]


def digest(told: Digest) -> dict[str, Any]:
    """What a report over some time says, by job."""
    return {
        "kind": told.kind.value,
        "since": moment(told.since),
        "until": moment(told.until),
        "history_away": told.history_away,
        "jobs": {part.job: _part(part) for part in told.jobs},
        "errors": list(map(run, told.errors)),
    }


def found(pattern: str, told: Found) -> dict[str, Any]:
    """What was found of a file, version by version."""
    return {
        "pattern": pattern,
        "any_case": told.any_case,
        "more": told.more,
        "found": [
            {
                "path": f.path,
                "host": f.host or None,
                "job": f.job or None,
                "in_newest": f.in_newest,
                "versions": [
                    {
                        "type": v.type,
                        "size_bytes": v.size_bytes,
                        "mtime_ns": v.mtime_ns,
                        "sha256": v.sha256,
                        "link": v.link,
                        "backups": [str(b.path) for b in v.backups],
                    }
                    for v in f.versions
                ],
            }
            for f in told.findings
        ],
        "unread": [{"path": str(b.path), "why": why} for b, why in told.unread],
    }


def _part(part: JobPart) -> dict[str, Any]:
    told = asdict(part)
    del told["job"]
    return told | {"last_good_at": _time(part.last_good_at)}


def _run(row: Run | None) -> RunJson | None:
    return run(row) if row else None


def _copying(told: Copying | None) -> CopyingJson | None:
    if told is None:
        return None
    at = told.progress
    return {
        "drive": told.called,
        "phase": at.phase.value,
        "done_bytes": at.done_bytes,
        "total_bytes": at.total_bytes,
    }


def _source(summary: SourceSummary) -> SourceJson:
    return {
        "name": summary.name,
        "kind": summary.kind,
        "files": summary.files,
        "size_bytes": summary.size_bytes,
        "newest_mtime": _time(summary.newest_mtime),
    }


def _time(at: datetime | None) -> str | None:
    return moment(at) if at else None

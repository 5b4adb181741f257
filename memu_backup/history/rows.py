"""A run as a row and as a line of JSON, and back, so that nothing is lost on the way, odd file names included."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from dataclasses import asdict, fields
from datetime import datetime
from pathlib import Path
from typing import Any

from memu_backup.history.schema import Connection
from memu_backup.model import AuditEvent, Drill, Drive, Run, Status, Tried, Trigger

log = logging.getLogger(__name__)

Note = Run | AuditEvent | Drive | Drill
"""What is written down: in Postgres a row, in the spool a file."""

_RUN = tuple(f.name for f in fields(Run))
_AUDIT = tuple(f.name for f in fields(AuditEvent))
_DRIVE = tuple(f.name for f in fields(Drive))
_DRILL = tuple(f.name for f in fields(Drill))
_SHAPES: dict[type[Note], tuple[tuple[str, ...], str, str]] = {
    Run: (_RUN, "backup_history", "run_id"),
    AuditEvent: (_AUDIT, "backup_audit", "event_id"),
    Drive: (_DRIVE, "backup_drives", "drive_id"),
    Drill: (_DRILL, "backup_drills", "drill_id"),
}
"""Fields, table and key of each."""
_KINDS: dict[type[Note], str] = {Run: "run", AuditEvent: "audit", Drive: "drive", Drill: "drill"}
"""What each is called in a line of JSON, and in the spool."""
_CHANGED = {
    "notification_sent": "EXCLUDED.notification_sent OR (backup_history.notification_sent AND "
    "(backup_history.status, backup_history.error_code) IS NOT DISTINCT FROM (EXCLUDED.status, EXCLUDED.error_code))"
}
"""Who read a row before somebody was told of it, and writes it back after, must not make it a debt again."""
_TIMES = {"created_at", "finished_at", "verified_at", "usb_copied_at", "deleted_at", "retry_at"} | {
    "first_seen_at",
    "last_seen_at",
    "trusted_at",
    "last_copied_at",
    "made_at",
}
_NEEDED_TIMES = {"created_at", "first_seen_at", "last_seen_at", "made_at"}
_LISTS = {"warnings", "problems", "unchecked"}
"""Sentences; an array of JSON in a column."""

# Postgres takes neither NUL nor the surrogates that stand for bytes of a file name. They become \x00 and \udcff, and
# a backslash that would read as one of these becomes \x5c, so that the way back is exact.
_MOST_NEWS = 1000
_UNFIT = re.compile("[\x00\ud800-\udfff]|\\\\(?=ud[89a-f]|x00|x5c)")
_ESCAPED = re.compile(r"\\(?:x(00|5c)|u(d[89a-f][0-9a-f]{2}))")


def to_json(note: Note, *, indent: int | None = 1) -> bytes:
    """One object with the key that ``kind_of`` tells; ASCII, times in ISO 8601 with their offset."""
    return json.dumps({_KINDS[type(note)]: asdict(note)}, default=datetime.isoformat, indent=indent).encode()


def from_json(content: bytes) -> Note:
    """The way back. Fields that are not there keep their defaults, unknown ones are passed over.

    Raises ValueError, KeyError or TypeError for anything that is not what ``to_json`` writes.
    """
    found = json.loads(content)
    kind = next((kind for kind, name in _KINDS.items() if name in found), AuditEvent)
    note = _note(kind, found[_KINDS[kind]])
    key_of(note)
    return note


def key_of(note: Note) -> str:
    """That of its row. Raises TypeError for none."""
    key = getattr(note, _SHAPES[type(note)][2])
    if not isinstance(key, str):
        raise TypeError(key)
    return key


def kind_of(note: Note) -> str:
    """``run``, ``audit``, ``drive`` or ``drill``."""
    return _KINDS[type(note)]


async def write(connection: Connection, note: Note) -> None:
    """Insert a note, or replace the row that has its ``run_id`` or ``event_id``. Lets asyncpg's errors through."""
    names, table, key = _SHAPES[type(note)]
    places = ", ".join(f"${number}" for number in range(1, len(names) + 1))
    changes = ", ".join(f"{name} = {_CHANGED.get(name, f'EXCLUDED.{name}')}" for name in names if name != key)
    await connection.execute(
        f"INSERT INTO {table} ({', '.join(names)}) VALUES ({places}) "  # noqa: S608  names of our own fields
        f"ON CONFLICT ({key}) DO UPDATE SET {changes}",
        *(_to_column(getattr(note, name)) for name in names),
    )


def misfits() -> tuple[type[Exception], ...]:
    """What asyncpg raises where a row itself is to blame: a value out of its bounds, or too long for an index."""
    from asyncpg import DataError, IntegrityConstraintViolationError, ProgramLimitExceededError

    return DataError, IntegrityConstraintViolationError, ProgramLimitExceededError


async def add(connection: Connection, notes: Sequence[Note]) -> tuple[set[str], int]:
    """Insert those that have no row yet, and return their keys; no row that is there changes.

    Those that Postgres does not take are logged, left out and counted. Lets asyncpg's other errors through; the caller
    has begun a transaction.
    """
    if not notes:
        return set(), 0
    await connection.execute("SAVEPOINT before")
    try:
        added, refused = await _insert(connection, notes), 0
    except misfits() as error:
        await connection.execute("ROLLBACK TO SAVEPOINT before")
        half = len(notes) // 2
        if half:
            added, refused = await add(connection, notes[:half])
            more, others = await add(connection, notes[half:])
            added, refused = added | more, refused + others
        else:
            added, refused = set(), 1
            log.warning("The history takes no row for %s, which is left out: %s.", _name(notes[0]), error.args[0])
    await connection.execute("RELEASE SAVEPOINT before")
    return added, refused


def _name(note: Note) -> str:
    match note:
        case Run():
            return f"the backup {note.filename}"
        case Drive():
            return f"the drive {note.fs_uuid}"
        case Drill():
            return f"the restore test of {note.filename}"
        case AuditEvent():
            return f"the event {note.action} {note.subject}"


async def _insert(connection: Connection, notes: Sequence[Note]) -> set[str]:
    added: set[str] = set()
    for kind, (names, table, key) in _SHAPES.items():
        mine = [note for note in notes if isinstance(note, kind)]
        content = [{name: _to_json(getattr(note, name)) for name in names} for note in mine]
        columns = ", ".join(names)
        records = await connection.fetch(
            f"INSERT INTO {table} ({columns}) "  # noqa: S608  names of our own fields
            f"SELECT {columns} FROM jsonb_populate_recordset(NULL::{table}, $1::jsonb) "
            f"ON CONFLICT ({key}) DO NOTHING RETURNING {key}",
            json.dumps(content, default=datetime.isoformat),
        )
        added |= {from_text(record[0]) for record in records}
    return added


async def everything(connection: Connection, batch: int) -> AsyncIterator[list[Note]]:
    """All rows as they are at one moment, ``batch`` at a time, each table in the order of its rows.

    Lets asyncpg's errors through; the caller then ends the connection.
    """
    await connection.execute("BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY")
    orders = {
        Run: "id",
        AuditEvent: "created_at, event_id",
        Drive: "first_seen_at, drive_id",
        Drill: "created_at, drill_id",
    }
    for kind, (names, table, _) in _SHAPES.items():
        order = orders[kind]
        await connection.execute(
            f"DECLARE all_rows CURSOR FOR SELECT {', '.join(names)} FROM {table} ORDER BY {order}"  # noqa: S608
        )
        while records := await connection.fetch(f"FETCH {batch} FROM all_rows"):
            yield [_note(kind, _from_columns(record)) for record in records]
        await connection.execute("CLOSE all_rows")
    await connection.execute("COMMIT")


async def read_runs(
    connection: Connection,
    host: str | None,
    job: str | None,
    limit: int | None,
    called: Collection[str] | None,
    directory: Path | None = None,
) -> list[Run]:
    """Newest first; ``called`` are run ids and file names, ``directory`` is that of ``lies_in``.

    Lets asyncpg's errors through.
    """
    records = await connection.fetch(
        f"SELECT {', '.join(_RUN)} FROM backup_history "  # noqa: S608  names of our own fields
        "WHERE ($1::text IS NULL OR host = $1) AND ($2::text IS NULL OR job = $2) "
        "AND ($3::text[] IS NULL OR run_id = ANY ($3) OR filename = ANY ($3)) "
        "AND ($5::text IS NULL OR location = '' OR "
        "left(location, length($5)) = $5 AND strpos(substr(location, length($5) + 1), '/') = 0) "
        "ORDER BY created_at DESC, id DESC LIMIT $4",
        host,
        job,
        None if called is None else [to_text(text) for text in called],
        limit,
        None if directory is None else to_text(_with_slash(directory)),
    )
    return [_run(_from_columns(record)) for record in records]


async def read_origins(connection: Connection) -> set[tuple[str, str]]:
    """Each host with each of its jobs. Lets asyncpg's errors through."""
    records = await connection.fetch("SELECT DISTINCT host, job FROM backup_history")
    return {(from_text(record["host"]), from_text(record["job"])) for record in records}


async def read_news(connection: Connection, host: str) -> list[Run]:
    """See ``News.rows``. Lets asyncpg's errors through."""
    records = await connection.fetch(
        f"SELECT {', '.join(_RUN)} FROM backup_history WHERE host = $1 AND ("  # noqa: S608  names of our own fields
        "status = 'in_progress' OR "
        "(status IN ('failed', 'partial') AND retry_at IS NULL AND NOT notification_sent) OR id IN "
        "(SELECT DISTINCT ON (job, regexp_replace(location, '[^/]*$', '')) id FROM backup_history WHERE host = $1 "
        "ORDER BY job, regexp_replace(location, '[^/]*$', ''), created_at DESC, id DESC)) "
        "ORDER BY created_at DESC LIMIT $2",
        to_text(host),
        _MOST_NEWS,
    )
    return [_run(_from_columns(record)) for record in records]


async def mark_told(connection: Connection, runs: Sequence[Run]) -> None:
    """Only rows that still say what was told. Lets asyncpg's errors through; the caller has begun a transaction."""
    await connection.execute(
        "UPDATE backup_history AS row SET notification_sent = TRUE "
        "FROM unnest($1::text[], $2::text[], $3::text[]) AS told (run_id, status, error_code) "
        "WHERE row.run_id = told.run_id AND row.status = told.status "
        "AND row.error_code IS NOT DISTINCT FROM told.error_code AND NOT row.notification_sent",
        [to_text(run.run_id) for run in runs],
        [run.status.value for run in runs],
        [run.error_code and to_text(run.error_code) for run in runs],
    )


async def count_stored(connection: Connection, job: str | None, without: list[str]) -> int:
    """Rows of backups that are stored (``is_stored``), leaving out some run ids. Lets asyncpg's errors through."""
    count = await connection.fetchval(
        "SELECT count(*) FROM backup_history WHERE status IN ('success', 'partial') AND deleted_at IS NULL "
        "AND ($1::text IS NULL OR job = $1) AND run_id <> ALL ($2::text[])",
        job,
        without,
    )
    return int(count)


def is_stored(run: Run) -> bool:
    """Whether a backup of this run should lie there: successful or partial, and not deleted since."""
    return run.status in (Status.SUCCESS, Status.PARTIAL) and run.deleted_at is None


def lies_in(run: Run, directory: Path) -> bool:
    """Whether its backup lies, or was to lie, in that very folder. A row without a location is everybody's."""
    folder = _with_slash(directory)
    return not run.location or (run.location.startswith(folder) and "/" not in run.location[len(folder) :])


def _with_slash(directory: Path) -> str:
    return f"{str(directory).rstrip('/')}/"


async def read_audit(connection: Connection, limit: int) -> list[AuditEvent]:
    """Newest first. Lets asyncpg's errors through."""
    records = await connection.fetch(
        f"SELECT {', '.join(_AUDIT)} FROM backup_audit ORDER BY created_at DESC LIMIT $1",  # noqa: S608
        limit,
    )
    return [AuditEvent(**_from_columns(record)) for record in records]


async def read_drives(connection: Connection, host: str) -> list[Drive]:
    """Those that ``host`` knows, the one seen last first. Lets asyncpg's errors through."""
    records = await connection.fetch(
        f"SELECT {', '.join(_DRIVE)} FROM backup_drives WHERE host = $1 "  # noqa: S608
        "ORDER BY last_seen_at DESC, drive_id",
        to_text(host),
    )
    return [Drive(**_from_columns(record)) for record in records]


async def read_drills(connection: Connection, host: str, limit: int) -> list[Drill]:
    """Those of ``host``, newest first. Lets asyncpg's errors through."""
    records = await connection.fetch(
        f"SELECT {', '.join(_DRILL)} FROM backup_drills WHERE host = $1 "  # noqa: S608
        "ORDER BY created_at DESC, drill_id LIMIT $2",
        to_text(host),
        limit,
    )
    return [_drill(_from_columns(record)) for record in records]


def _to_json(value: Any) -> Any:
    return [to_text(item) for item in value] if isinstance(value, tuple) else _to_column(value)


def _to_column(value: Any) -> Any:
    if isinstance(value, tuple):
        return json.dumps([to_text(item) for item in value])
    return to_text(value) if isinstance(value, str) else value


def _from_columns(record: Mapping[str, Any]) -> dict[str, Any]:
    row = {name: from_text(value) if isinstance(value, str) else value for name, value in record.items()}
    for name in _LISTS & row.keys():
        row[name] = [from_text(item) for item in json.loads(record[name])]
    return row


def to_text(text: str) -> str:
    return _UNFIT.sub(lambda m: f"\\x{ord(m[0]):02x}" if ord(m[0]) < 256 else f"\\u{ord(m[0]):04x}", text)


def from_text(text: str) -> str:
    return _ESCAPED.sub(lambda m: chr(int(m[1] or m[2], 16)), text)


def _run(row: Mapping[str, Any]) -> Run:
    values = {name: _value(name, row[name]) for name in _RUN if name in row}
    values["trigger"] = Trigger(row["trigger"])
    values["warnings"] = tuple(map(str, row.get("warnings", ())))
    try:
        values["status"] = Status(row["status"])
    except ValueError:
        # Only a row older than our CHECK can say so. What is not known to be good does not count as good.
        values["status"] = Status.FAILED
        values["error"] = row["error"] or f"The history calls this run “{row['status']}”, which says nothing to us."
    return Run(**values)


def _note(kind: type[Note], row: Mapping[str, Any]) -> Note:
    if kind is Run:
        return _run(row)
    if kind is Drill:
        return _drill(row)
    return kind(**{n: _value(n, row[n]) for n in _SHAPES[kind][0] if n in row})


def _drill(row: Mapping[str, Any]) -> Drill:
    values = {n: _value(n, row[n]) for n in _DRILL if n in row}
    return Drill(**{**values, "outcome": Tried(row["outcome"])})


def _value(name: str, value: Any) -> Any:
    if name in _LISTS:
        return tuple(map(str, value))
    if name not in _TIMES or (value is None and name not in _NEEDED_TIMES):
        return value
    moment = value if isinstance(value, datetime) else datetime.fromisoformat(value)
    if moment.tzinfo is None:
        raise ValueError(f"{name} has no time zone")
    return moment

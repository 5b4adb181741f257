"""Commands that only look: status, list, show, log."""

from __future__ import annotations

import sys
from datetime import UTC
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.cli.shell import (
    EXIT_FAILED,
    BackupName,
    Json,
    app,
    command,
    find,
    manager_unless_file,
    the_manager,
)
from memu_backup.model import ReportKind

if TYPE_CHECKING:
    from datetime import tzinfo

    from memu_backup.catalog import Listed
    from memu_backup.formats.index import Entry
    from memu_backup.model import Backup, Manifest


@app.command()
@command
async def status(
    everywhere: Annotated[bool, typer.Option("--all", help="Also of other machines that share the history.")] = False,
    details: Annotated[bool, typer.Option("--details", help="Also what is in the last good backup.")] = False,
    brief: Annotated[
        bool, typer.Option("--brief", help="A few keys as JSON, all jobs of this machine in one.")
    ] = False,
    json: Json = False,
) -> int:
    """Is everything safe? Exit status 1 when it is not."""
    from memu_backup import as_json, console, words
    from memu_backup import brief as briefly
    from memu_backup.clock import now
    from memu_backup.errors import HistoryAway
    from memu_backup.model import Health
    from memu_backup.sources import told

    away = ""
    async with the_manager() as manager:
        host, zone, off = manager.config.host, manager.config.zone, manager.config.off
        mine = await (manager.standing.reports_in_full() if details or json else manager.standing.reports())
        in_brief = briefly.brief(manager.config, mine) if brief else None
        reports = {(host, job): report for job, report in mine.items()}
        try:
            reports |= await manager.standing.elsewhere() if everywhere else {}
        except HistoryAway as error:
            away = f"Of other machines nothing can be told: {error}"
    if brief:
        console.print_json(in_brief)
    elif json and everywhere:
        hosts = dict.fromkeys(host for host, _ in reports)
        console.print_json({h: {job: as_json.report(r) for (on, job), r in reports.items() if on == h} for h in hosts})
    elif json:
        console.print_json({job: as_json.report(report) for (_, job), report in reports.items()})
    for (on, job), report in reports.items() if not (json or brief) else ():
        if everywhere or len(reports) > 1:
            console.say(f"{job} on {on}:" if everywhere else f"{job}:")
        console.say(words.status_message(report, now(), zone))
        for line in words.details(report, told, now(), zone) if details else ():
            console.say(f"  {line}")
    for sentence in filter(None, (away, off)):
        console.complain(sentence)
    return EXIT_FAILED if away or off or any(r.health is not Health.HEALTHY for r in reports.values()) else 0


@app.command()
@command
async def report(
    kind: Annotated[
        ReportKind, typer.Argument(help="The last day, the week's space, the month, or what went wrong.")
    ] = ReportKind.DAILY,
    json: Json = False,
) -> None:
    """A report: daily, weekly, monthly or errors."""
    from memu_backup import as_json, console, digest

    async with the_manager() as manager:
        told = await manager.standing.digest(kind)
        zone, off = manager.config.zone, manager.config.off
    if json:
        console.print_json(as_json.digest(told))
    else:
        console.say(digest.text(told, zone))
    if off:
        console.complain(off)


@app.command("list")
@command
async def list_backups(json: Json = False) -> None:
    """The backups that are stored, newest first."""
    from memu_backup import as_json, console, words
    from memu_backup.clock import now

    async with the_manager() as manager:
        stored = await manager.listing()
        zone, none = manager.config.zone, None if stored else str(await manager.none_yet())
    if json:
        console.print_json([as_json.listed(s) for s in stored])
        return
    if none:
        console.say(none)
        return
    made_by = [_made_by(s) for s in stored]
    several = len(set(made_by)) > 1
    shares = any(s.backup.manifest and s.backup.manifest.shared_bytes for s in stored)
    console.table(
        (
            "Backup",
            "Made",
            "Size",
            *(("New on disk",) if shares else ()),
            "Files",
            "State",
            *(("Made by",) if several else ()),
        ),
        [
            (
                s.backup.name,
                words.moment(s.backup.created_at, now(), zone),
                words.size(s.backup.size_bytes),
                *((words.size(s.backup.taken_bytes),) if shares else ()),
                f"{s.backup.manifest.files:,}" if s.backup.manifest else "?",
                f"{s.state}, pinned" if s.backup.pinned else s.state,
                *((by,) if several else ()),
            )
            for s, by in zip(stored, made_by, strict=True)
        ],
        right=(2, 3, 4) if shares else (2, 3),
    )


def _made_by(listed: Listed) -> str:
    """Told where a folder holds the backups of several jobs or machines."""
    made = listed.backup.manifest
    return f"{made.job} on {made.host}" if made else "?"


@app.command()
@command
async def show(
    backup: BackupName = "latest",
    files: Annotated[bool, typer.Option("--files", help="Also every file in it.")] = False,
    json: Json = False,
) -> None:
    """What a backup holds."""
    from memu_backup import console
    from memu_backup.errors import DamagedArchive
    from memu_backup.formats.reader import is_own
    from memu_backup.restore import about
    from memu_backup.work import Stop

    async with manager_unless_file(backup) as manager:
        store, there = await find(manager, backup)
        zone = manager.config.zone if manager else None
    try:
        with store.open(there.path, Stop()) as reader:
            made = reader.manifest()
            entries = [e for e in reader.index() if not is_own(e.path, made)] if files or made is None else []
    except DamagedArchive as error:
        raise about(there.name, error) from error
    if json:
        console.print_json(_content_as_json(there, made, entries if files or made is None else None))
        return
    if made:
        _show_manifest(there, made, zone)
    _show_entries(entries)


def _content_as_json(there: Backup, made: Manifest | None, entries: list[Entry] | None) -> dict[str, Any]:
    from memu_backup import as_json
    from memu_backup.formats import manifest

    document: dict[str, Any] = {
        "path": str(there.path),
        "pinned": there.pinned,
        "doubts": [as_json.doubt(doubt) for doubt in there.doubts],
        "metadata": manifest.document(made) if made else None,
    }
    if entries is not None:
        document["files"] = [
            {
                "path": e.path,
                "type": e.type,
                "size_bytes": e.size_bytes,
                "mtime_ns": e.mtime_ns,
                "link": e.link,
                "sha256": e.sha256,
            }
            for e in entries
        ]
    return document


def _show_manifest(there: Backup, made: Manifest, zone: tzinfo | None) -> None:
    from memu_backup import console, crosscheck, words
    from memu_backup.clock import now

    # Without settings, by the clock of the machine that we are on.
    when = words.moment(made.created_at, now(), zone or made.created_at.astimezone().tzinfo or UTC)
    pinned = "; pinned, so it stays" if there.pinned else ""
    console.say(f"{there.name}: {when}, on {made.host}, by job {made.job}{pinned}")
    if there.doubts:
        console.say(f"It looks wrong: {words.doubted(there.doubts)}. If it is as it should be: memu-backup accept")
    console.table(
        ("Source", "Place", "Files", "Size", "How"),
        [(s.name, s.place, f"{s.files:,}", words.size(s.size_bytes), s.consistency) for s in made.sources],
        right=(2, 3),
    )
    for source in made.sources:
        for sentence in filter(None, (*source.missing, *source.warnings, crosscheck.sentence(source))):
            console.say(f"  {sentence}")


def _show_entries(entries: list[Entry]) -> None:
    from memu_backup import console, words
    from memu_backup.files import shown
    from memu_backup.formats.tar import Type

    for entry in entries:
        # Cut to bearable length on a terminal; whole in a pipe, for grep and --path.
        path = shown(entry.path) if sys.stdout.isatty() else entry.path.replace("\n", "\N{REPLACEMENT CHARACTER}")
        size = words.size(entry.size_bytes) if entry.type is Type.FILE else ""
        link = f" -> {shown(entry.link)}" if entry.link else ""
        console.say(f"{size:>9}  {path}{'/' if entry.type is Type.DIRECTORY else link}")


@app.command()
@command
async def log(
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many at most.")] = 50, json: Json = False
) -> None:
    """Who did what, and when."""

    from memu_backup import as_json, console, words
    from memu_backup.clock import now

    async with the_manager() as manager:
        events = await manager.history.audit_log(limit)
        zone = manager.config.zone
    if json:
        console.print_json([as_json.event(e) for e in events])
        return
    if not events:
        console.say("Nothing has been done yet.")
        return
    several = len({e.host for e in events}) > 1
    console.table(
        ("When", *(("Machine",) if several else ()), "Who", "From", "What", "Outcome"),
        [
            (
                words.moment(e.created_at, now(), zone),
                *((e.host,) if several else ()),
                e.actor,
                e.origin,
                f"{e.action} {e.subject}".strip(),
                e.outcome,
            )
            for e in events
        ],
    )

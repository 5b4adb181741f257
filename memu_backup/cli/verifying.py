"""The command that proves what is stored: verify."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.cli.shell import EXIT_FAILED, BackupName, Json, app, command, find, manager_unless_file, the_manager
from memu_backup.errors import UsageError

if TYPE_CHECKING:
    from datetime import tzinfo

    from memu_backup.coverage import Stored
    from memu_backup.model import Coverage, Level
    from memu_backup.reread import Reread
    from memu_backup.stores import Verdict


@app.command()
@command
async def verify(
    backup: BackupName = "latest",
    level: Annotated[str, typer.Option("--level", help="quick (its index) or full (every byte).")] = "full",
    due: Annotated[bool, typer.Option("--due", help="Instead, what the service would re-read tonight.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="With --due: only say what that is.")] = False,
    json: Json = False,
) -> int:
    """Re-read a backup and compare it with what it says of itself. Exit status 1 unless all of it is good."""
    if due:
        if (backup, level) != ("latest", "full"):
            raise UsageError("--due says itself what is re-read, and how. Name no backup and no --level beside it.")
        return await _reread(dry_run=dry_run, json=json)
    if dry_run:
        raise UsageError("--dry-run goes with --due only: one backup that you name is simply re-read.")
    from memu_backup import console
    from memu_backup.anywhere import prove
    from memu_backup.audit import at_the_terminal

    depth = _level(level)
    async with manager_unless_file(backup) as manager:
        store, stored = await find(manager, backup)
        with console.progress() as on_progress:
            if manager:
                verdict = await manager.verify(store, stored, depth, at_the_terminal(), on_progress)
            else:
                verdict = await prove(store, stored, depth, on_progress)
    if json:
        console.print_json({"name": stored.name, **_verdict_as_json(verdict)})
    else:
        _tell_verdict(stored.name, verdict)
    return 0 if verdict.good else EXIT_FAILED


def _level(text: str) -> Level:
    import difflib

    from memu_backup.model import Level

    if text not in tuple(Level):
        close = difflib.get_close_matches(text, tuple(Level), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no level {text}; there are: {', '.join(Level)}.{hint}")
    return Level(text)


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "level": verdict.level,
        "good": verdict.good,
        "problems": verdict.problems,
        "unchecked": verdict.unchecked,
        "files": verdict.files,
        "content_bytes": verdict.content_bytes,
        "sha256": verdict.sha256,
    }


def _tell_verdict(name: str, verdict: Verdict) -> None:
    from memu_backup import console, words
    from memu_backup.model import Level

    if verdict.good:
        how = "every byte was read and is as it was written"
        if not verdict.compared:
            how = "its compression and its list are whole; it carries no checksums to compare with"
        elif verdict.level is Level.QUICK:
            how = "its index is whole"
        console.say(f"{name} is good: {words.files(verdict.files)}, {words.size(verdict.content_bytes)}; {how}.")
        return
    if not verdict.problems:
        console.complain(f"{name} could not be checked as a whole; every byte is as it was written, but:")
    else:
        console.complain(f"{name} is damaged:")
    for sentence in (*verdict.problems, *verdict.unchecked):
        bare = sentence.removeprefix(f"{name} is damaged: ")
        console.complain(f"  {bare[:1].upper() if bare != sentence else bare[:1]}{bare[1:]}")
    if verdict.problems:
        console.complain("Make a new backup with: memu-backup start. Then check the disk that holds this one.")


async def _reread(*, dry_run: bool, json: bool) -> int:
    """Re-read it, or only tell of it. Exit status 1 unless all of it is good."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        rereading, zone = manager.rereading, manager.config.zone
        due = await rereading.due()
        read: list[Reread] = []
        if not dry_run:
            with console.progress() as on_progress:
                read = await rereading.read(at_the_terminal(), on_progress)
        covered = await rereading.coverage()
    if json:
        _print_reread(due, read, covered)
    elif dry_run:
        _tell_due(due, zone)
    else:
        _tell_reread(read, covered, zone)
    return 0 if all(one.verdict.good for one in read) else EXIT_FAILED


def _print_reread(due: list[Stored], read: list[Reread], covered: Coverage | None) -> None:
    from memu_backup import as_json, console

    console.print_json(
        {
            "due": [
                {
                    "piece": s.piece.name,
                    "place": str(s.store.directory),
                    "size_bytes": s.piece.size_bytes,
                    "read_at": s.read_at.isoformat(),
                }
                for s in due
            ],
            "read": [{"piece": r.piece, "name": r.backup.name, **_verdict_as_json(r.verdict)} for r in read],
            "coverage": as_json.coverage(covered),
        }
    )


def _tell_due(due: list[Stored], zone: tzinfo) -> None:
    from memu_backup import console, words
    from memu_backup.clock import now

    if not due:
        console.say("Nothing has to be re-read tonight.")
        return
    console.table(
        ("What", "In", "Size", "Last read"),
        [
            (
                s.piece.name,
                str(s.store.directory),
                words.size(s.piece.size_bytes),
                words.moment(s.read_at, now(), zone),
            )
            for s in due
        ],
        right=(2,),
    )


def _tell_reread(read: list[Reread], covered: Coverage | None, zone: tzinfo) -> None:
    from memu_backup import console, words
    from memu_backup.clock import now

    for one in read:
        if not one.verdict.good:
            _tell_verdict(one.backup.name, one.verdict)
    pieces = {(one.backup.path.parent, one.piece) for one in read}
    bad = {(one.backup.path.parent, one.piece) for one in read if not one.verdict.good}
    if pieces:
        console.say(f"{len(pieces - bad):,} of {len(pieces):,} pieces that were re-read are as they were written.")
    else:
        console.say("Nothing has to be re-read tonight.")
    for line in words.covered(covered, now(), zone) if covered else ():
        console.say(line)

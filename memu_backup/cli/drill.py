"""The command that tries whether backups would come back: drill."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.cli.shell import EXIT_FAILED, EXIT_PARTIAL, Json, app, command, find, the_manager

if TYPE_CHECKING:
    from datetime import tzinfo

    from memu_backup.drills import Turn
    from memu_backup.manager import Manager
    from memu_backup.model import Backup, Drill
    from memu_backup.stores import Store

Named = Annotated[
    str | None,
    typer.Argument(help="A name, the beginning of one, latest, or a file; those whose turn it is.", metavar="BACKUP"),
]


@app.command()
@command
async def drill(
    backup: Named = None,
    scratch: Annotated[Path | None, typer.Option("--scratch", help="The folder to use for it.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be tried.")] = False,
    json: Json = False,
) -> int:
    """Bring a backup back to a scratch place and try it: every hash, every database. All of it is removed again.

    Exit status 1 where something did not come back, 3 where something could not be tried.
    """
    from memu_backup import as_json, console
    from memu_backup.audit import at_the_terminal
    from memu_backup.paths import absolute

    folder = absolute(scratch) if scratch else None
    async with the_manager() as manager:
        zone = manager.config.zone
        named = await find(manager, backup) if backup else None
        turns = [] if named else await _turns(manager)
        if dry_run:
            planned = (
                [await _planned(manager, *named, folder)]
                if named
                else [await _of_turn(manager, turn, folder) for turn in turns]
            )
            _tell_plans(planned, json=json)
            return 0
        done = []
        with console.progress() as on_progress:
            if named:
                ours = manager.is_ours(named[1].path)
                asker = at_the_terminal()
                done.append(await manager.drills.of(*named, asker, on_progress, ours=ours, folder=folder))
            for turn in turns:
                done.append(await manager.drills.carry_out(turn, at_the_terminal(), on_progress, folder=folder))
    if json:
        console.print_json([as_json.drill(row) for row in done])
    for row in done if not json else ():
        _tell(row, zone)
    return _exit_status(done)


async def _turns(manager: Manager) -> list[Turn]:
    """Raises UnknownBackup where there is no backup at all, StoreError."""
    manager.config.must_have_jobs()
    found = [turn for job in manager.config.jobs for turn in await manager.drills.turns(job)]
    if not found:
        raise await manager.none_yet()
    return found


async def _planned(manager: Manager, store: Store, backup: Backup, folder: Path | None) -> dict[str, Any]:
    from memu_backup import drill as drilling

    means = manager.drills.means(store if manager.is_ours(backup.path) else None, folder)
    planned = await drilling.plan(store, backup, means.folder / drilling.NAME)
    needed = drilling.needed_bytes(planned)
    told = {"folder": str(means.folder), "needed_bytes": needed, "free_bytes": planned.free_bytes}
    return {"backup": backup.name, "lies_at": str(backup.path.parent), "files": planned.files, **told}


async def _of_turn(manager: Manager, turn: Turn, folder: Path | None) -> dict[str, Any]:
    """Of one that lies on a drive alone what it takes is seen once that is mounted."""
    known = {"backup": turn.candidate.name, "lies_at": turn.candidate.lay_at, "job": turn.job}
    if turn.backup is None:
        return known
    return await _planned(manager, manager.store(manager.config.job(turn.job)), turn.backup, folder) | known


def _tell_plans(plans: list[dict[str, Any]], *, json: bool) -> None:
    from memu_backup import console, words

    if json:
        console.print_json(plans)
        return
    for plan in plans:
        where = f" from {words.the_drive(plan['lies_at'])}" if plan.get("job") and plan["lies_at"] else ""
        room = ""
        if "needed_bytes" in plan:
            room = (
                f" in {plan['folder']}, where about {words.size(plan['needed_bytes'])} are needed and "
                f"{words.size(plan['free_bytes'])} are free"
            )
        console.say(f"Would bring back and try {plan['backup']}{where}{room}. Nothing was changed.")


def _tell(row: Drill, zone: tzinfo) -> None:
    from memu_backup import console, words
    from memu_backup.clock import now
    from memu_backup.model import Tried

    if row.outcome is Tried.WHOLE:
        console.say(f"{row.filename}: {words.restore_test(row, now(), zone)}.")
    elif row.outcome is Tried.UNTRIED:
        console.complain(" ".join(row.problems))
    else:
        console.complain(f"Not all of {row.filename} comes back:")
        for problem in row.problems:
            console.complain(f"  {problem}")
        if row.whole_in:
            console.complain(f"It is whole in {row.whole_in}: memu-backup restore {row.whole_in}")
        else:
            console.complain("No other backup was found in which it is whole. Make a new one: memu-backup start")
    for sentence in row.unchecked:
        console.complain(f"  {sentence}")


def _exit_status(done: list[Drill]) -> int:
    from memu_backup.model import Tried

    if any(row.outcome is Tried.FAILED for row in done):
        return EXIT_FAILED
    return EXIT_PARTIAL if any(row.outcome is not Tried.WHOLE or row.unchecked for row in done) else 0

"""Commands that make backups, judge and keep them and let old ones go: run, start, accept, keep, clean."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memu_backup.cli.shell import (
    EXIT_FAILED,
    EXIT_PARTIAL,
    BackupName,
    JobName,
    Json,
    Yes,
    agreed,
    app,
    command,
    find,
    job_or_only,
    load,
    the_manager,
    took,
)
from memu_backup.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memu_backup.manager import Manager
    from memu_backup.model import Backup, Run
    from memu_backup.stores import Store


@app.command()
@command
async def run() -> None:
    """Run the service: backups at their time, until it is told to stop."""
    from memu_backup import daemon, logs

    settings = load()
    logs.configure(settings.log_file)
    await daemon.serve(settings)


@app.command()
@command
async def start(
    job: JobName = None,
    new_place: Annotated[
        bool, typer.Option("--new-place", help="Begin anew in a folder where older backups are missing.")
    ] = False,
    json: Json = False,
) -> int:
    """Make a backup now."""
    from memu_backup import as_json, console
    from memu_backup.audit import at_the_terminal
    from memu_backup.model import Status, Trigger

    gone: list[Backup] = []
    async with the_manager() as manager:
        name = job_or_only(manager.config, job, "start")
        with console.progress() as on_progress:
            row = await manager.back_up(
                name, Trigger.MANUAL, at_the_terminal(), on_progress, gone.append, new_place=new_place
            )
    if json:
        console.print_json(as_json.run(row))
    elif row.status is not Status.FAILED:  # why it failed was logged, and so is on the screen already
        _tell(row, gone)
    return {Status.FAILED: EXIT_FAILED, Status.PARTIAL: EXIT_PARTIAL}.get(row.status, 0)


def _tell(row: Run, gone: Sequence[Backup]) -> None:
    from memu_backup import console, words
    from memu_backup.model import Status

    console.say(
        f"{row.filename}: {words.files(row.files)}, {words.size(row.content_bytes)} in {words.size(row.size_bytes)}, "
        f"written and checked {took(row.duration_seconds or 0)}."
    )
    if gone:
        console.say(f"Removed {_count(gone)}, which newer ones replace: {', '.join(b.name for b in gone)}.")
    for warning in row.warnings:
        console.complain(f"  {warning}")
    if row.suspicious:
        console.complain(
            f"The backup looks wrong: {words.what_lacks(row)}. It is kept, and so are all older ones until this is "
            f"settled.\nIf it is as it should be, type: memu-backup accept {row.filename}"
        )
    elif row.status is Status.PARTIAL:
        console.complain("The backup is incomplete: what stands above is not in it. All the rest is.")


def _count(backups: Sequence[Backup]) -> str:
    from memu_backup import words

    number = f"{len(backups)} backup{'' if len(backups) == 1 else 's'}"
    return f"{number} ({words.size(sum(b.size_bytes for b in backups))})"


@app.command()
@command
async def accept(
    backup: Annotated[
        str | None,
        typer.Argument(help="A name, or the beginning of one; may be left out where one waits.", metavar="BACKUP"),
    ] = None,
    json: Json = False,
) -> None:
    """Say that a backup that looks wrong is as it should be; it counts as good from now on."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        accepted: list[Backup] = []
        found = await find(manager, backup) if backup else await _waiting(manager)
        if found:
            accepted = await manager.accept(*found, at_the_terminal())
    if json:
        console.print_json({"accepted": [b.name for b in accepted]})
    elif accepted:
        console.say(
            f"{' and '.join(b.name for b in accepted)} {'counts' if len(accepted) == 1 else 'count'} as good from now "
            "on; the next backups are compared with it."
        )
    else:
        console.say(
            f"{found[1].name} does not look wrong; nothing to do." if found else "No backup waits for an answer."
        )


async def _waiting(manager: Manager) -> tuple[Store, Backup] | None:
    """The backup that somebody is asked about. Raises UsageError where there are several."""
    runs = list((await manager.standing.waiting()).values())
    if len(runs) > 1:
        raise UsageError(f"Which backup? Name one of these: {', '.join(run.location for run in runs)}")
    return await manager.of_run(runs[0].run_id) if runs else None


@app.command()
@command
async def keep(
    backup: BackupName,
    release: Annotated[bool, typer.Option("--release", help="Let it go again, when its time comes.")] = False,
    json: Json = False,
) -> None:
    """Pin a backup: it stays, whatever retention says."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        store, there = await find(manager, backup)
        await manager.keep(store, there, at_the_terminal(), release=release)
    if json:
        console.print_json({"name": there.name, "pinned": not release})
    elif release:
        console.say(f"{there.name} is no longer pinned; it goes when its time comes.")
    else:
        console.say(f"{there.name} is pinned: it stays until you type: memu-backup keep --release {there.name}")


@app.command()
@command
async def clean(
    job: JobName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would go, and why.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Remove the backups that retention lets go."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        name = job_or_only(manager.config, job, "clean")
        decisions = await manager.clean(name, at_the_terminal(), dry_run=True)
        going = [d for d in decisions if not d.verdict.keep]
        if decisions and not json:
            rows = [("stays" if d.verdict.keep else "goes", d.backup.name, d.verdict.reason) for d in decisions]
            console.table(("", "Backup", "Why"), rows)
        if going and not dry_run:
            what = f"{_count([d.backup for d in going])} for good"
            refusal = f"This would remove {what}. Add --yes to do it, or --dry-run to look."
            if not yes:
                await agreed(f"Remove {what}?", refusal=refusal, json=json)
            agreed_to = [d.backup.name for d in going]
            decisions = await manager.clean(name, at_the_terminal(), dry_run=False, agreed=agreed_to)
            gone = [d.backup for d in decisions if not d.verdict.keep]
    if json:
        console.print_json(
            [{"name": d.backup.name, "keep": d.verdict.keep, "reason": d.verdict.reason} for d in decisions]
        )
    elif not going:
        console.say("Nothing has to go.")
    elif dry_run:
        console.say("Nothing was removed; this was a dry run.")
    else:
        console.say(f"Removed {_count(gone)} for good." if gone else "Nothing had to go any more.")
    return 0

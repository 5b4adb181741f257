"""The command that brings things back: restore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from memu_backup.cli.shell import Json, Yes, app, command
from memu_backup.errors import UsageError
from memu_backup.files import shown


@app.command()
@command
async def restore(
    backup: Annotated[
        str | None,
        typer.Argument(help="A name, the beginning of one, latest, or a file; latest unless given.", metavar="BACKUP"),
    ] = None,
    source: Annotated[
        list[str] | None, typer.Option("--source", "-s", help="Only this source; may be repeated.")
    ] = None,
    path: Annotated[
        list[str] | None, typer.Option("--path", "-p", help="Only this file, folder or glob; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder to restore to; a new one here unless given.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Back to where it lives. What is there is kept until it is released.")
    ] = False,
    undo: Annotated[bool, typer.Option("--undo", help="Have all as it was before the last --in-place.")] = False,
    resume: Annotated[bool, typer.Option("--resume", help="Finish an --in-place that was interrupted.")] = False,
    release: Annotated[
        bool, typer.Option("--release", help="Remove for good what each --in-place has replaced.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Also bring back special rights (setuid) from a file that does not lie in the backup folder.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Give back a file, a source or everything: into a folder, or with --in-place to where it lives, where services are
    stopped for moments and what is there is kept.

    With nothing said it asks step by step, on a terminal. Of a damaged backup it gives what can be read, names the
    rest, and ends with exit status 3.
    """
    from memu_backup import console

    told = (backup, source, path, to, in_place, undo, resume, release, overwrite, trust, dry_run, yes, json)
    if not any(told) and console.watched():
        from memu_backup.cli.asking import converse

        return await converse()
    backup = backup or "latest"
    if undo or resume or release:
        if sum((undo, resume, release)) > 1 or in_place or path or to or overwrite or trust or source:
            raise UsageError("--undo, --resume and --release each go alone, with --yes, --dry-run and --json at most.")
        if dry_run and not release:
            raise UsageError(
                f"{'--undo' if undo else '--resume'} has no --dry-run; nothing was changed. What it is about says: "
                "memu-backup restore --release --dry-run"
            )
        if backup != "latest":
            raise UsageError(
                f"--undo, --resume and --release are about what was put back last and take no backup, so "
                f"{shown(backup)} is too much; nothing was changed. To put it back, type it with --in-place."
            )
        from memu_backup.cli import in_place as afterwards

        if release:
            return await afterwards.release(None, dry_run=dry_run, yes=yes, json=json)
        return await (afterwards.undo(None, json=json) if undo else afterwards.resume(json=json))
    if in_place:
        if path or to or overwrite or trust:
            raise UsageError(
                "--in-place puts whole sources back to where they live, and goes with --source, --dry-run, --yes and "
                "--json only. For anything else leave it out, and name a folder with --to."
            )
        from memu_backup.cli.in_place import put_back

        return await put_back(backup, source or [], dry_run=dry_run, yes=yes, json=json)
    from memu_backup.cli.to_folder import give_back

    return await give_back(
        backup, source or [], path or [], to, overwrite=overwrite, trust=trust, dry_run=dry_run, yes=yes, json=json
    )

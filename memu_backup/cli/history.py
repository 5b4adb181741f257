"""Commands about the record of what was done: history rebuild."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.cli.shell import Json, app, command, the_manager

if TYPE_CHECKING:
    from datetime import tzinfo

    from memu_backup.rebuild import Rebuilt

history_app = typer.Typer(help="The record of what was done.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(history_app, name="history")

_WHAT = {
    "added": "is added to the history",
    "completed": "is noted down as made; its run was killed before it could say so",
    "interrupted": "is noted down as failed; its run was killed",
    "gone": "is noted down as gone: it no longer lies there",
    "came_back": "is noted down as there again",
    "accepted": "is noted down as good: somebody said that it is as it should be",
}
_LEFT_OUT = "is left out: it does not tell what it is (another program made it, or it is damaged)"


@history_app.command("rebuild")
@command
async def rebuild(
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be written down.")] = False,
    json: Json = False,
) -> None:
    """Write down each backup that the history does not know, from what the backup says of itself."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        rebuilt = await manager.rebuild(at_the_terminal(), dry_run=dry_run)
        zone = manager.config.zone
    if json:
        console.print_json(_as_json(rebuilt, dry_run=dry_run))
        return
    _show(rebuilt, zone)
    for place in rebuilt.away:
        console.complain(f"{place} does not carry the mark of a place for backups: its disk is probably not mounted.")
    changed = len(rebuilt.changes)
    rows = f"{changed} row{'' if changed == 1 else 's'}"
    if not changed and rebuilt.away:
        console.say("What lies there is not known, so the history stays as it is. Mount it and type the same again.")
    elif not changed:
        console.say("Nothing was missing: the history knows every backup that tells of itself.")
    elif dry_run:
        console.say(f"Nothing was written; this was a dry run. Without --dry-run it writes {rows}.")
    else:
        console.say(f"Wrote {rows}; the backups themselves are as they were.")


def _show(rebuilt: Rebuilt, zone: tzinfo) -> None:
    from memu_backup import console, words
    from memu_backup.clock import now

    lines = [(c.run.filename, c.run.created_at, _WHAT[c.what.value]) for c in rebuilt.changes]
    lines += [(there.name, there.created_at, _LEFT_OUT) for there in rebuilt.left_out]
    if lines:
        shown = [(name, words.moment(made, now(), zone), what) for name, made, what in lines]
        console.table(("Backup", "Made", "What"), shown)


def _as_json(rebuilt: Rebuilt, *, dry_run: bool) -> dict[str, Any]:
    from memu_backup import as_json

    return {
        "dry_run": dry_run,
        "changes": [{"what": c.what.value, "location": c.run.location, **as_json.run(c.run)} for c in rebuilt.changes],
        "away": [str(place) for place in rebuilt.away],
        "left_out": [{"name": there.name, "location": str(there.path)} for there in rebuilt.left_out],
    }

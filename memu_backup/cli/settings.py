"""Commands about the settings: init, config show."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.cli.shell import Json, app, command, load
from memu_backup.errors import MemuError, UsageError

if TYPE_CHECKING:
    from memu_backup.draft import Draft

config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")


@app.command()
@command
async def init(
    preset: Annotated[str, typer.Option("--preset", help="The system to protect.")] = "memu",
    to: Annotated[Path, typer.Option("--to", help="The file to write.")] = Path("config.toml"),
    home: Annotated[
        Path | None, typer.Option("--home", help="The folder of that system; looked for unless given.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the file instead of writing it.")] = False,
    json: Json = False,
) -> None:
    """Look at this machine, write a first config.toml with comments, and say what was assumed and not found."""
    import sys

    from memu_backup import console
    from memu_backup.draft import draft, write
    from memu_backup.paths import absolute

    file = absolute(to)
    made = await draft(preset, absolute(_expanded(home)) if home else None, file.parent)
    told: list[str] = []
    if not dry_run:
        write(made.text, file)
        told = [f"Wrote {file}.", *_marked(file)]
    next_step = f"memu-backup {_named(to, file)}check"
    if json:
        console.print_json(_as_json(made, None if dry_run else str(file), told, next_step))
        return
    if dry_run:
        with console.saying():
            sys.stdout.write(made.text)
    say = console.complain if dry_run else console.say  # the file alone on stdout
    for line in (*made.looked, *told, *_told(made), "Now look at each line of it that says CHECK, then type:"):
        say(line)
    say(f"  {next_step}")


def _expanded(home: Path) -> Path:
    try:
        return home.expanduser()
    except RuntimeError as error:
        raise UsageError(f"{home.parts[0]} is the home folder of nobody on this machine.") from error


def _named(to: Path, file: Path) -> str:
    """The option with which a file is found that lies elsewhere than usual."""
    import shlex

    from memu_backup.config_file import SYSTEM_FILE

    return "" if to == Path("config.toml") or file == SYSTEM_FILE else f"--config {shlex.quote(str(to))} "


def _marked(file: Path) -> list[str]:
    """So that the first night is not refused. Whatever keeps us from it is no reason to fail: ``start`` marks too."""
    from memu_backup import config
    from memu_backup.clock import now
    from memu_backup.manager import places

    told = []
    try:
        settings = config.load(file)
        for store in places(settings):
            store.mark(settings.host, now())
            told.append(f"Marked {store.directory} as a place for backups.")
        told += [settings.off] if settings.off else []
    except MemuError as error:
        told.append(f"{error} Then make the first backup by hand, which marks the place: memu-backup start")
    return told


def _told(made: Draft) -> list[str]:
    told = []
    for title, values in (
        ("Found:", [v for v in made.values if v.known]),
        ("Assumed, as nothing here tells:", [v for v in made.values if not v.known]),
        ("Not in the backup:", made.left_out),
    ):
        named = (f"  {v.value}: {v.says}" if v.name == "left_out" else f"  {v.name}: {v.value}" for v in values)
        told += [title, *named] if values else []
    if made.not_found:
        told += ["Not found, or this user may not see it:", *(f"  {what}" for what in made.not_found)]
    return told


def _as_json(made: Draft, file: str | None, told: list[str], next_step: str) -> dict[str, Any]:
    from dataclasses import asdict

    document = asdict(made) | {"home": str(made.home), "file": file, "told": told, "next": next_step}
    if file:
        del document["text"]
    return document


@config_app.command("show")
@command
async def config_show(json: Json = False) -> None:
    """Every setting in effect, secrets masked."""
    from memu_backup import config_shown, console

    shown = config_shown.show(load())
    if json:
        console.print_json(shown)
        return
    for line in _flat(shown):
        console.say(line)


def _flat(tree: dict[str, Any], above: str = "") -> list[str]:
    lines = []
    for key, value in tree.items():
        if isinstance(value, dict) and value:
            lines += _flat(value, f"{above}{key}.")
        elif value is not None:
            lines.append(f"{above}{key} = {_written(value)}")
    return lines


def _written(value: Any) -> str:
    """As it would stand in the file."""
    import json

    return json.dumps(value, ensure_ascii=False, default=str)

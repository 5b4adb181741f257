"""Commands about the settings: init, config show."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from memu_backup.cli.shell import Json, app, command, load
from memu_backup.errors import MemuError

config_app = typer.Typer(help="Look at the settings.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(config_app, name="config")


@app.command()
@command
async def init(
    preset: Annotated[str, typer.Option("--preset", help="The system to protect.")] = "memu",
    to: Annotated[Path, typer.Option("--to", help="The file to write.")] = Path("config.toml"),
    home: Annotated[
        Path | None, typer.Option("--home", help="The folder of that system; the one of the file unless given.")
    ] = None,
) -> None:
    """Write a first config.toml with comments, and say what it names and is not there."""
    import shlex

    from memu_backup import console, presets
    from memu_backup.config_file import SYSTEM_FILE
    from memu_backup.paths import absolute

    file = absolute(to)
    missing = presets.write(preset, file, absolute(home.expanduser()) if home else file.parent)
    found = to == Path("config.toml") or file == SYSTEM_FILE
    console.say(f"Wrote {file}.")
    _mark_places(file)
    if missing:
        console.say("It names these, which are not there or cannot be seen; make them, or correct the file:")
    for path in missing:
        console.say(f"  {path}")
    console.say("Now look at each line of it that says CHECK, then type:")
    console.say(f"  memu-backup {'' if found else f'--config {shlex.quote(str(to))} '}check")


def _mark_places(file: Path) -> None:
    """So that the first night is not refused. Whatever keeps us from it is no reason to fail: ``start`` marks too."""
    from memu_backup import config, console
    from memu_backup.clock import now
    from memu_backup.manager import places

    try:
        settings = config.load(file)
        for store in places(settings):
            store.mark(settings.host, now())
            console.say(f"Marked {store.directory} as a place for backups.")
    except MemuError as error:
        console.say(f"{error} Then make the first backup by hand, which marks the place: memu-backup start")


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

"""Commands of the services that stand still for a backup: bring back what a killed one left down."""

from __future__ import annotations

import typer

from memu_backup.cli.shell import EXIT_FAILED, Json, app, command, the_manager

services_app = typer.Typer(help="What stands still for a backup.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(services_app, name="services")


@services_app.callback()
def _services() -> None:
    """Else Typer takes the only command for all there is."""


@services_app.command()
@command
async def recover(json: Json = False) -> int:
    """Start what a backup had stopped and did not start again; systemd calls this, too, where the service ends."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        back, problems = await manager.bring_back(at_the_terminal())
    if json:
        console.print_json({"running_again": back, "problems": problems})
    else:
        for name in back:
            console.say(f"{name} runs again.")
        for problem in problems:
            console.complain(problem)
        if not back and not problems:
            console.say("Nothing that a backup had stopped is down.")
    return EXIT_FAILED if problems else 0

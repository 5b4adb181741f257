"""Commands of the ways out that are not the chat: try them."""

from __future__ import annotations

import typer

from memu_backup.cli.shell import EXIT_FAILED, Json, app, command, load
from memu_backup.errors import UsageError

alerts_app = typer.Typer(help="Who is told where the chat cannot.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(alerts_app, name="alerts")


@alerts_app.callback()
def _alerts() -> None:
    """Else Typer takes the only command for all there is."""


@alerts_app.command()
@command
async def test(json: Json = False) -> int:
    """Send a test message by each fallback channel, now, and say which took it."""
    from memu_backup import console, messages
    from memu_backup.alerts import Notice
    from memu_backup.alerts.apprise import AppriseChannel

    settings = load()
    urls = settings.fallback_urls()
    if not urls:
        raise UsageError(
            "There is no fallback channel to be tried. Write one into "
            f'{settings.path}, such as: [alerts] fallback = ["ntfys://ntfy.example.org/family"]'
        )
    notice = Notice("test", messages.test(settings.host))
    outcomes = await AppriseChannel(urls).send_to_each(notice)
    if json:
        console.print_json([{"channel": o.name, "good": not o.problem, "problem": o.problem} for o in outcomes])
    for o in outcomes if not json else ():
        console.say(f" NO  {o.name}: {o.problem}" if o.problem else f" ok  {o.name}: took it")
    if all(not o.problem for o in outcomes):
        return 0
    if not json:
        console.complain("Mend what says NO, then type the same again. Backups are made all the same.")
    return EXIT_FAILED

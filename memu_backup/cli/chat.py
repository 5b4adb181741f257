"""Commands of the chat: sign the bot in, and try whether it works."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memu_backup.cli.shell import Json, app, command, load
from memu_backup.errors import ChatError, MemuError, UsageError

if TYPE_CHECKING:
    from memu_backup.checks import Finding
    from memu_backup.config import Config

_PATIENCE_S = 60.0
_RING_S = 5.0

chat_app = typer.Typer(help="The bot in the family's room.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(chat_app, name="chat")


@chat_app.command()
@command
async def login(
    homeserver: Annotated[str, typer.Option(help="Its address, such as https://matrix.example.org.")] = "",
    user: Annotated[str, typer.Option(help="The bot's account, such as @backup:example.org.")] = "",
    password_file: Annotated[
        Path | None, typer.Option(help="A file that holds its password; else it is asked for.")
    ] = None,
) -> None:
    """Sign the bot in, once; what is not given is asked for."""
    from memu_backup import bell, console
    from memu_backup.chat.account import Safe
    from memu_backup.chat.login import log_in
    from memu_backup.daemon import service_folder

    settings = load()
    if not console.interactive() and not (homeserver and user and password_file):
        raise UsageError(
            "Nobody is there to be asked. Give --homeserver, --user and --password-file; a password on the command "
            "line could be read by everybody on this machine."
        )
    homeserver = homeserver or console.ask("Homeserver (such as https://matrix.example.org): ")
    user = user or console.ask("The bot's account (such as @backup:example.org): ")
    password = _first_line(password_file) if password_file else console.ask("Its password: ", secret=True)
    account = await log_in(Safe(settings.state_dir), homeserver, user, password)
    with suppress(MemuError):  # a service that does not answer sees it by itself
        await bell.ask(service_folder(settings.state_dir), "chat login", _RING_S)
    console.say(f"{account.user_id} is signed in, and its account vouches for it.")
    lacking = []
    if not settings.backup_notification_room:
        lacking.append('  backup_notification_room = "!…"      (Element: room settings, Advanced)')
    if not settings.chat.admins:
        lacking.append('  [chat]\n  admins = ["@you:…"]               (who may invite it; it comes for nobody else)')
    if lacking:
        console.say("\n".join([f"Now write into {settings.path}:", *lacking]))
    room = f" {settings.backup_notification_room}" if settings.backup_notification_room else ""
    first = "Then start the service anew, and let" if lacking else "Let"
    console.say(f"{first} one of the admins invite {account.user_id} to the room{room}, unless it is there already.")
    console.say("To see whether it works, type: memu-backup chat test")


@chat_app.command()
@command
async def test(json: Json = False) -> None:
    """Say something in the family's room, and wait until it stands there."""
    from memu_backup import bell, console
    from memu_backup.chat.trial import trial
    from memu_backup.daemon import alone, service_folder

    settings = load()
    if not settings.backup_notification_room:
        raise UsageError(
            f"No room is set, so there is nothing to test. Write backup_notification_room into {settings.path}."
        )
    answer = await bell.ask(service_folder(settings.state_dir), "chat test", _PATIENCE_S)
    if answer is None:
        console.complain("The service does not run; the bot comes for this test alone …")
        with alone(settings.state_dir):
            told = dict(await trial(settings))
    elif "error" in answer:
        raise ChatError(answer["error"]["message"])
    else:
        told = answer["says"]
    if json:
        console.print_json(told)
        return
    readers = ", ".join(f"{who} ({_devices(count)})" for who, count in told["readers"].items())
    console.say(f"The message stands in the room {told['room']}; it took {told['seconds']:.1f} s.")
    console.say(f"It can be read by {readers}." if readers else "Nobody else is in the room yet: invite the family.")
    if not told["encrypted"]:
        console.say("The room is not encrypted: whoever runs the homeserver can read what is said there.")


def _devices(count: int) -> str:
    return f"{count} device{'' if count == 1 else 's'}"


def _first_line(file: Path) -> str:
    try:
        return file.read_text().partition("\n")[0]
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read, so nobody was signed in.") from error


def check(settings: Config) -> list[Finding]:
    """What ``check`` says of the chat, nothing where none is wanted. The homeserver is not asked."""
    from memu_backup.chat.account import Safe
    from memu_backup.checks import Finding

    room, admins = settings.backup_notification_room, settings.chat.admins
    try:
        account = Safe(settings.state_dir).account()
    except ChatError as error:
        return [Finding("chat", False, str(error))] if room or admins else []
    if not (account or room or admins):
        return []
    lacking = []
    if account is None:
        lacking.append("nobody is signed in, so nobody is answered or told there; type: memu-backup chat login")
    if not room:
        lacking.append("backup_notification_room is not set, so there is no room to be in")
    if not admins:
        lacking.append("[chat] admins names nobody, so nobody can invite the bot")
    if account is None or lacking:
        return [Finding("chat", False, "; ".join(lacking))]
    return [Finding("chat", True, f"{account.user_id} is signed in for {room}; may be invited by {', '.join(admins)}")]

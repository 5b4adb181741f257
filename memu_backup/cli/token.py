"""Commands for the tokens of programs that ask over HTTP: create, list, revoke."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from memu_backup.access import Role, Token
from memu_backup.cli.shell import Json, Yes, agreed, app, command, the_manager

if TYPE_CHECKING:
    from datetime import datetime

    from memu_backup.manager import Manager

token_app = typer.Typer(help="Tokens of programs that use the API.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(token_app, name="token")

_LONGEST_DAYS = 3650


@token_app.command()
@command
async def create(
    name: Annotated[str, typer.Argument(help="What it is for; the audit calls its program so.", metavar="NAME")],
    role: Annotated[
        Role, typer.Option("--role", help="viewer looks; operator also backs up and downloads; admin may do all.")
    ] = Role.VIEWER,
    days: Annotated[int, typer.Option("--days", min=1, max=_LONGEST_DAYS, help="How long it is good.")] = 90,
    json: Json = False,
) -> None:
    """Make a token. It is shown once, and kept nowhere: TOKEN=$(memu-backup token create NAME)."""
    from memu_backup import as_json, console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        made, secret = manager.access.create_token(name, role, days)
        await manager.note(at_the_terminal(), "token create", f"{made.name} ({made.role})", "done")
        hint = _not_listening(manager)
    if json:
        console.print_json({**as_json.token(made), "token": secret})
    else:
        console.say(secret)
        console.complain(f"It is good for {days} days, as {role}. Sent as: Authorization: Bearer …")
    if hint:
        console.complain(hint)


@token_app.command("list")
@command
async def list_tokens(json: Json = False) -> None:
    """The tokens that were made, newest first; not what they are."""
    from memu_backup import as_json, console, words
    from memu_backup.clock import now

    async with the_manager() as manager:
        tokens, zone = manager.access.tokens(), manager.config.zone
    if json:
        console.print_json([as_json.token(one) for one in tokens])
        return
    if not tokens:
        console.say("There is no token yet. To make one: memu-backup token create NAME")
        return
    console.table(
        ("Token", "Role", "State", "Made", "Used", "Id"),
        [
            (
                one.name,
                one.role,
                _state(one, now()),
                words.moment(one.created_at, now(), zone),
                words.moment(one.used_at, now(), zone) if one.used_at else "never",
                one.id,
            )
            for one in tokens
        ],
    )


@token_app.command()
@command
async def revoke(
    name: Annotated[str, typer.Argument(help="Its name, or its id.", metavar="NAME")],
    yes: Yes = False,
    json: Json = False,
) -> None:
    """Let a token be good for nothing from now on."""
    from memu_backup import as_json, console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        if not yes:
            refusal = f"This would revoke {name}: its program is let in no more. Add --yes to do it."
            await agreed(f"Revoke {name}, so that its program is let in no more?", refusal=refusal, json=json)
        revoked = manager.access.revoke(name)
        await manager.note(at_the_terminal(), "token revoke", revoked.name, "done")
    if json:
        console.print_json(as_json.token(revoked))
    else:
        console.say(f"{revoked.name} is let in no more.")


def _state(token: Token, at: datetime) -> str:
    return "revoked" if token.revoked_at else "expired" if at >= token.expires_at else "good"


def _not_listening(manager: Manager) -> str:
    if manager.config.web.enabled:
        return ""
    return f"Nobody listens yet: set enabled = true below [web] in {manager.config.path}, then restart the service."

"""The command that signs a person in: page."""

from __future__ import annotations

from typing import Annotated

import typer

from memu_backup.access import Role
from memu_backup.cli.shell import Json, app, command, the_manager


@app.command()
@command
async def page(
    role: Annotated[
        Role, typer.Option("--role", help="viewer looks; operator also backs up and downloads; admin may do all.")
    ] = Role.ADMIN,
    json: Json = False,
) -> None:
    """A link to the page in the browser. It signs in whoever opens it first, within ten minutes."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal
    from memu_backup.cli.checking import service
    from memu_backup.errors import UsageError

    async with the_manager() as manager:
        web = manager.config.web
        if not web.enabled:
            raise UsageError(
                f"The page is off. To have it, set enabled = true below [web] in {manager.config.path}, restart the "
                "service, and type this again."
            )
        asker = at_the_terminal()
        link = f"{web.address()}/enter?code={manager.access.new_link(asker.actor, role)}"
        await manager.note(asker, "page", f"a link for {role}", "done")
        runs = await service(manager.config)
    if json:
        console.print_json({"link": link, "role": role.value})
    else:
        console.say(link)
        console.complain(f"It signs in whoever opens it first, as {role}, within ten minutes.")
    if not runs.good:
        console.complain(f"The service {runs.says}")

"""Commands for drives that get copies: list, trust, forget, rename, copy, eject."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from memu_backup.cli.shell import Json, app, command, the_manager

if TYPE_CHECKING:
    from collections.abc import Sequence

    from memu_backup.copy_to_drive import Wanted
    from memu_backup.manager import Manager
    from memu_backup.model import Drive
    from memu_backup.visits import Visit

_RING_S = 5.0

usb_app = typer.Typer(help="Copies on drives that are plugged in.", no_args_is_help=True, rich_markup_mode=None)
app.add_typer(usb_app, name="usb")

DriveName = Annotated[str, typer.Argument(help="Its name, its label, or its UUID.", metavar="DRIVE")]
KeptAt = Annotated[str | None, typer.Option("--kept-at", help="Where it is kept, in your own words.")]


@usb_app.command("list")
@command
async def list_drives(json: Json = False) -> None:
    """The drives that are known, and how old the copy on each is."""
    from memu_backup import as_json, console, words
    from memu_backup.clock import now

    async with _the_manager() as manager:
        plugged = {plug.fs_uuid for plug in manager.passports.look_around()}
        drives, zone = manager.passports.known.drives(), manager.config.zone
    if json:
        console.print_json([{**as_json.drive(d), "plugged_in": d.fs_uuid in plugged} for d in drives])
        return
    if not drives:
        console.say("No drive is known yet. Plug one in, and type: memu-backup usb list")
        return
    console.table(
        ("Drive", "Size", "Copies", "Last copy", "Kept at", "State", "UUID"),
        [
            (
                drive.called,
                words.size(drive.size_bytes),
                str(drive.copies),
                words.days_ago(drive.last_copied_at, now(), zone) if drive.trusted_at else "",
                drive.kept_at,
                ", ".join(_states(drive, plugged)),
                drive.fs_uuid,
            )
            for drive in drives
        ],
        right=(1, 2),
    )
    if stranger := next((d for d in drives if d.trusted_at is None and d.fs_uuid in plugged), None):
        console.say(f"To have copies on it, type: memu-backup usb trust {stranger.fs_uuid}")


def _states(drive: Drive, plugged: set[str]) -> list[str]:
    return [
        "gets copies" if drive.trusted_at else "not approved",
        *(["plugged in"] if drive.fs_uuid in plugged else []),
    ]


@usb_app.command()
@command
async def trust(
    drive: DriveName,
    name: Annotated[str, typer.Option("--name", help='What to call it, such as "blue drive".')] = "",
    kept_at: KeptAt = None,
    json: Json = False,
) -> None:
    """Approve a drive: from now on it gets the latest backup whenever it is plugged in."""
    from memu_backup import console, messages
    from memu_backup.audit import at_the_terminal

    async with _the_manager() as manager:
        known = await manager.passports.trust(drive, at_the_terminal(), called=name, kept_at=kept_at or "")
        runs = await _ring(manager)
    _tell_of(known, messages.drive_trusted(known), json=json)
    if not json:
        console.say("The copies are not encrypted: whoever holds the drive can read keys, .env and chats on it.")
        if not runs:
            console.say("The service does not run; to copy now, type: memu-backup usb copy")


@usb_app.command()
@command
async def forget(drive: DriveName, json: Json = False) -> None:
    """Take a drive's approval back; what lies on it stays."""
    from memu_backup.audit import at_the_terminal
    from memu_backup.words import the_drive

    async with _the_manager() as manager:
        known = await manager.passports.forget(drive, at_the_terminal())
        await _ring(manager)
    what = f"{the_drive(known.called)} gets no copies any more. What lies on it stays; nothing was deleted."
    _tell_of(known, what[:1].upper() + what[1:], json=json)


@usb_app.command()
@command
async def rename(
    drive: DriveName,
    name: Annotated[str | None, typer.Argument(help='What to call it, such as "blue drive".')] = None,
    kept_at: KeptAt = None,
    json: Json = False,
) -> None:
    """Give a drive a name, or say where it is kept."""
    from memu_backup.audit import at_the_terminal
    from memu_backup.errors import UsageError

    if name is None and kept_at is None:
        raise UsageError('Say how it is to be called, or where it is kept: --kept-at "grandma\'s"')
    async with _the_manager() as manager:
        known = await manager.passports.rename(drive, at_the_terminal(), called=name, kept_at=kept_at)
    kept = f", kept at {known.kept_at}" if known.kept_at else ""
    _tell_of(known, f"{known.label or known.fs_uuid} is now called {known.called}{kept}.", json=json)


@usb_app.command("copy")
@command
async def copy_now(
    drive: Annotated[
        str | None, typer.Argument(help="Which drive, if several are plugged in.", metavar="DRIVE")
    ] = None,
    to: Annotated[Path | None, typer.Option("--to", help="A folder, such as a drive mounted by hand.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be copied.")] = False,
    json: Json = False,
) -> None:
    """Copy the latest backup to a drive now, or to any folder."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal
    from memu_backup.errors import DriveError, UsageError
    from memu_backup.words import the_drive

    if drive is not None and to is not None:
        raise UsageError("Give a drive or --to FOLDER, not both.")
    async with _the_manager() as manager:
        visits = manager.visits
        where = to if to is not None else manager.passports.plugged(drive)
        called = str(to) if isinstance(where, Path) else the_drive(manager.passports.called(where))
        try:
            if dry_run:
                _say_planned(await visits.missing_on(where), called, json=json)
                return
            with console.progress() as on_progress:
                if isinstance(where, Path):
                    visit = await visits.copy_to(where, at_the_terminal(), _nothing, on_progress)
                else:
                    visit = await visits.copy(where, at_the_terminal(), _nothing, on_progress)
            held = () if isinstance(where, Path) else await visits.let_go(where)
        except DriveError as error:
            raise type(error)(f"{called[:1].upper()}{called[1:]}: {error}") from error
    _say_done(visit, called, held, json=json)


async def _nothing(_: int) -> None:
    return


def _say_planned(missing: Sequence[Wanted], called: str, *, json: bool) -> None:
    from memu_backup import console, words

    if json:
        console.print_json([{"name": w.archive.name, "size_bytes": w.archive.size_bytes} for w in missing])
        return
    for wanted in missing:
        console.say(f"Would be copied: {wanted.archive.name} ({words.size(wanted.archive.size_bytes)})")
    if not missing:
        console.say(f"The latest backup lies on {called} already.")
    console.say("Nothing was written; this was a dry run.")


def _say_done(visit: Visit, called: str, held: Sequence[str], *, json: bool) -> None:
    from memu_backup import console, messages, words

    made = visit.made
    if json:
        console.print_json(
            {
                "copied": [w.archive.name for w in made.copied],
                "there": [w.archive.name for w in made.there],
                "removed": list(made.removed),
                "copied_bytes": made.copied_bytes,
                "write_seconds": made.write_seconds,
                "read_seconds": made.read_seconds,
                "held_by": list(held),
            }
        )
        return
    if visit.drive is None:
        for wanted in made.copied:
            console.say(f"Copied and read back: {wanted.archive.name} ({words.size(wanted.archive.size_bytes)})")
        if not made.copied:
            console.say(f"The latest backup lies in {called} already.")
    else:
        copied, there = [w.archive for w in made.copied], [w.archive for w in made.there]
        console.say(messages.drive_done(visit.drive, copied, there, held))
    if made.removed:
        console.say(f"Removed {len(made.removed)} older: {', '.join(made.removed)}")


@usb_app.command()
@command
async def eject(
    drive: Annotated[
        str | None, typer.Argument(help="Which drive, if several are plugged in.", metavar="DRIVE")
    ] = None,
    json: Json = False,
) -> int:
    """Let a drive go, and say whether it may be removed."""
    from memu_backup import console, messages
    from memu_backup.cli.shell import EXIT_FAILED

    async with _the_manager() as manager:
        plug = manager.passports.plugged(drive)
        known = manager.passports.known.of(plug)
        assert known
        held = await manager.visits.let_go(plug)
    if json:
        console.print_json({"drive": known.called, "held_by": list(held)})
    else:
        console.say(messages.may_be_pulled(held))
    return EXIT_FAILED if held else 0


@asynccontextmanager
async def _the_manager() -> AsyncIterator[Manager]:
    async with the_manager() as manager:
        await manager.passports.learn()
        yield manager


async def _ring(manager: Manager) -> bool:
    """Tell the service that runs; whether one does."""
    from memu_backup import bell
    from memu_backup.daemon import service_folder
    from memu_backup.errors import MemuError

    with suppress(MemuError):
        return await bell.ask(service_folder(manager.config.state_dir), "drives", _RING_S) is not None
    return True


def _tell_of(drive: Drive, sentence: str, *, json: bool) -> None:
    from memu_backup import as_json, console

    if json:
        console.print_json(as_json.drive(drive))
    else:
        console.say(sentence)

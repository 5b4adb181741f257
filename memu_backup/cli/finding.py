"""The command that finds a file in all backups: find."""

from __future__ import annotations

import sys
from collections import Counter
from typing import TYPE_CHECKING, Annotated

import typer

from memu_backup.cli.shell import EXIT_FAILED, EXIT_PARTIAL, Json, app, command, is_file, manager_unless_file
from memu_backup.cli.shell import find as find_backup

if TYPE_CHECKING:
    from collections.abc import Callable
    from datetime import tzinfo

    from memu_backup.find import Finding, Found, Version
    from memu_backup.model import Backup


@app.command()
@command
async def find(
    pattern: Annotated[
        str,
        typer.Argument(help="A file's name, its path, a folder, or a glob in quotes: '*.docx'.", metavar="PATTERN"),
    ],
    backup: Annotated[
        str | None, typer.Option("--backup", "-b", help="Look only into this one: a name, latest, or a file.")
    ] = None,
    json: Json = False,
) -> int:
    """In which backups a file is, and which versions of it. Exit status 1 when it is in none."""
    from memu_backup import as_json, console
    from memu_backup.anywhere import search

    async with manager_unless_file(backup or "latest") as manager:
        zone = manager.config.zone if manager else None
        with console.progress_if_long() as on_progress:
            if manager and backup is None:
                backups, found = await manager.search(pattern, on_progress)
            else:
                lying = await find_backup(manager, backup or "latest")
                backups, found = [lying[1]], await search([lying], pattern, on_progress)
    if json:
        console.print_json(as_json.found(pattern, found))
    else:
        _tell(pattern, found, backups, zone, by_path=backup is not None and is_file(backup))
    if not found.findings:
        return EXIT_FAILED
    return EXIT_PARTIAL if found.unread else 0


def _tell(pattern: str, found: Found, backups: list[Backup], zone: tzinfo | None, *, by_path: bool) -> None:
    from memu_backup import console, words
    from memu_backup.files import shown

    names = Counter(b.name for b in backups)

    def named(backup: Backup) -> str:
        """As ``restore`` takes it."""
        return str(backup.path) if by_path or names[backup.name] > 1 else backup.name.removesuffix(".tar.gz")

    if found.any_case:
        console.say(f"Nothing fits {shown(pattern)} to the letter; but for capitals these do:")
    several = len({(f.host, f.job) for f in found.findings}) > 1
    for finding in found.findings:
        _tell_finding(finding, named, zone, with_origin=several)
    if found.more:
        console.complain(f"These are the first {len(found.findings):,}; there are more. Ask for less at once.")
    for backup, why in found.unread:
        console.complain(f"{backup.name} could not be looked into, or not to its end: {why}.")
    if found.findings:
        console.say(words.bring_back(found.findings[0].path, named(found.findings[0].versions[0].backups[0])))
    else:
        console.complain(words.nothing_found(shown(pattern), len(backups)))


def _tell_finding(finding: Finding, named: Callable[[Backup], str], zone: tzinfo | None, *, with_origin: bool) -> None:
    from memu_backup import console
    from memu_backup.clock import now
    from memu_backup.files import shown

    # Cut to bearable length on a terminal; whole in a pipe, for grep and --path.
    path = shown(finding.path) if sys.stdout.isatty() else finding.path.replace("\n", "\N{REPLACEMENT CHARACTER}")
    origin = f" ({finding.job} on {finding.host})" if with_origin and finding.host else ""
    gone = "" if finding.in_newest else " - not in the newest backup"
    console.say(f"{path}{origin}{gone}")
    at = now()
    here = zone or at.astimezone().tzinfo or at.tzinfo
    assert here
    for version in finding.versions:
        console.say(f"  {_version(version, named, here)}")


def _version(version: Version, named: Callable[[Backup], str], zone: tzinfo) -> str:
    from memu_backup import words
    from memu_backup.clock import now
    from memu_backup.files import shown
    from memu_backup.formats.tar import Type

    if version.type is Type.FILE:
        what = f"{words.size(version.size_bytes)}, changed {words.changed(version.mtime_ns, now(), zone)}"
    else:
        what = f"{'link' if version.type is Type.SYMLINK else 'the same file as'} {shown(version.link)}"
    times = [[b.created_at for b in row] for row in version.rows]
    return f"{what}: {named(version.backups[0])} ({words.held(times, now(), zone)})"

"""Commands that prove a backup and bring things back: verify, restore."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from memu_backup.cli.shell import (
    EXIT_FAILED,
    EXIT_PARTIAL,
    BackupName,
    Json,
    Yes,
    agreed,
    app,
    command,
    find,
    manager_unless_file,
    took,
)
from memu_backup.errors import UsageError

if TYPE_CHECKING:
    from memu_backup.model import Level
    from memu_backup.restore import Plan, Restored
    from memu_backup.stores import Verdict

_NAMED = 50


@app.command()
@command
async def verify(
    backup: BackupName = "latest",
    level: Annotated[str, typer.Option("--level", help="quick (its index) or full (every byte).")] = "full",
    json: Json = False,
) -> int:
    """Re-read a backup and compare it with what it says of itself. Exit status 1 unless all of it is good."""
    from memu_backup import console
    from memu_backup.anywhere import prove
    from memu_backup.audit import at_the_terminal

    depth = _level(level)
    async with manager_unless_file(backup) as manager:
        store, stored = await find(manager, backup)
        with console.progress() as on_progress:
            if manager:
                verdict = await manager.verify(store, stored, depth, at_the_terminal(), on_progress)
            else:
                verdict = await prove(store, stored, depth, on_progress)
    if json:
        console.print_json({"name": stored.name, **_verdict_as_json(verdict)})
    else:
        _tell_verdict(stored.name, verdict)
    return 0 if verdict.good else EXIT_FAILED


def _level(text: str) -> Level:
    import difflib

    from memu_backup.model import Level

    if text not in tuple(Level):
        close = difflib.get_close_matches(text, tuple(Level), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no level {text}; there are: {', '.join(Level)}.{hint}")
    return Level(text)


def _verdict_as_json(verdict: Verdict) -> dict[str, Any]:
    return {
        "level": verdict.level,
        "good": verdict.good,
        "problems": verdict.problems,
        "unchecked": verdict.unchecked,
        "files": verdict.files,
        "content_bytes": verdict.content_bytes,
        "sha256": verdict.sha256,
    }


def _tell_verdict(name: str, verdict: Verdict) -> None:
    from memu_backup import console, words
    from memu_backup.model import Level

    if verdict.good:
        how = "every byte was read and is as it was written"
        if not verdict.compared:
            how = "its compression and its list are whole; it carries no checksums to compare with"
        elif verdict.level is Level.QUICK:
            how = "its index is whole"
        console.say(f"{name} is good: {words.files(verdict.files)}, {words.size(verdict.content_bytes)}; {how}.")
        return
    if not verdict.problems:
        console.complain(f"{name} could not be checked as a whole; every byte is as it was written, but:")
    else:
        console.complain(f"{name} is damaged:")
    for sentence in (*verdict.problems, *verdict.unchecked):
        bare = sentence.removeprefix(f"{name} is damaged: ")
        console.complain(f"  {bare[:1].upper() if bare != sentence else bare[:1]}{bare[1:]}")
    if verdict.problems:
        console.complain("Make a new backup with: memu-backup start. Then check the disk that holds this one.")


@app.command()
@command
async def restore(
    backup: BackupName = "latest",
    source: Annotated[
        list[str] | None, typer.Option("--source", "-s", help="Only this source; may be repeated.")
    ] = None,
    path: Annotated[
        list[str] | None, typer.Option("--path", "-p", help="Only this file, folder or glob; may be repeated.")
    ] = None,
    to: Annotated[
        Path | None, typer.Option("--to", help="The folder to restore to; a new one here unless given.")
    ] = None,
    in_place: Annotated[
        bool, typer.Option("--in-place", help="Back to where it lives, as far as nothing is there; replaces nothing.")
    ] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace files that are there.")] = False,
    trust: Annotated[
        bool,
        typer.Option(
            "--trust",
            help="Also bring back special rights (setuid) from a file that does not lie in the backup folder.",
        ),
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")] = False,
    yes: Yes = False,
    json: Json = False,
) -> int:
    """Give back a file, a source or everything: into a folder, or with --in-place to where it lives.

    Of a damaged backup it gives what can be read, names the rest, and ends with exit status 3.
    """
    if in_place:
        if path or to or overwrite or trust:
            raise UsageError(
                "--in-place puts whole sources back to where they live, and goes with --source, --dry-run, --yes and "
                "--json only. For anything else leave it out, and name a folder with --to."
            )
        from memu_backup.cli.in_place import put_back

        return await put_back(backup, source or [], dry_run=dry_run, yes=yes, json=json)
    from memu_backup import console
    from memu_backup import restore as restoring
    from memu_backup.anywhere import give_back
    from memu_backup.audit import at_the_terminal
    from memu_backup.paths import absolute
    from memu_backup.work import Stop, in_thread

    async with manager_unless_file(backup) as manager:
        _, there = await find(manager, backup)
        wanted = restoring.Wanted(tuple(source or ()), tuple(path or ()))
        target = absolute(to or Path(f"restored_{there.name.removesuffix('.tar.gz')}"))
        stop = Stop()
        trusted = trust or (manager is not None and manager.is_ours(there.path))
        planned = await in_thread(lambda: restoring.plan(there.path, wanted, target, stop, trusted=trusted), stop)
        if dry_run:
            _tell_plan(planned, overwrite=overwrite, json=json)
            return EXIT_PARTIAL if planned.cut else 0
        if manager:
            await manager.refuse(planned, at_the_terminal(), overwrite=overwrite)
        else:
            restoring.refuse(planned, overwrite=overwrite)
        what = _what(planned)
        refusal = f"This would restore {what} to {target}. Add --yes to do it, or --dry-run to look."
        if not yes and not await agreed(f"Restore {what} from {there.name} to {target}?", refusal=refusal):
            console.complain("Nothing was changed.")
            return EXIT_FAILED
        with console.progress() as on_progress:
            if manager:
                done = await manager.restore(planned, at_the_terminal(), overwrite=overwrite, on_progress=on_progress)
            else:
                done = await give_back(planned, overwrite=overwrite, on_progress=on_progress)
    _tell_restored(planned, done, json=json)
    return EXIT_PARTIAL if planned.cut or done.lost else 0


def _what(planned: Plan, done: Restored | None = None) -> str:
    """Files as everywhere else: links are no files."""
    from memu_backup import words
    from memu_backup.formats.tar import Type

    lost = frozenset(done.lost if done else ())
    links = sum(e.type in (Type.SYMLINK, Type.HARDLINK) for e in planned.entries if e.path not in lost)
    counted = done or planned
    return f"{words.files_and_links(counted.files - links, links)} ({words.size(counted.size_bytes)})"


def _tell_plan(planned: Plan, *, overwrite: bool, json: bool) -> None:
    from memu_backup import console, words
    from memu_backup.restore import as_json

    if json:
        console.print_json(as_json(planned))
        return
    count = len(planned.in_the_way)
    in_the_way = ""
    if count:
        there = f"{words.files(count)} of these {'is' if count == 1 else 'are'} there already"
        in_the_way = f" {there} and would be {'replaced' if overwrite else 'a reason to stop (see --overwrite)'}."
    console.say(
        f"Would restore {_what(planned)} from {planned.name} to {planned.target}, where "
        f"{words.size(planned.free_bytes)} are free.{in_the_way} Nothing was changed."
    )
    if planned.damage:
        console.complain(_damage(planned, ()))


def _tell_restored(planned: Plan, done: Restored, *, json: bool) -> None:
    from memu_backup import console
    from memu_backup.files import shown
    from memu_backup.restore import as_json

    if json:
        told = {"files": done.files, "size_bytes": done.size_bytes, "seconds": done.seconds}
        console.print_json(as_json(planned) | told | {"warnings": done.warnings, "lost": done.lost})
        return
    console.say(f"Restored {_what(planned, done)} to {done.target} {took(done.seconds)}.")
    for warning in done.warnings:
        console.complain(f"  {warning}")
    if planned.damage or done.lost:
        console.complain(_damage(planned, done.lost))
    for path in done.lost[:_NAMED]:
        console.complain(f"  {shown(path)}")
    if len(done.lost) > _NAMED:
        console.complain(f"  … and {len(done.lost) - _NAMED:,} more; --json names all of them.")


def _damage(planned: Plan, lost: tuple[str, ...]) -> str:
    """What is missing of a damaged backup, and where it may be found."""
    from memu_backup import words

    what = f"{planned.name} is damaged{f': {planned.damage}' if planned.damage else ''}. "
    if not planned.cut and not lost:
        return what + "All of what was wanted can be read; make a new backup soon with: memu-backup start"
    missing = []
    if planned.cut:
        missing.append("What stood behind the damage cannot be read.")
    if lost:
        missing.append(f"{len(lost):,} of {words.files(planned.files)} did not come back.")
    return what + " ".join(missing) + " Try an older backup, or a copy of this one."

"""What ``restore`` does unless it is to put things back to where they live: gives them back into a folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup.cli.shell import EXIT_PARTIAL, agreed, find, manager_unless_file, took

if TYPE_CHECKING:
    from memu_backup.restore import Plan, Restored

_NAMED = 50


async def give_back(
    backup: str,
    sources: Sequence[str],
    paths: Sequence[str],
    to: Path | None,
    *,
    overwrite: bool = False,
    trust: bool = False,
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
) -> int:
    """Into ``to``, or a new folder here. Returns the exit status. Raises as ``restore.plan`` and
    ``restore.carry_out``.
    """
    from memu_backup import console, words
    from memu_backup import restore as restoring
    from memu_backup.anywhere import give_back as without_settings
    from memu_backup.audit import at_the_terminal
    from memu_backup.paths import absolute
    from memu_backup.work import Stop, in_thread

    async with manager_unless_file(backup) as manager:
        store, there = await find(manager, backup)
        wanted = restoring.Wanted(tuple(sources), tuple(paths))
        target = absolute(to or new_folder(there.name))
        stop = Stop()
        trusted = trust or (manager is not None and manager.is_ours(there.path))
        planned = await in_thread(lambda: restoring.plan(store, there, wanted, target, stop, trusted=trusted), stop)
        if dry_run:
            _tell_plan(planned, overwrite=overwrite, json=json)
            return EXIT_PARTIAL if planned.cut else 0
        if manager:
            await manager.refuse(planned, at_the_terminal(), overwrite=overwrite)
        else:
            restoring.refuse(planned, overwrite=overwrite)
        what = _what(planned)
        refusal = f"This would restore {what} to {target}. Add --yes to do it, or --dry-run to look."
        if not yes:
            if planned.damage:
                console.complain(_damage(planned, ()))
            free = words.size(planned.free_bytes)
            question = f"Restore {what} from {there.name} to {target}, where {free} are free?"
            await agreed(question, refusal=refusal, json=json)
        with console.progress() as on_progress:
            if manager:
                done = await manager.restore(planned, at_the_terminal(), overwrite=overwrite, on_progress=on_progress)
            else:
                done = await without_settings(planned, overwrite=overwrite, on_progress=on_progress)
    _tell_restored(planned, done, json=json)
    return EXIT_PARTIAL if planned.cut or done.lost else 0


def new_folder(backup: str) -> Path:
    """The one in the working folder that a backup of this name goes to unless another is named."""
    return Path(f"restored_{backup.removesuffix('.tar.gz')}")


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

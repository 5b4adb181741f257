"""What ``restore --in-place`` does, and what can be done with it afterwards: undo, resume, release."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from memu_backup import as_json
from memu_backup.cli.checking import service
from memu_backup.cli.shell import EXIT_PARTIAL, agreed, find, the_manager
from memu_backup.errors import MemuError, RestoreError

if TYPE_CHECKING:
    from memu_backup.afterwards import Ran
    from memu_backup.checks import Finding
    from memu_backup.exchange import Settled
    from memu_backup.manager import Manager
    from memu_backup.model import SourceSummary
    from memu_backup.nested import Step
    from memu_backup.put_back import Planned, Returned
    from memu_backup.restores import Restore


async def put_back(
    backup: str,
    sources: Sequence[str],
    *,
    dry_run: bool = False,
    yes: bool = False,
    json: bool = False,
    in_a_word: bool = False,
) -> int:
    """Returns the exit status. Whoever is asked may have to agree ``in_a_word``. Raises as ``put_back.plan`` and
    ``put_back.carry_out``.
    """
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        store, stored = await find(manager, backup)
        planned = await manager.returns.plan(store, stored, sources, trusted=manager.is_ours(stored.path))
        if not json:
            _tell_plan(planned, dry_run=dry_run)
        if dry_run:
            if json:
                console.print_json(as_json.planned(planned))
            else:
                console.say("Nothing was changed.")
            return 0
        if planned.hindrances:
            raise RestoreError(" ".join(planned.hindrances))
        names = ", ".join(step.summary.name for step in planned.steps)
        refusal = f"This would put back {names} from {stored.name}. Add --yes to do it, or --dry-run to look."
        if in_a_word:
            await console.typed("restore", "\nTo do this, type the word restore. Enter leaves all as it is")
        elif not yes:
            await agreed("Put them back?", refusal=refusal, json=json)
        with console.progress() as on_progress:
            done = await manager.returns.put_back(planned, at_the_terminal(), _telling(json=json), on_progress)
        if not json:
            _tell_done(planned, done)
        told = {step.source.name: step.summary for step in planned.steps}
        looked = await _look(manager, told, done.restore, planned.stops, json=json)
    if json:
        after = {"warnings": done.warnings, "downtime_seconds": done.downtime_s, "restore": done.restore.stamp}
        console.print_json(as_json.planned(planned) | after | {"ran": list(map(asdict, done.ran))} | looked)
    elif any(done.restore.swaps.values()):
        kept = "What was there before is kept. " if any(step.replaces for step in planned.steps) else ""
        console.say(
            f"{kept}See whether all is well: if it is not, type memu-backup restore --undo to have it as it was "
            "before; if it is, memu-backup restore --release."
        )
    return EXIT_PARTIAL if planned.left_out else 0


def _telling(*, json: bool) -> Callable[[str], None]:
    from memu_backup import console

    return (lambda _: None) if json else console.say


def _tell_plan(planned: Planned, *, dry_run: bool) -> None:
    from memu_backup import console, words
    from memu_backup.afterwards import typed

    console.say(f"{'Would put back' if dry_run else 'To be put back'} from {planned.backup.name}:")
    for step in planned.steps:
        needed, free = words.size(step.unpacking.room_bytes), words.size(step.unpacking.free_bytes)
        console.say(f"  {step.summary.name}: {_what(step)} to {step.source.lives()}")
        console.say(f"    needs {needed} of the {free} that are free there")
        if taking := step.taking:
            of = "" if taking.free_bytes is None else f" of the {words.size(taking.free_bytes)} that are free"
            unseen = "; how much is free there cannot be seen from here" if taking.free_bytes is None else ""
            console.say(f"    needs about {words.size(taking.needed_bytes)}{of} where {taking.where} keeps it{unseen}")
        for one in step.replaces:
            console.say(f"    replaces {one}, which is kept")
        for one in step.changed:
            console.say(f"    changed in it before: {one}")
    for sentence in planned.left_out:
        console.say(f"  left out: {sentence}")
    for sentence in planned.doubts:
        console.say(sentence)
    if planned.stops:
        console.say(f"Stopped meanwhile, for moments: {', '.join(planned.stops)}.")
    for sentence in planned.hindrances:
        console.say(f"Not as it is now: {sentence}")
    for argv in planned.before_start:
        console.say(f"Run before anything is started: {typed(argv)}")
    for argv in planned.afterwards:
        console.say(f"Run afterwards: {typed(argv)}")


def _tell_done(planned: Planned, done: Returned) -> None:
    from memu_backup import console, words

    for step in planned.steps:
        console.say(f"{step.source.name} is back at {step.source.lives()}.")
    still = f" Services stood still for {words.duration(done.downtime_s)}." if done.downtime_s is not None else ""
    what = "What could be put back" if planned.left_out else "All of it"
    console.say(f"{what} is back: {words.files(done.files)} ({words.size(done.size_bytes)}).{still}")
    for sentences in done.warnings.values():
        for sentence in sentences:
            console.complain(f"  {sentence}")
    _tell_problems(done.ran)


async def _look(
    manager: Manager, told: Mapping[str, SourceSummary], made: Restore, stopped: Sequence[str] = (), *, json: bool
) -> dict[str, Any]:
    """The list, each line as soon as it is known; as JSON in the end."""
    from memu_backup.checklist import by_yourself

    say = _telling(json=json)
    findings: list[Finding] = []
    say("Looked at:")
    async for finding in _findings(manager, told, made, stopped):
        findings.append(finding)
        say(f"  {'✓' if finding.good else '✗'} {finding.what}: {finding.says}")
    yours = by_yourself(manager.config, told)
    say("Look yourself:")
    for sentence in yours:
        say(f"  ☐ {sentence}")
    return {"checklist": list(map(asdict, findings)), "look_yourself": yours}


async def _findings(
    manager: Manager, told: Mapping[str, SourceSummary], made: Restore, stopped: Sequence[str]
) -> AsyncIterator[Finding]:
    async for finding in manager.returns.look(told, made, stopped):
        yield finding
    yield await service(manager.config)


def _what(step: Step) -> str:
    from memu_backup import words

    return f"{words.files(step.summary.files)} ({words.size(step.summary.size_bytes)})"


async def undo(stamp: str | None, *, json: bool) -> int:
    """Everything as it was before a restore. Raises as ``exchange.undo``."""
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        await _tell(manager, await manager.returns.undo(stamp, at_the_terminal(), _telling(json=json)), json=json)
    return 0


async def resume(*, json: bool) -> int:
    """What was interrupted is finished. Raises as ``exchange.resume``."""
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        await _tell(manager, await manager.returns.resume(at_the_terminal(), _telling(json=json)), json=json)
    return 0


async def release(stamp: str | None, *, dry_run: bool, yes: bool, json: bool) -> int:
    """What a restore has replaced goes for good. Raises as ``exchange.release``."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    async with the_manager() as manager:
        kept = [one for one in await manager.returns.kept() if stamp in (None, one.stamp)]
        if dry_run or not kept:
            if json:
                console.print_json([as_json.restore(one) for one in kept])
            elif not kept:
                console.say("Nothing that a restore has replaced is kept here.")
            else:
                for one in kept:
                    console.say(f"Kept of the restore of {one.backup}: {', '.join(as_json.kept(one)) or 'nothing'}.")
                console.say("Nothing was changed.")
            return 0
        gone = ", ".join(path for one in kept for path in as_json.kept(one)) or "nothing"
        refusal = f"This would remove {gone} for good. Add --yes to do it, or --dry-run to look."
        if not yes:
            await agreed(f"Remove for good what restores have replaced: {gone}?", refusal=refusal, json=json)
        for one in kept:
            await manager.returns.release(one.stamp, at_the_terminal())
    if json:
        console.print_json([as_json.restore(one) for one in kept])
    else:
        console.say("It is gone, and its room is free.")
    return 0


def _tell_problems(ran: Sequence[Ran]) -> None:
    from memu_backup import console

    for one in ran:
        if one.problem:
            console.complain(f"  {one.problem}")


async def _tell(manager: Manager, done: Settled, *, json: bool) -> None:
    from memu_backup import console
    from memu_backup.restores import State

    made, looked = done.made, dict[str, Any]()
    if not json:
        _tell_problems(done.ran)
    if made.state is State.DONE:
        if told := await _told(manager, made):
            looked = await _look(manager, told, made, json=json)
        says = f"The restore of {made.backup} is done. What was there before is kept."
    elif made.state is State.UNDONE and made.swaps:
        says = (
            f"Everything is as it was before the restore of {made.backup}. What was given back is kept: type "
            "memu-backup restore --undo once more to have it again, or memu-backup restore --release to remove it."
        )
    else:
        says = f"Everything is as it was before the restore of {made.backup}; what it had unpacked is gone."
    if json:
        console.print_json(as_json.restore(made) | {"ran": list(map(asdict, done.ran))} | looked)
    else:
        console.say(says)


async def _told(manager: Manager, made: Restore) -> dict[str, SourceSummary]:
    """What its backup tells of what was put back; nothing where that is not among ours any more."""
    try:
        told = await manager.returns.told(*await manager.find(made.backup))
    except MemuError:
        return {}
    return {name: told[name] for name in made.swaps if name in told}

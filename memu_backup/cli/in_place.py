"""What ``restore --in-place`` does: sources go back to where they live, where nothing is in the way."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from memu_backup.cli.shell import EXIT_FAILED, agreed, find, the_manager, took

if TYPE_CHECKING:
    from memu_backup.put_back import Returned, Step


async def put_back(backup: str, sources: Sequence[str], *, dry_run: bool, yes: bool, json: bool) -> int:
    """Returns the exit status. Raises as ``put_back.plan`` and ``put_back.carry_out``."""
    from memu_backup import console
    from memu_backup.audit import at_the_terminal

    done: list[Returned] = []
    async with the_manager() as manager:
        _, stored = await find(manager, backup)
        steps = await manager.plan_back(stored, sources)
        if not json:
            console.say(f"{'Would put back' if dry_run else 'To be put back'} from {stored.name}:")
            for step in steps:
                console.say(f"  {step.summary.name}: {_what(step)} to {step.source.lives()}")
        if dry_run:
            if json:
                console.print_json({"archive": str(stored.path), "sources": [_as_json(step) for step in steps]})
            else:
                console.say("Nothing was changed.")
            return 0
        names = ", ".join(step.summary.name for step in steps)
        refusal = f"This would put back {names} from {stored.name}. Add --yes to do it, or --dry-run to look."
        if not yes and not await agreed("Put them back? Nothing that is there is replaced.", refusal=refusal):
            console.complain("Nothing was changed.")
            return EXIT_FAILED
        for step in steps:
            with console.progress() as on_progress:
                returned = await manager.put_back(step, at_the_terminal(), on_progress)
            done.append(returned)
            if not json:
                console.say(f"{returned.source} is back at {step.source.lives()}, {took(returned.seconds)}.")
            for warning in returned.warnings:
                console.complain(f"  {warning}")
    if json:
        told = [
            _as_json(step) | {"seconds": r.seconds, "warnings": r.warnings} for step, r in zip(steps, done, strict=True)
        ]
        console.print_json({"archive": str(stored.path), "sources": told})
    else:
        console.say("All of it is back. Start what uses it, and see whether it is well.")
    return 0


def _what(step: Step) -> str:
    from memu_backup import words

    return f"{words.files(step.summary.files)} ({words.size(step.summary.size_bytes)})"


def _as_json(step: Step) -> dict[str, Any]:
    s = step.summary
    return {"source": s.name, "kind": s.kind, "files": s.files, "size_bytes": s.size_bytes, "to": step.source.lives()}

"""Runs what the settings want once something was put back: while services are down, to change it, and afterwards, so
that programs take note of it.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from memu_backup import process, words
from memu_backup.files import shown

WHILE_STOPPED_S, LIMIT_S = 600.0, 3600.0

Wanted = Mapping[str, Sequence[Sequence[str]]]
"""Programs with what they are given, by the source that wants them."""


@dataclass(frozen=True, slots=True)
class Ran:
    """One that was run; ``problem`` is a sentence, empty where it went well."""

    argv: tuple[str, ...]
    problem: str = ""


def of(wanted: Wanted, sources: Iterable[str]) -> list[tuple[str, ...]]:
    """What these sources want, in their order, and once what several of them want."""
    return list(dict.fromkeys(tuple(argv) for name in sources for argv in wanted.get(name, ())))


async def run(argvs: Iterable[Sequence[str]], on_step: Callable[[str], None], limit_s: float) -> list[Ran]:
    """One after the other, ``limit_s`` each at most; one that fails holds up none. Cancelling ends its children."""
    ran = []
    for argv in map(tuple, argvs):
        on_step(f"Running {typed(argv)}")
        why = await _failed(argv, limit_s)
        problem = (
            f"What was put back is there, but {shown(argv[0])}, which is to run then, {why}: some program may not know "
            f"of it yet. See to that, then type: {typed(argv)}"
        )
        ran.append(Ran(argv, problem if why else ""))
    return ran


def typed(argv: Sequence[str]) -> str:
    """As a person would type it; long or strange ones in part."""
    return shown(shlex.join(argv))


async def _failed(argv: Sequence[str], limit_s: float) -> str:
    """Why, as the rest of a sentence; empty where it went well."""
    try:
        done = await process.run(argv, stdout=process.NOWHERE, timeout_s=limit_s)
    except TimeoutError:
        return f"was not done after {words.duration(limit_s)}"
    except OSError as error:
        return f"cannot be run ({error.strerror})"
    return f"says {shown(done.last_error_line)}" if done.returncode else ""

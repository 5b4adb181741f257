"""What is put back where something else lives too: in a folder that is replaced as a whole may lie other sources, and
what no backup holds.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from memu_backup import restore, swap
from memu_backup.files import shown
from memu_backup.model import SourceSummary
from memu_backup.replacing import Omitting, Replacing, Taking
from memu_backup.restore import Plan
from memu_backup.sources import Source


@dataclass(frozen=True, slots=True)
class Step:
    """One source to put back: what the backup tells of it, how it is unpacked before, what is there now and would be
    replaced, by name, and what is ``changed`` in what comes back, a phrase each; and what it is ``taking`` elsewhere.
    """

    source: Source
    summary: SourceSummary
    unpacking: Plan
    replaces: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()
    taking: Taking | None = None


def outer_first(sources: Mapping[str, Source], names: Iterable[str]) -> list[str]:
    """What lives in another one's folder comes after that."""
    known = {name: sources[name] for name in names if name in sources}
    around = {
        name: sum(_inside(path, other) for path in _homes(source) for other in known.values() if other is not source)
        for name, source in known.items()
    }
    return sorted(names, key=lambda name: around.get(name, 0))


def outside(landing: Path, outer: Sequence[Source]) -> Path:
    """What is unpacked in a folder that is replaced itself would go aside with it: then into that one's. Blocks."""
    for path in (path for source in outer for path in _homes(source) if landing.is_relative_to(path)):
        beside = swap.landing(path)
        if restore.nearest(beside).stat().st_dev == restore.nearest(landing).stat().st_dev:
            return beside
    return landing


def _homes(source: Source) -> Sequence[Path]:
    return source.homes() if isinstance(source, Replacing) else ()


def _inside(path: Path, source: Source) -> bool:
    return any(path != home and path.is_relative_to(home) for home in _homes(source))


def within(sources: Mapping[str, Source], steps: Sequence[Step]) -> list[str]:
    """Sentences about what other sources have in a folder that would be replaced: it would go aside too. Blocks."""
    landings = {step.source.name: step.unpacking.target for step in steps}
    told = list[str]()
    for step in steps:
        comes = {entry.path.rstrip("/") for entry in step.unpacking.entries}
        for home in map(Path, step.replaces):
            for other in sources.values():
                for path in _below(home, other) if other is not step.source else ():
                    inside, place = str(path.relative_to(home)), step.summary.place
                    copies = {f"{place}{inside}", f"{place}{home.name}/{inside}"}
                    landing = landings.get(other.name)
                    if landing == swap.landing(home) or (landing is None and copies & comes):
                        continue  # it comes back after it, or what is asked for holds a copy of it
                    told.append(
                        f"{path} (source {other.name}) lies in {home}, which {step.source.name} replaces as a whole: "
                        f"it would go aside with that. Put back both at once, if they lie on one disk; or put "
                        f"back {step.source.name} to a folder with --to, and take from there what you want."
                    )
                    break
    return told


def _below(home: Path, other: Source) -> list[Path]:
    """What of another source lies in a folder. Blocks."""
    inside = [str(one.relative_to(home)) for one in _homes(other) if one.is_relative_to(home) and one != home]
    return [one for i in inside for one in ([home / i] if os.path.lexists(home / i) else sorted(home.glob(i)))]


def omitted(step: Step, steps: Sequence[Step]) -> str:
    """About what is there and comes back in none of the ``steps``. Blocks."""
    omits = step.source.omits if isinstance(step.source, Omitting) else ()
    homes = [Path(home) for home in step.replaces]
    others = {path for one in steps if one is not step for home in homes for path in _below(home, one.source)}
    patterns = [pattern for pattern in omits if any(_may_match(pattern, home, others) for home in homes)]
    if not patterns:
        return ""
    return (
        f"What {step.source.name} leaves out of its backups ({', '.join(map(shown, patterns))}) goes aside with the "
        "rest and is not there afterwards. Where it is of worth, move it back before you type memu-backup restore "
        "--release, which removes it for good."
    )


def _may_match(pattern: str, home: Path, others: Collection[Path]) -> bool:
    """Whether a glob of .gitignore's leaves out something in ``home``; one that may match anywhere is not looked for,
    as that would take as long as a backup. Blocks.
    """
    inner = pattern.strip("/")
    if pattern.startswith(("!", "#")) or not inner:
        return False
    if "/" not in pattern.rstrip("/"):
        return True
    return any(path.name not in swap.OF_THE_DISK and path not in others for path in home.glob(inner))

"""Puts what a backup holds back to where it lives, where nothing is in the way: after a disk died, or on a new machine.

What is there is never replaced: that takes a safety copy first, and stopping what uses it.
"""

from __future__ import annotations

import difflib
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from memu_backup import restore
from memu_backup.errors import DamagedArchive, RestoreError, UsageError
from memu_backup.files import shown
from memu_backup.formats.parts import whole
from memu_backup.formats.reader import ArchiveReader
from memu_backup.model import SourceSummary
from memu_backup.restore import Plan, Wanted
from memu_backup.sources import Source
from memu_backup.stores import OnProgress
from memu_backup.work import Stop, in_thread


@dataclass(frozen=True, slots=True)
class Step:
    """One source to put back: what the backup tells of it, and how it is unpacked before."""

    source: Source
    summary: SourceSummary
    unpacking: Plan


@dataclass(frozen=True, slots=True)
class Returned:
    """What one step did. ``warnings`` are sentences."""

    source: str
    files: int
    size_bytes: int
    seconds: float
    warnings: tuple[str, ...]


async def plan(
    archive: Path, sources: Mapping[str, Source], wanted: Sequence[str], scratch: Path, *, trusted: bool
) -> list[Step]:
    """Look at everything before anything is touched; changes nothing. With nothing ``wanted``, all that it holds.

    ``sources`` are those of the settings, by name. ``scratch`` is a folder for what is unpacked on its way into
    something that is no folder. Raises UsageError for what the backup or the settings do not know, RestoreError where
    something is in the way or space is short, and as ``restore.plan`` and ``Source.landing``.
    """
    summaries = await in_thread(lambda: _summaries(archive), Stop())
    steps = []
    for name in wanted or list(summaries):
        if name not in summaries:
            raise UsageError(
                f"There is no source {shown(name)} in this backup; it has {', '.join(summaries)}."
                f"{_hint(name, summaries)}"
            )
        summary = summaries[name]
        source = sources.get(name)
        if source is None or source.kind != summary.kind:
            raise UsageError(
                f"The settings do not know where {shown(name)} ({summary.kind}) belongs, so nothing was changed. Name "
                "it there as on the machine that it came from, leave it out by naming the others with --source, or "
                "restore it to a folder with --to."
            )
        landing = await source.landing(summary) or scratch / name
        work = partial(restore.plan, archive, Wanted(sources=(name,)), landing, Stop(), trusted=trusted)
        steps.append(Step(source, summary, await in_thread(work, Stop())))
    for step in steps:
        restore.refuse(step.unpacking, overwrite=True)  # what lies in a landing was left there by us
    return steps


def _summaries(archive: Path) -> dict[str, SourceSummary]:
    with ArchiveReader(archive, Stop()) as reader:
        try:
            manifest = reader.manifest()
        except DamagedArchive as error:
            raise restore.about(archive, error) from error
    if manifest is None:
        raise UsageError(
            f"{whole(archive).name} does not tell what it holds, so nobody knows where that belongs. "
            "Restore it to a folder with --to."
        )
    return {summary.name: summary for summary in manifest.sources}


def _hint(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {close[0]}?" if close else ""


async def carry_out(step: Step, on_progress: OnProgress) -> Returned:
    """Unpack and put back one source. Raises RestoreError and what ``restore.carry_out`` raises; the source is then as
    it was before, unless it is a database, in which what came so far may stay.
    """
    landing = step.unpacking.target
    stop = Stop()
    await in_thread(lambda: shutil.rmtree(landing, ignore_errors=True), Stop())
    try:
        work = partial(restore.carry_out, step.unpacking, overwrite=True, on_progress=on_progress, stop=stop)
        done = await in_thread(work, stop)
        if done.lost or step.unpacking.cut:
            raise RestoreError(
                f"{step.source.name} was not put back, as this backup is damaged and not all of it can be read. Try an "
                "older one, or restore what can be read to a folder with --to."
            )
        warnings = await step.source.put_back(landing / step.summary.place, step.summary)
    finally:
        await in_thread(lambda: shutil.rmtree(landing, ignore_errors=True), Stop())
    return Returned(step.source.name, done.files, done.size_bytes, done.seconds, (*done.warnings, *warnings))

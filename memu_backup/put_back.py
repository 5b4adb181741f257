"""Puts what a backup holds back to where it lives. What is there is exchanged for it at once, and kept beside it until
somebody releases it; until then it can be undone.

Everything is made ready while the household goes on: unpacked, dumps loaded into new databases. Only then do services
stand still, for as long as it takes to exchange names. Where anything goes wrong, all of it is as it was.
"""

from __future__ import annotations

import asyncio
import difflib
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from pathlib import Path

from memu_backup import afterwards, exchange, layout, nested, restore, restores, words
from memu_backup.afterwards import Ran
from memu_backup.errors import DamagedArchive, MemuError, NotThere, RestoreError, Stays, UsageError
from memu_backup.exchange import Exchange, House, OnStep, settled
from memu_backup.files import shown
from memu_backup.formats.index import Entry
from memu_backup.model import Backup, Manifest, SourceSummary
from memu_backup.nested import Step
from memu_backup.replacing import Changing, Replacing, Returning, TakingRoom
from memu_backup.restore import Wanted
from memu_backup.restores import Restore, State
from memu_backup.stores import OnProgress, Store
from memu_backup.work import Stop, in_thread

_NAMED = 5
_UNTOLD = (
    "This backup does not tell what it holds: its folders are known by their names alone. Whether a program wrote to "
    "them while they were copied, nobody knows."
)


_STRANGE = (
    "It does not lie in a folder for backups of these settings. Go on only if you know where it comes from: what is in "
    "it takes the place of yours, and commands in the dump of a database are done."
)


@dataclass(frozen=True, slots=True)
class Planned:
    """``stops`` are the names of what stands still meanwhile, ``spared`` of what has to run for it; ``left_out`` are
    sentences about what is not put back, ``doubts`` about what stays or nobody knows of it, ``hindrances`` about what
    has to be stopped by hand before; what is run once all is there, is run before anything is started and
    ``afterwards``.
    """

    backup: Backup
    steps: tuple[Step, ...]
    stops: tuple[str, ...]
    spared: tuple[str, ...]
    left_out: tuple[str, ...]
    before_start: tuple[tuple[str, ...], ...] = ()
    afterwards: tuple[tuple[str, ...], ...] = ()
    doubts: tuple[str, ...] = ()
    hindrances: tuple[str, ...] = ()


@dataclass(slots=True)
class Returned:
    """What was done, and ``ran`` after it. ``warnings`` are sentences by source; ``downtime_s`` is None where nothing
    stood still.
    """

    restore: Restore
    warnings: dict[str, list[str]] = field(default_factory=dict)
    files: int = 0
    size_bytes: int = 0
    downtime_s: float | None = None
    ran: list[Ran] = field(default_factory=list)


async def plan(house: House, store: Store, backup: Backup, wanted: Sequence[str], *, trusted: bool) -> Planned:
    """Look at everything before anything is touched; changes nothing. With nothing ``wanted``, all that it holds.

    Raises UsageError for what the backup or the settings do not know, RestoreError where something cannot be put back
    or space is short, and as ``restore.plan`` and the sources.
    """
    await asyncio.to_thread(restores.must_be_settled, house.kept)
    summaries, unknown, untold = await in_thread(lambda: _look(house, store, backup), Stop())
    steps, staying, left_out = list[Step](), list[str](), [] if wanted else unknown
    for name in nested.outer_first(house.sources, dict.fromkeys(wanted or summaries)):
        if name not in summaries:
            raise NotThere(
                f"There is no source {shown(name)} in this backup; it has {', '.join(summaries)}."
                f"{_hint(name, summaries)}"
            )
        summary, source = summaries[name], house.sources.get(name)
        if source is None or source.kind != summary.kind:
            raise UsageError(
                f"The settings do not know where {shown(name)} ({summary.kind}) belongs, so nothing was changed. Name "
                "it there as on the machine that it came from, leave it out by naming the others with --source, or "
                "restore it to a folder with --to."
            )
        try:
            landing = await source.landing(summary) or house.scratch / name
            landing = await in_thread(partial(nested.outside, landing, [step.source for step in steps]), Stop())
        except RestoreError as error:
            if wanted or isinstance(source, Replacing):
                raise
            (staying if isinstance(error, Stays) else left_out).append(str(error))
            continue
        part = Wanted(places=(summary.place,))
        work = partial(restore.plan, store, backup, part, landing, Stop(), trusted=trusted)
        replaces = await source.in_the_way(summary) if isinstance(source, Replacing) else []
        changes = source.changes(summary) if isinstance(source, Changing) else []
        taking = await source.room(summary) if isinstance(source, TakingRoom) else None
        steps.append(Step(source, summary, await in_thread(work, Stop()), tuple(replaces), tuple(changes), taking))
    if not steps:
        raise RestoreError(" ".join(left_out + staying) or f"{backup.name} holds nothing that could be put back.")
    spared = {s.source.must_run(s.summary) for s in steps if isinstance(s.source, Replacing)} - {""}
    running = [unit.name for service in house.services for unit in await service.running()]
    stops = [name for name in running if name not in spared]
    hindrances = list[str]()
    for step in steps:
        restore.refuse(step.unpacking, overwrite=True)  # what lies in a landing was left there by us
        if isinstance(step.source, Replacing):
            try:
                await step.source.must_be_still(step.summary, stops)
            except RestoreError as error:
                hindrances.append(str(error))
    hindrances += await in_thread(lambda: nested.within(house.sources, steps), Stop())
    landings = [step.unpacking.target for step in steps]
    await asyncio.to_thread(restores.must_not_be_kept_in, house.kept, landings)
    await asyncio.to_thread(_must_fit, steps)
    names = [step.source.name for step in steps]
    omitted = await in_thread(lambda: [sentence for step in steps if (sentence := nested.omitted(step, steps))], Stop())
    return Planned(
        backup,
        tuple(steps),
        tuple(stops),
        tuple(sorted(spared)),
        tuple(left_out),
        tuple(afterwards.of(house.before_start, names)),
        tuple(afterwards.of(house.afterwards, names)),
        (*staying, *untold, *omitted, *(() if trusted else (_STRANGE,))),
        tuple(hindrances),
    )


def _must_fit(steps: Sequence[Step]) -> None:
    """All of them together, disk by disk. Blocks. Raises RestoreError."""
    needed: dict[int | str, int] = {}
    for disk, where, needed_bytes, free_bytes in (one for step in steps for one in _needs(step)):
        needed[disk] = needed.get(disk, 0) + needed_bytes
        if free_bytes is not None and needed[disk] > free_bytes:
            raise RestoreError(
                f"Not enough space: {words.size(needed[disk])} needed, {words.size(free_bytes)} free at "
                f"{where}, as what is there is kept until you release it; nothing was changed. Put back one source "
                "after the other (--source), with memu-backup restore --release in between, or make room there."
            )


def _needs(step: Step) -> Iterator[tuple[int | str, str, int, int | None]]:
    """Disk by disk: which, what it is called, how much is needed there and how much is free. Blocks."""
    there = restore.nearest(step.unpacking.target)
    yield there.stat().st_dev, str(there), step.unpacking.room_bytes, step.unpacking.free_bytes
    if taking := step.taking:
        disk = taking.where if taking.device is None else taking.device
        yield disk, taking.where, taking.needed_bytes, taking.free_bytes


async def told(house: House, store: Store, backup: Backup) -> dict[str, SourceSummary]:
    """What a backup tells of each source. Raises DamagedArchive, UsageError where it tells nothing."""
    return (await in_thread(lambda: _look(house, store, backup), Stop()))[0]


def _look(house: House, store: Store, backup: Backup) -> tuple[dict[str, SourceSummary], list[str], tuple[str, ...]]:
    """What it holds, by source; and sentences about what belongs nowhere, and about what nobody knows of it. Blocks."""
    entries: list[Entry] = []
    try:
        with store.open(backup.path, Stop()) as reader:
            manifest = reader.manifest() if reader.indexed else None
            for found in reader.readable() if manifest is None else ():
                if isinstance(found, Manifest):
                    manifest = found
                else:
                    entries.append(found)
    except DamagedArchive as error:
        raise restore.about(backup.name, error) from error
    if manifest:
        return {summary.name: summary for summary in manifest.sources}, [], ()
    top = backup.name.partition(".")[0]
    known = layout.known_again(entries, house.sources, top)
    to_folder = f"memu-backup restore {shlex.quote(str(backup.path))} --to FOLDER"
    if not known:
        raise UsageError(
            f"{backup.name} does not tell what it holds, and no folder in it is known by its name as one of these "
            f"settings, so nobody knows where it belongs; nothing was changed. Type {to_folder} and, while what uses "
            "it is stopped, move from there what you want back."
        )
    left = layout.unknown(entries, known.values())
    named = ", ".join(map(shown, left[:_NAMED])) + (f" and {len(left) - _NAMED:,} more" if len(left) > _NAMED else "")
    unknown = [f"{named}: nobody knows where that belongs. To have it, type {to_folder}"] if left else []
    return known, unknown, (_UNTOLD,)


def _hint(name: str, known: Mapping[str, object]) -> str:
    close = difflib.get_close_matches(name, known, 1)
    return f" Did you mean {close[0]}?" if close else ""


async def carry_out(
    house: House, planned: Planned, now: datetime, on_step: OnStep, on_progress: OnProgress
) -> Returned:
    """Do what was planned. Raises RestoreError and what sources and services raise; everything is then as it was, but
    for what a program of the household's own (kind ``command``) has done.
    """
    if planned.hindrances:
        raise RestoreError(" ".join(planned.hindrances))
    with restores.alone(house.kept):
        landings = [step.unpacking.target for step in planned.steps]
        # Since it was planned, somebody may have been asked for long, and another restore have come and gone.
        await asyncio.to_thread(restores.must_be_settled, house.kept)
        await asyncio.to_thread(restores.must_not_be_kept_in, house.kept, landings)
        await exchange.sweep(house)
        stamp = await asyncio.to_thread(restores.stamp, house.kept, now)
        made = Restore(stamp, planned.backup.name, now, landings=list(map(str, landings)), spared=list(planned.spared))
        made.owed = [step.source.name for step in planned.steps]
        work, done = Exchange(house, made), Returned(made)
        await work.write(State.PREPARING)
        try:
            await work.clear_landings()  # before the first, as several sources may have one
            for step in planned.steps:
                on_step(f"Unpacking {step.summary.name} ({words.size(step.unpacking.size_bytes)}).")
                given = await _unpacked(step, done, on_progress)
                if isinstance(step.source, Returning):  # while all else is as it was, should it fail
                    done.warnings[step.source.name] += await step.source.put_back(given, step.summary)
                if isinstance(step.source, Replacing):
                    prepared = await step.source.prepare(given, step.summary, made.stamp)
                    made.swaps[step.source.name] = list(prepared.swaps)
                    done.warnings[step.source.name] += prepared.warnings
                    for sentence in prepared.changed:
                        on_step(sentence)
                    await work.write(State.PREPARING)
            await _exchanged(work, done, on_step)
        except BaseException:
            await settled(work.discard())
            raise
        await work.clear_landings()
        done.ran += await work.follow(on_step)
        return done


async def _unpacked(step: Step, done: Returned, on_progress: OnProgress) -> Path:
    landing, stop = step.unpacking.target, Stop()
    work = partial(restore.carry_out, step.unpacking, overwrite=True, on_progress=on_progress, stop=stop)
    restored = await in_thread(work, stop)
    if restored.lost or step.unpacking.cut:
        raise RestoreError(
            f"{step.source.name} was not put back, as this backup is damaged and not all of it can be read; everything "
            "is as it was. Try an older one, or restore what can be read to a folder with --to."
        )
    done.files += restored.files
    done.size_bytes += restored.size_bytes
    done.warnings[step.source.name] = list(restored.warnings)
    return landing / step.summary.place


async def _exchanged(work: Exchange, done: Returned, on_step: OnStep) -> None:
    """Raises RestoreError, ServiceError; everything is as it was then."""
    async with work.still(on_step) as still:
        on_step("Exchanging what is there for what was in the backup.")
        try:
            await work.forth(State.EXCHANGING)
        except BaseException as error:
            if failed := await settled(work.back(whole=False)):
                raise _stuck(str(error), failed) from error
            raise
        done.ran += await work.prelude(on_step)
    if still.problems:
        on_step("Something does not come up with it, so all of it is put as it was.")
        async with work.still(on_step):
            try:
                await work.back(whole=True)
            except MemuError as error:
                raise _stuck(" ".join(still.problems), error) from error
        said = "So nothing was replaced: everything is as it was before."
        raise RestoreError(" ".join([*still.problems, said, *await work.start_what_is_down()]))
    done.downtime_s = still.downtime_s


def _stuck(why: str, failed: BaseException) -> RestoreError:
    return RestoreError(f"{why} And not all of it could be put as it was: {failed} {restores.HOW_TO_SETTLE}")

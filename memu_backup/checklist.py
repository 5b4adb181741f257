"""What was put back where it lives, looked at: is all of it there, does it answer, and what only a person can see."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import AsyncIterator, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path

from memu_backup import pack, words
from memu_backup.checks import Finding, found, listed, sources, telling
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.errors import MemuError, ServiceError
from memu_backup.files import shown
from memu_backup.model import Root, SourceSummary
from memu_backup.replacing import Replacing
from memu_backup.services import Service
from memu_backup.sources import Recalls, Source
from memu_backup.swap import Swap
from memu_backup.walk import walk
from memu_backup.work import Stop, in_thread

_SCARCE = 0.05
"""Which part of a disk is to be free after a restore."""


async def look(
    config: Config,
    services: Sequence[Service],
    told: Mapping[str, SourceSummary],
    swaps: Mapping[str, Sequence[Swap]],
    stopped: Sequence[str],
    clock: Clock,
) -> AsyncIterator[Finding]:
    """Each thing as soon as it was looked at; changes nothing, and raises nothing that belongs to the household.

    ``told`` is what the backup tells of each source that was put back, ``swaps`` how that was done, ``stopped`` are the
    names of what had been stopped for it. Programs run meanwhile: what they have added since is no trouble.
    """
    if stopped:
        yield await found("services", _running(services, stopped))
    on_disk = {name: [one for one in some if not one.of_databases] for name, some in swaps.items()}
    for name, summary in told.items():
        source = config.source(name)
        if isinstance(source, Replacing):  # of the others nobody knows where they live
            yield await _there(config, source, summary)
        if on_disk.get(name):
            yield await in_thread(partial(_owner, name, on_disk[name]), Stop())
    for name, settings in config.sources.items():
        for finding in await listed.listed(config, name) if told.keys() & {name, *settings.speaks_of()} else ():
            yield finding
    for finding in await in_thread(partial(_room, [one.home for some in on_disk.values() for one in some]), Stop()):
        yield finding
    for name in config.jobs:
        if told.keys() & set(config.job(name).sources):
            yield telling.timetable(config, name, clock)


def by_yourself(config: Config, names: Collection[str]) -> list[str]:
    """What only a person can see of these sources, a sentence each."""
    asked = [sentence for name in names for sentence in config.sources[name].look_yourself]
    return asked or [f"Log in as you do each day, and open something of each: {', '.join(names)}."]


async def _running(services: Sequence[Service], stopped: Sequence[str]) -> str:
    """Raises ServiceError."""
    there = {unit.name for service in services for unit in await service.running()}
    if down := sorted(set(stopped) - there):
        raise ServiceError(f"Had been stopped for it and may not run now: {', '.join(down)}. See why, and start it.")
    return f"as before there run {', '.join(stopped)}"


async def _there(config: Config, source: Source, summary: SourceSummary) -> Finding:
    name = source.name
    if isinstance(source, Recalls):
        return await found(name, source.recalled(summary))
    if config.sources[name].keeps_files:
        try:
            return await _files(source, summary)
        except MemuError as error:
            return Finding(name, False, str(error))
    seen = await sources.source(config, name)
    return Finding(name, seen.good, "is there, and can be read" if seen.good else seen.says)


async def _files(source: Source, summary: SourceSummary) -> Finding:
    """Raises SourceError."""
    stop, told = Stop(), pack.inside(summary)
    with tempfile.TemporaryDirectory() as stage:
        async with source.capture(Path(stage)) as captured:
            files, size_bytes = await in_thread(partial(_counted, captured.roots, stop), stop)
    says = f"{words.files(files)} ({words.size(size_bytes)})"
    if files == told.files and (pack.is_one(summary) or size_bytes == told.size_bytes):
        return Finding(source.name, True, f"{says}, as in the backup")
    return Finding(source.name, files >= told.files, f"{says}; in the backup {words.files(told.files)}")


def _counted(roots: Sequence[Root], stop: Stop) -> tuple[int, int]:
    """Files and their bytes, those of several names once. Blocks."""
    files = size_bytes = 0
    seen = set[tuple[int, int]]()
    for root in roots:
        for entry in walk(root, frozenset(), lambda _: None):
            stop.check()
            status = entry.status
            identity = status.st_dev, status.st_ino
            if not stat.S_ISREG(status.st_mode) or identity in seen:
                continue
            if status.st_nlink > 1:
                seen.add(identity)
            files, size_bytes = files + 1, size_bytes + status.st_size
    return files, size_bytes


def _owner(name: str, swaps: Sequence[Swap]) -> Finding:
    """Whether it belongs to whom what was there before belonged: else its program may not read it. Blocks."""
    for one in swaps:
        try:
            now, before = os.lstat(one.home), os.lstat(one.old)
        except OSError:  # there was nothing before
            continue
        if (now.st_uid, now.st_gid) != (before.st_uid, before.st_gid):
            says = (
                f"{shown(one.home)} belongs to {now.st_uid}:{now.st_gid}, and what was there before to "
                f"{before.st_uid}:{before.st_gid}. Can its program read it? Else: chown -R"
            )
            return Finding(f"owner of {name}", False, says)
    return Finding(f"owner of {name}", True, "nothing has another owner than what was there before")


def _room(homes: Sequence[str]) -> list[Finding]:
    """Of each disk once. Blocks."""
    findings = dict[int, Finding]()
    for home in map(Path, homes):
        try:
            device, disk = home.parent.stat().st_dev, os.statvfs(home.parent)
        except OSError:
            continue
        free_bytes, good = disk.f_bavail * disk.f_frsize, disk.f_bavail >= _SCARCE * disk.f_blocks
        says = f"{words.size(free_bytes)} are free" + ("" if good else "; what is kept goes with: restore --release")
        findings.setdefault(device, Finding(f"disk of {shown(str(home))}", good, says))
    return list(findings.values())

"""Looks at everything that a backup will need, one thing after the other, without changing it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence

from memu_backup.checks import Finding, listed, machine, places, sources, telling
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.history import History
from memu_backup.model import StatusReport
from memu_backup.stores import Store


async def check(
    config: Config,
    stores: Mapping[Store, Sequence[str]],
    history: History,
    ask_reports: Callable[[], Awaitable[Mapping[str, StatusReport]]],
    left_down: Sequence[str],
    clock: Clock,
) -> AsyncIterator[Finding]:
    """Each thing as soon as it was looked at. ``stores`` are the places, with the jobs that use each; ``ask_reports``
    tells where each job stands; ``left_down`` is what a backup had stopped and what may not run.

    Raises nothing that belongs to the household: what is wrong is a finding.
    """
    yield Finding("settings", True, f"{config.path} has no mistakes")
    yield machine.versions()
    yield await machine.rights(config)
    for name in config.sources:
        yield await sources.source(config, name)
        for finding in await listed.listed(config, name):
            yield finding
    for name in config.services:
        yield await sources.service(config, name)
    for finding in await machine.programs(config):
        yield finding
    for finding in (*sources.left_down(left_down), *(f for job in config.jobs for f in sources.window(config, job))):
        yield finding
    reports = await ask_reports()
    for store, jobs in stores.items():
        yield await places.store(store, config.host, history, {job: reports[job] for job in jobs if job in reports})
    for finding in places.drive(config, reports, clock):
        yield finding
    yield await telling.history(config, history)
    if config.off:
        yield Finding("backups", False, config.off)
    for job in config.jobs:
        yield telling.timetable(config, job, clock)
    for finding in (*await telling.ways_out(config), *telling.page(config)):
        yield finding

"""Looks at everything that the settings name, without changing it: sources, places, history, ways to tell somebody."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Iterable
from dataclasses import dataclass
from pathlib import Path

from memu_backup import place, words
from memu_backup.alerts import named
from memu_backup.alerts.apprise import AppriseChannel
from memu_backup.config import Config
from memu_backup.errors import MemuError, SettingsError, StoreError
from memu_backup.history import History
from memu_backup.sources import Lacking
from memu_backup.stores import Store


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check: what was looked at, whether it is as it should be, and a sentence."""

    what: str
    good: bool
    says: str


async def _found(what: str, looking: Awaitable[str]) -> list[Finding]:
    try:
        return [Finding(what, True, await looking)]
    except SettingsError as error:
        return [Finding(what, False, "; ".join(error.problems))]
    except MemuError as error:
        return [Finding(what, False, str(error))]


async def _check_store(store: Store, host: str, history: History) -> str:
    free = await place.asked(store, lambda: _check_place(store.directory))
    await place.found(store, host, history)
    return free


def _check_place(directory: Path, no: str = "") -> str:
    """The folder, or the nearest one above it that is there, since the first backup makes it."""
    there = next(f for f in (directory, *directory.parents) if os.path.lexists(f))
    no = no or f"so no backup can be stored in {directory}"
    if not there.is_dir():
        raise StoreError(f"{there} is a file and not a folder, {no}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"{there} cannot be written to, {no}.")
    free = os.statvfs(there)
    will = "" if there == directory else "will be made by the first backup; "
    return f"{will}{words.size(free.f_bavail * free.f_frsize)} free"


async def check(config: Config, stores: Iterable[Store], history: History) -> list[Finding]:
    """Look at all of it. Raises nothing that belongs to the household: what is wrong is a finding."""
    found = [Finding("settings", True, f"{config.path} has no mistakes")]
    for name in config.sources:
        found += await _check_source(config, name)
    for name in config.services:
        found += await _found(f"service {name}", _check_service(config, name))
    for store in stores:
        found += await _found(f"backups in {store.directory}", _check_store(store, config.host, history))
    found += await _found("history", _check_history(config, history))
    if config.alerts.fallback or config.alerts.fallback_file:
        found += await _found("fallback channels", _check_fallback(config))
    for name, job in config.jobs.items():
        if job.heartbeat or job.heartbeat_file:
            found += await _found(f"heartbeat of {name}", _check_heartbeat(config, name))
    return found


async def _check_fallback(config: Config) -> str:
    urls = config.fallback_urls()
    await AppriseChannel(urls).check()
    return f"{', '.join(map(named, urls))}; nothing was sent, to try them: memu-backup alerts test"


async def _check_heartbeat(config: Config, job: str) -> str:
    return f"{named(config.heartbeat_of(job) or '')}; nothing was sent there"


async def _check_history(config: Config, history: History) -> str:
    if not await history.unmade():
        return await history.check()
    no = "so the history cannot be kept there"
    return f"embedded PostgreSQL; {await asyncio.to_thread(_check_place, config.state_dir, no)}"


async def _check_service(config: Config, name: str) -> str:
    service = config.service(name)
    warnings = await service.check()
    running = ", ".join(unit.name for unit in await service.running())
    return " ".join([*warnings, f"runs now: {running}" if running else "nothing of it runs now"])


async def _check_source(config: Config, name: str) -> list[Finding]:
    what = f"source {name}"
    try:
        warnings = await config.source(name).check()
    except MemuError as error:
        return [Finding(what, False, str(error))]
    good = not any(isinstance(w, Lacking) for w in warnings)
    return [Finding(what, good, " ".join(warnings) or "can be backed up")]

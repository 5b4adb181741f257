"""What is backed up, and what stands still meanwhile."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from itertools import groupby

from memu_backup.checks import Finding, found
from memu_backup.config import Config
from memu_backup.errors import MemuError
from memu_backup.files import shown
from memu_backup.sources import Lacking


async def source(config: Config, name: str) -> Finding:
    what = f"source {name}"
    try:
        warnings = await config.source(name).check()
    except MemuError as error:
        return Finding(what, False, str(error))
    good = not any(isinstance(w, Lacking) for w in warnings)
    settings = config.sources[name]
    for key, argvs in (("before_start", settings.before_start), ("after_restore", settings.after_restore)):
        warnings += [
            f"The program {shown(argv[0])}, which sources.{name}.{key} names, is not there, and would not run once it "
            "was put back."
            for argv in argvs
            if shutil.which(argv[0]) is None
        ]
    return Finding(what, good, " ".join(warnings) or "can be backed up")


async def service(config: Config, name: str) -> Finding:
    return await found(f"service {name}", _service(config, name))


async def _service(config: Config, name: str) -> str:
    service = config.service(name)
    warnings = await service.check()
    at_once = [_and([unit.name for unit in units]) for _, units in groupby(await service.running(), lambda u: u.rank)]
    now = f"runs now, and is stopped in this order: {', then '.join(at_once)}" if at_once else "nothing of it runs now"
    return " ".join([*warnings, now])


def window(config: Config, name: str) -> list[Finding]:
    """What a job reads while its services stand still; nothing where none does."""
    job = config.job(name)
    if not job.services:
        return []
    still = [source for source in job.sources if source in job.needs_stop]
    others = [source for source in job.sources if source not in job.needs_stop]
    says = f"{_and(job.services)} stand{'s' if len(job.services) == 1 else ''} still for {_and(still)}"
    runs = f"; read while all runs: {_and(others)}" if others else ""
    return [Finding(f"window of {name}", True, f"{says}{runs}")]


def left_down(names: Sequence[str]) -> list[Finding]:
    """``names`` is what a backup that is over had stopped and that may not run."""
    if not names:
        return []
    says = f"{_and(names)} had been stopped for a backup and may not run; type: memu-backup services recover"
    return [Finding("services left down", False, says)]


def _and(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))

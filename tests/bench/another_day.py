"""Makes a backup as ``memu-backup start --json`` does, with a clock that goes some days ahead.

What was changed within the last minutes is read again, whatever it is: in a bench that would be all there is, while a
household's nights are a day apart. libfaketime would do it, too, at three times the processor's time.
"""

from __future__ import annotations

import asyncio
import gc
import os
import sys
from datetime import timedelta
from pathlib import Path

from memu_backup import as_json, console
from memu_backup.audit import at_the_terminal
from memu_backup.clock import now
from memu_backup.config import load
from memu_backup.manager import Manager, history_of
from memu_backup.model import Status, Trigger


async def start(settings: Path, days: int) -> Status:
    config = load(settings, {})
    async with history_of(config) as history:
        manager = Manager(config, history, lambda: now() + timedelta(days=days))
        with console.progress() as on_progress:
            row = await manager.back_up(next(iter(config.jobs)), Trigger.MANUAL, at_the_terminal(), on_progress)
    console.print_json(as_json.run(row))
    return row.status


if __name__ == "__main__":
    os.umask(0o077)
    gc.set_threshold(50_000)  # as the command does
    sys.exit(asyncio.run(start(Path(sys.argv[1]), int(sys.argv[2]))) is not Status.SUCCESS)

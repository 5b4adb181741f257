"""Months of nights in seconds: a preset's own timetable, with a clock that is handed in."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from memu_backup.config import load
from memu_backup.manager import Manager, history_of
from memu_backup.nights import Nights
from tests.home import PROGRAM, Ran, ran

OWNER = 33
"""Of what a program keeps, where the tests are root."""


class Box:
    """A system in ``home``, backed up by the settings that ``init`` wrote for it into ``folder``."""

    def __init__(self, folder: Path, preset: str, history: str) -> None:
        self.folder, self.preset, self._history = folder, preset, history
        self.home = folder / "opt" / preset
        self.file = folder / "etc" / "config.toml"
        self.file.parent.mkdir(parents=True)
        self.home.mkdir(parents=True)
        self.environ: dict[str, str] = {}

    def init(self) -> Ran:
        """And, at the top of what it wrote, where a test keeps its state."""
        made = self.run("init", "--preset", self.preset, "--home", str(self.home), "--to", str(self.file))
        top = f'timezone = "Europe/Berlin"\nhost = "box"\nstate_dir = "{self.folder}/state"\n'
        self.file.write_text(f'{top}{self.file.read_text()}\n[history]\nurl = "{self._history}"\n')
        return made

    def run(self, *argv: str) -> Ran:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("MEMU_", "BACKUP_", "SUDO_", "DOCKER_"))}
        environ = {**plain, "DOCKER_HOST": f"unix://{self.folder}/nobody.sock", **self.environ}
        which = [] if argv[0] == "init" else ["--config", str(self.file)]
        return ran([PROGRAM, *which, *argv], self.folder, environ)

    def fine(self, *argv: str) -> Ran:
        done = self.run(*argv)
        assert done.status == 0, done
        return done

    def release(self) -> None:
        """What restores have replaced goes."""
        if self.file.exists():
            self.run("restore", "--release", "--yes")

    @asynccontextmanager
    async def managed(self, at: list[datetime]) -> AsyncIterator[Manager]:
        config = load(self.file, self.environ)
        async with history_of(config) as history:
            yield Manager(config, history, lambda: at[0])


def given_to_its_owner(*paths: Path) -> None:
    if os.geteuid() == 0:
        for path in paths:
            os.chown(path, OWNER, OWNER)


async def nights(
    manager: Manager,
    at: list[datetime],
    until: datetime,
    before: Callable[[str, datetime], object],
    after: Callable[[str, datetime], object],
) -> None:
    """All that is due after ``at[0]`` and up to ``until``, each when it is, one after the other."""
    begun: list[asyncio.Task[None]] = []

    def start(work: Coroutine[Any, Any, None], name: str) -> None:
        begun.append(asyncio.create_task(work, name=name))

    timetable = Nights(manager.config, manager, start, lambda: at[0])
    while True:
        due = {name: moment for name, table in timetable.tables.items() if (moment := table.next_after(at[0]))}
        at[0] = min(due.values())
        if at[0] > until:
            return
        for job in [name for name, moment in due.items() if moment == at[0]]:
            before(job, at[0])
            timetable.look(job)
            assert begun, f"{job} was due at {at[0]}"
            while begun:  # what is stored is re-read after it
                await begun.pop(0)
            after(job, at[0])


def dated(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir() if p.name[:2] == "20")


def contents(folder: Path) -> Mapping[str, tuple[object, ...]]:
    """Each file below it with all that a restore has to bring back, databases apart."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".db":
            status = path.stat()
            attributes = (status.st_mode, status.st_uid, status.st_gid, status.st_mtime_ns)
            found[str(path.relative_to(folder))] = (path.read_bytes(), *attributes)
    return found

"""The service as a real process: with a systemd of the test's own to talk to, on request under a clock of its own."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import asyncpg
import psutil
import pytest

from memu_backup.config import load
from memu_backup.manager import places

PROGRAM = str(Path(sys.executable).with_name("memu-backup"))

NIGHTLY = '[jobs.nightly]\nat = "02:00"\n'
NO_DRILL = "[drill]\nenabled = false\n"


def settings(
    folder: Path,
    sources: str,
    *,
    history: str | None,
    jobs: str = NIGHTLY,
    host: str = "homeserver",
    more: str = "",
) -> Path:
    """A config.toml in ``folder``, the backups beside it, in a place marked as ``init`` does it; Berlin's clocks. No
    backup is tried by itself unless ``jobs`` say so: what is asked here is what happens at night.
    """
    folder.mkdir(exist_ok=True)
    file = folder / "config.toml"
    table = f'[history]\nurl = "{history}"\n' if history else ""
    file.write_text(
        f'backup_dir = "backups"\nstate_dir = "state"\nhost = "{host}"\ntimezone = "Europe/Berlin"\n{more}\n'
        f"{table}\n{sources}\n{jobs}\n{'' if '[drill]' in jobs else NO_DRILL}"
    )
    config = load(file, {})
    for store in places(config):
        store.mark(config.host, datetime.now(UTC))
    return file


def command(config: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([PROGRAM, "--config", str(config), *argv], capture_output=True, text=True)


def archives(folder: Path) -> list[Path]:
    """The backups of ``settings`` in the same folder."""
    return sorted((folder / "backups").glob("*.tar.gz"))


class Clock:
    """What the service takes for the time; other processes and its own pauses go by the real one."""

    def __init__(self, folder: Path, start: str = "2026-11-20T20:00:00") -> None:
        """``start`` is in UTC, ISO 8601."""
        libraries = sorted(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1"))
        if not libraries:
            pytest.skip("needs Debian's faketime package")
        self._offset = folder / "offset"
        self.set(start)
        self.environment = {
            "LD_PRELOAD": str(libraries[0]),
            "FAKETIME_TIMESTAMP_FILE": str(self._offset),
            "FAKETIME_CACHE_DURATION": "1",
            "FAKETIME_DONT_FAKE_MONOTONIC": "1",
            "NO_FAKE_STAT": "1",
            "PYTHONPATH": str(Path(__file__).parent / "faketime"),
        }

    def set(self, moment: str) -> None:
        seconds = datetime.fromisoformat(moment).replace(tzinfo=UTC).timestamp() - time.time()
        new = self._offset.with_name("offset.new")
        new.write_text(f"{seconds:+.3f}\n")
        new.rename(self._offset)

    def now(self) -> datetime:
        return datetime.fromtimestamp(time.time() + float(self._offset.read_text()), UTC)


class Service:
    """``memu-backup run``. Use as ``async with``; at the end nothing of it is left running."""

    def __init__(
        self,
        config: Path,
        clock: Clock | None = None,
        *,
        watchdog_s: float = 1.0,
        notify: str | None = None,
        prefix: tuple[str, ...] = (),
    ) -> None:
        """``prefix`` is what starts the program."""
        self._prefix = prefix
        self._config = config
        self._mark = uuid4().hex
        self._errors = config.with_name(f"errors-{self._mark[:8]}.txt")
        self._notify = notify or str(config.with_name(f"notify-{self._mark[:8]}"))
        self._environment = {
            **os.environ,
            **(clock.environment if clock else {}),
            "MEMU_TEST": self._mark,
            "NOTIFY_SOCKET": self._notify,
            "WATCHDOG_USEC": str(int(watchdog_s * 1e6)),
        }
        self.messages: list[tuple[float, str]] = []
        self.begun = 0.0

    async def __aenter__(self) -> Self:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._socket.bind(self._notify.replace("@", "\0"))
        asyncio.get_running_loop().add_reader(self._socket, self._hear)
        self.begun = time.monotonic()
        with self._errors.open("wb") as errors:
            self.process = await asyncio.create_subprocess_exec(
                *self._prefix, PROGRAM, "--config", self._config, "run", env=self._environment, stderr=errors
            )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        asyncio.get_running_loop().remove_reader(self._socket)
        self._socket.close()
        for left in self.alive():
            with suppress(psutil.NoSuchProcess):
                left.kill()
        await self.process.wait()
        if error is not None:
            sys.stderr.write(self.log())

    def _hear(self) -> None:
        with suppress(BlockingIOError):
            while True:
                self.messages.append((time.monotonic(), self._socket.recv(4096).decode()))

    def said(self, message: str) -> list[float]:
        """When it said this to systemd, by time.monotonic()."""
        return [at for at, said in self.messages if said == message]

    def log(self) -> str:
        return self._errors.read_text()

    async def until(self, condition: Callable[[], Any], patience_s: float = 15.0) -> None:
        deadline = time.monotonic() + patience_s
        while not condition():
            assert self.process.returncode is None, f"it ended with {self.process.returncode}\n{self.log()}"
            assert time.monotonic() < deadline, f"did not happen in {patience_s} s\n{self.log()}"
            await asyncio.sleep(0.01)

    async def ready(self) -> None:
        await self.until(lambda: self.said("READY=1"))

    async def at_two(self, clock: Clock) -> None:
        """Let it be 02:00 in the night to 2026-11-21, once the service is there."""
        await self.ready()
        clock.set("2026-11-21T00:59:59.9")

    async def logs(self, text: str, times: int = 1) -> None:
        await self.until(lambda: self.log().count(text) >= times)

    async def stop(self, number: signal.Signals = signal.SIGTERM, *more: signal.Signals) -> float:
        """Send it these signals; returns how many seconds it took to end. It has to end well."""
        begun = time.monotonic()
        for signum in (number, *more):
            with suppress(ProcessLookupError):  # it was quicker
                self.process.send_signal(signum)
            await asyncio.sleep(0.01)
        assert await asyncio.wait_for(self.process.wait(), 15) == 0, self.log()
        return time.monotonic() - begun

    def alive(self) -> list[psutil.Process]:
        """All that comes of it and runs, whoever its parent is by now."""
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get("MEMU_TEST") == self._mark and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found

    def running(self, *words: str) -> list[psutil.Process]:
        """Those of its processes in whose command line all these words stand."""
        found = []
        for process in self.alive():
            with suppress(psutil.NoSuchProcess):
                line = " ".join(process.cmdline())
                found += [process] if all(w in line for w in words) else []
        return found


async def rows(url: str, host: str = "homeserver") -> list[asyncpg.Record]:
    """What the history tells of a machine, oldest first; empty before its tables are there."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        return list(await connection.fetch("SELECT * FROM backup_history WHERE host = $1 ORDER BY id", host))
    except asyncpg.UndefinedTableError:
        return []
    finally:
        await connection.close()


async def audit(url: str) -> list[tuple[str, ...]]:
    """Who did what, from where, oldest first."""
    connection = await asyncpg.connect(url, timeout=5)
    try:
        query = "SELECT actor, origin, action, subject, outcome FROM backup_audit ORDER BY created_at"
        return [tuple(row.values()) for row in await connection.fetch(query)]
    finally:
        await connection.close()

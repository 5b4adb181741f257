"""Kills a real process at a chosen moment, and asks afterwards what a family has to be able to rely on.

strace(1) sends the SIGKILL when the process is about to make a certain system call: the call is never made.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from memu_backup.lock import NAME as LOCK
from memu_backup.mark import NAME as MARK
from tests.home import Home, wait_until


def _can_trace() -> bool:
    strace = shutil.which("strace")
    return strace is not None and subprocess.run([strace, "-qq", "-o", os.devnull, "true"]).returncode == 0


needs_strace = pytest.mark.skipif(not _can_trace(), reason="strace is missing or may not trace here")


@dataclass(frozen=True)
class Moment:
    """Before a thread of the process makes this system ``call`` for the ``nth`` time, on ``path`` where one is given.

    Several names for one call (``unlink,unlinkat``: not every machine has both) are divided by commas.
    """

    call: str
    nth: int = 1
    path: Path | None = None

    @property
    def prefix(self) -> tuple[str, ...]:
        """What stands before a command that is to be killed then."""
        calls = ",".join(f"?{name}" for name in self.call.split(","))
        where = ("-P", str(self.path)) if self.path else ()
        kill = f"inject={calls}:signal=KILL:when={self.nth}"
        return ("strace", "-f", "-qq", "-o", os.devnull, *where, "-e", f"trace={calls}", "-e", kill)


@contextmanager
def waiting_for(moment: Moment, pid: int) -> Iterator[None]:
    """A process that runs already is killed at that moment, if it comes while this lasts."""
    with subprocess.Popen([*moment.prefix, "-p", str(pid)], stderr=subprocess.DEVNULL) as strace:
        try:
            status = Path(f"/proc/{pid}/status")
            wait_until(lambda: "TracerPid:\t0\n" not in status.read_text())
            yield
        finally:
            strace.terminate()


def hashes(folder: Path) -> dict[str, str]:
    """The SHA-256 of every backup, checksum and pin that lies there."""
    return {
        p.name: hashlib.sha256(p.read_bytes()).hexdigest()
        for p in folder.iterdir()
        if p.is_file() and p.name not in (LOCK, MARK) and ".partial" not in p.name
    }


def listed(home: Home) -> list[str]:
    """The backups that a person is shown, the oldest first; each of them is whole."""
    shown: list[dict[str, Any]] = home.run("list", "--json").json
    assert {b["state"] for b in shown} <= {"good"}, shown
    return sorted(b["name"] for b in shown)


def assert_tidy(home: Home) -> None:
    """Nothing lies there but backups, each with its checksum."""
    assert home.leftovers() == []
    names = set(hashes(home.backups))
    assert {n for n in names if n.endswith(".sha256")} == {f"{n}.sha256" for n in names if n.endswith(".gz")}


def told(home: Home) -> list[tuple[str, str | None]]:
    """What the history says of each run, the oldest first."""
    return [(r["status"], r["error_code"]) for r in reversed(home.rows())]

"""Runs a child process so that cancelling or timing out ends its whole group, never only the await."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass

TERM_GRACE_S = 3.0
"""How long a group may take after SIGTERM before it gets SIGKILL; small beside the daemon's 10 s to stop."""


@dataclass(frozen=True, slots=True)
class Completed:
    """What a child left behind. A negative ``returncode`` is the signal that ended it."""

    argv: tuple[str, ...]
    returncode: int
    stdout: bytes
    stderr: bytes

    @property
    def last_error_line(self) -> str:
        """The last line on stderr that says something, for use inside a sentence."""
        lines = [line.strip() for line in self.stderr.decode(errors="replace").splitlines() if line.strip()]
        return lines[-1] if lines else f"exit status {self.returncode}"


async def run(
    argv: Sequence[str],
    *,
    env: Mapping[str, str] | None = None,
    stdin: bytes | None = None,
    timeout_s: float | None = None,
    niceness: int = 0,
) -> Completed:
    """Run ``argv`` to its end and return what it printed.

    ``env`` is added to our own environment: the place for passwords, which never go into argv. Raises
    FileNotFoundError when there is no such program and TimeoutError after ``timeout_s``. In both that case and on
    cancellation the child's process group has ended before this returns.
    """
    child = await asyncio.create_subprocess_exec(
        *argv,
        stdin=asyncio.subprocess.PIPE if stdin is not None else asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        start_new_session=True,
    )
    if niceness:
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, child.pid, niceness)
    try:
        async with asyncio.timeout(timeout_s):
            stdout, stderr = await child.communicate(stdin)
    finally:
        if child.returncode is None:
            await _end_group(child)
    assert child.returncode is not None
    return Completed(tuple(argv), child.returncode, stdout, stderr)


async def _end_group(child: asyncio.subprocess.Process) -> None:
    """TERM, a moment, KILL; shielded, so that a second cancellation cannot leave the group behind."""

    async def end() -> None:
        for number, patience_s in ((signal.SIGTERM, TERM_GRACE_S), (signal.SIGKILL, None)):
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            with suppress(TimeoutError):
                await asyncio.wait_for(child.wait(), patience_s)
                return

    await asyncio.shield(asyncio.create_task(end()))

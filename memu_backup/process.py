"""Runs a child process so that cancelling or timing out ends its whole group, never only the await."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from io import FileIO
from pathlib import Path

from memu_backup import work

NOWHERE = asyncio.subprocess.DEVNULL

TERM_GRACE_S = 3.0
"""How long a group may take after the first signal before it gets SIGKILL; small beside the daemon's 10 s to stop."""

_KILL_GRACE_S = 2.0
"""After SIGKILL only a process that waits for a broken disk is left, and nobody can end that one."""

_FIRST_POLL_S, _LONGEST_POLL_S = 0.01, 0.25
"""Each look reads all of /proc: what does not end at once is looked at less and less often."""

_BLOCK_BYTES = 1 << 20
_COMPLAINTS_BYTES = 1 << 16
"""How much is kept of what a child complains of beside a long output: the end of it."""


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
    stdin: bytes | FileIO | None = None,
    stdout: int = asyncio.subprocess.PIPE,
    timeout_s: float | None = None,
    gentle: bool = False,
    stop_with: signal.Signals = signal.SIGTERM,
    folder: Path | None = None,
) -> Completed:
    """Run ``argv`` to its end and return what it printed, which is held in memory unless ``stdout`` leads elsewhere.

    ``env`` is added to our own environment: the place for passwords, which never go into argv. ``gentle`` gives way
    to everything else on the machine, as in ``work.in_thread``. ``folder`` is where it runs, ours unless given. Raises
    FileNotFoundError when there is no such program and TimeoutError after ``timeout_s``. In that case and on
    cancellation the child's process group gets ``stop_with`` and after 3 s SIGKILL, and has ended before this returns.
    """
    given = asyncio.subprocess.PIPE if isinstance(stdin, bytes) else stdin or asyncio.subprocess.DEVNULL
    child = await _started(argv, given, stdout, env, folder, stop_with, gentle=gentle)
    try:
        async with asyncio.timeout(timeout_s):
            printed, stderr = await child.communicate(stdin if isinstance(stdin, bytes) else None)
    except BaseException:
        await _end_group(child, stop_with)
        raise
    assert child.returncode is not None
    return Completed(tuple(argv), child.returncode, printed or b"", stderr)


async def run_into(
    argv: Sequence[str],
    write: Callable[[bytes], None],
    *,
    stall_s: float,
    env: Mapping[str, str] | None = None,
    gentle: bool = False,
    folder: Path | None = None,
    descriptors: Sequence[int] = (),
    stop_with: signal.Signals = signal.SIGTERM,
) -> Completed:
    """As ``run``, with what it prints given to ``write`` in blocks, each in a thread; of its stderr the end is kept.

    It has these ``descriptors`` of ours, by their numbers. It is done once nobody holds its output any more, children
    of its own neither. Raises TimeoutError when it has printed nothing for ``stall_s``, and what ``write`` raises; it
    has ended then.
    """
    void, pipe = asyncio.subprocess.DEVNULL, asyncio.subprocess.PIPE
    child = await _started(argv, void, pipe, env, folder, stop_with, gentle=gentle, descriptors=descriptors)
    assert child.stdout and child.stderr
    complaining = asyncio.ensure_future(_end_of(child.stderr))
    try:
        async with asyncio.timeout(stall_s) as limit:
            while block := await child.stdout.read(_BLOCK_BYTES):
                limit.reschedule(None)  # a slow disk is no fault of the child's
                await work.in_thread(partial(write, block), work.Stop(), gentle=gentle)
                limit.reschedule(asyncio.get_running_loop().time() + stall_s)
            stderr = await complaining
            returncode = await child.wait()
    except BaseException:
        complaining.cancel()
        await _end_group(child, stop_with)
        raise
    return Completed(tuple(argv), returncode, b"", stderr)


async def _end_of(stream: asyncio.StreamReader) -> bytes:
    end = b""
    while block := await stream.read(_COMPLAINTS_BYTES):
        end = (end + block)[-_COMPLAINTS_BYTES:]
    return end


def _write(file: FileIO, block: bytes) -> None:
    rest = memoryview(block)
    while rest:
        rest = rest[file.write(rest) :]


async def run_fed(
    argv: Sequence[str],
    blocks: Iterator[bytes],
    *,
    env: Mapping[str, str] | None = None,
    stdout: int = asyncio.subprocess.PIPE,
    gentle: bool = False,
    folder: Path | None = None,
) -> Completed:
    """As ``run``, with ``blocks`` for stdin. One thread takes, writes and closes them: the next may be long in coming.

    A child that leaves before the end of its input is no error. What ``blocks`` raises comes out, and the child is
    ended. Cancelled or not, child and thread have ended before this returns.
    """
    stop = work.Stop()
    reading_end, writing_end = os.pipe()
    with FileIO(reading_end, "r") as reading, FileIO(writing_end, "w") as writing:

        async def read() -> Completed:
            with reading:  # once it is closed here too, whoever still writes learns that nobody reads
                return await run(argv, env=env, stdin=reading, stdout=stdout, gentle=gentle, folder=folder)

        try:
            async with asyncio.TaskGroup() as both:
                running = both.create_task(read())
                both.create_task(work.in_thread(lambda: _feed(writing, blocks, stop), stop, gentle=gentle))
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from None  # the other one was cancelled for it
    return running.result()


def _feed(pipe: FileIO, blocks: Iterator[bytes], stop: work.Stop) -> None:
    try:
        with pipe, suppress(BrokenPipeError):
            for block in blocks:
                stop.check()
                _write(pipe, block)
    finally:
        if isinstance(blocks, Generator):
            blocks.close()  # and with it the file that it reads


async def _started(
    argv: Sequence[str],
    stdin: int | FileIO,
    stdout: int,
    env: Mapping[str, str] | None,
    folder: Path | None,
    stop_with: signal.Signals,
    *,
    gentle: bool,
    descriptors: Sequence[int] = (),
) -> asyncio.subprocess.Process:
    spawning = asyncio.create_subprocess_exec(
        *argv,
        stdin=stdin,
        stdout=stdout,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, **(env or {})},
        cwd=folder,
        start_new_session=True,
        pass_fds=descriptors,
        limit=_BLOCK_BYTES,
    )
    child = await _spawned(asyncio.ensure_future(spawning), stop_with)
    if gentle:
        work.be_gentle(child.pid)
    return child


async def _spawned(
    spawning: asyncio.Future[asyncio.subprocess.Process], stop_with: signal.Signals
) -> asyncio.subprocess.Process:
    """Cancelled while it waits, asyncio would end the child alone, and not what that may have started already."""
    if await work.ended(spawning):
        if spawning.exception() is None:
            await _end_group(spawning.result(), stop_with)
        raise asyncio.CancelledError
    return spawning.result()


async def _end_group(child: asyncio.subprocess.Process, stop_with: signal.Signals) -> None:
    """A word, a moment, SIGKILL. The child may be gone already and have left children of its own in the group."""

    def ended() -> bool:
        return child.returncode is not None and not _lives(child.pid)

    cancelled = False
    for number, patience_s in ((stop_with, TERM_GRACE_S), (signal.SIGKILL, _KILL_GRACE_S)):
        if not ended():
            with suppress(ProcessLookupError):
                os.killpg(child.pid, number)
            cancelled |= await _wait_for(ended, patience_s)
    # A process that has left the group may hold the pipes open, and asyncio waits for their end before it lets go.
    child._transport.close()  # type: ignore[attr-defined]
    if cancelled:
        raise asyncio.CancelledError


def _lives(group: int) -> bool:
    """Whether any of its processes still runs. The kernel's own answer counts those that wait for PID 1 to bury them,
    and in many a container it never does.
    """
    for status in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):  # gone meanwhile
            state, _, its_group = status.read_text("latin-1").rpartition(")")[2].split()[:3]
            if int(its_group) == group and state not in "ZX":
                return True
    return False


async def _wait_for(condition: Callable[[], bool], patience_s: float) -> bool:
    """Wait on, however often we are cancelled meanwhile; returns whether we were."""
    cancelled = False
    deadline = time.monotonic() + patience_s
    pause_s = _FIRST_POLL_S
    while not condition() and time.monotonic() < deadline:
        try:
            await asyncio.sleep(pause_s)
        except asyncio.CancelledError:
            cancelled = True
        pause_s = min(2 * pause_s, _LONGEST_POLL_S)
    return cancelled

"""Blocking work: one thread a unit (a whole archive), with a flag that is looked at for each block."""

from __future__ import annotations

import asyncio
import contextvars
import ctypes
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from memu_backup.errors import Interrupted

log = logging.getLogger(__name__)

T = TypeVar("T")

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8


def _with_one_heap() -> ctypes.CDLL | None:
    """Where malloc can be told so, all threads share one heap. Of one of its own, what lies free at its end is not
    given back by malloc_trim, and a service would hold tens of MB of each for ever.
    """
    libc = ctypes.CDLL(None)
    if not (hasattr(libc, "mallopt") and hasattr(libc, "malloc_trim")):
        return None
    libc.mallopt(_M_ARENA_MAX, 1)
    return libc


_LIBC = _with_one_heap()  # now: a thread that is there already keeps its heap


class Stop:
    """Asks working threads to end soon. ``check`` raises Interrupted once ``set`` was called, from any thread."""

    def __init__(self) -> None:
        self._asked = False

    def set(self) -> None:
        self._asked = True

    def check(self) -> None:
        if self._asked:
            raise Interrupted("It was interrupted before it was done; older backups are untouched.")


@dataclass(slots=True)
class _Outcome(Generic[T]):
    result: T | None = None
    failure: BaseException | None = None


async def in_thread(work: Callable[[], T], stop: Stop, *, gentle: bool = False) -> T:
    """Run ``work`` in a thread of its own. When cancelled, sets ``stop`` and returns only after the thread has ended.

    A cancellation may come too late to stop it: then what it did is done, and nobody is given what it returned.
    ``gentle`` gives way to everything else on the machine: nice 10 and idle I/O, for this thread and those it starts.
    """
    thread, done = _started(work, gentle)
    # The caller is about to delete what the thread writes to: it has to have ended first.
    cancelled = await ended(done, stop.set)
    thread.join()
    outcome = done.result()
    if not cancelled:
        if outcome.failure is not None:
            raise outcome.failure
        return cast(T, outcome.result)
    if outcome.failure is not None and not isinstance(outcome.failure, Interrupted):
        log.warning("While it was being stopped: %s", outcome.failure)
    raise asyncio.CancelledError


async def ended(work: asyncio.Future[Any], on_cancelled: Callable[[], object] = lambda: None) -> bool:
    """Wait until ``work`` has ended, however often we are cancelled meanwhile; ``on_cancelled`` is told each time.
    Returns whether we were; whoever was has to raise CancelledError.
    """
    cancelled = False
    while not work.done():
        try:
            await asyncio.wait({work})
        except asyncio.CancelledError:
            cancelled = True
            on_cancelled()
    return cancelled


async def look(question: Callable[[], T], timeout_s: float) -> T:
    """Ask something of a disk that may not answer, a dead network mount for one. Raises TimeoutError.

    The thread that asks is then left to itself, as when this is cancelled: nobody can end what waits in the kernel.
    """
    _, done = _started(question, gentle=False)
    async with asyncio.timeout(timeout_s):
        outcome = await asyncio.shield(done)
    if outcome.failure is not None:
        raise outcome.failure
    return cast(T, outcome.result)


def _started(work: Callable[[], T], gentle: bool) -> tuple[threading.Thread, asyncio.Future[_Outcome[T]]]:
    loop = asyncio.get_running_loop()
    done: asyncio.Future[_Outcome[T]] = loop.create_future()
    context = contextvars.copy_context()  # log lines of the thread belong to our run

    def body() -> None:
        outcome: _Outcome[T] = _Outcome()
        try:
            if gentle:
                be_gentle()
            with _large_blocks():
                outcome.result = context.run(work)
        except BaseException as error:
            outcome.failure = error
        with suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(done.set_result, outcome)

    # A thread of its own and not the shared pool: niceness sticks to a thread.
    thread = threading.Thread(target=body, name="memu-work", daemon=True)
    thread.start()
    return thread, done


@contextmanager
def _large_blocks() -> Iterator[None]:
    """Blocks of megabytes come and go by the thousand: glibc would take each anew from the kernel, page by page, which
    costs as much as packing them. It keeps them meanwhile, and gives back at the end. See mallopt(3).
    """
    if _LIBC is None:
        yield
        return
    _LIBC.mallopt(_M_MMAP_THRESHOLD, 64 << 20)
    _LIBC.mallopt(_M_TRIM_THRESHOLD, 64 << 20)
    try:
        yield
    finally:
        _LIBC.malloc_trim(0)


def be_gentle(process: int | None = None) -> None:
    """Make this thread, or a ``process``, nice 10 with idle I/O; where the kernel refuses, it stays as it was."""
    import psutil  # 15 ms that most commands need not wait for

    number = threading.get_native_id() if process is None else process
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, number, 10)
    with suppress(psutil.Error, OSError):
        psutil.Process(number).ionice(psutil.IOPRIO_CLASS_IDLE)

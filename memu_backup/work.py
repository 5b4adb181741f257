"""Blocking work: one thread a unit (a whole archive), with a flag that is looked at for each block."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

import psutil

from memu_backup.errors import Interrupted

T = TypeVar("T")


class Stop:
    """Asks working threads to end soon. ``check`` raises Interrupted once ``set`` was called, from any thread."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        self._event.set()

    def check(self) -> None:
        if self._event.is_set():
            raise Interrupted("The backup was interrupted before it was done; older backups are untouched.")


async def in_thread(work: Callable[[], T], stop: Stop, *, gentle: bool = False) -> T:
    """Run ``work`` in a thread of its own. When cancelled, sets ``stop`` and returns only after the thread has ended.

    ``gentle`` gives way to everything else on the machine: nice 10 and idle I/O, for this thread and those it starts.
    """

    def run() -> T:
        if gentle:
            be_gentle()
        return work()

    # A thread of its own and not the shared pool: niceness sticks to a thread.
    done: asyncio.Future[T] = asyncio.get_running_loop().create_future()
    loop = asyncio.get_running_loop()

    def finish(result: T | None, error: BaseException | None) -> None:
        if not done.done():
            done.set_exception(error) if error else done.set_result(result)  # type: ignore[arg-type]

    def body() -> None:
        result: T | None = None
        failure: BaseException | None = None
        try:
            result = run()
        except BaseException as error:
            failure = error
        with suppress(RuntimeError):  # the loop is gone: nobody waits any more
            loop.call_soon_threadsafe(finish, result, failure)

    threading.Thread(target=body, name="memu-work", daemon=True).start()
    try:
        return await asyncio.shield(done)
    except asyncio.CancelledError:
        stop.set()
        # The caller is about to delete what the thread writes to: it has to have ended first.
        while not done.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait({done})
        done.exception()  # looked at, so that asyncio does not complain of it
        raise


def be_gentle() -> None:
    """Make the calling thread nice 10 with idle I/O. Where the kernel refuses, it stays as it was."""
    with suppress(OSError):
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), 10)
    with suppress(psutil.Error, OSError):
        psutil.Process(threading.get_native_id()).ionice(psutil.IOPRIO_CLASS_IDLE)

"""Holds ``work.in_thread`` to its promise: whoever was cancelled goes on only after the thread has ended."""

from __future__ import annotations

import asyncio
import logging
import os
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextvars import ContextVar

import psutil
import pytest

from memu_backup.errors import DiskFull, Interrupted
from memu_backup.work import Stop, in_thread


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    me = psutil.Process()
    descriptors, threads = me.num_fds(), threading.active_count()
    yield
    assert me.num_fds() <= descriptors
    assert threading.active_count() <= threads


class Blocks:
    """Work of many blocks that looks at the flag for each, takes its time to end, and then may say something."""

    def __init__(self, last_words: Exception | None = None, *, deaf: bool = False) -> None:
        self.stop = Stop()
        self.begun = threading.Event()
        self.ended = False
        self._last_words = last_words
        self._deaf = deaf

    def __call__(self) -> str:
        self.begun.set()
        try:
            for _ in range(40 if self._deaf else 10_000):
                time.sleep(0.005)
                if not self._deaf:
                    self.stop.check()
        except Interrupted:
            time.sleep(0.2)
            if self._last_words:
                raise self._last_words from None
            raise
        finally:
            self.ended = True
        return "done"

    async def started(self) -> asyncio.Task[str]:
        task = asyncio.create_task(in_thread(self, self.stop))
        while not self.begun.is_set():
            await asyncio.sleep(0.001)
        return task


async def test_what_the_work_returns_comes_back_while_others_go_on() -> None:
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while True:
            await asyncio.sleep(0.001)
            ticks += 1

    def work() -> str:
        time.sleep(0.1)
        return threading.current_thread().name

    ticking = asyncio.create_task(tick())
    assert await in_thread(work, Stop()) == "memu-work"
    ticking.cancel()
    assert ticks > 10


@pytest.mark.parametrize("error", [DiskFull("full"), ValueError("odd"), Interrupted("stopped"), KeyboardInterrupt()])
async def test_exceptions_pass_as_they_are(error: BaseException) -> None:
    def fail() -> None:
        raise error

    with pytest.raises(type(error)) as caught:
        await in_thread(fail, Stop())
    assert caught.value is error


async def test_an_exhausted_iterator_in_the_thread_does_not_hang_the_run() -> None:
    with pytest.raises(RuntimeError):
        await asyncio.wait_for(in_thread(lambda: next(iter(())), Stop()), 2)


async def test_cancelling_stops_the_thread_and_waits_for_its_end() -> None:
    work = Blocks()
    task = await work.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_a_second_cancellation_does_not_cut_the_wait_short() -> None:
    work = Blocks()
    task = await work.started()
    while not task.done():
        task.cancel()
        await asyncio.sleep(0.02)
    assert task.cancelled()
    assert work.ended


async def test_work_that_was_done_before_it_heard_is_waited_for_too() -> None:
    work = Blocks(deaf=True)
    task = await work.started()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert work.ended


async def test_a_timeout_counts_as_cancelling() -> None:
    work = Blocks()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.05):
            await in_thread(work, work.stop)
    assert work.ended


async def test_an_error_while_stopping_is_not_lost(caplog: pytest.LogCaptureFixture) -> None:
    work = Blocks(DiskFull("The disk is full."))
    task = await work.started()
    task.cancel()
    with caplog.at_level(logging.WARNING), pytest.raises(asyncio.CancelledError):
        await task
    assert "The disk is full." in caplog.text


async def test_the_thread_knows_whose_work_it_does() -> None:
    whose: ContextVar[str] = ContextVar("whose")
    whose.set("run 1")
    assert await in_thread(whose.get, Stop()) == "run 1"


async def test_only_gentle_work_is_gentle_and_only_its_own_thread() -> None:
    def ask() -> tuple[int, int]:
        thread = threading.get_native_id()
        return os.getpriority(os.PRIO_PROCESS, thread), int(psutil.Process(thread).ionice().ioclass)

    before = ask()
    assert await in_thread(ask, Stop()) == before
    assert await in_thread(ask, Stop(), gentle=True) == (10, psutil.IOPRIO_CLASS_IDLE)
    assert ask() == before


def test_what_work_in_many_threads_took_is_given_back_at_its_end() -> None:
    script = """if True:
        import asyncio
        from concurrent.futures import ThreadPoolExecutor

        import psutil

        from memu_backup.work import Stop, in_thread

        def pack(number):
            blocks = [bytearray(1_000_000) for _ in range(20)]
            return bytes(1000)  # something small stays behind it for a while

        def work():
            with ThreadPoolExecutor(4) as pool:
                return sum(len(small) for small in list(pool.map(pack, range(100))))

        async def main():
            before = psutil.Process().memory_info().rss
            await in_thread(work, Stop())
            print(psutil.Process().memory_info().rss - before)

        asyncio.run(main())
        """
    kept = int(subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout)
    assert kept < 5_000_000

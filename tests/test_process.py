"""Holds ``process.run`` to its promise with real children: nothing of a child's group outlives it, nothing leaks."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from memu_backup import process
from memu_backup.errors import DamagedArchive

# Says its own number and that of its child, and both ignore SIGTERM where asked.
FAMILY = """
import os, signal, subprocess, sys, time
if "stubborn" in sys.argv:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "300"])
with open(sys.argv[1] + ".new", "w") as file:
    file.write(f"{os.getpid()} {child.pid}")
os.rename(sys.argv[1] + ".new", sys.argv[1])
if "leave" in sys.argv:
    sys.exit(0)
time.sleep(300)
"""


@pytest.fixture(autouse=True)
def _nothing_leaks() -> Iterator[None]:
    me = psutil.Process()
    descriptors, threads = me.num_fds(), threading.active_count()
    yield
    deadline = time.monotonic() + 2  # the thread that reaps a child may need a moment
    while (me.num_fds() > descriptors or threading.active_count() > threads) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert me.num_fds() <= descriptors
    assert threading.active_count() <= threads


def alive(number: int) -> bool:
    with suppress(psutil.NoSuchProcess):
        return psutil.Process(number).status() != psutil.STATUS_ZOMBIE
    return False


class Family:
    """A child with a child, started by ``process.run`` in a task."""

    def __init__(self, folder: Path, *how: str, timeout_s: float | None = None) -> None:
        self._file = folder / "numbers"
        argv = [sys.executable, "-c", FAMILY, str(self._file), *how]
        self.task = asyncio.create_task(process.run(argv, timeout_s=timeout_s))

    async def numbers(self) -> list[int]:
        while not self._file.exists():
            await asyncio.sleep(0.005)
        return [int(n) for n in self._file.read_text().split()]


async def test_what_a_child_prints_comes_back_with_its_status() -> None:
    done = await process.run(["sh", "-c", "cat; echo no >&2; exit 3"], stdin=b"hello")
    assert (done.stdout, done.stderr, done.returncode) == (b"hello", b"no\n", 3)
    assert done.last_error_line == "no"


async def test_a_program_that_is_not_there_is_told_as_such() -> None:
    with pytest.raises(FileNotFoundError):
        await process.run(["/nonexistent/program"])


async def test_output_of_many_pipe_buffers_comes_back_whole_from_both_pipes() -> None:
    script = "import sys; sys.stderr.write('e' * 3_000_000); sys.stdout.write('o' * 5_000_000)"
    done = await process.run([sys.executable, "-c", script])
    assert (len(done.stdout), len(done.stderr)) == (5_000_000, 3_000_000)


async def test_a_child_that_does_not_read_its_input_to_the_end_is_no_error() -> None:
    done = await process.run(["head", "-c", "5"], stdin=b"first and then much more" * 100_000)
    assert (done.stdout, done.returncode) == (b"first", 0)


async def test_a_signal_that_ended_the_child_is_its_status() -> None:
    assert (await process.run(["sh", "-c", "kill -9 $$"])).returncode == -signal.SIGKILL


async def test_env_is_added_to_ours_and_stands_in_no_command_line() -> None:
    script = (
        "import os, sys; print(os.environ['SECRET'], 'PATH' in os.environ); print(open('/proc/self/cmdline').read())"
    )
    done = await process.run([sys.executable, "-c", script], env={"SECRET": "c4n4ry"})
    first, rest = done.stdout.decode().split("\n", 1)
    assert first == "c4n4ry True"
    assert "c4n4ry" not in rest
    assert "SECRET" not in os.environ


async def test_cancelling_ends_the_child_and_its_children(tmp_path: Path) -> None:
    family = Family(tmp_path)
    numbers = await family.numbers()
    family.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await family.task
    assert not any(map(alive, numbers))


async def test_running_out_of_time_ends_the_child_and_its_children(tmp_path: Path) -> None:
    family = Family(tmp_path, timeout_s=1.0)
    numbers = await family.numbers()
    with pytest.raises(TimeoutError):
        await family.task
    assert not any(map(alive, numbers))


async def test_a_child_that_ignores_sigterm_is_killed_however_often_we_are_cancelled_meanwhile(tmp_path: Path) -> None:
    family = Family(tmp_path, "stubborn")
    numbers = await family.numbers()
    begun = time.monotonic()
    while not family.task.done():
        family.task.cancel()
        await asyncio.sleep(0.05)
    assert family.task.cancelled()
    assert not any(map(alive, numbers))
    assert process.TERM_GRACE_S <= time.monotonic() - begun < 10  # it would sleep for 300


async def test_children_of_a_child_that_has_left_are_ended_too(tmp_path: Path) -> None:
    family = Family(tmp_path, "leave")  # its child holds the pipes, so that the run is not over
    first, second = await family.numbers()
    while alive(first):
        await asyncio.sleep(0.005)
    assert not family.task.done()
    family.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await family.task
    assert not alive(second)


async def test_a_process_that_fled_the_group_does_not_hold_us_up(tmp_path: Path) -> None:
    script = f"setsid sh -c 'echo $$ > {tmp_path}/new; mv {tmp_path}/new {tmp_path}/number; exec sleep 300' & sleep 300"
    task = asyncio.create_task(process.run(["sh", "-c", script]))
    while not (tmp_path / "number").exists():
        await asyncio.sleep(0.005)
    fled = int((tmp_path / "number").read_text())
    try:
        task.cancel()
        begun = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - begun < 10
    finally:
        os.kill(fled, signal.SIGKILL)


async def test_another_signal_can_be_asked_for() -> None:
    script = (
        "import signal, sys, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(1, flush=True); time.sleep(300)"
    )
    begun = time.monotonic()
    with pytest.raises(TimeoutError):
        await process.run([sys.executable, "-c", script], timeout_s=0.7, stop_with=signal.SIGINT)
    assert time.monotonic() - begun < process.TERM_GRACE_S


@pytest.mark.parametrize("gentle", [True, False])
async def test_a_gentle_child_gives_way_to_everything_else(gentle: bool) -> None:
    # Asked after a moment: it is made gentle when it already runs.
    script = "import time, psutil; time.sleep(0.2); p = psutil.Process(); print(p.nice(), int(p.ionice().ioclass))"
    done = await process.run([sys.executable, "-c", script], gentle=gentle)
    assert done.stdout.split() == ([b"10", b"3"] if gentle else [str(psutil.Process().nice()).encode(), b"0"])


async def test_blocks_are_fed_while_the_loop_goes_on_and_come_out_whole() -> None:
    done = await process.run_fed(["sha256sum"], (bytes([n]) * 100_000 for n in range(100)))
    whole = b"".join(bytes([n]) * 100_000 for n in range(100))
    assert done.stdout.split()[0].decode() == hashlib.sha256(whole).hexdigest()


async def test_a_fed_child_that_leaves_early_closes_the_source_of_its_blocks() -> None:
    closed = False

    def endless() -> Iterator[bytes]:
        nonlocal closed
        try:
            while True:
                yield b"first and then much more" * 1000
        finally:
            closed = True

    done = await process.run_fed(["head", "-c", "5"], endless())
    assert (done.stdout, done.returncode, closed) == (b"first", 0, True)


async def test_a_fed_child_that_ignores_its_input_is_ended_with_its_group(tmp_path: Path) -> None:
    argv = [sys.executable, "-c", FAMILY, str(tmp_path / "numbers")]
    blocks = (b"x" * 65536 for _ in range(1000))
    task = asyncio.create_task(process.run_fed(argv, blocks))
    while not (tmp_path / "numbers").exists():
        await asyncio.sleep(0.005)
    numbers = [int(n) for n in (tmp_path / "numbers").read_text().split()]
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not any(map(alive, numbers))


def _has_child(said: str) -> bool:
    return any(said in " ".join(child.cmdline()) for child in psutil.Process().children())


@pytest.mark.parametrize("turns", range(1, 6))
async def test_cancelled_before_it_knows_its_child_a_run_still_ends_the_whole_group(tmp_path: Path, turns: int) -> None:
    """The child runs from the first turns of the loop on, and asyncio takes some more to tell of it."""
    task = asyncio.create_task(process.run([sys.executable, "-c", FAMILY, str(tmp_path / "numbers")]))
    for _ in range(turns):
        await asyncio.sleep(0)
    deadline = time.monotonic() + 10
    while _has_child(str(tmp_path)) and not (tmp_path / "numbers").exists() and time.monotonic() < deadline:
        time.sleep(0.005)  # noqa: ASYNC251  the loop is to stand still
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    if (tmp_path / "numbers").exists():
        assert not any(alive(int(n)) for n in (tmp_path / "numbers").read_text().split())


async def test_a_fed_program_that_is_not_there_is_told_as_such() -> None:
    with pytest.raises(FileNotFoundError):
        await process.run_fed(["/nonexistent/program"], iter([b"x"]))


async def test_what_the_blocks_raise_comes_out_and_ends_the_child() -> None:
    def broken() -> Iterator[bytes]:
        yield b"x"
        raise DamagedArchive("block 7 differs")

    with pytest.raises(DamagedArchive, match="block 7"):
        await process.run_fed(["sleep", "300"], broken())
    assert not [c for c in psutil.Process().children() if c.name() == "sleep"]


async def test_what_takes_long_to_end_is_looked_at_less_and_less_often() -> None:
    looks = 0

    def never() -> bool:
        nonlocal looks
        looks += 1
        return False

    await process._wait_for(never, 2)
    assert looks < 20  # each reads all of /proc


async def test_a_long_output_is_given_on_in_blocks_however_slowly_they_are_taken() -> None:
    taken: list[int] = []

    def slowly(block: bytes) -> None:
        taken.append(len(block))
        time.sleep(0.3)

    argv = ["sh", "-c", "head -c 5000000 /dev/zero; echo no >&2; exit 3"]
    done = await process.run_into(argv, slowly, stall_s=0.2)
    assert sum(taken) == 5_000_000 and max(taken) <= 1 << 20
    assert (done.returncode, done.stdout, done.stderr) == (3, b"", b"no\n")


async def test_where_the_output_cannot_be_taken_the_child_and_its_children_are_ended(tmp_path: Path) -> None:
    def full(_: bytes) -> None:
        raise OSError(28, "full")

    argv = ["sh", "-c", f"sleep 300 & echo $$ $! >{tmp_path}/numbers; yes"]
    with pytest.raises(OSError, match="full"):
        await process.run_into(argv, full, stall_s=30)
    assert not any(map(alive, map(int, (tmp_path / "numbers").read_text().split())))

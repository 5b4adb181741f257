"""Loads a snapshot into a Redis of this machine that is thrown away: it reads all of it before it lets anybody in."""

from __future__ import annotations

import asyncio
import os
import shutil
from contextlib import suppress
from pathlib import Path

from memu_backup import process, words
from memu_backup.errors import CannotCheck, DatabaseError
from memu_backup.files import shown
from memu_backup.redis.connection import Server, connect
from memu_backup.redis.seen import look_at
from memu_backup.work import ended

_PROGRAMS = ("redis-server", "valkey-server")
_LOADED_FACTOR = 4
"""In memory a snapshot takes more than packed in its file, by at most about so much."""

_LOAD_S, _POLL_S = 3600.0, 0.05
_NOT_OF_THE_FILE = ("Can't handle RDB format", "module", "Out Of Memory", "Can't open", "Cannot allocate")


async def load(file: Path, folder: Path) -> int:
    """How many keys it holds once it is loaded. ``folder`` is private and empty.

    Raises DatabaseError with what the server has against the file, as the rest of a sentence; CannotCheck where none
    could look, or there is no room in memory.
    """
    program = next(filter(None, map(shutil.which, _PROGRAMS)), None)
    if program is None:
        raise CannotCheck(
            f"{shown(file.name)} was compared by its checksum, and not loaded: this machine has no redis-server. "
            "Install it, without having it started, to have that tried too."
        )
    needed_bytes = _LOADED_FACTOR * file.stat().st_size
    if needed_bytes > (free_bytes := _free_memory_bytes()):
        raise CannotCheck(
            f"{shown(file.name)} was compared by its checksum, and not loaded: that may take {words.size(needed_bytes)}"
            f" of memory, and {words.size(free_bytes)} are free."
        )
    # Its path may be too long for the address of a socket.
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    at = Path(f"/proc/self/fd/{descriptor}/s")
    server = Server("The throwaway Redis", "so a snapshot could not be tried", unixsocket=at)
    argv = [
        program, "--port", "0", "--unixsocket", "s", "--dir", str(folder), "--dbfilename", "trial.rdb",
        "--save", "", "--appendonly", "no", "--daemonize", "no",
    ]  # fmt: skip
    file.rename(folder / "trial.rdb")
    running = asyncio.ensure_future(process.run(argv, folder=folder, gentle=True))
    try:
        async with asyncio.timeout(_LOAD_S):
            while not running.done():
                with suppress(DatabaseError):  # it is not up yet, or still loads
                    async with connect(server) as connection:
                        return sum((await look_at(connection, server)).keys.values())
                await asyncio.wait({running}, timeout=_POLL_S)
    except TimeoutError:
        raise CannotCheck(
            f"{shown(file.name)} was compared, and not loaded within {words.duration(_LOAD_S)}."
        ) from None
    finally:
        os.close(descriptor)
        running.cancel()
        (folder / "trial.rdb").rename(file)
        if await ended(running):
            raise asyncio.CancelledError
    done = running.result()
    said = (done.stdout + done.stderr).decode(errors="replace").splitlines()
    why = next((line for line in reversed(said) if "# " in line), said[-1] if said else "it ended").partition("# ")
    told = shown((why[2] or why[0]).strip().rstrip("."))
    if any(sign in line for line in said for sign in _NOT_OF_THE_FILE):
        raise CannotCheck(f"{shown(file.name)} was compared, and could not be loaded here ({told}).")
    raise DatabaseError(f"cannot be loaded by {Path(program).name}: {told}")


def _free_memory_bytes() -> int:
    """What the kernel could give without pushing anybody out, proc(5)."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0

"""Runs a command as a person would and tells how long it took, how much memory, and which blocks it wrote."""

from __future__ import annotations

import os
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.bench.corpus import MB

DROPS_CACHES = os.geteuid() == 0
_GENTLY = ("nice", "-n", "10", "ionice", "-c", "3")
"""memu-backup makes its backups so; so that a busy machine treats everyone alike, all are run like it."""

_ENV = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
"""What is installed is compiled. With that variable, as many containers set it, a checkout would be compiled anew at
each start, and ours took nearly twice as long to begin."""


@dataclass(frozen=True)
class Sample:
    """One run. ``seconds`` until the filesystem it wrote to had everything on its disk, ``returned`` until it ended.

    ``peak_bytes`` is that of its largest process.
    """

    seconds: float
    returned: float
    peak_bytes: int
    output: str


def run(argv: Sequence[str | Path], *, cwd: Path, writes: Path | None = None, env: Mapping[str, str] = {}) -> Sample:
    """Run it to its end. Caches are dropped before, where we may, so that everyone reads from the disk.

    Raises RuntimeError with what it said where it fails.
    """
    drop_caches()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        begun = time.monotonic()
        child = subprocess.Popen(
            [*_GENTLY, *(str(a) for a in argv)], cwd=cwd, env={**_ENV, **env}, stdout=out, stderr=err
        )
        _, status, usage = os.wait4(child.pid, 0)
        returned = time.monotonic() - begun
        child.returncode = os.waitstatus_to_exitcode(status)
        if writes:
            subprocess.run(["sync", "-f", writes], check=True)
        seconds = time.monotonic() - begun
        out.seek(0)
        err.seek(0)
        if child.returncode:
            raise RuntimeError(f"{argv} ended with {child.returncode}: {err.read().decode()[-2000:]}")
        return Sample(seconds, returned, usage.ru_maxrss * 1024, out.read().decode())


def drop_caches() -> None:
    """All is on the disk; where we may, nothing of it is in memory."""
    os.sync()
    if DROPS_CACHES:
        Path("/proc/sys/vm/drop_caches").write_text("3")


def read_once(folder: Path) -> None:
    """So that on a virtual machine whoever is first does not pay for what its host has not read yet."""
    block = bytearray(MB)  # no more memory than that: a child's peak begins with its parent's
    for path in folder.rglob("*"):
        if path.is_file():
            with path.open("rb", buffering=0) as file:
                while file.readinto(block):
                    pass


def machine() -> str:
    """Processor, cores, memory, kernel, and what the disk of the working directory does."""
    cpu = next((x.partition(": ")[2] for x in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in x), "?")
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return f"{os.cpu_count()} cores ({cpu}), {memory / 1e9:.0f} GB of memory, Linux {os.uname().release}"


def disk_speed(folder: Path) -> tuple[float, float]:
    """MB/s that one plain writer (with fsync) and one plain reader (cold) get: what no program can beat by much."""
    path = folder / "speed"
    block = os.urandom(4 * MB)
    begun = time.monotonic()
    with path.open("wb", buffering=0) as file:
        for _ in range(125):
            file.write(block)
        os.fsync(file.fileno())
    written = time.monotonic() - begun
    if DROPS_CACHES:
        Path("/proc/sys/vm/drop_caches").write_text("3")
    begun = time.monotonic()
    with path.open("rb", buffering=0) as file:
        while file.read(4 * MB):
            pass
    read = time.monotonic() - begun
    path.unlink()
    return 500 / written, 500 / read

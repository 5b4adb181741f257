"""The copy to a drive against ``cp`` and fsync, on the same drive in turn: a fast one, and one as slow as a stick.

What is read back is told apart: cp reads nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median

from tests.bench import measure
from tests.bench.table import mark
from tests.odd_stick import inside

WORK = Path(".bench") / "drive"
MB = 10**6
AIM = 0.9
SLOW_BYTES_PER_S = 40 * MB


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-drive", description=__doc__)
    parser.add_argument("--size-mb", type=int, default=1000, help="how large the archive is (default: 1000)")
    parser.add_argument("--slow-mb", type=int, default=200, help="the same for the slow drive (default: 200)")
    parser.add_argument("--rounds", type=int, default=5, help="how often each takes a turn (default: 5)")
    options, _ = parser.parse_known_args()
    if os.geteuid() != 0:
        print("The copy to a drive is left out: only root can mount one.")
        return 0
    shutil.rmtree(WORK, ignore_errors=True)
    WORK.mkdir(parents=True)
    try:
        print("\nThe copy to a drive, against cp and fsync on the same drive", flush=True)
        reached = _fast(options.size_mb * MB, options.rounds)
        reached &= _slow(options.slow_mb * MB, max(1, options.rounds // 2))
    finally:
        shutil.rmtree(WORK, ignore_errors=True)
    return 0 if reached else 1


def _fast(size_bytes: int, rounds: int) -> bool:
    archive = _archive(size_bytes)
    with _drive(WORK / "fast.image", size_bytes) as top:
        return _compared(f"{size_bytes / MB:.0f} MB, a fast drive (ext4)", archive, top, rounds)


def _slow(size_bytes: int, rounds: int) -> bool:
    archive = _archive(size_bytes)
    with inside(WORK.absolute() / "inside") as within:
        (within.beneath / "slow.image").touch()
        with _drive(within.beneath / "slow.image", size_bytes, through=within.folder / "slow.image") as top:
            within.be(bytes_per_second=SLOW_BYTES_PER_S)
            try:
                title = f"{size_bytes / MB:.0f} MB, a stick of {SLOW_BYTES_PER_S / MB:.0f} MB/s (ext4)"
                return _compared(title, archive, top, rounds)
            finally:
                within.be()


def _archive(size_bytes: int) -> Path:
    archive = (WORK / f"memu_backup_20260126_020500-{size_bytes}.tar.gz").absolute()
    with archive.open("wb") as file:
        for _ in range(0, size_bytes, MB):
            file.write(os.urandom(MB))
    return archive


@contextmanager
def _drive(image: Path, size_bytes: int, through: Path | None = None) -> Iterator[Path]:
    """A mounted ext4, all of whose blocks lie on the disk already; not in memory as far as that goes."""
    top = WORK / "top"
    top.mkdir(exist_ok=True)
    with image.open("r+b" if image.exists() else "w+b") as file:
        os.posix_fallocate(file.fileno(), 0, size_bytes * 5 // 2 + 64 * MB)
    subprocess.run(["mkfs.ext4", "-q", "-F", image], check=True)
    direct = [] if through else ["--direct-io=on"]
    argv = ["losetup", "--find", "--show", *direct, str(through or image)]
    found = subprocess.run(argv, check=True, capture_output=True, text=True)
    node = found.stdout.strip()
    try:
        subprocess.run(["mount", node, top], check=True)
        try:
            yield top
        finally:
            subprocess.run(["umount", top], check=True)
    finally:
        subprocess.run(["losetup", "--detach", node], check=True)


def _compared(title: str, archive: Path, top: Path, rounds: int) -> bool:
    size_mb = archive.stat().st_size / MB
    theirs: list[float] = []
    written: list[float] = []
    read: list[float] = []
    for number in range(rounds):
        for whose in ("cp", "ours") if number % 2 else ("ours", "cp"):
            measure.drop_caches()
            if whose == "cp":
                theirs.append(_cp(archive, top))
            else:
                mine = _ours(archive, top)
                written.append(mine[0])
                read.append(mine[1])
    ratios = [cp / ours for cp, ours in zip(theirs, written, strict=True)]
    rates = [size_mb / median(seconds) for seconds in (theirs, written, read)]
    print("  {}: cp and fsync {:.0f} MB/s; ours, written {:.0f} MB/s, read back {:.0f} MB/s".format(title, *rates))
    reached = mark(median(ratios) >= AIM)
    print(
        f"    {median(ratios):.2f} of cp ({min(ratios):.2f}–{max(ratios):.2f}); at least {AIM}: {reached}", flush=True
    )
    return median(ratios) >= AIM


def _cp(archive: Path, top: Path) -> float:
    begun = time.monotonic()
    subprocess.run(["cp", archive, top / "copy"], check=True)
    subprocess.run(["sync", top / "copy"], check=True)
    seconds = time.monotonic() - begun
    (top / "copy").unlink()
    _settle(top)
    return seconds


def _ours(archive: Path, top: Path) -> tuple[float, float]:
    """Written, and read back; the start of the process counts as part of the writing."""
    source, folder = os.open(archive, os.O_RDONLY), os.open(top, os.O_RDONLY | os.O_DIRECTORY)
    try:
        begun = time.monotonic()
        argv = [sys.executable, "-m", "memu_backup.drives.copier", str(source), str(folder), archive.name, ""]
        ran = subprocess.run(argv, check=True, capture_output=True, pass_fds=(source, folder))
        seconds = time.monotonic() - begun
    finally:
        os.close(source)
        os.close(folder)
    said = json.loads(ran.stdout.splitlines()[-1])
    (top / archive.name).unlink()
    _settle(top)
    return seconds - said["read_seconds"], said["read_seconds"]


def _settle(top: Path) -> None:
    """What was deleted is no work of the next one's."""
    subprocess.run(["sync", "-f", top], check=True)


if __name__ == "__main__":
    sys.exit(main())

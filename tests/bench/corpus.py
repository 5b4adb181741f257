"""A household to measure with: mostly photos that will not shrink, small files, text, and a database's dump."""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path

CACHE = Path(".bench")
MB = 1_000_000
_FOLDER_FILES = 200
_WORDS = [f"{a}{b}{c}" for a in ("be", "ka", "lo", "ti", "su") for b in ("n", "r", "st", "m") for c in ("a", "en", "o")]


@dataclass(frozen=True)
class Size:
    """How large a corpus is. ``small`` counts the small files of ``small_bytes`` on average."""

    total_bytes: int
    small: int
    small_bytes: int = 12_000

    def __str__(self) -> str:
        return f"{self.total_bytes / 1e9:g} GB, {self.small:,} of its files small"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Those by which its size is said on the command line."""
    parser.add_argument("--size-mb", type=int, default=2000, help="bytes of the corpus, in MB (default: 2000)")
    parser.add_argument("--small", type=int, default=20_000, help="how many small files are among them")
    parser.add_argument("--small-bytes", type=int, default=12_000, help="how large these are on average")


def made(options: argparse.Namespace) -> tuple[Path, Size]:
    """The one of the size that the command line says, in ``CACHE``; in a process of its own, as a child's peak memory
    begins with what its parent ever had.
    """
    CACHE.mkdir(exist_ok=True)
    size = Size(options.size_mb * MB, options.small, options.small_bytes)
    folder = (CACHE / f"corpus-{options.size_mb}-{options.small}").absolute()
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as builder:
        return builder.submit(build, folder, size).result(), size


def build(folder: Path, size: Size) -> Path:
    """Make the corpus in ``folder``, or take the one of this size that lies there. Returns the folder to back up."""
    stamp, told = folder / "size.json", json.dumps(asdict(size))
    if stamp.is_file() and stamp.read_text() == told:
        return folder / "household"
    shutil.rmtree(folder, ignore_errors=True)
    household = folder / "household"
    print(f"Building the corpus ({size}) …", flush=True)
    chance = random.Random(2026)
    left = size.total_bytes - _small_files(household / "synapse", size, chance)
    lines = [" ".join(chance.choices(_WORDS, k=chance.randint(4, 14))) for _ in range(20_000)]
    text_bytes = size.total_bytes // 20
    _text(household / "pgdata" / "chat.sql", text_bytes, lines, chance)
    for number in range(10):
        _text(household / "notes" / f"journal{number}.log", text_bytes // 10, lines, chance)
    _photos(household / "photos", left - 2 * text_bytes, chance)
    stamp.write_text(told)
    os.sync()
    return household


def change(household: Path, share: float, night: int) -> int:
    """What a day changes: photos come up to ``share`` of the bytes, and as many small files. Returns the bytes."""
    chance = random.Random(night)
    photos = sorted((household / "photos").rglob("*.jpg"))
    wanted = int(share * sum(p.stat().st_size for p in photos))
    changed = 0
    while changed < wanted:
        photo = chance.choice(photos)
        content = chance.randbytes(photo.stat().st_size)
        photo.write_bytes(content)
        changed += len(content)
    small = sorted(p for p in (household / "synapse").rglob("*") if p.is_file())
    for path in chance.sample(small, int(share * len(small))):
        path.write_bytes(chance.randbytes(path.stat().st_size))
        changed += path.stat().st_size
    os.sync()
    return changed


def _small_files(folder: Path, size: Size, chance: random.Random) -> int:
    """Half of them text, half thumbnails."""
    written = 0
    for number in range(size.small):
        inside = folder / f"{number // _FOLDER_FILES // 100:02}" / f"{number // _FOLDER_FILES % 100:02}"
        if number % _FOLDER_FILES == 0:
            inside.mkdir(parents=True)
        length = chance.randint(1, 2 * size.small_bytes)
        content = chance.randbytes(length)
        if number % 2:
            content = content[: length // 3].hex().encode()
        (inside / f"{number}").write_bytes(content)
        written += len(content)
    return written


def _text(path: Path, size_bytes: int, lines: list[str], chance: random.Random) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        while (done := file.tell()) < size_bytes:
            file.write("".join(f"{done + i}\t{line}\n" for i, line in enumerate(chance.choices(lines, k=5_000))))


def _photos(folder: Path, total_bytes: int, chance: random.Random) -> None:
    """One in forty is a film of 40 to 80 MB where the corpus is large enough for films."""
    films, number = total_bytes > 1000 * MB, 0
    while total_bytes > 0:
        inside = folder / f"{2000 + number // 300}"
        inside.mkdir(parents=True, exist_ok=True)
        film = films and number % 40 == 39
        length = min(chance.randint(40 * MB, 80 * MB) if film else chance.randint(MB, 6 * MB), total_bytes)
        with (inside / f"IMG_{number:05}.{'mp4' if film else 'jpg'}").open("wb") as file:
            file.write(b"\xff\xd8\xff\xe0")
            for start in range(4, length, 16 * MB):
                file.write(chance.randbytes(min(16 * MB, length - start)))
        total_bytes -= length
        number += 1

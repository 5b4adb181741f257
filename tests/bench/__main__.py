"""``make bench``: everyone does the same work on the same corpus, in turn, and one table tells how it went."""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import replace
from multiprocessing import get_context
from pathlib import Path

from tests.bench import corpus, measure, table
from tests.bench.corpus import CACHE
from tests.bench.measure import Sample, run
from tests.bench.table import Figures
from tests.bench.tools import PEERS, Memu, Tool, lacking, prove_seconds
from tests.disks import loop_disk, own_bytes

CHANGED = 0.01


def main() -> int:
    options = _options()
    if lacking():
        return 1
    household, size = corpus.made(options)
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as reader:
        reader.submit(measure.read_once, household).result()
    tools: list[type[Tool]] = [Memu] if options.alone else [Memu, *PEERS]
    work = (CACHE / "work").absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    try:
        found = Figures(size, measure.disk_speed(work))
        for number in range(options.rounds):
            print(f"Round {number + 1} of {options.rounds}", flush=True)
            _round(found, household, [*tools[number % len(tools) :], *tools[: number % len(tools)]], work)
        for kind in () if options.alone else ("btrfs", "xfs"):
            _nights(found, household, tools, work, kind, options.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    versions = "; ".join(f"{t.name}: {v}" for t, v in _versions(tools, household))
    print(table.render(found, versions), flush=True)
    if options.alone:
        return 0
    others = ("tests.bench.back", "tests.bench.tree", "tests.bench.drive", "tests.bench.web")
    return max(*(subprocess.run([sys.executable, "-m", other]).returncode for other in others), _chat(options))


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    corpus.add_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="how often everyone takes a turn (default: 3)")
    parser.add_argument("--alone", action="store_true", help="memu-backup only; no peers, second nights, chat")
    parser.add_argument("--rest-s", type=int, default=600, help="how long the service is watched at rest, in s")
    return parser.parse_args()


def _chat(options: argparse.Namespace) -> int:
    """In a process of its own, as it needs a whole client of the chat."""
    named = ("size_mb", "small", "small_bytes", "rest_s")
    same = [word for name in named for word in (f"--{name.replace('_', '-')}", str(getattr(options, name)))]
    return subprocess.run([sys.executable, "-m", "tests.bench.chat", *same]).returncode


def _versions(tools: list[type[Tool]], household: Path) -> Iterator[tuple[type[Tool], str]]:
    place = CACHE.absolute() / "versions"
    for tool in tools:
        place.mkdir()
        try:
            yield tool, tool(household, place).version()
        finally:
            shutil.rmtree(place)


def _note(found: Figures, row: str, tool: str, sample: Sample) -> None:
    found.samples[row, tool].append(sample)
    print(f"  {row:12} {tool:12} {sample.seconds:7.2f} s  {sample.peak_bytes / 1e6:6.0f} MB", flush=True)


def _round(found: Figures, household: Path, tools: list[type[Tool]], work: Path) -> None:
    made = {}
    for kind in tools:
        place = work / kind.name.replace(" ", "")
        place.mkdir()
        made[kind.name] = kind(household, place)
    memu = made[Memu.name]
    assert isinstance(memu, Memu)
    with memu.service():
        _works(found, household, made, work)
        _commands(found, memu)
    shutil.rmtree(work)
    work.mkdir()


def _works(found: Figures, household: Path, made: dict[str, Tool], work: Path) -> None:
    """Every kind of work, each by everyone before the next kind, so that a busy minute hits all alike."""
    for name, tool in made.items():
        sample = tool.back_up()
        _note(found, "proved", name, sample)
        _note(found, "written", name, _without_proof(tool, sample))
    photo = sorted((household / "photos").rglob("*.jpg"))[-1]
    inner = str(photo.relative_to(household))
    for name, tool in made.items():
        _give_back(found, "one file", name, tool, work, inner)
    for name, tool in made.items():
        _give_back(found, "everything", name, tool, work, None)
    for name, tool in made.items():
        if (verified := tool.verify()) is not None:
            _note(found, "verify", name, verified)


def _without_proof(tool: Tool, sample: Sample) -> Sample:
    """What the command needs for itself (its start, the history) counts as part of the writing."""
    by = prove_seconds(sample) if isinstance(tool, Memu) else 0.0
    return replace(sample, seconds=sample.seconds - by, returned=sample.returned - by)


def _give_back(found: Figures, row: str, name: str, tool: Tool, work: Path, inner: str | None) -> None:
    target = work / "target"
    sample = tool.everything(target) if inner is None else tool.one_file(inner, target)
    _note(found, row, name, sample)
    files = sum(len(names) for _, _, names in os.walk(target))
    if inner is not None and files != 1:
        raise RuntimeError(f"{name} gave back {files} files instead of one")
    shutil.rmtree(target)


def _commands(found: Figures, memu: Memu) -> None:
    for _ in range(3):
        _note(found, "start", memu.name, run([sys.executable, "-c", "import memu_backup.cli"], cwd=memu.place))
        _note(found, "--help", memu.name, memu.help())
        _note(found, "status", memu.name, memu.status())


def _nights(found: Figures, household: Path, tools: list[type[Tool]], work: Path, kind: str, nights: int) -> None:
    """A first backup on a fresh filesystem that can share blocks, then nights of which each changed a little."""
    if not measure.DROPS_CACHES:
        print(f"Second nights on {kind} are left out: only root can mount a filesystem.")
        return
    print(f"Nights on {kind}", flush=True)
    chosen = [t for t in tools if t.name in (Memu.name, "restic", "borg")]
    with loop_disk(kind, work, 8 * found.size.total_bytes) as disk:
        made: dict[str, Tool] = {}
        for tool in chosen:
            (disk / tool.name).mkdir()
            made[tool.name] = tool(household, disk / tool.name)
            _night(made[tool.name], 0)
        for night in range(1, nights + 1):
            corpus.change(household, CHANGED, night)
            for name, backup in made.items():
                sample = _night(backup, night)
                _note(found, kind, name, sample)
                _note(found, f"{kind} written", name, _without_proof(backup, sample))
                if isinstance(backup, Memu):
                    archive = max(backup.archives.glob("*.tar.gz"))
                    found.shares[kind].append((own_bytes(archive), archive.stat().st_size))


def _night(tool: Tool, number: int) -> Sample:
    """A household's nights are a day apart, and what it changed came to rest long before them."""
    return tool.back_up(days_later=number + 1) if isinstance(tool, Memu) else tool.back_up()


if __name__ == "__main__":
    sys.exit(main())

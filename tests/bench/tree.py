"""The second night kept as a tree, against ``rsync --link-dest``, restic and borg: the same night for all, in turn."""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from pathlib import Path
from statistics import median

from tests.bench import corpus
from tests.bench.corpus import CACHE, Size
from tests.bench.measure import Sample, run
from tests.bench.table import mark
from tests.bench.tools import Borg, Memu, Restic, lacking, prove_seconds

CHANGED = 0.01


class MemuTree(Memu):
    """With ``kind = "tree"``."""

    def __init__(self, household: Path, place: Path) -> None:
        super().__init__(household, place)
        with self._config.open("a") as config:
            config.write('[stores.local]\nkind = "tree"\n')


class Rsync:
    """As Sound Box's own script: unchanged files are names of those of the night before. It proves nothing."""

    name = "rsync"

    def __init__(self, household: Path, place: Path) -> None:
        self.household, self.place = household, place
        self._nights: list[Path] = []

    def version(self) -> str:
        return subprocess.run(["rsync", "--version"], capture_output=True, text=True, check=True).stdout.splitlines()[0]

    def back_up(self) -> Sample:
        tonight = self.place / f"{len(self._nights):03}"
        before = [f"--link-dest={self._nights[-1]}"] if self._nights else []
        self._nights.append(tonight)
        argv = ["rsync", "-a", "--delete", *before, f"{self.household}/", f"{tonight}/"]
        return run(argv, cwd=self.place, writes=self.place)


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-tree", description=__doc__)
    corpus.add_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="how many nights follow the first (default: 3)")
    options, _ = parser.parse_known_args()
    if lacking("rsync"):
        return 1
    household, size = corpus.made(options)
    work = (CACHE / "tree").absolute()
    shutil.rmtree(work, ignore_errors=True)
    try:
        return _nights(household, size, work, options.rounds)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _nights(household: Path, size: Size, work: Path, nights: int) -> int:
    print(f"\n{size}; {CHANGED:.0%} changed each night, kept as a tree", flush=True)
    kinds: tuple[type[MemuTree | Rsync | Restic | Borg], ...] = (MemuTree, Rsync, Restic, Borg)
    made = {}
    for kind in kinds:
        (work / kind.name).mkdir(parents=True)
        made[kind.name] = kind(household, work / kind.name)
        _night(made[kind.name], 0)
    samples: dict[str, list[Sample]] = {name: [] for name in made}
    memu = made[MemuTree.name]
    assert isinstance(memu, MemuTree)
    with memu.service():  # as on a real machine, it is there and holds the history's server
        for night in range(1, nights + 1):
            corpus.change(household, CHANGED, night)
            for name in [*made][night % len(made) :] + [*made][: night % len(made)]:
                sample = _night(made[name], night)
                samples[name].append(sample)
                print(
                    f"  night {night}  {name:12} {sample.seconds:7.2f} s  {sample.peak_bytes / 1e6:6.0f} MB", flush=True
                )
    return _told(samples)


def _night(tool: MemuTree | Rsync | Restic | Borg, number: int) -> Sample:
    """A household's nights are a day apart, and what it changed came to rest long before them."""
    return tool.back_up(days_later=number + 1) if isinstance(tool, MemuTree) else tool.back_up()


def _told(samples: dict[str, list[Sample]]) -> int:
    ours = median(s.seconds for s in samples[MemuTree.name])
    written = median(s.seconds - prove_seconds(s) for s in samples[MemuTree.name])
    print(f"memu-backup {ours:.2f} s, of which {ours - written:.2f} s to read back what is new")
    reached = True
    for name, wanted in ((Rsync.name, 1.0), (Restic.name, 1.0), (Borg.name, 1.0)):
        peer = median(s.seconds for s in samples[name])
        good = peer / ours >= wanted
        reached &= good
        print(f"  {name}: {peer:.2f} s, {peer / ours:.2f} × ours: at least {wanted:g}: {mark(good)}")
    return 0 if reached else 1


if __name__ == "__main__":
    sys.exit(main())

"""The one table: medians with their spread, ratios, and beside each what it was to be."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from statistics import median

from tests.bench import measure
from tests.bench.corpus import Size
from tests.bench.measure import Sample

MEMU = "memu-backup"
GZIP, PIGZ, TAR, RESTIC, BORG = PEERS = ("tar | gzip", "tar | pigz", "tar", "restic", "borg")
_SPEC_GB, _SPEC_MINUTES = 50, 30
_NEW_BLOCKS = 0.03
_HOLDS_MB = 250
_START_AIM_S, _ONE_FILE_AIM_S = 0.25, 0.05


@dataclass
class Figures:
    """All samples, by row and tool. ``shares`` holds (new bytes, archive bytes) of each night, by filesystem."""

    size: Size
    disk_speed: tuple[float, float]
    samples: dict[tuple[str, str], list[Sample]] = field(default_factory=lambda: defaultdict(list))
    shares: dict[str, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def seconds(self, row: str, tool: str = MEMU) -> float | None:
        found = self.samples.get((row, tool))
        return median(s.seconds for s in found) if found else None

    def best_peer(self, row: str) -> tuple[str, float] | None:
        found = [(n, s) for n in PEERS if (s := self.seconds(row, n)) is not None]
        return min(found, key=lambda both: both[1]) if found else None


@dataclass(frozen=True)
class Row:
    """One line. ``times`` asks to be so many times as fast as a peer, ``aim`` for that share of the best one's time,
    ``at_most`` and ``aim_s`` for seconds."""

    key: str
    title: str
    times: tuple[tuple[str, float], ...] = ()
    aim: float | None = None
    at_most: float | None = None
    aim_s: float | None = None


ROWS = (
    Row("written", "first archive, written", ((GZIP, 8), (PIGZ, 4), (RESTIC, 1), (BORG, 1)), 0.9),
    Row("proved", "the same, written and re-read", ((RESTIC, 1),), 1.3),
    Row("one file", "one file out of it", ((GZIP, 20),)),
    Row("everything", "restore everything", ((GZIP, 1.5), (RESTIC, 1)), 0.6),
    Row("verify", "full verify", ((RESTIC, 1),), 0.7),
    Row("btrfs written", "1 % changed, btrfs, written", aim=1),
    Row("btrfs", "the same, written and re-read"),
    Row("xfs written", "1 % changed, XFS, written", aim=1),
    Row("xfs", "the same, written and re-read"),
    Row("--help", "memu-backup --help", at_most=0.5, aim_s=_START_AIM_S),
    Row("status", "memu-backup status", at_most=0.5, aim_s=_START_AIM_S),
)


def render(found: Figures, versions: str) -> str:
    reading = "caches dropped before each run" if measure.DROPS_CACHES else "caches WARM (only root can drop them)"
    lines = [
        "",
        f"{found.size}; {reading}; everyone at nice 10 and idle I/O",
        "median seconds (least to most) until all is on the disk",
        f"{versions}; {measure.machine()}",
        "one plain writer with fsync {:.0f} MB/s, one plain reader {:.0f} MB/s".format(*found.disk_speed),
        "",
        f"{'':31}{MEMU:>20}" + "".join(f"{name:>12}" for name in PEERS) + "   peak MB",
    ]
    for row in ROWS:
        if found.seconds(row.key) is not None:
            lines += [_line(found, row), *(f"{'':8}{text}" for text in _judged(found, row))]
    lines += ["", *_memory(found), *_shared(found), *_projected(found), *_returned(found)]
    return "\n".join(lines)


def _line(found: Figures, row: Row) -> str:
    cells = [_spread(found.samples[row.key, MEMU])]
    for peer in PEERS:
        seconds = found.seconds(row.key, peer)
        cells.append("" if seconds is None else f"{seconds:.2f}")
    ours = max(s.peak_bytes for s in found.samples[row.key, MEMU])
    return f"{row.title:31}{cells[0]:>20}" + "".join(f"{c:>12}" for c in cells[1:]) + f"{ours / 1e6:10.0f}"


def _spread(samples: list[Sample]) -> str:
    seconds = sorted(s.seconds for s in samples)
    return f"{median(seconds):.2f} ({seconds[0]:.2f}–{seconds[-1]:.2f})"


def mark(reached: bool) -> str:
    return "reached" if reached else "NOT REACHED"


def _judged(found: Figures, row: Row) -> Iterator[str]:
    ours = found.seconds(row.key)
    assert ours is not None
    for peer, wanted in row.times:
        seconds = found.seconds(row.key, peer)
        if seconds is not None:
            yield f"at least {wanted:g} × {peer}: {seconds / ours:.1f} ×, {mark(seconds / ours >= wanted)}"
    best = found.best_peer(row.key)
    if row.aim is not None and best:
        yield f"aim {row.aim:g} of the best peer ({best[0]}): {ours / best[1]:.2f}, {mark(ours / best[1] <= row.aim)}"
    if row.at_most is not None:
        yield f"at most {row.at_most:g} s: {mark(ours <= row.at_most)}; aim {row.aim_s:g} s: " + mark(
            ours <= (row.aim_s or 0)
        )
    start = found.seconds("start")
    if row.key == "one file" and start is not None:
        limit = start + _ONE_FILE_AIM_S
        yield f"aim process start ({start:.2f} s) + 50 ms: {mark(ours <= limit)}"


def _memory(found: Figures) -> Iterator[str]:
    peaks = {
        name: max(s.peak_bytes for (_, n), samples in found.samples.items() if n == name for s in samples) / 1e6
        for name in (MEMU, *PEERS)
        if any(n == name for _, n in found.samples)
    }
    if found.size.small < 1_000_000:
        yield f"Peak memory at most {_HOLDS_MB} MB: {mark(peaks[MEMU] <= _HOLDS_MB)}."
    else:
        yield f"Peak memory at most 600 MB: {mark(peaks[MEMU] <= 600)}."
    yield "Largest process of all its work: " + ", ".join(f"{n} {p:.0f} MB" for n, p in peaks.items()) + "."


def _shared(found: Figures) -> Iterator[str]:
    for kind, nights in found.shares.items():
        share = median(new / size for new, size in nights)
        yield (
            f"Second night on {kind}: {share:.1%} of the archive are new blocks (FIEMAP); at most 3 %: "
            f"{mark(share <= _NEW_BLOCKS)}."
        )


def _projected(found: Figures) -> Iterator[str]:
    seconds = found.seconds("proved")
    if seconds is not None:
        minutes = seconds * _SPEC_GB * 1e9 / found.size.total_bytes / 60
        yield (
            f"At this rate {_SPEC_GB} GB take {minutes:.1f} minutes, re-reading and all; the specification allows "
            f"{_SPEC_MINUTES}: {mark(minutes <= _SPEC_MINUTES)}."
        )


def _returned(found: Figures) -> Iterator[str]:
    """tar does not wait for the disk; who counts only until it returns finds that here."""
    times = {
        n: median(s.returned for s in found.samples["written", n]) for n in PEERS if ("written", n) in found.samples
    }
    if times:
        yield "Not waiting for the disk they returned from the first backup after: " + ", ".join(
            f"{n} {t:.2f} s" for n, t in times.items()
        )

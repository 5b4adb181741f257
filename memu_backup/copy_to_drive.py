"""Copies the newest backup of each job to a drive, proves the copies, lets old ones go and leaves the rescue kit.

What lies on the drive already is never made worse: a copy gets its name when all of it is there, counts when it was
read back, and only then do older ones of ours go. The owner's files are not touched at all.
"""

from __future__ import annotations

import json
import logging
import signal
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from memu_backup import process, words
from memu_backup.drives import shelf as drive_shelf
from memu_backup.drives.shelf import Copy, JobShelf, Shelf
from memu_backup.errors import CopyDiffers, DamagedArchive, DriveError, DriveFull, DriveGone
from memu_backup.model import Backup, Copied, Phase, Progress
from memu_backup.stores import OnProgress, Store
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

T = TypeVar("T")

_SILENT_S = 120.0
"""A drive on which nothing moves for so long is given up."""

_SPARE_BYTES = 16 << 20
"""For the kit, checksums, and what a filesystem needs itself."""


OnBegin = Callable[[int], Awaitable[None]]
"""How many bytes are to be copied; 0 where all is there."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The backup that is to be copied for one job, and the archive that it is on a drive."""

    job: str
    store: Store
    backup: Backup
    archive: Copied


@dataclass(frozen=True, slots=True)
class Order:
    """``device`` is the drive's, None where copies go to any folder. ``keep`` copies of a job stay."""

    wanted: tuple[Wanted, ...]
    host: str
    keep: int
    device: Path | None
    kit: Callable[[Shelf], None]


@dataclass(frozen=True, slots=True)
class Made:
    """What was done: ``copied`` now, ``there`` already, and ``removed`` by name. ``copies`` is how many whole ones of
    this machine lie there in the end.
    """

    copied: tuple[Wanted, ...]
    there: tuple[Wanted, ...]
    removed: tuple[str, ...]
    copies: int
    write_seconds: float = 0.0
    read_seconds: float = 0.0

    @property
    def copied_bytes(self) -> int:
        return sum(w.archive.size_bytes for w in self.copied)

    @property
    def bytes_per_second(self) -> float | None:
        """Reading back included; None where nothing was copied."""
        seconds = self.write_seconds + self.read_seconds
        return self.copied_bytes / seconds if self.copied and seconds else None


def missing(wanted: Iterable[Wanted], host: str, top: int) -> list[Wanted]:
    """What is not there yet, whole. Writes nothing. Blocks. Raises DriveError."""
    return [w for w in wanted if not any(_is_of(copy, w) for copy in drive_shelf.copies_on(top, host, w.job))]


def _is_of(copy: Copy, wanted: Wanted) -> bool:
    archive = wanted.archive
    same = copy.name == archive.name and (copy.size_bytes == archive.size_bytes or not archive.made)
    return same and copy.sha256 is not None and wanted.archive.sha256 in (None, copy.sha256)


async def copy(order: Order, top: int, on_begin: OnBegin, on_progress: OnProgress) -> Made:
    """Bring each wanted backup to the drive whose top is the descriptor ``top``; ``on_begin`` is told what has to be
    copied.

    Cancelled, its child has ended before this returns; what was not finished is removed by the next one. Raises
    DriveError, with what lies there untouched but for older copies of ours, and SourceDamaged.
    """
    to_copy = await _blocking(partial(missing, order.wanted, order.host, top))
    await on_begin(sum(w.archive.size_bytes for w in to_copy))
    meter = _Meter(to_copy, on_progress)
    copied: list[Wanted] = []
    removed: list[str] = []
    seconds = [0.0, 0.0]
    for wanted in meter.to_copy:
        with (
            await _blocking(partial(Shelf, top)) as shelf,
            await _blocking(partial(shelf.job, order.host, wanted.job)) as job,
        ):
            removed += await _blocking(partial(_make_room, shelf, job, order, wanted))
            said = await _run(order, job, wanted, meter)
            await _blocking(partial(_vouch, job, wanted, said))
            removed += await _blocking(partial(_let_go, job, wanted.archive.name, order.keep))
            copied.append(_as_it_became(wanted, said))
            seconds = [seconds[0] + said["write_seconds"], seconds[1] + said["read_seconds"]]
    copies = await _blocking(partial(_finish, order, top))
    there = tuple(w for w in order.wanted if w not in to_copy)
    return Made(tuple(copied), there, tuple(removed), copies, *seconds)


def _as_it_became(wanted: Wanted, said: Mapping[str, Any]) -> Wanted:
    """Of what was packed on the way the size is known only now."""
    size_bytes = sum(size for _, size, _ in said["parts"])
    return replace(wanted, archive=replace(wanted.archive, size_bytes=size_bytes, sha256=said["sha256"], made=True))


class SourceDamaged(DamagedArchive):
    """The backup on this machine is not what it was when it was made."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__(f"{wanted.archive.name} is damaged on this server, so it was not copied.")
        self.wanted = wanted


async def _blocking(work: Callable[[], T]) -> T:
    return await in_thread(work, Stop())


class _Meter:
    """Turns what the child says into progress over all that is to be copied."""

    def __init__(self, to_copy: Sequence[Wanted], on_progress: OnProgress) -> None:
        self.to_copy = to_copy
        self._total_bytes = sum(w.archive.size_bytes for w in to_copy)
        self._done_bytes = 0
        self._on_progress = on_progress

    def note(self, said: Mapping[str, Any]) -> None:
        for key, phase in (("written", Phase.COPYING), ("read", Phase.COMPARING)):
            if key in said:
                self._on_progress(Progress(phase, self._done_bytes + said[key], self._total_bytes))

    def ended(self, wanted: Wanted) -> None:
        self._done_bytes += wanted.archive.size_bytes


def _make_room(shelf: Shelf, job: JobShelf, order: Order, wanted: Wanted) -> list[str]:
    """Older copies of ours go, the oldest first, and of each job never the newest whole one."""
    job.sweep()
    job.clear(wanted.archive.name, wanted.archive.sha256)
    needed = wanted.archive.size_bytes + _SPARE_BYTES
    removed: list[str] = []
    removable = _removable(shelf, order)
    possible = shelf.space()[0] + sum(copy.size_bytes for _, copy in removable)
    for folder, copy in removable:
        if shelf.space()[0] >= needed or possible < needed:  # nothing goes in vain
            break
        with shelf.named(folder) as other:
            other.remove(copy)
        removed.append(copy.name)
        log.info("Removed the older copy %s from the drive, to make room.", copy.name)
    free_bytes, _ = shelf.space()
    if free_bytes < needed:
        raise DriveFull(
            f"It is full: {words.size(needed)} needed, {words.size(free_bytes)} free. The newest copy on it stays."
        )
    return removed


def _removable(shelf: Shelf, order: Order) -> list[tuple[str, Copy]]:
    mine = drive_shelf.folder_name(order.host, "")
    latest = {drive_shelf.folder_name(order.host, w.job): w.archive.name for w in order.wanted}
    found = []
    for folder in shelf.jobs():
        if folder.startswith(mine):
            with shelf.named(folder) as job:
                copies = job.copies()
            newest = drive_shelf.newest_of(copies, latest.get(folder, ""))
            found += [(folder, copy) for copy in copies if copy is not newest]
    return sorted(found, key=lambda both: both[1].order)


async def _run(order: Order, job: JobShelf, wanted: Wanted, meter: _Meter) -> dict[str, Any]:
    """The child's last word. Raises DriveError, SourceDamaged."""
    last: dict[str, Any] = {}
    pending = b""

    def heard(block: bytes) -> None:
        nonlocal pending, last
        *lines, pending = (pending + block).split(b"\n")
        for line in lines:
            last = json.loads(line)
            meter.note(last)

    begun = time.monotonic()
    try:
        async with _streamed(wanted) as source:
            argv = [sys.executable, "-m", "memu_backup.drives.copier"]
            argv += [str(source), str(job.descriptor), wanted.archive.name, str(order.device or "")]
            descriptors = (source, job.descriptor)
            done = await process.run_into(
                argv, heard, stall_s=_SILENT_S, gentle=True, descriptors=descriptors, stop_with=signal.SIGKILL
            )
            if "sha256" not in last:
                raise _Stopped
    except TimeoutError as error:
        raise DriveGone("It does not answer any more.") from error
    except _Stopped:  # what packs it has nothing to say then
        pass
    except DamagedArchive as error:
        log.warning("%s: %s.", wanted.backup.name, error)
        last = {"failed": "source"}
    except OSError as error:
        log.warning("%s cannot be read: %s.", wanted.backup.path, error.strerror)
        last = {"failed": "source"}
    meter.ended(wanted)
    if "sha256" in last:
        log.info("Copied %s to the drive in %s.", wanted.archive.name, words.duration(time.monotonic() - begun))
        return last
    with suppress(DriveError):
        await _blocking(partial(job.clear, wanted.archive.name, None))
    if last.get("failed") == "differs":
        raise CopyDiffers(
            "What was read back from it is not what was written: it is broken, or smaller than it says. Use another."
        )
    if last.get("failed") == "source":
        raise SourceDamaged(wanted)
    if last.get("failed") == "drive":
        there = order.device is None or order.device.exists()
        raise drive_shelf.trouble(OSError(last["errno"], last["what"]), there=there)
    raise DriveError(f"The copy ended early ({done.last_error_line}). Plug it in again.")


class _Stopped(Exception):
    """The child has ended without a copy."""


@asynccontextmanager
async def _streamed(wanted: Wanted) -> AsyncIterator[int]:
    """The archive as a descriptor, see ``Store.stream``."""
    stop = Stop()
    with ExitStack() as opened:
        source = await in_thread(lambda: opened.enter_context(wanted.store.stream(wanted.backup.path, stop)), stop)
        try:
            yield source
        except BaseException:
            stop.set()
            raise


def _vouch(job: JobShelf, wanted: Wanted, said: Mapping[str, Any]) -> None:
    parts: Sequence[tuple[str, int, str]] = [(name, size, of_part) for name, size, of_part in said["parts"]]
    if wanted.archive.sha256 not in (None, said["sha256"]):
        job.clear(wanted.archive.name, None)
        raise SourceDamaged(wanted)
    job.vouch(wanted.archive.name, said["sha256"], parts)


def _let_go(job: JobShelf, newest: str, keep: int) -> list[str]:
    gone = drive_shelf.to_go(job.copies(), newest, keep)
    for copy in gone:
        job.remove(copy)
    return [copy.name for copy in gone]


def _finish(order: Order, top: int) -> int:
    with Shelf(top) as shelf:
        order.kit(shelf)
        mine = drive_shelf.folder_name(order.host, "")
        return sum(folder.startswith(mine) for folder, _ in whole(shelf))


def whole(shelf: Shelf) -> list[tuple[str, Copy]]:
    """The whole copies of all machines, each with its folder."""
    found = []
    for folder in shelf.jobs():
        with shelf.named(folder) as job:
            found += [(folder, copy) for copy in job.copies() if copy.sha256]
    return found

"""Brings a backup back to a scratch place and tries it there: every hash, every database, and all of it removed again.

What comes of it is known before it is needed. Nothing is touched but the scratch, and no network is used.
"""

from __future__ import annotations

import errno
import logging
import os
import shutil
import signal
import time
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from memu_backup import crosscheck, lock, pack, restore, words
from memu_backup.crosscheck import CrossCheck, Unlike
from memu_backup.errors import (
    ArchiveError,
    CannotCheck,
    MemuError,
    RestoreError,
    SourceError,
    StoreError,
    UsageError,
)
from memu_backup.files import shown
from memu_backup.formats import hashing
from memu_backup.formats.index import Entry
from memu_backup.formats.manifest import lies_in
from memu_backup.formats.tar import Type
from memu_backup.model import Backup, Manifest, Phase, SourceSummary
from memu_backup.restore import Plan, Wanted
from memu_backup.sources import Rehearses, Room, kinds
from memu_backup.stores import Meter, OnProgress, Store
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

NAME = ".memu-backup-drill"
"""The folder for what is tried; all that lies in it is ours."""

_NAMED = 3
_BLOCK_BYTES = 1 << 20
_OLDER = 5
"""So many other backups are looked at for what one has lost."""


@dataclass(frozen=True, slots=True)
class Means:
    """What is tried with: a folder for the scratch, and where our own Postgres does not do, see ``sources.Room``."""

    folder: Path
    postgres_image: str | None = None
    postgres_url: str | None = field(default=None, repr=False)


@dataclass(slots=True)
class Came:
    """What came of it. ``problems`` are sentences by source (empty: all of it), ``unchecked`` what of it could only be
    compared, ``asked`` the sources whose rows name files that are missing in another.
    """

    files: int = 0
    size_bytes: int = 0
    seconds: float = 0.0
    problems: list[tuple[str, str]] = field(default_factory=list)
    unchecked: list[str] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)

    @property
    def lost(self) -> tuple[str, ...]:
        """The sources that something is wrong with, or that are needed to find it; none where that is the backup as a
        whole.
        """
        names = dict.fromkeys([*(source for source, _ in self.problems), *self.asked])
        return () if "" in names else tuple(names)


async def plan(store: Store, backup: Backup, target: Path, wanted: Sequence[str] = ()) -> Plan:
    """What a drill would bring back; changes nothing. Raises as ``restore.plan``."""
    stop = Stop()
    work = partial(restore.plan, store, backup, Wanted(sources=tuple(wanted)), target, stop)
    return await in_thread(work, stop)


def needed_bytes(planned: Plan) -> int:
    """What it takes on the disk, about: all that comes back, and the databases that are made of it."""
    chosen = _summaries(planned)
    more = [kind.rehearsal_bytes(summary) for summary in chosen if (kind := _rehearses(summary))]
    return planned.room_bytes + sum(more)


async def drill(
    store: Store,
    backup: Backup,
    means: Means,
    on_progress: OnProgress,
    *,
    trusted: bool,
    wanted: Sequence[str] = (),
) -> Came:
    """Bring back all of a backup, or the sources ``wanted``, and try it.

    Databases are only loaded out of one that is ``trusted``: what stands in a dump is done as we could do it ourselves.
    Raises CannotCheck where it could not be tried, which says nothing about the backup; LockHeld while another drill
    uses the scratch. Whatever the end, the scratch is gone then, with all that ran in it.
    """
    begun, came = time.monotonic(), Came()
    async with _scratch(means.folder) as scratch:
        try:
            planned = await plan(store, backup, scratch / "backup", wanted)
        except ArchiveError as error:
            came.problems.append(("", _without_advice(error, backup)))
            return came
        except (UsageError, StoreError, OSError) as error:
            raise CannotCheck(f"{backup.name} could not be tried. {error}") from error
        _must_fit(planned, means)
        await _bring_back(planned, came, on_progress)
        if planned.manifest:
            for summary in _summaries(planned):
                await _rehearse(planned, summary, came, scratch, means, on_progress, trusted=trusted)
    came.seconds = time.monotonic() - begun
    return came


def _must_fit(planned: Plan, means: Means) -> None:
    needed = needed_bytes(planned)
    if needed > planned.free_bytes:
        raise CannotCheck(
            f"There is not enough room to try {planned.name}: {words.size(needed)} needed, "
            f"{words.size(planned.free_bytes)} free in {means.folder}; nothing was written, and nothing is known to be "
            "wrong with it. Name a folder on a larger disk with drill.scratch."
        )
    if planned.free_files is not None and planned.new_files > planned.free_files:
        raise CannotCheck(
            f"There is not enough room to try {planned.name}: the disk of {means.folder} can take "
            f"{planned.free_files:,} more files (inodes), and {planned.new_files:,} are needed; nothing was written. "
            "Name a folder on another disk with drill.scratch."
        )


async def _bring_back(planned: Plan, came: Came, on_progress: OnProgress) -> None:
    stop = Stop()
    work = partial(restore.carry_out, planned, overwrite=False, on_progress=on_progress, stop=stop)
    if planned.damage:
        came.problems.append(("", f"It is damaged: {planned.damage.removesuffix('.')}."))
    try:
        done = await in_thread(work, stop, gentle=True)
        comparing = Stop()
        compare = partial(_differing, planned, frozenset(done.lost), on_progress, comparing)
        differing = await in_thread(lambda: list(compare()), comparing, gentle=True)
    except ArchiveError as error:
        came.problems.append(("", _without_advice(error, planned.backup)))
        return
    except RestoreError as error:
        raise CannotCheck(f"{planned.name} could not be tried. {error}") from error
    came.files, came.size_bytes = done.files, done.size_bytes
    came.problems += _told(planned.manifest, done.lost, "did not come back")
    came.problems += _told(planned.manifest, differing, "came back other than it was written")


def _without_advice(error: ArchiveError, backup: Backup) -> str:
    """Of one that is about a backup as ``restore.about`` has it: what to do is said elsewhere."""
    told = str(error).removeprefix(f"{backup.name} is damaged: ").partition(" Try an older backup")[0]
    return told if told == str(error) else f"It is damaged: {told}"


def _differing(planned: Plan, lost: frozenset[str], on_progress: OnProgress, stop: Stop) -> Iterator[str]:
    """The files that are not what the index says, or not there. Blocks."""
    wanted = {entry.path for entry in planned.entries} - lost
    meter = Meter(Phase.VERIFYING, on_progress)
    with planned.store.open(planned.backup.path, stop) as reader:
        entries: Iterable[Entry] = reader.index() if planned.indexed else planned.entries
        for entry in entries:
            if entry.path in wanted and not _is_same(planned.target / entry.path, entry, meter, stop):
                yield entry.path


def _is_same(path: Path, entry: Entry, meter: Meter, stop: Stop) -> bool:
    """Raises OSError where the scratch's own disk does not give it: that says nothing about the backup."""
    try:
        if entry.type is Type.SYMLINK:
            return str(path.readlink()) == entry.link
        if entry.type is Type.DIRECTORY:
            return path.is_dir()
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.EINVAL):
            return False
        raise
    digest, size_bytes = hashing.new(), 0
    try:
        while block := os.read(descriptor, _BLOCK_BYTES):
            stop.check()
            digest.update(block)
            size_bytes += len(block)
            meter.tick(len(block), 0, entry.path)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)
    if entry.type is Type.HARDLINK:
        return True  # its content is that of the file that it shares, which was compared
    return size_bytes == entry.size_bytes and entry.sha256 in ("", digest.hexdigest())


def _told(manifest: Manifest | None, paths: Sequence[str], what: str) -> list[tuple[str, str]]:
    """A sentence a source, with the first files by name."""
    of_source: dict[str, list[str]] = {}
    for path in paths:
        place = next((s.name for s in manifest.sources if lies_in(path, s.place)), "") if manifest else ""
        of_source.setdefault(place, []).append(path)
    return [(source, f"{_some(lost)} {what}.") for source, lost in of_source.items()]


def _some(paths: Sequence[str]) -> str:
    more = f" and {len(paths) - _NAMED:,} more" if len(paths) > _NAMED else ""
    return ", ".join(map(shown, paths[:_NAMED])) + more


# --- what only its kind can try ---------------------------------------------------------------------------------------


def _summaries(planned: Plan) -> list[SourceSummary]:
    """Those of which anything comes back."""
    if planned.manifest is None:
        return []
    there = planned.entries
    return [s for s in planned.manifest.sources if any(lies_in(entry.path, s.place) for entry in there)]


def _rehearses(summary: SourceSummary) -> Rehearses | None:
    kind = kinds().get(summary.kind)
    return kind if isinstance(kind, Rehearses) else None


async def _rehearse(
    planned: Plan,
    summary: SourceSummary,
    came: Came,
    scratch: Path,
    means: Means,
    on_progress: OnProgress,
    *,
    trusted: bool,
) -> None:
    kind = _rehearses(summary)
    if kind is None or any(source == summary.name for source, _ in came.problems):
        return  # what did not come back cannot be loaded either
    if not trusted:
        came.unchecked.append(f"{summary.name}: it was not made here as far as is known, so it was only compared.")
        return
    Meter(Phase.REHEARSING, on_progress).tick(0, 0, summary.name)
    folder = scratch / "room"
    folder.mkdir(mode=0o700)
    problems: list[str] = []
    try:
        with _questions(planned, summary, scratch) as questions:
            room = Room(folder, means.postgres_image, means.postgres_url, [check for _, check in questions])
            problems += await kind.rehearse(planned.target / summary.place, summary, room)
            for of, check in questions:
                await _look_up(planned, of, check, came)
    except ArchiveError as error:
        problems.append(str(error))
    except MemuError as error:
        came.unchecked.append(f"{summary.name}: {error}")
    except Exception as error:
        log.warning("Trying source %s broke (%s).", summary.name, type(error).__name__, exc_info=error)
        came.unchecked.append(
            f"{summary.name}: trying it broke ({type(error).__name__}), so it was only compared. If it stays so, show "
            "the log to whoever looks after this machine."
        )
    finally:
        await _cleared(folder)
    came.problems += [(summary.name, f"{summary.name}: {problem}") for problem in problems]


@contextmanager
def _questions(planned: Plan, summary: SourceSummary, folder: Path) -> Iterator[list[tuple[SourceSummary, CrossCheck]]]:
    """What the databases of one source can be asked about the files of others, as when the backup was made."""
    with ExitStack() as held:
        asked = ((of, crosscheck.again(of, folder)) for of in _summaries(planned))
        yield [(of, held.enter_context(check)) for of, check in asked if check and check.source == summary.name]


async def _look_up(planned: Plan, of: SourceSummary, check: CrossCheck, came: Came) -> None:
    """Each row that a database brought back, among the files of the same backup."""
    if not check.was_asked or any(source == of.name for source, _ in came.problems):
        return
    stop = Stop()
    work = partial(_found, planned, of, check, stop)
    try:
        found = await in_thread(work, stop, gentle=True)
    except SourceError as error:
        came.unchecked.append(f"{of.name}: {error}")
        return
    if found and (told := crosscheck.beyond(of, check.source, found)):
        came.problems.append((of.name, f"{of.name}: {told}"))
        came.asked.append(check.source)


def _found(planned: Plan, of: SourceSummary, check: CrossCheck, stop: Stop) -> Unlike | None:
    """Blocks. Raises SourceError."""
    if pack.is_one(of):
        inner = pack.names(planned.target / of.place, of, stop)
    else:
        inner = ((e.path.removeprefix(of.place), e.type) for e in planned.entries if lies_in(e.path, of.place))
    for path, kind in inner:
        check.see(path, is_file=kind in (Type.FILE, Type.HARDLINK))
    return check.unlike(_NAMED, stop.check)


async def whole_in(
    lost: Sequence[str], others: Sequence[Backup], store: Store, means: Means, on_progress: OnProgress
) -> str:
    """The newest of the ``others``, newest first, in which the sources ``lost`` (none: all of it) are whole, tried in
    the same way; empty where none of the first few is.
    """
    for other in others[:_OLDER]:
        with suppress(CannotCheck):
            came = await drill(store, other, means, on_progress, trusted=True, wanted=lost)
            if not came.problems and came.files:
                return other.name
    return ""


# --- the scratch ------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _scratch(parent: Path) -> AsyncIterator[Path]:
    """A private, empty folder below ``parent``, where nobody else tries anything meanwhile.

    Raises LockHeld, and CannotCheck where none can be made or its disk fails.
    """
    folder = parent / NAME
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock.held(folder, "a restore test", "Wait until it is done."):
            await _cleared(folder, but=lock.NAME)
            try:
                (folder / "now").mkdir(mode=0o700)
                yield folder / "now"
            finally:
                await _cleared(folder)
    except (OSError, StoreError) as error:
        why = error.strerror if isinstance(error, OSError) else str(error).removesuffix(".")
        raise CannotCheck(
            f"Nothing can be tried in {folder} ({why}); nothing is known to be wrong with the backups. Name another "
            "folder with drill.scratch."
        ) from error


async def sweep(parent: Path) -> bool:
    """Remove what a drill left below ``parent`` that was killed, and end what it had started; whether there was any."""
    folder = parent / NAME
    if not folder.is_dir() or lock.taken(folder):
        return False
    await _cleared(folder)
    return True


async def _cleared(folder: Path, but: str = "") -> None:
    """Empty a folder, or with nothing ``but`` take it away, after all that works in it has ended."""
    await in_thread(partial(_clear, folder, but), Stop())


def _clear(folder: Path, but: str) -> None:
    _end_all_in(folder)
    if not but:
        shutil.rmtree(folder, ignore_errors=True)
        return
    for inner in folder.iterdir():
        if inner.name != but:
            shutil.rmtree(inner, ignore_errors=True)


def _end_all_in(folder: Path) -> None:
    """Servers work in their own folder, and outlast a kill of who started them. Nobody's shell is ended."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError, ValueError, IndexError):
            works_in = Path(str((process / "cwd").readlink()).removesuffix(" (deleted)"))
            terminal = (process / "stat").read_text().rpartition(")")[2].split()[4]
            number = int(process.name)
            if works_in.is_relative_to(folder) and terminal == "0" and number != os.getpid():
                os.kill(number, signal.SIGKILL)

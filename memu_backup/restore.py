"""Gives things back: one photo, one source or everything, into a folder. Plans first, so that nothing is half-done."""

from __future__ import annotations

import difflib
import errno
import os
import shutil
import stat
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any

from memu_backup import unpack, words
from memu_backup.errors import ArchiveError, DamagedArchive, HostileArchive, MemuError, RestoreError, UsageError
from memu_backup.feed import feed
from memu_backup.files import shown
from memu_backup.find import fits, may_fit
from memu_backup.formats.index import Entry
from memu_backup.formats.manifest import lies_in
from memu_backup.formats.reader import is_own
from memu_backup.formats.tar import Type
from memu_backup.model import Backup, Manifest, Phase, Progress
from memu_backup.stores import OnProgress, Opened, Store
from memu_backup.work import Stop


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to give back; nothing named means everything. ``paths`` are paths in the backup or globs of them, ``places``
    those of sources, to the letter, where the backup itself does not tell its sources.
    """

    sources: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    places: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore would do. ``in_the_way`` are files that are there already, and could be replaced; ``conflicts``
    are half-sentences about what could not: a folder where a file is to stand, a link where a folder is.

    ``size_bytes`` is what the files are read as, ``room_bytes`` what they take on a disk that knows of holes.
    ``new_files`` counts what needs an inode of its own, and ``free_files`` these, None where the disk has no limit.

    ``damage`` is a half-sentence about what is wrong with the archive, as far as that is known before it is read, and
    empty where nothing is. With ``cut`` the archive can be read up to the damage only: ``entries`` are of what can be
    had, and nobody knows what stood behind. ``indexed`` says whether each entry can be read by itself.
    """

    store: Store
    backup: Backup
    target: Path
    entries: tuple[Entry, ...]
    files: int
    size_bytes: int
    room_bytes: int
    in_the_way: tuple[str, ...]
    conflicts: tuple[str, ...]
    free_bytes: int
    new_files: int
    free_files: int | None
    manifest: Manifest | None
    indexed: bool
    damage: str
    cut: bool
    trusted: bool

    @property
    def name(self) -> str:
        """What the backup is called, also where it lies in parts."""
        return self.backup.name


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. ``warnings`` tell of owners and attributes that could not be set.

    ``lost`` are the files and links that were planned and could not be read; ``files`` and ``size_bytes`` are without
    them.
    """

    target: Path
    files: int
    size_bytes: int
    seconds: float
    warnings: tuple[str, ...]
    lost: tuple[str, ...]


def plan(store: Store, backup: Backup, wanted: Wanted, target: Path, stop: Stop, *, trusted: bool = False) -> Plan:
    """Judge every entry of the backup, pick what is wanted, look at the target. Changes nothing; blocks.

    Only from a ``trusted`` archive come setuid, setgid and capabilities of files (docs/decisions/0007).

    Of a damaged archive it plans what can be had. Raises UnknownBackup, NotAnArchive, HostileArchive, DamagedArchive
    where nothing can be had, and UsageError where nothing fits ``wanted``.
    """
    with store.open(backup.path, stop) as reader:
        try:
            held = _look_through(reader, wanted, trusted=trusted)
            # All of them and not only the wanted: one that holds a hostile entry is not trusted with the others.
            unpack.judge((e.path, e) for e in held.entries)
        except (DamagedArchive, HostileArchive) as error:
            raise about(backup.name, error) from error
    chosen = _with_link_targets(_choose(held, wanted), held.entries)
    disk = os.statvfs(nearest(target.absolute()))
    existing = {e.path for e in chosen if os.path.lexists(target / e.path)}
    return Plan(
        store=store,
        backup=backup,
        target=target,
        entries=chosen,
        files=sum(e.type is not Type.DIRECTORY for e in chosen),
        size_bytes=sum(e.size_bytes for e in chosen),
        room_bytes=sum(e.room_bytes for e in chosen),
        in_the_way=tuple(e.path for e in chosen if e.type is not Type.DIRECTORY and e.path in existing),
        conflicts=tuple(_conflicts(target, chosen)),
        free_bytes=disk.f_bavail * disk.f_frsize,
        new_files=sum(e.type is not Type.HARDLINK and e.path not in existing for e in chosen),
        free_files=disk.f_favail if disk.f_files else None,
        manifest=held.manifest,
        indexed=held.indexed,
        damage=held.damage,
        cut=held.cut,
        trusted=trusted,
    )


@dataclass(frozen=True, slots=True)
class _Held:
    """What an archive holds, as far as it tells; see ``Plan``."""

    entries: list[Entry]
    manifest: Manifest | None
    indexed: bool
    damage: str = ""
    cut: bool = False


def _look_through(reader: Opened, wanted: Wanted, *, trusted: bool) -> _Held:
    """By the index where that is whole, else by reading all there is. Raises DamagedArchive where nothing is.

    Of a ``trusted`` one no more is looked at than may be wanted: one photo out of a million comes at once.
    """
    manifest, damage = None, ""
    if reader.indexed and reader.whole:
        try:
            manifest = reader.manifest()
        except DamagedArchive as error:
            damage = str(error)
        with suppress(DamagedArchive):
            entries = list(reader.index(may_fit(wanted.paths) if trusted and wanted.paths else None, hashes=False))
            if any(e.type is Type.HARDLINK for e in entries):  # the files that they share lie anywhere
                entries = list(reader.index(hashes=False))
            return _Held(entries, manifest, True, damage)
    entries = []
    try:
        for found in reader.readable():
            if isinstance(found, Manifest):
                manifest = found
            else:
                entries.append(found)
    except DamagedArchive as error:
        if not entries:
            raise
        damage = str(error)
        cut = manifest is None  # which stands behind everything else
        if cut and not (reader.cut or (reader.indexed and reader.whole)):
            # One checksum for all of it, if any; or a stretch is missing where that can only be guessed.
            damage += "; it does not tell which of its files are whole, so look at them before you rely on them"
    else:
        damage, cut = "", False
    return _Held([e for e in entries if not is_own(e.path, manifest)], manifest, False, damage, cut)


def carry_out(planned: Plan, *, overwrite: bool, on_progress: OnProgress, stop: Stop) -> Restored:
    """Do what was planned; blocks. Files that are there are replaced only with ``overwrite``, each at once.

    Raises RestoreError before anything is written where files are in the way or space is short. A target that was
    made for this goes again where it ends in an error; in one that was there the files that were done stay, each of
    them whole. What cannot be read is left out and told: the rest may be all there is. Raises DamagedArchive where
    nothing can be read.
    """
    refuse(planned, overwrite=overwrite)
    begun = time.monotonic()
    made = _make_folder(planned.target)
    try:
        lost, warnings = _unpack(planned, overwrite, on_progress, stop, stays=planned.target not in made)
        if lost and len(lost) == planned.files:
            raise DamagedArchive(
                f"{planned.name} is damaged: nothing of what was wanted can be read. "
                "Try an older backup, or a copy of this one."
            )
    except BaseException:
        _unmake(made, planned.target)
        raise
    return Restored(
        target=planned.target,
        files=planned.files - len(lost),
        size_bytes=planned.size_bytes - sum(e.size_bytes for e in lost),
        seconds=time.monotonic() - begun,
        warnings=warnings,
        lost=tuple(e.path for e in lost),
    )


def _make_folder(target: Path) -> list[Path]:
    """Make ``target`` and what is missing above it; returns what was made here, and by nobody else meanwhile."""
    made: list[Path] = []
    try:
        for folder in reversed((target, *target.parents)):
            if not folder.is_dir():
                with suppress(FileExistsError):
                    folder.mkdir(mode=0o700 if folder == target else 0o777)
                    made.append(folder)
        target.stat()  # a link to nowhere is in the way of a folder too
    except OSError as error:
        _unmake(made, target)
        raise RestoreError(f"{_unusable(target, error)}, so nothing was restored. Choose another with --to.") from error
    return made


def _unmake(made: Sequence[Path], target: Path) -> None:
    if target in made:
        shutil.rmtree(target, ignore_errors=True)
    for folder in reversed(made):
        with suppress(OSError):  # somebody has put something of their own into it
            folder.rmdir()


def _unusable(target: Path, error: OSError) -> str:
    if error.errno == errno.EROFS:
        return f"{target} lies on a disk that cannot be written to"
    return f"{target} cannot be written to ({os.strerror(error.errno or 0)})"


def _unpack(
    planned: Plan, overwrite: bool, on_progress: OnProgress, stop: Stop, *, stays: bool
) -> tuple[list[Entry], tuple[str, ...]]:
    """Returns the files and links that could not be read, and warnings. ``stays`` says whether what was done stays
    after an error."""
    done_bytes = done_entries = 0

    one_at_a_time = Lock()

    def on_done(more_bytes: int, more_entries: int) -> None:
        nonlocal done_bytes, done_entries
        with one_at_a_time:
            done_bytes, done_entries = done_bytes + more_bytes, done_entries + more_entries
            # What is read again behind damage counts once more.
            at_most = min(done_bytes, planned.size_bytes)
            on_progress(Progress(Phase.RESTORING, at_most, planned.size_bytes, done_entries))

    allowed = {e.path: e for e in planned.entries}
    on_progress(Progress(Phase.RESTORING, 0, planned.size_bytes))
    try:
        unpacker = unpack.Unpacker(
            planned.target, allowed, overwrite=overwrite, stop=stop, on_done=on_done, trusted=planned.trusted
        )
    except OSError as error:
        raise RestoreError(f"{_unusable(planned.target, error)}, so nothing was restored.") from error
    with planned.store.open(planned.backup.path, stop) as reader, unpacker:
        try:
            unread = feed(reader, planned.entries, unpacker, indexed=planned.indexed)
            for entry in unread:
                if entry.type is Type.DIRECTORY:
                    unpacker.make_private_folder(entry.path)
            unpacker.finish()
        except RestoreError as error:
            if not stays:
                raise
            raise RestoreError(f"{error} Before that, {words.files(done_entries)} came back.") from error
        except ArchiveError as error:
            raise about(planned.name, error) from error
    return [e for e in unread if e.type is not Type.DIRECTORY], tuple(unpacker.warnings)


def as_json(planned: Plan) -> dict[str, Any]:
    """A plan for machines; sizes are bytes."""
    return {
        "archive": str(planned.backup.path),
        "target": str(planned.target),
        "files": planned.files,
        "size_bytes": planned.size_bytes,
        "free_bytes": planned.free_bytes,
        "in_the_way": list(planned.in_the_way),
        "conflicts": list(planned.conflicts),
        "damage": planned.damage,
    }


def refuse(planned: Plan, *, overwrite: bool) -> None:
    """Raises RestoreError where a plan cannot be carried out: no folder, files in the way, or not enough space."""
    there = nearest(planned.target)
    if not there.is_dir():
        raise RestoreError(f"{there} is a file and not a folder, so nothing was restored. Choose another with --to.")
    if planned.conflicts:
        more = len(planned.conflicts) - 3
        raise RestoreError(
            f"{'; '.join(planned.conflicts[:3])}{f'; and {more} more' if more > 0 else ''}; nothing was written. "
            "Restore to an empty folder with --to."
        )
    if planned.in_the_way and not overwrite:
        first = ", ".join(shown(p) for p in planned.in_the_way[:3])
        more = len(planned.in_the_way) - 3
        raise RestoreError(
            f"{planned.target} already holds {first}{f' and {more} more' if more > 0 else ''}; nothing was written. "
            "Restore to an empty folder with --to, or add --overwrite to replace them."
        )
    if planned.room_bytes > planned.free_bytes:
        raise RestoreError(
            f"Not enough space: {words.size(planned.room_bytes)} needed, {words.size(planned.free_bytes)} free at "
            f"{planned.target}; nothing was written. Choose another place with --to."
        )
    if planned.free_files is not None and planned.new_files > planned.free_files:
        raise RestoreError(
            f"Not enough room: the disk at {planned.target} can take {planned.free_files:,} more files and folders "
            f"(inodes), and {planned.new_files:,} are needed; nothing was written. Choose another place with --to."
        )


def _choose(held: _Held, wanted: Wanted) -> list[Entry]:
    places = wanted.places or _places(wanted.sources, held.manifest)
    inside = [e for e in held.entries if not places or any(lies_in(e.path, p) for p in places)]
    for pattern in wanted.paths:
        # Each on its own: a mistyped one beside a good one would pass unnoticed, on a day that matters.
        if not any(fits(e.path, pattern) for e in inside):
            where = f"{' and '.join(wanted.sources)} of this backup" if wanted.sources else "this backup"
            raise UsageError(
                f"Nothing in {where} fits {shown(pattern)}; nothing was restored. "
                "Look into it with: memu-backup show BACKUP --files"
            )
    chosen = [e for e in inside if not wanted.paths or any(fits(e.path, p) for p in wanted.paths)]
    if not chosen:
        raise UsageError("There is nothing in this backup to restore.")
    return chosen


def _places(sources: Sequence[str], manifest: Manifest | None) -> list[str]:
    if not sources:
        return []
    if manifest is None:
        raise UsageError("This archive does not tell its sources; name paths with --path instead.")
    known = {s.name: s.place for s in manifest.sources}
    for source in sources:
        if source not in known:
            close = difflib.get_close_matches(source, known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise UsageError(f"There is no source {shown(source)} in this backup; it has {', '.join(known)}.{hint}")
    return [known[s] for s in sources]


def _with_link_targets(chosen: Sequence[Entry], entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """A hard link is worth nothing without the file it shares: that comes too, in its own place."""
    paths = {e.path for e in chosen}
    wanted = {e.link for e in chosen if e.type is Type.HARDLINK} - paths
    if not wanted:
        return tuple(chosen)
    return tuple(e for e in entries if e.path in paths or e.path in wanted)


def _conflicts(target: Path, entries: Sequence[Entry]) -> Iterator[str]:
    """What is there that nothing could be put in the place of, and folders that are links to elsewhere."""
    looked_at: set[str] = set()
    for entry in entries:
        folder = entry.path if entry.type is Type.DIRECTORY else entry.path.rpartition("/")[0]
        parts = folder.split("/") if folder else []
        for depth in range(len(parts)):
            place = "/".join(parts[: depth + 1])
            if place not in looked_at:
                looked_at.add(place)
                there = _kind(target / place)
                if there not in ("", "folder"):
                    yield f"{target / shown(place)} is a {there}, where a folder is to stand"
        if entry.type is not Type.DIRECTORY and _kind(target / entry.path) == "folder":
            yield f"{target / shown(entry.path)} is a folder, where a {entry.type} is to stand"


def _kind(path: Path) -> str:
    """folder, link or file; empty where there is nothing."""
    try:
        mode = path.lstat().st_mode
    except OSError:
        return ""
    return "folder" if stat.S_ISDIR(mode) else "link" if stat.S_ISLNK(mode) else "file"


def nearest(target: Path) -> Path:
    """``target``, or what there is above it."""
    return next(f for f in (target, *target.parents) if os.path.exists(f))  # noqa: PTH110  Path.exists raises below a closed folder


def about(name: str, error: MemuError) -> MemuError:
    """Errors of the archive are half-sentences about "it"; here they get its name, and what it means."""
    text = str(error)
    if text[:1].isupper():
        return type(error)(f"{name}: {text}")
    return type(error)(f"{name} is damaged: {text}. Try an older backup, or a copy of this one.")

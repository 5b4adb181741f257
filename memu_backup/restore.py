"""Gives things back: one photo, one source or everything, into a folder. Plans first, so that nothing is half-done."""

from __future__ import annotations

import difflib
import errno
import fnmatch
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memu_backup import unpack, words
from memu_backup.errors import ArchiveError, DamagedArchive, HostileArchive, MemuError, RestoreError, UsageError
from memu_backup.files import shown
from memu_backup.formats.index import Entry
from memu_backup.formats.manifest import lies_in
from memu_backup.formats.reader import ArchiveReader, is_own
from memu_backup.formats.tar import Type
from memu_backup.model import Manifest, Phase, Progress
from memu_backup.stores import OnProgress
from memu_backup.unpack import Planned
from memu_backup.work import Stop

_FEW = 200
"""Up to so many entries are looked up one by one; beyond that the archive is read in one go."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What to give back; nothing named means everything. ``paths`` are paths in the backup or globs of them."""

    sources: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """What a restore would do. ``in_the_way`` are files that are there already.

    ``size_bytes`` is what the files are read as, ``room_bytes`` what they take on a disk that knows of holes.
    ``new_files`` counts what needs an inode of its own, and ``free_files`` these, None where the disk has no limit.
    """

    archive: Path
    target: Path
    entries: tuple[Entry, ...]
    files: int
    size_bytes: int
    room_bytes: int
    in_the_way: tuple[str, ...]
    free_bytes: int
    new_files: int
    free_files: int | None
    manifest: Manifest | None


@dataclass(frozen=True, slots=True)
class Restored:
    """What a restore did. ``warnings`` tell of owners and attributes that could not be set."""

    target: Path
    files: int
    size_bytes: int
    seconds: float
    warnings: tuple[str, ...]


def plan(archive: Path, wanted: Wanted, target: Path, stop: Stop) -> Plan:
    """Judge every entry of the archive, pick what is wanted, look at the target. Changes nothing; blocks.

    Raises UnknownBackup, NotAnArchive, DamagedArchive, HostileArchive, and UsageError where nothing fits ``wanted``.
    """
    with ArchiveReader(archive, stop) as reader:
        try:
            if not reader.whole:
                raise DamagedArchive("it is not as long as it was when it was written")
            manifest = reader.manifest()
            entries = [e for e in reader.index() if not is_own(e.path, manifest)]
            # All of them and not only the wanted: one that holds a hostile entry is not trusted with the others.
            unpack.judge((e.path, Planned(e.type, e.size_bytes, e.link)) for e in entries)
        except (DamagedArchive, HostileArchive) as error:
            raise about(archive, error) from error
    chosen = _with_link_targets(_choose(entries, wanted, manifest), entries)
    disk = os.statvfs(_nearest(target.absolute()))
    existing = {e.path for e in chosen if os.path.lexists(target / e.path)}
    return Plan(
        archive=archive,
        target=target,
        entries=chosen,
        files=sum(e.type is not Type.DIRECTORY for e in chosen),
        size_bytes=sum(e.size_bytes for e in chosen),
        room_bytes=sum(e.room_bytes for e in chosen),
        in_the_way=tuple(e.path for e in chosen if e.type is not Type.DIRECTORY and e.path in existing),
        free_bytes=disk.f_bavail * disk.f_frsize,
        new_files=sum(e.type is not Type.HARDLINK and e.path not in existing for e in chosen),
        free_files=disk.f_favail if disk.f_files else None,
        manifest=manifest,
    )


def carry_out(planned: Plan, *, overwrite: bool, on_progress: OnProgress, stop: Stop) -> Restored:
    """Do what was planned; blocks. Files that are there are replaced only with ``overwrite``, each at once.

    Raises RestoreError before anything is written where files are in the way or space is short. A target that was
    made for this goes again where it ends in RestoreError or Interrupted; in one that was there the files that were
    done stay, each of them whole. After DamagedArchive what could be read stays in any case: it may be all there is.
    """
    refuse(planned, overwrite=overwrite)
    begun = time.monotonic()
    made = _make_folder(planned.target)
    try:
        warnings = _unpack(planned, overwrite, on_progress, stop)
    except DamagedArchive:
        raise
    except BaseException:
        _unmake(made, planned.target)
        raise
    return Restored(planned.target, planned.files, planned.size_bytes, time.monotonic() - begun, warnings)


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


def _unpack(planned: Plan, overwrite: bool, on_progress: OnProgress, stop: Stop) -> tuple[str, ...]:
    done_bytes = done_entries = 0

    def on_done(more_bytes: int, more_entries: int) -> None:
        nonlocal done_bytes, done_entries
        done_bytes, done_entries = done_bytes + more_bytes, done_entries + more_entries
        on_progress(Progress(Phase.RESTORING, done_bytes, planned.size_bytes, done_entries))

    allowed = {e.path: Planned(e.type, e.size_bytes, e.link) for e in planned.entries}
    on_progress(Progress(Phase.RESTORING, 0, planned.size_bytes))
    try:
        unpacker = unpack.Unpacker(planned.target, allowed, overwrite=overwrite, stop=stop, on_done=on_done)
    except OSError as error:
        raise RestoreError(f"{_unusable(planned.target, error)}, so nothing was restored.") from error
    with ArchiveReader(planned.archive, stop) as reader, unpacker:
        try:
            _feed(reader, planned, allowed, unpacker)
            unpacker.finish()
        except DamagedArchive as error:
            raise DamagedArchive(
                f"{about(planned.archive, error)} What could be read until then is in {planned.target}."
            ) from error
        except ArchiveError as error:
            raise about(planned.archive, error) from error
    return tuple(unpacker.warnings)


def as_json(planned: Plan) -> dict[str, Any]:
    """A plan for machines; sizes are bytes."""
    return {
        "archive": str(planned.archive),
        "target": str(planned.target),
        "files": planned.files,
        "size_bytes": planned.size_bytes,
        "free_bytes": planned.free_bytes,
        "in_the_way": list(planned.in_the_way),
    }


def _feed(reader: ArchiveReader, planned: Plan, allowed: dict[str, Planned], unpacker: unpack.Unpacker) -> None:
    seen = 0
    if reader.indexed and len(planned.entries) <= _FEW:
        for entry in planned.entries:
            for header, content in reader.entries_with_content(entry):
                unpacker.put(header, content)
                seen += 1
                break
    else:
        for header, content in reader.entries_with_content():
            if header.path in allowed:
                unpacker.put(header, content)
                seen += 1
    if seen != len(planned.entries):
        raise DamagedArchive(f"its index names {len(planned.entries) - seen} entries that it does not hold")


def refuse(planned: Plan, *, overwrite: bool) -> None:
    """Raises RestoreError where a plan cannot be carried out: no folder, files in the way, or not enough space."""
    there = _nearest(planned.target)
    if not there.is_dir():
        raise RestoreError(f"{there} is a file and not a folder, so nothing was restored. Choose another with --to.")
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


def _choose(entries: Sequence[Entry], wanted: Wanted, manifest: Manifest | None) -> list[Entry]:
    places = _places(wanted.sources, manifest)
    inside = [e for e in entries if not places or any(lies_in(e.path, p) for p in places)]
    for pattern in wanted.paths:
        # Each on its own: a mistyped one beside a good one would pass unnoticed, on a day that matters.
        if not any(_fits(e.path, pattern) for e in inside):
            where = f"{' and '.join(wanted.sources)} of this backup" if wanted.sources else "this backup"
            raise UsageError(
                f"Nothing in {where} fits {shown(pattern)}; nothing was restored. "
                "Look into it with: memu-backup show BACKUP --files"
            )
    chosen = [e for e in inside if not wanted.paths or any(_fits(e.path, p) for p in wanted.paths)]
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


def _fits(path: str, pattern: str) -> bool:
    """A path itself, everything below it, or a glob; ``*`` crosses folders, as people expect of a search."""
    pattern = pattern.removeprefix("./").strip("/")
    return path == pattern or path.startswith(pattern + "/") or fnmatch.fnmatchcase(path, pattern)


def _with_link_targets(chosen: Sequence[Entry], entries: Sequence[Entry]) -> tuple[Entry, ...]:
    """A hard link is worth nothing without the file it shares: that comes too, in its own place."""
    paths = {e.path for e in chosen}
    wanted = {e.link for e in chosen if e.type is Type.HARDLINK} - paths
    if not wanted:
        return tuple(chosen)
    return tuple(e for e in entries if e.path in paths or e.path in wanted)


def _nearest(target: Path) -> Path:
    """``target``, or what there is above it."""
    return next(f for f in (target, *target.parents) if os.path.exists(f))  # noqa: PTH110  Path.exists raises below a closed folder


def about(archive: Path, error: MemuError) -> MemuError:
    """Errors of the archive are half-sentences about "it"; here they get its name, and what it means."""
    text = str(error)
    if text[:1].isupper():
        return type(error)(f"{archive.name}: {text}")
    return type(error)(f"{archive.name} is damaged: {text}. Try an older backup, or a copy of this one.")

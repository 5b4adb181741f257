"""A folder as one member of a backup, a tar.gz of its own: on its way in, looked into, and on its way back."""

from __future__ import annotations

import os
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import IO, Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memu_backup import files, unpack, walk, words
from memu_backup.errors import ArchiveError, DamagedArchive, DiskFull, NotAnArchive, RestoreError
from memu_backup.files import Tick
from memu_backup.formats import untar
from memu_backup.formats.index import Entry
from memu_backup.formats.reader import ArchiveReader
from memu_backup.formats.tar import Type
from memu_backup.formats.writer import ArchiveWriter
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.walk import Identity
from memu_backup.work import Stop, in_thread

END = ".tar.gz"
"""A place that ends so is a folder, packed."""

_DETAIL = "packed"
_PIECE = 1024 * 1024
_Count = Annotated[int, Field(ge=0, lt=2**63)]


class _Packed(BaseModel):
    """What metadata.json tells of what is inside; of a backup that may be a stranger's."""

    model_config = ConfigDict(hide_input_in_errors=True)

    files: _Count
    directories: _Count
    links: _Count
    size_bytes: _Count
    newest_mtime: datetime | None = None


def top(place: str) -> str:
    """The one folder inside, with a slash: storage.tar.gz holds storage/, wherever that lies on this machine."""
    return f"{place.rsplit('/', 1)[-1].removesuffix(END)}/"


def is_one(summary: SourceSummary) -> bool:
    return _DETAIL in summary.details


# --- on its way in ---------------------------------------------------------------------------------------------------


class Packing:
    """Writes out first, one after another, what a store is to hold packed: a tar tells the size of a member before its
    content, and nobody knows it before (docs/decisions/0026).

    ``folder`` is on the store's disk; there it lies without a name until it was read. Progress is told by ``tick``:
    what was packed is not counted again when it is read from there.
    """

    def __init__(self, folder: Path, skip: frozenset[Identity], begun_at: datetime, stop: Stop, tick: Tick) -> None:
        self._folder, self._skip, self._begun_at, self._stop = folder, skip, begun_at, stop
        self._tick = tick
        self._was_counted = False

    def tick(self, more_bytes: int, more_files: int, what: str) -> None:
        if not self._was_counted:
            self._tick(more_bytes, more_files, what)

    def each(self, captured: Iterable[Captured]) -> Iterator[Captured]:
        """Hand on what was captured, the packed ones as the file that they have become. Raises StoreError, DiskFull,
        Interrupted.
        """
        for one in captured:
            if not any(root.packed for root in one.roots):
                yield one
                continue
            (root,) = one.roots
            with self._file() as file:
                staged = self._packed(one, root, file)
                self._was_counted = True
                yield staged
                self._was_counted = False

    def _file(self) -> IO[bytes]:
        try:
            return tempfile.TemporaryFile(dir=self._folder)
        except OSError as error:
            raise files.storing(error, self._folder) from error

    def _packed(self, one: Captured, root: Root, file: IO[bytes]) -> Captured:
        inner = replace(root, place=top(root.place), packed=False)
        needed_bytes = self._measured(inner)
        self._must_fit(needed_bytes, f"{root.place} is packed from {words.size(needed_bytes)} before it is stored")
        source = replace(one, roots=(inner,), place=inner.place)
        with ArchiveWriter(file.fileno(), self._folder, self._stop, self.tick, self._begun_at, gentle=True) as writer:
            held = writer.add(source, self._skip)
            writer.end()
        size_bytes = os.fstat(file.fileno()).st_size
        self._must_fit(size_bytes, f"{root.place} has become {words.size(size_bytes)} and has to be stored now")
        newest = held.newest_mtime.isoformat() if held.newest_mtime else None
        told = _Packed.model_fields.keys() - {"newest_mtime"}
        inside = {key: getattr(held, key) for key in sorted(told)} | {"newest_mtime": newest}
        return replace(
            one,
            roots=(Root(Path(f"/proc/self/fd/{file.fileno()}"), root.place),),
            details={**held.details, _DETAIL: inside},
            warnings=held.warnings,
            missing=held.missing,
            crosscheck=None,
        )

    def _measured(self, root: Root) -> int:
        """What does not shrink, as most that is kept so does not; holes take nothing."""
        needed_bytes = 0
        for found in walk.walk(root, self._skip, lambda _: None):
            self._stop.check()
            if stat.S_ISREG(found.status.st_mode):
                needed_bytes += min(found.status.st_size, found.status.st_blocks * 512)
        return needed_bytes

    def _must_fit(self, needed_bytes: int, what: str) -> None:
        try:
            disk = os.statvfs(self._folder)
        except OSError as error:
            raise files.storing(error, self._folder) from error
        free_bytes = disk.f_bavail * disk.f_frsize
        if needed_bytes > free_bytes:
            raise DiskFull(
                f"{what}, and only {words.size(free_bytes)} are free on the disk that holds {self._folder}, so no "
                "backup was made; older backups are untouched. Free up space, add storage, or end its place in a slash "
                "so that it is not packed."
            )


# --- looked into -----------------------------------------------------------------------------------------------------


async def verify(summary: SourceSummary, content: Callable[[str], Iterator[bytes]]) -> list[str]:
    """What is wrong inside, a sentence each; ``content`` gives the bytes of a file in the backup."""
    stop = Stop()
    return await in_thread(lambda: _problems(summary, content(summary.place), stop), stop, gentle=True)


def _problems(summary: SourceSummary, content: Iterator[bytes], stop: Stop) -> list[str]:
    told = _told(summary)
    if told is None:
        return [f"{summary.place}: metadata.json does not say what is packed in it. Was it changed by hand?"]
    seen: dict[str, int] = dict.fromkeys(("files", "directories", "links", "size_bytes"), 0)
    try:
        for header, _ in untar.Reader(_inflated(content, stop)):
            seen["files"] += header.type is Type.FILE
            seen["directories"] += header.type is Type.DIRECTORY
            seen["links"] += header.type in (Type.SYMLINK, Type.HARDLINK)
            seen["size_bytes"] += header.size_bytes
    except (ArchiveError, zlib.error) as error:
        return [f"{summary.place} cannot be unpacked: {str(error).removesuffix('.')}."]
    names = {"directories": "folders", "size_bytes": "bytes"}
    return [
        f"{summary.place} holds {count:,} {names.get(key, key)} and should hold {getattr(told, key):,}."
        for key, count in seen.items()
        if count != getattr(told, key)
    ]


def _inflated(blocks: Iterator[bytes], stop: Stop) -> Iterator[bytes]:
    inflater = zlib.decompressobj(31)
    for block in blocks:
        while block:
            stop.check()
            if inflater.eof:
                inflater = zlib.decompressobj(31)
            yield inflater.decompress(block, _PIECE)
            block = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    while not inflater.eof and (rest := inflater.decompress(b"", _PIECE)):
        yield rest
    if not inflater.eof:
        raise DamagedArchive("it ends too early; a part of it is missing")


def names(given: Path, summary: SourceSummary, stop: Stop) -> Iterator[tuple[str, Type]]:
    """What is packed in what came back at ``given``: each path in the folder, and its kind. Raises DamagedArchive."""
    with ArchiveReader(given, stop) as reader:
        for one in reader.readable():
            if isinstance(one, Entry):
                yield one.path.removeprefix(top(summary.place)), one.type


def inside(summary: SourceSummary) -> SourceSummary:
    """The same with the counts of what is packed in it, for whoever tells of it; as it is where it tells nothing."""
    told = _told(summary)
    if told is None:
        return summary
    newest = told.newest_mtime if told.newest_mtime and told.newest_mtime.tzinfo else None
    return replace(summary, files=told.files, links=told.links, newest_mtime=newest)


def _told(summary: SourceSummary) -> _Packed | None:
    details: Mapping[str, object] = summary.details
    try:
        return _Packed.model_validate(details.get(_DETAIL))
    except ValidationError:
        return None


# --- on its way back -------------------------------------------------------------------------------------------------


def with_room(summary: SourceSummary, landing: Path) -> Path:
    """``landing``, where its part of a backup is to land. Raises RestoreError where that is packed, and does not fit on
    the disk there together with what is in it.
    """
    told = _told(summary)
    if told is None:
        return landing
    there = next(folder for folder in landing.parents if folder.is_dir())
    disk = os.statvfs(there)
    needed_bytes, free_bytes = summary.size_bytes + told.size_bytes, disk.f_bavail * disk.f_frsize
    if needed_bytes > free_bytes:
        raise RestoreError(
            f"Not enough space: {words.size(needed_bytes)} needed at {there} to unpack {summary.place} (source "
            f"{summary.name}), {words.size(free_bytes)} free; nothing was changed. Restore it to another disk with "
            "--to, and unpack it there with tar."
        )
    return landing


async def unpacked(given: Path, summary: SourceSummary) -> tuple[Path, list[str]]:
    """What came back at ``given``, as the folder that it is; and warnings. A packed one is unpacked beside itself, and
    goes. Raises RestoreError and HostileArchive.

    As from any archive, setuid, setgid and capabilities of files do not come along (docs/decisions/0007).
    """
    if not is_one(summary):
        return given, []
    stop = Stop()
    return await in_thread(lambda: _unpacked(given, summary.place, stop), stop)


def _unpacked(given: Path, place: str, stop: Stop) -> tuple[Path, list[str]]:
    target = given.with_name(f".{given.name}.unpacked")
    folder = top(place)
    try:
        with ArchiveReader(given, stop) as reader:
            plan = unpack.judge((e.path, e) for e in reader.readable() if isinstance(e, Entry))
            if any(not f"{path}/".startswith(folder) for path in plan) or folder.rstrip("/") not in plan:
                raise RestoreError(
                    f"{place} holds something else than a folder {folder}, so it was not put back. Restore it to a "
                    "folder with --to, and look into it."
                )
            target.mkdir(mode=0o700)
            unpacker = unpack.Unpacker(target, plan, overwrite=False, stop=stop, on_done=lambda _bytes, _entries: None)
            with unpacker:
                for header, content in reader.entries_with_content():
                    unpacker.put(header, content)
                unpacker.finish()
    except (DamagedArchive, NotAnArchive) as error:
        raise RestoreError(
            f"{place} was not put back, as it cannot be unpacked ({str(error).removesuffix('.')}). Try an older backup."
        ) from error
    except OSError as error:
        raise RestoreError(f"{place} could not be unpacked ({os.strerror(error.errno or 0)}).") from error
    with suppress(OSError):
        given.unlink()
    return target / folder.rstrip("/"), unpacker.warnings

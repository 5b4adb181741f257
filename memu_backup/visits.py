"""One visit of a drive: mounted, known by its mark, copied to, written down, let go."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

from memu_backup import anywhere, catalog, copy_to_drive, lock, rescue
from memu_backup.audit import Asker, Audit
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.copy_to_drive import Made, OnBegin, Order, SourceDamaged, Wanted
from memu_backup.drives import mounting
from memu_backup.drives import shelf as drive_shelf
from memu_backup.drives.shelf import Shelf
from memu_backup.drives.udev import Plug
from memu_backup.errors import ArchiveError, DriveUnknown, HistoryAway, StoreError, UsageError
from memu_backup.files import write_atomically
from memu_backup.formats.reader import ArchiveReader
from memu_backup.history import History
from memu_backup.model import Backup, Copying, Drive, Phase, Progress, newest_good
from memu_backup.passports import Passports
from memu_backup.status import from_backup
from memu_backup.stores import OnProgress, Store
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

_NOTED_EVERY_S = 1.0
_PROGRESS = "progress.json"

Verify = Callable[[Store, Backup], Awaitable[object]]
"""Reads a backup on this machine back, and notes what comes of it."""


@dataclass(frozen=True, slots=True)
class Visit:
    """What came of one. ``drive`` is None where the copies went to a folder."""

    drive: Drive | None
    made: Made


class Visits:
    """One at a time on this machine, on drives that have a passport."""

    def __init__(
        self,
        config: Config,
        history: History,
        audit: Audit,
        passports: Passports,
        store_of: Callable[[str], Store],
        verify: Verify,
        clock: Clock,
    ) -> None:
        self._config = config
        self._history = history
        self._audit = audit
        self._passports = passports
        self._store_of = store_of
        self._verify = verify
        self._clock = clock
        self._folder = passports.folder

    async def wanted(self) -> tuple[Wanted, ...]:
        """The newest good backup of each job that is to lie on drives. Raises StoreError."""
        found = []
        for name in self._config.jobs:
            job = self._config.job(name)
            if job.to_drives:
                store = self._store_of(name)
                mine = await catalog.of_job(store, self._config.host, name, self._history)
                if backup := newest_good(mine, self._clock()):
                    archive = await asyncio.to_thread(store.copied_as, backup)
                    found.append(Wanted(name, store, backup, archive))
        return tuple(found)

    async def missing_on(self, where: Plug | Path) -> tuple[Wanted, ...]:
        """What a copy would write to a drive, which is mounted for a look, or to a folder. Raises as ``copy``."""
        wanted = await self.wanted()
        called = self._passports.called(where) if isinstance(where, Plug) else str(where)
        async with self._alone(called), self._opened(where, reading=True) as top:
            work = partial(copy_to_drive.missing, wanted, self._config.host, top)
            return tuple(await in_thread(work, Stop()))

    @asynccontextmanager
    async def newest_copy(self, plug: Plug, job: str) -> AsyncIterator[tuple[Store, Backup] | None]:
        """The newest whole copy of a job on a trusted drive, which is mounted for reading alone meanwhile; None where
        there is none. Raises as ``copy``, and ArchiveError.
        """
        async with self._alone(self._passports.called(plug)), self._opened(plug, reading=True) as top:
            with drive_shelf.reading(top, self._config.host, job) as shelf:
                copies = await in_thread(shelf.copies, Stop()) if shelf else []
                newest = next((copy for copy in copies if copy.sha256), None)
                if shelf is None or newest is None:
                    yield None
                    return
                file = drive_shelf.path_of(shelf.descriptor, newest.files[0])
                yield await in_thread(partial(anywhere.look, file), Stop())

    @asynccontextmanager
    async def _opened(self, where: Plug | Path, *, reading: bool = False) -> AsyncIterator[int]:
        """The top of a drive, or a folder, as a descriptor."""
        if isinstance(where, Plug):
            async with mounting.mounted(where, self._mountpoint(where), reading=reading) as top:
                yield top
            return
        try:
            top = os.open(where, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise UsageError(f"{where} cannot be used as a folder for copies ({error.strerror}).") from error
        try:
            yield top
        finally:
            os.close(top)

    async def copy(self, plug: Plug, asker: Asker, on_begin: OnBegin, on_progress: OnProgress) -> Visit:
        """Bring the newest good backup of each job to a trusted drive, which is unmounted after that.

        Raises DriveError in words that follow the drive's name, LockHeld where another copy is made, StoreError,
        UsageError where there is nothing to copy.
        """
        drive = self._passports.known.of(plug)
        if drive is None or drive.trusted_at is None:
            raise DriveUnknown("Nobody has approved it, so nothing was written on it.")
        async with self._alone(drive.called) as noted, self._audit.act(asker, "copy to drive", drive.called) as deed:
            async with self._opened(plug) as top:
                drive = await self._introduced(drive, top)
                order = partial(self._order, device=plug.node, called=drive.called)
                made = await self._made(order, top, on_begin, noted(on_progress))
            deed.outcome = ", ".join(w.archive.name for w in made.copied) or "all there already"
            drive = await self._written_down(drive, made)
        return Visit(drive, made)

    async def copy_to(self, folder: Path, asker: Asker, on_begin: OnBegin, on_progress: OnProgress) -> Visit:
        """The same, to a folder. Raises as ``copy``."""
        async with self._alone(str(folder)) as noted, self._audit.act(asker, "copy to folder", str(folder)):
            async with self._opened(folder) as top:
                made = await self._made(self._order, top, on_begin, noted(on_progress))
            await self._note_rows(made)
        return Visit(None, made)

    async def held_by(self, plug: Plug) -> tuple[str, ...]:
        """Where it is still in use, see ``mounting.holders``; it may be pulled where it is not. Raises LockHeld while
        something is copied.
        """
        async with self._alone(self._passports.called(plug)):
            return tuple(await in_thread(partial(mounting.holders, plug), Stop()))

    async def let_go(self, plug: Plug) -> tuple[str, ...]:
        """Power it off, where nobody has it any more and it can; else as ``held_by``."""
        held = await self.held_by(plug)
        if not held:
            await mounting.power_off(plug)
        return held

    async def power_off(self, plug: Plug) -> None:
        """See ``mounting.power_off``."""
        await mounting.power_off(plug)

    def copying(self) -> Copying | None:
        """What is being copied right now."""
        if not lock.taken(self._folder):
            return None
        try:
            said = json.loads((self._folder / _PROGRESS).read_bytes())
            return Copying(
                str(said["called"]), Progress(Phase(said["phase"]), int(said["done_bytes"]), int(said["total_bytes"]))
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    async def _made(
        self, order: Callable[[tuple[Wanted, ...]], Order], top: int, on_begin: OnBegin, on_progress: OnProgress
    ) -> Made:
        """A backup that turns out to be damaged here is noted as such, and the one before it is taken."""
        for attempt in (1, 2):
            wanted = await self.wanted()
            if not wanted:
                raise UsageError("There is no good backup yet that could be copied. Make one: memu-backup start")
            try:
                return await copy_to_drive.copy(order(wanted), top, on_begin, on_progress)
            except SourceDamaged as error:
                if attempt == 2:
                    raise
                log.warning("%s", error)
                if await asyncio.to_thread(error.wanted.backup.path.exists):  # else it was let go meanwhile
                    await self._verify(error.wanted.store, error.wanted.backup)
        raise AssertionError

    async def _introduced(self, drive: Drive, top: int) -> Drive:
        """See that it is the drive that was approved; one that is new gets its marker. Raises DriveUnknown."""
        found = await in_thread(partial(drive_shelf.marker_on, top), Stop())
        if drive.marker and found != drive.marker:
            raise DriveUnknown(
                "It looks like a drive that gets copies, and does not carry its mark: it was emptied, or is a copy of "
                "that drive. Nothing was written on it."
            )
        if drive.marker:
            return drive
        marker = found or drive.drive_id  # one that another server uses too keeps the mark by which that one knows it

        def introduce() -> None:
            with Shelf(top) as shelf:
                shelf.mark(marker, self._config.host, drive.called, self._clock())

        if not found:
            await in_thread(introduce, Stop())
        return await asyncio.to_thread(
            self._passports.known.change, drive.drive_id, lambda d: replace(d, marker=marker)
        )

    def _order(self, wanted: tuple[Wanted, ...], device: Path | None = None, called: str = "") -> Order:
        kit = partial(self._leave_kit, called=called)
        return Order(wanted, self._config.host, self._config.usb.keep, device, kit)

    def _leave_kit(self, shelf: Shelf, called: str) -> None:
        """What somebody finds who has nothing but the drive. Whatever is wrong with it must not cost the copy."""
        copies = []
        for folder, copy in copy_to_drive.whole(shelf):
            with shelf.named(folder) as job, suppress(ArchiveError, UsageError):
                with ArchiveReader(drive_shelf.path_of(job.descriptor, copy.files[0])) as reader:
                    made = reader.manifest() if reader.indexed else None  # else all of it would be read
                if made:
                    told = rescue.Copy(
                        path=f"{folder}/{copy.name}",
                        created_at=made.created_at,
                        size_bytes=copy.size_bytes,
                        parts=len(copy.files) if len(copy.files) > 1 else 0,
                        job=made.job,
                        host=made.host,
                        sources=tuple(s.name for s in made.sources),
                    )
                    copies.append(told)
        for name, content in rescue.kit(called, copies, self._clock(), self._config.zone).items():
            shelf.put(name, content)

    async def _written_down(self, drive: Drive, made: Made) -> Drive:
        await self._note_rows(made)

        def visited(known: Drive) -> Drive:
            return replace(
                known,
                last_seen_at=self._clock(),
                last_copied_at=self._clock() if made.copied else known.last_copied_at or self._clock(),
                copies=made.copies,
                bytes_per_second=made.bytes_per_second or known.bytes_per_second,
            )

        try:
            drive = await asyncio.to_thread(self._passports.known.change, drive.drive_id, visited)
        except UsageError:  # forgotten meanwhile; the copies are there all the same
            return drive
        await self._passports.write_down(drive)
        return drive

    async def _note_rows(self, made: Made) -> None:
        """``usb_copied_at`` of each that was copied, and of each that was there and of which no row says so."""
        for wanted in (*made.copied, *made.there):
            manifest = wanted.backup.manifest
            assert manifest
            rows, away = await self._history.known_runs(called=[manifest.run_id])
            unknown = None if away else from_backup(wanted.backup)
            row = next((r for r in rows if r.run_id == manifest.run_id), unknown)
            if row and (wanted in made.copied or row.usb_copied_at is None):
                try:
                    await self._history.record(replace(row, usb_copied_at=self._clock()))
                except HistoryAway as error:
                    log.warning("That %s was copied could not be written down: %s", row.filename, error)

    def _mountpoint(self, plug: Plug) -> Path:
        return self._folder / "mounted" / plug.node.name

    @asynccontextmanager
    async def _alone(self, called: str) -> AsyncIterator[Callable[[OnProgress], OnProgress]]:
        """One copy at a time on this machine; how far it is can be seen from other processes. Raises LockHeld."""
        try:
            self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(f"{self._folder} cannot be made ({error.strerror}), so nothing was copied.") from error
        file = self._folder / _PROGRESS
        noted_at = 0.0

        def noting(on_progress: OnProgress) -> OnProgress:
            def note(moment: Progress) -> None:
                nonlocal noted_at
                on_progress(moment)
                if time.monotonic() - noted_at > _NOTED_EVERY_S:
                    noted_at = time.monotonic()
                    said = {
                        "called": called,
                        "phase": moment.phase,
                        "done_bytes": moment.done_bytes,
                        "total_bytes": moment.total_bytes or 0,
                    }
                    with suppress(OSError):
                        write_atomically(file, json.dumps(said).encode(), lasting=False)

            return note

        with lock.held(self._folder, f"a copy to {called}", "Wait until it is done; memu-backup status shows how far."):
            try:
                yield noting
            finally:
                with suppress(OSError):
                    file.unlink()

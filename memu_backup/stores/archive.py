"""One tar.gz a backup, with its .sha256 beside it; any machine's tar gets everything back (docs/format.md)."""

from __future__ import annotations

import os
import re
import shutil
import stat
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, field_validator

from memu_backup import beside, files, mark
from memu_backup.errors import ArchiveError, DamagedArchive, MemuError, StoreError, UnknownBackup
from memu_backup.formats import parts, proof, sums
from memu_backup.formats.earlier import opened
from memu_backup.formats.reader import ArchiveReader
from memu_backup.formats.writer import ArchiveWriter
from memu_backup.model import Backup, Captured, Copied, Doubt, Level, Manifest, Phase
from memu_backup.pack import Packing
from memu_backup.stores import Label, Meter, OnProgress, Piece, Portion, StoreSettings, Verdict, Written, written_by
from memu_backup.walk import Identity
from memu_backup.work import Stop

_PARTIAL = ".partial"
_SIDECAR = ".sha256"
_PIN = ".keep"
_DAMAGED = ".damaged"
_SUSPICIOUS = ".suspicious"
_END = ".tar.gz"
_BESIDE = (_SIDECAR, _PIN, _DAMAGED, _SUSPICIOUS)


class ArchiveSettings(StoreSettings):
    kind: Literal["archive"]
    prefix: str = Field(default="memu_backup", description="what the names of the archives begin with")

    @field_validator("prefix")
    @classmethod
    def _plain(cls, prefix: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}", prefix):
            raise ValueError("may hold letters, digits, - and _ only")
        return prefix


class ArchiveStore:
    kind: ClassVar[str] = "archive"
    Settings: ClassVar[type[StoreSettings]] = ArchiveSettings
    whole_every: ClassVar[int | None] = 7

    def __init__(self, directory: Path, settings: ArchiveSettings) -> None:
        self.directory = directory
        self._prefix = settings.prefix
        name = re.escape(settings.prefix) + r"_(\d{8}_\d{6})(_\d+)?\.tar\.gz"
        self._name = re.compile(name)
        beside = rf"{name}\.(sha256|suspicious)|{re.escape(mark.NAME)}"
        self._scratch = re.compile(rf"\.(({beside})\.)?\d+\.partial")

    # --- making one --------------------------------------------------------------------------------------------------

    def marked(self) -> bool:
        return mark.is_there(self.directory)

    def mark(self, host: str, at: datetime) -> None:
        mark.make(self.directory, host, at)

    def prepare(self) -> None:
        try:
            probe = self.directory / f".{os.getpid()}{_PARTIAL}"
            probe.unlink(missing_ok=True)
            os.close(os.open(probe, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
            probe.unlink(missing_ok=True)  # whoever holds the lock may sweep just now
        except OSError as error:
            raise files.storing(error, self.directory) from error

    def name(self, at: datetime, zone: tzinfo) -> str:
        return f"{self._prefix}_{at.astimezone(zone):%Y%m%d_%H%M%S}{_END}"

    def unused_name(self, at: datetime, zone: tzinfo) -> str:
        first = self.name(at, zone)
        number = 1
        while True:
            name = first if number == 1 else f"{first.removesuffix(_END)}_{number}{_END}"
            if not any(os.path.lexists(self.directory / f"{name}{end}") for end in ("", _PARTIAL, *_BESIDE)):
                return name
            number += 1

    def stage(self, run_id: str) -> Path:
        stage = self.directory / f".stage-{run_id}"
        try:
            stage.mkdir(mode=0o700)
        except OSError as error:
            raise files.storing(error, self.directory) from error
        return stage

    def write(
        self,
        label: Label,
        captured: Iterable[Captured],
        never: frozenset[Identity],
        on_progress: OnProgress,
        stop: Stop,
        earlier: Backup | None = None,
    ) -> Written:
        partial = self.directory / (label.name + _PARTIAL)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            descriptor = os.open(partial, flags, 0o600)
        except OSError as error:
            raise files.storing(error, self.directory) from error
        try:
            try:
                made = self._fill(descriptor, label, captured, never, on_progress, stop, earlier)
                size_bytes = self._settle(descriptor)
            finally:
                self._close(descriptor)
        except BaseException:
            with suppress(OSError):
                partial.unlink()
            raise
        return Written(label.name, partial, size_bytes, made)

    def _fill(
        self,
        descriptor: int,
        label: Label,
        captured: Iterable[Captured],
        never: frozenset[Identity],
        on_progress: OnProgress,
        stop: Stop,
        earlier: Backup | None,
    ) -> Manifest:
        meter = Meter(Phase.WRITING, on_progress)
        packing = Packing(self.directory, never, label.created_at, stop, meter.tick)
        with ExitStack() as stack:
            older = stack.enter_context(opened(earlier.path, descriptor, stop)) if earlier else None
            writer = stack.enter_context(
                ArchiveWriter(descriptor, self.directory, stop, packing.tick, label.created_at, older, gentle=True)
            )
            made = written_by(lambda c: writer.add(c, never), packing.each(captured), label)
            meter.flush()
            if earlier and earlier.manifest and writer.shares_blocks:
                nights = earlier.manifest.nights_shared + 1
                made = replace(made, shares_with=earlier.name, nights_shared=nights)
            return writer.finish(made)

    def _settle(self, descriptor: int) -> int:
        try:
            os.fsync(descriptor)  # once: after a failed fsync the kernel may call lost pages clean
            # So that proving reads the disk and not our own memory of it.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            return os.fstat(descriptor).st_size
        except OSError as error:
            raise files.storing(error, self.directory) from error

    def _close(self, descriptor: int) -> None:
        try:
            os.close(descriptor)
        except OSError as error:  # network filesystems may say only now that the disk is full
            raise files.storing(error, self.directory) from error

    def publish(self, written: Written, sha256: str, doubts: Sequence[Doubt] = ()) -> Path:
        final = self.directory / written.name
        made: list[Path] = [written.partial_path]
        notes = {_SUSPICIOUS: beside.doubts_as_json(doubts)} if doubts else {}
        try:
            # These first: an archive that is listed has them, and alone they are swept away.
            for end, content in {**notes, _SIDECAR: sums.line(sha256, written.name)}.items():
                files.write_atomically(_beside(final, end), content, replace=False)
                made.append(_beside(final, end))
            files.rename_without_replacing(written.partial_path, final)
            made.append(final)
            files.sync_folder(self.directory)
        except OSError as error:
            for path in reversed(made):
                with suppress(OSError):
                    path.unlink()
            raise files.storing(error, self.directory) from error
        return final

    def discard(self, written: Written) -> None:
        with suppress(OSError):
            written.partial_path.unlink()

    def sweep(self) -> list[str]:
        removed = []
        for name in self._names():
            archive = name.removesuffix(_PARTIAL)
            for end in _BESIDE:
                archive = archive.removesuffix(end)
            ours = self._name.fullmatch(archive)
            there = self.directory / archive
            alone = name.endswith(_BESIDE) and not (there.exists() or parts.is_there(there))
            if re.fullmatch(r"\.stage-[0-9a-f-]+", name):
                shutil.rmtree(self.directory / name, ignore_errors=True)
                removed.append(name)
            elif (ours and (name.endswith(_PARTIAL) or alone)) or self._scratch.fullmatch(name):
                with suppress(OSError):
                    (self.directory / name).unlink()
                    removed.append(name)
        return removed

    # --- what is there -----------------------------------------------------------------------------------------------

    def backups(self) -> list[Backup]:
        found = [self._look_if_there(self.directory / name) for name in self._names() if self._name.fullmatch(name)]
        return sorted((b for b in found if b), key=lambda b: (b.created_at, b.name), reverse=True)

    def _names(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self.directory.iterdir())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise _unknown(self.directory, error) from error

    @classmethod
    def around(cls, path: Path) -> Self | None:
        return None if path.is_dir() else cls(path.parent, ArchiveSettings(kind="archive"))

    def look(self, path: Path) -> Backup:
        """Also by one of its parts."""
        with ArchiveReader(path) as reader:
            name, path, size_bytes = reader.path.name, reader.parts.first, reader.size_bytes
            try:
                # Without a footer the metadata would take a full pass; the name tells enough.
                made = reader.manifest() if reader.indexed else None
            except ArchiveError:  # damaged: ``prove`` says how
                made = None
        created_at = made.created_at if made else self._time_in(name)
        return Backup(name, path, size_bytes, created_at, made, _has(path, _PIN), _has(path, _DAMAGED), _doubts(path))

    def _look_if_there(self, path: Path) -> Backup | None:
        try:
            status = path.lstat()
            # A folder or a link of that name is nothing that we made, and nothing to prune.
            return self.look(path) if stat.S_ISREG(status.st_mode) else None
        except (UnknownBackup, FileNotFoundError):  # pruned meanwhile
            return None
        except MemuError:  # it has a backup's name and cannot be read: it is listed, so that somebody looks at it
            created_at, damaged = self._time_in(path.name), _has(path, _DAMAGED)
            return Backup(path.name, path, status.st_size, created_at, None, _has(path, _PIN), damaged, _doubts(path))
        except OSError as error:
            raise _unknown(self.directory, error) from error

    def _time_in(self, name: str) -> datetime:
        """When a backup was begun of which only the name can be read; 1970 where that tells no time.

        Names carry the household's time and not its zone, so the machine's is taken: hours off at most, in a list.
        """
        match = re.search(r"\d{8}_\d{6}", name)
        try:
            local = datetime.strptime(match[0] if match else "", "%Y%m%d_%H%M%S")
            if not 1970 < local.year < datetime.max.year:  # what a calendar ends with has no time in other zones
                raise ValueError
            return local.astimezone(UTC)
        except ValueError:
            return datetime.fromtimestamp(0, UTC)

    def open(self, backup: Path, stop: Stop) -> ArchiveReader:
        return ArchiveReader(backup, stop)

    def copied_as(self, backup: Backup) -> Copied:
        return Copied(backup.name, backup.size_bytes, self.checksum(backup.path), made=True)

    @contextmanager
    def stream(self, backup: Path, stop: Stop) -> Iterator[int]:  # noqa: ARG002  whoever reads it may stop
        descriptor = os.open(backup, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def content(self, backup: Path, path: str) -> Iterator[bytes]:
        with ArchiveReader(backup) as reader:
            yield from reader.content(path)

    def checksum(self, backup: Path) -> str | None:
        try:
            said = sums.parse(_beside(backup, _SIDECAR).read_bytes()[:4096])
        except OSError:
            return None
        return said[0] if said and said[1] == parts.whole(backup).name else None

    # --- what goes and what is to stay -------------------------------------------------------------------------------

    def delete(self, backup: Path) -> None:
        if _has(backup, _PIN):  # somebody may have asked for it after it was decided that this one goes
            raise StoreError(f"{backup} is pinned, so it was not removed. To let it go: memu-backup keep --release")
        try:
            backup.unlink(missing_ok=True)
        except OSError as error:
            raise StoreError(f"{backup} could not be removed ({error.strerror}); it is still there, whole.") from error
        try:
            for end in (_SIDECAR, _DAMAGED, _SUSPICIOUS):
                _beside(backup, end).unlink(missing_ok=True)
            files.sync_folder(self.directory)
        except OSError as error:
            raise StoreError(
                f"{backup} was removed, but {backup.parent} reports an error ({error.strerror}). Check the disk."
            ) from error

    def pin(self, backup: Path) -> None:
        self._note(backup, _PIN, f"{backup} could not be pinned", "it may go when its time comes")

    def release(self, backup: Path) -> None:
        self._take_back(backup, _PIN, "this backup stays pinned")

    def condemn(self, backup: Path) -> None:
        without = "where the history is away it may be taken for a good one"
        self._note(backup, _DAMAGED, f"That {backup} is damaged could not be noted", without)

    def acquit(self, backup: Path) -> None:
        self._take_back(backup, _DAMAGED, "this backup still counts as damaged")

    def accept(self, backup: Path) -> None:
        self._take_back(backup, _SUSPICIOUS, "this backup stays suspicious")

    def _note(self, backup: Path, suffix: str, failed: str, meaning: str) -> None:
        beside.note(backup, _beside(backup, suffix), failed, meaning)

    def _take_back(self, backup: Path, suffix: str, meaning: str) -> None:
        beside.take_back(_beside(backup, suffix), meaning)

    # --- is it good --------------------------------------------------------------------------------------------------

    def pieces(self, backups: Sequence[Backup]) -> list[Piece]:
        return [Piece(b.name, (b,), b.size_bytes, b.created_at) for b in backups]

    def prove(
        self,
        path: Path,
        level: Level,
        on_progress: OnProgress,
        stop: Stop,
        portion: Portion | None = None,  # noqa: ARG002  each is a piece by itself
    ) -> Verdict:
        meter = Meter(Phase.VERIFYING, on_progress)
        archive = parts.whole(path)
        try:
            with ArchiveReader(path, stop) as reader:
                if level is Level.QUICK:
                    found = proof.quick(reader)
                else:
                    found = self._unchanged(reader, meter) or proof.full(reader, meter.tick)
                meter.flush()
                problems = found.problems
                if problems:
                    problems = (*reader.parts.missing(), *problems)
                if problems and level is Level.FULL:
                    problems += tuple(reader.parts.spoiled(stop.check))
        except DamagedArchive as error:
            return Verdict(level, (f"{archive.name} is damaged: {str(error).removesuffix('.')}.",), 0, 0)
        problems += () if archive.name.endswith(_PARTIAL) else self._compare_sidecar(archive, found.sha256)
        return Verdict.of(found, level, problems)

    def _unchanged(self, reader: ArchiveReader, meter: Meter) -> proof.Proof | None:
        """One that was proved before, as its sidecar says, is compared with that (docs/decisions/0013). Not one that is
        known to be damaged: somebody may have made a new sidecar for it.
        """
        path = reader.path
        known = None if path.name.endswith(_PARTIAL) or _has(path, _DAMAGED) else self.checksum(path)
        return proof.unchanged(reader, known, meter.tick) if known else None

    def _compare_sidecar(self, path: Path, sha256: str | None) -> tuple[str, ...]:
        sidecar = _beside(path, _SIDECAR)
        try:
            said = sums.parse(sidecar.read_bytes()[:4096])
        except FileNotFoundError:
            return ()  # a copy without it is a copy all the same; what is inside was compared
        except OSError as error:
            return (f"{sidecar.name} cannot be read ({error.strerror}).",)
        if said is None or said[1] != path.name:
            return (f"{sidecar.name} is damaged: it is no line for {path.name}.",)
        if sha256 is not None and said[0] != sha256:
            return (f"{path.name} is not the file that {sidecar.name} was made for.",)
        return ()


def _beside(backup: Path, end: str) -> Path:
    backup = parts.whole(backup)
    return backup.with_name(backup.name + end)


def _has(backup: Path, end: str) -> bool:
    return os.path.lexists(_beside(backup, end))


def _doubts(backup: Path) -> tuple[Doubt, ...]:
    return beside.doubts_in(_beside(backup, _SUSPICIOUS))


def _unknown(directory: Path, error: OSError) -> StoreError:
    return StoreError(f"{directory} cannot be read ({error.strerror}), so its backups are not known. Check its disk.")


STORE = ArchiveStore

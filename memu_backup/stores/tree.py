"""A dated folder a backup, with the household's files as they are; unchanged ones are one file in all of them."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import UTC, datetime, tzinfo
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field

from memu_backup import beside, clock, files, mark
from memu_backup.errors import (
    ArchiveError,
    DamagedArchive,
    MemuError,
    NotAnArchive,
    StoreError,
    UnknownBackup,
    UsageError,
)
from memu_backup.model import Backup, Captured, Copied, Doubt, Level, Phase, newest_good
from memu_backup.pack import Packing
from memu_backup.stores import Label, Meter, OnProgress, Piece, Portion, StoreSettings, Verdict, Written, written_by
from memu_backup.trees import archived, index, proof
from memu_backup.trees import earlier as trees_earlier
from memu_backup.trees.reader import TreeReader
from memu_backup.trees.writer import TreeWriter
from memu_backup.walk import Identity
from memu_backup.work import Stop

LATEST = "latest"
_NOTES = ".memu-backup"
_PARTIAL = ".partial"
_GOING = ".going"
_PIN, _DAMAGED, _SUSPICIOUS = "keep", "damaged", "suspicious"
_NAME = re.compile(r"\d{4}-\d\d-\d\d(_\d{6}(_\d+)?)?")
_REREAD_EVERY = 7
"""Every so many backups nothing is taken for unchanged by its times, and what is linked to is read: content that
changed without its times is noticed, and a block that went bad is not handed on for ever."""

_PORTIONS = 30
"""A library of 500 GB is re-read by less than 20 GB a night so, of which each takes minutes and may be cut short."""


class TreeSettings(StoreSettings):
    kind: Literal["tree"]
    links: Literal["hard", "reflink"] = Field(
        default="hard",
        description="hard: an unchanged file is one with that of the backup before; reflink: it shares its blocks "
        "(btrfs, XFS)",
    )


class TreeStore:
    kind: ClassVar[str] = "tree"
    Settings: ClassVar[type[StoreSettings]] = TreeSettings
    whole_every: ClassVar[int | None] = None

    def __init__(self, directory: Path, settings: TreeSettings) -> None:
        self.directory = directory
        self._reflink = settings.links == "reflink"

    # --- making one --------------------------------------------------------------------------------------------------

    def marked(self) -> bool:
        return mark.is_there(self.directory)

    def mark(self, host: str, at: datetime) -> None:
        mark.make(self.directory, host, at)

    def prepare(self) -> None:
        try:
            probe = self.directory / f".{os.getpid()}{_PARTIAL}"
            with suppress(FileNotFoundError):
                probe.rmdir()
            probe.mkdir(0o700)
            probe.rmdir()
        except OSError as error:
            raise files.storing(error, self.directory) from error

    def name(self, at: datetime, zone: tzinfo) -> str:
        return f"{at.astimezone(zone):%Y-%m-%d}"

    def unused_name(self, at: datetime, zone: tzinfo) -> str:
        """The time is added for a second one that day."""
        names = [self.name(at, zone), f"{at.astimezone(zone):%Y-%m-%d_%H%M%S}"]
        number = 1
        while True:
            name = names[number - 1] if number < 3 else f"{names[1]}_{number - 1}"
            taken = (self.directory / name, self._partial(name), self._notes(name), self._notes(f".{name}{_PARTIAL}"))
            if not any(os.path.lexists(path) for path in taken):
                return name
            number += 1

    def _partial(self, name: str) -> Path:
        return self.directory / f".{name}{_PARTIAL}"

    def _notes(self, name: str) -> Path:
        """What is known of a backup lies beside it: rsync of the tree gives the household's files and no others."""
        return self.directory / _NOTES / name

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
        partial, notes = self._partial(label.name), self._notes(f".{label.name}{_PARTIAL}")
        made_folders: list[Path] = []
        try:
            try:
                notes.parent.mkdir(mode=0o700, exist_ok=True)
                for folder in (partial, notes):
                    folder.mkdir(mode=0o700)
                    made_folders.append(folder)
            except OSError as error:
                raise files.storing(error, self.directory) from error
            return self._fill(partial, notes, label, captured, never, on_progress, stop, earlier)
        except BaseException:
            for folder in made_folders:
                shutil.rmtree(folder, ignore_errors=True)
            with suppress(OSError):
                notes.parent.rmdir()
            raise

    def _fill(
        self,
        partial: Path,
        notes: Path,
        label: Label,
        captured: Iterable[Captured],
        never: frozenset[Identity],
        on_progress: OnProgress,
        stop: Stop,
        earlier: Backup | None,
    ) -> Written:
        meter = Meter(Phase.WRITING, on_progress)
        packing = Packing(self.directory, never, label.created_at, stop, meter.tick)
        before = earlier.manifest if earlier else None
        with ExitStack() as stack:
            older = None
            if earlier and before:
                rereads = (before.nights_shared + 1) % _REREAD_EVERY == 0
                file = self._notes(earlier.name) / index.NAME
                older = trees_earlier.opened(earlier.name, earlier.path, file, rereads=rereads)
                stack.enter_context(older) if older else None
            writer = stack.enter_context(
                TreeWriter(partial, notes, stop, packing.tick, label.created_at, older, reflink=self._reflink)
            )
            made = written_by(lambda c: writer.add(c, never), packing.each(captured), label)
            meter.flush()
            if earlier and before and writer.shared_bytes:
                made = replace(made, shares_with=earlier.name, nights_shared=before.nights_shared + 1)
            made = writer.finish(made)
        if earlier and writer.spoiled:
            with suppress(MemuError):
                self.condemn(earlier.path)
        return Written(label.name, partial, made.size_bytes, made, writer.kept)

    def publish(
        self,
        written: Written,
        sha256: str,  # noqa: ARG002  it stands in its metadata
        doubts: Sequence[Doubt] = (),
    ) -> Path:
        final, notes = self.directory / written.name, self._notes(written.name)
        unnamed = self._notes(f".{written.name}{_PARTIAL}")
        try:
            # The notes first: a tree that is listed has them, and notes alone are swept away.
            if doubts:
                files.write_atomically(unnamed / _SUSPICIOUS, beside.doubts_as_json(doubts))
            unnamed.rename(notes)
            files.sync_folder(notes.parent)
            files.rename_without_replacing(written.partial_path, final)
            files.sync_folder(self.directory)
        except OSError as error:
            shutil.rmtree(notes, ignore_errors=True)
            shutil.rmtree(written.partial_path, ignore_errors=True)
            raise files.storing(error, self.directory) from error
        self._point()
        return final

    def discard(self, written: Written) -> None:
        for folder in (written.partial_path, self._notes(f".{written.name}{_PARTIAL}")):
            shutil.rmtree(folder, ignore_errors=True)
        self._without_empty_notes()

    def _without_empty_notes(self) -> None:
        with suppress(OSError):
            (self.directory / _NOTES).rmdir()

    def sweep(self) -> list[str]:
        removed = []
        for name in self._names():
            inner = name.removeprefix(".").removesuffix(_PARTIAL).removesuffix(_GOING)
            ours = name.startswith(".") and name.endswith((_PARTIAL, _GOING)) and _is_scratch(inner)
            if re.fullmatch(r"\.stage-[0-9a-f-]+", name) or ours:
                beside.remove_tree(self.directory / name)
                removed.append(name)
        for name in self._noted():
            if not (self.directory / name).is_dir():
                beside.remove_tree(self._notes(name))
                removed.append(f"{_NOTES}/{name}")
        self._without_empty_notes()
        self._point()  # whoever removed the newest by hand, or was killed in between, left it leading nowhere
        return removed

    def _noted(self) -> list[str]:
        try:
            return sorted(os.listdir(self.directory / _NOTES))  # noqa: PTH208  only their names
        except OSError:
            return []

    # --- what is there -----------------------------------------------------------------------------------------------

    def backups(self) -> list[Backup]:
        found = [self._look_if_there(name) for name in self._names() if _NAME.fullmatch(name)]
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
        return cls(path.resolve().parent, TreeSettings(kind="tree")) if path.is_dir() else None

    def look(self, path: Path) -> Backup:
        path = path.resolve()
        if (path / _NOTES).is_dir() or mark.is_there(path):
            raise UsageError(f"{path} holds backups and is none itself. Name one of them, such as {path / LATEST}.")
        if not (_NAME.fullmatch(path.name) or self._notes(path.name).is_dir()):
            raise NotAnArchive(f"{path} is a folder and no backup.")
        with TreeReader(path, self._notes(path.name)) as reader:
            try:
                made = reader.manifest()
            except ArchiveError:  # damaged: ``prove`` says how
                made = None
        created_at = made.created_at if made else _time_in(path.name)
        size_bytes = made.size_bytes if made else 0
        return Backup(path.name, path, size_bytes, created_at, made, *self._known(path))

    def _look_if_there(self, name: str) -> Backup | None:
        path = self.directory / name
        try:
            # A link or a file of that name is nothing that we made, and nothing to prune.
            return self.look(path) if path.is_dir() and not path.is_symlink() else None
        except (UnknownBackup, NotAnArchive):  # pruned meanwhile
            return None
        except MemuError:  # it has a backup's name and cannot be read: it is listed, so that somebody looks at it
            return Backup(name, path, 0, _time_in(name), None, *self._known(path))
        except OSError as error:
            raise _unknown(self.directory, error) from error

    def open(self, backup: Path, stop: Stop) -> TreeReader:
        return TreeReader(backup, self._notes(backup.name), stop)

    def copied_as(self, backup: Backup) -> Copied:
        assert backup.manifest  # what does not tell what it is goes nowhere
        return Copied(archived.archive_name(backup.manifest), archived.most_bytes(backup.manifest), None, made=False)

    @contextmanager
    def stream(self, backup: Path, stop: Stop) -> Iterator[int]:
        with self.open(backup, stop) as reader, archived.stream(reader, self.directory, stop) as descriptor:
            yield descriptor

    def content(self, backup: Path, path: str) -> Iterator[bytes]:
        with self.open(backup, Stop()) as reader:
            yield from reader.content(path)

    def checksum(self, backup: Path) -> str | None:
        """That of its SHA256SUMS."""
        try:
            with self.open(backup, Stop()) as reader:
                made = reader.manifest()
        except MemuError:
            return None
        return made.sha256sums if made else None

    # --- what goes and what is to stay -------------------------------------------------------------------------------

    def delete(self, backup: Path) -> None:
        if self._has(backup, _PIN):  # somebody may have asked for it after it was decided that this one goes
            raise StoreError(f"{backup} is pinned, so it was not removed. To let it go: memu-backup keep --release")
        going = self.directory / f".{backup.name}{_GOING}"
        try:
            with suppress(FileNotFoundError):
                if os.path.lexists(going):  # of a prune that was killed
                    beside.remove_tree(going)
                backup.rename(going)
                files.sync_folder(self.directory)
        except OSError as error:
            raise StoreError(f"{backup} could not be removed ({error.strerror}); it is still there, whole.") from error
        self._point()
        try:
            for folder in (going, self._notes(backup.name)):
                beside.remove_tree(folder)
        except OSError as error:
            raise StoreError(
                f"{backup} was removed, but {backup.parent} reports an error ({error.strerror}). Check the disk."
            ) from error
        self._without_empty_notes()

    def pin(self, backup: Path) -> None:
        beside.note(backup, self._note(backup, _PIN), f"{backup} could not be pinned", "it may go when its time comes")

    def release(self, backup: Path) -> None:
        beside.take_back(self._note(backup, _PIN), "this backup stays pinned")

    def condemn(self, backup: Path) -> None:
        without = "where the history is away it may be taken for a good one"
        beside.note(backup, self._note(backup, _DAMAGED), f"That {backup} is damaged could not be noted", without)
        self._point()

    def acquit(self, backup: Path) -> None:
        beside.take_back(self._note(backup, _DAMAGED), "this backup still counts as damaged")
        self._point()

    def accept(self, backup: Path) -> None:
        beside.take_back(self._note(backup, _SUSPICIOUS), "this backup stays suspicious")
        self._point()

    def _known(self, backup: Path) -> tuple[bool, bool, tuple[Doubt, ...]]:
        """Whether it is pinned, whether it is damaged, and its doubts."""
        doubts = beside.doubts_in(self._note(backup, _SUSPICIOUS))
        return self._has(backup, _PIN), self._has(backup, _DAMAGED), doubts

    def _note(self, backup: Path, what: str) -> Path:
        return self._notes(backup.name) / what

    def _has(self, backup: Path, what: str) -> bool:
        return os.path.lexists(self._note(backup, what))

    def _point(self) -> None:
        """Let ``latest`` lead to the newest good one; whoever reads by it meanwhile has the one or the other."""
        newest = newest_good(self.backups(), clock.now())
        link = self.directory / LATEST
        with suppress(OSError):  # a filesystem without links
            if newest is None:
                if link.is_symlink():
                    link.unlink()
                return
            if link.is_symlink() and link.readlink() == Path(newest.name):
                return
            if os.path.lexists(link) and not link.is_symlink():
                return  # somebody's own
            new = self.directory / f".{LATEST}{_PARTIAL}"
            new.unlink(missing_ok=True)
            new.symlink_to(newest.name)
            new.rename(link)
            files.sync_folder(self.directory)

    # --- is it good --------------------------------------------------------------------------------------------------

    def pieces(self, backups: Sequence[Backup]) -> list[Piece]:
        """Portions of all of them: what they share is read once."""
        if not backups:
            return []
        named, size_bytes = {b.name for b in backups}, 0
        for there in backups:
            linked = not self._reflink and there.manifest and there.manifest.shares_with in named
            size_bytes += there.taken_bytes if linked else there.size_bytes
        oldest = min(b.created_at for b in backups)
        return [
            Piece(
                f"part {n + 1} of {_PORTIONS}", tuple(backups), size_bytes // _PORTIONS, oldest, Portion(n, _PORTIONS)
            )
            for n in range(_PORTIONS)
        ]

    def prove(
        self, path: Path, level: Level, on_progress: OnProgress, stop: Stop, portion: Portion | None = None
    ) -> Verdict:
        """Of one that is not published yet what was written for it; the rest was read when that was written."""
        meter = Meter(Phase.VERIFYING, on_progress)
        partial = path.name.endswith(_PARTIAL)
        try:
            with TreeReader(path, self._notes(path.name), stop) as reader:
                if level is Level.QUICK:
                    found = proof.quick(reader)
                else:
                    only, read = (portion.holds, portion.read) if portion else (None, None)
                    found = proof.full(reader, meter.tick, new_alone=partial, only=only, read=read)
                meter.flush()
        except DamagedArchive as error:
            return Verdict(level, (f"{path.name} is damaged: {str(error).removesuffix('.')}.",), 0, 0)
        return Verdict.of(found, level, found.problems)


def _is_scratch(inner: str) -> bool:
    return inner == LATEST or inner.isdecimal() or _NAME.fullmatch(inner) is not None


def _time_in(name: str) -> datetime:
    """When a backup was begun of which only the name can be read; 1970 where that tells no time."""
    for form in ("%Y-%m-%d_%H%M%S", "%Y-%m-%d"):
        with suppress(ValueError, OverflowError):
            local = datetime.strptime(name[:17] if "_" in form else name[:10], form)
            if 1970 < local.year < datetime.max.year:
                return local.astimezone(UTC)
    return datetime.fromtimestamp(0, UTC)


def _unknown(directory: Path, error: OSError) -> StoreError:
    return StoreError(f"{directory} cannot be read ({error.strerror}), so its backups are not known. Check its disk.")


STORE = TreeStore

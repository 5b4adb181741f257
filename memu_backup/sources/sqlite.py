"""SQLite databases in use: all of Sonarr's, Plex's library, one file of a program of one's own."""

from __future__ import annotations

import glob
import os
import stat
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime, tzinfo
from fnmatch import fnmatchcase
from functools import partial
from pathlib import Path, PurePosixPath
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from memu_backup import files, moving, sqlite, swap, words
from memu_backup.errors import CannotCheck, DamagedArchive, RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.replacing import OnDisk, Prepared
from memu_backup.sources import Lacking, Reader, Room, SourceSettings, look
from memu_backup.swap import Swap
from memu_backup.work import Stop, in_thread

_BACKUPS = "the backups"


class SqliteSettings(SourceSettings):
    kind: Literal["sqlite"]
    paths: tuple[LocalPath, ...] = Field(
        min_length=1, description="database files; * ? [ab] stand for a part of a name, ** for any folders"
    )

    @model_validator(mode="after")
    def _fit_together(self) -> SqliteSettings:
        names = [p.name for p in self.paths if not _is_glob(p)]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two paths end in the same name ({', '.join(twice)}); put one into a source of its own")
        one_file = self.place is not None and not self.place.endswith("/")
        if one_file and (len(self.paths) > 1 or _is_glob(self.paths[0])):
            raise ValueError(f'has paths for several databases and needs a folder for them: place = "{self.place}/"')
        return self


@dataclass(frozen=True, slots=True)
class _Database:
    """Where one lives, and where it stands in the backup."""

    path: Path
    place: str


@dataclass(frozen=True, slots=True)
class _Copy:
    database: _Database
    file: Path
    journal_mode: str
    integrity: str = ""


class _Recorded(BaseModel):
    """One database as a capture has told of it, in a backup that may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    file: str
    path: str
    integrity: str

    @property
    def damaged(self) -> bool:
        return self.integrity.startswith(sqlite.DAMAGED)


class _Details(BaseModel):
    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    databases: list[_Recorded] = Field(min_length=1)


class SqliteSource(OnDisk):
    kind: ClassVar[str] = "sqlite"
    Settings: ClassVar[type[SourceSettings]] = SqliteSettings

    def __init__(self, name: str, settings: SqliteSettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self._paths = settings.paths

    async def check(self) -> list[str]:
        _, lacking = await look(self.name, self._look)
        return list(lacking)

    def _look(self) -> tuple[list[_Database], list[Lacking]]:
        """The databases, and what of them the backup will lack. Blocks. Raises SourceError."""
        found: dict[str, Path] = {}
        lacking: list[Lacking] = []
        for path in self._paths:
            for one in self._matches(path) if _is_glob(path) else [path]:
                if why := _unfit(one):
                    lacking.append(Lacking(f"{one} (source {self.name}) {why}."))
                elif found.setdefault(self._place(path, one), one) != one:
                    raise SourceError(
                        f"{one} and {found[self._place(path, one)]} would have one name in the backup, so source "
                        f"{self.name} cannot be backed up. Put one of them into a source of its own."
                    )
        if not found:
            more = f" Nor can {len(lacking) - 1} more of its paths be used." if len(lacking) > 1 else ""
            raise SourceError(
                f"{str(lacking[0]).removesuffix('.')}, so it cannot be backed up.{more} Is its disk mounted? Else "
                f'correct sources.{self.name}.paths; what is no SQLite database is for kind = "files".'
            )
        return [_Database(path, place) for place, path in found.items()], lacking

    def _matches(self, pattern: Path) -> list[Path]:
        """The databases that fit, and what may be one. Blocks. Raises SourceError where there is none."""
        above = _above(pattern)
        there = sorted(above.glob(str(pattern.relative_to(above))))
        fit = [p for p in there if not p.name.endswith(sqlite.BESIDE) and p.is_file() and _may_be_one(p)]
        if not fit:
            raise SourceError(
                f"No SQLite database fits {pattern} (source {self.name}), or this user may not see it, so it cannot be "
                f"backed up. Is its disk mounted? Else correct sources.{self.name}.paths."
            )
        return fit

    def _place(self, pattern: Path, path: Path) -> str:
        """What it is called does not depend on what else fits: each night it is the same."""
        return self.place + str(path.relative_to(_above(pattern))) if self.place.endswith("/") else self.place

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        databases, lacking = await look(self.name, self._look)
        stop = Stop()
        try:
            # Not gentle: while a copy is made others may have to wait, for it or for what stands still.
            copies, failed = await in_thread(lambda: self._copy(databases, stage, stop), stop)
            copies = await in_thread(lambda: [_checked(copy, stop) for copy in copies], stop, gentle=True)
        except OSError as error:
            raise files.no_room(error.errno, stage, _BACKUPS) or files.storing(error, stage) from error
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=tuple(Root(copy.file, copy.database.place) for copy in copies),
            consistency="each database as of one moment",
            details={"databases": [_told_of(copy) for copy in copies]},
            missing=(*lacking, *failed, *self._damaged(copies)),
        )

    def _copy(self, databases: Sequence[_Database], stage: Path, stop: Stop) -> tuple[list[_Copy], list[str]]:
        """What could be copied, and sentences about the rest. Blocks. Raises SourceError where nothing could be,
        Interrupted, and OSError of the stage.
        """
        copies, failed = [], []
        for number, database in enumerate(databases):
            try:
                copies.append(_copied(database, stage / str(number), stop))
            except SourceError as error:
                (stage / str(number)).unlink(missing_ok=True)
                failed.append(str(error))
        if not copies:
            raise SourceError(f"Source {self.name} cannot be backed up; older backups are untouched. {failed[0]}")
        return copies, [f"A database of source {self.name} is not in this backup: {why}" for why in failed]

    def _damaged(self, copies: Sequence[_Copy]) -> list[str]:
        return [
            f"{copy.database.path} (source {self.name}) is damaged, and so is its copy in this backup "
            f"({copy.integrity.removeprefix(sqlite.DAMAGED)}). Stop what uses it, and bring this one back from an "
            "older backup."
            for copy in copies
            if copy.integrity.startswith(sqlite.DAMAGED)
        ]

    def homes(self) -> Sequence[Path]:
        return self._paths

    def lives(self) -> str:
        return ", ".join(map(str, self._paths))

    async def landing(self, summary: SourceSummary) -> Path:
        homes = self._homes(summary)
        # Where its folder is gone too, it is made later, for whom the database belongs to.
        return await look(self.name, lambda: swap.landing(_nearest(homes[0].parent) / self.name))

    def _homes(self, summary: SourceSummary) -> list[Path]:
        return [self._home(recorded, summary) for recorded in self._recorded(summary)]

    def _recorded(self, summary: SourceSummary) -> list[_Recorded]:
        """Raises RestoreError."""
        try:
            return _Details.model_validate(dict(summary.details)).databases
        except ValidationError as error:
            raise RestoreError(
                f"This backup does not say which databases of source {self.name} it holds; nothing was changed. "
                "Restore them to a folder with --to."
            ) from error

    def _home(self, recorded: _Recorded, summary: SourceSummary) -> Path:
        """Where the settings say that it lives; the backup only tells which of several places it was. Blocks.

        Raises RestoreError.
        """
        homes = [home for path in self._paths if (home := _home_below(path, recorded.file, summary.place))]
        if not homes:
            raise RestoreError(
                f"No path of source {self.name} says where {files.shown(recorded.file)} belongs; nothing was changed. "
                f"Name it in sources.{self.name}.paths, or restore it to a folder with --to."
            )
        was = Path(recorded.path)
        return was if was in homes else homes[0]

    async def in_the_way(self, summary: SourceSummary) -> list[str]:
        """A journal of another database would be taken for one of this one."""
        homes = self._homes(summary)
        return await look(self.name, lambda: [str(path) for home in homes for path in _lies_there(home)])

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        warnings, homes = [], {}
        for recorded in self._recorded(summary):
            one = given / recorded.file.removeprefix(summary.place) if summary.place.endswith("/") else given
            if one.is_symlink() or not one.is_file():
                raise RestoreError(
                    f"In the backup {files.shown(recorded.file)} (source {self.name}) is no file; nothing was changed. "
                    "Look at it with --to, and do not trust where this backup comes from."
                )
            homes[self._home(recorded, summary)] = one
            if recorded.damaged:
                warnings.append(f"{files.shown(recorded.file)} was damaged already when it was backed up.")
        swaps = list[Swap]()
        try:
            for home, one in ((home.resolve(), one) for home, one in homes.items()):
                warnings += await in_thread(partial(_make_folder, home.parent, one), Stop())
                new = await moving.near(one, home)
                # What belongs to the old one goes first: SQLite would write it into the new one.
                for path in (*sqlite.beside(home), home):
                    there = new if path == home else new.with_name(f".{path.name}.memu-backup")
                    swaps.append(await look(self.name, partial(swap.one, path, there, stamp)))
        except BaseException:
            for made in swaps:
                swap.clear(Path(made.new))
            raise
        lost = [path for path in self._paths if not _is_glob(path) and path not in homes]
        warnings += [f"{path} (source {self.name}) is not in this backup." for path in lost]
        return Prepared(tuple(swaps), tuple(warnings))

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        databases, stop = _databases_of(summary), Stop()
        return [
            f"{files.shown(one.file)} is not a whole database, though it was when it was copied."
            for one in databases
            if not one.damaged  # of which it was said when it was made
            and not await in_thread(partial(sqlite.is_whole, reader.content(one.file), stop), stop, gentle=True)
        ]

    @staticmethod
    def rehearsal_bytes(summary: SourceSummary) -> int:  # noqa: ARG004  it is only read
        return 0

    @staticmethod
    async def rehearse(given: Path, summary: SourceSummary, room: Room) -> list[str]:  # noqa: ARG004
        stop, problems = Stop(), []
        for one in _databases_of(summary):
            inside = given / one.file.removeprefix(summary.place) if summary.place.endswith("/") else given
            if ".." in inside.parts or inside.is_symlink() or not inside.is_file():
                problems.append(f"Database {files.shown(one.file)} is not there.")
            elif not one.damaged:  # of which it was said when it was made
                try:
                    found = await in_thread(partial(sqlite.check, inside, stop), stop, gentle=True)
                except OSError as error:
                    raise CannotCheck(
                        f"Database {files.shown(one.file)} could only be compared: it {files.reason(error)}."
                    ) from error
                if found.startswith(sqlite.DAMAGED):
                    why = found.removeprefix(sqlite.DAMAGED)
                    problems.append(f"Database {files.shown(one.file)} is not whole: {why}.")
        return problems

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        try:
            databases = _Details.model_validate(dict(summary.details)).databases
        except ValidationError:
            return words.tree(summary, now, zone)
        return words.databases_checked(
            len(databases),
            damaged=sum(one.damaged for one in databases),
            in_part=sum(one.integrity.startswith(sqlite.IN_PART) for one in databases),
        )


def _databases_of(summary: SourceSummary) -> list[_Recorded]:
    """Raises DamagedArchive."""
    try:
        return _Details.model_validate(dict(summary.details)).databases
    except ValidationError as error:
        raise DamagedArchive(
            "metadata.json does not say which databases it holds, so they cannot be checked; was it changed by "
            "hand? Use another backup."
        ) from error


def _is_glob(path: Path) -> bool:
    return glob.has_magic(str(path))


def _above(pattern: Path) -> Path:
    """The folder below which all lies that fits."""
    for number, part in enumerate(pattern.parts):
        if glob.has_magic(part):
            return Path(*pattern.parts[:number])
    return pattern.parent


def _unfit(path: Path) -> str:
    """Why it cannot be copied, behind its name in a sentence; empty where it can. Blocks."""
    try:
        if not path.is_file():
            return "is no file" if path.exists() else "is not there"
        return "" if sqlite.is_database(path) else "is no SQLite database, or it is encrypted or damaged"
    except OSError as error:
        return files.reason(error)


def _may_be_one(path: Path) -> bool:
    """Or one that is damaged or encrypted and in use, or that may not be looked at: that has to be told. Blocks."""
    try:
        return sqlite.is_database(path) or any(os.path.lexists(one) for one in sqlite.beside(path))
    except OSError:
        return True


def _copied(database: _Database, target: Path, stop: Stop) -> _Copy:
    """With owner, rights and time of the original. Blocks. Raises as ``sqlite.copy``."""
    begun_ns = time.time_ns()
    try:
        before, status = sqlite.changed_ns(database.path), database.path.stat()
        mode = sqlite.journal_mode(database.path)
    except OSError as error:
        raise SourceError(f"{database.path} {files.reason(error)}.") from error
    try:
        sqlite.copy(database.path, target, stop)
    except sqlite.Damaged:
        sqlite.salvage(database.path, target, stop)
    if files.may_give_away():
        os.chown(target, status.st_uid, status.st_gid)
    target.chmod(stat.S_IMODE(status.st_mode) & 0o777)
    changed_ns = before
    with suppress(OSError):
        # Somebody wrote: what is new in it, and what is not, shall never have the time of another content.
        changed_ns = before if sqlite.changed_ns(database.path) == before else begun_ns
    os.utime(target, ns=(changed_ns, changed_ns))
    return _Copy(database, target, mode or "unknown")


def _checked(copy: _Copy, stop: Stop) -> _Copy:
    return _Copy(copy.database, copy.file, copy.journal_mode, sqlite.check(copy.file, stop))


def _told_of(copy: _Copy) -> dict[str, object]:
    return {
        "file": copy.database.place,
        "path": str(copy.database.path),
        "size_bytes": copy.file.stat().st_size,
        "journal_mode": copy.journal_mode,
        "integrity": copy.integrity,
    }


def _home_below(path: Path, file: str, place: str) -> Path | None:
    """Where ``path``, which may be a glob, would have what is ``file`` in a backup; None where it does not fit."""
    if not place.endswith("/"):
        return path if file == place else None
    parts = PurePosixPath(file.removeprefix(place)).parts
    if not file.startswith(place) or not parts or ".." in parts or parts[0] == "/":
        return None
    above = _above(path)
    fits = _fits(parts, path.relative_to(above).parts) if _is_glob(path) else parts == (path.name,)
    return above.joinpath(*parts) if fits else None


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    if not pattern or not parts:
        return not parts and all(p == "**" for p in pattern)
    if pattern[0] == "**":
        return _fits(parts, pattern[1:]) or _fits(parts[1:], pattern)
    return fnmatchcase(parts[0], pattern[0]) and _fits(parts[1:], pattern[1:])


def _lies_there(home: Path) -> list[Path]:
    real = home.resolve()
    return [path for path in (real, *sqlite.beside(real)) if os.path.lexists(path)]


def _nearest(folder: Path) -> Path:
    """The first of it and those above it that is there. Blocks."""
    return next(one for one in (folder, *folder.parents) if one.is_dir())


def _make_folder(folder: Path, one: Path) -> list[str]:
    """Where it is gone, make it, for the owner of the database ``one``: else its program could not write beside it.

    Blocks. Raises RestoreError.
    """
    missing = [above for above in (folder, *folder.parents) if not above.exists()]
    if not missing:
        return []
    status = one.stat()
    try:
        for above in reversed(missing):
            above.mkdir(mode=0o700)
            if files.may_give_away():
                os.chown(above, status.st_uid, status.st_gid)
    except OSError as error:
        raise RestoreError(f"{folder} could not be made ({os.strerror(error.errno or 0)}).") from error
    return [f"{folder} was not there and was made, for the owner of {files.shown(one.name)} alone; see to its rights."]


SOURCE = SqliteSource

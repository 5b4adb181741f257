"""What can be backed up: one file a kind.

A module in this folder that defines ``SOURCE`` is a kind; nothing else has to know of it. ``SOURCE`` is a class with
an inner-facing ``Settings`` model (its table in config.toml, ``kind`` a ``Literal``) and the methods of ``Source``.
Modules import what is heavy (asyncpg) inside their methods: the settings of every kind are loaded at each start.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass, field
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Self, TypeVar, runtime_checkable

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from memu_backup import pack, words, work
from memu_backup.crosscheck import CrossCheck
from memu_backup.errors import SourceError
from memu_backup.model import Captured, SourceSummary

if TYPE_CHECKING:
    from memu_backup.history import History

RESERVED = frozenset({"metadata.json", "SHA256SUMS", "index.jsonl"})
"""Names at the top of a backup that are ours."""

ANSWER_S = 30.0
"""How long a disk may take to say what is there."""

T = TypeVar("T")


def _checked_glob(glob: str) -> str:
    from pathspec import GitIgnoreSpec  # slow to import, and only needed where something is excluded

    try:
        patterns = GitIgnoreSpec.from_lines([glob]).patterns
    except (ValueError, re.error):
        patterns = []
    if not any(p.include is not None for p in patterns):
        raise ValueError("leaves nothing out; write it as in .gitignore, with a \\ before # or [ that begins a name")
    return glob


Globs = tuple[Annotated[str, AfterValidator(_checked_glob)], ...]
"""What to leave out of a tree."""


@dataclass(frozen=True, slots=True)
class House:
    """What memu-backup itself consists of on this machine, for a source that backs it up.

    ``secret_files`` are by the setting that names each, such as ``history.url_file``; ``history`` is None where nobody
    asked for it.
    """

    config_file: Path
    state_dir: Path
    secret_files: Mapping[str, Path]
    history: History | None


Argv = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]
"""A program and what it is given; no shell reads it."""


class SourceSettings(BaseModel):
    """What every ``[sources.NAME]`` table may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    only_folders: ClassVar[bool] = False
    """Whether the place of this kind must be a folder."""

    only_a_file: ClassVar[bool] = False
    """Whether it must be one file."""

    may_be_packed: ClassVar[bool] = False
    """Whether a place that ends in .tar.gz makes it one file, packed."""

    asks_a_server: ClassVar[bool] = False
    """Whether this kind needs something that runs to be copied, and so cannot be read while it stands still."""

    keeps_files: ClassVar[bool] = False
    """Whether what lies there from night to night are the household's own files, which mostly stay as they are; dumps
    are new each night."""

    place: str | None = Field(
        default=None, description="where it stands in the backup: NAME/ unless said otherwise; without / one file"
    )

    needs_stop: bool = Field(default=False, description="whether the job's services have to stand still meanwhile")

    guard: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="which part of its files or bytes has to be lost from one night to the next for the family to be "
        "asked; 0 or false: never",
    )

    before_start: tuple[Argv, ...] = Field(
        default=(),
        description="programs, each with what it is given, that run once it was put back in place, before what was "
        "stopped is started",
    )

    after_restore: tuple[Argv, ...] = Field(
        default=(),
        description="programs, each with what it is given, that run once it was put back in place and services are up",
    )

    look_yourself: tuple[str, ...] = Field(
        default=(), description="what a person should look at then: sentences for the list that is printed"
    )

    @field_validator("guard", mode="before")
    @classmethod
    def _part(cls, guard: Any) -> Any:
        if guard is True:
            raise ValueError("must be a number from 0 to 1, or false")
        return 0.0 if guard is False else guard

    @field_validator("needs_stop")
    @classmethod
    def _can_stand_still(cls, needs_stop: bool) -> bool:
        if needs_stop and cls.asks_a_server:
            raise ValueError("cannot be true for this kind: what it copies has to run, and is of one moment anyway")
        return needs_stop

    @field_validator("place")
    @classmethod
    def _inside(cls, place: str | None) -> str | None:
        if place is None:
            return None
        parts = place.removesuffix("/").split("/")
        if any(p in ("", ".", "..") for p in parts) or "\\" in place or not place.isprintable():
            raise ValueError("must be a plain relative path such as photos/ or database.sql")
        if parts[0] in RESERVED:
            raise ValueError(f"{parts[0]} is the name of a file that every backup holds; choose another place")
        if cls.only_a_file and place.endswith("/"):
            raise ValueError(f"is one file and no folder; write for example {place}dump")
        if cls.may_be_packed and place.endswith(pack.END):
            if parts[-1] == pack.END:
                raise ValueError(f"has no name before {pack.END}; write it as photos{pack.END}, which holds photos/")
            return place
        return f"{place}/" if cls.only_folders and not place.endswith("/") else place

    def place_of(self, name: str) -> str:
        """Where the source with this name stands in a backup."""
        return self.place or f"{name}/"

    def speaks_of(self) -> Iterable[str]:
        """Other sources that have to be in the settings for this one."""
        return ()

    def at_home(self, house: House) -> Self:  # noqa: ARG002  most kinds do not care
        """The settings of the same source in this house."""
        return self

    def in_effect(self, name: str) -> dict[str, Any]:
        """Every setting as it counts for the source with this name, also where nothing was said."""
        return {**self.model_dump(), "place": self.place_of(name)}


class ListedBy(BaseModel):
    """Which rows of a database name the files of a folder: those that ``query`` gives of ``source``, one path each."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    source: str = ""
    query: str = ""
    below: str = Field(default="", description="what the rows have before a path in the folder, such as /app/storage/")

    @model_validator(mode="after")
    def _whole(self) -> Self:
        if not (self.source and self.query):
            raise ValueError('needs source = "…", a postgres, and query = "SELECT …", which gives one path a row')
        return self


class FolderSettings(SourceSettings):
    """What the kinds have in common that keep a folder with everything in it."""

    only_folders: ClassVar[bool] = True
    may_be_packed: ClassVar[bool] = True
    keeps_files: ClassVar[bool] = True
    exclude: Globs = Field(default=(), description="globs in the manner of .gitignore, relative to the folder")
    listed_by: ListedBy | None = Field(
        default=None, description="rows that name its files; compared by check, and in each backup that has both"
    )

    def speaks_of(self) -> Iterable[str]:
        return [self.listed_by.source] if self.listed_by else []


@runtime_checkable
class Listed(Protocol):
    """A source with files that rows of another may name."""

    name: str
    listed_by: ListedBy | None


@runtime_checkable
class Names(Protocol):
    """A source that can be asked which files its rows name: for each of ``checks`` the first column of what its query
    gives, without what is NULL. Nothing is changed, and no error comes out: it is told to the check.
    """

    async def answer(self, checks: Sequence[CrossCheck]) -> None:
        """As they are now."""
        ...

    def asking(self, checks: Sequence[CrossCheck]) -> Source:
        """The same source, of which a capture also answers these, as of the moment that the rest of it is of. Where
        there is no such moment it answers nothing.
        """
        ...


@runtime_checkable
class Counting(Protocol):
    """A kind of source that counts what is in its dumps."""

    @staticmethod
    def entries(summary: SourceSummary) -> int | None:
        """How many rows or keys its part of a backup holds; None where that was not counted, or not as we write it."""
        ...


@runtime_checkable
class Recalls(Protocol):
    """A source of which what was put back can be compared with what its backup told, in a server that runs."""

    async def recalled(self, summary: SourceSummary) -> str:
        """What is there now, as a phrase: "5 tables and 27 rows, as in the backup". What came since is no trouble.

        Raises SourceError where it does not answer, or lacks something.
        """
        ...


class Lacking(str):
    """A warning of ``check`` about something that the backup will lack: the capture will call it ``missing``."""

    __slots__ = ()


class Reader(Protocol):
    """What ``Source.verify`` needs of a stored backup."""

    def content(self, path: str) -> Iterator[bytes]:
        """The bytes of one file in the backup, in blocks. Raises DamagedArchive."""
        ...


@dataclass(frozen=True, slots=True)
class Room:
    """Where a part of a backup is tried out. ``folder`` is private and empty, on the scratch's disk; the caller removes
    it, and ends whatever still works in it. The others are what the settings offer where our own Postgres does not do:
    an image that this machine's Docker has, and the address of a server, which holds a password. A database of
    ``checks`` is asked what its rows name, once it is there.
    """

    folder: Path
    postgres_image: str | None = None
    postgres_url: str | None = field(default=None, repr=False)
    checks: Sequence[CrossCheck] = ()


@runtime_checkable
class Rehearses(Protocol):
    """A kind that can do more with its part of a backup than compare bytes: load it, and see what comes of it."""

    @staticmethod
    def rehearsal_bytes(summary: SourceSummary) -> int:
        """How much ``rehearse`` needs on the disk, about, beside what was unpacked."""
        ...

    @staticmethod
    async def rehearse(given: Path, summary: SourceSummary, room: Room) -> list[str]:
        """Try what was unpacked at ``given`` (the folder or file that is its place), as a server or a program would use
        it. Changes nothing outside of ``room`` and ``given``; uses no network but for a server that the room names.

        Returns problems, a sentence each; empty is good. Raises CannotCheck, with what to do, where it could only be
        compared. Cancelling ends every child.
        """
        ...


class Source(Protocol):
    """Something that is backed up. Made from its name and its settings; cheap to make, touches nothing until asked."""

    kind: ClassVar[str]
    Settings: ClassVar[type[SourceSettings]]
    name: str
    place: str

    def __init__(self, name: str, settings: Any) -> None: ...

    async def check(self) -> list[str]:
        """Is everything there that a capture will need: rights, versions, programs? Changes nothing.

        Returns warnings, a sentence each, as ``Lacking`` where the run would be partial for it. Raises SourceError with
        the sentence for the person who must act.
        """
        ...

    def capture(self, stage: Path) -> AbstractAsyncContextManager[Captured]:
        """Bring the data to rest (or say how it moves) and hand out where it lies until the context ends.

        ``stage`` is a private, empty, existing folder on the store's filesystem for what has to be written out first;
        the caller removes it. Raises SourceError. Cancelling ends every child.
        """
        ...

    def lives(self) -> str:
        """Where the data lives, in words for a person: "/srv/photos"; never with a secret. Touches nothing."""
        ...

    async def landing(self, summary: SourceSummary) -> Path | None:
        """Where its part of a backup is to be unpacked before it is put back: a folder that is not there yet, on the
        disk where the data lives; None where any disk will do. Changes nothing.

        Raises RestoreError, with what to do, where nothing can be put back from here; SourceError where nobody can see.
        """
        ...

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        """What only this kind can tell of its part of a stored backup (a dump that lists, a database that is whole).

        The bytes were compared before. Returns problems, a sentence each; empty is good. Raises CannotCheck, with what
        to do, when it could not look: no fitting program, or one that was killed.
        """
        ...

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        """What a family is told of its part of a stored backup, as a phrase ("2 databases"); ``words.tree`` where a
        kind knows no more than that. Never raises, whatever a stranger wrote into ``details``.
        """
        ...


async def look(name: str, question: Callable[[], T]) -> T:
    """Ask something of the disk of source ``name``. Raises SourceError when it does not answer within 30 s."""
    try:
        return await work.look(question, ANSWER_S)
    except TimeoutError:
        raise SourceError(
            f"The disk of source {name} has not answered for {ANSWER_S:g} s, so it cannot be backed up. "
            "If it is a network share, is that machine on? Else restart this one and check the disk."
        ) from None


def crosscheck(source: Source, folder: Path) -> CrossCheck | None:
    """What compares the files of ``source`` with the rows that its settings speak of; None where they do not."""
    rule = source.listed_by if isinstance(source, Listed) else None
    if rule is None:
        return None
    return CrossCheck(folder, of=source.name, source=rule.source, query=rule.query, below=rule.below)


@cache
def kinds() -> Mapping[str, type[Source]]:
    """Every kind of source there is, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.SOURCE.kind: m.SOURCE for m in modules if hasattr(m, "SOURCE")}


def entries(summary: SourceSummary) -> int | None:
    """As its kind counts them; None where it counts nothing, or this version does not know it."""
    kind = kinds().get(summary.kind)
    return kind.entries(summary) if isinstance(kind, Counting) else None


def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
    """As its kind tells of it; as a tree of files where this version does not know the kind."""
    kind = kinds().get(summary.kind)
    return kind.told(summary, now, zone) if kind else words.tree(summary, now, zone)

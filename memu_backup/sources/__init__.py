"""What can be backed up: one file a kind.

A module in this folder that defines ``SOURCE`` is a kind; nothing else has to know of it. ``SOURCE`` is a class with
an inner-facing ``Settings`` model (its table in config.toml, ``kind`` a ``Literal``) and the methods of ``Source``.
Modules import what is heavy (asyncpg) inside their methods: the settings of every kind are loaded at each start.
"""

from __future__ import annotations

import importlib
import pkgutil
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime, tzinfo
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Protocol, Self, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from memu_backup import words, work
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


class SourceSettings(BaseModel):
    """What every ``[sources.NAME]`` table may hold."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    only_folders: ClassVar[bool] = False
    """Whether the place of this kind must be a folder."""

    asks_a_server: ClassVar[bool] = False
    """Whether this kind needs something that runs to be copied, and so cannot be read while it stands still."""

    place: str | None = Field(
        default=None, description="where it stands in the backup: NAME/ unless said otherwise; without / one file"
    )

    needs_stop: bool = Field(default=False, description="whether the job's services have to stand still meanwhile")

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
        return f"{place}/" if cls.only_folders and not place.endswith("/") else place

    def place_of(self, name: str) -> str:
        """Where the source with this name stands in a backup."""
        return self.place or f"{name}/"

    def at_home(self, house: House) -> Self:  # noqa: ARG002  most kinds do not care
        """The settings of the same source in this house."""
        return self

    def in_effect(self, name: str) -> dict[str, Any]:
        """Every setting as it counts for the source with this name, also where nothing was said."""
        return {**self.model_dump(), "place": self.place_of(name)}


class Lacking(str):
    """A warning of ``check`` about something that the backup will lack: the capture will call it ``missing``."""

    __slots__ = ()


class Reader(Protocol):
    """What ``Source.verify`` needs of a stored backup."""

    def content(self, path: str) -> Iterator[bytes]:
        """The bytes of one file in the backup, in blocks. Raises DamagedArchive."""
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
        """Where its part of a backup is to be unpacked before ``put_back``: a folder that is not there yet, on the disk
        where the data lives; None where any disk will do. Changes nothing.

        Raises RestoreError, with what to do, where something lies there already (it is never replaced) or nothing can
        be put back from here; SourceError where nobody can see.
        """
        ...

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:
        """Bring what was unpacked at ``given`` (the folder or file that is its place) back to where it lives.

        Returns warnings, a sentence each. Raises RestoreError and SourceError; what lived there before is untouched.
        Cancelling ends every child.
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


@cache
def kinds() -> Mapping[str, type[Source]]:
    """Every kind of source there is, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.SOURCE.kind: m.SOURCE for m in modules if hasattr(m, "SOURCE")}


def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
    """As its kind tells of it; as a tree of files where this version does not know the kind."""
    kind = kinds().get(summary.kind)
    return kind.told(summary, now, zone) if kind else words.tree(summary, now, zone)

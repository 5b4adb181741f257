"""How a source's part of a backup takes the place of what is there."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, runtime_checkable

from memu_backup import swap
from memu_backup.model import SourceSummary
from memu_backup.swap import Swap
from memu_backup.work import Stop, in_thread


@dataclass(frozen=True, slots=True)
class Prepared:
    """What is ready to take its place, and sentences: about what came back otherwise than it was, and about what was
    changed in it as the settings want it.
    """

    swaps: tuple[Swap, ...]
    warnings: tuple[str, ...] = ()
    changed: tuple[str, ...] = ()


@runtime_checkable
class Replacing(Protocol):
    """A source whose part of a backup takes the place of what is there, which is kept until somebody releases it."""

    def homes(self) -> Sequence[Path]:
        """Where on this machine it lives, as the settings name it: files, folders and globs; none where they do not."""
        ...

    async def in_the_way(self, summary: SourceSummary) -> list[str]:
        """What is there and would be replaced, by its name: "/srv/photos". Raises RestoreError, SourceError."""
        ...

    async def must_be_still(self, summary: SourceSummary, stopping: Collection[str]) -> None:
        """Raises RestoreError where something that is not among ``stopping`` (names of containers) runs and would write
        to what is exchanged.
        """
        ...

    def must_run(self, summary: SourceSummary) -> str:
        """The container that has to run while it is exchanged; empty where none has to."""
        ...

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        """Make of what was unpacked at ``given`` (the folder or file that is its place) what can be exchanged at once
        for what is there, while that goes on; what is kept of it gets ``stamp`` into its name.

        Raises RestoreError and SourceError; nothing is left then but what lies in ``given``. Cancelling ends every
        child.
        """
        ...

    async def forth(self, one: Swap) -> None:
        """Carry out one, also where that was done in part or as a whole before. Raises RestoreError, also where
        something runs that would write to it; SourceError.
        """
        ...

    async def back(self, one: Swap, *, whole: bool) -> Swap | None:
        """See ``swap.back``."""
        ...

    async def remove(self, one: Swap) -> None:
        """Let go for good what lies at its ``old``, if anything does. Raises RestoreError, SourceError."""
        ...


class OnDisk:
    """How ``Replacing`` is done by what lies on a disk."""

    def homes(self) -> Sequence[Path]:
        return ()

    async def must_be_still(self, summary: SourceSummary, stopping: Collection[str]) -> None:
        """Nobody knows what writes to a file."""

    def must_run(self, summary: SourceSummary) -> str:  # noqa: ARG002
        return ""

    async def forth(self, one: Swap) -> None:
        await in_thread(lambda: swap.forth(one), Stop())

    async def back(self, one: Swap, *, whole: bool) -> Swap | None:
        return await in_thread(lambda: swap.back(one, whole=whole), Stop())

    async def remove(self, one: Swap) -> None:
        await in_thread(lambda: swap.remove(one), Stop())


@dataclass(frozen=True, slots=True)
class Taking:
    """What is needed somewhere else than where a backup is unpacked. ``free_bytes`` is None where that cannot be seen
    from here, ``device`` (st_dev) where it is no disk of this machine's own.
    """

    where: str
    needed_bytes: int
    free_bytes: int | None
    device: int | None = None


@runtime_checkable
class TakingRoom(Protocol):
    """A source that is made ready where others keep its data: in a server."""

    async def room(self, summary: SourceSummary) -> Taking | None:
        """What it takes there beside what is there; None where it takes none. Raises SourceError."""
        ...

    async def abandon(self, stamp: str) -> None:
        """Let go what a ``prepare`` with this ``stamp`` had made there when it was killed. Raises SourceError."""
        ...


@runtime_checkable
class Changing(Protocol):
    """A source whose settings want something changed in what comes back, before it takes the place of what is there."""

    def changes(self, summary: SourceSummary) -> list[str]:
        """A phrase each, such as "TRUNCATE caches". Touches nothing."""
        ...


@runtime_checkable
class Omitting(Protocol):
    """A source that leaves out of its backups some of what it replaces."""

    @property
    def omits(self) -> tuple[str, ...]:
        """Globs in the manner of .gitignore."""
        ...


@runtime_checkable
class Returning(Protocol):
    """A source whose part of a backup can be put back only where nothing is replaced by it."""

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:
        """Bring what was unpacked at ``given`` (the folder or file that is its place) back to where it lives.

        Returns warnings, a sentence each. Raises RestoreError and SourceError; what lived there before is untouched.
        Cancelling ends every child.
        """
        ...

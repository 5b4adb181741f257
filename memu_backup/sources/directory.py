"""A folder with everything in it: photos, Synapse's media and keys, models."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from memu_backup import crosscheck, moving, pack, swap, words
from memu_backup.errors import SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.replacing import OnDisk, Prepared
from memu_backup.sources import FolderSettings, Reader, SourceSettings, look


class DirectorySettings(FolderSettings):
    kind: Literal["directory"]
    path: LocalPath = Field(description="the folder")
    cross_filesystems: bool = Field(default=False, description="also enter other filesystems mounted below it")


class DirectorySource(OnDisk):
    kind: ClassVar[str] = "directory"
    Settings: ClassVar[type[SourceSettings]] = DirectorySettings

    def __init__(self, name: str, settings: DirectorySettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self.listed_by = settings.listed_by
        self._settings = settings

    async def check(self) -> list[str]:
        await look(self.name, self._look)
        return []

    def _look(self) -> None:
        path = self._settings.path
        if not path.is_dir():
            problem = "is not a folder" if path.exists() else "is not there"
            raise SourceError(
                f"{path} (source {self.name}) {problem}, so it cannot be backed up. "
                f"Is its disk mounted? Else correct sources.{self.name}.path."
            )
        if not os.access(path, os.R_OK | os.X_OK):
            raise SourceError(
                f"{path} (source {self.name}) cannot be read by this user, so it cannot be backed up. "
                "Run memu-backup as root or give this user the right to read it."
            )

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:  # noqa: ARG002  nothing to write out first
        await self.check()
        s = self._settings
        exclude = (*s.exclude, *await look(self.name, lambda: swap.passed_over(s.path)))
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(s.path, self.place, exclude, s.cross_filesystems, packed=not self.place.endswith("/")),),
            consistency="each file as it was when it was read",
        )

    @property
    def omits(self) -> tuple[str, ...]:
        """See ``Omitting``."""
        return tuple(self._settings.exclude)

    def homes(self) -> Sequence[Path]:
        return (self._settings.path,)

    def lives(self) -> str:
        return str(self._settings.path)

    async def landing(self, summary: SourceSummary) -> Path:
        path = self._settings.path
        return await look(self.name, lambda: pack.with_room(summary, swap.landing(path)))

    async def in_the_way(self, summary: SourceSummary) -> list[str]:  # noqa: ARG002  wherever it came from
        path = self._settings.path
        return [] if await look(self.name, lambda: moving.is_free(path)) else [str(path)]

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        given, warnings = await pack.unpacked(given, summary)
        path = self._settings.path
        return Prepared(await look(self.name, lambda: swap.whole(path, given, stamp)), tuple(warnings))

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        return await pack.verify(summary, reader.content) if pack.is_one(summary) else []  # bytes and hashes say it all

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(pack.inside(summary), now, zone) + crosscheck.phrase(summary)


SOURCE = DirectorySource

"""A folder with everything in it: photos, Synapse's media and keys, models."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field

from memu_backup import moving, words
from memu_backup.errors import RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.sources import Globs, Reader, SourceSettings, look


class DirectorySettings(SourceSettings):
    only_folders: ClassVar[bool] = True
    kind: Literal["directory"]
    path: LocalPath = Field(description="the folder")
    exclude: Globs = Field(default=(), description="globs in the manner of .gitignore, relative to the folder")
    cross_filesystems: bool = Field(default=False, description="also enter other filesystems mounted below it")


class DirectorySource:
    kind: ClassVar[str] = "directory"
    Settings: ClassVar[type[SourceSettings]] = DirectorySettings

    def __init__(self, name: str, settings: DirectorySettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
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
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(s.path, self.place, s.exclude, s.cross_filesystems),),
            consistency="each file as it was when it was read",
        )

    def lives(self) -> str:
        return str(self._settings.path)

    async def landing(self, summary: SourceSummary) -> Path:  # noqa: ARG002  wherever it came from
        path = self._settings.path
        if not await look(self.name, lambda: moving.is_free(path)):
            raise RestoreError(
                f"{path} (source {self.name}) is not empty, and nothing there is replaced; nothing was changed. "
                f"Move it away first, or restore to another folder with --to."
            )
        return await look(self.name, lambda: moving.landing(path))

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:  # noqa: ARG002
        await asyncio.to_thread(moving.move_in, given, self._settings.path)
        return []

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:  # noqa: ARG004  bytes and hashes say it all
        return []

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(summary, now, zone)


SOURCE = DirectorySource

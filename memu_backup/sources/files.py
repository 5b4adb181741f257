"""A handful of files and folders under one place: .env, element-config.json, nginx/."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, model_validator

from memu_backup import moving, swap, words
from memu_backup.errors import SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.replacing import OnDisk, Prepared
from memu_backup.sources import Lacking, Reader, SourceSettings, look
from memu_backup.swap import Swap


class FilesSettings(SourceSettings):
    only_folders: ClassVar[bool] = True
    keeps_files: ClassVar[bool] = True
    kind: Literal["files"]
    paths: tuple[LocalPath, ...] = Field(min_length=1, description="files and folders, each stored under its own name")
    optional: bool = Field(default=False, description="a path that is not there is no reason to call a backup partial")

    @model_validator(mode="after")
    def _names_differ(self) -> FilesSettings:
        names = [p.name for p in self.paths]
        twice = sorted({n for n in names if names.count(n) > 1})
        if twice:
            raise ValueError(f"two paths end in the same name ({', '.join(twice)}); put one into a source of its own")
        return self


class FilesSource(OnDisk):
    kind: ClassVar[str] = "files"
    Settings: ClassVar[type[SourceSettings]] = FilesSettings

    def __init__(self, name: str, settings: FilesSettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self._settings = settings

    def _split(self) -> tuple[list[Path], list[Path]]:
        there = [p for p in self._settings.paths if os.access(p, os.F_OK)]  # exists() raises below a closed folder
        return there, [p for p in self._settings.paths if p not in there]

    async def check(self) -> list[str]:
        there, missing = await look(self.name, self._split)
        if not there:
            raise SourceError(
                f"None of the {len(missing)} paths of source {self.name} can be seen (the first is {missing[0]}), "
                f"so it cannot be backed up. Correct sources.{self.name}.paths."
            )
        closed = await look(self.name, lambda: [p for p in there if not _readable(p)])
        return self._warnings(missing) + [
            Lacking(f"{p} (source {self.name}) may not be read by this user.") for p in closed
        ]

    def _warnings(self, missing: list[Path]) -> list[str]:
        kind = str if self._settings.optional else Lacking
        return [kind(f"{p} (source {self.name}) is not there, or this user may not see it.") for p in missing]

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:  # noqa: ARG002  nothing to write out first
        await self.check()
        there, missing = await look(self.name, self._split)
        warnings = tuple(self._warnings(missing))  # what is closed is met, and told of, by whoever reads it
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=tuple(Root(p, self.place + p.name + ("/" if p.is_dir() else "")) for p in there),
            consistency="each file as it was when it was read",
            warnings=warnings if self._settings.optional else (),
            missing=() if self._settings.optional else warnings,
        )

    def homes(self) -> Sequence[Path]:
        return self._settings.paths

    def lives(self) -> str:
        return ", ".join(map(str, self._settings.paths))

    async def landing(self, summary: SourceSummary) -> Path:  # noqa: ARG002  wherever it came from
        return swap.landing(self._settings.paths[0].with_name(self.name))

    async def in_the_way(self, summary: SourceSummary) -> list[str]:  # noqa: ARG002
        there, _ = await look(self.name, self._split)
        return list(map(str, there))

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:  # noqa: ARG002
        """What the backup does not hold of them stays as it is."""
        lacking, swaps = [], list[Swap]()
        try:
            for path in self._settings.paths:
                if os.path.lexists(given / path.name):
                    new = await moving.near(given / path.name, path)  # they may lie on several disks
                    swaps.append(await look(self.name, partial(swap.one, path, new, stamp)))
                else:
                    lacking.append(f"{path} (source {self.name}) is not in this backup.")
        except BaseException:
            for made in swaps:
                swap.clear(Path(made.new))
            raise
        return Prepared(tuple(swaps), tuple(lacking))

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:  # noqa: ARG004  bytes and hashes say it all
        return []

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(summary, now, zone)


def _readable(path: Path) -> bool:
    return os.access(path, os.R_OK | os.X_OK if path.is_dir() else os.R_OK)


SOURCE = FilesSource

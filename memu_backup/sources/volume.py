"""A volume of Docker, by its name: as it lies on this machine's disk."""

from __future__ import annotations

from collections.abc import AsyncIterator, Collection, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memu_backup import crosscheck, docker_engine, moving, pack, swap, words
from memu_backup.errors import RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.replacing import OnDisk, Prepared
from memu_backup.sources import FolderSettings, Reader, SourceSettings, look
from memu_backup.swap import Swap

if TYPE_CHECKING:
    from aiodocker import Docker


class VolumeSettings(FolderSettings):
    kind: Literal["volume"]
    volume: str = Field(min_length=1, description="what Docker calls it: docker volume ls")
    socket: LocalPath | None = Field(default=None, description="where Docker listens; what DOCKER_HOST says")


class _Made(BaseModel):
    """How the volume was made, for whoever makes it anew; out of a backup that may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    labels: dict[str, str] = {}


class VolumeSource(OnDisk):
    kind: ClassVar[str] = "volume"
    Settings: ClassVar[type[SourceSettings]] = VolumeSettings

    def __init__(self, name: str, settings: VolumeSettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self.listed_by = settings.listed_by
        self._settings = settings
        self._unable = f"so source {name} cannot be backed up"

    async def check(self) -> list[str]:
        await self._found()
        return []

    async def programs(self) -> list[str]:
        """See ``checks.machine``."""
        return [await docker_engine.version(self._settings.socket, "so its version is not known")]

    async def _found(self) -> tuple[Path, Mapping[str, Any]]:
        """Where the volume lies, and what Docker knows of it. Raises SourceError."""
        wanted = self._settings.volume
        async with docker_engine.engine(self._settings.socket, self._unable) as docker:
            told = await docker_engine.volume(docker, wanted)
            if told is None:
                listed = await docker_engine.answer(docker.volumes.list())  # type: ignore[no-untyped-call]
                there = sorted(volume["Name"] for volume in listed["Volumes"] or ())
                raise SourceError(
                    f"Docker has no volume {wanted} ({f'it has {_some(there)}' if there else 'it has none'}), "
                    f"{self._unable}. Correct sources.{self.name}.volume."
                )
        path = docker_engine.lies_at(told)
        await look(self.name, lambda: self._must_be_there(path, told))
        return path, told

    def _must_be_there(self, path: Path, told: Mapping[str, Any]) -> None:
        if not path.is_dir():
            raise SourceError(
                f"Docker volume {self._settings.volume} cannot be seen at {path}, {self._unable}. Is its disk mounted, "
                "and may this user see it? Where memu-backup runs in a container, mount that folder there too."
            )
        if (told.get("Options") or {}).get("device") and path == Path(told["Mountpoint"]) and not path.is_mount():
            raise SourceError(
                f"Docker mounts volume {self._settings.volume} only while something uses it, and nothing does now, "
                f"{self._unable}. Start what uses it, and do not let it stand still for this source."
            )

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:  # noqa: ARG002  nothing to write out first
        path, told = await self._found()
        exclude = (*self._settings.exclude, *await look(self.name, lambda: swap.passed_over(path)))
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(path, self.place, exclude, packed=not self.place.endswith("/")),),
            consistency="each file as it was when it was read",
            details={"volume": self._settings.volume, "labels": dict(told.get("Labels") or {})},
        )

    @property
    def omits(self) -> tuple[str, ...]:
        """See ``Omitting``."""
        return tuple(self._settings.exclude)

    def lives(self) -> str:
        return f"Docker volume {self._settings.volume}"

    async def landing(self, summary: SourceSummary) -> Path:
        wanted = self._settings.volume
        async with docker_engine.engine(self._settings.socket, self._not_back) as docker:
            told = await docker_engine.volume(docker, wanted)
            root = Path((await docker_engine.answer(docker.system.info()))["DockerRootDir"])
        return await look(
            self.name,
            lambda: pack.with_room(
                summary, swap.landing(docker_engine.lies_at(told) if told else _beside_volumes(root) / wanted)
            ),
        )

    async def in_the_way(self, summary: SourceSummary) -> list[str]:  # noqa: ARG002  wherever it came from
        async with docker_engine.engine(self._settings.socket, self._not_back) as docker:
            told = await docker_engine.volume(docker, self._settings.volume)
        if told is None:
            return []
        path = docker_engine.lies_at(told)
        return [] if await look(self.name, lambda: moving.is_free(path)) else [self.lives()]

    async def must_be_still(self, summary: SourceSummary, stopping: Collection[str]) -> None:  # noqa: ARG002
        await self._must_be_unused(stopping)

    async def forth(self, one: Swap) -> None:
        await self._must_be_unused(())
        await super().forth(one)

    async def _must_be_unused(self, stopping: Collection[str]) -> None:
        wanted = self._settings.volume
        async with docker_engine.engine(self._settings.socket, self._not_back) as docker:
            users = await docker_engine.used_by(docker, wanted)
        if running := [name for name in users if name not in stopping]:
            raise RestoreError(
                f"Docker volume {wanted} (source {self.name}) is in use by {_some(running)}, and no service of the "
                "settings stops that; nothing was changed. Stop it first: docker stop " + " ".join(running)
            )

    async def prepare(self, given: Path, summary: SourceSummary, stamp: str) -> Prepared:
        async with docker_engine.engine(self._settings.socket, self._not_back) as docker:
            told = await docker_engine.volume(docker, self._settings.volume) or await self._made(docker, summary)
        given, warnings = await pack.unpacked(given, summary)
        path = docker_engine.lies_at(told)
        return Prepared(await look(self.name, lambda: swap.whole(path, given, stamp)), tuple(warnings))

    async def _made(self, docker: Docker, summary: SourceSummary) -> Mapping[str, Any]:
        """With the labels that it had: by them compose knows it for its own."""
        try:
            made = _Made.model_validate(dict(summary.details))
        except ValidationError:
            made = _Made()
        name = self._settings.volume
        wanted = {"Name": name, "Labels": made.labels}
        await docker_engine.answer(docker.volumes.create(wanted))  # type: ignore[no-untyped-call]
        told = await docker_engine.volume(docker, name)
        assert told is not None
        return told

    @property
    def _not_back(self) -> str:
        return f"so source {self.name} cannot be put back"

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        return await pack.verify(summary, reader.content) if pack.is_one(summary) else []  # bytes and hashes say it all

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(pack.inside(summary), now, zone) + crosscheck.phrase(summary)


def _beside_volumes(root: Path) -> Path:
    """Where Docker takes no folder of ours for a volume, if that is the same disk."""
    volumes = root / "volumes"
    return root if root.stat().st_dev == volumes.stat().st_dev else volumes


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


SOURCE = VolumeSource

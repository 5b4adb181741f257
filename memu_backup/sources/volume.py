"""A volume of Docker, by its name: as it lies on this machine's disk."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memu_backup import docker_engine, moving, words
from memu_backup.errors import RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.sources import Globs, Reader, SourceSettings, look

if TYPE_CHECKING:
    from aiodocker import Docker


class VolumeSettings(SourceSettings):
    only_folders: ClassVar[bool] = True
    kind: Literal["volume"]
    volume: str = Field(min_length=1, description="what Docker calls it: docker volume ls")
    exclude: Globs = Field(default=(), description="globs in the manner of .gitignore, relative to its top")
    socket: LocalPath | None = Field(default=None, description="where Docker listens; what DOCKER_HOST says")


class _Made(BaseModel):
    """How the volume was made, for whoever makes it anew; out of a backup that may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    labels: dict[str, str] = {}


class VolumeSource:
    kind: ClassVar[str] = "volume"
    Settings: ClassVar[type[SourceSettings]] = VolumeSettings

    def __init__(self, name: str, settings: VolumeSettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
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
        path = _lies_at(told)
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
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(path, self.place, self._settings.exclude),),
            consistency="each file as it was when it was read",
            details={"volume": self._settings.volume, "labels": dict(told.get("Labels") or {})},
        )

    def lives(self) -> str:
        return f"Docker volume {self._settings.volume}"

    async def landing(self, summary: SourceSummary) -> Path:  # noqa: ARG002  wherever it came from
        wanted = self._settings.volume
        async with docker_engine.engine(self._settings.socket, self._not_back) as docker:
            told = await docker_engine.volume(docker, wanted)
            users = await docker_engine.used_by(docker, wanted) if told else []
            root = Path((await docker_engine.answer(docker.system.info()))["DockerRootDir"])
        if users:
            raise RestoreError(
                f"Docker volume {wanted} (source {self.name}) is in use by {_some(users)}; nothing was changed. "
                "Stop that first."
            )
        if told is None:
            return await look(self.name, lambda: moving.landing(_beside_volumes(root) / wanted))
        path = _lies_at(told)
        if not await look(self.name, lambda: moving.is_free(path)):
            raise RestoreError(
                f"Docker volume {wanted} (source {self.name}) is not empty, and nothing there is replaced; nothing was "
                f"changed. Remove it first (docker volume rm {wanted}), or restore to a folder with --to."
            )
        return await look(self.name, lambda: moving.landing(path))

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:
        async with docker_engine.engine(self._settings.socket, self._not_back) as docker:
            told = await docker_engine.volume(docker, self._settings.volume) or await self._made(docker, summary)
        await asyncio.to_thread(moving.move_in, given, _lies_at(told))
        return []

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
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:  # noqa: ARG004  bytes and hashes say it all
        return []

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(summary, now, zone)


def _lies_at(told: Mapping[str, Any]) -> Path:
    """Where its files are. One that is bound to a folder of this machine lies there, also while nobody uses it."""
    options = told.get("Options") or {}
    device = str(options.get("device") or "")
    if device.startswith("/") and "bind" in str(options.get("o", "")).split(","):
        return Path(device)
    return Path(told["Mountpoint"] or "/nonexistent")


def _beside_volumes(root: Path) -> Path:
    """Where Docker takes no folder of ours for a volume, if that is the same disk."""
    volumes = root / "volumes"
    return root if root.stat().st_dev == volumes.stat().st_dev else volumes


def _some(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(names[:5]) + more


SOURCE = VolumeSource

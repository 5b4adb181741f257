"""A Docker volume: found by its name, read from the disk, and put back so that compose knows it for its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from memu_backup.errors import EngineAway, RestoreError, SourceError
from memu_backup.sources.volume import VolumeSettings, VolumeSource
from tests.archives import Unpacked, archive_store, back_up, plain_tree, returning, snapshot
from tests.contracts.sources import SourceContract
from tests.docker_engine import BUSYBOX, Engine


def volume(name: str, engine: Engine, **more: object) -> VolumeSource:
    told = {"kind": "volume", "volume": name, "socket": engine.socket, **more}
    return VolumeSource("models", VolumeSettings.model_validate(told))


class TestVolumeIsASource(SourceContract):
    @pytest.fixture(autouse=True)
    def _with(self, engine: Engine) -> Iterator[None]:
        self.engine = engine
        self.name = f"models-{uuid4().hex}"
        engine.docker("volume", "create", "--label", "com.docker.compose.volume=models", self.name)
        yield
        engine.docker("volume", "rm", "--force", self.name)

    def household(self, folder: Path) -> Path:
        there = self.engine.mountpoint(self.name)
        plain_tree(there)
        return there

    def make(self, data: Path) -> VolumeSource:
        return volume(self.name, self.engine)

    def take_away(self, data: Path) -> None:
        self.engine.docker("volume", "rm", self.name)

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        assert snapshot(unpacked.target / "models") == snapshot(data)


class TestAPackedVolumeIsASource(TestVolumeIsASource):
    def make(self, data: Path) -> VolumeSource:
        return volume(self.name, self.engine, place="storage.tar.gz")

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        subprocess.run(["tar", "-xzf", "storage.tar.gz"], check=True, cwd=unpacked.target)
        assert snapshot(unpacked.target / "storage") == snapshot(data)


async def test_a_name_that_docker_does_not_know_is_told_with_those_that_it_knows(engine: Engine) -> None:
    engine.docker("volume", "create", "memu_pgdata")
    with pytest.raises(SourceError, match=r"no volume memu_pgdat \(it has .*memu_pgdata.*\), so source models cannot"):
        await volume("memu_pgdat", engine).check()


async def test_without_docker_it_is_said_and_tried_again_later(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineAway, match="so source models cannot be backed up") as met:
        await volume("x", engine, socket=tmp_path / "nobody.sock").check()
    assert met.value.retryable


async def test_one_that_is_bound_to_a_folder_is_read_where_that_lies(engine: Engine, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    (tmp_path / "disk" / "photo").write_text("p")
    options = ["--opt", "type=none", "--opt", "o=bind", "--opt", f"device={tmp_path / 'disk'}"]
    engine.docker("volume", "create", *options, "bound")
    async with volume("bound", engine).capture(tmp_path) as captured:
        assert captured.roots[0].path == tmp_path / "disk"
    engine.docker("volume", "rm", "bound")


async def test_one_that_docker_mounts_only_while_it_is_used_is_not_taken_for_empty(engine: Engine) -> None:
    engine.docker("volume", "create", "--opt", "type=tmpfs", "--opt", "device=tmpfs", "scratch")
    with pytest.raises(SourceError, match="mounts volume scratch only while something uses it"):
        await volume("scratch", engine).check()
    engine.docker("run", "--detach", "--name", "user", "--volume", "scratch:/data", BUSYBOX, "sleep", "1000")
    assert await volume("scratch", engine).check() == []
    engine.docker("rm", "--force", "user")
    engine.docker("volume", "rm", "scratch")


async def test_put_back_it_is_composes_own_again_and_a_running_container_keeps_it_from_that(
    engine: Engine, tmp_path: Path
) -> None:
    label = "com.docker.compose.volume"
    engine.docker("volume", "create", "--label", f"{label}=back", "back")
    (engine.mountpoint("back") / "model").write_text("m")
    source = volume("back", engine)
    (tmp_path / "stage").mkdir()
    async with source.capture(tmp_path / "stage") as captured:
        archive = back_up(archive_store(tmp_path / "store"), captured)
    engine.docker("volume", "rm", "back")
    engine.docker("volume", "create", "back")
    engine.docker("run", "--detach", "--name", "user", "--volume", "back:/data", BUSYBOX, "sleep", "1000")
    with pytest.raises(RestoreError, match="in use by user"):
        await (await returning(archive, {"models": source}, tmp_path / "scratch")).carry_out()
    engine.docker("rm", "--force", "user")
    engine.docker("volume", "rm", "back")
    back = await returning(archive, {"models": source}, tmp_path / "scratch")
    await back.carry_out()
    (told,) = json.loads(engine.docker("volume", "inspect", "back"))
    assert told["Labels"] == {label: "back"}
    assert engine.docker("run", "--rm", "--volume", "back:/data", BUSYBOX, "cat", "/data/model") == "m"
    shutil.rmtree(engine.mountpoint("back"))
    engine.docker("volume", "rm", "--force", "back")

"""Redis in a container: found by its name, copied over its network, and put back into its volume."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from memu_backup.errors import DatabaseAway, DatabaseError, RestoreError
from memu_backup.sources.redis import RedisSettings, RedisSource
from tests.archives import archive_store, back_up, returning
from tests.docker_engine import Engine
from tests.sources.dumps import Captures, summary

FILL = "for i = 1, 3000 do redis.call('set', 'k:' .. i, redis.sha1hex(i)) end"


@pytest.fixture(scope="module")
def network(engine: Engine) -> Iterator[str]:
    name = f"redis-{uuid4().hex[:8]}"
    engine.docker("network", "create", name)
    yield name
    engine.docker("network", "rm", name)


@pytest.fixture
def container(engine: Engine, redis_image: str, network: str) -> Iterator[str]:
    name = f"redis-{uuid4().hex[:8]}"
    run(engine, name, redis_image, network)
    engine.docker("exec", name, "redis-cli", "EVAL", FILL, "0")
    yield name
    engine.docker("rm", "--force", name)
    engine.docker("volume", "rm", "--force", f"{name}-data")


def run(engine: Engine, name: str, image: str, network: str, *more: str, start: bool = True) -> None:
    engine.docker("create", "--name", name, "--network", network, "--volume", f"{name}-data:/data", image, *more)
    if start:
        engine.docker("start", name)
        until_it_answers(engine, name)


def until_it_answers(engine: Engine, name: str) -> None:
    deadline = time.monotonic() + 20
    while engine.docker("exec", name, "sh", "-c", "redis-cli PING || true") != "PONG":
        assert time.monotonic() < deadline, engine.docker("logs", name)
        time.sleep(0.05)


def source(container: str, engine: Engine, **more: object) -> RedisSource:
    told = {"kind": "redis", "container": container, "socket": engine.socket, **more}
    return RedisSource("cache", RedisSettings.model_validate(told))


def values(engine: Engine, name: str) -> str:
    script = "local t = {} for i = 1, 3000 do t[i] = tostring(redis.call('get', 'k:' .. i)) end return t"
    return engine.docker("exec", name, "redis-cli", "EVAL", script, "0")


async def test_it_is_copied_over_its_network_and_comes_back_into_its_volume(
    engine: Engine, container: str, redis_image: str, network: str, stage: Path, tmp_path: Path
) -> None:
    taken, before = source(container, engine), values(engine, container)
    assert await taken.check() == []
    async with taken.capture(stage) as captured:
        assert captured.details["keys"] == {"db0": 3000}
        assert await RedisSource.verify(summary(captured), Captures(captured)) == []
        archive = back_up(archive_store(tmp_path / "store"), captured)
    with pytest.raises(RestoreError, match=rf"runs, and would .* Stop it first: docker stop {container}"):
        await (await returning(archive, {"cache": taken}, tmp_path / "scratch")).carry_out()
    engine.docker("rm", "--force", container)
    engine.docker("volume", "rm", f"{container}-data")
    with pytest.raises(RestoreError, match=r"keeps its file nobody knows \(it was /data/dump.rdb\)"):
        await returning(archive, {"cache": taken}, tmp_path / "scratch")
    run(engine, container, redis_image, network, start=False)
    back = await returning(archive, {"cache": taken}, tmp_path / "scratch")
    assert await back.all_there() == ()
    file = engine.mountpoint(f"{container}-data") / "dump.rdb"
    assert file.stat().st_uid == 999
    engine.docker("start", container)
    until_it_answers(engine, container)
    assert values(engine, container) == before
    engine.docker("stop", container)
    (again,) = (await returning(archive, {"cache": taken}, tmp_path / "scratch")).planned.steps
    assert again.replaces == (str(file),)


@pytest.mark.slow
async def test_a_volume_that_is_bound_to_a_folder_gets_it_back_where_the_server_finds_it(
    engine: Engine, redis_image: str, network: str, stage: Path, tmp_path: Path
) -> None:
    """While nothing uses it, Docker's own folder for it is an empty mount point."""
    name, disk = f"redis-{uuid4().hex[:8]}", engine.folder / f"disk-{uuid4().hex[:8]}"
    disk.mkdir()
    os.chown(disk, 999, 999)
    options = ["--opt", "type=none", "--opt", "o=bind", "--opt", f"device={disk}"]
    engine.docker("volume", "create", *options, f"{name}-data")
    run(engine, name, redis_image, network)
    try:
        engine.docker("exec", name, "redis-cli", "EVAL", FILL, "0")
        taken, before = source(name, engine), values(engine, name)
        async with taken.capture(stage) as captured:
            archive = back_up(archive_store(tmp_path / "store"), captured)
        engine.docker("stop", name)
        for path in disk.iterdir():
            path.unlink()
        await (await returning(archive, {"cache": taken}, tmp_path / "scratch")).carry_out()
        assert [path.name for path in disk.iterdir()] == ["dump.rdb"]
        engine.docker("start", name)
        until_it_answers(engine, name)
        assert values(engine, name) == before
    finally:
        engine.docker("rm", "--force", name)
        engine.docker("volume", "rm", f"{name}-data")


async def test_one_that_takes_nobody_from_outside_says_so(
    engine: Engine, redis_image: str, network: str, stage: Path
) -> None:
    name = f"redis-{uuid4().hex[:8]}"
    run(engine, name, redis_image, network, "--protected-mode", "yes")
    try:
        with pytest.raises(DatabaseError, match="takes nobody from another machine as long as it has no password"):
            await source(name, engine).check()
    finally:
        engine.docker("rm", "--force", name)
        engine.docker("volume", "rm", f"{name}-data")


async def test_one_without_a_network_is_told(engine: Engine, redis_image: str) -> None:
    name = f"redis-{uuid4().hex[:8]}"
    run(engine, name, redis_image, "none")
    try:
        with pytest.raises(
            DatabaseError, match="is on no network that this machine reaches, so source cache cannot be"
        ):
            await source(name, engine).check()
    finally:
        engine.docker("rm", "--force", name)
        engine.docker("volume", "rm", f"{name}-data")


async def test_what_is_not_there_or_off_is_one_sentence(engine: Engine, container: str) -> None:
    with pytest.raises(DatabaseError, match=rf"no container nobody \(these run: .*{container}.*\), so source cache"):
        await source("nobody", engine).check()
    engine.docker("stop", container)
    with pytest.raises(DatabaseAway, match=f"Container {container} does not run, so source cache cannot be backed up"):
        await source(container, engine).check()

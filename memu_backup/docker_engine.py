"""The Docker Engine on this machine: where it listens, what its errors mean, and programs run in its containers.

The API is described at https://docs.docker.com/reference/api/engine/.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from memu_backup.errors import EngineAway, EngineError
from memu_backup.process import Completed

if TYPE_CHECKING:
    from aiodocker import Docker, DockerError

T = TypeVar("T")

SOCKET = "/var/run/docker.sock"

ANSWER_S = 30.0
"""How long the engine may take to tell of something."""

GONE = 404
NOT_REACHED = 900
"""aiodocker's own, among the status codes of HTTP."""

_STDERR = 2
_LAST_WORDS_BYTES = 64 * 1024


def address(socket: Path | None) -> str:
    """Where the engine listens: what the settings say, else DOCKER_HOST, else where it always does."""
    return f"unix://{socket}" if socket else os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}"


@asynccontextmanager
async def engine(socket: Path | None, unable: str) -> AsyncIterator[Docker]:
    """The engine, its errors in the block as ours. ``unable`` ends the sentence: "so volume x cannot be backed up".

    Raises EngineAway where it does not answer, EngineError where it refuses or the address is none.
    """
    import aiodocker  # slow, and not needed by most commands
    import aiohttp

    url = address(socket)
    where = url.removeprefix("unix://")
    try:
        if not url.startswith(("unix://", "tcp://")):
            raise ValueError
        docker = aiodocker.Docker(url)
    except (ValueError, OSError):  # certificates, by DOCKER_TLS_VERIFY
        raise EngineError(
            f"DOCKER_HOST does not say where Docker listens, {unable}. Write unix:///var/run/docker.sock or "
            "tcp://HOST:PORT, or set socket in its settings."
        ) from None
    try:
        async with docker:
            yield docker
    except (aiodocker.DockerError, aiohttp.ClientError, OSError, TimeoutError) as error:
        cause = getattr(error.__context__, "os_error", None)
        if isinstance(cause, PermissionError):
            raise EngineError(
                f"This user may not speak to Docker at {where}, {unable}. "
                "Run memu-backup as root, or put its user into the group docker."
            ) from error
        if isinstance(error, aiodocker.DockerError) and error.status != NOT_REACHED:
            raise EngineError(f"Docker at {where} says: {one_line(error.message)}, {unable}.") from error
        raise EngineAway(
            f"Docker does not answer at {where}, {unable}. Does it run? systemctl status docker"
        ) from error


async def answer(asked: Awaitable[T], limit_s: float = ANSWER_S) -> T:
    """Raises TimeoutError."""
    async with asyncio.timeout(limit_s):
        return await asked


def docker_error() -> type[DockerError]:
    """What aiodocker raises; imported where it is needed, as it is slow."""
    from aiodocker import DockerError

    return DockerError


def one_line(said: str) -> str:
    """A stranger's words, fit for a sentence of ours: no password out of an address, and no more than a line."""
    plain = re.sub(r"://[^\s/@]*@", "://********@", " ".join(said.split()))
    return "".join(c for c in plain if c.isprintable())[:200]


async def version(socket: Path | None, unable: str) -> str:
    """Which engine listens there, in words. Raises EngineError."""
    async with engine(socket, unable) as docker:
        told = await answer(docker.version())
    return f"Docker Engine {one_line(str(told['Version']))} at {address(socket).removeprefix('unix://')}"


async def container(docker: Docker, name: str) -> dict[str, Any] | None:
    """All that the engine knows of a container, by name or id; None where there is none."""
    try:
        return dict(await answer(docker.containers.container(name).show()))
    except docker_error() as error:
        if error.status == GONE:
            return None
        raise


async def volume(docker: Docker, name: str) -> dict[str, Any] | None:
    """All that the engine knows of a volume; None where there is none."""
    from aiodocker.volumes import DockerVolume

    try:
        return dict(await answer(DockerVolume(docker, name).show()))  # type: ignore[no-untyped-call]
    except docker_error() as error:
        if error.status == GONE:
            return None
        raise


async def used_by(docker: Docker, volume_name: str) -> list[str]:
    """The containers that run now and have the volume mounted, by name."""
    found = await answer(docker.containers.list(filters={"volume": [volume_name], "status": ["running", "paused"]}))
    return sorted(min(c["Names"], key=len).removeprefix("/") for c in found)


async def those_that_run(docker: Docker) -> str:
    """The containers that run, as a part of a sentence."""
    listed = await answer(docker.containers.list())
    names = sorted(min(c["Names"], key=len).removeprefix("/") for c in listed)
    return f"these run: {', '.join(names[:8])}" if names else "none runs"


def host_of(told: Mapping[str, Any]) -> str | None:
    """The address on which this machine reaches a container that runs; None where it is on no network of its own."""
    if told["HostConfig"].get("NetworkMode") == "host":
        return "127.0.0.1"
    networks = (told["NetworkSettings"].get("Networks") or {}).values()
    return next((network["IPAddress"] for network in networks if network.get("IPAddress")), None)


def lies_at(told: Mapping[str, Any]) -> Path:
    """Where a volume's files are. One that is bound to a folder lies there, also while nobody uses it."""
    options = told.get("Options") or {}
    device = str(options.get("device") or "")
    if device.startswith("/") and "bind" in str(options.get("o", "")).split(","):
        return Path(device)
    return Path(told["Mountpoint"] or "/nonexistent")


async def data_folder(docker: Docker, told: Mapping[str, Any], inside: str) -> Path | None:
    """Where the folder ``inside`` a container lies on this machine; None where it is in the container alone."""
    for mount in sorted(told.get("Mounts") or (), key=lambda m: len(m["Destination"]), reverse=True):
        below = Path(inside)
        if below.is_relative_to(mount["Destination"]):
            known = await volume(docker, mount["Name"]) if mount["Type"] == "volume" else None
            return (lies_at(known) if known else Path(mount["Source"])) / below.relative_to(mount["Destination"])
    return None


async def execute(
    docker: Docker,
    container_id: str,
    argv: Sequence[str],
    *,
    env: Mapping[str, str],
    on_output: Callable[[bytes], Awaitable[None]],
) -> Completed:
    """Run a program in a container that runs, and hand on what it prints; the last words of its stderr are returned.

    ``env`` is added to the container's own: the place for passwords. The engine ends nothing that was begun: whoever is
    cancelled has to see to it that the program ends.
    """
    running = await answer(docker.containers.container(container_id).exec(list(argv), environment=dict(env)))
    complaints = bytearray()
    async with running.start() as stream:
        while (message := await stream.read_out()) is not None:
            if message.stream == _STDERR:
                complaints += message.data
                del complaints[:-_LAST_WORDS_BYTES]
            else:
                await on_output(message.data)
    ended = await answer(running.inspect())
    code = ended.get("ExitCode")
    return Completed(tuple(argv), -1 if code is None else int(code), b"", bytes(complaints))

"""Containers of Docker, by their compose project or by labels, through the Engine API.

A container that was stopped stays off, whatever its restart policy, until the engine itself starts anew. Then
``always`` starts it, under the hands of whoever copies its data; ``unless-stopped``, ``on-failure`` and ``no`` leave it
off, so that after a power cut nobody but us starts it again. A stop that was begun goes on although nobody waits for it
any more, and meanwhile a start is answered with "runs already".
"""

from __future__ import annotations

import asyncio
import json
import logging
import re
import time
from collections.abc import Iterable, Mapping
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from pydantic import Field, model_validator

from memu_backup import docker_engine
from memu_backup.compose import ONE_TASK, PROJECT, Container, ranks
from memu_backup.docker_engine import ANSWER_S, GONE, NOT_REACHED, SOCKET, answer, docker_error, one_line
from memu_backup.errors import EngineAway, ServiceError
from memu_backup.paths import LocalPath
from memu_backup.services import ServiceSettings, Unit

if TYPE_CHECKING:
    from aiodocker import Docker
    from aiodocker.containers import DockerContainer

log = logging.getLogger(__name__)

_KILL_S = 30.0
"""What is left after SIGKILL waits for a disk."""

_STEADY_S = 2.0
"""What has no health check is well when it has run for so long."""

_PAUSE_S = 1.0
_POLL_S = 0.2


class DockerSettings(ServiceSettings):
    kind: Literal["docker"]
    project: str | None = Field(default=None, min_length=1, description="a compose project, with all its containers")
    labels: tuple[str, ...] = Field(default=(), description="instead: containers that have all of these labels")
    socket: LocalPath | None = Field(
        default=None, description=f"where Docker listens: {SOCKET}, unless the variable DOCKER_HOST says otherwise"
    )
    stop_timeout_s: int = Field(default=60, ge=1, description="how long a container may take to end; then it is killed")
    healthy_within_s: int = Field(default=180, ge=1, description="how long one may take to come up again")

    @model_validator(mode="after")
    def _one_of_the_two(self) -> DockerSettings:
        if self.project and self.labels:
            raise ValueError("has both project and labels; keep one of them")
        if not self.project and not self.labels:
            raise ValueError('does not say which containers; add project = "memu" or labels = ["backup.stop=yes"]')
        return self


class DockerService:
    kind: ClassVar[str] = "docker"
    Settings: ClassVar[type[ServiceSettings]] = DockerSettings

    def __init__(self, name: str, settings: DockerSettings) -> None:
        self.name = name
        self._settings = settings

    async def check(self) -> list[str]:
        warnings = []
        async with self._engine() as engine:
            everything = await _containers(engine)
            chosen = [c for c in everything if self._is_chosen(c)]
            if not chosen:
                raise ServiceError(self._nothing_chosen(everything))
            for c in chosen:
                if c.state == "restarting":
                    warnings.append(
                        f"{c.name} (service {self.name}) ends again and again, and is started by Docker each time; "
                        f"look at why: docker logs {c.name}"
                    )
                elif c.state in ("running", "paused") and (why := await _why_left_alone(engine, c)):
                    warnings.append(
                        f"{c.name} (service {self.name}) is not stopped for a backup: {why}. What it writes meanwhile "
                        "may be in the backup by halves."
                    )
        return warnings

    async def programs(self) -> list[str]:
        """See ``checks.machine``."""
        return [await docker_engine.version(self._settings.socket, "so its version is not known")]

    def _nothing_chosen(self, everything: Iterable[Container]) -> str:
        no = f"so for service {self.name} nothing would be stopped"
        if self._settings.labels:
            return (
                f"Docker has no container with the label {' and '.join(self._settings.labels)}, {no}. "
                f"Correct services.{self.name}.labels."
            )
        projects = sorted({c.labels[PROJECT] for c in everything if PROJECT in c.labels})
        known = f"it has {', '.join(projects)}" if projects else "it has none"
        return (
            f"Docker has no container of a compose project {self._settings.project} ({known}), {no}. "
            f"Correct services.{self.name}.project, or start the project."
        )

    def _is_chosen(self, container: Container) -> bool:
        wanted = (f"{PROJECT}={self._settings.project}",) if self._settings.project else self._settings.labels
        for name, equals, value in (label.partition("=") for label in wanted):
            if name not in container.labels or (equals and container.labels[name] != value):
                return False
        return True

    async def running(self) -> list[Unit]:
        """What is just being restarted by the engine runs: it would be there again in the middle of a copy."""
        async with self._engine() as engine:
            everything = await _containers(engine)
            rank = ranks(everything)
            found = [
                Unit(c.id, c.name, rank[c.id])
                for c in everything
                if self._is_chosen(c) and c.state in ("running", "restarting") and not await _why_left_alone(engine, c)
            ]
        return sorted(found, key=lambda unit: (-unit.rank, unit.name))

    async def runs(self, unit: Unit) -> bool:
        async with self._engine() as engine:
            seen = await _seen(await _found(engine, unit))
        return bool(seen and (seen["State"]["Running"] or seen["State"]["Restarting"]))

    async def stop(self, unit: Unit) -> None:
        """``stop_timeout_s`` is the least: where the container's own ``stop_grace_period`` is longer, that counts."""
        async with self._engine() as engine:
            container = await _found(engine, unit)
            seen = await _seen(container)
            if container is None or seen is None:
                return
            grace_s = self._grace_s(seen)
            try:
                await answer(container.stop(t=grace_s), grace_s + _KILL_S)
            except TimeoutError:
                raise ServiceError(
                    f"Container {unit.name} of service {self.name} does not end, even killed, so its data does not "
                    "hold still. A disk that it waits for may be the cause; restart the machine."
                ) from None
            except docker_error() as error:
                if error.status == NOT_REACHED:
                    raise
                if error.status != GONE:
                    raise ServiceError(
                        f"Container {unit.name} of service {self.name} could not be stopped, so its data does not hold "
                        f"still. Docker says: {one_line(error.message)}"
                    ) from error
            ended = await _seen(container)
            if ended and ended["State"].get("ExitCode") == 137 and not ended["State"].get("OOMKilled"):
                log.warning(
                    "Docker has killed %s (service %s), which had not ended after %d s. If it needs longer, raise "
                    "services.%s.stop_timeout_s.",
                    *(unit.name, self.name, grace_s, self.name),
                )

    def _grace_s(self, seen: Mapping[str, Any]) -> int:
        return max(self._settings.stop_timeout_s, seen["Config"].get("StopTimeout") or 0)

    async def start(self, unit: Unit) -> None:
        """Tried once more where it ended at once. One that runs and is not well yet is never restarted for it: it may
        be in the middle of mending its data. An engine that is just away is waited for.
        """
        until = time.monotonic() + self._settings.healthy_within_s
        tries = 2
        while True:
            try:
                async with self._engine() as engine:
                    until += await self._until_a_stop_has_ended(engine, unit)
                    return await self._bring_up(engine, unit, until)
            except ServiceError as error:
                tries -= not isinstance(error, EngineAway)
                if tries == 0 or time.monotonic() >= until:
                    raise
            await asyncio.sleep(_PAUSE_S)

    async def _bring_up(self, engine: Docker, unit: Unit, until: float) -> None:
        container = await _found(engine, unit)
        if container is None:
            raise ServiceError(
                f"Container {unit.name} of service {self.name} is not there any more, so it was not started again. "
                "If it was not removed on purpose, make it anew: docker compose up -d"
            )
        try:
            await answer(container.start(), max(until - time.monotonic(), ANSWER_S))
        except docker_error() as error:
            if error.status == NOT_REACHED:
                raise
            raise self._not_up(unit, f"Docker says: {one_line(error.message)}") from error
        began, steady_from = None, 0.0
        while True:
            seen = await _seen(container)
            if seen is None:
                raise self._not_up(unit, "it was removed meanwhile")
            state = seen["State"]
            health = (state.get("Health") or {}).get("Status", "none")
            if not state["Running"]:
                raise self._not_up(unit, f"it ended with exit code {state['ExitCode']}")
            if state["Restarting"] or state["StartedAt"] != began:
                began, steady_from = None if state["Restarting"] else state["StartedAt"], time.monotonic()
            elif health == "healthy" or (health == "none" and time.monotonic() - steady_from >= _STEADY_S):
                return
            if time.monotonic() >= until:
                raise self._not_up(unit, _why_not(state, self._settings.healthy_within_s))
            await asyncio.sleep(_POLL_S)

    def _not_up(self, unit: Unit, why: str) -> ServiceError:
        return ServiceError(
            f"Container {unit.name} of service {self.name} did not come up again: {why.rstrip('.')}. "
            f"Look at what it says: docker logs {unit.name}"
        )

    async def _until_a_stop_has_ended(self, engine: Docker, unit: Unit) -> float:
        """Let a stop that somebody gave up waiting for, killed or cancelled, come to its end. Returns for how many
        seconds. The engine shows such a container as running; only its events tell.
        """
        began = time.monotonic()
        container = await _found(engine, unit)
        seen = await _seen(container)
        if container is None or seen is None or not seen["State"]["Running"]:
            return 0.0
        longest_s = self._grace_s(seen) + _KILL_S
        last = await answer(_last_event(engine, seen["Id"], longest_s))
        if last is None or last["Action"] != "kill":
            return 0.0
        until = last["timeNano"] / 1e9 + longest_s
        while seen and seen["State"]["Running"] and time.time() < until:
            await asyncio.sleep(_POLL_S)
            seen = await _seen(container)
        return time.monotonic() - began

    def _engine(self) -> AbstractAsyncContextManager[Docker]:
        unable = f"so service {self.name} can be neither stopped nor started"
        return docker_engine.engine(self._settings.socket, unable)


async def _containers(engine: Docker) -> list[Container]:
    """All there are, also those that are off: what runs may depend on what runs by way of them."""
    return [
        Container(
            id=c["Id"],
            name=min(c["Names"], key=lambda name: name.count("/")).removeprefix("/"),  # the others are links
            state=c["State"],
            made=c["Created"],
            labels=c["Labels"] or {},
        )
        for c in await answer(engine.containers.list(all=True))
    ]


async def _found(engine: Docker, unit: Unit) -> DockerContainer | None:
    """By its name, as it may have been made anew; else by its id, as it may have been renamed.

    From the list, for the engine itself takes a name that it does not know for the beginning of some id.
    """
    there = await _containers(engine)
    same = next((c for c in there if c.name == unit.name), None) or next((c for c in there if c.id == unit.id), None)
    return engine.containers.container(same.id) if same else None


async def _seen(container: DockerContainer | None) -> dict[str, Any] | None:
    """All that the engine knows of it; None where it is gone."""
    try:
        return await answer(container.show()) if container else None
    except docker_error() as error:
        if error.status == GONE:
            return None
        raise


async def _why_left_alone(engine: Docker, container: Container) -> str:
    """Why it is not stopped although it runs; empty where it is."""
    if container.id == _own_container():
        return "memu-backup itself runs in it"
    if container.state == "paused":
        return "it is paused, and would come back as one that runs"
    if container.labels.get(ONE_TASK, "").lower() == "true":
        return "docker compose run has started it for one task, which would begin anew"
    seen = await _seen(engine.containers.container(container.id))
    if seen and seen["HostConfig"].get("AutoRemove"):
        return "Docker would remove it then (--rm), and nobody could start it again"
    return ""


def _own_container() -> str | None:
    """The id of the container that we run in; None where we run in none.

    Docker mounts these files from a folder of this name, under both versions of cgroups and on any network.
    """
    for line in Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines():
        root, mounted_at = line.split()[3:5]
        found = re.search(r"/([0-9a-f]{64})/", root)
        if found and mounted_at in ("/etc/hostname", "/etc/hosts", "/etc/resolv.conf"):
            return found[1]
    return None


async def _last_event(engine: Docker, container_id: str, of_last_s: float) -> dict[str, Any] | None:
    """The newest of what the engine remembers of its life."""
    now = time.time()
    events = engine.events.subscribe(  # type: ignore[no-untyped-call]
        since=f"{now - of_last_s:.6f}",
        until=f"{now:.6f}",
        filters=json.dumps({"container": [container_id], "event": ["kill", "die", "start"]}),
    )
    last = None
    while (event := await events.get()) is not None:
        last = event
    return last


def _why_not(state: Mapping[str, Any], after_s: int) -> str:
    if state["Restarting"]:
        return f"after {after_s} s it still ends again and again, with exit code {state['ExitCode']}"
    tries = (state.get("Health") or {}).get("Log") or [{}]
    said = next((line for line in reversed(str(tries[-1].get("Output", "")).splitlines()) if line.strip()), "")
    says = f", which says: {one_line(said)}" if said else ""
    return f"after {after_s} s its health check still fails{says}"


SERVICE = DockerService

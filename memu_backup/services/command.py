"""Whatever two commands can stop and start: a script of one's own, a virtual machine, a database's own tool."""

from __future__ import annotations

import asyncio
import shutil
import time
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from memu_backup import process
from memu_backup.errors import ServiceError
from memu_backup.services import ServiceSettings, Unit

_POLL_S = 0.5

Argv = Annotated[tuple[Annotated[str, Field(min_length=1)], ...], Field(min_length=1)]


class CommandSettings(ServiceSettings):
    kind: Literal["command"]
    stop: Argv = Field(description="the program that stops it, and what it is given; no shell reads it")
    start: Argv = Field(description="the program that starts it; what it leaves running must not hold its output")
    running: Argv | None = Field(
        default=None, description="ends with exit status 0 while it runs; without it, it counts as running"
    )
    timeout_s: int = Field(default=120, ge=1, description="how long each may take; then it is killed")


class CommandService:
    """One unit. Where ``running`` is not given, the two commands must bear with being run twice."""

    kind: ClassVar[str] = "command"
    Settings: ClassVar[type[ServiceSettings]] = CommandSettings

    def __init__(self, name: str, settings: CommandSettings) -> None:
        self.name = name
        self._settings = settings

    async def check(self) -> list[str]:
        s = self._settings
        for argv in filter(None, (s.stop, s.start, s.running)):
            if shutil.which(argv[0]) is None:
                raise ServiceError(
                    f"The program {argv[0]} is not there, or this user may not run it, so service {self.name} can be "
                    f"neither stopped nor started. Correct services.{self.name}; the program needs its whole path."
                )
        await self._runs()
        return []

    async def running(self) -> list[Unit]:
        return [Unit(self.name, self.name)] if await self._runs() else []

    async def _runs(self, unless_told: bool = True) -> bool:
        if self._settings.running is None:
            return unless_told
        return (await self._run("tells whether it runs", self._settings.running)).returncode == 0

    async def runs(self, unit: Unit) -> bool:  # noqa: ARG002  there is only one
        return await self._runs(unless_told=False)

    async def stop(self, unit: Unit) -> None:
        if not await self._runs():
            return
        done = await self._run("stops it", self._settings.stop)
        if done.returncode != 0 or await self._runs(unless_told=False):
            raise ServiceError(
                f"Service {unit.name} was not stopped, so its data does not hold still: "
                f"{self._why(done, 'still runs')}. Correct services.{self.name}.stop."
            )

    async def start(self, unit: Unit) -> None:
        if await self._runs(unless_told=False):
            return
        until = time.monotonic() + self._settings.timeout_s
        done = await self._run("starts it", self._settings.start)
        while done.returncode == 0:
            if await self._runs():
                return
            if time.monotonic() >= until:
                break
            await asyncio.sleep(_POLL_S)
        raise ServiceError(
            f"Service {unit.name} did not come up again: {self._why(done, 'does not run')}. "
            f"Start it by hand, and correct services.{self.name}.start."
        )

    def _why(self, done: process.Completed, otherwise: str) -> str:
        if done.returncode == 0:
            return f"{done.argv[0]} went well, but it {otherwise}"
        return f"{done.argv[0]} says {done.last_error_line}"

    async def _run(self, does: str, argv: tuple[str, ...]) -> process.Completed:
        try:
            return await process.run(argv, timeout_s=self._settings.timeout_s)
        except TimeoutError:
            why = f"was not done after {self._settings.timeout_s} s"
        except OSError as error:
            why = f"cannot be run ({error.strerror})"
        raise ServiceError(f"For service {self.name} the program {argv[0]}, which {does}, {why}. Correct its settings.")


SERVICE = CommandService

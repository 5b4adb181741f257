"""Units of systemd, by systemctl(1). What would start a unit again by itself (a socket, a timer, a unit that wants it)
is to be named beside it, or it is told afterwards that it ran in between.
"""

from __future__ import annotations

import asyncio
import time
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from memu_backup import process
from memu_backup.errors import ServiceError
from memu_backup.services import ServiceSettings, Unit

_ASK_S = 30.0
_POLL_S = 0.2

_ON = frozenset({"active", "activating", "reloading"})

_STEADY_S = 1.0
"""A simple service counts as active as soon as it was forked, also where it ends at once."""

Name = Annotated[str, Field(min_length=1, pattern=r"^[A-Za-z0-9:_.@\\][A-Za-z0-9:_.@\\-]*$")]


class SystemdSettings(ServiceSettings):
    kind: Literal["systemd"]
    units: tuple[Name, ...] = Field(min_length=1, description="in the order in which they are stopped")
    timeout_s: int = Field(default=120, ge=1, description="how long one may take to stop, or to come up again")


class SystemdService:
    """One unit of ours a unit of systemd; they are started in the opposite order."""

    kind: ClassVar[str] = "systemd"
    Settings: ClassVar[type[ServiceSettings]] = SystemdSettings

    def __init__(self, name: str, settings: SystemdSettings) -> None:
        self.name = name
        self._settings = settings

    async def check(self) -> list[str]:
        warnings = []
        for unit in self._settings.units:
            told = await self._show(unit)
            if told["LoadState"] == "not-found":
                raise ServiceError(
                    f"systemd knows no unit {unit}, so for service {self.name} nothing would be stopped. "
                    f"Correct services.{self.name}.units; those there are tells: systemctl list-units"
                )
            if told["ActiveState"] == "failed":
                warnings.append(f"{unit} (service {self.name}) has failed; look at why: systemctl status {unit}")
        return warnings

    async def running(self) -> list[Unit]:
        units = self._settings.units
        return [Unit(unit, unit, len(units) - n) for n, unit in enumerate(units) if await self._is_on(unit)]

    async def runs(self, unit: Unit) -> bool:
        return await self._is_on(unit.id)

    async def stop(self, unit: Unit) -> None:
        done = await self._systemctl("stop", unit.id)
        if done.returncode != 0 or await self._is_on(unit.id):
            raise ServiceError(
                f"Unit {unit.name} of service {self.name} was not stopped, so its data does not hold still: "
                f"{self._why(done, 'it still runs')}. Look at it: systemctl status {unit.name}"
            )

    async def start(self, unit: Unit) -> None:
        """A unit that waits for something, as one with ``Type=notify`` does, is waited for by systemctl itself."""
        done = await self._systemctl("start", unit.id)
        until = time.monotonic() + _STEADY_S
        while done.returncode == 0 and await self._is_on(unit.id):
            if time.monotonic() >= until:
                return
            await asyncio.sleep(_POLL_S)
        # One that does its work and ends, and was caught at it before, has come up and gone.
        if done.returncode == 0 and (await self._show(unit.id))["Result"] == "success":
            return
        raise ServiceError(
            f"Unit {unit.name} of service {self.name} did not come up again: {self._why(done, 'it ended at once')}. "
            f"Look at what it says: journalctl -u {unit.name}"
        )

    @staticmethod
    def _why(done: process.Completed, otherwise: str) -> str:
        return done.last_error_line.rstrip(".") if done.returncode != 0 else otherwise

    async def _is_on(self, unit: str) -> bool:
        return (await self._show(unit))["ActiveState"] in _ON

    async def _show(self, unit: str) -> dict[str, str]:
        wanted = ("LoadState", "ActiveState", "Result")
        done = await self._systemctl("show", f"--property={','.join(wanted)}", unit, limit_s=_ASK_S)
        told = dict(line.partition("=")[::2] for line in done.stdout.decode(errors="replace").splitlines())
        if done.returncode != 0 or "ActiveState" not in told:
            raise ServiceError(
                f"systemd does not tell of unit {unit} ({done.last_error_line.rstrip('.')}), so service {self.name} "
                "can be neither stopped nor started. Does systemd run here, and is this user root?"
            )
        return {name: told.get(name, "") for name in wanted}

    async def _systemctl(self, verb: str, *words: str, limit_s: float | None = None) -> process.Completed:
        limit_s = limit_s or self._settings.timeout_s
        argv = ["systemctl", "--no-ask-password", "--no-pager", verb, *words]
        try:
            return await process.run(argv, env={"LC_ALL": "C"}, timeout_s=limit_s)
        except TimeoutError:
            raise ServiceError(
                f"systemctl {verb} {words[-1]} was not done after {limit_s:g} s (service {self.name}). "
                f"Look at it: systemctl status {words[-1]}"
            ) from None
        except OSError as error:
            raise ServiceError(
                f"systemctl cannot be run ({error.strerror}), so service {self.name} can be neither stopped nor "
                "started. Is this a machine with systemd?"
            ) from error


SERVICE = SystemdService

"""What is stopped while a backup is made and started again after it: one file a kind.

A module in this folder that defines ``SERVICE`` is a kind; nothing else has to know of it. A service of the settings
may be many things that run (a whole compose project); each is a ``Unit``.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Protocol

from pydantic import BaseModel, ConfigDict


class ServiceSettings(BaseModel):
    """What every ``[services.NAME]`` table may hold: nothing yet but what its kind wants."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)


@dataclass(frozen=True, slots=True)
class Unit:
    """One thing that runs. ``id`` is what it is called now, ``name`` also what it is called when it was made anew.
    Those of one service with the same ``rank`` do not need each other, and are stopped and started at once.

    All of it is plain: it is written down before anything is stopped, and read by whoever starts it again.
    """

    id: str
    name: str
    rank: int = 0


class Service(Protocol):
    """Something that can be stopped and started. Made from its name and its settings, touches nothing until asked."""

    kind: ClassVar[str]
    Settings: ClassVar[type[ServiceSettings]]
    name: str

    def __init__(self, name: str, settings: Any) -> None: ...

    async def check(self) -> list[str]:
        """Is everything there that a stop and a start will need? Changes nothing.

        Returns warnings, a sentence each. Raises ServiceError with the sentence for the person who must act.
        """
        ...

    async def running(self) -> list[Unit]:
        """What of it runs now, in the order in which it has to be stopped: by rank, first what depends on others.

        What was switched off by somebody is not in it, and neither is what could not be started again. Raises
        ServiceError.
        """
        ...

    async def stop(self, unit: Unit) -> None:
        """Returns when it is stopped; one that is off already or gone is no error. Raises ServiceError.

        Cancelled, it leaves open whether the unit will stop yet; ``start`` bears with that.
        """
        ...

    async def runs(self, unit: Unit) -> bool:
        """Whether it runs although it was stopped; False where that cannot be told. Raises ServiceError."""
        ...

    async def start(self, unit: Unit) -> None:
        """Returns when it runs and is well; one that does so already is no error, and is left alone.

        Raises ServiceError with one sentence: what did not come up, why, and what to do.
        """
        ...


@cache
def kinds() -> Mapping[str, type[Service]]:
    """Every kind of service there is, by name."""
    modules = (importlib.import_module(f"{__name__}.{m.name}") for m in pkgutil.iter_modules(__path__))
    return {m.SERVICE.kind: m.SERVICE for m in modules if hasattr(m, "SERVICE")}

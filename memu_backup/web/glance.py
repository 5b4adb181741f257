"""How things stand, for many who ask at once: looked at once a second at most, and anew where something has ended."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

from memu_backup.manager import Manager
from memu_backup.model import StatusReport

_FRESH_S = 1.0


class Glance:
    """``_looking`` is the look that all share who ask meanwhile."""

    def __init__(self, manager: Manager) -> None:
        self._manager = manager
        self._looking: asyncio.Task[Mapping[str, StatusReport]] | None = None
        self._begun_s = 0.0
        self._then: tuple[str, ...] = ()

    def forget(self) -> None:
        """Somebody has just changed how things stand, and looks next."""
        self._looking = None

    async def reports(self) -> Mapping[str, StatusReport]:
        """As ``Standing.reports_in_full``."""
        now_s, now = time.monotonic(), tuple(f"{a.id} {a.outcome}" for a in self._manager.under_way.all())
        if self._looking is None or now_s - self._begun_s > _FRESH_S or now != self._then:
            self._begun_s, self._then = now_s, now
            self._looking = asyncio.create_task(self._manager.standing.reports_in_full(), name="a glance")
        return await asyncio.shield(self._looking)

"""What everything that is asked over HTTP is answered with."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from dataclasses import dataclass
from typing import Any

from memu_backup.clock import Clock
from memu_backup.manager import Manager
from memu_backup.web.glance import Glance
from memu_backup.web.patience import Patience

Start = Callable[[Coroutine[Any, Any, None], str], asyncio.Task[None]]
"""Lets something run on its own, under a name; it ends with the service."""


@dataclass(frozen=True, slots=True)
class Desk:
    manager: Manager
    glance: Glance
    patience: Patience
    start: Start
    clock: Clock

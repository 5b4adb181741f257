"""Versions, and what the user who asks may do."""

from __future__ import annotations

import asyncio
import os
import platform
import pwd
from contextlib import suppress
from typing import Protocol, runtime_checkable

from memu_backup import __version__
from memu_backup.checks import Finding, found
from memu_backup.checks.places import writable
from memu_backup.config import Config
from memu_backup.errors import MemuError


@runtime_checkable
class _Uses(Protocol):
    """A kind of source or service that works by programs of others."""

    async def programs(self) -> list[str]:
        """Which ones, with their versions. Raises MemuError."""
        ...


def versions() -> Finding:
    return Finding("memu-backup", True, f"{__version__}, with Python {platform.python_version()}")


async def programs(config: Config) -> list[Finding]:
    """Of what is not there its source or service tells."""
    uses = [*map(config.source, config.sources), *map(config.service, config.services)]
    told: list[str] = []
    for one in uses:
        if isinstance(one, _Uses):
            with suppress(MemuError):
                told += await one.programs()
    return [Finding("programs", True, "; ".join(dict.fromkeys(told)))] if told else []


async def rights(config: Config) -> Finding:
    return await found("rights", _rights(config))


async def _rights(config: Config) -> str:
    no = "so neither keys nor what was stopped can be kept there"
    free = await asyncio.to_thread(writable, config.state_dir, no)
    who = "root." if os.geteuid() == 0 else f"{_user()}, who is not root; is that the user of the service, too?"
    return f"looked at as {who} Own state in {config.state_dir}: {free}"


def _user() -> str:
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError:
        return f"user {os.geteuid()}"

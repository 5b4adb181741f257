"""What ``check`` looks at, one file for each part of it. Nothing is changed."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass

from memu_backup.errors import MemuError, SettingsError


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of a check: what was looked at, whether it is as it should be, and a sentence; if not, what to do."""

    what: str
    good: bool
    says: str


async def found(what: str, looking: Awaitable[str]) -> Finding:
    """What ``looking`` says, or why it cannot."""
    try:
        return Finding(what, True, await looking)
    except SettingsError as error:
        return Finding(what, False, "; ".join(error.problems))
    except MemuError as error:
        return Finding(what, False, str(error))

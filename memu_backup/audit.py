"""Who did what: one line for one act, that it began and how it ended, so that a kill leaves a trace too."""

from __future__ import annotations

import asyncio
import logging
import os
import pwd
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace

from memu_backup.clock import Clock
from memu_backup.errors import HistoryAway, LockHeld, UsageError
from memu_backup.history import History
from memu_backup.model import AuditEvent

log = logging.getLogger(__name__)

_PATIENCE_S = 3.0
"""For the audit of something that was cancelled; it is spooled at once, Postgres may not answer."""


@dataclass(frozen=True, slots=True)
class Asker:
    """Who wants something, for the audit. ``origin`` is ``cli``, ``chat``, ``web`` or ``scheduler``."""

    actor: str
    origin: str


def at_the_terminal() -> Asker:
    """Whoever typed the command, also behind sudo."""
    user = os.environ.get("SUDO_USER", "") if os.geteuid() == 0 else ""
    if not user:
        try:
            user = pwd.getpwuid(os.getuid()).pw_name
        except KeyError:  # in a container a user may have no name
            user = f"user {os.getuid()}"
    return Asker(user, "cli")


SCHEDULER = Asker("memu-backup", "scheduler")


@dataclass(slots=True)
class Deed:
    """What the audit will tell of something once it has ended."""

    subject: str
    outcome: str = "done"


class Audit:
    """Writes into ``backup_audit`` what is done on ``host``."""

    def __init__(self, history: History, host: str, clock: Clock) -> None:
        self._history = history
        self._host = host
        self._clock = clock

    @asynccontextmanager
    async def act(self, asker: Asker, action: str, subject: str) -> AsyncIterator[Deed]:
        """One line for what is done meanwhile: that it began, in case we are killed, and in its place how it ended."""
        event = self._event(asker, action, subject, "begun")
        deed = Deed(subject)
        try:
            try:
                await self._history.announce(event)
            except Exception as error:  # said at the end, if it is still so
                log.debug("That this begins could not be written down.", exc_info=error)
            yield deed
        except (LockHeld, UsageError):
            deed.outcome = "refused"
            raise
        except asyncio.CancelledError:
            deed.outcome = "interrupted"
            raise
        except BaseException:
            deed.outcome = "failed"
            raise
        finally:
            await self._write(replace(event, subject=deed.subject, outcome=deed.outcome))

    async def note(self, asker: Asker, action: str, subject: str, outcome: str) -> None:
        """One line for what was done already."""
        await self._write(self._event(asker, action, subject, outcome))

    def _event(self, asker: Asker, action: str, subject: str, outcome: str) -> AuditEvent:
        return AuditEvent(
            event_id=str(uuid.uuid4()),
            created_at=self._clock(),
            host=self._host,
            actor=asker.actor,
            origin=asker.origin,
            action=action,
            subject=subject,
            outcome=outcome,
        )

    async def _write(self, event: AuditEvent) -> None:
        """What was done is done: that it cannot be written down is a warning. Bounded, as it also follows a Ctrl-C."""
        try:
            async with asyncio.timeout(_PATIENCE_S):
                await self._history.audit(event)
        except TimeoutError:
            log.info("The audit entry waits in the spool.")
        except HistoryAway as error:
            log.warning("Who did this could not be written down: %s", error)
        except Exception as error:
            log.warning("Who did this could not be written down (%s).", type(error).__name__, exc_info=error)

"""Has what is stored re-read as it comes due, by one at a time on this machine, and tells how far that is."""

from __future__ import annotations

from collections.abc import Sequence

from memu_backup import coverage, files, lock, reread
from memu_backup.anywhere import nobody_watches
from memu_backup.audit import Asker, Audit
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.coverage import Stored
from memu_backup.errors import UsageError
from memu_backup.history import History
from memu_backup.model import Coverage
from memu_backup.reread import Reread
from memu_backup.stores import OnProgress, Store


class Rereading:
    """What lies in ``stores``, within so many days as the settings say."""

    def __init__(self, config: Config, history: History, audit: Audit, stores: Sequence[Store], clock: Clock) -> None:
        self._config = config
        self._history = history
        self._audit = audit
        self._stores = stores
        self._clock = clock
        self._book = reread.Book(config.state_dir)

    @property
    def on(self) -> bool:
        return self._config.verification.every_days > 0

    async def read(self, asker: Asker, on_progress: OnProgress = nobody_watches) -> list[Reread]:
        """Re-read what is due now, see ``reread.read``. Raises UsageError where it is switched off, LockHeld where
        somebody does it already, StoreError where this user may not.
        """
        days = self._every_days()
        folder = self._config.state_dir / "rereading"
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as error:
            raise files.storing(error, folder) from error
        with lock.held(folder, "re-read what is stored"):
            there = await self._stored()
            wanted = coverage.due(there, self._clock(), days)
            if not wanted:
                return []
            async with self._audit.act(asker, "re-read", "what is due") as deed:
                host, book = self._config.host, self._book
                found = await reread.read(wanted, there, host, self._history, book, on_progress, self._clock)
                damaged = sorted({one.backup.name for one in found if one.verdict.problems})
                deed.outcome = f"damaged: {', '.join(damaged)}" if damaged else "good"
                return found

    async def due(self) -> list[Stored]:
        """What ``read`` would read now. Raises UsageError where it is switched off."""
        return coverage.due(await self._stored(), self._clock(), self._every_days())

    async def coverage(self) -> Coverage | None:
        """How much of what is stored was re-read in time; None where it is switched off."""
        return coverage.coverage(await self._stored(), self._clock(), self._every_days()) if self.on else None

    async def _stored(self) -> list[Stored]:
        return await reread.stored(self._stores, self._history, self._book, self._clock)

    def _every_days(self) -> int:
        if self.on:
            return self._config.verification.every_days
        raise UsageError(
            f"Nothing is ever due: every_days is 0 below [verification] in {self._config.path}. To re-read one backup, "
            "type: memu-backup verify NAME"
        )

"""What is put back to where it lives, undone, finished and released: who asked for it is written down."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING

from memu_backup import restores
from memu_backup.audit import Asker, Audit
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.history import History
from memu_backup.model import Backup, SourceSummary
from memu_backup.restores import Restore
from memu_backup.stores import OnProgress, Store

if TYPE_CHECKING:
    from memu_backup.checks import Finding
    from memu_backup.exchange import House, OnStep, Settled
    from memu_backup.put_back import Planned, Returned


class Returns:
    """Of the sources of these settings. What does the long work is imported when it is asked for."""

    def __init__(self, config: Config, history: History, audit: Audit, clock: Clock) -> None:
        self._config = config
        self._history = history
        self._audit = audit
        self._clock = clock
        self.folder = config.state_dir / "restores"

    def _house(self) -> House:
        from memu_backup.exchange import House

        config = self._config
        return House(
            sources={name: config.source(name, self._history) for name in config.sources},
            services=tuple(config.service(name) for name in config.services),
            journals=config.state_dir / "stopped",
            kept=self.folder,
            scratch=config.state_dir / "returning",
            before_start={name: source.before_start for name, source in config.sources.items()},
            afterwards={name: source.after_restore for name, source in config.sources.items()},
        )

    async def plan(self, store: Store, stored: Backup, wanted: Sequence[str], *, trusted: bool) -> Planned:
        """See ``put_back.plan``."""
        from memu_backup import put_back

        return await put_back.plan(self._house(), store, stored, wanted, trusted=trusted)

    async def put_back(self, planned: Planned, asker: Asker, on_step: OnStep, on_progress: OnProgress) -> Returned:
        """See ``put_back.carry_out``."""
        from memu_backup import put_back

        names = ", ".join(step.source.name for step in planned.steps)
        async with self._audit.act(asker, "put back", f"{names} from {planned.backup.name}"):
            return await put_back.carry_out(self._house(), planned, self._clock(), on_step, on_progress)

    async def told(self, store: Store, stored: Backup) -> dict[str, SourceSummary]:
        """See ``put_back.told``."""
        from memu_backup import put_back

        return await put_back.told(self._house(), store, stored)

    async def look(
        self, told: Mapping[str, SourceSummary], made: Restore, stopped: Sequence[str] = ()
    ) -> AsyncIterator[Finding]:
        """See ``checklist.look``."""
        from memu_backup import checklist

        services = self._house().services
        async for finding in checklist.look(self._config, services, told, made.swaps, stopped, self._clock):
            yield finding

    async def undo(self, stamp: str | None, asker: Asker, on_step: OnStep) -> Settled:
        """See ``exchange.undo``."""
        from memu_backup import exchange

        async with self._audit.act(asker, "undo restore", stamp or "latest") as deed:
            done = await exchange.undo(self._house(), stamp, on_step)
            deed.subject = done.made.backup
            return done

    async def resume(self, asker: Asker, on_step: OnStep) -> Settled:
        """See ``exchange.resume``."""
        from memu_backup import exchange

        async with self._audit.act(asker, "resume restore", "") as deed:
            done = await exchange.resume(self._house(), on_step)
            deed.subject = done.made.backup
            return done

    async def release(self, stamp: str | None, asker: Asker) -> Restore:
        """See ``exchange.release``."""
        from memu_backup import exchange

        async with self._audit.act(asker, "release restore", stamp or "latest") as deed:
            made = await exchange.release(self._house(), stamp)
            deed.subject = made.backup
            return made

    async def kept(self) -> list[Restore]:
        """Those of which what they replaced is kept, the newest first. Raises RestoreError."""
        return await asyncio.to_thread(restores.read, self.folder)

    def half_way(self) -> Restore | None:
        """One that was interrupted while names were exchanged, if there is one. Blocks. Raises RestoreError."""
        return next((one for one in restores.read(self.folder) if one.state in restores.HALF_WAY), None)

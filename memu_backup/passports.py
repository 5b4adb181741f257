"""Which drives get copies, what they are called and where they are kept, as people say it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

from memu_backup import messages
from memu_backup.audit import Asker, Audit
from memu_backup.clock import Clock
from memu_backup.drives import mounting, rules, udev
from memu_backup.drives.known import Known
from memu_backup.drives.udev import Plug
from memu_backup.errors import HistoryAway, UsageError
from memu_backup.history import History
from memu_backup.model import Drive

log = logging.getLogger(__name__)


class Passports:
    """What is known of each drive lies in ``folder``, for the time when Postgres is away, and in the history.

    ``ours`` are the places that this machine itself needs: a disk with one of them is no drive. ``on_change`` is called
    when somebody said something of one.
    """

    def __init__(
        self, folder: Path, host: str, ours: Callable[[], Sequence[Path]], history: History, audit: Audit, clock: Clock
    ) -> None:
        self.folder = folder
        self._ours = ours
        self._history = history
        self._audit = audit
        self._clock = clock
        self.on_change: Callable[[], None] = lambda: None
        self.known = Known(folder / "drives.json", host)

    async def trust(self, name: str, asker: Asker, *, called: str = "", kept_at: str = "") -> Drive:
        """From now on it gets copies; what is plugged in by that name gets a mark of its own, whatever it was before.

        ``name`` is as people know it, see ``Known.named``. Raises UsageError.
        """
        drive = await asyncio.to_thread(self._named, name)
        plugs = [plug for plug in await asyncio.to_thread(self._present) if plug.fs_uuid == drive.fs_uuid]
        for plug in plugs:
            await asyncio.to_thread(self._must_be_fit, plug)

        def trusted(drive: Drive) -> Drive:
            return replace(
                drive,
                trusted_at=self._clock(),
                marker="" if plugs else drive.marker,
                name=udev.fit_to_show(called) or drive.name,
                kept_at=udev.fit_to_show(kept_at) or drive.kept_at,
            )

        return await self._changed(drive, asker, "trust drive", trusted)

    async def rename(self, name: str, asker: Asker, *, called: str | None, kept_at: str | None) -> Drive:
        """What people call it, and where it is kept. Raises UsageError."""

        def renamed(drive: Drive) -> Drive:
            return replace(
                drive,
                name=drive.name if called is None else udev.fit_to_show(called),
                kept_at=drive.kept_at if kept_at is None else udev.fit_to_show(kept_at),
            )

        return await self._changed(await asyncio.to_thread(self._named, name), asker, "rename drive", renamed)

    async def forget(self, name: str, asker: Asker) -> Drive:
        """It gets no copies any more, and is asked about anew; what lies on it stays. Raises UsageError."""
        drive = await asyncio.to_thread(self._named, name)
        async with self._audit.act(asker, "forget drive", drive.called):
            await asyncio.to_thread(self.known.forget, drive.drive_id)
            await self.write_down(replace(drive, trusted_at=None))
            await asyncio.to_thread(rules.publish, self.known.drives())
        self.on_change()
        return drive

    async def _changed(self, drive: Drive, asker: Asker, what: str, how: Callable[[Drive], Drive]) -> Drive:
        async with self._audit.act(asker, what, drive.called):
            drive = await asyncio.to_thread(self.known.change, drive.drive_id, how)
            await self.write_down(drive)
            await asyncio.to_thread(rules.publish, self.known.drives())
        self.on_change()
        return drive

    def look_around(self) -> list[Plug]:
        """What is plugged in; what fits is known from now on, also where no service runs."""
        found = self._present()
        for plug in found:
            if plug.fs_uuid and not mounting.unfit(plug) and not self.is_the_machines(plug):
                self.known.seen(plug, self._clock())
        return found

    def _named(self, name: str) -> Drive:
        """Raises UsageError."""
        self.look_around()
        return self.known.named(name)

    def _present(self) -> list[Plug]:
        try:
            return udev.present()
        except ImportError:
            return []

    def is_the_machines(self, plug: Plug) -> bool:
        """Whether it is a disk of this machine itself, see ``mounting``. Blocks."""
        return mounting.belongs_to_the_machine(plug, self._ours())

    def _must_be_fit(self, plug: Plug) -> None:
        if why := mounting.unfit(plug):
            raise UsageError(f"{plug.label or plug.model or plug.node} cannot get copies. {why}")
        if self.is_the_machines(plug):
            raise UsageError(
                f"{plug.label or plug.node} belongs to this server, which mounts it by itself. A drive for copies is "
                "one that comes and goes; plug in another."
            )

    async def learn(self) -> None:
        """Take over what the history knows, where this machine has lost its own list; and write udev's rules anew."""
        if await asyncio.to_thread(self.known.lost):
            try:
                drives = await self._history.drives()
            except HistoryAway:
                drives = []
            if drives:
                await asyncio.to_thread(self.known.put, *drives)
        await asyncio.to_thread(rules.publish, self.known.drives())

    def plugged(self, name: str | None) -> Plug:
        """A trusted drive that is plugged in, the only one unless ``name`` says which. Raises UsageError."""
        trusted = {d.fs_uuid: d for d in self.known.drives() if d.trusted_at}
        if name is not None:
            drive = self._named(name)
            if drive.trusted_at is None:
                raise UsageError(
                    f"Nobody has approved the drive {drive.called}, so nothing was written on it. To approve it: "
                    f"memu-backup usb trust {drive.fs_uuid}"
                )
            trusted = {drive.fs_uuid: drive}
        found = [plug for plug in self._present() if plug.fs_uuid in trusted]
        if len(found) == 1:
            return found[0]
        if len({plug.fs_uuid for plug in found}) == 1:
            raise UsageError(messages.drive_twice(next(iter(trusted.values()))))
        if found:
            raise UsageError(f"Which drive? There are {', '.join(trusted[p.fs_uuid].called for p in found)}.")
        raise UsageError(
            "No drive that was approved is plugged in. See what is known with: memu-backup usb list; or copy to a "
            "folder: memu-backup usb copy --to FOLDER"
        )

    def called(self, plug: Plug) -> str:
        """What people call a drive that is plugged in."""
        drive = self.known.of(plug)
        return drive.called if drive else plug.label or str(plug.node)

    async def write_down(self, drive: Drive) -> None:
        """Into the history, where that can be reached now or later."""
        try:
            await self._history.know(drive)
        except HistoryAway as error:
            log.warning("What is known of the drive %s could not be written down: %s", drive.called, error)

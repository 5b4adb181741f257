"""What happens when a drive is plugged in: known ones get the newest backup, about new ones the family is asked."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import partial
from typing import TypeVar

from memu_backup import messages
from memu_backup.audit import SCHEDULER
from memu_backup.clock import Clock
from memu_backup.drives import mounting
from memu_backup.drives.udev import Plug, Watch
from memu_backup.errors import DriveGone, LockHeld, MemuError
from memu_backup.manager import Manager
from memu_backup.model import Copied, Drive, Progress
from memu_backup.visits import Visit

log = logging.getLogger(__name__)

T = TypeVar("T")

_FIRST_GUESS = 20_000_000
"""Bytes a second, written and read back, of a drive that was never copied to."""

_SETTLE_S = 1.5
"""A drive that was pulled gives errors a little before udev says so."""

_PULLED = "It was pulled out before the copy was done."

_MOST_ASKED, _ASKED_WITHIN = 6, timedelta(hours=1)
"""So many new drives the room is asked about."""

_AGAIN_S = 5.0
"""How often to look whether another copy, or a backup, or somebody else's use of the drive is over."""


@dataclass(slots=True)
class _Guest:
    """A drive that is plugged in, what is being done with it, and the ``newest`` backups that were brought to it."""

    plug: Plug
    task: asyncio.Task[None] | None = None
    newest: frozenset[str] = frozenset()
    trusted_at: datetime | None = None
    copying: bool = False
    twice: bool = False


class Plugged:
    """``wake`` lets the teller look; ``run`` is to run as long as the service does."""

    def __init__(self, manager: Manager, wake: Callable[[], None], clock: Clock) -> None:
        self._manager = manager
        self._passports, self._visits = manager.passports, manager.visits
        self._wake = wake
        self._clock = clock
        self._changed = asyncio.Event()
        self._guests: dict[Plug, _Guest] = {}
        self._one_at_a_time = asyncio.Lock()
        self._asked: list[datetime] = []

    def look(self) -> None:
        """Something has changed: a drive, what is known of one, or there is a new backup."""
        self._changed.set()

    async def run(self) -> None:
        """Until cancelled."""
        try:
            await self._passports.learn()
            async with Watch(self.look) as watch:
                while True:
                    await self._changed.wait()
                    self._changed.clear()
                    try:
                        await self._round(watch.plugs)
                    except Exception as error:  # a drive may be plugged in tomorrow, too
                        known = isinstance(error, OSError | MemuError)
                        log.error("What is plugged in: %s", error, exc_info=None if known else error)
        except ImportError:
            log.info("Drives that are plugged in are not heard of: this machine has no libudev.")
        finally:
            tasks = [guest.task for guest in self._guests.values() if guest.task]
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)

    async def _round(self, plugs: tuple[Plug, ...]) -> None:
        for plug in [known for known in self._guests if known not in plugs]:
            await self._leaves(self._guests.pop(plug))
        for plug in plugs:
            if plug not in self._guests:
                self._guests[plug] = _Guest(plug)
                log.info("Plugged in: %s (%s, %s).", plug.label or plug.model, plug.filesystem, plug.node)
        for guest in list(self._guests.values()):
            if guest.task is None or guest.task.done():
                await self._attend(guest)

    async def _leaves(self, guest: _Guest) -> None:
        log.info("Pulled out: %s (%s).", guest.plug.label or guest.plug.model, guest.plug.node)
        if guest.task:
            guest.task.cancel()
        if guest.copying and (drive := await asyncio.to_thread(self._passports.known.of, guest.plug)):
            # Now: a child that waits for a drive which is gone may take seconds to end.
            await self._tell(drive, messages.drive_failed(drive, _PULLED, DriveGone.code))

    # --- who is it -----------------------------------------------------------------------------------------------

    async def _attend(self, guest: _Guest) -> None:
        plug = guest.plug
        if await asyncio.to_thread(self._passports.is_the_machines, plug):
            return
        if not plug.fs_uuid:
            log.info("%s has no UUID by which it could be known again; it is left alone.", plug.node)
            return
        drive = await asyncio.to_thread(self._passports.known.seen, plug, self._clock())
        twins = [other for other in self._guests.values() if other.plug.fs_uuid == plug.fs_uuid]
        if len(twins) > 1:
            if drive.trusted_at and not any(twin.twice for twin in twins):
                await self._tell(drive, messages.drive_twice(drive))
            for twin in twins:
                twin.twice = True
                if twin.task:
                    twin.task.cancel()
            return
        guest.twice = False
        if drive.trusted_at is None:
            drive = await self._approved(drive, plug)
        if drive.trusted_at:
            if drive.trusted_at != guest.trusted_at:  # approved just now, or anew: what failed before may go well
                guest.trusted_at, guest.newest = drive.trusted_at, frozenset()
            await self._serve_if_needed(guest, drive)

    async def _approved(self, drive: Drive, plug: Plug) -> Drive:
        """As the settings have it; the family is asked once."""
        usb = self._manager.config.usb
        ask = usb.approve == "ask" and drive.drive_id not in self._passports.known.news()
        listed = plug.fs_uuid.casefold() in map(str.casefold, usb.drives)
        if why := mounting.unfit(plug):
            if ask:
                await self._ask(drive, messages.drive_unfit(drive, why))
        elif usb.approve == "any" or (usb.approve == "listed" and listed):
            return await self._passports.trust(plug.fs_uuid, SCHEDULER)
        elif ask:
            await self._ask(drive, messages.drive_new(drive))
        else:
            log.info("Nobody has approved the drive %s; nothing is written on it.", drive.called)
        return drive

    async def _ask(self, drive: Drive, text: str) -> None:
        """A device that says each minute that it is another one must not fill the room."""
        now = self._clock()
        self._asked = [at for at in self._asked if timedelta() <= now - at < _ASKED_WITHIN]
        if len(self._asked) >= _MOST_ASKED:
            log.warning("The drive %s is not asked about: too many new ones were plugged in.", drive.called)
            return
        self._asked.append(now)
        await self._tell(drive, text)

    # --- what it gets --------------------------------------------------------------------------------------------

    async def _serve_if_needed(self, guest: _Guest, drive: Drive) -> None:
        newest = await self._newest()
        if newest - guest.newest:  # else it was tried already, and went well or will go no better
            guest.newest = newest
            guest.task = asyncio.create_task(self._serve(guest, drive), name=f"the copy to {drive.called}")
            guest.task.add_done_callback(lambda _: self.look())  # what came meanwhile is its own turn

    async def _newest(self) -> frozenset[str]:
        """What is to be copied, by name."""
        try:
            return frozenset(w.archive.name for w in await self._visits.wanted())
        except MemuError as error:
            log.warning("What is to be copied cannot be seen: %s", error)
            return frozenset()

    async def _serve(self, guest: _Guest, drive: Drive) -> None:
        try:
            await self._served(guest, drive)
        except asyncio.CancelledError:
            guest.newest = frozenset()  # a twin may go again
            raise
        except Exception as error:
            log.error("The copy to %s broke.", drive.called, exc_info=error)
            await self._tell(drive, messages.drive_failed(drive, messages.broke(), "drive"))

    async def _served(self, guest: _Guest, drive: Drive) -> None:
        """Copy, and once more where a backup is just being made; then let it go."""
        try:
            visit = await self._copied(guest, drive)
            while await self._backup_under_way():
                await self._tell(drive, messages.drive_more(drive, *_named(visit)))
                while await self._backup_under_way():
                    await asyncio.sleep(_AGAIN_S)
                more = await self._copied(guest, drive)
                visit = more if more.made.copied else visit
        except MemuError as error:
            await self._tell(drive, messages.drive_failed(drive, str(error), error.code))
        else:
            await self._let_go(guest, drive, visit)

    async def _copied(self, guest: _Guest, drive: Drive) -> Visit:
        async def begin(size_bytes: int) -> None:
            if size_bytes:
                seconds = size_bytes / (drive.bytes_per_second or _FIRST_GUESS)
                await self._tell(drive, messages.drive_copying(drive, size_bytes, seconds))

        def watch(_: Progress) -> None:
            return

        async with self._one_at_a_time:
            guest.copying = True
            try:
                visit = await _as_soon_as(partial(self._visits.copy, guest.plug, SCHEDULER, begin, watch))
            except MemuError:
                await asyncio.sleep(_SETTLE_S)  # who is just pulling it out cancels this, and is told that
                raise
            finally:
                guest.copying = False
        guest.newest |= {w.archive.name for w in (*visit.made.copied, *visit.made.there)}
        return visit

    async def _backup_under_way(self) -> bool:
        config = self._manager.config
        return any([await self._manager.at_work(name) for name in config.jobs if config.job(name).to_drives])

    async def _let_go(self, guest: _Guest, drive: Drive, visit: Visit) -> None:
        """Told before it is powered off: to udev that is as if somebody pulled it out."""
        held_by = partial(_as_soon_as, partial(self._visits.held_by, guest.plug))
        held = await held_by()
        await self._tell(drive, messages.drive_done(drive, *_named(visit), held))
        if held:
            while await held_by():
                await asyncio.sleep(_AGAIN_S)
                if await self._newest() - guest.newest:
                    return  # another copy comes first, and tells
            await self._tell(drive, messages.drive_free(drive))
        await self._visits.power_off(guest.plug)

    async def _tell(self, drive: Drive, text: str) -> None:
        log.info("%s", text.replace("\n", " "))
        try:
            await asyncio.to_thread(self._passports.known.tell, drive.drive_id, self._clock(), text)
        except OSError as error:
            log.warning("This could not be noted, so nobody is told: %s", error)
        self._wake()


async def _as_soon_as(work: Callable[[], Awaitable[T]]) -> T:
    """Once nobody copies any more what somebody began at the terminal."""
    while True:
        try:
            return await work()
        except LockHeld as error:
            log.info("%s", error)
            await asyncio.sleep(_AGAIN_S)


def _named(visit: Visit) -> tuple[Sequence[Copied], Sequence[Copied]]:
    return [w.archive for w in visit.made.copied], [w.archive for w in visit.made.there]

"""Lets what a restore has made ready take its place while services stand still; and undoes, finishes or releases it."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from memu_backup import afterwards, restores, standstill, swap
from memu_backup.afterwards import Ran
from memu_backup.errors import RestoreError, SourceError
from memu_backup.files import shown
from memu_backup.replacing import Replacing, TakingRoom
from memu_backup.restores import Restore, State
from memu_backup.services import Service
from memu_backup.sources import Source
from memu_backup.standstill import Still
from memu_backup.swap import Swap
from memu_backup.work import Stop, ended, in_thread

log = logging.getLogger(__name__)

OnStep = Callable[[str], None]
"""Told what is done now, a sentence each."""


@dataclass(frozen=True, slots=True)
class House:
    """What is restored: ``sources`` of the settings by name, the ``services`` that stand still meanwhile, with the
    folder of their ``journals``; the folder of what is ``kept`` of restores, and ``scratch`` for what is unpacked on
    its way into something that is no folder; and what each source wants run before anything is started, and
    ``afterwards``.
    """

    sources: Mapping[str, Source]
    services: tuple[Service, ...]
    journals: Path
    kept: Path
    scratch: Path
    before_start: afterwards.Wanted = field(default_factory=dict)
    afterwards: afterwards.Wanted = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Exchange:
    """Of one restore in a house. Each step is written down before it is done, so that it can be gone on with."""

    house: House
    made: Restore

    async def write(self, state: State) -> None:
        self.made.state = state
        await asyncio.to_thread(restores.write, self.house.kept, self.made)

    @asynccontextmanager
    async def still(self, on_step: OnStep) -> AsyncIterator[Still]:
        """What runs of the services stands still meanwhile. Raises ServiceError."""
        services, spared = self.house.services, frozenset(self.made.spared)
        if services:
            on_step("Stopping what uses it.")
        async with standstill.standstill(services, self.house.journals, self.made.stamp, spared) as still:
            yield still
            if services:
                on_step("Starting what was stopped.")

    async def start_what_is_down(self) -> list[str]:
        """What did not come up, or was left stopped by a kill. Sentences about what does not run."""
        services = {service.name: service for service in self.house.services}
        _, problems = await standstill.recover(services, self.house.journals)
        return problems

    async def forth(self, state: State, *, late: bool = True) -> None:
        """Carry out all of its swaps, also those that were done before; ``state`` says why. What came to lie there
        ``late``, after it was made ready, goes aside with the rest. Raises RestoreError.
        """
        for name, swaps in self.made.swaps.items() if late else ():
            self.made.swaps[name] = await asyncio.to_thread(swap.completed, swaps)
        await self.write(state)
        for name, swaps in self.made.swaps.items():
            source = self._source(name)
            for number, one in enumerate(swaps):
                await source.forth(one)
                swaps[number] = await asyncio.to_thread(swap.noted, one)
        await self.write(restores.ENDS[state])

    async def back(self, *, whole: bool) -> None:
        """The other way round; from now on its swaps are those that undid it. Where not the ``whole`` of it was done,
        what was not exchanged yet is let go. Raises RestoreError.
        """
        state = State.REDOING if self.made.state is State.UNDONE else State.UNDOING
        undoing: dict[str, list[Swap]] = {}
        for name, swaps in reversed(self.made.swaps.items()):  # one may live in what another has replaced
            source, undoing[name] = self._source(name), []
            for one in swaps:
                if undone := await source.back(one, whole=whole):
                    undoing[name].append(undone)
                else:
                    await source.remove(replace(one, old=one.new, new=one.old))
        self.made.swaps, self.made.owed = undoing, list(self.made.swaps)
        await self.forth(state, late=whole)  # of what was never whole, what came meanwhile is still the household's

    async def prelude(self, on_step: OnStep) -> list[Ran]:
        """Run what its sources want while all stands still, now that something else lies there."""
        wanted = afterwards.of(self.house.before_start, self.made.owed)
        return await afterwards.run(wanted, on_step, afterwards.WHILE_STOPPED_S)

    async def follow(self, on_step: OnStep) -> list[Ran]:
        """The same once all is up. Raises RestoreError."""
        if not self.made.owed:
            return []
        wanted = afterwards.of(self.house.afterwards, self.made.owed)
        ran = await afterwards.run(wanted, on_step, afterwards.LIMIT_S)
        self.made.owed = []
        await self.write(self.made.state)
        return ran

    async def discard(self) -> None:
        """Let go what was made ready; nothing of it where the exchange itself is not settled. Raises RestoreError, and
        SourceError where a server cannot be asked: what is in it is let go another time.
        """
        if self.made.state is State.UNDONE:
            await self.release()
        elif self.made.state is State.PREPARING:
            await self._abandon()
            ready = {
                name: [replace(one, old=one.new, new=one.old) for one in all_] for name, all_ in self.made.swaps.items()
            }
            await self._remove(ready)
            await self._forget()

    async def _abandon(self) -> None:
        """What was being made when it was killed, of which no swap tells yet. Raises SourceError."""
        for name in self.made.owed:
            source: object = self.house.sources.get(name)
            if isinstance(source, TakingRoom):
                await source.abandon(self.made.stamp)

    async def release(self) -> None:
        """Let go for good what is kept of it. Raises RestoreError."""
        self.made.owed = []
        await self.write(State.RELEASING)  # of what is there by halves nothing is to be made afterwards
        await self._remove(self.made.swaps)
        await self._forget()

    async def _forget(self) -> None:
        self.made.swaps, self.made.owed = {}, []
        await self.clear_landings()
        await asyncio.to_thread(restores.forget, self.house.kept, self.made)

    async def _remove(self, swaps: Mapping[str, Sequence[Swap]]) -> None:
        for name, some in swaps.items():
            source = self._source(name)
            for one in some:
                await source.remove(one)

    async def clear_landings(self) -> None:
        for landing in self.made.landings:
            await in_thread(partial(shutil.rmtree, landing, ignore_errors=True), Stop())

    def _source(self, name: str) -> Replacing:
        source: object = self.house.sources.get(name)
        if not isinstance(source, Replacing):
            raise RestoreError(
                f"The settings do not know source {shown(name)} any more, so what was exchanged there stays as it is. "
                "Name it there as it was, then try again."
            )
        return source


async def settled(work: Coroutine[Any, Any, None]) -> BaseException | None:
    """Do it to its end, whoever is cancelled meanwhile; and what went wrong with it."""
    task = asyncio.create_task(work)
    await ended(task)
    error = task.exception()
    if error:
        log.error("What was begun could not be put as it was.", exc_info=error)
    return error


# --- afterwards ------------------------------------------------------------------------------------------------------


async def sweep(house: House) -> None:
    """Let go what killed restores had made ready, who had replaced nothing yet; and what is left of a release that was
    killed. Raises RestoreError.
    """
    for made in await asyncio.to_thread(restores.read, house.kept):
        if made.state is State.PREPARING:
            try:
                await Exchange(house, made).discard()
            except SourceError as error:
                log.warning("What a killed restore had begun is still there, and is let go by a later one: %s", error)
        elif made.state is State.RELEASING:
            await Exchange(house, made).release()


@dataclass(frozen=True, slots=True)
class Settled:
    """A restore that was undone or finished, and what ran after it."""

    made: Restore
    ran: Sequence[Ran] = ()


async def undo(house: House, stamp: str | None, on_step: OnStep) -> Settled:
    """All as it was before the newest restore, or the one of that ``stamp``. What was given back is kept in its place,
    unless it was interrupted; of one that was undone, the other way round. Raises UsageError where there is none,
    RestoreError, ServiceError.
    """
    return await _settle(house, stamp, on_step, forward=False)


async def resume(house: House, on_step: OnStep) -> Settled:
    """Finish what was interrupted, be it only what runs afterwards. Raises UsageError where nothing was, RestoreError,
    ServiceError.
    """
    return await _settle(house, None, on_step, forward=True)


async def _settle(house: House, stamp: str | None, on_step: OnStep, *, forward: bool) -> Settled:
    with restores.alone(house.kept):
        made = await asyncio.to_thread(restores.find, house.kept, stamp, half_way=forward)
        restores.must_be_whole(made)
        exchange = Exchange(house, made)
        if made.state is State.PREPARING:
            await exchange.discard()
            if problems := await exchange.start_what_is_down():  # killed while it was stopping what uses it
                raise RestoreError(" ".join(problems))
            return Settled(made)
        async with exchange.still(on_step):
            if made.state in restores.HALF_WAY or not forward:
                await _exchanged(exchange, forward=forward)
            ran = await exchange.prelude(on_step)
        if problems := await exchange.start_what_is_down():
            raise RestoreError(" ".join(problems))
        return Settled(made, ran + await exchange.follow(on_step))


async def _exchanged(exchange: Exchange, *, forward: bool) -> None:
    state = exchange.made.state
    if state in restores.HALF_WAY and (forward or state is not State.EXCHANGING):
        await exchange.forth(state)
    elif state is State.EXCHANGING:  # never whole, and so worth nothing
        await exchange.back(whole=False)
        await exchange.discard()
    else:
        await exchange.back(whole=True)


async def release(house: House, stamp: str | None) -> Restore:
    """What a restore has replaced goes for good. Raises UsageError where there is none, RestoreError."""
    with restores.alone(house.kept):
        made = await asyncio.to_thread(restores.find, house.kept, stamp, half_way=False)
        if made.state in restores.HALF_WAY:
            raise RestoreError(f"The restore of {made.backup} was interrupted half-way. {restores.HOW_TO_SETTLE}")
        if made.state is State.PREPARING:
            await Exchange(house, made).discard()
        else:
            await Exchange(house, made).release()
        return made

"""Lets services stand still while a backup is made, and brings back exactly what ran, whatever happens in between.

Before the first is stopped it is written down which ones run: a journal in ``folder``, fsynced, one file a run. It goes
when all of them run again. Whoever is killed in between leaves it behind, and ``recover`` brings back what it names: at
the start of the service, by ``memu-backup services recover``, and by systemd where the service ends.
"""

from __future__ import annotations

import asyncio
import fcntl
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from itertools import groupby
from pathlib import Path

from memu_backup import lock
from memu_backup.errors import LockHeld, MemuError, ServiceError, StoreError
from memu_backup.files import sync_folder, write_atomically
from memu_backup.services import Service, Unit
from memu_backup.work import ended

log = logging.getLogger(__name__)

_SUFFIX = ".json"

_LOCK_POLL_S = 2.0


@dataclass(slots=True)
class Still:
    """What stands still. ``problems`` are sentences about what did not come up again; ``disturbed`` are those that
    somebody else had started before we did, so that their data may have moved while it was read. ``downtime_s`` is from
    before the first was stopped until the last ran again, or all was tried; None where nothing ran.
    """

    _start: Callable[[], None]
    problems: list[str] = field(default_factory=list)
    disturbed: list[str] = field(default_factory=list)
    downtime_s: float | None = None

    def release(self) -> None:
        """They may run again from now on; from any thread, and more than once."""
        self._start()


_Running = Sequence[tuple[Service, Unit]]
"""What runs, in the order in which it is stopped."""


@asynccontextmanager
async def standstill(
    services: Sequence[Service], folder: Path, run_id: str, spared: Collection[str] = ()
) -> AsyncIterator[Still]:
    """Stop what runs of ``services``, without what has a ``spared`` name, in their order, and start it again in the
    opposite one: as soon as it is released, and at the latest at the end, which waits for it, also when cancelled.

    Raises ServiceError where one could not be stopped or, with nothing stopped, where the journal could not be written.
    """
    loop = asyncio.get_running_loop()
    released = asyncio.Event()

    def release() -> None:
        loop.call_soon_threadsafe(released.set)

    still = Still(release)
    if not services:
        yield still
        return
    with ExitStack() as held:
        await _alone(folder, held)
        ran = [(service, unit) for service in services for unit in await service.running() if unit.name not in spared]
        if not ran:
            yield still
            return
        path = held.enter_context(_journal(folder, run_id, ran))
        starting = asyncio.create_task(_start_when(released, ran, still, path), name="services")
        starting.add_done_callback(lambda _: held.close())  # the next may begin while this one reads on
        try:
            for together in _groups(ran):
                await _stopped(together)
            yield still
        finally:
            released.set()
            # Who is cancelled meanwhile hears of it once they run: nothing is worse than to leave them down.
            cancelled = await ended(starting)
            starting.result()
            if cancelled:
                raise asyncio.CancelledError


async def _alone(folder: Path, held: ExitStack) -> None:
    """One standstill at a time, also of several processes: what one has stopped, the other would take for switched off
    and read while it is being started.
    """
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        while True:
            try:
                held.enter_context(lock.held(folder, "a backup for which services stand still"))
                return
            except LockHeld:
                await asyncio.sleep(_LOCK_POLL_S)
    except (OSError, StoreError) as error:
        raise _no_journal(folder, error) from error


async def _start_when(released: asyncio.Event, ran: _Running, still: Still, path: Path) -> None:
    begun = time.monotonic()
    await released.wait()
    still.disturbed = await _running_already(ran)
    still.problems, down, _ = await _brought_up(ran)
    still.downtime_s = round(time.monotonic() - begun, 3)
    await asyncio.to_thread(_leave, path, down)


async def _running_already(ran: _Running) -> list[str]:
    names = []
    for service, unit in ran:
        try:
            if await service.runs(unit):
                names.append(unit.name)
        except MemuError as error:  # whoever starts it says so as well
            log.info("Whether %s stood still all the time could not be seen: %s", unit.name, error)
    return names


def _groups(units: _Running) -> list[_Running]:
    """Those that may be stopped, or started, at once; in the order in which they are stopped."""
    return [list(group) for _, group in groupby(units, key=lambda one: (one[0].name, one[1].rank))]


async def _stopped(together: _Running) -> None:
    """Raises ServiceError once all of them were tried."""
    log.info("Stopping %s.", ", ".join(unit.name for _, unit in together))
    outcomes = await asyncio.gather(*(service.stop(unit) for service, unit in together), return_exceptions=True)
    for outcome in outcomes:
        if outcome is not None:
            raise outcome


async def _brought_up(ran: _Running) -> tuple[list[str], _Running, list[str]]:
    """Start all of it in the opposite order: sentences about what does not run, what that is, and names of the rest.

    One that does not come up must not cost the others.
    """
    problems, down, up = list[str](), list[tuple[Service, Unit]](), list[str]()
    for together in reversed(_groups(ran)):
        outcomes = await asyncio.gather(*(_started(service, unit) for service, unit in together))
        problems += filter(None, outcomes)
        down[:0] = [one for one, problem in zip(together, outcomes, strict=True) if problem]
        up += [unit.name for (_, unit), problem in zip(together, outcomes, strict=True) if not problem]
    return problems, down, up


async def _started(service: Service, unit: Unit) -> str:
    """Empty where it runs; else a sentence."""
    try:
        await service.start(unit)
    except MemuError as error:
        log.error("%s", error)
        return str(error)
    except Exception as error:
        log.error("%s did not come up again.", unit.name, exc_info=error)
        return f"{unit.name} did not come up again ({type(error).__name__}). The log tells more."
    log.info("%s runs again.", unit.name)
    return ""


# --- the journal -----------------------------------------------------------------------------------------------------


@contextmanager
def _journal(folder: Path, run_id: str, ran: _Running) -> Iterator[Path]:
    """On the disk before anything is stopped, and held for as long as this process lives and works on it."""
    path, again = folder / f"{run_id}{_SUFFIX}", 1
    while path.exists():  # it names what an earlier standstill of this run has left down
        path, again = folder / f"{run_id}_{again}{_SUFFIX}", again + 1
    partial = path.with_suffix(".partial")
    try:
        descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise _no_journal(folder, error) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)  # before it has its name: nobody is to take it for one that was left
            with open(descriptor, "wb", closefd=False) as file:
                file.write(_told(ran))
            os.fsync(descriptor)
            partial.rename(path)
            sync_folder(folder)
        except OSError as error:
            raise _no_journal(folder, error) from error
        yield path
    finally:
        os.close(descriptor)


def _no_journal(folder: Path, error: OSError | StoreError) -> ServiceError:
    why = os.strerror(error.errno or 0) if isinstance(error, OSError) else str(error).rstrip(".")
    return ServiceError(
        f"What runs now cannot be written down in {folder} ({why}), and without that nothing is stopped; nothing was "
        "backed up or put back, backups are untouched. See to it that this folder can be written to, then try again."
    )


def _told(units: _Running) -> bytes:
    return json.dumps({"units": [{"service": s.name, **asdict(u)} for s, u in units]}, indent=1).encode()


def _leave(path: Path, down: _Running) -> None:
    """What is left of a journal when those in ``down`` did not come up: nothing where there are none."""
    try:
        if down:
            write_atomically(path, _told(down), 0o600)
        else:
            path.unlink(missing_ok=True)
            sync_folder(path.parent)
    except OSError as error:  # it names too many then: what runs is left alone by whoever brings it back
        log.warning("%s could not be brought up to date (%s).", path, os.strerror(error.errno or 0))


# --- the way back ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Stopped:
    service: str
    unit: Unit


async def recover(services: Mapping[str, Service], folder: Path) -> tuple[list[str], list[str]]:
    """Start what killed runs left down; the names of what runs again, and sentences about what does not.

    What a run that is under way has stopped is left alone. A journal stays until all that it names runs.
    """
    back: list[str] = []
    problems: list[str] = []
    for path in _left(folder):
        try:
            with path.open("rb") as journal:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
                stopped = _read(journal.read())
                problems += await _bring_back(services, path, stopped, back)
        except (BlockingIOError, FileNotFoundError):
            continue  # its run is under way, or somebody else was quicker
        except (OSError, ValueError, KeyError, TypeError):
            problems.append(
                f"{path} cannot be read, so it is not known what a killed backup had stopped. See what does not run, "
                "start it by hand, then remove this file."
            )
    return back, problems


async def _bring_back(
    services: Mapping[str, Service], path: Path, stopped: Sequence[_Stopped], back: list[str]
) -> list[str]:
    known: list[tuple[Service, Unit]] = []
    unknown: list[str] = []
    for one in stopped:
        service = services.get(one.service)
        if service:
            known.append((service, one.unit))
        else:
            unknown.append(
                f"{one.unit.name} was stopped for a backup, and the settings have no service {one.service} any more to "
                f"start it with. Start it by hand, then remove {path}."
            )
    problems, down, up = await _brought_up(known)
    back += up
    if not unknown:  # else it is the only place where those are named
        await asyncio.to_thread(_leave, path, down)
    return [*unknown, *problems]


def left_down(folder: Path) -> list[str]:
    """What a backup had stopped that is not under way any more, and may not run; by name."""
    names: list[str] = []
    for path in _left(folder):
        try:
            with path.open("rb") as journal:
                fcntl.flock(journal, fcntl.LOCK_SH | fcntl.LOCK_NB)
                names += [one.unit.name for one in _read(journal.read())]
        except (BlockingIOError, FileNotFoundError):
            continue  # its run is under way, or it is over
        except (OSError, ValueError, KeyError, TypeError):
            names.append(path.name)
    return names


def _left(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.suffix == _SUFFIX)
    except (FileNotFoundError, PermissionError):  # nothing was stopped here yet, or it is not this user's to know
        return []


def _read(journal: bytes) -> list[_Stopped]:
    """Raises ValueError, KeyError or TypeError where it is no journal of ours."""
    told = json.loads(journal)["units"]
    return [_Stopped(str(one["service"]), Unit(str(one["id"]), str(one["name"]), int(one["rank"]))) for one in told]

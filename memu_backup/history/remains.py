"""From where a history that was lost comes back: the dumps beside the backups, and what backups say of themselves."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TypeVar

from memu_backup.errors import StoreError
from memu_backup.history import dump, rows
from memu_backup.history.schema import Connection
from memu_backup.model import Run
from memu_backup.work import look

log = logging.getLogger(__name__)

T = TypeVar("T")

_LOOK_S, _GLANCE_S = 60.0, 15.0
"""For disks that sleep; a network drive that is dead never answers."""


@dataclass(frozen=True, slots=True)
class Remains:
    """What lies in ``places``; ``lying`` tells the runs whose backups are in one. It blocks, may raise StoreError."""

    host: str
    places: tuple[Path, ...]
    lying: Callable[[Path], Sequence[Run]]

    async def fill(self, connection: Connection) -> None:
        """Fill new tables, in the transaction that makes them: killed in here, the next who asks begins again.

        What cannot be seen now is added by the next run, which takes the dump back before it replaces it.
        """
        dumps, told = await self._seen()
        counts = [(d.path, (await dump.load(connection, d))[0]) for d in dumps]
        adopted = len((await rows.add(connection, told))[0])
        came = [f"{count} notes from {path}" for path, count in counts if count]
        came += [f"{adopted} from what backups say of themselves"] if adopted else []
        if came:
            log.warning("The history was made anew, with %s.", " and ".join(came))

    async def runs(self) -> list[Run]:
        """Those with which ``fill`` would fill new tables."""
        dumps, told = await self._seen()
        known: dict[str, Run] = {}
        for run in chain(*[await asyncio.to_thread(dump.runs, d) for d in dumps], told):
            known.setdefault(run.run_id, run)
        return list(known.values())

    async def dumped(self) -> bool:
        """Whether there is any dump in a place that answers soon."""
        return any(await asyncio.gather(*(_answer(p, partial(dump.present, p), _GLANCE_S) for p in self.places)))

    async def _seen(self) -> tuple[list[dump.Dump], list[Run]]:
        """The best dump first."""
        dumps = [_answer(place, partial(dump.available, place)) for place in self.places]
        told = [_answer(place, partial(self.lying, place)) for place in self.places]
        found, lying = await asyncio.gather(asyncio.gather(*dumps), asyncio.gather(*told))
        return dump.best_first(list(chain(*found)), self.host), list(chain(*lying))


async def _answer(place: Path, question: Callable[[], Sequence[T]], patience_s: float = _LOOK_S) -> Sequence[T]:
    """A place that cannot be read, or does not answer, costs no other."""
    try:
        return await look(question, patience_s)
    except StoreError as error:
        log.warning("%s", error)
    except TimeoutError:
        log.warning("The disk of %s does not answer, so what the history knew is not all there yet.", place)
    except Exception as error:
        kind = type(error).__name__
        log.warning("Not all that lies in %s could be read (%s) for the history.", place, kind, exc_info=error)
    return ()

"""Re-reads what is stored, piece by piece, so that damage is known while another backup still has the file whole."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

from memu_backup import catalog, files, verify
from memu_backup.clock import Clock
from memu_backup.coverage import Stored
from memu_backup.errors import MemuError, StoreError
from memu_backup.history import History
from memu_backup.model import Backup, Level
from memu_backup.stores import OnProgress, Store, Verdict
from memu_backup.whole import Copies

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Reread:
    """What was found in one ``backup``, or in that part of it which is in ``piece``."""

    piece: str
    backup: Backup
    verdict: Verdict


class Book:
    """When each piece was last read to its end. It is our own state and no backup's: what it forgets is read sooner."""

    def __init__(self, state_dir: Path) -> None:
        self._file = state_dir / "reread.json"

    def read(self) -> dict[str, datetime]:
        try:
            found = json.loads(self._file.read_bytes())
            times = {str(key): datetime.fromisoformat(at) for key, at in found.items()}
            return {key: at for key, at in times.items() if at.tzinfo}
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError):
            log.warning("%s cannot be read, so what was re-read counts as unread.", self._file)
            return {}

    def note(self, key: str, at: datetime, there: Sequence[str]) -> None:
        """Only what is still ``there`` is remembered. Raises OSError."""
        times = {k: t.isoformat() for k, t in self.read().items() if k in there} | {key: at.isoformat()}
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        files.write_atomically(self._file, json.dumps(times, indent=1).encode() + b"\n")


async def stored(stores: Sequence[Store], history: History, book: Book, clock: Clock) -> list[Stored]:
    """All pieces of all places, but for those whose disk is away."""
    times, found = book.read(), []
    for store in stores:
        try:
            lying = [there for _, there in await catalog.backups([store])]
        except StoreError as error:
            log.info("%s", error)
            continue
        called = [there.manifest.run_id for there in lying if there.manifest]
        rows, _ = await history.known_runs(called=called, quiet=True)
        verified_at = {row.filename: row.verified_at for row in rows}
        for piece in store.pieces(lying):
            known = Stored(store, piece, min(piece.proved_at, clock()))
            noted, verified = times.get(known.key), None if piece.portion else verified_at.get(piece.name)
            # What a clock wrote that was ahead would keep it unread until that day comes.
            later = [at for at in (noted, verified) if at and known.read_at < at <= clock()]
            found.append(replace(known, read_at=max(later, default=known.read_at), again=noted in later))
    return found


async def read(
    wanted: Iterable[Stored],
    there: Sequence[Stored],
    host: str,
    history: History,
    book: Book,
    on_progress: OnProgress,
    clock: Clock,
) -> list[Reread]:
    """Re-read what is ``wanted`` of all that is ``there``, and note of each piece that it was read.

    It was once it was read to its end: after a kill that one is begun anew, and none before it. What cannot be looked
    at stays due.
    """
    copies = Copies(list({b.path: (s.store, b) for s in there for b in s.piece.backups}.values()))
    found: list[Reread] = []
    for one in wanted:
        portion, before = one.piece.portion and replace(one.piece.portion, read={}), len(found)
        for backup in one.piece.backups:
            try:
                verdict = await verify.verify(
                    one.store,
                    backup,
                    Level.FULL,
                    host,
                    history,
                    on_progress,
                    clock,
                    copies=copies,
                    portion=portion,
                )
            except MemuError as error:  # its time has come meanwhile, perhaps
                log.warning("%s could not be re-read: %s", backup.name, error)
                continue
            found.append(Reread(one.piece.name, backup, verdict))
            for problem in verdict.problems:
                log.error("%s: %s", backup.path, problem)
        if len(found) > before:
            await _noted(book, one, clock(), [s.key for s in there])
    return found


async def _noted(book: Book, one: Stored, at: datetime, there: Sequence[str]) -> None:
    try:
        await asyncio.to_thread(book.note, one.key, at, there)
    except OSError as error:
        log.warning("That %s was re-read could not be noted (%s).", one.key, error.strerror)

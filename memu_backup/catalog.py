"""What backups there are, in all the places of a household, and what is known of each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from memu_backup import place
from memu_backup.errors import UnknownBackup
from memu_backup.history import History
from memu_backup.model import Backup, Run
from memu_backup.stores import Store

_PATHS = 6
_STATES = ("good", "incomplete", "suspicious", "damaged", "unreadable")


@dataclass(frozen=True, slots=True)
class Listed:
    """A stored backup and what is known of it.

    ``state`` is good, incomplete, suspicious (see ``guard``), damaged (known to be, by a verification), or unreadable
    (it does not even tell what it is). ``verified_at`` is None where nobody knows of a verification.
    """

    store: Store
    backup: Backup
    state: str
    verified_at: datetime | None = None


async def backups(stores: Sequence[Store]) -> list[tuple[Store, Backup]]:
    """Everything stored, newest first. Raises StoreError, also where a disk does not answer."""
    found = [(store, stored) for store in stores for stored in await place.seen(store, store.backups)]
    return sorted(found, key=lambda both: both[1].created_at, reverse=True)


async def of_job(store: Store, host: str, job: str | None, history: History) -> list[Backup]:
    """The backups of one job (None: of every job) of one machine in ``store``, newest first, as ``with_rows``.

    Raises StoreError.
    """
    stored = await place.seen(store, store.backups)
    mine = [b for b in stored if b.manifest and b.manifest.made_by(host, job or b.manifest.job)]
    rows, _ = await history.known_runs(called=[b.manifest.run_id for b in mine if b.manifest])
    return with_rows(mine, rows)


def with_rows(stored: Iterable[Backup], rows: Iterable[Run]) -> list[Backup]:
    """``stored``, damaged also where only a row says so: a disk that fails takes no note."""
    damaged = {row.run_id for row in rows if row.error_code == "damaged"}
    return [replace(b, damaged=True) if b.manifest and b.manifest.run_id in damaged else b for b in stored]


async def listing(stores: Sequence[Store], history: History, host: str) -> list[Listed]:
    """Everything stored and what is known of it, newest first. ``host`` is this machine. Raises StoreError."""
    stored = await backups(stores)
    runs, _ = await history.known_runs(called=[b.manifest.run_id if b.manifest else b.name for _, b in stored])
    by_run = {r.run_id: r for r in runs}
    by_name = {r.filename: r for r in reversed(runs) if r.host == host}
    found = []
    for store, there in stored:
        row = by_run.get(there.manifest.run_id) if there.manifest else by_name.get(there.name)
        found.append(Listed(store, there, _state(there, row), row.verified_at if row else None))
    return found


async def named(name: str, stores: Sequence[Store], history: History, host: str, now: datetime) -> tuple[Store, Backup]:
    """A backup by its name, what somebody called it, the beginning of its name, or ``latest``: the newest good one, of
    ``host`` if it has any, and not dated ahead of ``now``. Of several that are called so, the newest.

    Raises UnknownBackup with what to do.
    """
    stored = await listing(stores, history, host)
    if not stored:
        raise await none_yet(stores, history, host)
    if name == "latest":
        chosen = preferred(stored, host, now)
        return chosen.store, chosen.backup
    exact = [s for s in stored if name in (s.backup.name, s.backup.name.partition(".")[0])]
    called = [s for s in stored if s.backup.manifest and name.removesuffix(".tar.gz") == s.backup.manifest.called]
    close = exact or called[:1] or [s for s in stored if name and s.backup.name.startswith(name)]
    if len(close) == 1:
        return close[0].store, close[0].backup
    if len(exact) > 1:  # trees of several jobs, made on one day
        paths = ", ".join(str(listed.backup.path) for listed in exact[:_PATHS])
        raise UnknownBackup(f"{len(exact)} backups are called {name}. Say which one by its path, such as {paths}")
    problem = f"{len(close)} backups begin with {name}" if close else f"There is no backup {name}"
    raise UnknownBackup(f"{problem}. See what there is with: memu-backup list")


async def none_yet(stores: Sequence[Store], history: History, host: str) -> UnknownBackup:
    """What to say where no backup lies in any of the places: the disk may be away on the very day it is needed.

    Raises StoreError.
    """
    for store in stores:
        if why := await place.amiss(store, host, history):
            return UnknownBackup(f"{why} Mount it and type the same again.")
    places = ", ".join(str(s.directory) for s in stores)
    if all([await place.seen(s, s.marked) for s in stores]):
        return UnknownBackup(f"There is no backup in {places} yet. Make one with: memu-backup start")
    return UnknownBackup(
        f"There is no backup in {places}. If its disk is not mounted, mount it and type the same again; if there "
        "never was one, make it with: memu-backup start"
    )


def of_itself(store: Store, stored: Backup) -> Listed:
    """As far as a backup tells, of which no row is known."""
    return Listed(store, stored, _state(stored, None))


def preferred(stored: Sequence[Listed], host: str, now: datetime) -> Listed:
    """What ``latest`` means of these, one at least, newest first."""
    return min(stored, key=lambda listed: _preference(listed, host, now))


def _preference(listed: Listed, host: str, now: datetime) -> tuple[bool, int, bool]:
    """What ``latest`` looks for first; among equals the newest, as the list is sorted. On a new machine, after the
    old one died, all backups are another machine's."""
    made = listed.backup.manifest
    return made is None or made.host != host, _STATES.index(listed.state), listed.backup.is_ahead(now)


def _state(stored: Backup, row: Run | None) -> str:
    if stored.damaged or (row and row.error_code == "damaged"):
        return "damaged"
    if stored.manifest is None:
        return "unreadable"
    if stored.doubts:
        return "suspicious"
    return "incomplete" if stored.manifest.partial else "good"

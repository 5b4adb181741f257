"""Sees to it that backups go where backups belong: never below the empty mount point of a disk that is away."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from threading import Event
from typing import TypeVar

from memu_backup.clock import Clock
from memu_backup.errors import BackupsMissing, NotMounted
from memu_backup.history import History
from memu_backup.history.rows import is_stored
from memu_backup.model import Run
from memu_backup.stores import Store
from memu_backup.work import look

T = TypeVar("T")

_ANSWER_S = 60.0
_LOOK_S = 15.0
"""A disk that was asleep spins up in ten; nobody who only wants to know waits longer."""
_ANEW = "if backups are to begin anew here, type: memu-backup start --new-place"


async def asked(store: Store, question: Callable[[], T], answer_s: float | None = None) -> T:
    """What the disk that holds ``store`` answers. Raises NotMounted where it says nothing for ``answer_s`` seconds
    (60), as a dead network mount does; else what ``question`` raises.
    """
    try:
        return await look(question, _ANSWER_S if answer_s is None else answer_s)
    except TimeoutError as error:
        raise _unanswered(store) from error


def _unanswered(store: Store) -> NotMounted:
    return NotMounted(
        f"The disk that holds {store.directory} does not answer: it hangs, or the network to it does. Nothing was "
        "begun; backups that lie there are untouched. Connect it again, or restart the machine that it belongs to."
    )


_silent: dict[Path, Event] = {}
"""The last question that a place left unanswered, and whether it has answered since."""


async def seen(store: Store, question: Callable[[], T]) -> T:
    """As ``asked``, for who only wants to know: after 15 s, and at once while an earlier question stands unanswered.

    So whoever asks in the chat is not kept waiting, and no thread is left behind for each who asks.
    """
    if (earlier := _silent.get(store.directory)) and not earlier.is_set():
        raise _unanswered(store)
    answered = Event()

    def ask() -> T:
        try:
            return question()
        finally:
            answered.set()

    try:
        return await asked(store, ask, _LOOK_S)
    except NotMounted:
        _silent[store.directory] = answered
        raise


async def found(store: Store, host: str, history: History) -> None:
    """Raises NotMounted where the folder does not carry its mark, or is empty and should not be, or does not answer;
    StoreError where this user may not look.
    """
    if not await asked(store, store.marked):
        raise NotMounted(
            f"{store.directory} does not carry the mark of a place for backups, so its disk is probably not mounted. "
            "Nothing was begun; nothing was written or removed there. Mount it; or, if this is to be a new place, make "
            "one backup by hand: memu-backup start"
        )
    if why := await amiss(store, host, history):
        raise NotMounted(f"{why} Nothing was begun; nothing was written or removed there. Mount it; or, {_ANEW}")


async def ready(store: Store, host: str, history: History, clock: Clock, *, by_hand: bool, new: bool) -> None:
    """See that ``store`` is in its place and can be written.

    Where backups of ``host`` were made in it and none lies there, or it is empty and the history cannot be asked, its
    disk is probably not mounted: this raises NotMounted, for a backup made ``by_hand`` BackupsMissing, unless somebody
    says that the place is ``new``. A mark alone is no proof, as there may be one below the mount point, too. By hand, a
    folder without a mark is given one; else it raises NotMounted. Raises StoreError.
    """
    if not by_hand:
        await found(store, host, history)
    else:
        if not new and (why := await amiss(store, host, history)):
            raise BackupsMissing(f"{why} Nothing was begun. Mount it and type the same again; or, {_ANEW}")
        await asked(store, lambda: store.mark(host, clock()))
    await asked(store, store.prepare)


async def amiss(store: Store, host: str, history: History) -> str | None:
    """Why an empty folder is not what it should be, in a sentence: backups were made there, or nobody knows. None where
    it holds backups, or rightly none. Raises StoreError.
    """
    if await asked(store, lambda: store.directory.is_dir() and store.backups()):
        return None
    rows, away = await history.known_runs(host=host, directory=store.directory, quiet=True)
    made = [r for r in rows if r.location and is_stored(r)]
    # Other settings may keep backups of other names in the same folder.
    if made and not await asked(store, lambda: any(os.path.lexists(r.location) for r in made)):
        return _missing(store, made[0], len(made))
    if away and not made:
        return (
            f"{store.directory} holds no backup, and the history cannot be reached to tell whether it should: its disk "
            "may not be mounted."
        )
    return None


def _missing(store: Store, newest: Run, count: int) -> str:
    what = (
        f"The backup made in {store.directory} is" if count == 1 else f"{count} backups made in {store.directory} are"
    )
    which = f"{'' if count == 1 else 'the newest is '}{newest.filename}"
    return f"{what} not there ({which}): its disk is probably not mounted."

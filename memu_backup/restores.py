"""What was put back where it lives, written down before anything is exchanged: one file a restore, in ``folder``.

It stays as long as what was replaced is kept, so that it can be undone the day after; and it says after a kill how far
it came.
"""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from pathlib import Path

from memu_backup import files, lock
from memu_backup.errors import HalfWay, NotThere, RestoreError, StoreError
from memu_backup.swap import Swap

log = logging.getLogger(__name__)

_SUFFIX = ".json"


class State(StrEnum):
    """How far it came. Who is killed while ``PREPARING`` has changed nothing yet; while ``RELEASING``, what is kept may
    be there in part only, and is good for nothing any more.
    """

    PREPARING = "preparing"
    EXCHANGING = "exchanging"
    DONE = "done"
    UNDOING = "undoing"
    UNDONE = "undone"
    REDOING = "redoing"
    RELEASING = "releasing"


ENDS = {State.EXCHANGING: State.DONE, State.UNDOING: State.UNDONE, State.REDOING: State.DONE}
"""How far it is when what was begun is whole."""

HALF_WAY = frozenset(ENDS)

HOW_TO_SETTLE = (
    "Finish it with: memu-backup restore --resume; or have all as it was before, with: memu-backup restore --undo"
)


@dataclass(slots=True)
class Restore:
    """``stamp`` is its name and when it began, ``swaps`` are by source, ``landings`` are folders in which it unpacked,
    and ``spared`` names of what has to run while it is exchanged. ``owed`` are the sources of which the household's
    programs were not told yet that something else lies there.

    Once it is ``UNDONE`` its swaps are those that undid it: what was given back is what is kept then. Done once more,
    they are the first ones again.
    """

    stamp: str
    backup: str
    begun_at: datetime
    state: State = State.PREPARING
    swaps: dict[str, list[Swap]] = field(default_factory=dict)
    landings: list[str] = field(default_factory=list)
    spared: list[str] = field(default_factory=list)
    owed: list[str] = field(default_factory=list)


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """One restore at a time on this machine, and none while a backup is made. Raises LockHeld, RestoreError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock.held(folder, "a restore", "Wait until it has ended, or look with: memu-backup status"):
            yield
    except (OSError, StoreError) as error:
        raise _unwritten(folder, str(error)) from error


@contextmanager
def none_under_way(folder: Path, purpose: str) -> Iterator[None]:
    """What is read meanwhile for ``purpose`` is not exchanged under it. Raises LockHeld while a restore is under way.
    Where the folder is not to be had no restore can be, either.
    """
    with ExitStack() as held:
        try:
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            held.enter_context(lock.held(folder, purpose, "Wait until it has ended.", shared=True))
        except (OSError, StoreError) as error:
            log.debug("Whether a restore is under way cannot be seen.", exc_info=error)
        yield


def stamp(folder: Path, now: datetime) -> str:
    """A name for a restore that begins now, which no other has. Blocks."""
    while (folder / f"{now:%Y%m%dT%H%M%S}{_SUFFIX}").exists():
        now += timedelta(seconds=1)
    return f"{now:%Y%m%dT%H%M%S}"


def write(folder: Path, restore: Restore) -> None:
    """On the disk when this returns. Blocks. Raises RestoreError."""
    told = asdict(restore) | {"begun_at": restore.begun_at.isoformat()}
    try:
        files.write_atomically(folder / f"{restore.stamp}{_SUFFIX}", json.dumps(told, indent=1).encode())
    except OSError as error:
        raise _unwritten(folder, os.strerror(error.errno or 0)) from error


def forget(folder: Path, restore: Restore) -> None:
    """Blocks. Raises RestoreError."""
    try:
        (folder / f"{restore.stamp}{_SUFFIX}").unlink(missing_ok=True)
        files.sync_folder(folder)
    except OSError as error:
        raise _unwritten(folder, os.strerror(error.errno or 0)) from error


def read(folder: Path) -> list[Restore]:
    """Those that are kept, the newest first. Blocks. Raises RestoreError."""
    try:
        found = sorted((path for path in folder.iterdir() if path.suffix == _SUFFIX), reverse=True)
    except (FileNotFoundError, PermissionError):  # nothing was put back here yet, or it is not this user's to know
        return []
    return [_read(path) for path in found]


def find(folder: Path, stamp: str | None, *, half_way: bool) -> Restore:
    """The newest, or the one of that ``stamp``; if that is asked for, of those alone that were interrupted half-way.

    Blocks. Raises UsageError where there is none, RestoreError.
    """
    kept = read(folder)
    if half_way:
        kept = [one for one in kept if one.state in HALF_WAY or one.state is State.PREPARING or one.owed]
        if not kept:
            raise NotThere("No restore was interrupted, so there is nothing to go on with.")
    if stamp is not None:
        kept = [one for one in kept if one.stamp == stamp]
    if not kept:
        raise NotThere("Nothing that a restore has replaced is kept here" + (f" under {stamp}." if stamp else "."))
    return kept[0]


def must_be_whole(restore: Restore) -> None:
    """Raises RestoreError where what is kept of it may be there in part only."""
    if restore.state is State.RELEASING:
        raise RestoreError(
            f"What was kept of the restore of {restore.backup} was being removed, and only a part of it may be left; "
            "so all stays as it is now. Remove the rest with: memu-backup restore --release"
        )


def must_be_settled(folder: Path) -> None:
    """Blocks. Raises RestoreError where one was interrupted half-way."""
    if half := next((one for one in read(folder) if one.state in HALF_WAY), None):
        raise HalfWay(f"The restore of {half.backup} was interrupted half-way. {HOW_TO_SETTLE}")


def must_not_be_kept_in(folder: Path, landings: Iterable[Path]) -> None:
    """Blocks. Raises RestoreError where what was given back and then undone still lies in one of them, with all that
    came to it since.
    """
    wanted = {str(landing) for landing in landings}
    for one in read(folder):
        if one.state is State.UNDONE and wanted & set(one.landings):
            raise RestoreError(
                f"The restore of {one.backup} was undone, and what it had given back is kept where this one would "
                "unpack; nothing was changed. Have it again with: memu-backup restore --undo; or remove it with: "
                "memu-backup restore --release"
            )


def _read(path: Path) -> Restore:
    try:
        told = json.loads(path.read_bytes())
        return Restore(
            stamp=str(told["stamp"]),
            backup=str(told["backup"]),
            begun_at=datetime.fromisoformat(told["begun_at"]),
            state=State(told["state"]),
            swaps={str(name): [Swap(**one) for one in swaps] for name, swaps in told["swaps"].items()},
            landings=list(map(str, told["landings"])),
            spared=list(map(str, told["spared"])),
            owed=list(map(str, told.get("owed", []))),
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise RestoreError(
            f"{path} cannot be read, so it is not known what a restore has replaced. What was there lies beside where "
            "it lived, in names with .before- in them; put it back by hand if need be, then remove this file."
        ) from error


def _unwritten(folder: Path, why: str) -> RestoreError:
    return RestoreError(
        f"What a restore replaces cannot be written down in {folder} ({why.rstrip('.')}), and without that nothing is "
        "replaced; everything is as it was. See to it that this folder can be written to, then try again."
    )

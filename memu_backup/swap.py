"""Lets what was given back take the place of what is there, which is kept beside it; and the other way round.

Whoever is killed in between does it all once more: what is done already is seen and left alone. At each moment a home
holds what was there or what was given back, whole, wherever the filesystem can exchange two names at once.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from memu_backup import files
from memu_backup.errors import RestoreError

OF_THE_DISK = frozenset({"lost+found"})


@dataclass(frozen=True, slots=True)
class Swap:
    """What lies at ``new`` is to live at ``home``; what lives there comes to lie at ``old``, if anything does.

    All three are paths on one disk, or names of databases of one server. ``identity`` is the inode, or the oid, of what
    is new, by which it is known wherever it lies; None where nothing is new and ``home`` is to be empty. With
    ``only_rights``, all three stay where they are, and ``home`` gets owner and mode of the folder ``new``: a mount
    point cannot be moved. ``had`` says whether something is kept of what lived there; None before it was carried out.
    """

    home: str
    new: str
    old: str
    identity: int | None
    only_rights: bool = False
    of_databases: bool = False
    had: bool | None = None


def landing(home: Path) -> Path:
    """Where to unpack what is to live at ``home``: on the same disk."""
    home = home.resolve()
    return (home if home.is_mount() else home.parent) / f".{home.name}.memu-backup"


def kept(home: Path, stamp: str) -> Path:
    """Where what lives at ``home`` is kept."""
    return (home if home.is_mount() else home.parent) / f".{home.name}.before-{stamp}"


def one(home: Path, new: Path, stamp: str) -> Swap:
    """For a file or folder ``new`` that is to be ``home``, or for a home that is to be empty. Raises OSError."""
    return Swap(str(home), str(new), str(kept(home, stamp)), _identity(new))


def passed_over(home: Path) -> tuple[str, ...]:
    """What of ours may lie in ``home`` and belongs to no backup of it, in the manner of .gitignore. Blocks."""
    if not home.is_mount():
        return ()
    name = re.sub(r"([\\*?\[])", r"\\\1", home.resolve().name)
    return (f"/.{name}.before-*/", f"/.{name}.memu-backup/")


def whole(home: Path, new: Path, stamp: str) -> tuple[Swap, ...]:
    """For a whole folder: where a disk is mounted at ``home``, entry by entry. Raises OSError."""
    home = home.resolve()
    if not home.is_mount():
        if not _is_there(home):
            home.parent.mkdir(parents=True, exist_ok=True)
        return (one(home, new, stamp),)
    old = kept(home, stamp)
    old.mkdir(mode=0o700, exist_ok=True)
    _give_rights(home, old)
    names = sorted(_entries(home, home) | _entries(new, home))
    each = [Swap(str(home / n), str(new / n), str(old / n), _identity(new / n)) for n in names]
    return (*each, Swap(str(home), str(new), str(old), None, only_rights=True))


def _entries(folder: Path, home: Path) -> set[str]:
    """What lies in it and goes into or out of the mount point ``home``: what is the disk's or ours stays. Raises
    OSError.
    """
    passed, earlier = OF_THE_DISK | {landing(home).name}, f".{home.name}.before-"
    return {e.name for e in folder.iterdir() if e.name not in passed and not e.name.startswith(earlier)}


def completed(swaps: Sequence[Swap]) -> list[Swap]:
    """With what has come to lie in a mount point since they were made: it goes aside with the rest. Blocks. Raises
    RestoreError.
    """
    more, known = list[Swap](), {one.home for one in swaps}
    for folder in (one for one in swaps if one.only_rights):
        home, new, old = Path(folder.home), Path(folder.new), Path(folder.old)
        try:
            names = sorted(_entries(home, home))
        except OSError as error:
            raise _not_exchanged(home, error) from error
        late = (name for name in names if str(home / name) not in known)
        more += [Swap(str(home / name), str(new / name), str(old / name), None) for name in late]
    return [*more, *swaps]


def forth(swap: Swap) -> None:
    """Blocks. Raises RestoreError; ``home`` is as it was then."""
    home, new, old = Path(swap.home), Path(swap.new), Path(swap.old)
    try:
        old.parent.mkdir(mode=0o700, parents=True, exist_ok=True)  # to undo it, its landing is needed once more
        if swap.only_rights:
            _give_rights(new, home)
        elif swap.identity is None:
            if _is_there(home) and not _is_there(old):
                files.rename_without_replacing(home, old)
        else:
            if _identity(new) == swap.identity:
                _put_in(new, home, old)
            elif _identity(home) != swap.identity and not (_is_there(new) or _is_there(old)):
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
            if _is_there(new):  # what was exchanged for it; its program may have written what is at home anew since
                files.rename_without_replacing(new, old)
        for folder in {home.parent, old.parent, new.parent}:
            if folder.is_dir():
                files.sync_folder(folder)
    except OSError as error:
        raise _not_exchanged(home, error) from error


def _not_exchanged(home: Path, error: OSError) -> RestoreError:
    why = os.strerror(error.errno or 0)
    return RestoreError(f"{home} could not be exchanged for what was given back ({why}); what is there is as it was.")


def noted(swap: Swap) -> Swap:
    """One that was carried out, with whether something is kept by it. Blocks."""
    return swap if swap.of_databases or swap.only_rights else replace(swap, had=_is_there(Path(swap.old)))


def _put_in(new: Path, home: Path, old: Path) -> None:
    if not _is_there(home):
        files.rename_without_replacing(new, home)
    elif not files.exchange(new, home):
        files.rename_without_replacing(home, old)
        files.rename_without_replacing(new, home)


def back(swap: Swap, *, whole: bool) -> Swap | None:
    """What undoes it, or so much of it as was done where that is not known to be the ``whole`` of it; None where
    nothing was. What has come to lie at ``home`` since goes to ``new`` in any case. Blocks. Raises OSError, and
    RestoreError where what lived there is not kept any more.
    """
    home, new, old = Path(swap.home), Path(swap.new), Path(swap.old)
    if swap.only_rights:
        new.mkdir(mode=0o700, parents=True, exist_ok=True)
        _give_rights(home, new)  # to be had again
        return replace(swap, new=swap.old, old=swap.new)
    if swap.identity is not None and _identity(new) not in (None, swap.identity) and not _is_there(old):
        files.rename_without_replacing(new, old)  # killed right after they were exchanged
    if not whole and not _is_there(old) and (swap.identity is None or _is_there(new)):
        return None
    if whole and swap.had and not _is_there(old):
        raise not_kept(swap)
    return replace(swap, new=swap.old, old=swap.new, identity=_identity(old), had=None)


def not_kept(swap: Swap) -> RestoreError:
    return RestoreError(
        f"{swap.old} is not there any more, which was kept of {swap.home}; so nothing was undone. If its disk is not "
        "mounted, mount it and try again."
    )


def remove(swap: Swap) -> None:
    """Let go for good what lies at ``old``. Blocks. Raises RestoreError."""
    clear(Path(swap.old))
    if swap.only_rights:
        with suppress(OSError):  # of a mount point's entries there is nothing left, or something of others
            Path(swap.new).rmdir()


def clear(path: Path) -> None:
    """Remove a file or a folder, also where it is gone. Blocks. Raises RestoreError."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise RestoreError(f"{path} could not be removed ({os.strerror(error.errno or 0)}).") from error


def _identity(path: Path) -> int | None:
    try:
        return path.lstat().st_ino
    except FileNotFoundError:
        return None


def _is_there(path: Path) -> bool:
    return os.path.lexists(path)


def _give_rights(of: Path, to: Path) -> None:
    status = of.stat()
    os.chown(to, status.st_uid, status.st_gid)
    to.chmod(status.st_mode & 0o7777)

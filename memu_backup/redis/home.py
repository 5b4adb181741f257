"""Where a server keeps its file, and how a snapshot comes to lie there: only where nothing else would be loaded."""

from __future__ import annotations

import os
import shutil
import stat
from dataclasses import dataclass
from pathlib import Path

from memu_backup import files, swap
from memu_backup.errors import RestoreError

_INSTEAD = "or restore to a folder with --to"

_END = ".manifest"


@dataclass(frozen=True, slots=True)
class Log:
    """What the settings of a server call its append-only file, and the folder of it, which a Redis before 7 lacks."""

    file: str = "appendonly.aof"
    folder: str | None = "appendonlydir"

    @classmethod
    def of(cls, file: str, folder: str | None) -> Log:
        """By names that a stranger may have written down: what is no plain name is as Redis has it by itself."""
        plain = [name for name in (file, folder) if name is not None]
        if all(name.isprintable() and not set(name) & set("/\\\"'") and name.strip(". ") for name in plain):
            return cls(file, folder)
        return cls()

    @property
    def name(self) -> str:
        """What of it lies beside the server's own file."""
        return self.folder or self.file


def log_of(path: Path, told: Log | None) -> Log | None:
    """What a server whose file is ``path`` loads before that, or would: what lies there, by the names that were
    ``told`` in its backup if there are several. None where it has none and had none. Blocks. Raises OSError.
    """
    folders = [Log(one.name.removesuffix(_END), one.parent.name) for one in sorted(path.parent.glob(f"*/*.aof{_END}"))]
    found = [*folders, *(Log(one.name, None) for one in sorted(path.parent.glob("*.aof")))]
    if told in found or (told and not folders):
        return told
    return next(iter(found), None)


def as_log(snapshot: Path, log: Log) -> Path:
    """Of a snapshot that is the server's own already, an append-only file that holds just that, beside it. Blocks.
    Raises RestoreError.

    The manifest is described in aof.c of Redis 7; before, a snapshot at the beginning of the file is its preamble.
    """
    new = snapshot.with_name(f".{snapshot.name}.log")
    swap.clear(new)
    try:
        if log.folder is None:
            _link(snapshot, new)
            return new
        owner = snapshot.stat()
        new.mkdir(mode=0o700)
        base, manifest = f"{log.file}.1.base.rdb", new / f"{log.file}{_END}"
        _link(snapshot, new / base)
        files.write_atomically(manifest, f'file "{base}" seq 1 type b\n'.encode(), 0o600)
        for one in (manifest, new) if owner.st_uid != os.geteuid() or owner.st_gid != os.getegid() else ():
            os.chown(one, owner.st_uid, owner.st_gid)
        files.sync_folder(new)
    except OSError as error:
        raise RestoreError(
            f"Of {snapshot.name} no append-only file could be made ({files.reason(error)}); nothing was changed."
        ) from error
    return new


def _link(snapshot: Path, new: Path) -> None:
    """The server writes over neither, each is replaced as a whole: so one file does for both."""
    try:
        new.hardlink_to(snapshot)
    except OSError:  # a filesystem that has no such links
        shutil.copy2(snapshot, new)
        status = snapshot.stat()
        os.chown(new, status.st_uid, status.st_gid)


def loaded(path: Path) -> list[Path]:
    """What a server whose file is ``path`` would load: what there is of logs, and that file at last. Blocks.

    With ``appendonly yes`` that are the folder appendonlydir with its manifest (Redis 7) or appendonly.aof (before),
    whatever the settings call them. Raises OSError.
    """
    logs = [*path.parent.glob("*.aof"), *(manifest.parent for manifest in path.parent.glob("*/*.aof.manifest"))]
    return [*sorted(set(logs)), path]


def must_be_fit(path: Path, owner: str) -> None:
    """Blocks. Raises RestoreError where a server could not read what is put there."""
    folder = path.parent
    try:
        held_by = folder.stat().st_uid
    except OSError as error:
        raise RestoreError(
            f"{folder}, where {owner} belongs, {files.reason(error)}; nothing was changed. Install the server that "
            f"loads it, mount its disk, {_INSTEAD}."
        ) from error
    if held_by != os.geteuid() and not files.may_give_away():
        raise RestoreError(
            f"{folder} ({owner}) belongs to another user, whose server could not read what this one puts there; "
            "nothing was changed. Do it as root."
        )


def give_away(given: Path, folder: Path, owner: str) -> None:
    """Make what was unpacked the server's own, whose folder this is. Blocks. Raises RestoreError."""
    if not stat.S_ISREG(given.lstat().st_mode):
        raise RestoreError(
            f"What this backup holds of {owner} is no file; nothing was changed. Do not trust where it comes from."
        )
    there = folder.stat()
    given.chmod(0o600)  # whatever rights it was given elsewhere
    if (there.st_uid, there.st_gid) != (os.geteuid(), os.getegid()):
        os.chown(given, there.st_uid, there.st_gid)

"""The rows that Postgres does not have yet, one small file each, so that a backup never waits for its history."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass
from pathlib import Path

from memu_backup import lock
from memu_backup.files import sync_folder, write_atomically
from memu_backup.history import rows
from memu_backup.history.rows import Note

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Letter:
    """A spooled note and the very bytes it was read from."""

    path: Path
    content: bytes
    note: Note


class Spool:
    """A folder of mode 0700, shared by all processes of this machine.

    ``NUMBER-KIND-DIGEST.json``: the number keeps the order in which notes were first written and does not trust the
    clock; kind and digest are those of the note's key, so a newer state takes the place of the older one.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def put(self, note: Note) -> None:
        """Keep ``note``, in place of an older state of it. On return it survives a power cut. Raises OSError."""
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        with lock.briefly(self.folder / ".lock"):
            for left_over in self.folder.glob(".*.partial"):  # of a process that was killed
                left_over.unlink(missing_ok=True)
            there = self._paths()
            suffix = _suffix(note)
            last = int(there[-1].name.partition("-")[0]) if there else 0
            path = next((p for p in there if p.name.endswith(suffix)), self.folder / f"{last + 1:08d}{suffix}")
            write_atomically(path, rows.to_json(note))

    def letters(self) -> list[Letter]:
        """All notes, oldest first. Never raises: what cannot be read is logged and passed over."""
        return [letter for path in self.paths() if (letter := self.read(path)) is not None]

    def paths(self) -> list[Path]:
        """Where the notes lie, oldest first. Never raises: a folder that cannot be read is logged."""
        try:
            return self._paths()
        except OSError as error:
            log.warning("The notes in %s cannot be read: %s.", self.folder, error.strerror)
            return []

    def read(self, path: Path) -> Letter | None:
        """The note at ``path``; None when it is gone, or damaged and set aside as ``.damaged``. Never raises."""
        try:
            content = path.read_bytes()
            return Letter(path, content, rows.from_json(content))
        except FileNotFoundError:
            return None
        except OSError as error:
            log.warning("The note %s cannot be read: %s.", path, error.strerror)
            return None
        except (ValueError, KeyError, TypeError, AttributeError):
            self._set_aside(path, content)
            return None

    def remove(self, letter: Letter) -> None:
        """Drop a note that Postgres has, unless a newer state has taken its place. Raises OSError."""
        with lock.briefly(self.folder / ".lock"):
            try:
                if letter.path.read_bytes() == letter.content:
                    letter.path.unlink()
                    # Came it back after a power cut, an old state would be written over a newer one.
                    sync_folder(self.folder)
            except FileNotFoundError:
                return

    def holds(self, note: Note) -> bool:
        """Whether a state of ``note`` is still waiting here."""
        return any(path.name.endswith(_suffix(note)) for path in self.paths())

    def _paths(self) -> list[Path]:
        try:
            return sorted(p for p in self.folder.iterdir() if p.suffix == ".json" and p.name[:8].isdigit())
        except FileNotFoundError:
            return []

    def _set_aside(self, path: Path, damaged: bytes) -> None:
        aside = path.with_suffix(".damaged")
        try:
            with lock.briefly(self.folder / ".lock"):
                if path.read_bytes() == damaged:
                    path.rename(aside)
                    log.warning("A note for the history was damaged and is left out; it is kept as %s.", aside)
        except FileNotFoundError:
            return
        except OSError as error:
            log.warning("The note %s is damaged and cannot be set aside: %s.", path, error.strerror)


def _suffix(note: Note) -> str:
    digest = hashlib.sha256(rows.key_of(note).encode("utf-8", "backslashreplace")).hexdigest()[:24]
    return f"-{rows.kind_of(note)}-{digest}.json"

"""The drives that this machine knows, and what there is to tell of each: a file in the state folder.

``backup_drives`` in Postgres says the same for everybody to read; this is what the service goes by, as a database that
is away must not keep a copy from a drive.
"""

from __future__ import annotations

import json
import logging
import uuid
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from memu_backup import lock
from memu_backup.drives.udev import Plug, fit_to_show
from memu_backup.errors import NotThere, UsageError
from memu_backup.files import write_atomically
from memu_backup.model import Drive

log = logging.getLogger(__name__)

_STRANGERS = 20
"""So many drives that nobody approved are remembered; who plugs in more is asked about them anew."""

_TIMES = ("first_seen_at", "last_seen_at", "trusted_at", "last_copied_at")


@dataclass(frozen=True, slots=True)
class News:
    """What people are to hear of a drive: ``text``, since ``at`` (aware)."""

    at: datetime
    text: str


class Known:
    """Reads and writes ``file``; several processes may at the same time."""

    def __init__(self, file: Path, host: str) -> None:
        self._file = file
        self._host = host

    def lost(self) -> bool:
        """Whether this machine has no list, or a damaged one."""
        try:
            self._said()
        except (FileNotFoundError, ValueError):
            return True
        except OSError:
            return False
        return False

    def drives(self) -> list[Drive]:
        """All of them, the one seen last first."""
        return sorted(self._read()[0].values(), key=lambda drive: drive.last_seen_at, reverse=True)

    def news(self) -> dict[str, News]:
        """By drive_id."""
        return dict(self._read()[1])

    def of(self, plug: Plug) -> Drive | None:
        """What is known of a drive that is plugged in."""
        return next((drive for drive in self._read()[0].values() if drive.fs_uuid == plug.fs_uuid), None)

    def named(self, text: str) -> Drive:
        """The drive that somebody means by its name, its label or its UUID, or the beginning of that.

        Raises UsageError where there is none, or several.
        """
        drives = self.drives()
        wanted = fit_to_show(text).casefold()
        for fits in (
            lambda d: wanted == d.fs_uuid.casefold(),
            lambda d: wanted in (d.name.casefold(), d.label.casefold()) and wanted,
            lambda d: len(wanted) >= 4 and d.fs_uuid.casefold().startswith(wanted),
        ):
            found: Sequence[Drive] = [drive for drive in drives if fits(drive)]
            if len(found) == 1:
                return found[0]
            if found:
                listed = ", ".join(f"{d.fs_uuid[:9]} ({d.filesystem})" for d in found)
                raise UsageError(f"There are {len(found)} drives called {fit_to_show(text)}: {listed}. Name one so.")
        there = ", ".join(drive.called for drive in drives)
        known = f" There are: {there}." if there else " None was ever plugged in; plug it in first."
        raise NotThere(f"There is no drive called {fit_to_show(text)}.{known}")

    def seen(self, plug: Plug, at: datetime) -> Drive:
        """Note that it is plugged in. Raises OSError."""
        with self._alone():
            drives, news = self._to_change()
            before = next((drive for drive in drives.values() if drive.fs_uuid == plug.fs_uuid), None)
            drive = before or Drive(str(uuid.uuid4()), self._host, plug.fs_uuid, "", "", plug.size_bytes, at, at)
            label = plug.label or plug.model
            drive = replace(drive, label=label, filesystem=plug.filesystem, last_seen_at=at)
            drives[drive.drive_id] = drive
            self._write(*_bounded(drives, news))
        return drive

    def change(self, drive_id: str, how: Callable[[Drive], Drive]) -> Drive:
        """Raises UsageError for one that was forgotten meanwhile, OSError."""
        with self._alone():
            drives, news = self._to_change()
            if drive_id not in drives:
                raise NotThere("This drive was forgotten meanwhile.")
            drives[drive_id] = changed = how(drives[drive_id])
            self._write(drives, news)
        return changed

    def put(self, *new: Drive) -> None:
        """Raises OSError."""
        with self._alone():
            drives, news = self._to_change()
            self._write(*_bounded({**drives, **{drive.drive_id: drive for drive in new}}, news))

    def tell(self, drive_id: str, at: datetime, text: str) -> None:
        """What there is to tell of it, in place of what there was. Raises OSError."""
        with self._alone():
            drives, news = self._to_change()
            self._write(drives, {**news, drive_id: News(at, text)})

    def forget(self, drive_id: str) -> None:
        """Raises OSError."""
        with self._alone():
            drives, news = self._to_change()
            drives.pop(drive_id, None)
            news.pop(drive_id, None)
            self._write(drives, news)

    def _read(self) -> tuple[dict[str, Drive], dict[str, News]]:
        try:
            return self._said()
        except (FileNotFoundError, PermissionError):  # somebody who is not the service only looks
            return {}, {}
        except (OSError, ValueError) as error:
            log.warning("%s cannot be read (%s), so no drive is known.", self._file, error)
            return {}, {}

    def _to_change(self) -> tuple[dict[str, Drive], dict[str, News]]:
        """Raises OSError: what cannot be read right now must not be written over."""
        try:
            return self._said()
        except FileNotFoundError:
            return {}, {}
        except ValueError as error:
            log.warning("%s is damaged (%s); it is kept beside it as .damaged.", self._file, error)
            self._file.rename(self._file.with_suffix(".damaged"))
            return {}, {}

    def _said(self) -> tuple[dict[str, Drive], dict[str, News]]:
        """Raises OSError, and ValueError where it is damaged."""
        said = json.loads(self._file.read_bytes())
        try:
            drives = {one["drive_id"]: _drive(one) for one in said["drives"]}
            return drives, {of: News(_moment(one["at"]), str(one["text"])) for of, one in said["news"].items()}
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(str(error)) from error

    def _write(self, drives: Mapping[str, Drive], news: Mapping[str, News]) -> None:
        said = {"drives": [asdict(d) for d in drives.values()], "news": {of: asdict(n) for of, n in news.items()}}
        write_atomically(self._file, json.dumps(said, default=datetime.isoformat, indent=1).encode())

    def _alone(self) -> AbstractContextManager[None]:
        self._file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        return lock.briefly(self._file.with_name(f".{self._file.name}.lock"))


def _bounded(drives: dict[str, Drive], news: dict[str, News]) -> tuple[dict[str, Drive], dict[str, News]]:
    """However many drives strangers plug in."""
    strangers = sorted((d for d in drives.values() if d.trusted_at is None), key=lambda drive: drive.last_seen_at)
    left = {of: drive for of, drive in drives.items() if drive not in strangers[:-_STRANGERS]}
    return left, {of: told for of, told in news.items() if of in left}


def _drive(said: Mapping[str, Any]) -> Drive:
    """A later version may say more of each."""
    known = {name: value for name, value in said.items() if name in Drive.__dataclass_fields__}
    return Drive(**{**known, **{name: said[name] and _moment(said[name]) for name in _TIMES}})


def _moment(text: str) -> datetime:
    at = datetime.fromisoformat(text)
    if at.tzinfo is None:
        raise ValueError(text)
    return at

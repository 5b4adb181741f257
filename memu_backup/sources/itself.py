"""memu-backup itself: its settings, the secrets that they name, the chat's identity and the history.

With these another machine becomes this one.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, PrivateAttr, ValidationError

from memu_backup import files, moving, sqlite, words
from memu_backup.errors import DamagedArchive, HistoryAway, RestoreError, SourceError, Stays
from memu_backup.history import dump
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.sources import House, Lacking, Reader, SourceSettings, look
from memu_backup.work import Stop, in_thread

_SETTINGS = "config.toml"
_SECRETS = "secrets"
_ALARMS = "alarms.json"
_CHAT, _LOGIN, _KEYS = "chat", "account.json", "keys"
_PASSING = (".partial", *sqlite.BESIDE)
_BACKUPS = "the backups"


class SelfSettings(SourceSettings):
    only_folders: ClassVar[bool] = True
    kind: Literal["self"]

    _house: House | None = PrivateAttr(default=None)

    def at_home(self, house: House) -> SelfSettings:
        settled = self.model_copy()
        settled._house = house
        return settled

    @property
    def house(self) -> House:
        assert self._house is not None
        return self._house


class _Details(BaseModel):
    """What a check needs of the details that a capture has written, in a backup that may be a stranger's."""

    model_config = ConfigDict(strict=True, hide_input_in_errors=True)

    databases: list[str]


class SelfSource:
    kind: ClassVar[str] = "self"
    Settings: ClassVar[type[SourceSettings]] = SelfSettings

    def __init__(self, name: str, settings: SelfSettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self._house = settings.house

    async def check(self) -> list[str]:
        return list(await look(self.name, self._look))

    def _look(self) -> list[Lacking]:
        lacking = []
        for name, path in self._homes():
            try:
                os.close(_opened(path))
            except _Unread as error:
                lacking += self._lacks(name, path, error)
        return lacking

    def _homes(self) -> Iterator[tuple[str, Path]]:
        """Each file by its name in the backup, and where it lives."""
        yield _SETTINGS, self._house.config_file
        yield _ALARMS, self._house.state_dir / _ALARMS
        for key, path in self._house.secret_files.items():
            yield f"{_SECRETS}/{key}", path

    def _lacks(self, name: str, path: Path, error: _Unread) -> list[Lacking]:
        """What it means that a file cannot be read. Raises SourceError where it is the settings."""
        if name == _SETTINGS:
            raise SourceError(
                f"The settings {path} {error}, so source {self.name} cannot be backed up. Is their disk mounted?"
            ) from error
        if name == _ALARMS and not path.exists():
            return []  # nobody was to be told of anything yet
        key = f", which {name.partition('/')[2]} names," if name.startswith(_SECRETS) else ""
        return [Lacking(f"{path}{key} {error}, so it is not in the backup (source {self.name}).")]

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        await self.check()
        stop = Stop()
        try:
            missing, databases = await in_thread(lambda: self._copy(stage, stop), stop, gentle=True)
            warnings = await self._dump_history(stage)
        except OSError as error:
            raise files.no_room(error.errno, stage, _BACKUPS) or files.storing(error, stage) from error
        homes = {**dict(self._homes()), f"{_CHAT}/": self._house.state_dir / _CHAT}
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(stage, self.place),),
            consistency="each file whole, each database in one transaction",
            details={
                "homes": {name: str(path) for name, path in homes.items() if (stage / name).exists()},
                "databases": [self.place + str(path.relative_to(stage)) for path in databases],
            },
            warnings=warnings,
            missing=missing,
        )

    def _copy(self, stage: Path, stop: Stop) -> tuple[tuple[str, ...], list[Path]]:
        """Everything but the history. What is missing then, in sentences, and which of the copies are databases.

        Blocks. Raises SourceError, and OSError of the stage.
        """
        missing: list[str] = []
        _make(stage / _SECRETS)
        for name, path in self._homes():
            try:
                _copy_file(path, stage / name)
            except _Unread as error:
                missing += self._lacks(name, path, error)
        databases = []
        try:
            databases = _copy_chat(self._house.state_dir / _CHAT, stage / _CHAT, stop)
        except _Unread as error:
            shutil.rmtree(stage / _CHAT / _KEYS, ignore_errors=True)
            missing.append(
                f"The chat's login is not in the backup (source {self.name}): {error}. On another machine the bot "
                "would have to be signed in anew; look here with: memu-backup chat test"
            )
        return tuple(missing), databases

    async def _dump_history(self, stage: Path) -> tuple[str, ...]:
        """Whatever is wrong with the history must not cost the backup. Raises OSError of the stage."""
        if self._house.history is None:
            return ()
        try:
            await self._house.history.dump_into(stage)
        except HistoryAway as error:
            return (f"The history is not in the backup (source {self.name}). {error}",)
        return ()

    def lives(self) -> str:
        return f"{self._house.config_file} and {self._house.state_dir}"

    async def landing(self, summary: SourceSummary) -> None:  # noqa: ARG002  wherever it came from
        chat = self._house.state_dir / _CHAT
        if not await look(self.name, lambda: moving.is_free(chat)):
            raise Stays(
                f"Source {self.name} stays as it is: the bot is signed in here ({chat}), and a login is never "
                "replaced. To have that of the backup, stop the service and move that folder away first; or restore it "
                "to another folder with --to."
            )

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:  # noqa: ARG002
        house = self._house
        await in_thread(lambda: self._must_be_plain(given), Stop())
        warnings = []
        for name, home in self._homes():
            one = given / name
            if one.exists() and not os.path.lexists(home):
                await moving.move_beside(one, home)
            elif one.exists() and (name == _ALARMS or await look(self.name, partial(_same, one, home))):
                one.unlink()
        aside = _unused(house.config_file)
        if left := [name for name in (_SETTINGS, *_secrets(given)) if (given / name).exists()]:
            await _set_aside(given, left, aside)
            warnings.append(
                f"{', '.join(map(files.shown, left))}: others are here, or no setting says where it belongs. Nothing "
                f"was replaced; what the backup has lies in {aside}, for you to compare and to put in place by hand."
            )
        if house.history:
            for saved in dump.present(given):
                try:
                    await house.history.take_in(saved)
                except (HistoryAway, OSError, dump.Unreadable) as error:
                    await _set_aside(given, [saved.name], aside)
                    warnings.append(
                        f"What the history knew could not be taken in ({dump.reason(error).rstrip('.')}). Copy "
                        f"{aside / saved.name} beside the backups, and the next backup takes it in."
                    )
        if (given / _CHAT).exists():  # at last: until here all of it can be done once more
            await in_thread(partial(moving.move_in, given / _CHAT, house.state_dir / _CHAT), Stop())
        return warnings

    def _must_be_plain(self, given: Path) -> None:
        """For us alone, whatever rights it was given elsewhere. Blocks. Raises RestoreError."""
        for path in (given, *given.rglob("*")):
            if path.is_symlink() or not (path.is_dir() or path.is_file()):
                raise RestoreError(
                    f"In the backup {files.shown(path.name)} (source {self.name}) is a link, and memu-backup puts none "
                    "there; nothing was changed. Look at it with --to, and do not trust where this backup comes from."
                )
            path.chmod(0o700 if path.is_dir() else 0o600)

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:
        try:
            databases = _Details.model_validate(dict(summary.details)).databases
        except ValidationError as error:
            raise DamagedArchive(
                "metadata.json does not say which of its files are databases, so they cannot be checked; was it "
                "changed by hand? Use another backup."
            ) from error
        stop = Stop()
        return [
            f"{path} is not whole, so the bot could not go on with its login."
            for path in databases
            if not await in_thread(partial(sqlite.is_whole, reader.content(path), stop), stop, gentle=True)
        ]

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(summary, now, zone)


class _Unread(Exception):
    """Something of ours that could not be read; its words stand behind its name in a sentence."""


def _opened(path: Path) -> int:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError as error:
        raise _Unread("is not there") from error
    except OSError as error:
        raise _Unread(files.reason(error)) from error
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return descriptor
    os.close(descriptor)
    raise _Unread("is no file")


def _make(folder: Path) -> None:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)


def _copy_file(path: Path, target: Path) -> None:
    """Small, and replaced as a whole by whoever changes it. Raises _Unread, and OSError of the target."""
    with open(_opened(path), "rb") as file:
        try:
            content, mtime_ns = file.read(), os.fstat(file.fileno()).st_mtime_ns
        except OSError as error:
            raise _Unread(files.reason(error)) from error
    files.write_atomically(target, content)
    os.utime(target, ns=(mtime_ns, mtime_ns))


def _copy_chat(chat: Path, target: Path, stop: Stop) -> list[Path]:
    """The copies that are databases. Of the keys only those of the login: others are of logins before it.

    Raises _Unread, and OSError of the target.
    """
    login = _login(chat)
    kept = [path for path in _files_in(chat) if path.name != _LOGIN]
    if login:
        kept += _files_in(chat / _KEYS / _device(login))
    databases = []
    for path in kept:
        stop.check()
        there = target / path.relative_to(chat)
        for folder in reversed(there.relative_to(target.parent).parents[:-1]):
            _make(target.parent / folder)
        if _is_database(path):
            try:
                sqlite.copy(path, there, stop)
            except SourceError as error:
                raise _Unread(str(error).rstrip(".")) from error
            databases.append(there)
        else:
            _copy_file(path, there)
    if login:
        if not databases:
            raise _Unread("its keys are gone")
        files.write_atomically(target / _LOGIN, login)  # this very one: it may have been replaced meanwhile
    return databases


def _login(chat: Path) -> bytes | None:
    try:
        return (chat / _LOGIN).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise _Unread(f"{_LOGIN} {files.reason(error)}") from error


def _files_in(folder: Path) -> list[Path]:
    try:
        return sorted(path for path in folder.iterdir() if path.is_file() and not path.name.endswith(_PASSING))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise _Unread(files.reason(error)) from error


def _is_database(path: Path) -> bool:
    try:
        return sqlite.is_database(path)
    except OSError as error:
        raise _Unread(files.reason(error)) from error


def _device(login: bytes) -> str:
    try:
        return str(json.loads(login)["device_id"])
    except (ValueError, KeyError, TypeError) as error:
        raise _Unread(f"{_LOGIN} is damaged") from error


def _same(one: Path, other: Path) -> bool:
    try:
        return one.read_bytes() == other.read_bytes()
    except OSError:
        return False


def _secrets(given: Path) -> list[str]:
    folder = given / _SECRETS
    return sorted(f"{_SECRETS}/{one.name}" for one in folder.iterdir()) if folder.is_dir() else []


def _unused(settings: Path) -> Path:
    names = (settings.with_name(f"{settings.name}.from-backup{number}") for number in chain([""], count(-2, -1)))
    return next(name for name in names if not os.path.lexists(name))


async def _set_aside(given: Path, names: list[str], aside: Path) -> None:
    """Raises RestoreError."""
    try:
        for name in names:
            _make((aside / name).parent)
    except OSError as error:
        raise RestoreError(
            f"{aside} cannot be made ({os.strerror(error.errno or 0)}), so what could not be put in place has no place "
            "to go; what came so far stays. See to that, and put it back again."
        ) from error
    for name in names:
        await moving.move_beside(given / name, aside / name)


SOURCE = SelfSource

"""Whatever a program writes to its output: a directory server, a smart home, a database of a kind not known here."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import datetime, tzinfo
from pathlib import Path
from typing import ClassVar, Literal

from pydantic import Field, field_validator, model_validator

from memu_backup import files, process, words
from memu_backup.errors import RestoreError, SourceError
from memu_backup.model import Captured, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.sources import Argv, Reader, SourceSettings, look

_BLOCK_BYTES = 1 << 20
_QUESTION_S = 60.0
_BACKUPS = "the backups"
"""What lies beside them is gone before anybody could look for it there."""
_HERE = Path("/")
"""Where the programs run, by hand as at night: a relative path would mean something else each time."""


class CommandSettings(SourceSettings):
    only_a_file: ClassVar[bool] = True
    asks_a_server: ClassVar[bool] = True
    kind: Literal["command"]
    dump: Argv = Field(description="the program that writes it all to its output, and what it is given; no shell")
    restore: Argv | None = Field(default=None, description="the program that reads it from its input and puts it back")
    empty: Argv | None = Field(
        default=None, description="ends with 0 where nothing is there that restore would replace, with 1 where there is"
    )
    env_file: LocalPath | None = Field(
        default=None, description="a file of NAME=value lines for these programs, such as passwords"
    )
    stall_s: int = Field(default=1800, ge=1, description="how long dump may write nothing; then it is given up")

    @field_validator("needs_stop")
    @classmethod
    def _can_stand_still(cls, needs_stop: bool) -> bool:
        return needs_stop  # what the program reads may well be files, which only its owner knows

    @model_validator(mode="after")
    def _fits_together(self) -> CommandSettings:
        if self.restore and not self.empty:
            raise ValueError(
                "has restore and needs empty beside it, as what is there must never be replaced: a program such as "
                '["test", "!", "-e", "/srv/data.db"]; ["true"] where restore itself refuses to replace anything'
            )
        if self.empty and not self.restore:
            raise ValueError("has empty, which has no effect without restore")
        return self

    def place_of(self, name: str) -> str:
        """One file."""
        return self.place or name


class CommandSource:
    kind: ClassVar[str] = "command"
    Settings: ClassVar[type[SourceSettings]] = CommandSettings

    def __init__(self, name: str, settings: CommandSettings) -> None:
        self.name = name
        self.place = settings.place_of(name)
        self._settings = settings
        self._program = Path(settings.dump[0]).name

    async def check(self) -> list[str]:
        return await look(self.name, self._look)

    def _look(self) -> list[str]:
        s = self._settings
        if not _runs(s.dump[0]):
            raise SourceError(
                f"The program {s.dump[0]} is not there, or this user may not run it, so source {self.name} cannot be "
                f"backed up. Correct sources.{self.name}.dump; the program needs its whole path."
            )
        self._environment("cannot be backed up")
        return [
            f"The program {argv[0]} is not there, or this user may not run it, so source {self.name} could not be put "
            f"back on this machine. Correct sources.{self.name}.{key}."
            for key, argv in (("restore", s.restore), ("empty", s.empty))
            if argv and not _runs(argv[0])
        ]

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        await self.check()
        file = stage / Path(self.place).name
        await self._dump(file)
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(file, self.place),),
            consistency=f"what {self._program} wrote, which ended well",
        )

    async def _dump(self, file: Path) -> None:
        """Raises DiskFull and its like, SourceError."""
        s = self._settings
        given_up = f"so source {self.name} cannot be backed up; older backups are untouched"
        environment = await look(self.name, lambda: self._environment("cannot be backed up"))
        with files.writer(file, _BACKUPS) as write:
            try:
                done = await process.run_into(
                    s.dump, write, stall_s=s.stall_s, env=environment, gentle=True, folder=_HERE
                )
            except TimeoutError:
                raise SourceError(
                    f"{self._program} wrote nothing more for {words.duration(s.stall_s)} and was ended, {given_up}. "
                    f"Look whether what it asks hangs; where it is only slow, raise sources.{self.name}.stall_s."
                ) from None
            except OSError as error:
                raise SourceError(self._not_started(s.dump, error, given_up)) from error
        if done.returncode != 0:
            raise SourceError(f"{self._program} {_ended(done)}, {given_up}. See to that, and start it again.")
        if file.stat().st_size == 0:
            raise SourceError(
                f"{self._program} wrote nothing at all, {given_up}. Is there nothing to back up, or does "
                f"sources.{self.name}.dump not write to its output?"
            )

    def _environment(self, unable: str) -> dict[str, str]:
        """What ``env_file`` holds, secrets all of it. Blocks. Raises SourceError, which quotes nothing of it."""
        file = self._settings.env_file
        if file is None:
            return {}
        try:
            lines = file.read_text("utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "not a text"
            raise SourceError(
                f"{file} cannot be read ({why}), so source {self.name} {unable}. Correct sources.{self.name}.env_file."
            ) from error
        found = {}
        for number, line in enumerate(map(str.strip, lines), 1):
            name, sign, value = line.partition("=")
            if line and not line.startswith("#"):
                if not sign or not name.isidentifier() or "\0" in value:
                    raise SourceError(
                        f"Line {number} of {file} is not NAME=value, so source {self.name} {unable}. Correct that line."
                    )
                found[name] = value
        return found

    def lives(self) -> str:
        restore = self._settings.restore
        return f"where {Path(restore[0]).name} puts it" if restore else f"where {self._program} took it from"

    async def landing(self, summary: SourceSummary) -> None:
        s = self._settings
        if s.restore is None or s.empty is None:
            raise RestoreError(
                f"Source {self.name} names no program that would put it back; nothing was changed. Name one in "
                f"sources.{self.name}.restore, or get the file {files.shown(summary.place)} with "
                f"--source {self.name} --to FOLDER and feed it by hand to whatever reads it."
            )
        done = await self._run(s.empty)
        if done.returncode == 1:
            raise RestoreError(
                f"What source {self.name} would put back is there already, says {s.empty[0]}, and nothing is replaced; "
                "nothing was changed. Move it away first, or restore to a folder with --to."
            )
        if done.returncode != 0:
            raise SourceError(
                f"Whether anything is there that source {self.name} would replace cannot be seen: {s.empty[0]} "
                f"{_ended(done)}. Nothing was changed. Correct sources.{self.name}.empty."
            )

    async def _run(self, argv: Argv, given: Path | None = None) -> process.Completed:
        """Raises RestoreError where it cannot be run, SourceError for its env_file."""
        unable = f"so source {self.name} cannot be put back"
        environment = await look(self.name, lambda: self._environment("cannot be put back"))
        try:
            if given is None:
                return await process.run(argv, env=environment, timeout_s=_QUESTION_S, folder=_HERE)
            void = asyncio.subprocess.DEVNULL
            return await process.run_fed(argv, _blocks(given), env=environment, stdout=void, folder=_HERE)
        except TimeoutError:
            raise RestoreError(f"{argv[0]} did not answer within {_QUESTION_S:g} s, {unable}.") from None
        except OSError as error:
            raise RestoreError(self._not_started(argv, error, unable)) from error

    def _not_started(self, argv: Argv, error: OSError, unable: str) -> str:
        why = os.strerror(error.errno or 0)
        return f"The program {argv[0]} cannot be run ({why}), {unable}. Correct sources.{self.name}."

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:  # noqa: ARG002
        assert self._settings.restore  # else there was no landing
        done = await self._run(self._settings.restore, given)
        if done.returncode != 0:
            raise RestoreError(
                f"{self._settings.restore[0]} {_ended(done)}, so source {self.name} is not all back; what came so far "
                "may have stayed. See to that, remove what came, and put it back again; the backup is untouched."
            )
        return []

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:  # noqa: ARG004  bytes and hashes say it all
        return []

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(summary, now, zone)


def _runs(program: str) -> bool:
    return ("/" not in program or program.startswith("/")) and shutil.which(program) is not None


def _blocks(file: Path) -> Iterator[bytes]:
    with file.open("rb") as given:
        while block := given.read(_BLOCK_BYTES):
            yield block


def _ended(done: process.Completed) -> str:
    """How it failed, as a part of a sentence on one line."""
    number = done.returncode
    how = f"failed with exit status {number}"
    if number < 0:
        known = {s.value: s.name for s in signal.Signals}
        how = f"was ended by {known.get(-number, f'signal {-number}')}"
    said = files.shown(done.last_error_line.rstrip("."))
    return f"{how} (its last words: {said})" if done.stderr.strip() else how


SOURCE = CommandSource

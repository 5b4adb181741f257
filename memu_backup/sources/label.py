"""What a backup says of itself, once more, as a file that another program reads: Kuroibara's backup_metadata.json."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta, tzinfo
from functools import partial
from pathlib import Path
from typing import ClassVar, Literal, Self

from pydantic import Field, model_validator

from memu_backup import files, words
from memu_backup.model import Captured, Manifest, Root, SourceSummary
from memu_backup.paths import LocalPath
from memu_backup.sources import Reader, SourceSettings, look

_PLACE = re.compile(r"\{([^{}]*)\}")
_PLAIN = ("name", "called", "job", "host", "created_at", "date", "time")
_OF = ("size", "has")
_LINE = "line"
_LONGEST = 4096
_UNKNOWN = "unknown"

_Told = str | int | bool


class LabelSettings(SourceSettings):
    """``keys`` are those of the JSON file, each with a text, in which these stand for what is known of the backup:
    ``{name}``, ``{called}`` (what somebody named it who asked for it, else JOB_DATE), ``{job}``, ``{host}``,
    ``{created_at}`` (UTC), ``{date}`` and ``{time}`` (the household's), ``{size:SOURCE}`` (bytes as it lies in the
    backup, 0 where it does not), ``{has:SOURCE}``, and ``{line:NAME}``, the first line of the file that ``lines`` names
    so. What stands alone stays a number, or true and false.
    """

    only_a_file: ClassVar[bool] = True
    kind: Literal["label"]
    place: str = Field(description="the file in the backup, such as backup_metadata.json")
    keys: dict[str, str] = Field(min_length=1, description="what it says: a text for each key")

    lines: dict[str, LocalPath] = Field(default={}, description="files of this machine, for {line:NAME}")

    @model_validator(mode="after")
    def _can_be_told(self) -> Self:
        for what in (place for text in self.keys.values() for place in _PLACE.findall(text)):
            word, colon, of = what.partition(":")
            if (
                not (word in _PLAIN and not colon)
                and not (word in _OF and of)
                and not (word == _LINE and of in self.lines)
            ):
                there = ", ".join(f"{{{one}}}" for one in (*_PLAIN, "size:SOURCE", "has:SOURCE"))
                raise ValueError(
                    f"keys holds {{{what}}}, which stands for nothing; there are {there} and {{line:NAME}}, "
                    "with a file called NAME below lines"
                )
        return self

    def speaks_of(self) -> Iterator[str]:
        for text in self.keys.values():
            for what, _, of in (place.partition(":") for place in _PLACE.findall(text)):
                if what in _OF:
                    yield of


class LabelSource:
    kind: ClassVar[str] = "label"
    Settings: ClassVar[type[SourceSettings]] = LabelSettings

    def __init__(self, name: str, settings: LabelSettings) -> None:
        self.name = name
        self.place = settings.place
        self._settings = settings

    async def check(self) -> list[str]:
        return [
            f'{path} (source {self.name}) cannot be read, so {self.place} says "{_UNKNOWN}" in its place.'
            for path in self._settings.lines.values()
            if await look(self.name, partial(_first_line, path)) == _UNKNOWN
        ]

    @asynccontextmanager
    async def capture(self, stage: Path) -> AsyncIterator[Captured]:
        file = stage / Path(self.place).name
        yield Captured(
            source=self.name,
            kind=self.kind,
            place=self.place,
            roots=(Root(file, self.place),),
            consistency="told by the backup of itself",
            tell=partial(self._write, file),
        )

    def _write(self, file: Path, made: Manifest) -> None:
        lines = {name: _first_line(path) for name, path in self._settings.lines.items()}
        told = {key: _told(text, made, lines) for key, text in self._settings.keys.items()}
        try:
            file.write_text(json.dumps(told, indent=2, ensure_ascii=False) + "\n", "utf-8")
        except OSError as error:
            raise files.storing(error, file.parent) from error

    def lives(self) -> str:
        return "the backup itself"

    async def landing(self, summary: SourceSummary) -> None:
        """Nothing lives here: it is made anew for each backup."""

    async def put_back(self, given: Path, summary: SourceSummary) -> list[str]:  # noqa: ARG002
        return []

    @staticmethod
    async def verify(summary: SourceSummary, reader: Reader) -> list[str]:  # noqa: ARG004  bytes and hashes say it all
        return []

    @staticmethod
    def told(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
        return words.tree(summary, now, zone)


def _told(text: str, made: Manifest, lines: Mapping[str, str]) -> _Told:
    alone = _PLACE.fullmatch(text)
    return _known(alone[1], made, lines) if alone else _PLACE.sub(lambda it: str(_known(it[1], made, lines)), text)


def _known(place: str, made: Manifest, lines: Mapping[str, str]) -> _Told:
    what, _, of = place.partition(":")
    local = made.created_at.astimezone(UTC) + _offset(made.utc_offset)
    sizes = {source.name: source.size_bytes for source in made.sources}
    match what:
        case "name":
            return made.name.removesuffix(".tar.gz")
        case "called":
            return made.called or f"{made.job}_{local:%Y%m%d}"
        case "created_at":
            return made.created_at.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        case "date":
            return f"{local:%Y%m%d}"
        case "time":
            return f"{local:%H%M%S}"
        case "size":
            return sizes.get(of, 0)
        case "has":
            return of in sizes
        case "line":
            return lines[of]
        case _:
            return str(getattr(made, what))


def _offset(text: str) -> timedelta:
    """+02:00 -> two hours."""
    hours, minutes = text[1:].split(":")
    ahead = timedelta(hours=int(hours), minutes=int(minutes))
    return -ahead if text.startswith("-") else ahead


def _first_line(path: Path) -> str:
    try:
        with path.open("rb") as file:
            line = file.readline(_LONGEST).decode("utf-8", "replace").strip()
    except OSError:
        return _UNKNOWN
    return line or _UNKNOWN


SOURCE = LabelSource

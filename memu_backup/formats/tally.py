"""What one source comes to while an archive is written: counts, checksums, and what is to be told of it."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from memu_backup.formats import hashing
from memu_backup.formats.hashing import Digest, Hash
from memu_backup.formats.tar import Header, Type
from memu_backup.model import Captured, SourceSummary
from memu_backup.walk import Identity

_LISTED = 100


@dataclass(slots=True)
class Linked:
    """A file with several names, until all of them were met."""

    header: Header
    digest: Digest
    names_left: int


@dataclass(slots=True)
class Tally:
    """What a source comes to while it is written."""

    captured: Captured
    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0
    skipped: int = 0
    newest_ns: int | None = None
    sums: Hash = field(default_factory=hashing.new)
    modes: Hash = field(default_factory=hashing.new)
    lost: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    linked: dict[Identity, Linked] = field(default_factory=dict)
    compared: Mapping[str, Any] = field(default_factory=dict)

    def summary(self) -> SourceSummary:
        return SourceSummary(
            name=self.captured.source,
            kind=self.captured.kind,
            place=self.captured.place,
            files=self.files,
            directories=self.directories,
            links=self.links,
            size_bytes=self.size_bytes,
            checksum=self.sums.hexdigest(),
            modes_checksum=self.modes.hexdigest(),
            consistency=self.captured.consistency,
            newest_mtime=_moment(self.newest_ns),
            skipped=self.skipped,
            details={**self.captured.details, **self.compared},
            warnings=_shorten((*self.captured.warnings, *self.notes)),
            missing=_shorten(tuple(dict.fromkeys((*self.captured.missing, *self.lost)))),
        )


@dataclass(slots=True)
class Seen:
    """What one pass over a backup found of one source."""

    summary: SourceSummary
    files: int = 0
    directories: int = 0
    links: int = 0
    size_bytes: int = 0
    sums: Hash = field(default_factory=hashing.new)
    modes: Hash = field(default_factory=hashing.new)

    def add(self, header: Header, line: bytes) -> None:
        """One entry, and its line in SHA256SUMS."""
        if header.type is Type.FILE:
            self.files += 1
        elif header.type is Type.DIRECTORY:
            self.directories += 1
        elif header.type is not Type.OTHER:
            self.links += 1
        self.size_bytes += header.size_bytes
        self.sums.update(line)
        self.modes.update(mode_line(header))

    def problems(self) -> Iterator[str]:
        told = self.summary
        for what, here, there in (
            ("files", self.files, told.files),
            ("folders", self.directories, told.directories),
            ("links", self.links, told.links),
            ("bytes", self.size_bytes, told.size_bytes),
        ):
            if here != there:
                yield f"{told.name} holds {here:,} {what} and should hold {there:,}."
        if self.sums.hexdigest() != told.checksum:
            yield f"{told.name} is not what it was when it was written (its checksum differs)."
        elif self.modes.hexdigest() != told.modes_checksum:
            yield f"{told.name}: owners or rights are not what they were when it was written."


def _moment(time_ns: int | None) -> datetime | None:
    """None also for what btrfs and XFS can hold and a calendar cannot."""
    if time_ns is None or not 0 <= time_ns < 253_402_300_800 * 10**9:
        return None
    return datetime.fromtimestamp(time_ns // 10**9, UTC)


def _shorten(sentences: tuple[str, ...]) -> tuple[str, ...]:
    more = len(sentences) - _LISTED
    return sentences if more <= 0 else (*sentences[:_LISTED], f"… and {more} more")


def mode_line(header: Header) -> bytes:
    """What ``modes_checksum`` is made of: type, mode, owner and path of every entry, a line each."""
    return os.fsencode(f"{header.type} {header.mode:o} {header.uid}:{header.gid} {header.path}\n")

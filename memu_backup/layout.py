"""Whose is what lies in an archive that tells nothing of itself, such as an old script made? Pure."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping

from memu_backup.formats.index import Entry
from memu_backup.formats.manifest import lies_in
from memu_backup.formats.tar import Type
from memu_backup.model import SourceSummary
from memu_backup.sources import Source


def known_again(entries: Collection[Entry], sources: Mapping[str, Source], top: str) -> dict[str, SourceSummary]:
    """The sources of which an archive with these entries surely holds the folder, by name.

    Only kinds that keep files as they are: what else lies there (a dump, a database's copy) needs to be told of to be
    put back. Their folder has its name at the top of the archive, or in the one folder ``top`` there, or stands with
    its whole path, as tar has it where nobody said otherwise. It is in the archive itself, for its rights, and has
    files; and there is one such folder.
    """
    folders = {f"{e.path}/" for e in entries if e.type is Type.DIRECTORY}
    found = {}
    for name, source in sources.items():
        if not (source.Settings.keeps_files and source.place.endswith("/")):
            continue
        where = {source.place, f"{top}/{source.place}", f"{source.lives().strip('/')}/"} & folders
        told = [_summary(source, place, (e for e in entries if lies_in(e.path, place))) for place in where]
        if len(told) == 1 and told[0].files:
            found[name] = told[0]
    return found


def unknown(entries: Iterable[Entry], known: Iterable[SourceSummary]) -> list[str]:
    """What belongs to none of those ``known`` again: names of the uppermost folders and files."""
    places = [summary.place for summary in known]
    files = (e.path for e in entries if e.type is not Type.DIRECTORY)
    return sorted({_uppermost(path, places) for path in files if not any(lies_in(path, place) for place in places)})


def _uppermost(path: str, places: Iterable[str]) -> str:
    """The file itself, or the first folder above it that nothing ``known`` lies in."""
    parts = path.split("/")
    for depth in range(1, len(parts)):
        folder = "/".join(parts[:depth]) + "/"
        if not any(place.startswith(folder) for place in places):
            return folder
    return path


def _summary(source: Source, place: str, entries: Iterable[Entry]) -> SourceSummary:
    counts = defaultdict[Type, int](int)
    size_bytes = 0
    for entry in entries:
        counts[entry.type] += 1
        size_bytes += entry.size_bytes
    return SourceSummary(
        name=source.name,
        kind=source.kind,
        place=place,
        files=counts[Type.FILE],
        directories=counts[Type.DIRECTORY],
        links=counts[Type.SYMLINK] + counts[Type.HARDLINK],
        size_bytes=size_bytes,
        checksum="",
        modes_checksum="",
        consistency="",
    )

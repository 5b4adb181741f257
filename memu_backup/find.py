"""Finds a file in all backups at once, since who has lost one knows its name and not the night before it went."""

from __future__ import annotations

import fnmatch
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby

from memu_backup.errors import ArchiveError, UsageError
from memu_backup.formats.index import Entry
from memu_backup.formats.tar import Type
from memu_backup.model import Backup, Manifest, Phase, Progress
from memu_backup.stores import OnProgress, Opened, Store
from memu_backup.work import Stop

MOST = 10_000
"""Paths that are remembered at most: who asks for ``*`` of a million files reads no further, and memory has an end."""

_SHORTEST_WORD = 2


@dataclass(frozen=True, slots=True)
class Version:
    """One content of a file. ``rows`` are the backups that hold it, newest first, those in a row together.

    ``sha256`` is empty for a symbolic link, and in an archive without an index, where versions are told apart by size
    and time alone. ``link`` is where a link leads, ``mtime_ns`` the time of change in the newest of these backups.
    """

    type: Type
    size_bytes: int
    mtime_ns: int
    sha256: str
    link: str
    rows: tuple[tuple[Backup, ...], ...]

    @property
    def backups(self) -> tuple[Backup, ...]:
        return tuple(b for row in self.rows for b in row)


@dataclass(frozen=True, slots=True)
class Finding:
    """A path in the backups of one job of one machine (both empty where an archive does not tell), newest version
    first. ``in_newest`` says whether the newest of these backups, of those that could be read, has it still.
    """

    path: str
    host: str
    job: str
    versions: tuple[Version, ...]
    in_newest: bool


@dataclass(frozen=True, slots=True)
class Found:
    """All that was found, by path. ``unread`` are backups that could not be looked into, or not to their end, and a
    half-sentence why. ``any_case`` says that nothing fitted to the letter and these do but for capitals; ``more``
    that there were more than ``MOST``.
    """

    findings: tuple[Finding, ...]
    unread: tuple[tuple[Backup, str], ...]
    any_case: bool
    more: bool


@dataclass(slots=True)
class _Content:
    entry: Entry
    numbers: list[int]


@dataclass(slots=True)
class _Hits:
    """What fits, with the backups as numbers: of a million files nothing else is kept."""

    paths: dict[tuple[str, str, str], dict[str, _Content]] = field(default_factory=dict)
    more: bool = False

    def add(self, origin: tuple[str, str], entry: Entry, number: int) -> None:
        place = (entry.path, *origin)
        if place not in self.paths and len(self.paths) == MOST:
            self.more = True
            return
        contents = self.paths.setdefault(place, {})
        content = contents.setdefault(_key(entry), _Content(entry, []))
        if content.entry.type is Type.HARDLINK:  # only the file itself tells its size
            content.entry = entry
        if content.numbers[-1:] != [number]:
            content.numbers.append(number)


def find(lying: Sequence[tuple[Store, Backup]], pattern: str, on_progress: OnProgress, stop: Stop) -> Found:
    """Look for ``pattern`` (see ``fits``) among the files and links of all these backups; blocks.

    Reads the index of each; one that has none is read from its beginning to its end. Raises UsageError for a pattern
    that is empty, Interrupted.
    """
    if not _plain(pattern):
        raise UsageError("Say what to look for, such as: memu-backup find IMG_2041.jpg")
    lying = sorted(lying, key=lambda both: (both[1].created_at, both[1].name), reverse=True)
    backups = [backup for _, backup in lying]
    efforts = [_effort(store, backup) for store, backup in lying]
    exact, any_case = _Hits(), _Hits()
    unread: list[tuple[Backup, str]] = []
    for number, (store, backup) in enumerate(lying):
        on_progress(Progress(Phase.SEARCHING, sum(efforts[:number]), sum(efforts), what=backup.name))
        try:
            _look(store, backup, number, pattern, exact, any_case, stop)
        except (ArchiveError, UsageError) as error:
            unread.append((backup, str(error).removesuffix(".")))
    on_progress(Progress(Phase.SEARCHING, sum(efforts), sum(efforts)))
    hits = exact if exact.paths else any_case
    failed = {id(b) for b, _ in unread}
    readable = [number for number, b in enumerate(backups) if id(b) not in failed]
    return Found(
        findings=tuple(_findings(hits, backups, readable)),
        unread=tuple(unread),
        any_case=not exact.paths and bool(any_case.paths),
        more=hits.more,
    )


def fits(path: str, pattern: str) -> bool:
    """A path itself, everything below it, or a glob; ``*`` crosses folders, as people expect of a search.

    One without a slash may also be a file's own name, wherever it lies: who looks for a photo knows no more.
    """
    pattern = _plain(pattern)
    if path == pattern or path.startswith(pattern + "/") or fnmatch.fnmatchcase(path, pattern):
        return True
    name = path.rpartition("/")[2]
    return "/" not in pattern and (name == pattern or fnmatch.fnmatchcase(name, pattern))


def _plain(pattern: str) -> str:
    return pattern.removeprefix("./").strip("/")


# --- one archive -----------------------------------------------------------------------------------------------------


def _effort(store: Store, backup: Backup) -> int:
    try:
        with store.open(backup.path, Stop()) as reader:
            return reader.index_bytes
    except (ArchiveError, UsageError):  # said when its turn comes
        return 0


def _look(store: Store, backup: Backup, number: int, pattern: str, exact: _Hits, any_case: _Hits, stop: Stop) -> None:
    lower = pattern.lower()
    with store.open(backup.path, stop) as reader:
        for entry in _entries(reader, pattern):
            if entry.type is Type.DIRECTORY:
                continue
            if fits(entry.path, pattern):
                exact.add(_origin(backup), entry, number)
            elif not exact.paths and fits(entry.path.lower(), lower):
                any_case.add(_origin(backup), entry, number)


def _entries(reader: Opened, pattern: str) -> Iterator[Entry]:
    if reader.indexed:
        return reader.index(may_fit([pattern]))
    return (found for found in reader.readable() if not isinstance(found, Manifest))


def may_fit(patterns: Sequence[str]) -> Callable[[bytes], bool] | None:
    """Whether a line of an index may tell of an entry that fits one of them, by the longest plain word of each: parsing
    all lines takes ten times as long. None where one has no such word.
    """
    words = [_longest_word(pattern) for pattern in patterns]
    if min(map(len, words)) < _SHORTEST_WORD:
        return None
    return lambda line: any(word in line.lower() for word in words)


def _longest_word(pattern: str) -> bytes:
    plain = re.sub(r"(?s)\[.*\]", "*", _plain(pattern))
    return max(re.split(r"[^A-Za-z0-9 _./-]", plain), key=len).lower().encode()


def _origin(backup: Backup) -> tuple[str, str]:
    return (backup.manifest.host, backup.manifest.job) if backup.manifest else ("", "")


def _key(entry: Entry) -> str:
    """Equal for what counts as one version."""
    if entry.type is Type.SYMLINK:
        return f"-> {entry.link}"
    return entry.sha256 or f"{entry.size_bytes} {entry.mtime_ns} {entry.link}"


# --- all together ----------------------------------------------------------------------------------------------------


def _findings(hits: _Hits, backups: Sequence[Backup], readable: Sequence[int]) -> Iterator[Finding]:
    place: dict[int, int] = {}  # of each backup among those of its own origin, the newest being 0
    counted: Counter[tuple[str, str]] = Counter()
    for number, backup in enumerate(backups):
        place[number] = counted[_origin(backup)]
        counted[_origin(backup)] += 1
    newest = {_origin(backups[number]): number for number in reversed(readable)}
    for (path, host, job), contents in sorted(hits.paths.items()):
        versions = tuple(_version(content, backups, place) for content in contents.values())
        held = {number for content in contents.values() for number in content.numbers}
        yield Finding(path, host, job, versions, newest.get((host, job)) in held)


def _version(content: _Content, backups: Sequence[Backup], place: dict[int, int]) -> Version:
    # Numbers that go on by one have the same distance from their own count.
    rows = groupby(enumerate(content.numbers), key=lambda counted: place[counted[1]] - counted[0])
    entry = content.entry
    return Version(
        type=entry.type,
        size_bytes=entry.size_bytes,
        mtime_ns=entry.mtime_ns,
        sha256=entry.sha256,
        link=entry.link,
        rows=tuple(tuple(backups[number] for _, number in row) for _, row in rows),
    )

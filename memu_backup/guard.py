"""Asks of a new backup whether a source lost most of what was in it, came back empty, or was rewritten wholesale, as by
an unmounted disk, a slip of the hand, or a program that encrypts what it finds.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from memu_backup import catalog, pack, sources
from memu_backup.errors import MemuError
from memu_backup.formats.index import Entry
from memu_backup.formats.tar import Type
from memu_backup.history import History
from memu_backup.model import Backup, Doubt, Loss, SourceSummary
from memu_backup.status import adopted
from memu_backup.stores import Store, Written
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

FEWEST_FILES, FEWEST_BYTES = 10, 1_000_000
"""Less than that is no loss to ask the family about, whatever part of a source it was."""

FEWEST_ENTRIES = 10
"""A database of fewer may be empty on some days."""

FEWEST_REWRITTEN = 20
"""Of fewer files it says nothing that most of them changed."""


async def doubts(
    store: Store, written: Written, before: Backup | None, limits: Mapping[str, float]
) -> tuple[Doubt, ...]:
    """What looks wrong about what was ``written``, compared with the good backup ``before`` it.

    ``limits`` say for each source which part of it has to be lost; 0 asks nothing of it. Both indexes are read where so
    much changed in a source whose files are the household's own that it may be that part. Where they cannot be, the
    counts alone tell.
    """
    if before is None or before.manifest is None:
        return ()
    stop, made = Stop(), written.manifest.sources
    found = losses(made, before.manifest.sources, limits)
    places = _to_compare(made, before.manifest.sources, limits, {doubt.source for doubt in found})
    if unsure(written, before, places, limits):
        work = partial(_rewritten, store, written.partial_path, before, places, limits, stop)
        found += await in_thread(work, stop, gentle=True)
    return tuple(found)


def _rewritten(
    store: Store,
    path: Path,
    before: Backup,
    places: Mapping[str, tuple[str, str]],
    limits: Mapping[str, float],
    stop: Stop,
) -> list[Doubt]:
    try:
        with store.open(before.path, stop) as old, store.open(path, stop) as new:
            if old.indexed and new.indexed:
                return rewritten(new.index(), old.index(), places, limits, stop.check)
    except MemuError as error:
        stop.check()
        log.warning("Whether most files were rewritten since %s could not be seen: %s", before.name, error)
    return []


def losses(new: Iterable[SourceSummary], old: Iterable[SourceSummary], limits: Mapping[str, float]) -> list[Doubt]:
    """Pure: by their counts. A source that was not there before, or is not there any more, has lost nothing."""
    before = {summary.name: summary for summary in old}
    asked = [(s, before[s.name], limits[s.name]) for s in new if s.name in before and limits.get(s.name)]
    return [doubt for now, was, limit in asked if (doubt := _loss(now, was, limit))]


def _loss(now: SourceSummary, was: SourceSummary, limit: float) -> Doubt | None:
    """A packed folder counts by what is packed in it. Packed and unpacked bytes cannot be compared."""
    files, left_files = pack.inside(was).files, pack.inside(now).files
    if files and not left_files:
        return Doubt(now.name, Loss.EVERYTHING, files, files)
    entries = sources.entries(was) or 0
    if entries >= FEWEST_ENTRIES and sources.entries(now) == 0:  # a dump of an empty database is a file all the same
        return Doubt(now.name, Loss.ENTRIES, entries, entries)
    sizes = (was.size_bytes, now.size_bytes) if was.place == now.place else (0, 0)
    for what, before, left, fewest in (
        (Loss.FILES, files, left_files, FEWEST_FILES),
        (Loss.BYTES, *sizes, FEWEST_BYTES),
    ):
        if before - left >= max(fewest, limit * before):
            return Doubt(now.name, what, before, before - left)
    return None


def _to_compare(
    new: Iterable[SourceSummary], old: Iterable[SourceSummary], limits: Mapping[str, float], doubted: Collection[str]
) -> dict[str, tuple[str, str]]:
    """Where the sources stand, before and now, of which the files have to be compared one by one."""
    before = {summary.name: summary for summary in old}
    found = {}
    for now in new:
        was, kind = before.get(now.name), sources.kinds().get(now.kind)
        if not (was and kind and kind.Settings.keeps_files and limits.get(now.name)) or now.name in doubted:
            continue
        if was.checksum != now.checksum and was.files >= FEWEST_REWRITTEN:
            found[now.name] = was.place, now.place
    return found


def unsure(
    written: Written, before: Backup, places: Mapping[str, tuple[str, str]], limits: Mapping[str, float]
) -> bool:
    """Pure: whether it takes a look at the files to know that each source holds enough of what it held. What was
    ``kept`` says nothing where it was taken from another backup, or where the source stood elsewhere.
    """
    assert before.manifest
    kept = written.kept if written.manifest.shares_with == before.name else {}
    was = {summary.name: summary.files for summary in before.manifest.sources}
    return any(
        may_be_rewritten(was[name], kept.get(name, 0) if then == here else 0, limits[name])
        for name, (then, here) in places.items()
    )


def may_be_rewritten(files: int, kept: int, limit: float) -> bool:
    """Pure: whether of so many files, the empty ones among them, the ``limit`` may be lost where at least ``kept`` that
    are not empty are as they were.
    """
    return files - kept >= limit * files


def rewritten(
    new: Iterable[Entry],
    old: Iterable[Entry],
    places: Mapping[str, tuple[str, str]],
    limits: Mapping[str, float],
    check: Callable[[], None] = lambda: None,
) -> list[Doubt]:
    """Pure: by what every file holds; ``places`` say for each source where it stood, and where it stands now.

    Content that is still there under another name is not lost: whoever sorts photos into folders loses none.
    """
    there = {hash(entry.sha256) for _, entry in _files(new, [(now, name) for name, (_, now) in places.items()], check)}
    before, lost = Counter[str](), Counter[str]()
    for source, entry in _files(old, [(was, name) for name, (was, _) in places.items()], check):
        before[source] += 1
        lost[source] += hash(entry.sha256) not in there
    return [
        Doubt(source, Loss.CONTENT, before[source], lost[source])
        for source in places
        if before[source] >= FEWEST_REWRITTEN and lost[source] >= limits[source] * before[source]
    ]


def _files(
    entries: Iterable[Entry], places: Sequence[tuple[str, str]], check: Callable[[], None]
) -> Iterable[tuple[str, Entry]]:
    """Those of the sources, each with its own; an empty file holds nothing to be lost."""
    for number, entry in enumerate(entries):
        if number % 4096 == 0:
            check()
        if entry.type is Type.FILE and entry.size_bytes:
            for place, source in places:
                if entry.path.startswith(place):
                    yield source, entry
                    break


# --- the answer ------------------------------------------------------------------------------------------------------


async def accept(store: Store, backup: Backup, history: History, limits: Mapping[str, float]) -> list[Backup]:
    """Somebody says that ``backup`` is as it should be: it counts as good from now on, and so do those of its job that
    are suspicious for the same and lack no more. Returns these, none where it was not suspicious. Again is no error.

    Raises StoreError, UnknownBackup.
    """
    if backup.manifest is None or not backup.doubts:
        return []
    mine = await catalog.of_job(store, backup.manifest.host, backup.manifest.job, history)
    accepted = [b for b in mine if b.doubts and (b.name == backup.name or same_doubt(backup, b, limits))]
    for there in accepted:
        await asyncio.to_thread(store.accept, there.path)
    rows, _ = await history.known_runs(called=[b.manifest.run_id for b in accepted if b.manifest], quiet=True)
    for row in rows:
        for there in accepted:
            if there.manifest and there.manifest.run_id == row.run_id:
                await history.note(adopted(row, replace(there, doubts=())))
    return accepted


def same_doubt(one: Backup, other: Backup, limits: Mapping[str, float]) -> bool:
    """Pure: whether what somebody says of ``one`` goes for ``other``, too: the same happened, and no more than that."""
    assert one.manifest and other.manifest
    said, asked = ({(doubt.source, doubt.what) for doubt in backup.doubts} for backup in (one, other))
    return asked <= said and not losses(other.manifest.sources, one.manifest.sources, limits)

"""What ``restore`` does where it is told nothing and somebody sits there: asks step by step, in plain words.

In the end it does what the same options do, by the same functions. Until then nothing is written.
"""

from __future__ import annotations

import asyncio
import fnmatch
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import tzinfo
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from memu_backup.cli.shell import as_typed, load, the_manager
from memu_backup.errors import ArchiveError, Declined, SettingsError, StoreError, UsageError

if TYPE_CHECKING:
    from memu_backup.catalog import Listed
    from memu_backup.find import Found
    from memu_backup.model import Drill, Manifest

_BACKUPS, _PATHS = 8, 15
_TRIES = 3


@dataclass(frozen=True, slots=True)
class _Wish:
    """As the options say it. Without ``to`` it is put back in place. ``backup`` is a name or a path."""

    backup: str
    sources: tuple[str, ...] = ()
    paths: tuple[str, ...] = ()
    to: Path | None = None

    @property
    def argv(self) -> list[str]:
        argv = ["restore", self.backup]
        argv += [word for source in self.sources for word in ("--source", source)]
        argv += [word for path in self.paths for word in ("--path", path)]
        return [*argv, *(("--to", str(self.to)) if self.to else ("--in-place",)), "--yes"]


@dataclass(frozen=True, slots=True)
class _Known:
    """What there is to choose from. Without ``settings`` nobody knows where things live."""

    settings: bool
    backups: Sequence[Listed] = ()
    usual: Listed | None = None
    drills: Sequence[Drill] = ()
    zone: tzinfo | None = None


async def converse() -> int:
    """Returns the exit status. Raises Declined, and what the restore raises."""
    from memu_backup import console
    from memu_backup.cli.in_place import put_back
    from memu_backup.cli.to_folder import give_back

    console.say("Nothing is changed before you have seen what will be done and agreed. To stop at any time, type q.")
    try:
        known = await _look_around()
        chosen = await _which(known)
        wish = await _where(known, chosen, await _what(known, chosen))
    except asyncio.CancelledError:
        raise Declined(interrupted=True) from None
    console.say()
    if wish.to:
        status = await give_back(wish.backup, wish.sources, wish.paths, wish.to)
    else:
        status = await put_back(wish.backup, wish.sources, in_a_word=True)
    console.say(f"The same without questions: {as_typed(*wish.argv)}")
    return status


async def _look_around() -> _Known:
    """Where the disk with the backups is away, or there is none, a file or a drive is left to be asked for."""
    from memu_backup import catalog, console
    from memu_backup.clock import now

    try:
        load().history_url()
    except SettingsError as error:
        console.say(
            f"\nThere are no usable settings on this machine: {'; '.join(error.problems)}. So nobody knows here where "
            "things lived: a backup goes into a folder, and from there you take what you need."
        )
        return _Known(settings=False)
    async with the_manager() as manager:
        zone = manager.config.zone
        try:
            backups = await manager.listing()
            if not backups:
                raise await manager.none_yet()
        except (StoreError, UsageError) as error:
            console.say(f"\n{error}")
            return _Known(settings=True, zone=zone)
        drills, _ = await manager.history.drills()
        return _Known(True, backups, catalog.preferred(backups, manager.config.host, now()), drills, zone)


# --- which -----------------------------------------------------------------------------------------------------------


async def _which(known: _Known) -> Listed:
    from memu_backup import console

    if not known.backups:
        return await _elsewhere(known)
    console.say("\nWhich backup? These are there, the newest first.\n")
    usual = known.backups.index(known.usual) + 1 if known.usual else 0
    shown = min(max(_BACKUPS, usual), len(known.backups))
    while True:
        _tell(known, known.backups[:shown])
        more = {"m": f"the {len(known.backups) - shown:,} that are older"} if shown < len(known.backups) else {}
        letters = more | {"d": "a drive, or a file that lies elsewhere"}
        whole = ", the newest whole one" if known.usual and known.usual.state == "good" else ""
        said = await _chosen(shown, letters, str(usual or ""), whole)
        if said == "d":
            return await _elsewhere(known)
        if said != "m":
            return known.backups[int(said) - 1]
        shown = len(known.backups)


async def _elsewhere(known: _Known) -> Listed:
    """Raises Declined."""
    from memu_backup import anywhere, catalog, console
    from memu_backup.clock import now
    from memu_backup.work import Stop, in_thread

    drives = await anywhere.drives_here()
    console.say("\nWhere does the backup lie? Type the path of the file, or of the folder where its drive is mounted.")
    for drive in drives:
        console.say(f"A drive with backups is mounted at {drive}.")
    usual = str(drives[0]) if len(drives) == 1 else ""
    for _ in range(_TRIES):
        said = await console.answered(_prompt("Its path", usual), usual)
        try:
            path = _path_of(said)
            lying = await in_thread(partial(anywhere.lying_at, path), Stop())
        except (ArchiveError, UsageError) as error:
            console.complain(str(error))
            continue
        backups = [catalog.of_itself(store, backup) for store, backup in lying]
        if len(backups) == 1:
            return backups[0]
        usual_one = catalog.preferred(backups, "", now())
        return await _which(replace(known, backups=backups, usual=usual_one, drills=()))
    raise Declined


def _tell(known: _Known, listed: Sequence[Listed]) -> None:
    """As a table; numbered as they are chosen."""
    from memu_backup import console, words
    from memu_backup.clock import now

    at = now()
    zone = _zone(known)
    of = [(s.backup.manifest.job, s.backup.manifest.host) if s.backup.manifest else ("?", "?") for s in listed]
    several = len(set(of)) > 1
    console.table(
        ("", "Made", "Size", *(("Of",) if several else ()), "Is it good?"),
        [
            (
                str(number),
                words.moment(one.backup.created_at, at, zone),
                words.size(one.backup.size_bytes),
                *((f"{job} on {host}",) if several else ()),
                words.how_good(one.state, one.backup, one.verified_at, _tried(one, known.drills), at, zone),
            )
            for number, (one, (job, host)) in enumerate(zip(listed, of, strict=True), 1)
        ],
        right=(0, 2),
    )


def _tried(listed: Listed, drills: Sequence[Drill]) -> Drill | None:
    """The newest restore test of it that came to an end."""
    from memu_backup.rotation import DECIDED

    made = listed.backup.manifest
    of = (listed.backup.name, made.job if made else "", "")
    return next((d for d in drills if (d.filename, d.job, d.lay_at) == of and d.outcome in DECIDED), None)


# --- what ------------------------------------------------------------------------------------------------------------


async def _what(known: _Known, chosen: Listed) -> _Wish:
    from memu_backup import console, sources, words
    from memu_backup.clock import now

    made, zone = chosen.backup.manifest, _zone(known)
    wish = _Wish(_called(known, chosen))
    parts = made.sources if made else ()
    rows = [_everything(made), *(words.of_source(part, sources.told(part, now(), zone)) for part in parts)]
    console.say(f"\nWhat is to come back from the backup of {words.inline(_made(known, chosen))}?\n")
    for number, row in enumerate(rows, 1):
        console.say(f"{number}  {row}")
    said = await _chosen(len(rows), {"f": "one file or folder, by a part of its name"}, "1")
    if said == "f":
        return replace(wish, paths=(await _path(chosen),))
    return wish if said == "1" else replace(wish, sources=(parts[int(said) - 2].name,))


def _called(known: _Known, chosen: Listed) -> str:
    """As ``restore`` takes it: by its path where it lies elsewhere, or several have its name."""
    backup = chosen.backup
    alike = [one for one in known.backups if one.backup.name == backup.name]
    return backup.name.removesuffix(".tar.gz") if alike == [chosen] else str(backup.path)


def _everything(made: Manifest | None) -> str:
    from memu_backup import words

    return f"Everything: {words.files(made.files)} ({words.size(made.size_bytes)})" if made else "Everything"


def _made(known: _Known, chosen: Listed) -> str:
    from memu_backup import words
    from memu_backup.clock import now

    return words.moment(chosen.backup.created_at, now(), _zone(known))


async def _path(chosen: Listed) -> str:
    """A path in the backup, as ``--path`` takes it. Raises Declined."""
    from memu_backup import console, words
    from memu_backup.anywhere import search
    from memu_backup.files import shown

    console.say("\nType a part of the name of the file or folder, such as lake, 2024 or *.docx.")
    there: list[tuple[str, str]] = []
    while True:
        said = await console.answered("Its number, or a part of another name" if there else "A part of its name")
        if said.isdecimal() and 0 < int(said) <= len(there):
            return words.as_pattern(there[int(said) - 1][0])
        pattern = f"*{said.replace('[', '[[]')}*"
        with console.progress_if_long() as on_progress:
            found = await search([(chosen.store, chosen.backup)], pattern, on_progress)
        every = _fitting(found, pattern)
        there = every[:_PATHS]
        for number, (path, what) in enumerate(there, 1):
            console.say(f"{number:2}  {shown(path)}  ({what})")
        for backup, why in found.unread:
            console.complain(f"{backup.name} could not be looked into, or not to its end: {why}.")
        if len(every) > len(there) or found.more:
            console.say(f"These are the first {len(there)}, there are more: type more of the name to have less.")
        if not there:
            console.complain(
                "Nothing in this backup has that in its name. Type less of it; or q, and look into all backups with: "
                f"{as_typed('find', pattern)}"
            )


def _fitting(found: Found, pattern: str) -> list[tuple[str, str]]:
    """Each folder whose own name fits, for all that is in it, and each file, with what is known of it."""
    from memu_backup import words

    folders = Counter[str]()
    files = list[tuple[str, str]]()
    for finding in found.findings:
        parts = finding.path.split("/")
        fits = [fnmatch.fnmatchcase(part.lower(), pattern.lower()) for part in parts]
        if True in fits[:-1]:
            folders["/".join(parts[: fits.index(True) + 1])] += 1
        else:
            files.append((finding.path, words.size(finding.versions[0].size_bytes)))
    return [*((f"{folder}/", words.files(count)) for folder, count in folders.items()), *files]


# --- where -----------------------------------------------------------------------------------------------------------


async def _where(known: _Known, chosen: Listed, wish: _Wish) -> _Wish:
    from memu_backup import console
    from memu_backup.cli.to_folder import new_folder
    from memu_backup.paths import absolute

    if known.settings and not wish.paths:
        console.say("\nWhere to?\n")
        console.say("1  Back to where it lives. What is there now is kept beside it, and can be had again.")
        console.say("2  Into a folder, to look at it first. Nothing that is there is touched.")
        if await _chosen(2, {}) == "1":
            return wish
    elif wish.paths:
        console.say("\nIt goes into a folder. From there, copy it to where you want to have it.")
    usual = absolute(new_folder(chosen.backup.name))
    said = await console.answered(_prompt("Into which folder", str(usual)), str(usual))
    return replace(wish, to=_path_of(said))


# --- how it is asked -------------------------------------------------------------------------------------------------


async def _chosen(numbers: int, letters: Mapping[str, str], usual: str = "", which_is: str = "") -> str:
    """One of what was just listed by numbers, or of ``letters``, with what each means. Raises Declined."""
    from memu_backup import console

    for letter, meaning in letters.items():
        console.say(f"{letter}  {meaning}")
    console.say()
    question = _prompt("Which one", f"{usual}{which_is}" if usual else "")
    return await console.chosen(question, [*map(str, range(1, numbers + 1)), *letters], usual)


def _path_of(said: str) -> Path:
    """Raises UsageError."""
    from memu_backup.paths import absolute

    try:
        return absolute(Path(said).expanduser())
    except RuntimeError as error:
        raise UsageError(f"Nobody knows whose folder {said} is.") from error


def _prompt(question: str, usual: str) -> str:
    return f"{question} (Enter for {usual})" if usual else question


def _zone(known: _Known) -> tzinfo:
    """Without settings, that of the machine that we are on."""
    from memu_backup.clock import now

    here = known.zone or now().astimezone().tzinfo
    assert here
    return here

"""Says what is wrong with settings in sentences: all of it at once, where it stands, and what was probably meant.

A place in the settings is a tuple of keys (``("sources", "photos", "path")``). No value is ever repeated, other than
names (of kinds, sources, stores) and paths: it could be a password.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from difflib import get_close_matches
from itertools import combinations
from pathlib import Path
from typing import Any

from pydantic import BaseModel, TypeAdapter, ValidationError

from memu_backup.paths import LocalPath
from memu_backup.services import kinds as service_kinds
from memu_backup.sources import RESERVED, Source, SourceSettings
from memu_backup.sources import kinds as source_kinds
from memu_backup.stores import Store, StoreSettings
from memu_backup.stores import kinds as store_kinds

Loc = tuple[str | int, ...]
Mistake = tuple[Loc, str]
Raw = Mapping[str, Any]

PREFIX = "MEMU_BACKUP_"
NAMED = ("sources", "stores", "services", "jobs")
"""The sections that hold tables by names of the owner's choosing."""

_KINDS: dict[str, Callable[[], Mapping[str, Any]]] = {
    "sources": source_kinds,
    "stores": store_kinds,
    "services": service_kinds,
}

_LOCAL_PATH: TypeAdapter[Path] = TypeAdapter(LocalPath)

_PHRASES = {
    "missing": "is missing",
    "string_type": "must be a text in quotes",
    "path_type": "must be a path in quotes",
    "greater_than_equal": "must be at least {ge}",
    "greater_than": "must be more than {gt}",
    "less_than_equal": "must be at most {le}",
    "less_than": "must be less than {lt}",
    "too_short": "must not be empty",
    "string_too_short": "must not be empty",
    "literal_error": "must be one of {expected}",
    "enum": "must be one of {expected}",
}
_PHRASES_BY_START = {
    "int": "must be a whole number",
    "float": "must be a number",
    "bool": "must be true or false",
    "tuple": 'must be a list, such as ["a", "b"]',
    "list": 'must be a list, such as ["a", "b"]',
    "dict": "must be a table of its own, with its settings below it",
    "model": "must be a table of its own, with its settings below it",
}


def did_you_mean(word: str, among: Iterable[str]) -> str:
    """``; did you mean X?`` or nothing."""
    close = get_close_matches(word, list(among), n=1)
    return f"; did you mean {close[0]}?" if close else ""


@dataclass(frozen=True, slots=True)
class Origins:
    """Which settings came from variables. ``written`` has their names as their owner wrote them, by folded name."""

    written: Mapping[str, str]

    def variable(self, loc: Loc) -> str | None:
        """The variable that set this very place; None where the file did."""
        return self.written.get(fold(variable(loc)))

    def sentence(self, mistake: Mistake) -> str:
        loc, text = mistake
        variable = next(filter(None, (self.variable(loc[:n]) for n in range(len(loc), 0, -1))), None)
        return f"{variable or _dotted(loc)}: {text}"


def variable(loc: Loc) -> str:
    """The name of the variable that sets what stands at this place."""
    return PREFIX + "__".join(map(str, loc)).upper().replace("-", "_")


def fold(name: str) -> str:
    """Names of tables in the file and in variables meet without case and with _ for -."""
    return name.lower().replace("-", "_")


def _dotted(loc: Loc) -> str:
    """As in the file: ``sources.photos.paths[2]``, counted from 1."""
    return "".join(f"[{k + 1}]" if isinstance(k, int) else f".{k}" for k in loc).removeprefix(".") or "the file"


def tables(raw: Raw, section: str) -> dict[str, dict[str, Any]]:
    """The tables of a section that are tables; what else stands there is reported as a mistake of shape."""
    found = raw.get(section)
    return {n: t for n, t in found.items() if isinstance(t, dict)} if isinstance(found, dict) else {}


def of_shape(
    error: ValidationError, raw: Raw, known: Callable[[Loc], Iterable[str]], origins: Origins
) -> Iterator[Mistake]:
    """What pydantic found. ``known`` gives the settings that there are at a place."""
    found = [(_as_written(e["loc"], raw), e) for e in error.errors(include_url=False, include_input=False)]
    for loc, e in found:
        kind, context = e["type"], e.get("ctx", {})
        if kind == "literal_error" and any(other is not e and at[:3] == loc[:3] for at, other in found):
            continue  # one word or a list of names: what is wrong with the list says more
        if kind.startswith("union_tag") or (len(loc) == 3 and loc[0] in _KINDS and loc[2] == "kind"):
            yield _kind_mistake((*loc[:2], "kind"), raw)
        elif kind == "extra_forbidden":
            yield loc, _unknown_key(loc, known(loc[:-1]), origins)
        elif kind == "value_error":
            yield loc, str(context["error"])
        elif kind == "model_type" and loc[-1] == "retention":
            yield loc, _number_of_backups(loc, raw, origins)
        else:
            start = kind.partition("_")[0]
            phrase = _PHRASES.get(kind) or _PHRASES_BY_START.get(start) or "is not what belongs here"
            yield loc, phrase.format(**context)


def _unknown_key(loc: Loc, known: Iterable[str], origins: Origins) -> str:
    close = get_close_matches(str(loc[-1]).lower(), list(known), n=1)
    if not close:
        return "is not a setting"
    meant = close[0] if origins.variable(loc) is None else variable((*loc[:-1], close[0]))
    return f"is not a setting; did you mean {meant}?"


def _number_of_backups(loc: Loc, raw: Raw, origins: Origins) -> str:
    """``retention = 3``: the likeliest way to say how many."""
    if origins.variable(loc):
        return f"is a table; for a number of backups set {variable((*loc, 'keep_last'))}"
    given = tables(raw, "jobs").get(str(loc[1]), {}).get("retention")
    number = given if type(given) is int and given > 0 else 7
    return f"is a table; for a number of backups write retention = {{ keep_last = {number} }}"


def _as_written(loc: Loc, raw: Raw) -> Loc:
    """Without the kinds and types that pydantic puts into a path where it had several to choose from."""
    if len(loc) <= 2 or loc[0] not in _KINDS:
        return loc
    table, rest = loc[:2], loc[2:]
    if len(_KINDS[str(loc[0])]()) > 1 and rest[0] == tables(raw, str(loc[0])).get(str(loc[1]), {}).get("kind"):
        rest = rest[1:]
    return (*table, *rest[:1], *(key for key in rest[1:] if isinstance(key, int) or key.isidentifier()))


def _kind_mistake(loc: Loc, raw: Raw) -> Mistake:
    section, name = str(loc[0]), str(loc[1])
    kinds = list(_KINDS[section]())
    there = f"the kinds are {', '.join(kinds)}" if len(kinds) > 1 else f"write kind = {kinds[0]!r}".replace("'", '"')
    table = tables(raw, section).get(name)
    if table is None:
        return loc[:2], _PHRASES_BY_START["dict"]
    if "kind" not in table:
        return loc, f"is missing; {there}"
    given = table["kind"]
    if not isinstance(given, str):
        return loc, f"must be a text in quotes; {there}"
    singular = section.removesuffix("s")
    return loc, f"{given!r} is not a kind of {singular}{did_you_mean(given, kinds) or '; ' + there}"


def kinds_of(section: str) -> Mapping[str, Any]:
    """The kinds that the tables of a section may be of, by name."""
    return _KINDS[section]()


def between(raw: Raw) -> Iterator[Mistake]:
    """What is wrong although each setting by itself may be right. Bears with parts that are not."""
    for section, needed in (
        ("sources", "there is nothing to back up; add a table such as [sources.photos]"),
        ("jobs", 'there is no job, so nothing would ever be backed up; add [jobs.nightly] with at = "02:00"'),
    ):
        if raw.get(section, {}) == {}:
            yield (section,), needed
    for section in NAMED:
        for name in tables(raw, section):
            if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_-]*", name) is None:
                yield (section, name), "a name is made of letters, digits, - and _, and begins with a letter or digit"
    places = {}
    for name, table in tables(raw, "sources").items():
        place = table.get("place")
        places[name] = place if isinstance(place, str) and place else f"{name}/"
        if name in RESERVED and "place" not in table:
            yield ("sources", name), f"{name}/ is a name that every backup needs for itself; choose another"
    for name, job in tables(raw, "jobs").items():
        yield from (((("jobs", name, *key), text)) for key, text in _of_job(job, raw, places))
    readable = dict(_readable(raw, "sources", source_kinds()))
    for name, settings in readable.items():
        for other in settings.speaks_of() if isinstance(settings, SourceSettings) else ():
            if other not in (among := tables(raw, "sources")):
                yield ("sources", name), f"speaks of source {other}, which is not there{did_you_mean(other, among)}"
    yield from _circles(raw, readable)
    yield from _of_history(raw)
    yield from _of_alerts(raw)


def _of_history(raw: Raw) -> Iterator[Mistake]:
    table = raw.get("history")
    given = set(table) if isinstance(table, dict) else set()
    if {"url", "url_file"} <= given:
        yield ("history",), "has both url and url_file; keep one of them"
    if "password_file" in given and not given & {"url", "url_file"}:
        yield ("history", "password_file"), "has no effect without url or url_file"


def _of_alerts(raw: Raw) -> Iterator[Mistake]:
    table = raw.get("alerts")
    if isinstance(table, dict) and {"fallback", "fallback_file"} <= set(table):
        yield ("alerts",), "has both fallback and fallback_file; keep one of them"


def _readable(
    raw: Raw, section: str, kinds: Mapping[str, type[Source] | type[Store]]
) -> Iterator[tuple[str, BaseModel]]:
    """The tables of a section that are right in themselves, as settings; ``of_shape`` tells of the others."""
    for name, table in tables(raw, section).items():
        kind = kinds.get(str(table.get("kind")))
        if kind is not None:
            with suppress(ValidationError):
                yield name, kind.Settings.model_validate(table)


def _of_job(job: Raw, raw: Raw, places: Mapping[str, str]) -> Iterator[Mistake]:
    if "at" in job and "cron" in job:
        yield (), "has both at and cron; keep one of them"
    if "heartbeat" in job and "heartbeat_file" in job:
        yield (), "has both heartbeat and heartbeat_file; keep one of them"
    services = tables(raw, "services")
    if job.get("consistency") == "stop" and not services:
        yield ("consistency",), "says stop, and there is no service to be stopped; add a table such as [services.memu]"
    elif job.get("consistency") == "stop" and job.get("window") != "all" and not _any_needs_stop(job, raw):
        yield (
            ("consistency",),
            "says stop, and none of its sources has needs_stop = true, so nothing would be stopped; say it of those "
            'that have to hold still, or set window = "all"',
        )
    named = job.get("services")
    for service in dict.fromkeys(s for s in named if isinstance(s, str)) if isinstance(named, list) else ():
        if service not in services:
            yield ("services",), f"there is no service called {service}{did_you_mean(service, services)}"
    every, stores = tables(raw, "sources"), tables(raw, "stores")
    listed = job.get("sources", list(every))
    listed = [s for s in listed if isinstance(s, str)] if isinstance(listed, list) else []
    for source in dict.fromkeys(listed):
        if source not in every:
            yield ("sources",), f"there is no source called {source}{did_you_mean(source, every)}"
        if listed.count(source) > 1:
            yield ("sources",), f"names {source} twice"
    for one, other in combinations([s for s in places if s in listed], 2):
        a, b = sorted(places[s].rstrip("/") + "/" for s in (one, other))
        if b.startswith(a):
            yield ("sources",), f"{one} and {other} would both be stored at {b}; give one of them another place"
    store = job.get("store")
    if store is None and len(stores) > 1:
        yield ("store",), f"is missing; choose one of {', '.join(stores)}"
    if isinstance(store, str) and store not in stores:
        yield ("store",), f"there is no store called {store}{did_you_mean(store, stores)}"


def _any_needs_stop(job: Raw, raw: Raw) -> bool:
    every = tables(raw, "sources")
    listed = job.get("sources", list(every))
    # What is no list, or names nothing, is told of already.
    return not isinstance(listed, list) or any(every.get(str(name), {}).get("needs_stop") for name in listed)


def _circles(raw: Raw, sources: Mapping[str, BaseModel]) -> Iterator[Mistake]:
    """Backups of backups: each night's would hold all earlier ones, until the disk is full."""
    above = _local(raw.get("backup_dir") or None)
    stores = [s for _, s in _readable(raw, "stores", store_kinds())]
    backups = {d / (s.folder or "") for s in stores if isinstance(s, StoreSettings) and (d := s.dir or above)}
    for name, settings in sources.items():
        for key, path in _paths(settings):
            for folder in sorted(backups):
                if path.is_relative_to(folder):
                    yield ("sources", name, *key), f"{path} lies inside {folder}, where the backups are kept"
                elif folder.is_relative_to(path) and not _excluded(settings, folder.relative_to(path)):
                    yield (
                        ("sources", name, *key),
                        f"{path} holds {folder}, where the backups are kept, so each would hold all earlier ones; "
                        "exclude that folder or keep the backups elsewhere",
                    )
            state = _local(raw.get("state_dir"))
            if state and path.is_relative_to(state):
                yield ("sources", name, *key), f"{path} lies inside {state}, where memu-backup keeps its own state"


def _paths(settings: BaseModel) -> Iterator[tuple[Loc, Path]]:
    if isinstance(path := getattr(settings, "path", None), Path):
        yield ("path",), Path(os.path.normpath(path))
    for i, one in enumerate(getattr(settings, "paths", ())):
        yield ("paths", i), Path(os.path.normpath(one))


def _local(value: object) -> Path | None:
    """A path of the top level, absolute; None where it is none. Symbolic links are not followed: a disk may hang."""
    try:
        return Path(os.path.normpath(_LOCAL_PATH.validate_python(value)))
    except ValidationError:
        return None


def _excluded(settings: BaseModel, relative: Path) -> bool:
    from pathspec import GitIgnoreSpec  # slow to import, and seldom needed

    return GitIgnoreSpec.from_lines(getattr(settings, "exclude", ())).match_file(f"{relative}/")

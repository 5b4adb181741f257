"""Settings from the machine, from variables and from systemd's credentials, and slips in the names of variables.

What variables set is laid over the file; ``config`` says how they are named.
"""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from difflib import SequenceMatcher, get_close_matches
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo, available_timezones

from pydantic_settings import BaseSettings, EnvSettingsSource

from memu_backup.mistakes import NAMED, PREFIX, Origins, did_you_mean, fold, tables, variable

CONFIG_VARIABLE = PREFIX + "CONFIG"
MEMU_NAMES = {name: name.lower() for name in ("BACKUP_DIR", "BACKUP_RETENTION_COUNT", "BACKUP_NOTIFICATION_ROOM")}
"""Names that count without a word in the file, and the settings that they stand for."""


@dataclass(frozen=True, slots=True)
class Variables:
    """``values`` by folded name, secrets among them; ``problems`` are sentences."""

    values: Mapping[str, str]
    origins: Origins
    problems: tuple[str, ...]


def gather(environ: Mapping[str, str], settings: type[BaseSettings], raw: Mapping[str, Any]) -> Variables:
    """All variables and credentials that are ours, also by the names that the file, ``raw``, gives them. Unreadable
    credentials and mistyped names become problems.
    """
    values: dict[str, str] = {}
    written: dict[str, str] = {}
    problems: list[str] = []
    names = {**named(raw), **MEMU_NAMES}

    def ours(name: str) -> str:
        return variable(tuple(names[name].split("."))) if name in names else name

    def take(name: str, value: str) -> None:
        problems.extend(_unknown(ours(name), settings))
        values[fold(ours(name))], written[fold(ours(name))] = value, name

    for file in _credentials(environ):
        try:
            take(file.name, file.read_text("utf-8").rstrip("\n"))
        except (OSError, UnicodeDecodeError):
            problems.append(f"{file.name}: the credential {file} cannot be read")
    given: dict[str, str] = {}
    for name in sorted(environ, key=lambda name: name in names):
        if (name.startswith(PREFIX) and name != CONFIG_VARIABLE) or name in names:
            if environ[name]:
                other = given.setdefault(fold(ours(name)), name)
                if environ[other] != environ[name]:
                    problems.append(f"{name}: says something else than {other}; keep one of them")
                take(name, environ[name])
        elif name != CONFIG_VARIABLE:
            problems.extend(_near_miss(name, settings, names))
    return Variables(values, Origins(written), tuple(problems))


def named(raw: Mapping[str, Any]) -> dict[str, str]:
    """Names of variables that the file gives to settings; what is wrong there is reported as a mistake of shape."""
    found = raw.get("environment")
    return {k: v for k, v in found.items() if isinstance(v, str)} if isinstance(found, dict) else {}


def overlay(variables: Variables, settings: type[BaseSettings], raw: Mapping[str, Any]) -> dict[str, Any]:
    """What the variables set, in the shape of the file and with its names; ``raw`` is the file."""
    source = EnvSettingsSource(settings)
    source.env_vars = variables.values
    laid: dict[str, Any] = {key: _with_lists(value) for key, value in source().items()}
    for section in NAMED:
        names = {fold(n): n for n in tables(raw, section)}
        found = laid.pop(section, {})
        if isinstance(found, dict):
            found = {names[n]: table for n, table in found.items() if n in names}
        if found:
            laid[section] = found
    return laid


def unknown_tables(variables: Variables, raw: Mapping[str, Any]) -> Iterator[str]:
    """A sentence for each variable that speaks of a source, store or job that the file does not have."""
    for key, name in variables.origins.written.items():
        section, _, rest = key.removeprefix(fold(PREFIX)).partition("__")
        table = rest.partition("__")[0]
        names = [fold(n) for n in tables(raw, section)]
        if section in NAMED and rest and table not in names:
            singular = section.removesuffix("s")
            yield f"{name}: the file has no {singular} of this name{did_you_mean(table, names) or '; add it there'}"


def _with_lists(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _with_lists(inner) for key, inner in value.items()}
    if isinstance(value, str) and value.startswith("["):
        try:
            return json.loads(value)
        except ValueError:
            return value  # no list after all; whether a text may stand here is for the setting to say
    return value


def _credentials(environ: Mapping[str, str]) -> list[Path]:
    """The folder holds other programs' credentials too: only names that begin like ours are looked at."""
    folder = environ.get("CREDENTIALS_DIRECTORY")
    if not folder or not Path(folder).is_dir():
        return []
    return sorted(f for f in Path(folder).iterdir() if fold(f.name).startswith(fold(PREFIX)))


def _unknown(name: str, settings: type[BaseSettings]) -> Iterator[str]:
    head, _, rest = fold(name).removeprefix(fold(PREFIX)).partition("__")
    fields = list(settings.model_fields)
    if head == "environment":  # it could change what it is read by
        yield f"{name}: is not a setting; variables are named in the file alone"
    if head in fields:
        return
    if (memus := f"BACKUP_{head.upper()}") in MEMU_NAMES:  # of BACKUP_DIR and MEMU_BACKUP_HOST
        yield f"{name}: is not a setting; did you mean {memus} or {PREFIX}{memus}?"
        return
    # One underscore between the parts of a path is the likeliest slip: HISTORY_URL for HISTORY__URL.
    sections = ["history", "usb", "chat", "alerts", *NAMED]
    section = next((s for s in sections if head.startswith(s + "_")), None)
    near = get_close_matches(head, sections if rest else fields, n=1)
    meant = f"{section}__{head.removeprefix(f'{section}_')}" if section else next(iter(near), None)
    hint = f"; did you mean {PREFIX}{'__'.join(filter(None, (meant, rest))).upper()}?" if meant else ""
    yield f"{name}: is not a setting{hint}"


def _near_miss(name: str, settings: type[BaseSettings], names: Iterable[str]) -> Iterator[str]:
    """A slip in one of our names, and not the BACKUP_PASSWORD of another program."""
    among = [*names, *(PREFIX + field.upper() for field in settings.model_fields), CONFIG_VARIABLE]
    close = get_close_matches(name.upper(), among, n=1, cutoff=0.9)
    if not close and name.startswith("BACKUP_"):
        close = [m for m in MEMU_NAMES if _alike(name.removeprefix("BACKUP_"), m.removeprefix("BACKUP_"))]
    if close:
        yield f"{name}: is not a setting; did you mean {close[0]}?"


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one, other).ratio() >= 0.75


def defaults(environ: Mapping[str, str]) -> dict[str, Any]:
    """The settings that depend on the machine, and what stands for a section that the file does not have."""
    return {
        "backup_dir": "backups",
        "timezone": _machine_zone(environ),
        "host": socket.gethostname() or "localhost",
        "state_dir": _state_dir(environ),
        "sources": {},
        "stores": {"local": {"kind": "archive"}},
        "jobs": {},
    }


def _state_dir(environ: Mapping[str, str]) -> str:
    if given := environ.get("STATE_DIRECTORY"):  # systemd may list several
        return given.split(":")[0]
    if os.geteuid() == 0:
        return "/var/lib/memu-backup"
    return f"{environ.get('XDG_STATE_HOME') or '~/.local/state'}/memu-backup"


def _machine_zone(environ: Mapping[str, str]) -> str:
    named = Path("/etc/timezone")
    from_link = str(Path("/etc/localtime").resolve()).partition("zoneinfo/")[2]
    from_text = named.read_text().strip() if named.exists() else ""
    for name in filter(None, (environ.get("TZ", "").lstrip(":"), from_link, from_text)):
        try:
            return checked_zone(name)
        except ValueError:
            continue  # the next may be one; UTC is right for a machine that knows none
    return "UTC"


def checked_zone(name: str) -> str:
    """``name`` if this machine knows such a time zone; else raises ValueError with a phrase for people."""
    try:
        ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        hint = did_you_mean(name, available_timezones()) or ", such as Europe/Berlin"
        raise ValueError(f"is not a time zone that this machine knows{hint}") from error
    return name

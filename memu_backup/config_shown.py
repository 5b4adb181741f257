"""Every setting in effect, for people and scripts, with nothing in it that is secret."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from memu_backup.config import Config

MASK = "********"

_URL = re.compile(r"(postgres(?:ql)?://)(?:([^:/@?#\s]*)(:[^@/?#\s]*)?@)?([\w.-]*(?::\d+)?)(/[\w.%-]*)?(\?[^@#\s]*)?")


def show(config: Config) -> dict[str, Any]:
    """Every setting in effect, fit for JSON, secrets masked; a URL keeps what is no secret in it."""
    shown: dict[str, Any] = _plain(config.model_dump())
    for name, source in config.sources.items():
        shown["sources"][name] = _plain(source.in_effect(name))
    if config.history.url is None and config.history.url_file is None:
        shown["history"]["where"] = f"embedded in {config.state_dir}/postgres"
    for name in config.jobs:
        job = config.job(name)
        kept = config.jobs[name].retention.in_effect(config.backup_retention_count).model_dump(exclude_none=True)
        shown["jobs"][name] |= {"sources": list(job.sources), "store": job.store, "services": list(job.services)}
        shown["jobs"][name]["retention"] = kept
        shown["stores"][job.store] |= {"dir": str(config.store_of(job).dir), "folder": None}
    if config.off:
        shown["off"] = config.off
    return {"file": str(config.path), **shown}


def _plain(value: Any) -> Any:
    match value:
        case SecretStr():
            return _masked(value.get_secret_value())
        case str():
            return _masked(value) if "://" in value else value
        case Path():
            return str(value)
        case dict():
            return {key: _plain(inner) for key, inner in value.items()}
        case list() | tuple():
            return [_plain(inner) for inner in value]
        case _:
            return value


def _masked(secret: str) -> str:
    """Only a URL that is understood to its last character is shown in part: a stray @ or / may hide a password."""
    found = _URL.fullmatch(secret)
    if found is None:
        return MASK
    scheme, user, password, host, database, query = found.groups()
    who = "" if user is None else f"{user}{f':{MASK}' if password else ''}@"
    return f"{scheme}{who}{host}{database or ''}{f'?{MASK}' if query else ''}"

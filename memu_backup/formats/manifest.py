"""metadata.json: what a backup says of itself, and the reason why history can be made again from what lies on disk."""

from __future__ import annotations

import json
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from memu_backup.errors import DamagedArchive
from memu_backup.model import Manifest, SourceSummary

NAME = "metadata.json"
SUMS_NAME = "SHA256SUMS"
FORMAT = "memu-backup/1"

_MOST = 2**63 - 1
"""What no disk holds; the history's columns end here."""


def encode(manifest: Manifest) -> bytes:
    """metadata.json, indented: on the worst day somebody reads it in an editor."""
    return json.dumps(document(manifest), indent=2).encode() + b"\n"


def document(manifest: Manifest) -> dict[str, Any]:
    """What metadata.json says, before it is text."""
    return {
        "format": manifest.format,
        "backup_name": manifest.name,
        "run_id": manifest.run_id,
        "created_at": manifest.created_at.astimezone(UTC).isoformat(),
        "utc_offset": manifest.utc_offset,
        "version": manifest.version,
        "host": manifest.host,
        "job": manifest.job,
        "files": manifest.files,
        "size_bytes": manifest.size_bytes,
        "called": manifest.called,
        "shares_with": manifest.shares_with,
        "nights_shared": manifest.nights_shared,
        "shared_bytes": manifest.shared_bytes,
        "checksums": {SUMS_NAME: manifest.sha256sums, **{s.place: s.checksum for s in manifest.sources}},
        "sources": [_source(s) for s in manifest.sources],
    }


def _source(summary: SourceSummary) -> dict[str, Any]:
    newest = summary.newest_mtime.isoformat() if summary.newest_mtime else None
    return {**asdict(summary), "newest_mtime": newest}


def claims(content: bytes) -> bool:
    """Whether a metadata.json says that it is one of ours, of whatever version; other programs have files so named."""
    try:
        kind = json.loads(content).get("format")
    except (ValueError, AttributeError, RecursionError):
        return False
    return isinstance(kind, str) and kind.startswith("memu-backup/")


def lies_in(path: str, place: str) -> bool:
    """Whether a path belongs to the source at ``place``."""
    # With the slash, or a dump at database.sql would take database.sql.d/ for its own.
    return path == place.removesuffix("/") or (place.endswith("/") and path.startswith(place))


def decode(content: bytes) -> Manifest:
    """Raises DamagedArchive where it is not a metadata.json of ours."""
    try:
        said = json.loads(content)
        if said.get("format") != FORMAT:
            raise DamagedArchive(f"its {NAME} is of a kind that this version does not know")
        manifest = Manifest(
            format=said["format"],
            name=str(said["backup_name"]),
            run_id=str(said["run_id"]),
            created_at=_moment(said["created_at"]),
            utc_offset=str(said["utc_offset"]),
            host=str(said["host"]),
            job=str(said["job"]),
            version=str(said["version"]),
            sources=tuple(_summary(s) for s in said["sources"]),
            sha256sums=str(said["checksums"][SUMS_NAME]),
            called=str(said.get("called", "")),
            shares_with=str(said.get("shares_with", "")),
            nights_shared=_number(said.get("nights_shared", 0)),
            shared_bytes=_number(said.get("shared_bytes", 0)),
        )
        for total in (manifest.size_bytes, manifest.files):
            _number(total)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise DamagedArchive(f"its {NAME} is damaged") from error
    return manifest


def _number(said: Any) -> int:
    number = int(said)
    if not 0 <= number <= _MOST:
        raise ValueError
    return number


def _moment(text: str) -> datetime:
    moment = datetime.fromisoformat(text).astimezone(UTC)
    if moment.year == datetime.max.year:  # its last day has no local time east of Greenwich
        raise ValueError
    return moment


def _summary(said: dict[str, Any]) -> SourceSummary:
    newest = said["newest_mtime"]
    return SourceSummary(
        name=str(said["name"]),
        kind=str(said["kind"]),
        place=str(said["place"]),
        files=_number(said["files"]),
        directories=_number(said["directories"]),
        links=_number(said["links"]),
        size_bytes=_number(said["size_bytes"]),
        checksum=str(said["checksum"]),
        modes_checksum=str(said["modes_checksum"]),
        consistency=str(said["consistency"]),
        newest_mtime=datetime.fromisoformat(newest).astimezone(UTC) if newest else None,
        skipped=_number(said["skipped"]),
        details=dict(said["details"]),
        warnings=tuple(map(str, said["warnings"])),
        missing=tuple(map(str, said["missing"])),
    )

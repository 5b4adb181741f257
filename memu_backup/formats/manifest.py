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


def encode(manifest: Manifest) -> bytes:
    """metadata.json, indented: on the worst day somebody reads it in an editor."""
    document: dict[str, Any] = {
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
        "checksums": {SUMS_NAME: manifest.sha256sums, **{s.place: s.checksum for s in manifest.sources}},
        "sources": [_source(s) for s in manifest.sources],
    }
    return json.dumps(document, indent=2).encode() + b"\n"


def _source(summary: SourceSummary) -> dict[str, Any]:
    document = asdict(summary)
    document["newest_mtime"] = summary.newest_mtime.isoformat() if summary.newest_mtime else None
    return document


def decode(content: bytes) -> Manifest:
    """Raises DamagedArchive where it is not a metadata.json of ours."""
    try:
        document = json.loads(content)
        if document.get("format") != FORMAT:
            raise DamagedArchive(f"its {NAME} is of a kind that this version does not know")
        return Manifest(
            format=document["format"],
            name=str(document["backup_name"]),
            run_id=str(document["run_id"]),
            created_at=datetime.fromisoformat(document["created_at"]).astimezone(UTC),
            utc_offset=str(document["utc_offset"]),
            host=str(document["host"]),
            job=str(document["job"]),
            version=str(document["version"]),
            sources=tuple(_summary(s) for s in document["sources"]),
            sha256sums=str(document["checksums"][SUMS_NAME]),
        )
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise DamagedArchive(f"its {NAME} is damaged") from error


def _summary(document: dict[str, Any]) -> SourceSummary:
    newest = document["newest_mtime"]
    return SourceSummary(
        name=str(document["name"]),
        kind=str(document["kind"]),
        place=str(document["place"]),
        files=int(document["files"]),
        directories=int(document["directories"]),
        links=int(document["links"]),
        size_bytes=int(document["size_bytes"]),
        checksum=str(document["checksum"]),
        modes_checksum=str(document["modes_checksum"]),
        consistency=str(document["consistency"]),
        newest_mtime=datetime.fromisoformat(newest) if newest else None,
        skipped=int(document["skipped"]),
        details=dict(document["details"]),
        warnings=tuple(map(str, document["warnings"])),
        missing=tuple(map(str, document["missing"])),
    )

"""metadata.json: a backup's own word survives the way to disk, and a stranger's is not taken on trust."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from memu_backup.errors import DamagedArchive
from memu_backup.formats import manifest
from memu_backup.model import Manifest, SourceSummary

SOURCE = SourceSummary(
    name="photos", kind="directory", place="photos/", files=2, directories=1, links=0, size_bytes=7,
    checksum="a" * 64, modes_checksum="b" * 64, consistency="as read", newest_mtime=datetime(2026, 1, 2, tzinfo=UTC),
    skipped=3, details={"tables": {"öffentlich.x": 3}}, warnings=("w",), missing=("bad \udcff name has vanished",),
)  # fmt: skip
MADE = Manifest(
    format=manifest.FORMAT, name="memu_backup_20260102_030405.tar.gz", run_id="r", host="attic", job="nightly",
    created_at=datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC), utc_offset="+01:00", version="0.1.0", sources=(SOURCE,),
    sha256sums="c" * 64, shares_with="memu_backup_20260101_030405.tar.gz", nights_shared=2, shared_bytes=5,
)  # fmt: skip


def test_it_comes_back_as_it_was() -> None:
    assert manifest.decode(manifest.encode(MADE)) == MADE


def test_it_holds_what_the_specification_asks_for() -> None:
    told = json.loads(manifest.encode(MADE))
    assert told["created_at"] == "2026-01-02T03:04:05+00:00"
    assert told["version"] == "0.1.0"
    assert told["checksums"] == {"SHA256SUMS": "c" * 64, "photos/": "a" * 64}


def test_times_of_another_zone_are_told_in_utc() -> None:
    told = json.loads(manifest.encode(MADE))
    told["created_at"] = "2026-01-02T04:04:05+01:00"
    told["sources"][0]["newest_mtime"] = "2026-01-02T01:00:00+01:00"
    decoded = manifest.decode(json.dumps(told).encode())
    newest = decoded.sources[0].newest_mtime
    assert (decoded.created_at, newest) == (MADE.created_at, SOURCE.newest_mtime)
    assert newest and newest.utcoffset() == decoded.created_at.utcoffset() == timedelta(0)


def test_a_file_of_the_last_day_of_all_days_is_no_damage() -> None:
    """Btrfs and XFS can hold it."""
    last = datetime(9999, 12, 31, 23, 59, 59, tzinfo=UTC)
    made = replace(MADE, sources=(replace(SOURCE, newest_mtime=last),))
    assert manifest.decode(manifest.encode(made)) == made


def changed(**changes: Any) -> bytes:
    return json.dumps({**json.loads(manifest.encode(MADE)), **changes}).encode()


SAID = json.loads(manifest.encode(MADE))["sources"][0]

WRONG = {
    "nothing": b"",
    "no JSON": b"Dear Oma",
    "a list": b"[]",
    "brackets for ever": b"[" * 1_000_000,
    "of next year": changed(format="memu-backup/2"),
    "a time before all times": changed(created_at="0001-01-01T00:00:00+14:00"),
    "a time after which there is none": changed(created_at="9999-12-31T23:59:00+00:00"),
    "a time that is none": changed(created_at=7),
    "a file before all times": changed(sources=[SAID | {"newest_mtime": "0001-01-01T00:00:00+14:00"}]),
    "no sources": changed(sources=7),
    "a source that is text": changed(sources=["photos"]),
    "no checksums": changed(checksums=[]),
    "files without end": manifest.encode(MADE).replace(b'"files": 2', b'"files": Infinity'),
    "more bytes than a disk holds": changed(sources=[SAID | {"size_bytes": 2**63}]),
    "more in all than a disk holds": changed(sources=[SAID | {"size_bytes": 2**62}] * 2),
    "less than nothing": changed(sources=[SAID | {"files": -1}]),
    "shared for longer than there are nights": changed(nights_shared=2**63),
    "less shared than nothing": changed(shared_bytes=-1),
}


@pytest.mark.parametrize("document", WRONG.values(), ids=WRONG.keys())
def test_what_is_none_of_ours_is_damage(document: bytes) -> None:
    with pytest.raises(DamagedArchive):
        manifest.decode(document)

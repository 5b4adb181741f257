"""The index: any entry comes back, and a stranger's index is not taken on trust."""

from __future__ import annotations

import json
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.errors import DamagedArchive
from memu_backup.formats import index
from memu_backup.formats.index import Entry
from memu_backup.formats.tar import Type

numbers = st.integers(0, 2**63 - 1)
text = st.binary(max_size=60).map(lambda b: b.decode(errors="surrogateescape"))
entries = st.builds(
    Entry, text, st.sampled_from(list(Type)), numbers, numbers, st.integers(), text, text, numbers, numbers, numbers,
    numbers, numbers, numbers, st.integers(),
)  # fmt: skip


@given(st.lists(entries, max_size=5), st.lists(st.integers(0, 3000), max_size=10))
def test_entries_come_back_however_the_bytes_are_split(made: list[Entry], cuts: list[int]) -> None:
    whole = index.first_line() + b"".join(index.line(e) for e in made)
    cuts = sorted({0, len(whole), *(c for c in cuts if c < len(whole))})
    blocks = [memoryview(whole)[a:b] for a, b in pairwise(cuts)]
    assert list(index.parse(index.split(blocks))) == made


GOOD = ["photos/a.jpg", "file", 3, 0o644, 0, "", "0" * 64, 0, 512, 0, 900, 3, 4711, 0]

WRONG = {
    "text": b"Dear Oma",
    "an object": b"{}",
    "too short": json.dumps(GOOD[:-1]).encode(),
    "too long": json.dumps([*GOOD, 1]).encode(),
    "a negative offset": json.dumps([*GOOD[:7], -5, *GOOD[8:]]).encode(),
    "an offset beyond all bounds": json.dumps([*GOOD[:7], 2**64, *GOOD[8:]]).encode(),
    "a negative inode": json.dumps([*GOOD[:12], -1, 0]).encode(),
    "text for a time": json.dumps([*GOOD[:13], "yesterday"]).encode(),
    "a fraction": json.dumps([*GOOD[:2], 3.5, *GOOD[3:]]).encode(),
    "truth": json.dumps([*GOOD[:2], True, *GOOD[3:]]).encode(),
    "a number for a path": json.dumps([7, *GOOD[1:]]).encode(),
    "no type that we know": json.dumps([GOOD[0], "wormhole", *GOOD[2:]]).encode(),
    "brackets for ever": b"[" * 1_000_000,
    "bytes": b"\xff\xfe",
}


@pytest.mark.parametrize("line", WRONG.values(), ids=WRONG.keys())
def test_a_wrong_line_is_damage(line: bytes) -> None:
    with pytest.raises(DamagedArchive):
        list(index.parse([index.first_line(), line]))


def test_columns_that_a_later_version_adds_are_passed_over() -> None:
    told = json.loads(index.first_line())
    head = json.dumps({**told, "columns": [*told["columns"], "mood"]}).encode()
    (entry,) = index.parse([head, json.dumps([*GOOD, "cheerful"]).encode()])
    assert (entry.path, entry.end, entry.inode) == ("photos/a.jpg", 900, 4711)
    with pytest.raises(DamagedArchive):
        list(index.parse([head, json.dumps(GOOD).encode()]))


def test_the_first_archives_do_not_tell_what_is_stored_nor_inodes() -> None:
    for more in ([], ["mood"], ["inode"]):
        head = json.dumps({"format": index.FORMAT, "columns": [*index.COLUMNS, *more]}).encode()
        (entry,) = index.parse([head, json.dumps([*GOOD[:11], *more]).encode()])
        assert (entry.end, entry.stored_bytes, entry.room_bytes) == (900, None, 3)
        assert (entry.inode, entry.ctime_ns) == (0, 0)


@pytest.mark.parametrize("head", [b"", b"[]", b"7", b'{"format": "memu-backup-index/9"}', b"\x00"])
def test_an_index_of_another_kind_is_refused(head: bytes) -> None:
    with pytest.raises(DamagedArchive):
        list(index.parse([head]))

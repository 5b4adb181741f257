"""What makes a backup suspicious, judged from counts and from what every file holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.clock import now
from memu_backup.formats.index import Entry
from memu_backup.formats.tar import Type
from memu_backup.guard import (
    FEWEST_BYTES,
    FEWEST_FILES,
    FEWEST_REWRITTEN,
    losses,
    may_be_rewritten,
    rewritten,
    same_doubt,
    unsure,
)
from memu_backup.model import Backup, Doubt, Loss, Manifest, SourceSummary
from memu_backup.stores import Written

HALF = {"photos": 0.5}
PLACES = {"photos": ("photos/", "photos/")}
counts = st.integers(0, 10**7)
sizes = st.integers(0, 10**14)


def summary(files: int, size_bytes: int = 0, name: str = "photos") -> SourceSummary:
    return SourceSummary(name, "directory", f"{name}/", files, 1, 0, size_bytes, "", "", "as it was")


def lost(now: SourceSummary, was: SourceSummary, limit: float = 0.5) -> list[Loss]:
    return [doubt.what for doubt in losses([now], [was], {"photos": limit})]


def files(contents: dict[str, str], place: str = "photos/") -> list[Entry]:
    return [
        Entry(f"{place}{name}", Type.FILE, len(content), 0o644, 0, "", content, 0, 0, 0, 0, None)
        for name, content in contents.items()
    ]


def rewrote(new: dict[str, str], old: dict[str, str], limit: float = 0.5) -> list[Doubt]:
    return rewritten(files(new), files(old), PLACES, {"photos": limit})


def redis(keys: dict[str, int] | None) -> SourceSummary:
    return replace(summary(1, 600), kind="redis", place="photos.rdb", details={"keys": keys})


def dump(*tables: dict[str, int | None]) -> SourceSummary:
    return replace(summary(1, 600), kind="postgres", details={"databases": [{"tables": one} for one in tables]})


@pytest.mark.parametrize(
    ("was", "now", "what"),
    [
        (redis({"db0": 4000}), redis({}), [Loss.ENTRIES]),
        (redis({"db0": 9}), redis({}), []),
        (redis({"db0": 4000}), redis({"db3": 1}), []),  # most of a cache may expire
        (redis({"db0": 4000}), redis(None), []),  # not counted
        (dump({"t": 50}, {"u": 3}), dump({"t": 0}, {}), [Loss.ENTRIES]),
        (dump({"t": 50}), dump({"t": None}), []),
        (dump({"t": 50}), dump(), [Loss.ENTRIES]),
    ],
)
def test_a_small_database_that_came_back_empty_is_asked_about(
    was: SourceSummary, now: SourceSummary, what: list[Loss]
) -> None:
    assert lost(now, was) == what


@pytest.mark.parametrize(
    ("was", "now", "what"),
    [
        (summary(4020, 9 * 10**9), summary(8, 10**6), [Loss.FILES]),
        (summary(20, 10**6), summary(10, 10**6), [Loss.FILES]),
        (summary(21, 10**6), summary(11, 10**6), []),  # less than half
        (summary(12, 5000), summary(3, 900), []),  # a few small ones
        (summary(3, 900), summary(0), [Loss.EVERYTHING]),  # but to be empty is never usual
        (summary(5, 2 * 10**9), summary(5, 10**9), [Loss.BYTES]),
        (summary(1, 1_900_000), summary(1, 950_000), []),
        (summary(0), summary(0), []),
    ],
)
def test_half_of_the_files_or_of_the_bytes_or_nothing_left(
    was: SourceSummary, now: SourceSummary, what: list[Loss]
) -> None:
    assert lost(now, was) == what


@given(counts, sizes, counts, sizes, st.floats(0.01, 1))
def test_what_grows_is_never_suspicious(files: int, size: int, more_files: int, more: int, limit: float) -> None:
    assert lost(summary(files + more_files, size + more), summary(files, size), limit) == []


@given(counts, sizes, counts, sizes)
def test_a_source_without_a_guard_and_one_that_is_new_are_not_asked_about(f: int, s: int, g: int, t: int) -> None:
    assert lost(summary(f, s), summary(g, t), 0) == []
    assert losses([summary(f, s, "new")], [summary(g, t)], HALF | {"new": 0.5}) == []


@given(counts, sizes, counts, sizes, st.floats(0.01, 1))
def test_a_doubt_tells_what_was_lost_and_is_about_no_trifle(f: int, s: int, g: int, t: int, limit: float) -> None:
    for doubt in losses([summary(f, s)], [summary(g, t)], {"photos": limit}):
        before, left = (t, s) if doubt.what is Loss.BYTES else (g, f)
        assert (doubt.before, doubt.lost) == (before, before - left)
        assert doubt.lost >= limit * before
        few = {Loss.FILES: FEWEST_FILES, Loss.BYTES: FEWEST_BYTES, Loss.EVERYTHING: 1}
        assert doubt.lost >= few[doubt.what]


@given(counts, sizes, counts, sizes, st.floats(0.01, 1), st.floats(0.01, 1))
def test_a_stricter_guard_asks_whatever_a_looser_one_asks(
    f: int, s: int, g: int, t: int, one: float, other: float
) -> None:
    strict, loose = sorted((one, other))
    assert bool(lost(summary(f, s), summary(g, t), strict)) >= bool(lost(summary(f, s), summary(g, t), loose))


def packed(files: int, size_bytes: int) -> SourceSummary:
    told = {"files": files, "directories": 1, "links": 0, "size_bytes": size_bytes}
    return replace(summary(1, size_bytes // 2), place="photos.tar.gz", details={"packed": told})


def test_a_packed_folder_counts_by_what_is_in_it() -> None:
    assert lost(packed(0, 100), packed(40, 8 * 10**6)) == [Loss.EVERYTHING]
    assert lost(packed(20, 8 * 10**6), packed(40, 8 * 10**6)) == [Loss.FILES]
    assert lost(packed(40, 2 * 10**6), packed(40, 8 * 10**6)) == [Loss.BYTES]
    assert lost(packed(40, 8 * 10**6), summary(40, 8 * 10**6)) == [], "to pack it is no loss"


OLD = {f"{number}.jpg": f"photo {number}" for number in range(40)}


def test_what_a_program_encrypted_is_rewritten_under_new_names_or_old_ones() -> None:
    for end in ("", ".locked"):
        new = {f"{name}{end}": f"secret {content}" for name, content in OLD.items()}
        assert rewrote(new, OLD) == [Doubt("photos", Loss.CONTENT, 40, 40)]


def test_half_of_it_is_enough_and_a_little_less_is_not() -> None:
    changed = [{name: f"{'new ' * (n < count)}{c}" for n, (name, c) in enumerate(OLD.items())} for count in (19, 20)]
    assert [len(rewrote(new, OLD)) for new in changed] == [0, 1]
    assert rewrote(changed[1], OLD, 0.75) == []


@given(st.permutations(sorted(OLD.values())), st.integers(0, 100))
def test_sorting_into_other_folders_and_adding_is_no_rewriting(contents: list[str], more: int) -> None:
    new = {f"2024/{number}/x.jpg": content for number, content in enumerate(contents)}
    assert rewrote(new | {f"new {number}": f"new {number}" for number in range(more)}, OLD) == []


@given(
    st.dictionaries(st.sampled_from(sorted(OLD)), st.sampled_from(["", "a", "b", "c"]), min_size=FEWEST_REWRITTEN),
    st.dictionaries(st.sampled_from(sorted(OLD)), st.sampled_from(["", "a", "b", "c"])),
    st.floats(0.01, 1),
    st.integers(0, 40),
)
def test_what_is_told_by_the_files_that_were_kept_needs_no_look_at_them(
    old: dict[str, str], changed: dict[str, str], limit: float, fewer: int
) -> None:
    new = old | changed
    kept = max(0, sum(1 for name, content in old.items() if content and new[name] == content) - fewer)
    if not may_be_rewritten(len(old), kept, limit):
        assert rewrote(new, old, limit) == []


def test_a_twentieth_that_changed_is_no_reason_to_look_and_half_is() -> None:
    assert not may_be_rewritten(4000, 3800, 0.5)
    assert may_be_rewritten(4000, 2000, 0.5)
    assert may_be_rewritten(4000, 0, 0.5), "nothing is known of them"


def test_what_was_kept_of_another_backup_or_of_another_place_says_nothing() -> None:
    before = backup("2026-03-04")
    assert before.manifest
    shared = replace(before.manifest, shares_with=before.name)
    night = Written("2026-03-05", Path(".2026-03-05.partial"), 0, shared, {"photos": 40})
    moved = {"photos": ("old/", "photos/")}
    assert not unsure(night, before, PLACES, HALF)
    assert unsure(night, before, moved, HALF)
    assert unsure(replace(night, manifest=replace(shared, shares_with="2026-03-03")), before, PLACES, HALF)
    assert unsure(replace(night, kept={}), before, PLACES, HALF)


def test_few_files_and_empty_ones_say_nothing() -> None:
    few = dict(list(OLD.items())[: FEWEST_REWRITTEN - 1])
    assert rewrote({}, few) == []
    assert rewrote({}, dict.fromkeys(OLD, "")) == []


def test_each_source_is_judged_by_its_own_files() -> None:
    places = {"photos": ("photos/", "photos/"), "films": ("old/", "films/")}
    old = files(OLD) + files(OLD, "old/")
    new = files({name: f"new {content}" for name, content in OLD.items()}, "films/")
    guards = {"photos": 0.5, "films": 0.5}
    assert [d.source for d in rewritten(new + files(OLD), old, places, guards)] == []  # there under another source
    assert [d.source for d in rewritten(new + files({}), old, places, guards)] == ["photos", "films"]


def backup(name: str, *doubts: Doubt, files: int = 40) -> Backup:
    made = Manifest("", name, name, now(), "+00:00", "attic", "nightly", "1", (summary(files),), "")
    return Backup(name, Path(name), 1, now(), made, doubts=doubts)


def test_an_answer_goes_for_the_same_loss_and_for_no_more_than_that() -> None:
    gone, empty = Doubt("photos", Loss.FILES, 100, 60), Doubt("photos", Loss.EVERYTHING, 100, 100)
    said = backup("said", gone)
    assert same_doubt(said, backup("next", gone), HALF)
    assert not same_doubt(said, backup("next", empty, files=0), HALF)
    assert not same_doubt(said, backup("next", replace(gone, lost=90), files=10), HALF)
    assert not same_doubt(said, backup("next", gone, replace(gone, source="chat")), HALF)

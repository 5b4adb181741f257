"""The spool: newest state of each note, in the order of arrival, through damage, crashes and rivals."""

from __future__ import annotations

import stat
from datetime import timedelta
from pathlib import Path

import pytest

from memu_backup.history import History
from memu_backup.history.spool import Spool
from memu_backup.model import Run, Status, Trigger
from tests.history.samples import NIGHT, a_run, an_event


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "state" / "spool")


def test_notes_keep_the_order_of_their_first_writing_and_the_newest_state(spool: Spool) -> None:
    spool.put(a_run("b", status=Status.IN_PROGRESS))
    spool.put(an_event())
    spool.put(a_run("a", created_at=NIGHT - timedelta(days=3650)))
    spool.put(a_run("b"))
    found = [letter.note for letter in spool.letters()]
    assert found == [a_run("b"), an_event(), a_run("a", created_at=NIGHT - timedelta(days=3650))]


def test_a_run_with_no_more_than_it_must_have_comes_back(spool: Spool) -> None:
    run = Run("r", "nas", "nightly", Trigger.MANUAL, "a.tar.gz", Status.IN_PROGRESS, NIGHT)
    spool.put(run)
    assert [letter.note for letter in spool.letters()] == [run]


def test_only_its_owner_may_read_it(spool: Spool) -> None:
    spool.put(a_run())
    assert stat.S_IMODE(spool.folder.stat().st_mode) == 0o700
    assert {stat.S_IMODE(path.stat().st_mode) for path in spool.folder.iterdir()} == {0o600}


def test_a_run_id_that_is_no_file_name_stays_in_the_folder(spool: Spool, tmp_path: Path) -> None:
    names = ["../../evil", "x" * 1000, "a/b", "\udcff\x00"]
    for name in names:
        spool.put(a_run(name))
    assert [letter.note for letter in spool.letters()] == [a_run(name) for name in names]
    assert [path.name for path in tmp_path.rglob("*") if path.is_file() and path.parent != spool.folder] == []


def test_a_newer_state_is_not_removed_with_the_older_one(spool: Spool) -> None:
    spool.put(a_run(status=Status.IN_PROGRESS))
    (older,) = spool.letters()
    spool.put(a_run())
    spool.remove(older)
    (newer,) = spool.letters()
    assert newer.note == a_run()
    spool.remove(newer)
    assert not spool.holds(a_run())


def test_what_a_killed_process_left_behind_is_not_a_note_and_goes(spool: Spool) -> None:
    spool.put(a_run("a"))
    left_over = spool.folder / f".{next(iter(spool.paths())).name}.1.partial"
    left_over.write_text('{"run": {"run_')
    assert [letter.note for letter in spool.letters()] == [a_run("a")]
    spool.put(a_run("a"))
    assert not left_over.exists()


async def test_a_damaged_file_is_set_aside_and_blocks_nothing(
    database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    spool = Spool(tmp_path / "spool")
    for run_id in "abcdef":
        spool.put(a_run(run_id))
    damage = [b"", b'{"run": {"run_id"', b"[1, 2]", b"\xff\x00", b'{"run": {"created_at": "2026-11-20T01:00:00"}}']
    broken = spool.paths()[: len(damage)]
    for path, content in zip(broken, damage, strict=True):
        path.write_bytes(content)
    history = History(database, tmp_path, "nas")
    assert history.spooled() == [a_run("f")]
    assert await history.replay() == 1
    assert await history.runs() == [a_run("f")]
    assert sorted(p.read_bytes() for p in spool.folder.glob("*.damaged")) == sorted(damage)
    assert caplog.text.count("was damaged and is left out") == len(damage)

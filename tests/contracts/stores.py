"""What every store must do. Subclass it in the store's own test, hand over a constructor, and pass."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest

from memu_backup.beside import remove_tree
from memu_backup.errors import DiskFull, Interrupted, StoreError, UnknownBackup, UsageError
from memu_backup.model import Backup, Captured, Doubt, Level, Loss, Progress, Root
from memu_backup.stores import Label, OnProgress, Store, Written
from memu_backup.walk import identities
from memu_backup.work import Stop
from tests.home import fingerprints
from tests.killing import Moment, needs_strace

AT = datetime(2026, 3, 4, 1, 0, 0, tzinfo=UTC)
ZONE = timezone(timedelta(hours=1))


DOUBTS = (Doubt("photos", Loss.FILES, 4020, 4012), Doubt("sh\udcffop", Loss.BYTES, 20_000_000, 12_000_000))


def ignore(_: Progress) -> None:
    """A progress that nobody looks at."""


def captured(path: Path, place: str = "photos/", source: str = "photos") -> Captured:
    return Captured(source, "directory", place, (Root(path, place),), "each file as it was when it was read")


def write(
    store: Store, *what: Captured, at: datetime = AT, stop: Stop | None = None, on_progress: OnProgress = ignore
) -> Written:
    label = Label(store.unused_name(at, ZONE), "5b0e1a52", at, "+01:00", "attic", "nightly", "0.1.0")
    never = frozenset(identities([store.directory]))
    return store.write(label, what, never, on_progress, stop or Stop())


def publish(store: Store, *what: Captured, at: datetime = AT, doubts: tuple[Doubt, ...] = ()) -> Backup:
    written = write(store, *what, at=at)
    verdict = store.prove(written.partial_path, Level.FULL, ignore, Stop())
    assert verdict.problems == ()
    path = store.publish(written, verdict.sha256 or "", doubts)
    return next(b for b in store.backups() if b.path == path)


def household(folder: Path) -> Path:
    (folder / "2024").mkdir(parents=True)
    (folder / "2024" / "a.jpg").write_bytes(os.urandom(300_000))
    (folder / "b.txt").write_bytes(b"hello\n" * 1000)
    (folder / "empty").touch()
    return folder


@contextmanager
def small_disk(folder: Path, size: str, more: str = "") -> Iterator[Path]:
    """A filesystem of its own; needs root."""
    folder.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}{more}", "tmpfs", folder], check=True)
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


class StoreContract:
    three_names: tuple[str, ...]
    """Of three backups of one moment, 2:00:00 on 4 March 2026."""

    def make(self, directory: Path) -> Store:
        """The store, marked and prepared, that keeps its backups in ``directory``."""
        raise NotImplementedError

    @pytest.fixture
    def store(self, tmp_path: Path) -> Store:
        return self.make(tmp_path / "store")

    @pytest.fixture
    def source(self, tmp_path: Path) -> Path:
        return household(tmp_path / "source")

    def test_what_was_written_comes_back(self, store: Store, source: Path) -> None:
        backup = publish(store, captured(source))
        for file in ("2024/a.jpg", "b.txt", "empty"):
            assert b"".join(store.content(backup.path, f"photos/{file}")) == (source / file).read_bytes()
        assert backup.manifest
        assert (backup.manifest.files, backup.manifest.size_bytes) == (3, 306_000)
        assert backup.created_at == AT

    def test_asking_for_a_file_that_is_not_in_there_is_an_error(self, store: Store, source: Path) -> None:
        backup = publish(store, captured(source))
        for path in ("photos/c.txt", "photos", "photos/2024"):
            with pytest.raises(UsageError, match="no file"):
                list(store.content(backup.path, path))

    def test_nothing_is_listed_before_it_is_published(self, store: Store, source: Path) -> None:
        written = write(store, captured(source))
        assert store.backups() == []
        store.publish(written, "0" * 64)
        assert [b.name for b in store.backups()] == [written.name]

    def test_discarding_leaves_nothing(self, store: Store, source: Path) -> None:
        before = set(store.directory.iterdir())
        store.discard(write(store, captured(source)))
        assert set(store.directory.iterdir()) == before

    def test_backups_are_listed_newest_first(self, store: Store, source: Path) -> None:
        times = [AT + timedelta(days=d) for d in (1, 3, 2)]
        for at in times:
            publish(store, captured(source), at=at)
        assert [b.created_at for b in store.backups()] == sorted(times, reverse=True)

    def test_names_carry_local_time_and_a_suffix_where_they_are_taken(self, store: Store, source: Path) -> None:
        names = [publish(store, captured(source)).name for _ in range(3)]
        assert tuple(names) == self.three_names
        assert {b.name for b in store.backups()} == set(names)

    def test_a_deleted_backup_is_gone_and_the_others_stay(self, store: Store, source: Path) -> None:
        kept = publish(store, captured(source))
        inodes = set(store.directory.iterdir())
        gone = publish(store, captured(source), at=AT + timedelta(days=1))
        store.delete(gone.path)
        assert [b.name for b in store.backups()] == [kept.name]
        assert set(store.directory.iterdir()) == inodes
        store.delete(gone.path)  # again, as a prune that was killed in between does

    def test_a_pinned_backup_is_never_deleted_until_it_is_released(self, store: Store, source: Path) -> None:
        before = set(store.directory.iterdir())
        there = publish(store, captured(source))
        store.pin(there.path)
        store.pin(there.path)
        assert [b.pinned for b in self.make(store.directory).backups()] == [True]
        with pytest.raises(StoreError, match="is pinned, so it was not removed"):
            store.delete(there.path)
        assert store.sweep() == []
        assert [b.pinned for b in store.backups()] == [True]
        store.release(there.path)
        store.release(there.path)
        assert [b.pinned for b in store.backups()] == [False]
        store.delete(there.path)
        assert set(store.directory.iterdir()) == before

    def test_the_pin_of_one_that_is_gone_is_swept_away_and_keeps_no_other(self, store: Store, source: Path) -> None:
        there = publish(store, captured(source))
        other = publish(store, captured(source))
        store.pin(there.path)
        remove_tree(there.path)  # by hand
        assert store.unused_name(AT, ZONE) not in (there.name, other.name)
        assert store.sweep()
        assert [(b.name, b.pinned) for b in store.backups()] == [(other.name, False)]
        with pytest.raises(UnknownBackup, match="not there any more"):
            store.pin(there.path)
        assert store.sweep() == []

    def test_that_a_backup_is_damaged_lies_beside_it_until_it_is_found_whole_or_goes(
        self, store: Store, source: Path
    ) -> None:
        before = set(store.directory.iterdir())
        there = publish(store, captured(source))
        store.condemn(there.path)
        store.condemn(there.path)
        assert [b.damaged for b in self.make(store.directory).backups()] == [True]
        assert store.sweep() == []
        store.acquit(there.path)
        store.acquit(there.path)
        assert [b.damaged for b in store.backups()] == [False]
        store.condemn(there.path)
        store.delete(there.path)
        assert set(store.directory.iterdir()) == before
        with pytest.raises(UnknownBackup, match="not there any more"):
            store.condemn(there.path)

    def test_that_one_was_damaged_is_swept_away_once_it_is_gone_and_taints_no_other(
        self, store: Store, source: Path
    ) -> None:
        there = publish(store, captured(source))
        store.condemn(there.path)
        remove_tree(there.path)  # by hand
        other = publish(store, captured(source))
        assert store.sweep()
        assert [(b.name == there.name, b.damaged) for b in store.backups()] == [(False, False)]
        assert other.path.exists()

    def test_a_suspicious_backup_is_so_until_somebody_accepts_it_or_it_goes(self, store: Store, source: Path) -> None:
        before = set(store.directory.iterdir())
        there = publish(store, captured(source), doubts=DOUBTS)
        assert (there.doubts, there.good) == (DOUBTS, False)
        assert store.sweep() == []
        assert [b.doubts for b in self.make(store.directory).backups()] == [DOUBTS]
        assert store.prove(there.path, Level.FULL, ignore, Stop()).problems == ()
        store.accept(there.path)
        store.accept(there.path)
        assert [(b.doubts, b.good) for b in store.backups()] == [((), True)]
        store.delete(there.path)
        assert set(store.directory.iterdir()) == before
        store.delete(publish(store, captured(source), doubts=DOUBTS).path)
        assert set(store.directory.iterdir()) == before

    def test_doubts_are_swept_away_with_their_backup_and_taint_no_other(self, store: Store, source: Path) -> None:
        remove_tree(publish(store, captured(source), doubts=DOUBTS).path)  # by hand
        other = publish(store, captured(source))
        assert store.sweep()
        assert [(b.name, b.doubts) for b in store.backups()] == [(other.name, ())]

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"[1]", b'[{"source": "photos", "what": "?"}]', b"\xff"])
    def test_a_note_that_tells_nothing_says_that_something_is_wrong(
        self, store: Store, source: Path, content: bytes
    ) -> None:
        there = publish(store, captured(source), doubts=DOUBTS)
        (note,) = (p for p in store.directory.rglob("*suspicious") if p.is_file())
        note.write_bytes(content)
        assert [d.what for d in store.look(there.path).doubts] == [Loss.UNTOLD]
        assert not store.look(there.path).good

    @needs_strace
    @pytest.mark.slow
    def test_wherever_it_is_killed_a_suspicious_backup_never_counts_as_good(self, store: Store, source: Path) -> None:
        """The note is on the disk before the backup has its name."""
        listed = []
        for nth in range(1, 20):
            moment = Moment("fsync", nth)
            with self._start(store, source, "p = c.publish(store, photos, doubts=c.DOUBTS)", moment) as process:
                assert process.stdout
                process.stdout.read()
            assert process.returncode in (0, -signal.SIGKILL)
            there = store.backups()
            listed.append(len(there))
            assert {b.doubts for b in there} <= {DOUBTS}
            store.sweep()
            for backup in store.backups():
                store.delete(backup.path)
            if process.returncode == 0:
                break
        assert process.returncode == 0 and set(listed) == {0, 1}, listed
        assert listed == sorted(listed), "with its name it stays"

    def test_a_store_is_never_part_of_its_own_backup(self, store: Store, tmp_path: Path) -> None:
        household(tmp_path / "source")
        written = write(store, captured(tmp_path))
        (summary,) = written.manifest.sources
        assert summary.files == 3
        assert summary.skipped == 1
        assert summary.missing == ()

    def test_a_source_that_is_the_store_itself_is_missing_and_said_so(self, store: Store) -> None:
        written = write(store, captured(store.directory))
        assert any("its own files" in m for m in written.manifest.sources[0].missing)

    def test_a_source_that_is_not_there_makes_it_partial(self, store: Store, source: Path) -> None:
        written = write(store, captured(source), captured(source / "nothing", "more/", "more"))
        assert written.manifest.partial
        assert store.prove(written.partial_path, Level.FULL, ignore, Stop()).problems == ()

    def test_stopping_leaves_nothing_behind(self, store: Store, source: Path) -> None:
        before = set(store.directory.iterdir())
        stop = Stop()
        stop.set()
        with pytest.raises(Interrupted):
            write(store, captured(source), stop=stop)
        assert set(store.directory.iterdir()) == before

    def test_proving_can_be_stopped(self, store: Store, source: Path) -> None:
        backup = publish(store, captured(source))
        stop = Stop()
        stop.set()
        with pytest.raises(Interrupted):
            store.prove(backup.path, Level.FULL, ignore, stop)

    def test_progress_counts_what_was_read(self, store: Store, source: Path) -> None:
        seen: list[Progress] = []
        label = Label(store.unused_name(AT, ZONE), "5b0e1a52", AT, "+01:00", "attic", "nightly", "0.1.0")
        written = store.write(label, [captured(source)], frozenset(), seen.append, Stop())
        assert (seen[-1].done_bytes, seen[-1].files) == (306_000, 3)
        seen.clear()
        store.prove(written.partial_path, Level.FULL, seen.append, Stop())
        assert (seen[-1].done_bytes, seen[-1].files) == (306_000, 3)

    def test_what_a_killed_run_left_is_swept_away_and_nothing_else(
        self, store: Store, source: Path, tmp_path: Path
    ) -> None:
        kept = publish(store, captured(source))
        there = {p: p.stat().st_ino for p in store.directory.iterdir()}
        stranger = store.directory / "holiday.jpg"
        stranger.write_bytes(b"not ours")
        with (tmp_path / "source" / "large").open("wb") as file:
            file.truncate(8 << 40)  # so that the kill comes in the middle: a hole of 8 TB takes hours to hash
        process = self._start_a_run(store, source)
        with process:
            assert process.stdout
            assert process.stdout.readline() == b"writing\n"
            process.kill()
        assert process.returncode == -signal.SIGKILL
        assert [b.name for b in store.backups()] == [kept.name]
        assert store.sweep()
        assert {p: p.stat().st_ino for p in store.directory.iterdir()} == {**there, stranger: stranger.stat().st_ino}
        assert store.prove(kept.path, Level.FULL, ignore, Stop()).problems == ()

    def _start_a_run(self, store: Store, source: Path) -> subprocess.Popen[bytes]:
        code = "say = lambda _: print('writing', flush=True); c.write(store, photos, on_progress=say)"
        return self._start(store, source, code)

    def _start(self, store: Store, source: Path, work: str, moment: Moment | None = None) -> subprocess.Popen[bytes]:
        """``work`` in a process of its own, through the same constructor."""
        module, name = type(self).__module__, type(self).__qualname__
        code = (
            "import sys, importlib; from pathlib import Path; from tests.contracts import stores as c; "
            f"contract = getattr(importlib.import_module({module!r}), {name!r})(); "
            "store = contract.make(Path(sys.argv[1]));"
            f"photos = c.captured(Path(sys.argv[2])); {work}"
        )
        argv = [*(moment.prefix if moment else ()), sys.executable, "-c", code, str(store.directory), str(source)]
        return subprocess.Popen(argv, stdout=subprocess.PIPE)

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
    @pytest.mark.parametrize("case", ["large file", "many files"])
    def test_a_full_disk_is_said_so_and_nothing_stays(self, tmp_path: Path, case: str) -> None:
        source = tmp_path / "source"
        source.mkdir()
        if case == "large file":
            (source / "film").write_bytes(os.urandom(6_000_000))
        else:
            for number in range(1500):
                (source / f"{number}").write_bytes(os.urandom(2000))
        with small_disk(tmp_path / "disk", "2m") as disk:
            store = self.make(disk / "store")
            (source / "small").write_bytes(b"1")
            kept = publish(store, captured(source / "small", "small", "small"))
            before = {p.name for p in store.directory.iterdir()}
            with pytest.raises(DiskFull, match=r"is full.*older backups are untouched"):
                write(store, captured(source))
            assert {p.name for p in store.directory.iterdir()} == before
            assert store.prove(kept.path, Level.FULL, ignore, Stop()).problems == ()

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
    def test_running_out_of_inodes_is_told_from_running_out_of_room(self, tmp_path: Path, source: Path) -> None:
        with small_disk(tmp_path / "disk", "20m", ",nr_inodes=8") as disk:
            store = self.make(disk / "store")
            for number in range(5):
                (disk / str(number)).touch()
            with pytest.raises(DiskFull, match="no inodes left"):
                write(store, captured(source))

    @pytest.mark.skipif(os.geteuid() != 0, reason="only root can mount a small disk")
    def test_a_read_only_disk_is_refused(self, tmp_path: Path, source: Path) -> None:
        with small_disk(tmp_path / "disk", "2m") as disk:
            store = self.make(disk / "store")
            subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
            for attempt in (store.prepare, lambda: write(store, captured(source))):
                with pytest.raises(StoreError, match="read-only"):
                    attempt()

    def test_a_folder_is_marked_once_and_lastingly(self, tmp_path: Path) -> None:
        """Neither by being there nor by being prepared; and what is swept away is not the mark."""
        store = self.make(tmp_path / "other")
        other = type(store)(tmp_path / "new" / "store", store.Settings.model_validate({"kind": store.kind}))
        assert (store.marked(), other.marked()) == (True, False)
        with pytest.raises(StoreError):
            other.prepare()
        assert not (tmp_path / "new").exists()
        other.mark("attic", AT)
        assert other.marked() and other.backups() == [] and other.sweep() == []
        other.prepare()
        there = fingerprints(other.directory)
        other.mark("cellar", AT + timedelta(days=1))
        assert fingerprints(other.directory) == there and other.marked()
        assert [oct(p.stat().st_mode & 0o777) for p in (other.directory, *other.directory.iterdir())] == [
            "0o700",
            "0o600",
        ]

    def test_a_store_in_a_file_is_refused(self, tmp_path: Path) -> None:
        (tmp_path / "file").touch()
        with pytest.raises(StoreError):
            self.make(tmp_path / "file")

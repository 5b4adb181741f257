"""What every source must do. Subclass it in the source's own test, hand over a household, and pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC
from pathlib import Path

import pytest

from memu_backup import exchange
from memu_backup.clock import now
from memu_backup.errors import RestoreError, SourceError
from memu_backup.model import Level
from memu_backup.replacing import Replacing
from memu_backup.sources import Source
from memu_backup.stores import Store
from memu_backup.work import Stop
from tests.archives import Unpacked, archive_store, back_up, give_back, ignore, returning, snapshot, write


@dataclass(frozen=True)
class _Stored:
    store: Store
    path: Path

    def content(self, path: str) -> Iterator[bytes]:
        return self.store.content(self.path, path)


class SourceContract:
    """``household`` makes the data, ``make`` the source over it, ``compare`` asserts that all of it came back."""

    def household(self, folder: Path) -> Path:
        raise NotImplementedError

    def make(self, data: Path) -> Source:
        raise NotImplementedError

    def take_away(self, data: Path) -> None:
        """Make the data such that a check must fail."""
        raise NotImplementedError

    def compare(self, data: Path, unpacked: Unpacked) -> None:
        raise NotImplementedError

    def change(self, data: Path) -> None:
        """Let some of it be another than it was."""
        next(path for path in sorted(data.rglob("*")) if path.is_file() and not path.is_symlink()).write_text("changed")

    def rest(self, data: Path) -> None:
        """Let nothing write to it, where that would keep it from being exchanged."""

    def lose(self, data: Path) -> None:
        """Let all of it be gone, as on a machine that was just set up anew."""
        self.take_away(data)

    def held(self, data: Path) -> object:
        """All that there is to compare of the data where it lives."""
        return snapshot(data)

    @pytest.fixture
    def data(self, tmp_path: Path) -> Path:
        folder = tmp_path / "household"
        folder.mkdir()
        return self.household(folder)

    @pytest.fixture
    def source(self, data: Path) -> Source:
        return self.make(data)

    @pytest.fixture
    def stage(self, tmp_path: Path) -> Path:
        (tmp_path / "stage").mkdir(mode=0o700)
        return tmp_path / "stage"

    async def test_everything_comes_back_identical(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        assert await source.check() == []
        store = archive_store(tmp_path / "store")
        async with source.capture(stage) as captured:
            path = back_up(store, captured)
        unpacked = give_back(path, tmp_path / "target")
        assert unpacked.warnings == []
        self.compare(data, unpacked)

    async def test_all_of_it_lies_below_its_place(self, source: Source, stage: Path) -> None:
        async with source.capture(stage) as captured:
            assert captured.roots
            for root in captured.roots:
                assert root.path.is_absolute()
                assert root.place == captured.place or root.place.startswith(captured.place)
            assert (captured.source, captured.kind, captured.place) == (source.name, source.kind, source.place)
            assert captured.consistency

    async def test_its_own_check_finds_a_good_backup_good(self, source: Source, stage: Path, tmp_path: Path) -> None:
        store = archive_store(tmp_path / "store")
        async with source.capture(stage) as captured:
            path = back_up(store, captured)
        (backup,) = store.backups()
        assert backup.manifest

        assert await type(source).verify(backup.manifest.sources[0], _Stored(store, path)) == []

    async def test_its_part_is_told_on_one_line_whatever_a_stranger_wrote_of_it(
        self, source: Source, stage: Path, tmp_path: Path
    ) -> None:
        async with source.capture(stage) as captured:
            made = write(archive_store(tmp_path / "store"), captured).manifest.sources[0]
        for summary in (made, replace(made, details={}), replace(made, details=dict.fromkeys(made.details))):
            told = type(source).told(summary, now(), UTC)
            assert told and told.isprintable()

    async def test_checking_and_capturing_change_nothing(self, source: Source, data: Path, stage: Path) -> None:
        before = snapshot(data)
        await source.check()
        async with source.capture(stage):
            pass
        assert snapshot(data) == before

    async def test_what_is_not_there_is_one_clear_sentence(self, source: Source, data: Path, stage: Path) -> None:
        self.take_away(data)
        with pytest.raises(SourceError) as met:
            await source.check()
        assert source.name in str(met.value)
        assert "cannot be backed up" in str(met.value)
        assert "\n" not in str(met.value)
        with pytest.raises(SourceError):
            async with source.capture(stage):
                pass

    async def test_what_goes_away_after_the_check_makes_the_backup_partial(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        store = archive_store(tmp_path / "store")
        async with source.capture(stage) as captured:
            self.take_away(data)
            written = write(store, captured)
        assert written.manifest.partial
        assert store.prove(written.partial_path, Level.FULL, ignore, Stop()).problems == ()

    async def test_what_was_lost_is_put_back_where_it_lives(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        async with source.capture(stage) as captured:
            archive = back_up(archive_store(tmp_path / "store"), captured)
        before = self.held(data)
        self.lose(data)
        back = await returning(archive, {source.name: source}, tmp_path / "scratch")
        assert back.step.replaces == ()
        assert await back.all_there() == ()
        assert self.held(data) == before
        assert await source.check() == []
        assert not back.step.unpacking.target.exists()

    async def test_what_is_there_is_exchanged_and_kept_until_it_is_released(
        self, source: Source, data: Path, stage: Path, tmp_path: Path
    ) -> None:
        async with source.capture(stage) as captured:
            archive = back_up(archive_store(tmp_path / "store"), captured)
        before = self.held(data)
        if not isinstance(source, Replacing):
            with pytest.raises(RestoreError) as met:
                await returning(archive, {source.name: source}, tmp_path / "scratch", source.name)
            assert source.name in str(met.value)
            assert "\n" not in str(met.value)
            assert self.held(data) == before
            return
        self.change(data)
        there = self.held(data)
        assert there != before
        self.rest(data)
        back = await returning(archive, {source.name: source}, tmp_path / "scratch")
        assert back.step.replaces
        assert await back.all_there() == ()
        assert self.held(data) == before
        for expected in (there, before):
            self.rest(data)
            await exchange.undo(back.house, None, lambda _: None)
            assert self.held(data) == expected
        await exchange.release(back.house, None)
        assert self.held(data) == before
        beside = back.step.unpacking.target.parent
        assert not [path.name for path in beside.iterdir() if ".before-" in path.name or "memu-backup" in path.name]

    async def test_two_captures_of_the_same_data_have_the_same_checksum(
        self, source: Source, stage: Path, tmp_path: Path
    ) -> None:
        sums = []
        for name in ("one", "two"):
            (stage / name).mkdir(mode=0o700)
            async with source.capture(stage / name) as captured:
                summary = write(archive_store(tmp_path / name), captured).manifest.sources[0]
            sums.append((summary.checksum, summary.modes_checksum))
        assert sums[0] == sums[1]

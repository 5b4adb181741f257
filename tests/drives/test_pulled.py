"""Drives that are pulled out, die, or lie; and a service that is killed while it copies."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.drives.guests import OURS, House, sha256
from tests.odd_stick import Inside, inside
from tests.service import Service
from tests.usb import Hub, Stick, needs_usb

pytestmark = needs_usb

SIZE = 60_000_000
SLOWLY = 20_000_000


@pytest.fixture
def within(tmp_path: Path) -> Iterator[Inside]:
    with inside(tmp_path / "inside") as made:
        yield made


def with_an_older_copy(house: House, within: Inside) -> tuple[Stick, Path, Path]:
    """A slow stick with a copy on it, that backup, and a newer one which takes its time."""
    stick, older = house.trusted(inside=within), house.home.archives[0]
    stick.plug()
    house.hub.until(lambda: "plugged in" in house.run("usb", "list").out)
    assert house.run("usb", "copy").status == 0
    stick.unplug()
    newer = house.back_up(SIZE)
    within.be(bytes_per_second=SLOWLY)
    return stick, older, newer


async def under_way(service: Service, house: House, stick: Stick) -> None:
    """Plug it in, and wait until a good part of the copy was written."""
    await service.ready()
    stick.plug()
    await service.until(lambda: "%" in (found := house.run("status").out) and "copying to" in found, 30)


def partials(stick: Stick) -> list[str]:
    return [name for name in stick.names() if name.endswith(".partial")]


@pytest.mark.parametrize("how", ["udev says so", pytest.param("it gives errors first", marks=pytest.mark.slow)])
async def test_pulled_in_the_middle_it_is_told_within_seconds_and_older_copies_stay(
    house: House, within: Inside, how: str
) -> None:
    stick, older, newer = with_an_older_copy(house, within)
    async with house.service() as service:
        await under_way(service, house, stick)
        begun = time.monotonic()
        if how == "it gives errors first":
            within.be(dead=True)
            await asyncio.sleep(0.2)
        else:
            within.be(dead=True)
        stick.vanish()
        await service.until(lambda: "Failed" in house.told(), 6)
        assert time.monotonic() - begun < 5
        assert house.told() == (
            "USB Backup Failed\n"
            "'SanDisk_Family' drive: It was pulled out before the copy was done. The older copies that lie on it "
            "are untouched.\n"
            "Action needed: Plug it in again, and leave it until you are told that it may be removed"
        )
        await service.until(lambda: not service.running("drives.copier") and not _mounted(house.hub), 5)
        begun = time.monotonic()
        (house.home.folder / "probe").write_bytes(bytes(50_000_000))
        os.sync()
        assert time.monotonic() - begun < 5, "the server is as quick as before"
        stick.unplug()

        within.be()
        stick.plug()
        await service.until(lambda: house.told().endswith("Safe to remove the drive."), 15)
        await service.stop()
    stick.unplug()
    with stick.mounted() as top:
        assert sha256(top / OURS / older.name) == sha256(older)
        assert sha256(top / OURS / newer.name) == sha256(newer)
    assert partials(stick) == []


async def test_pulled_from_a_write_that_hangs_without_an_error_it_is_told_within_seconds(
    house: House, within: Inside
) -> None:
    """As the kernel does it: no error comes, and what waits for the drive waits."""
    stick, _, _ = with_an_older_copy(house, within)
    async with house.service() as service:
        await under_way(service, house, stick)
        with within.hanging():
            begun = time.monotonic()
            stick.vanish()
            await service.until(lambda: "It was pulled out before the copy was done." in house.told(), 6)
            assert time.monotonic() - begun < 5
        within.be()
        await service.stop()
    stick.unplug()


def _mounted(hub: Hub) -> list[str]:
    return [m for m in (hub.root / f"proc/{hub.pid}/mountinfo").read_text().splitlines() if "/drives/mounted/" in m]


@pytest.mark.slow
async def test_killed_in_the_middle_the_next_service_finishes_it_and_sweeps(house: House, within: Inside) -> None:
    stick, older, newer = with_an_older_copy(house, within)
    async with house.service() as service:
        await under_way(service, house, stick)
        for process in service.alive():  # as systemd does with all of a unit, and a power cut with everything
            process.kill()
    within.be()
    assert _mounted(house.hub), "nobody was left to unmount it"
    async with house.service() as service:
        await service.until(lambda: house.told().endswith("Safe to remove the drive."), 20)
        await service.stop()
    assert _mounted(house.hub) == []
    stick.unplug()
    with stick.mounted() as top:
        assert sha256(top / OURS / older.name) == sha256(older)
        assert sha256(top / OURS / newer.name) == sha256(newer)
    assert partials(stick) == []


@pytest.mark.slow
async def test_told_to_stop_in_the_middle_it_ends_soon_and_leaves_nothing_mounted(house: House, within: Inside) -> None:
    stick = house.trusted(inside=within)
    house.back_up(SIZE)
    within.be(bytes_per_second=SLOWLY)
    async with house.service() as service:
        await under_way(service, house, stick)
        assert await service.stop() < 9
        assert service.alive() == []
    assert _mounted(house.hub) == []
    assert "Failed" not in house.told()


@pytest.mark.slow
def test_a_drive_that_is_smaller_than_it_says_is_found_out(house: House, within: Inside) -> None:
    stick = house.trusted(size_bytes=256 << 20, inside=within)
    house.back_up(SIZE)
    within.be(forgets_from=40 << 20)
    stick.plug()
    house.hub.until(lambda: "plugged in" in house.run("usb", "list").out)
    ran = house.run("usb", "copy")
    within.be()
    assert ran.status == 1, ran
    assert ran.err.splitlines()[-1] == (
        "'SanDisk_Family' drive: What was read back from it is not what was written: it is broken, or smaller than it "
        "says. Use another."
    )
    assert house.drive().copies == 0
    assert house.home.rows()[0]["usb_copied_at"] is None


@pytest.mark.slow
def test_that_is_found_out_of_a_small_copy_too_which_the_kernel_still_has_in_memory(
    house: House, within: Inside
) -> None:
    stick = house.trusted(size_bytes=64 << 20, inside=within)
    house.back_up(8_000_000)
    within.be(forgets_from=1 << 20)
    stick.plug()
    house.hub.until(lambda: "plugged in" in house.run("usb", "list").out)
    ran = house.run("usb", "copy")
    within.be()
    assert ran.status == 1 and "Copied latest backup" not in ran.out, ran
    assert house.drive().copies == 0


@pytest.mark.slow
def test_the_copy_is_a_process_of_its_own_that_can_be_killed(house: House, within: Inside) -> None:
    stick = house.trusted(inside=within)
    house.back_up(SIZE)
    within.be(bytes_per_second=SLOWLY)
    stick.plug()
    argv = [*house.hub.prefix, *house.home.argv("usb", "copy")]
    with subprocess.Popen(argv, stdin=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as running:
        psutil.Process(house.until_copier()).send_signal(signal.SIGKILL)
        assert running.stderr
        last = running.stderr.read().splitlines()[-1]
    assert last == "'SanDisk_Family' drive: The copy ended early (exit status -9). Plug it in again."
    assert running.returncode == 1
    within.be()
    assert house.run("usb", "copy").status == 0
    stick.unplug()
    assert partials(stick) == []

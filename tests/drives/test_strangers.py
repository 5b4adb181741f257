"""Who gets copies and who does not: drives nobody approved, look-alikes, twins, hostile labels, the machine's own."""

from __future__ import annotations

import asyncio
import json
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import pytest

from tests.drives.guests import OURS, PHOTOS, House, sha256
from tests.gate import Gate
from tests.service import Service
from tests.usb import needs_usb

pytestmark = needs_usb

RULES = Path(__file__).parent.parent.parent / "deploy" / "99-memu-usb.rules"


async def settled(service: Service, house: House) -> None:
    """Whatever is to happen to what was just plugged in has happened."""
    await service.until(lambda: not service.running("drives.copier"))
    await asyncio.sleep(0.7)


async def test_one_that_nobody_approved_gets_nothing_and_is_asked_about_once(house: House) -> None:
    """Also where somebody has listed it at the terminal before the service saw it."""
    stick = house.hub.stick(label="A <b>\x1b[31m \u202ebig\nstick")
    before = sha256(stick.image)
    stick.plug()
    house.hub.until(lambda: "To have copies on it" in house.run("usb", "list").out)
    stick.unplug()
    async with house.service() as service:
        await service.ready()
        for _ in range(2):
            stick.plug()
            await service.logs("Plugged in")
            await settled(service, house)
            stick.unplug()
        await service.stop()
        log = service.log()
    assert sha256(stick.image) == before
    assert log.count("Use it for backups?") == 1
    (drive,) = house.known.drives()
    assert drive.label.isprintable() and "<b>" in drive.label and "\x1b" not in log
    ran = house.run("usb", "list")
    assert "not approved" in ran.out


@pytest.mark.slow
async def test_approved_at_the_terminal_the_service_copies_at_once(house: House) -> None:
    stick = house.hub.stick()
    async with house.service() as service:
        await service.ready()
        stick.plug()
        await service.logs("Use it for backups?")
        ran = house.run("usb", "trust", "sandisk_family", "--name", "blue drive", "--kept-at", "grandma's")
        assert ran.status == 0, ran
        assert "The service does not run" not in ran.out
        await service.until(
            lambda: house.told().startswith("USB Backup Complete\nCopied latest backup to 'blue drive'.")
        )
        await service.stop()
    stick.unplug()
    assert house.home.archives[0].name in "".join(stick.names())
    assert "'blue drive' (grandma's): today, 1 backup" in house.run("status", "--details").out
    (row,) = house.passports()
    assert (row["name"], row["kept_at"], row["copies"], row["label"]) == (
        "blue drive",
        "grandma's",
        1,
        "SanDisk_Family",
    )
    assert row["last_copied_at"] and row["trusted_at"]


@pytest.mark.slow
@pytest.mark.parametrize(("usb", "copied"), [
    ('approve = "any"', True),
    ('approve = "listed"\ndrives = ["766B434E-e409-4838-a9ca-5df547146b43"]', True),
    ('approve = "listed"\ndrives = ["866b434e-e409-4838-a9ca-5df547146b43"]', False),
])  # fmt: skip
async def test_the_settings_may_approve(house: House, usb: str, copied: bool) -> None:
    house.configure(usb)
    stick = house.hub.stick(uuid="766b434e-e409-4838-a9ca-5df547146b43")
    async with house.service() as service:
        await service.ready()
        stick.plug()
        await service.logs("Safe to remove the drive." if copied else "Nobody has approved the drive SanDisk_Family")
        await settled(service, house)
        assert "Use it for backups?" not in service.log()
        await service.stop()
    stick.unplug()
    assert bool([n for n in stick.names() if n.startswith(OURS)]) is copied


def test_a_label_approves_no_drive_since_any_stick_can_be_given_one(house: House) -> None:
    house.configure('approve = "listed"\ndrives = ["SanDisk_Family"]')
    ran = house.run("status")
    assert ran.status == 2
    assert "SanDisk_Family is no UUID of a filesystem; memu-backup usb list shows it" in ran.err


@pytest.mark.slow
async def test_a_device_that_is_another_one_each_time_does_not_fill_the_room(house: House) -> None:
    sticks = [house.hub.stick(label=f"Stranger{number}", size_bytes=16 << 20) for number in range(8)]
    async with house.service() as service:
        await service.ready()
        for stick in sticks:
            stick.plug()
        await service.until(lambda: service.log().count("Plugged in") == len(sticks))
        await service.logs("too many new ones were plugged in")
        await settled(service, house)
        assert service.log().count("Use it for backups?") == 6
        await service.stop()
    for stick in sticks:
        stick.unplug()


@pytest.mark.slow
async def test_one_that_was_emptied_or_is_a_copy_of_ours_gets_nothing_until_it_is_approved_anew(house: House) -> None:
    stick = house.trusted()
    stick.plug()
    house.hub.until(lambda: "plugged in" in house.run("usb", "list").out)
    assert house.run("usb", "copy").status == 0
    stick.unplug()
    with stick.mounted() as top:
        shutil.rmtree(top / "memu-backup")
    async with house.service() as service:
        await service.ready()
        stick.plug()
        await service.until(lambda: "does not carry its mark" in house.told())
        assert house.told().startswith(
            "USB Backup Failed\n'SanDisk_Family' drive: It looks like a drive that gets copies"
        )
        assert house.told().endswith("If it is to be used, an admin answers !backup trust SanDisk_Family")
        assert house.run("usb", "trust", "SanDisk_Family").status == 0
        await service.until(lambda: house.told().endswith("Safe to remove the drive."))
        await service.stop()
    stick.unplug()
    assert [n for n in stick.names() if n.endswith(".tar.gz")] != []


@pytest.mark.slow
async def test_two_with_one_uuid_get_nothing_until_one_of_them_is_gone(house: House) -> None:
    stick = house.trusted()
    stick.plug()
    house.hub.until(lambda: "plugged in" in house.run("usb", "list").out)
    assert house.run("usb", "copy").status == 0
    stick.unplug()
    twin = house.hub.stick(label="Twin", uuid=house.drive().fs_uuid)
    newer = house.back_up(1000)
    before = [sha256(one.image) for one in (stick, twin)]
    async with house.service() as service:
        await service.ready()
        # So that both are there when the service looks.
        service.process.send_signal(signal.SIGSTOP)
        stick.plug()
        twin.plug()
        house.hub.udevadm("settle")
        service.process.send_signal(signal.SIGCONT)
        await service.until(lambda: "both say they are" in house.told_of_any())
        ran = house.run("usb", "copy")
        assert ran.status == 2 and "both say they are" in ran.err
        assert [sha256(one.image) for one in (stick, twin)] == before
        twin.unplug()
        await service.until(lambda: newer.name in house.told_of_any())
        await service.stop()
    stick.unplug()
    assert f"{OURS}/{newer.name}" in stick.names()
    assert twin.names() == []


def safe(house: House, label: str) -> bool:
    return house.told(label).endswith("Safe to remove the drive.")


@pytest.mark.slow
async def test_two_at_once_are_served_one_after_the_other(house: House) -> None:
    sticks = [house.trusted(label=label) for label in ("Red", "Blue")]
    async with house.service() as service:
        await service.ready()
        for stick in sticks:
            stick.plug()
        for label in ("Red", "Blue"):
            await service.until(partial(safe, house, label))
        await service.stop()
    for stick in sticks:
        stick.unplug()
        assert len([n for n in stick.names() if n.endswith(".tar.gz")]) == 1
    assert "'Red' drive: today, 1 backup" in house.run("status").out


async def test_a_storm_of_events_makes_one_copy(house: House) -> None:
    stick = house.trusted()
    async with house.service() as service:
        await service.ready()
        stick.plug()
        stick.storm(2000)
        await service.until(lambda: house.told().endswith("Safe to remove the drive."))
        stick.storm(2000)
        await settled(service, house)
        assert service.process.returncode is None
        await service.stop()
    stick.unplug()
    assert [e["action"] for e in house.home.audit()].count("copy to drive") == 1


@contextmanager
def small_buffers() -> Iterator[None]:
    """As most kernels have them, for whoever asks meanwhile."""
    most = Path("/proc/sys/net/core/rmem_max")
    before = most.read_text()
    most.write_text("212992")
    try:
        yield
    finally:
        most.write_text(before)


@pytest.mark.slow
async def test_where_events_were_lost_all_drives_are_looked_at_anew(house: House) -> None:
    """The kernel keeps a few hundred for a service that has no time; here it had none at all for a while."""
    stick, other = house.hub.stick(label="Other"), house.trusted()
    async with house.service(as_the_unit=True) as service:
        with small_buffers():
            await service.ready()
            stick.plug()
            await service.logs("Use it for backups?")
        service.process.send_signal(signal.SIGSTOP)
        stick.storm(600)
        other.plug()
        house.hub.udevadm("settle", "--timeout=30")
        service.process.send_signal(signal.SIGCONT)
        await service.logs("Events of drives were lost")
        await service.until(partial(safe, house, "SanDisk_Family"))
        await service.stop()
    for one in (stick, other):
        one.unplug()
    assert [bool(one.names()) for one in (stick, other)] == [False, True]


@pytest.mark.slow
async def test_one_that_is_there_when_the_service_starts_counts_too(house: House) -> None:
    stick = house.trusted()
    stick.plug()
    async with house.service() as service:
        await service.until(lambda: house.told().endswith("Safe to remove the drive."))
        await service.stop()
    stick.unplug()
    assert f"{OURS}/{house.home.archives[0].name}" in stick.names()


@pytest.mark.slow
@pytest.mark.parametrize("label", ["Two words", "SanDisk_Family"])
def test_two_with_one_label_are_told_apart(house: House, label: str) -> None:
    sticks = [house.hub.stick(label=label) for _ in range(2)]
    for stick in sticks:
        stick.plug()
    ran = house.run("usb", "trust", label)
    assert ran.status == 2
    assert ran.err.startswith(f"There are 2 drives called {label}: ")
    uuid = json.loads(house.run("usb", "list", "--json").out)[0]["fs_uuid"]
    assert uuid[:8] in ran.err
    assert house.run("usb", "trust", uuid[:8]).status == 0
    for stick in sticks:
        stick.unplug()


@pytest.mark.slow
async def test_locked_or_of_an_unknown_filesystem_it_is_said_once(house: House) -> None:
    stick = house.hub.stick("none", size_bytes=32 << 20)
    with stick.image.open("r+b") as image:  # LUKS1: magic, version, and where blkid looks for the UUID
        image.write(b"LUKS\xba\xbe\x00\x01")
        image.seek(168)
        image.write(b"766b434e-e409-4838-a9ca-5df547146b43\x00")
    old = house.hub.stick("minix", label="", size_bytes=32 << 20)
    async with house.service() as service:
        await service.ready()
        stick.plug()
        await service.logs("cannot get backups. It is locked (encrypted).")
        old.plug()  # which has no UUID by which it could be known again
        await service.logs("has no UUID")
        await service.stop()
    stick.unplug()
    old.unplug()
    stick.plug()
    ran = house.run("usb", "trust", "766b434e")
    assert (ran.status, ran.err) == (2, "Stick cannot get copies. It is locked (encrypted).\n")
    stick.unplug()


async def test_a_disk_that_the_machine_itself_needs_is_no_drive(house: House, tmp_path: Path) -> None:
    stick = house.hub.stick(label="Backups")
    stick.plug()
    house.hub.run("mount", str(stick.node), str(house.home.backups))
    async with house.service() as service:
        await service.ready()
        await service.logs("Plugged in")
        await settled(service, house)
        assert "Use it for backups?" not in service.log()
        await service.stop()
    assert house.known.drives() == []
    house.hub.run("umount", str(house.home.backups))
    ran = house.run("usb", "list")
    house.hub.run("mount", str(stick.node), str(house.home.backups))
    ran = house.run("usb", "trust", "Backups")
    assert ran.status == 2
    assert ran.err.startswith("Backups belongs to this server, which mounts it by itself.")
    house.hub.run("umount", str(house.home.backups))
    stick.unplug()


async def test_plugged_in_during_a_backup_it_gets_the_one_before_and_then_the_new_one(house: House) -> None:
    stick = house.trusted()
    (before,) = house.home.archives
    gate = Gate(house.home.folder)
    house.home.configure(sources=PHOTOS + gate.table())
    running = house.home.started("start")
    async with house.service() as service:
        await service.ready()
        stick.plug()
        await service.until(lambda: "is being made right now and follows" in house.told())
        assert before.name in house.told()
        gate.open()
        await service.until(lambda: house.told().endswith("Safe to remove the drive."), 20)
        await service.stop()
    running.communicate()
    after = house.home.archives[-1]
    assert after != before and after.name in house.told()
    stick.unplug()
    assert [n.rpartition("/")[2] for n in stick.names() if n.endswith(".tar.gz")] == [before.name, after.name]


@pytest.mark.slow
async def test_where_somebody_has_it_open_it_is_said_when_it_is_free(house: House, tmp_path: Path) -> None:
    stick = house.trusted()
    desktop = tmp_path / "media"
    desktop.mkdir()
    async with house.service() as service:
        await service.ready()
        stick.plug()
        house.hub.run("mount", str(stick.node), str(desktop))
        await service.until(lambda: f"Do not remove the drive yet: it is still open at {desktop}." in house.told())
        house.hub.run("umount", str(desktop))
        await service.until(lambda: house.told() == (
            "'SanDisk_Family' drive is not in use any more.\n\nSafe to remove the drive."
        ))  # fmt: skip
        await service.stop()
    stick.unplug()
    assert f"{OURS}/{house.home.archives[0].name}" in stick.names()


@pytest.mark.slow
async def test_a_new_backup_goes_to_a_drive_that_somebody_has_open_too(house: House, tmp_path: Path) -> None:
    stick = house.trusted()
    desktop = tmp_path / "media"
    desktop.mkdir()
    async with house.service() as service:
        await service.ready()
        stick.plug()
        house.hub.run("mount", str(stick.node), str(desktop))
        await service.until(lambda: "Do not remove the drive yet" in house.told())
        newer = await asyncio.to_thread(house.back_up, 1000)
        await service.until(lambda: newer.name in house.told())
        assert "Do not remove the drive yet" in house.told()
        house.hub.run("umount", str(desktop))
        await service.until(lambda: house.told().endswith("Safe to remove the drive."))
        await service.stop()
    stick.unplug()
    assert f"{OURS}/{newer.name}" in stick.names()


@pytest.mark.slow
async def test_what_is_wrong_with_it_is_told_in_the_room_and_what_to_do(house: House) -> None:
    stick = house.trusted()
    async with house.service() as service:
        await service.ready()
        stick.plug(read_only=True)
        await service.until(lambda: "Failed" in house.told())
        await service.stop()
    stick.unplug()
    assert house.told() == (
        "USB Backup Failed\n"
        "'SanDisk_Family' drive: It is write-protected.\n"
        "Action needed: Use another drive, or let it be written to: some have a little switch"
    )


def test_udev_keeps_desktops_from_drives_that_were_approved_and_from_no_others(house: House) -> None:
    (house.hub.root / "run/udev/rules.d" / RULES.name).write_text(RULES.read_text())
    approved, other = house.trusted(), house.hub.stick(label="Other")
    house.hub.udevadm("control", "--reload")
    for stick, ignored in ((approved, True), (other, False)):
        stick.plug()
        house.hub.udevadm("settle")
        assert ("UDISKS_IGNORE=1" in house.hub.run("udevadm", "info", str(stick.node))) is ignored
        stick.unplug()
    assert house.run("usb", "forget", "SanDisk_Family").status == 0
    house.hub.udevadm("control", "--reload")
    approved.plug()
    house.hub.udevadm("settle")
    assert "UDISKS_IGNORE=1" not in house.hub.run("udevadm", "info", str(approved.node))
    approved.unplug()


def test_what_was_lost_here_comes_back_from_the_history(house: House) -> None:
    house.trusted()
    known = house.home.folder / "state" / "drives" / "drives.json"
    before = house.known.drives()
    known.unlink()
    ran = house.run("usb", "list")
    assert "gets copies" in ran.out, ran
    assert house.known.drives() == before

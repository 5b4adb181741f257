"""From the plug to "Safe to remove": what a family does and reads, with a real room and a real udev."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import pytest

from tests.chat.conftest import account, family, person, synapse  # noqa: F401  fixtures
from tests.chat.family import Family, joined
from tests.drives.guests import OURS, House, sha256
from tests.synapse import Synapse
from tests.usb import Hub, needs_usb

pytestmark = needs_usb


@pytest.fixture
def house_of(family: Family, ports: Hub) -> House:  # noqa: F811
    made = House(family.home, ports)
    top = f'backup_notification_room = "{family.room}"\n'
    made.configure(more=f'[chat]\nadmins = ["{family.anna.user_id}"]\n')
    config = family.home.folder / "config.toml"
    config.write_text(top + config.read_text())
    made.back_up()
    return made


async def test_from_the_question_to_safe_to_remove(
    synapse: Synapse,  # noqa: F811
    family: Family,  # noqa: F811
    house_of: House,
) -> None:
    stick = house_of.hub.stick(label="SanDisk Family")
    (archive,) = family.home.archives
    async with house_of.hub.reaches(int(synapse.url.rpartition(":")[2])), house_of.service() as service:
        await service.ready()
        await joined(family)
        stick.plug()
        asked = await family.hears()
        assert asked == (
            "A new drive 'SanDisk Family' (134 MB, ext4) was plugged in. Use it for backups? "
            "An admin can answer `!backup trust SanDisk Family`\n"
            "The copies are not encrypted: whoever holds the drive can read keys, .env and chats on it."
        )
        await family.quiet()
        assert await family.answered("!backup trust sandisk family") == (
            "'SanDisk Family' drive gets the latest backup whenever it is plugged in."
        )
        heard = await family.hears()
        if "Copying" in heard:  # where the teller was quicker than the copy
            heard = await family.hears()
        assert heard == complete(archive)
        assert "'SanDisk Family' drive seen. Copying " in service.log()
        await service.stop()
    stick.unplug()
    with stick.mounted() as top:
        assert sha256(top / OURS / archive.name) == sha256(archive)
        assert (top / "memu-backup" / "README.html").exists()
    (row,) = family.home.rows()
    assert row["usb_copied_at"] is not None


def complete(archive: Path) -> str:
    size = round(archive.stat().st_size / 1000)
    return (
        "USB Backup Complete\n"
        "Copied latest backup to 'SanDisk Family' drive.\n"
        f"File: {archive.name} ({size} kB)\n"
        "\n"
        "Safe to remove the drive."
    )


async def test_it_is_acted_on_within_a_second(house: House) -> None:
    stick = house.trusted()
    async with house.service() as service:
        await service.ready()
        begun = datetime.now()
        stick.plug()
        await service.until(lambda: house.told().endswith("Safe to remove the drive."))
        await service.stop()
        (line,) = [line for line in service.log().splitlines() if " seen. Copying " in line]
        assert (datetime.strptime(line[:23], "%Y-%m-%d %H:%M:%S,%f") - begun).total_seconds() < 1.5
    stick.unplug()
    assert f"{OURS}/{house.home.archives[0].name}" in stick.names()

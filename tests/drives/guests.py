"""What the tests of drives share: a house whose commands and whose service see what is plugged into its hub."""

from __future__ import annotations

import hashlib
import os
import re
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from memu_backup.drives.known import Known
from memu_backup.model import Drive
from tests.home import Home, Ran, in_a_loop_of_its_own, query
from tests.odd_stick import Inside
from tests.service import Service
from tests.usb import Hub, Stick

OURS = "memu-backup/family-server_nightly"
PHOTOS = '[sources.photos]\nkind = "directory"\npath = "photos"\n'


def _as_the_unit() -> tuple[str, ...]:
    """Starts a program with no more rights than our unit gives it."""
    (given,) = re.findall(r"^CapabilityBoundingSet=(.*)$", UNIT.read_text(), re.MULTILINE)
    rights = ",".join(f"+{name.removeprefix('CAP_').lower()}" for name in given.split())
    return ("setpriv", f"--bounding-set=-all,{rights}", "--no-new-privs", "--")


UNIT = Path(__file__).parents[2] / "deploy" / "memu-backup.service"
AS_THE_UNIT = _as_the_unit()


@dataclass(frozen=True)
class House:
    home: Home
    hub: Hub

    def configure(self, usb: str = "", more: str = "") -> None:
        self.home.configure(sources=PHOTOS, more=more)
        file = self.home.folder / "config.toml"
        file.write_text(file.read_text().replace("[usb]\n", f"[usb]\n{usb}\n"))

    def back_up(self, size_bytes: int = 0) -> Path:
        """A new backup; with this much that is new in it."""
        before = self.home.archives
        if size_bytes:
            (self.home.folder / "photos" / f"{os.urandom(4).hex()}.jpg").write_bytes(os.urandom(size_bytes))
        ran = self.home.run("start")
        assert ran.status == 0, ran
        (made,) = set(self.home.archives) - set(before)
        return made

    def run(self, *argv: str) -> Ran:
        return self.home.run(*argv, inside=self.hub.pid)

    def service(self, *, as_the_unit: bool = False) -> Service:
        prefix = (*self.hub.prefix, *(AS_THE_UNIT if as_the_unit else ()))
        return Service(self.home.folder / "config.toml", prefix=prefix)

    def trusted(
        self,
        kind: str = "ext4",
        label: str = "SanDisk_Family",
        size_bytes: int = 128 << 20,
        inside: Inside | None = None,
    ) -> Stick:
        """One that was approved, and is not plugged in."""
        stick = self.hub.stick(kind, label, size_bytes, inside=inside)
        stick.plug()
        self.hub.until(lambda: label in self.run("usb", "list").out)
        ran = self.run("usb", "trust", label)
        assert ran.status == 0, ran
        stick.unplug()
        return stick

    @property
    def known(self) -> Known:
        return Known(self.home.folder / "state" / "drives" / "drives.json", "family-server")

    def until_copier(self) -> int:
        """The process that copies, once it does."""
        nodes = {str(stick.node) for stick in self.hub.sticks}
        found: list[int] = []

        def look() -> bool:
            for process in psutil.process_iter():
                with suppress(psutil.Error):
                    line = process.cmdline()
                    if "memu_backup.drives.copier" in line and nodes & set(line):
                        found.append(process.pid)
            return bool(found)

        self.hub.until(look)
        return found[0]

    def told(self, drive: str = "SanDisk_Family") -> str:
        """The last that there was to tell of a drive."""
        return next((n.text for of, n in self.known.news().items() if self.drive(drive).drive_id == of), "")

    def told_of_any(self) -> str:
        return "\n".join(news.text for news in self.known.news().values())

    def passports(self) -> list[dict[str, Any]]:
        """backup_drives."""
        return in_a_loop_of_its_own(query(self.home.history, "SELECT * FROM backup_drives"))

    def drive(self, label: str = "SanDisk_Family") -> Drive:
        return next(d for d in self.known.drives() if d.label == label)


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()

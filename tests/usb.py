"""Drives to plug in: real filesystems on loop devices which a real udev, of each test's own, takes for USB sticks.

udev's events reach who shares its network namespace: a hub has one of its own, with its own /run/udev, and what is to
see the sticks is started in there (``prefix``). Needs root.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import os
import random
import shutil
import socket
import stat
import struct
import subprocess
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from threading import Thread
from uuid import uuid4

import pytest

from tests.odd_stick import Inside

UDEVD = next(
    (p for p in map(Path, ("/usr/lib/systemd/systemd-udevd", "/lib/systemd/systemd-udevd")) if p.exists()), None
)

needs_usb = pytest.mark.skipif(
    os.geteuid() != 0 or UDEVD is None or not Path("/dev/loop-control").exists(),
    reason="needs root, udev and loop devices; `make test` installs udev for root",
)

_LOOP_ADD, _LOOP_REMOVE = 0x4C80, 0x4C81
"""linux/loop.h"""

_CLONE_NEWNET = 0x40000000
_MAKE = {
    "ext4": ["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0"],
    "btrfs": ["mkfs.btrfs", "-q"],
    "xfs": ["mkfs.xfs", "-q"],
    "ntfs": ["mkntfs", "-q", "-Q", "-F"],
    "exfat": ["mkfs.exfat"],
    "vfat": ["mkfs.vfat", "-F", "32"],
    "minix": ["mkfs.minix"],
}
_LABEL = {"vfat": "-n"}
_UUID = {"ext4": "-U", "btrfs": "-U"}


@dataclass
class Stick:
    """One that is not plugged in yet. ``image`` is what is on it."""

    hub: Hub
    image: Path
    node: Path
    kind: str

    def plug(self, *, read_only: bool = False) -> None:
        flags = ["--read-only"] if read_only else []
        subprocess.run(["losetup", *flags, self.node, self.image], check=True)
        self.hub.udevadm("trigger", "--settle", "--action=add", f"--name-match={self.node}")

    def divide(self) -> tuple[Path, Path]:
        """Plug it in as a disk with two partitions, ONE and TWO, each half of it; their nodes."""
        sectors = self.image.stat().st_size // 512
        halves = [(2048, sectors // 2 - 2048), (sectors // 2, sectors // 2)]
        entries = b"".join(struct.pack("<B3sB3sII", 0, b"", 0x83, b"", *half) for half in halves)
        with self.image.open("r+b") as image:
            image.seek(446)
            image.write(entries.ljust(64, b"\0") + b"\x55\xaa")
        subprocess.run(["losetup", "--partscan", self.node, self.image], check=True)
        nodes = Path(f"{self.node}p1"), Path(f"{self.node}p2")
        for label, node, (start, length) in zip(("ONE", "TWO"), nodes, halves, strict=True):
            number = node.name[-1]
            if not Path("/sys/class/block", node.name).exists():  # a kernel that does not look for them itself
                subprocess.run(["addpart", self.node, number, str(start), str(length)], check=True)
            if not node.exists():
                major, _, minor = Path("/sys/class/block", node.name, "dev").read_text().strip().partition(":")
                os.mknod(node, 0o600 | stat.S_IFBLK, os.makedev(int(major), int(minor)))
            subprocess.run([*_MAKE["ext4"], "-L", label, node], check=True)
            self.hub.udevadm("trigger", "--action=add", f"--name-match={node}")
        return nodes

    def vanish(self) -> None:
        """As it looks to udev when somebody pulls it out; what has it open still has it."""
        self.hub.udevadm("trigger", "--action=remove", f"--name-match={self.node}")

    def unplug(self) -> None:
        subprocess.run(["losetup", "--detach", self.node], check=True)
        self.hub.until(lambda: not self.is_plugged_in())

    def is_plugged_in(self) -> bool:
        return Path("/sys/block", self.node.name, "loop").exists()

    def storm(self, number: int) -> None:
        """So many events at once."""
        with Path("/sys/block", self.node.name, "uevent").open("w") as uevent:
            for _ in range(number):
                uevent.write("change")
                uevent.flush()

    @contextmanager
    def mounted(self) -> Iterator[Path]:
        """As on another computer, for a look."""
        place = self.hub.folder / f"look-{uuid4().hex[:8]}"
        place.mkdir()
        kind = ["-t", "exfat-fuse"] if self.kind == "exfat" else []  # as the kernel may not know it
        subprocess.run(["mount", *kind, "-o", "loop", self.image, place], check=True)
        try:
            yield place
        finally:
            subprocess.run(["umount", place], check=True)
            place.rmdir()

    def names(self) -> list[str]:
        """All files on it, by their paths."""
        with self.mounted() as top:
            return sorted(str(p.relative_to(top)) for p in top.rglob("*") if p.is_file())


@dataclass
class Hub:
    """A udev with its own network and /run/udev. ``prefix`` starts a program in there."""

    folder: Path
    _holder: subprocess.Popen[bytes]
    sticks: list[Stick] = field(default_factory=list)

    @property
    def prefix(self) -> tuple[str, ...]:
        return ("nsenter", f"--target={self._holder.pid}", "--net", "--mount", "--")

    @property
    def pid(self) -> int:
        """Of who holds it all together."""
        return self._holder.pid

    @property
    def root(self) -> Path:
        """The files as they are seen in there."""
        return Path(f"/proc/{self._holder.pid}/root")

    def run(self, *argv: str) -> str:
        return subprocess.run([*self.prefix, *argv], check=True, capture_output=True, text=True).stdout

    def udevadm(self, *argv: str) -> None:
        self.run("udevadm", *argv)

    def stick(
        self,
        kind: str = "ext4",
        label: str = "SanDisk_Family",
        size_bytes: int = 128 << 20,
        *,
        inside: Inside | None = None,
        uuid: str = "",
    ) -> Stick:
        """A fresh one; a bad one with an ``inside``."""
        image = (inside.beneath if inside else self.folder) / f"{kind}-{uuid4().hex[:8]}.image"
        with image.open("xb") as file:
            file.truncate(size_bytes)
        if kind in _MAKE:
            flag = _LABEL.get(kind, "-L")
            named = [_UUID[kind], uuid] if uuid else []
            argv = [*_MAKE[kind], *([] if kind == "minix" else [flag, label]), *named, str(image)]
            subprocess.run(argv, check=True, capture_output=True, env={**os.environ, "PATH": _PATH})
        stick = Stick(self, inside.folder / image.name if inside else image, _new_loop(), kind)
        self.sticks.append(stick)
        with (self.root / "run/udev/rules.d/60-sticks.rules").open("a") as rules:
            rules.write(f'KERNEL=="{stick.node.name}*", ENV{{ID_BUS}}="usb", ENV{{ID_MODEL}}="Stick"\n')
        self.udevadm("control", "--reload")
        return stick

    def until(self, condition: object, patience_s: float = 10.0) -> None:
        assert callable(condition)
        deadline = time.monotonic() + patience_s
        while not condition():
            assert time.monotonic() < deadline, "it never happened"
            time.sleep(0.01)

    @asynccontextmanager
    async def reaches(self, port: int) -> AsyncIterator[None]:
        """Who is in there gets through to 127.0.0.1:PORT out here."""

        writers: list[asyncio.StreamWriter] = []

        async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            writers.append(writer)
            there_reader, there_writer = await asyncio.open_connection("127.0.0.1", port)
            writers.append(there_writer)

            async def pour(one: asyncio.StreamReader, other: asyncio.StreamWriter) -> None:
                with suppress(OSError):
                    while block := await one.read(65536):
                        other.write(block)
                        await other.drain()
                other.close()

            await asyncio.gather(pour(reader, there_writer), pour(there_reader, writer))

        server = await asyncio.start_server(forward, sock=self._socket(port))
        try:
            yield
        finally:
            server.close()
            await asyncio.sleep(0.1)  # a connection that was just accepted is served a moment later
            for writer in writers:
                writer.transport.abort()
            await asyncio.gather(*(writer.wait_closed() for writer in writers), return_exceptions=True)

    def _socket(self, port: int) -> socket.socket:
        made: list[socket.socket] = []

        def work() -> None:  # a thread may be in another network than the rest of its process
            with open(f"/proc/{self._holder.pid}/ns/net") as there:  # noqa: PTH123
                assert ctypes.CDLL(None, use_errno=True).setns(there.fileno(), _CLONE_NEWNET) == 0
            made.append(socket.create_server(("127.0.0.1", port)))

        thread = Thread(target=work)
        thread.start()
        thread.join()
        return made[0]

    def close(self) -> None:
        for stick in self.sticks:
            if stick.is_plugged_in():
                subprocess.run(["losetup", "--detach", stick.node], check=False)
        self._holder.kill()
        self._holder.wait()
        for stick in self.sticks:
            deadline = time.monotonic() + 10
            while not _loop_gone(stick.node) and time.monotonic() < deadline:
                time.sleep(0.05)


_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@contextmanager
def hub(folder: Path) -> Iterator[Hub]:
    folder.mkdir()
    Path("/run/udev").mkdir(exist_ok=True)
    begin = (
        "mount -t tmpfs none /run/udev && mkdir /run/udev/rules.d && ip link set lo up && "
        f"exec {UDEVD} --resolve-names=never"
    )
    argv = ["unshare", "--net", "--mount", "--propagation", "slave", "sh", "-c", begin]
    with (folder / "udevd.log").open("wb") as log:
        holder = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)
    made = Hub(folder, holder)
    try:
        made.until(lambda: (made.root / "run/udev/control").exists() and (made.root / "run/udev/rules.d").exists())
        yield made
    finally:
        made.close()


def _new_loop() -> Path:
    """A loop device that is nobody else's."""
    with Path("/dev/loop-control").open() as control:
        for _ in range(1000):
            number = random.randrange(100, 100_000)
            with suppress(FileExistsError):
                fcntl.ioctl(control, _LOOP_ADD, number)
                node = Path(f"/dev/loop{number}")
                deadline = time.monotonic() + 5
                while not node.exists() and time.monotonic() < deadline:
                    time.sleep(0.01)
                return node
    raise AssertionError("no loop device is free")


def _loop_gone(node: Path) -> bool:
    with Path("/dev/loop-control").open() as control:
        try:
            fcntl.ioctl(control, _LOOP_REMOVE, int(node.name.removeprefix("loop")))
        except OSError:
            return not node.exists()
    return True


def has(program: str) -> bool:
    return shutil.which(program, path=_PATH) is not None

"""Hears from udev which USB drives are plugged in and pulled out; never asks the disks themselves.

The properties are those of systemd's udev, see udev(7) and blkid(8). A drive is told apart by its filesystem's UUID and
never by ``/dev/sdX``; that a plug is the same one as before, by the kernel's number for it (DISKSEQ).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyudev

log = logging.getLogger(__name__)

_LONGEST_NAME = 40
_PAUSE_S = 5.0
_ESP = "c12a7328-f81f-11d2-ba4b-00a0c93ec93b"
"""The partition that a machine boots from: nobody's backup drive."""


@dataclass(frozen=True, slots=True)
class Plug:
    """A filesystem on a drive that is plugged in.

    ``node`` is its device, good until it is pulled out; ``sequence`` is another one each time something is plugged in.
    ``usage`` is udev's word: ``filesystem`` for what can be mounted, ``crypto`` for what is locked. ``label`` and
    ``model`` were written by strangers, and are made fit to be shown.
    """

    node: Path
    sequence: str
    fs_uuid: str
    filesystem: str
    usage: str
    label: str
    model: str
    size_bytes: int


def fit_to_show(text: str) -> str:
    """What a stranger wrote, on one line, of bearable length and without what a terminal would take for a command."""
    plain = "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))
    return plain if len(plain) <= _LONGEST_NAME else f"{plain[:_LONGEST_NAME]}…"


def present() -> list[Plug]:
    """What is plugged in right now. Raises ImportError where this machine has no libudev."""
    context = _context()
    found = (_plug(device) for device in context.list_devices(subsystem="block"))
    return [plug for plug in found if plug]


class Watch:
    """What is plugged in, and each change of it.

    ``on_change`` is called in the loop, once for many changes that come together. Use as ``async with``.
    """

    def __init__(self, on_change: Callable[[], None]) -> None:
        self._on_change = on_change
        self._plugs: dict[Path, Plug] = {}
        self._since: dict[Path, Plug | None] = {}
        self._monitor: Any = None
        self._following: asyncio.Task[None] | None = None
        self._broken = asyncio.Event()

    @property
    def plugs(self) -> tuple[Plug, ...]:
        return tuple(self._plugs.values())

    async def __aenter__(self) -> Watch:
        """Raises ImportError where this machine has no libudev."""
        _context()
        self._following = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._following
        self._following.cancel()
        await asyncio.gather(self._following, return_exceptions=True)

    async def _follow(self) -> None:
        """With a new monitor each time the old one dies, or loses events as its buffer is full."""
        while True:
            try:
                await self._listen()
                log.info("Events of drives were lost; all drives are looked at anew.")
            except Exception as error:  # whatever it is, a drive may be plugged in tomorrow
                known = isinstance(error, OSError)
                log.warning("Drives are not heard of right now (%s).", error, exc_info=None if known else error)
                await asyncio.sleep(_PAUSE_S)

    async def _listen(self) -> None:
        """Until events were lost. Raises OSError."""
        import pyudev

        loop = asyncio.get_running_loop()
        # First the monitor, then the look: what is plugged in between is seen twice, and not never.
        self._monitor = pyudev.Monitor.from_netlink(_context(), source="udev")
        self._monitor.filter_by("block")
        self._monitor.start()
        self._since = {}
        loop.add_reader(self._monitor.fileno(), self._drain)
        try:
            there: dict[Path, Plug | None] = {plug.node: plug for plug in await asyncio.to_thread(present)}
            self._replace(there | self._since)  # what was heard of meanwhile is newer than the look
            await self._broken.wait()
            self._broken.clear()
        finally:
            loop.remove_reader(self._monitor.fileno())
            self._monitor = None

    def _drain(self) -> None:
        heard: dict[Path, Plug | None] = {}
        try:
            while (device := self._monitor.poll(0)) is not None:
                # None where it was pulled out, or its medium was; the properties may be gone with it.
                heard[Path(device.device_node)] = None if device.action == "remove" else _plug(device)
        except OSError:
            asyncio.get_running_loop().remove_reader(self._monitor.fileno())
            self._broken.set()
        self._since |= heard
        self._replace(self._plugs | heard)

    def _replace(self, found: Mapping[Path, Plug | None]) -> None:
        plugs = {node: plug for node, plug in found.items() if plug}
        if plugs != self._plugs:
            self._plugs = plugs
            self._on_change()


def _context() -> pyudev.Context:
    import pyudev

    return pyudev.Context()


def _plug(device: pyudev.Device) -> Plug | None:
    """None for whatever is no filesystem on a USB drive."""
    try:
        said = device.properties
        usage, filesystem = said.get("ID_FS_USAGE", ""), said.get("ID_FS_TYPE", "")
        if usage not in ("filesystem", "crypto") or said.get("ID_PART_ENTRY_TYPE") == _ESP:
            return None
        # Some bridges call themselves ATA; what they hang on does not lie.
        if said.get("ID_BUS") != "usb" and device.find_parent("usb") is None:
            return None
        return Plug(
            node=Path(device.device_node),
            sequence=said.get("DISKSEQ", ""),
            fs_uuid=said.get("ID_FS_UUID", ""),
            filesystem=filesystem,
            usage=usage,
            label=fit_to_show(_decoded(said.get("ID_FS_LABEL_ENC", ""))),
            model=fit_to_show(_decoded(said.get("ID_MODEL_ENC", said.get("ID_MODEL", "")))),
            size_bytes=512 * int(device.attributes.get("size") or 0),  # in sectors of 512, whatever those of the disk
        )
    except (OSError, KeyError, ValueError, UnicodeError):  # gone while it was looked at
        return None


def _decoded(text: str) -> str:
    r"""udev writes what is not plain as ``\x20``, byte by byte."""
    raw = text.encode("utf-8", "surrogateescape")
    decoded = bytearray()
    while raw:
        if raw[:2] == b"\\x" and len(raw) >= 4:
            decoded.append(int(raw[2:4], 16))
            raw = raw[4:]
        else:
            decoded.append(raw[0])
            raw = raw[1:]
    return decoded.decode("utf-8", "replace")

"""Tells systemd that we are ready, alive and stopping: sd_notify(3), a datagram to the socket it names."""

from __future__ import annotations

import os
import socket
from contextlib import suppress


def notify(state: str) -> None:
    """Send ``READY=1``, ``WATCHDOG=1``, ``STOPPING=1`` or ``STATUS=…``. Does nothing outside systemd."""
    address = os.environ.get("NOTIFY_SOCKET")
    if not address:
        return
    if address.startswith("@"):  # an abstract socket
        address = "\0" + address[1:]
    with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as connection:
        connection.connect(address)
        connection.sendall(state.encode())


def watchdog_interval_s() -> float | None:
    """How often to send ``WATCHDOG=1``: half of what systemd waits; None where it does not watch this process."""
    with suppress(ValueError, KeyError):
        if int(os.environ.get("WATCHDOG_PID", os.getpid())) == os.getpid():
            return int(os.environ["WATCHDOG_USEC"]) / 2e6 or None
    return None

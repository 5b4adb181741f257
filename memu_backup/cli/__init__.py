"""The commands. Thin: each asks the manager and puts the answer into words. Heavy imports stay inside them."""

from __future__ import annotations

import gc
import io
import os
import sys

from memu_backup.cli import (  # noqa: F401  each adds its commands
    alerts,
    chat,
    checking,
    drill,
    finding,
    history,
    looking,
    making,
    page,
    returning,
    services,
    settings,
    token,
    usb,
    verifying,
)
from memu_backup.cli.shell import app


def main() -> None:
    """Entry point. What it writes is for its user alone."""
    os.umask(0o077)
    gc.set_threshold(50_000)  # looking through all that is imported, time and again, was an eighth of a short command
    _open_what_is_closed()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a terminal that knows no … is no reason to fail
    app()


def _open_what_is_closed() -> None:
    """Whoever starts us may have closed stdin, stdout or stderr; the next file opened, a backup maybe, would be it."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))

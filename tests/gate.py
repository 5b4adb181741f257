"""A source that stands at a gate: a backup that reads it waits there until the test lets it through."""

from __future__ import annotations

from pathlib import Path


class Gate:
    def __init__(self, folder: Path) -> None:
        self._reached, self._open = folder / "gate-reached", folder / "gate-open"

    def table(self, *, needs_stop: bool = False) -> str:
        """Its table for the settings."""
        shell = f"touch {self._reached}; while [ ! -e {self._open} ]; do sleep 0.02; done; echo through"
        stop = str(needs_stop).lower()
        return f'[sources.gate]\nkind = "command"\nneeds_stop = {stop}\ndump = ["sh", "-c", "{shell}"]\n'

    def reached(self) -> bool:
        return self._reached.exists()

    def open(self) -> None:
        """For good. To be called at the end of a test, too: whoever was killed leaves somebody at the gate."""
        self._open.touch()

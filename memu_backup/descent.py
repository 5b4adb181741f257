"""Goes down into folders below one that is open, by descriptors alone, so that no link is ever followed."""

from __future__ import annotations

import os
from contextlib import suppress

FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class Descent:
    """Below the open folder ``root``, which stays the caller's. The way to the folder asked for last stays open, one
    descriptor a step. Not for several threads at once.
    """

    def __init__(self, root: int) -> None:
        self._root = root
        self._open: list[tuple[str, int]] = []
        self._folder = ""
        """Where ``_open`` has led to."""

    def folder_of(self, path: str, *, make: bool = False) -> int:
        """The open folder that holds ``path``, good until another is asked for.

        With ``make`` what is missing on the way is made, private (0700). Raises OSError.
        """
        folder = path.rpartition("/")[0]
        if folder == self._folder:
            return self._open[-1][1] if self._open else self._root
        parts = folder.split("/") if folder else []
        same = 0
        while same < min(len(parts), len(self._open)) and self._open[same][0] == parts[same]:
            same += 1
        self._close_to(same)
        for part in parts[same:]:
            above = self._open[-1][1] if self._open else self._root
            if make:
                with suppress(FileExistsError):
                    os.mkdir(part, 0o700, dir_fd=above)
            self._open.append((part, os.open(part, FOLDER_FLAGS, dir_fd=above)))
        self._folder = folder
        return self._open[-1][1] if self._open else self._root

    def close(self) -> None:
        """Close what is open on the way; it may be used again after that."""
        self._close_to(0)

    def _close_to(self, depth: int) -> None:
        self._folder = "/".join(part for part, _ in self._open[:depth])
        while len(self._open) > depth:
            os.close(self._open.pop()[1])

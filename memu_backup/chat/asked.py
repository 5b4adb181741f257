"""Which message of the bot's asks about which backup, so that a thumb under it is an answer, also after a restart."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from memu_backup.files import write_atomically

log = logging.getLogger(__name__)

_REMEMBERED = 100


class Asked:
    """Kept in ``file``. Where that cannot be written a question is forgotten with a restart; a word answers it, too."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._runs: dict[str, str] = {}
        try:
            found = json.loads(file.read_bytes())
            self._runs = {str(event_id): str(run_id) for event_id, run_id in found.items()}
        except FileNotFoundError:
            return
        except (OSError, ValueError, AttributeError):
            log.warning("%s cannot be read; a thumb under an older question is no answer to it.", file)

    def about(self, event_id: str) -> str | None:
        """The run whose backup is asked about."""
        return self._runs.get(event_id)

    def note(self, event_id: str, run_id: str) -> None:
        """That message asks whether the backup of that run is as it should be."""
        self._runs = dict([*self._runs.items(), (event_id, run_id)][-_REMEMBERED:])
        try:
            write_atomically(self._file, json.dumps(self._runs).encode())
        except OSError as error:
            log.warning("%s cannot be written (%s).", self._file, error.strerror)

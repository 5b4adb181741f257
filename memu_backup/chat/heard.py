"""Where the bot stopped listening and what it heard, so that after a restart nothing is answered twice or missed."""

from __future__ import annotations

import json
import logging
import math
import time
from collections import deque
from pathlib import Path

from memu_backup.files import write_atomically

log = logging.getLogger(__name__)

_REMEMBERED = 500
_AT_LEAST_EVERY_S = 3600.0


class Heard:
    """Kept in ``file``. Where that cannot be written the bot goes on; a restart then begins with what is new."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self.token: str | None = None
        self._ids: deque[str] = deque(maxlen=_REMEMBERED)
        self._saved_at = -math.inf
        try:
            found = json.loads(file.read_bytes())
            self.token = str(found["token"])
            self._ids.extend(str(event) for event in found["events"])
        except FileNotFoundError:
            return
        except (OSError, ValueError, KeyError, TypeError):
            log.warning("%s cannot be read; the bot listens to what is said from now on.", file)

    def __contains__(self, event_id: str) -> bool:
        return event_id in self._ids

    def add(self, event_id: str) -> None:
        self._ids.append(event_id)
        self._save()

    def came_to(self, token: str, *, keep: bool = True, news: bool = True) -> None:
        """Everything before ``token`` was dealt with, which is noted where it is to ``keep``.

        Without ``news`` it is written down once an hour: a poll without any is no reason to wake a disk, and what lies
        behind an older token is known by its ids.
        """
        self.token = token
        if keep and (news or time.monotonic() - self._saved_at > _AT_LEAST_EVERY_S):
            self._save()

    def _save(self) -> None:
        if self.token is None:
            return
        self._saved_at = time.monotonic()
        try:
            content = json.dumps({"token": self.token, "events": list(self._ids)}).encode()
            # While a backup is written an fsync takes a tenth of a second, and the next who asks would wait for it.
            write_atomically(self._file, content, lasting=False)
        except OSError as error:
            log.debug("%s cannot be written (%s).", self._file, error.strerror)

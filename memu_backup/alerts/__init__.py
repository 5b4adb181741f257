"""Ways out of the house that are not the chat: what is told goes by a channel, and a heartbeat says that we live."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Protocol

_URL = re.compile(
    r"([a-z][a-z0-9+.-]*)://"
    r"(?:[^:/@?#\s]*(?::[^:/@?#\s]*)?@)?"  # who, and a password
    r"(localhost|[\w-]+(?:\.[\w-]+)+)(?::\d+)?"
    r"(?:/[^@?#\s]*)?"
    r"(?:\?[^=&#\s]+=[^&#\s]*(?:&[^=&#\s]+=[^&#\s]*)*)?",
    re.IGNORECASE,
)
_NAMES_ITS_HOST = re.compile(r"(?:http|json|xml|form|mailto|ntfy|gotify|matrix)s?")


@dataclass(frozen=True, slots=True)
class Notice:
    """Something to be told. ``key`` is always the same for the same news: who can drops a second copy by it.

    ``text`` is plain; its first line is the title. With ``asks`` it is a question about the backup of that run.
    """

    key: str
    text: str
    asks: str = ""


class Channel(Protocol):
    """One way to tell somebody."""

    async def send(self, notice: Notice) -> None:
        """Raises MemuError where it was not delivered."""


def named(url: str) -> str:
    """What may be said of a URL: ``ntfys://ntfy.example.org``, or ``tgram://…``. All the rest of it is a secret.

    A host is told only where one stands: many services have a token in its place. As with every secret, only a URL that
    is understood to its last character is told in part: a stray @ or / may be of a password.
    """
    scheme, found = url.partition("://")[0], _URL.fullmatch(url)
    if found and _NAMES_ITS_HOST.fullmatch(scheme.lower()):
        return f"{scheme.lower()}://{found[2]}"
    return f"{scheme.lower()}://…" if re.fullmatch(r"[A-Za-z][A-Za-z0-9+.-]{0,30}", scheme) else "…"

"""Mail, ntfy, Telegram and what else the library Apprise knows how to reach, each by one URL that holds its secrets."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, partial
from types import ModuleType
from typing import TYPE_CHECKING

from memu_backup.alerts import Notice, named
from memu_backup.errors import AlertError
from memu_backup.work import look

if TYPE_CHECKING:
    from apprise import Apprise

log = logging.getLogger(__name__)

_PATIENCE_S = 60.0
_SOCKET_S = 20.0
"""Apprise's own 4 s are less than some mail servers think, and what was given up may have been delivered."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """``name`` is what may be said of the URL; ``problem`` says why it took nothing, empty where it did."""

    name: str
    problem: str


class AppriseChannel:
    """Tells the same to all ``urls`` at once. The key of a notice is of no use here: no such service knows keys."""

    def __init__(self, urls: Sequence[str], *, timeout_s: float = _PATIENCE_S) -> None:
        self._urls = tuple(urls)
        self._timeout_s = timeout_s

    async def send(self, notice: Notice) -> None:
        """Delivered is what at least one took; the log names the others. Raises AlertError where none did."""
        outcomes = await self.send_to_each(notice)
        refused = ", ".join(f"{o.name} ({o.problem})" for o in outcomes if o.problem)
        if all(o.problem for o in outcomes):
            raise AlertError(f"No fallback channel took the message: {refused}. To try them: memu-backup alerts test")
        if refused:
            log.warning("Not every fallback channel took the message: %s. The others did.", refused)

    async def send_to_each(self, notice: Notice) -> list[Outcome]:
        """What became of it with each URL, in their order. Raises AlertError where none could be tried."""
        text = notice.text.encode(errors="replace").decode()  # names of files may be no text
        title, _, body = text.strip().partition("\n")
        services = await self._services()
        return await asyncio.gather(*(self._tell(u, s, title, body) for u, s in zip(self._urls, services, strict=True)))

    async def check(self) -> None:
        """Raises AlertError where Apprise does not understand a URL. Nothing is sent."""
        wrong = [named(u) for u, s in zip(self._urls, await self._services(), strict=True) if s is None]
        if wrong:
            raise AlertError(
                f"Apprise cannot make anything of {', '.join(wrong)}, so nothing would be told there. How each service "
                "is written: https://appriseit.com/services/"
            )

    async def _services(self) -> list[Apprise | None]:
        """None for what Apprise does not understand. Raises AlertError where Apprise itself cannot be read."""
        try:
            return await look(lambda: [_service(url) for url in self._urls], _PATIENCE_S)
        except TimeoutError:
            raise AlertError("The disk does not give out the program that knows the fallback channels.") from None

    async def _tell(self, url: str, service: Apprise | None, title: str, body: str) -> Outcome:
        if service is None:
            return Outcome(named(url), "Apprise does not understand this URL")
        try:
            return Outcome(named(url), await look(partial(_notify, service, title, body.strip("\n")), self._timeout_s))
        except TimeoutError:
            return Outcome(named(url), f"no answer within {self._timeout_s:.0f} s")


def _service(url: str) -> Apprise | None:
    """One URL alone, as only so it is known which of several failed. None where Apprise does not understand it."""
    apprise = _library()
    asset = apprise.AppriseAsset(
        app_id="memu-backup",
        app_desc="memu-backup",
        app_url="",
        image_url_mask="",  # a phone would fetch the picture from strangers
        image_url_logo="",
        storage_mode=apprise.PersistentStoreMode.MEMORY,
        interpret_emojis=False,
        async_mode=False,
        http_redirects=False,  # a POST that is sent elsewhere arrives as a GET: answered well, and never delivered
        service_timeout=0,  # the limit is ours; Apprise's would leave threads behind for which Python waits at its end
        pgp_autogen=False,
        pem_autogen=False,
    )
    alone: Apprise = apprise.Apprise(asset=asset)
    # Made here: what is added as a text is first split at commas.
    try:
        service = apprise.Apprise.instantiate(url, asset=asset)
    except Exception:  # of a hundred services each reads its URL in its own manner
        return None
    if service is None or not alone.add(service):
        return None
    service.optional = False  # ?optional=yes would have a failure be a success
    return alone


def _notify(service: Apprise, title: str, body: str) -> str:
    """Why it was not taken, empty where it was."""
    # What has a title alone is not sent.
    result = service.notify(title=title, body=body or title, body_format=_library().NotifyFormat.TEXT)
    if result:
        return ""
    # A number is the one thing in Apprise's own words that can be no secret.
    answers = (re.search(r"\berror=(\d{3})\b", entry.message) for entry in result.logs())
    return next((f"answered {found[1]}" for found in answers if found), "not reached, or it refused")


@cache
def _library() -> ModuleType:
    """Apprise: 0.25 s and 27 MB that most processes never need. Quiet, as it and what it uses log URLs."""
    for name in ("apprise", "urllib3", "requests", "requests_oauthlib", "oauthlib"):
        logger = logging.getLogger(name)
        logger.propagate = False
        logger.addHandler(logging.NullHandler())  # else Python writes what nobody handles to stderr
    import apprise
    from apprise.url import URLBase

    URLBase.socket_connect_timeout = URLBase.socket_read_timeout = _SOCKET_S
    return apprise

"""Signs of life to a dead-man's switch outside the house, which tells the family when they stay away.

By the convention of https://healthchecks.io/docs/http_api/, which others follow too.
"""

from __future__ import annotations

from enum import StrEnum
from urllib.parse import urlsplit, urlunsplit

from memu_backup.alerts import named
from memu_backup.errors import AlertError

_PATIENCE_S = 10.0


class Beat(StrEnum):
    """What is told; the value is what is added to the path of the URL."""

    START = "/start"
    SUCCESS = ""
    FAIL = "/fail"


async def beat(url: str, what: Beat, text: str, *, timeout_s: float = _PATIENCE_S) -> None:
    """Tell it, with ``text`` for people. Raises AlertError, in which nothing of ``url`` is but its host.

    Who knows the URL can fake life, so no redirect takes it elsewhere.
    """
    problem = await _post(url, what, text, timeout_s)
    if problem:  # raised here: the errors of aiohttp, which hold the URL, must not hang on it
        raise AlertError(
            f"The heartbeat at {named(url)} was not told: {problem}. The backup itself is not touched by that; if it "
            "stays so, an alarm comes from there."
        )


async def _post(url: str, what: Beat, text: str, timeout_s: float) -> str:
    """Why it was not told, empty where it was."""
    import aiohttp  # slow, and not needed by most commands
    from yarl import URL

    body = text.encode(errors="replace")  # names of files may be no text
    parts = urlsplit(url)
    target = urlunsplit((parts.scheme, parts.netloc, parts.path.rstrip("/") + what, parts.query, ""))
    try:
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=timeout_s)) as session,
            session.post(URL(target, encoded=True), data=body, allow_redirects=False) as answer,
        ):
            said = await answer.content.read(100)
    except aiohttp.ClientConnectorCertificateError:
        return "its certificate is not to be trusted"
    except TimeoutError:
        return f"no answer within {timeout_s:.0f} s"
    except (aiohttp.ClientError, OSError, ValueError):
        return "it cannot be reached"
    if 300 <= answer.status < 400:
        return "it sends us elsewhere; write the address that it really has"
    if answer.status >= 400:
        return f"it answered {answer.status}"
    if b"(not found)" in said:  # healthchecks.io says 200 to what it does not know
        return "it does not know this heartbeat; check the address"
    return ""

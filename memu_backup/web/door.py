"""Who is let in at all: what every request must be like before anybody asks what it wants, and what every answer says
to the browser. Plain ASGI (https://asgi.readthedocs.io/en/latest/specs/www.html).
"""

from __future__ import annotations

import ipaddress
import json
import socket
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.exceptions import HTTPException

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

LONGEST_BODY_BYTES = 64 * 1024
"""Of whatever is no upload."""

UPLOADS = frozenset({"/api/v1/backup/upload-restore", "/upload"})

_SAFE = frozenset({"GET", "HEAD", "OPTIONS"})

_HEADERS = (
    (
        b"content-security-policy",
        b"default-src 'none'; style-src 'self'; img-src 'self' data:; script-src 'self'; connect-src 'self'; "
        b"form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),  # with no-referrer a form of ours would say Origin: null
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"permissions-policy", b"camera=(), geolocation=(), microphone=()"),
)
"""https://owasp.org/www-project-secure-headers/"""


class Door:
    """``names`` are the hosts by which it may be called, besides addresses: a page of somebody else's whose name leads
    here (DNS rebinding) is not answered.
    """

    def __init__(self, app: App, names: frozenset[str]) -> None:
        self._app = app
        self._names = names

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        answer = _with_headers(send, https=scope["scheme"] == "https")
        if said := self._refusal(scope, headers):
            await _refused(answer, *said)
            return
        await self._app(scope, receive if scope["path"] in UPLOADS else _Limited(receive), answer)

    def _refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str, str] | None:
        host = headers.get("host", "")
        if not self._is_ours(host):
            return (
                421,
                "host",
                "This machine is not known by that name here. Use its address, or set web.url to how you reach it.",
            )
        origin = headers.get("origin")
        if scope["method"] not in _SAFE:
            if origin and _authority(origin) != host.lower():
                return 403, "origin", "This was sent by a page of somebody else, so nothing was done."
            if "cookie" in headers and "authorization" not in headers and not origin:
                return 403, "origin", "Your browser does not say which page sent this, so nothing was done."
        length = headers.get("content-length", "0")
        if scope["path"] not in UPLOADS and length.isascii() and length.isdigit() and int(length) > LONGEST_BODY_BYTES:
            return 413, "too_long", _TOO_LONG
        return None

    def _is_ours(self, host: str) -> bool:
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            return False
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return name in self._names
        return True


def names(host: str, url: str | None) -> frozenset[str]:
    """By which the machine is known: its own name, ``host`` that it listens on, and that of ``url``."""
    own = socket.gethostname().lower()
    given = (urlsplit(url).hostname or "") if url else ""
    return frozenset({"localhost", own, f"{own}.local", f"{own}.lan", host.lower(), given})


_TOO_LONG = "What you sent is longer than anything that is understood here, so nothing was done."


class _Limited:
    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._got_bytes = 0

    async def __call__(self) -> Message:
        message = await self._receive()
        self._got_bytes += len(message.get("body", b""))
        if self._got_bytes > LONGEST_BODY_BYTES:
            raise HTTPException(413, _TOO_LONG)
        return message


def _authority(origin: str) -> str:
    try:
        return urlsplit(origin).netloc.lower()
    except ValueError:
        return ""


def _with_headers(send: Send, *, https: bool) -> Send:
    async def answer(message: Message) -> None:
        if message["type"] == "http.response.start":
            there = {name.lower() for name, _ in message.get("headers", ())}
            more = [*_HEADERS, (b"cache-control", b"no-store")]
            if https:
                more.append((b"strict-transport-security", b"max-age=31536000"))
            message["headers"] = [*message.get("headers", ()), *(one for one in more if one[0] not in there)]
        await send(message)

    return answer


async def _refused(send: Send, status: int, code: str, message: str) -> None:
    body = json.dumps({"error": {"code": code, "message": message}}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})

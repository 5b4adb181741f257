"""Talks with the homeserver, and says in a sentence what its errors mean."""

from __future__ import annotations

import json
import logging
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
from nio import AsyncClient, AsyncClientConfig, ErrorResponse

from memu_backup.errors import ChatAway, ChatError, ChatRefused, LoginEnded

_PATIENCE_S = 30.0
_LONGEST_WAIT_S = 900.0

logging.getLogger("nio").setLevel(logging.CRITICAL)  # what it complains of it also returns, and we say it


@asynccontextmanager
async def client(
    homeserver: str, user: str, *, device_id: str = "", keys: Path | None = None, pickle_key: str = ""
) -> AsyncIterator[AsyncClient]:
    """nio's client, which tries for ever where it is not told how often. Without ``keys`` it cannot encrypt."""
    settings = AsyncClientConfig(
        pickle_key=pickle_key,
        encryption_enabled=keys is not None,
        max_limit_exceeded=0,
        max_timeouts=0,
        request_timeout=_PATIENCE_S,
    )
    made = AsyncClient(homeserver, user, device_id, str(keys) if keys else "", settings)
    try:
        yield made
    finally:
        await made.close()


async def call(
    client: AsyncClient,
    method: str,
    path: str,
    body: Mapping[str, Any] | None = None,
    *,
    patience_s: float = _PATIENCE_S,
) -> dict[str, Any]:
    """One request below ``/_matrix/client/v3`` with the client's token; the answer. Raises ChatAway, ChatRefused."""
    data = None if body is None else json.dumps(body)
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {client.access_token}"}
    with translated(client.homeserver):
        answer = await client.send(method, f"/_matrix/client/v3{path}", data, headers, timeout=patience_s)
        found = await answer.json(content_type=None)
    if answer.status != 200 or not isinstance(found, dict):
        raise _refused(client.homeserver, answer.status, found if isinstance(found, dict) else {})
    return found


def good(client: AsyncClient, response: object) -> None:
    """Raises ChatAway or ChatRefused for what nio returns where others raise."""
    if isinstance(response, ErrorResponse):
        status = response.transport_response.status if response.transport_response else 0
        told = {"errcode": response.status_code, "error": response.message, "retry_after_ms": response.retry_after_ms}
        raise _refused(client.homeserver, status, told)


@contextmanager
def translated(homeserver: str) -> Iterator[None]:
    """Around whatever goes through the network. Raises ChatAway."""
    try:
        yield
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise ChatError(f"{homeserver} is no address of a homeserver, such as https://matrix.example.org.") from error
    except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
        raise _away(homeserver) from error


def _away(homeserver: str) -> ChatAway:
    return ChatAway(
        f"The homeserver at {homeserver} does not answer, so the chat has to wait; backups are made all the same. Is "
        "it running, and is that its address?"
    )


def _refused(homeserver: str, status: int, told: Mapping[str, Any]) -> ChatError:
    code = told.get("errcode") or ""
    if status == 401 and (session := told.get("session")):
        return ChatRefused(f"The homeserver at {homeserver} asks for the password once more.", session)
    if code == "M_LIMIT_EXCEEDED" or status == 429:
        asked = told.get("retry_after_ms")
        wait_s = min(asked / 1000, _LONGEST_WAIT_S) if isinstance(asked, int | float) and asked > 0 else 60.0
        return ChatAway(f"The homeserver at {homeserver} asks for patience. Try again in {wait_s:.0f} s.", wait_s)
    if status >= 500:
        return _away(homeserver)
    if code in ("M_UNKNOWN_TOKEN", "M_MISSING_TOKEN"):
        return LoginEnded(
            f"The homeserver at {homeserver} does not know this login any more: somebody has ended it. Backups are "
            "made all the same. To sign in again: memu-backup chat login"
        )
    if code in ("", "M_UNRECOGNIZED", "M_NOT_FOUND"):
        return ChatRefused(f"What answers at {homeserver} is no Matrix homeserver. Check its address.")
    why = str(told.get("error") or code).rstrip(".")
    return ChatRefused(f"The homeserver at {homeserver} refuses: {why}.")

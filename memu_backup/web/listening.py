"""Listens for browsers and programs, in the service's own loop (uvicorn)."""

from __future__ import annotations

import asyncio
import logging
import socket
import ssl
import time

import uvicorn

from memu_backup.clock import Clock
from memu_backup.config_tables import WebSettings
from memu_backup.manager import Manager
from memu_backup.web import app, door, uploading
from memu_backup.web.desk import Desk, Start
from memu_backup.web.glance import Glance
from memu_backup.web.patience import Patience

log = logging.getLogger(__name__)

_AGAIN_S = 30.0
_LAST_WORDS_S = 2
"""What is still being sent when the service is asked to stop may take so long."""

_AT_ONCE = 200


async def listen(manager: Manager, start: Start, clock: Clock) -> None:
    """For ever. Where it cannot be done, that is said once, and tried again: backups are made all the same."""
    config = manager.config
    settings = config.web
    start(_swept(manager), "what is left of uploads")  # beside it: a disk may not answer
    desk = Desk(manager, Glance(manager), Patience(time.monotonic), start, clock)
    said = False
    while True:
        try:
            listening = await asyncio.to_thread(_socket, settings)
            server = uvicorn.Server(_how(settings, desk))
            server.config.load()
        except (OSError, ssl.SSLError) as error:
            if not said:
                said = True
                log.error("The page is not there: %s", _why(settings, error))
            await asyncio.sleep(_AGAIN_S)
            continue
        await _served(server, listening, settings)


async def _swept(manager: Manager) -> None:
    for store in manager.stores():
        await asyncio.to_thread(uploading.sweep, store.directory)


async def _served(server: uvicorn.Server, listening: socket.socket, settings: WebSettings) -> None:
    """By its steps, not by ``serve``: that takes the signals, which are the service's, and wakes ten times a second."""
    server.lifespan = server.config.lifespan_class(server.config)
    await server.startup([listening])
    log.info("The page is at %s.", settings.address())
    try:
        await asyncio.Event().wait()
    finally:
        await server.shutdown([listening])


def _how(settings: WebSettings, desk: Desk) -> uvicorn.Config:
    return uvicorn.Config(
        door.Door(app.make(desk), door.names(settings.host, settings.url)),
        lifespan="off",
        log_config=None,
        access_log=False,
        server_header=False,
        date_header=False,  # it would be of when we began
        loop="none",
        ws="none",
        limit_concurrency=_AT_ONCE,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=_LAST_WORDS_S,
        proxy_headers=True,
        forwarded_allow_ips="127.0.0.1,::1",
        ssl_certfile=settings.certificate_file,
        ssl_keyfile=settings.key_file,
    )


def _socket(settings: WebSettings) -> socket.socket:
    family = socket.AF_INET6 if ":" in settings.host else socket.AF_INET
    return socket.create_server((settings.host, settings.port), family=family, backlog=128)


def _why(settings: WebSettings, error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        what = f"{settings.certificate_file} and {settings.key_file} are no certificate and its key ({error.reason})."
    else:
        why = error.strerror if isinstance(error, OSError) else error
        what = f"{settings.host}:{settings.port} cannot be listened on ({why})."
    return f"{what} Backups are made all the same."

"""A real HTTP server on this machine that notes what it is told, and answers as it was told to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from aiohttp import web


@dataclass(frozen=True)
class Heard:
    """A request: ``path`` with its query, ``body`` as text, ``headers`` as one text."""

    method: str
    path: str
    body: str
    headers: str = field(default="", compare=False)


@dataclass
class Receiver:
    """An HTTP server. ``answer`` may be changed; where ``hangs`` is set it never answers."""

    port: int = 0
    heard: list[Heard] = field(default_factory=list)
    status: int = 200
    says: str = "OK"
    location: str = ""
    hangs: bool = False
    over: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def at(self) -> str:
        return f"127.0.0.1:{self.port}"

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        self.heard.append(Heard(request.method, request.path_qs, await request.text(), str(request.headers)))
        if self.hangs:
            await self.over.wait()
        headers = {"Location": self.location} if self.location else {}
        return web.Response(status=self.status, text=self.says, headers=headers)


@asynccontextmanager
async def receiving() -> AsyncIterator[Receiver]:
    made = Receiver()
    runner = web.ServerRunner(web.Server(made.answer, access_log=None))
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.port = runner.addresses[0][1]
    yield made
    made.over.set()
    await runner.cleanup()

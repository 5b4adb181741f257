"""A household whose service listens: a real process, asked over HTTP as browsers and programs ask."""

from __future__ import annotations

import json
import os
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx

from tests.home import PROGRAM, Home


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
        return port


class Site:
    """``home`` with [web] on a port of its own."""

    def __init__(
        self,
        home: Home,
        more: str = "",
        *,
        web: str = "",
        port: int | None = None,
        sources: str | None = None,
        scheme: str = "http",
        verify: str | bool = True,
    ) -> None:
        """``web`` is more of that table, with the ``port`` in it where that is given; ``verify`` a certificate."""
        self._verify = ssl.create_default_context(cafile=verify) if isinstance(verify, str) else verify
        self.home = home
        self.port = port or free_port()
        self.url = f"{scheme}://127.0.0.1:{self.port}"
        own = "" if port else f"port = {self.port}\n"
        home.configure(more=f"{more}\n[web]\nenabled = true\n{own}{web}\n", sources=sources)
        home.mark()
        self._log = home.folder / "service.log"
        self._clients: list[httpx.Client] = []
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [PROGRAM, "--config", str(self.home.folder / "config.toml"), "run"],
                stdout=log,
                stderr=log,
                env=os.environ | self.home.environ,
            )
        self.until(self._answers)

    def _answers(self) -> bool:
        assert self.process.poll() is None, self.log()
        with suppress(httpx.TransportError):
            return self.client().get("/healthz").status_code == 200
        return False

    def log(self) -> str:
        return self._log.read_text()

    def until(self, condition: Any, patience_s: float = 30.0) -> Any:
        deadline = time.monotonic() + patience_s
        while not (value := condition()):
            assert time.monotonic() < deadline, f"did not happen in {patience_s} s\n{self.log()}"
            time.sleep(0.05)
        return value

    def client(self, token: str = "", **more: Any) -> httpx.Client:
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        client = httpx.Client(
            base_url=self.url, headers=headers, timeout=30, trust_env=False, verify=self._verify, **more
        )
        self._clients.append(client)
        return client

    def token(self, role: str, name: str = "") -> str:
        made = self.home.run("token", "create", name or f"the {role}", "--role", role)
        assert made.status == 0, made
        return made.out.strip()

    def of(self, role: str) -> httpx.Client:
        return self.client(self.token(role))

    def ended(self, client: httpx.Client, key: str) -> dict[str, Any]:
        """What came of an activity, once it has ended."""

        def over() -> dict[str, Any] | None:
            there = client.get("/api/v1/activities").json()["activities"]
            return next((one for one in there if one["id"] == key and one["outcome"]), None)

        found: dict[str, Any] = self.until(over)
        return found

    def curl(self, line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        """A line of a document, as a shell does it."""
        return subprocess.run(
            ["bash", "-c", line], env=os.environ | variables, cwd=self.home.folder, capture_output=True, text=True
        )

    def stop(self) -> None:
        for client in self._clients:
            client.close()
        self.process.terminate()
        try:
            assert self.process.wait(15) == 0, self.log()
        finally:
            self.process.kill()


@contextmanager
def a_site(folder: Path, database: str, more: str = "", *, web: str = "") -> Iterator[Site]:
    site = Site(Home(folder, database), more, web=web)
    try:
        yield site
    finally:
        site.stop()
        if "Traceback" in (log := site.log()):
            sys.stderr.write(log)


def said(answer: httpx.Response) -> str:
    """The sentence of one that was refused."""
    told: str = answer.json()["error"]["message"]
    return told


def events(answer: httpx.Response) -> Iterator[Any]:
    """Server-sent ones, as they come."""
    for line in answer.iter_lines():
        if line.startswith("data: "):
            yield json.loads(line.removeprefix("data: "))

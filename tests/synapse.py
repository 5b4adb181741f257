"""A real homeserver: Synapse from PyPI on SQLite, on a loopback port of its own, that talks to nobody else."""

from __future__ import annotations

import hashlib
import hmac
import json
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp

SERVER_NAME = "family.test"
SECRET = "whoever knows this may register"

_OPEN = {"per_second": 1_000_000, "burst_count": 1_000_000}
WIDE_OPEN: dict[str, Any] = {
    "rc_message": _OPEN,
    "rc_registration": _OPEN,
    "rc_login": {"address": _OPEN, "account": _OPEN, "failed_attempts": _OPEN},
    "rc_joins": {"local": _OPEN, "remote": _OPEN},
    "rc_joins_per_room": _OPEN,
    "rc_invites": {"per_room": _OPEN, "per_user": _OPEN, "per_issuer": _OPEN},
    "rc_room_creation": _OPEN,
    "rc_key_requests": _OPEN,
    "rc_profile": _OPEN,
}


class Refused(Exception):
    """The homeserver answered with an error: its HTTP status and what it said."""

    def __init__(self, status: int, said: Any) -> None:
        super().__init__(f"{status}: {said}")
        self.status = status
        self.said = said


class Homeserver:
    """Whichever answers at ``url``."""

    def __init__(self, url: str) -> None:
        self.url = url

    async def ask(self, method: str, path: str, body: Any = None, *, token: str = "") -> Any:
        """One request of its HTTP API; raises Refused for any answer but a 2xx."""
        headers = {"Authorization": f"Bearer {token}"} if token else {}
        async with (
            aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=15)) as session,
            session.request(method, self.url + path, json=body, headers=headers) as answer,
        ):
            said = await answer.json()
            if not answer.ok:
                raise Refused(answer.status, said)
            return said


class Synapse(Homeserver):
    """Starts at the first ``start`` or ``with``, comes back with all it knew after a ``stop`` or ``kill``.

    ``limits`` are rate limits as in homeserver.yaml, by their names there, in place of none:
    ``{"rc_message": {"per_second": 1, "burst_count": 2}}`` is for each account by itself.
    """

    def __init__(self, folder: Path, limits: Mapping[str, Any] | None = None) -> None:
        self._folder = folder
        self.environment: Mapping[str, str] | None = None
        """From its next start on, in place of ours."""
        self._port = _free_port()
        super().__init__(f"http://127.0.0.1:{self._port}")
        self._process: subprocess.Popen[bytes] | None = None
        self.start_s = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        self._config = folder / "homeserver.yaml"
        self._config.write_text(json.dumps(_settings(folder, self._port, self.url) | WIDE_OPEN | dict(limits or {})))

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.kill()

    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def start(self) -> None:
        """Returns when it answers, after some 2 to 3 s; at once where it runs already.

        Blocks, as ``stop`` does: what shares the event loop waits with it, unless asyncio.to_thread calls it.
        """
        if self.running():
            return
        begun = time.monotonic()
        with (self._folder / "errors.txt").open("ab") as errors:
            command = [sys.executable, "-m", "synapse.app.homeserver", "-c", str(self._config)]
            self._process = subprocess.Popen(
                command, cwd=self._folder, stdout=errors, stderr=errors, env=self.environment
            )
        try:
            while not self._healthy():
                assert self.running(), f"Synapse did not start\n{self.log()}"
                assert time.monotonic() < begun + 60, f"Synapse did not answer\n{self.log()}"
                time.sleep(0.02)
        except BaseException:
            self.kill()
            raise
        self.start_s = time.monotonic() - begun
        print(f"Synapse took {self.start_s:.1f} s to start")

    def stop(self) -> None:
        """In good order; within 0.1 s, since it drops whoever is asking just then."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            assert self._process.wait(15) == 0, f"Synapse ended with {self._process.returncode}\n{self.log()}"
        finally:
            self.kill()

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def log(self) -> str:
        """Its warnings and errors since it was made."""
        files = [self._folder / name for name in ("errors.txt", "log.txt")]
        return "".join(file.read_text() for file in files if file.exists())

    async def register(self, name: str, password: str, *, admin: bool = False) -> str:
        """A new account; returns its user id. ``admin`` is one of the homeserver, not of the backup."""
        path = "/_synapse/admin/v1/register"
        nonce = (await self.ask("GET", path))["nonce"]
        said = "\0".join((nonce, name, password, "admin" if admin else "notadmin"))
        proof = hmac.new(SECRET.encode(), said.encode(), hashlib.sha1).hexdigest()
        wish = {"nonce": nonce, "username": name, "password": password, "admin": admin, "mac": proof}
        # Without a device of its own: clients would send keys to it for ever.
        return str((await self.ask("POST", path, wish | {"inhibit_login": True}))["user_id"])

    def _healthy(self) -> bool:
        connection = HTTPConnection("127.0.0.1", self._port, timeout=5)
        try:
            connection.request("GET", "/health")
            return connection.getresponse().status == 200
        except (OSError, HTTPException):
            return False
        finally:
            connection.close()


def _settings(folder: Path, port: int, url: str) -> dict[str, Any]:
    """Its homeserver.yaml, written as JSON, which is YAML too."""
    file = {"class": "logging.FileHandler", "filename": str(folder / "log.txt"), "formatter": "line"}
    log = {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"line": {"format": "%(asctime)s %(levelname)s %(name)s %(message)s"}},
        "handlers": {"file": file},
        "root": {"level": "WARNING", "handlers": ["file"]},
    }
    (folder / "log.yaml").write_text(json.dumps(log))
    return {
        "server_name": SERVER_NAME,
        "public_baseurl": f"{url}/",
        "pid_file": str(folder / "pid"),
        "log_config": str(folder / "log.yaml"),
        "signing_key_path": str(folder / "signing.key"),
        "media_store_path": str(folder / "media"),
        "database": {"name": "sqlite3", "args": {"database": str(folder / "homeserver.db")}},
        "listeners": [
            {
                "type": "http",
                "port": port,
                "bind_addresses": ["127.0.0.1"],
                "resources": [{"names": ["client"], "compress": False}],
            }
        ],
        "registration_shared_secret": SECRET,
        "macaroon_secret_key": "macaroon",
        "form_secret": "form",
        "bcrypt_rounds": 4,  # the least there is
        "report_stats": False,
        "trusted_key_servers": [],
        "federation_domain_whitelist": [],
        "url_preview_enabled": False,
        "presence": {"enabled": False},
        "user_directory": {"enabled": False},
        "push": {"enabled": False},
    }


def _free_port() -> int:
    """One below those that the kernel gives to outgoing connections.

    Of those one might be taken while Synapse is stopped, and a client that keeps asking there would in the end be
    connected with itself.
    """
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    begin = min(20_000, lowest // 2)
    choice = random.Random(os.urandom(8))
    while True:
        port = choice.randrange(begin, lowest)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port

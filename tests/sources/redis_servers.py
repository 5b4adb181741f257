"""Real servers of Redis for the tests, on sockets of their own, filled and compared by Redis' own programs."""

from __future__ import annotations

import asyncio
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from memu_backup.errors import SourceError
from memu_backup.sources.redis import RedisSettings, RedisSource

_UP_S = 20.0

DISKLESS = ("--repl-diskless-sync", "yes", "--repl-diskless-sync-delay", "0")
BY_DISK = ("--repl-diskless-sync", "no")

_EXPIRES = "local t = {} for i, k in ipairs(KEYS) do t[i] = tostring(redis.call('pexpiretime', k)) end return t"
_FILL = """
for i = tonumber(ARGV[1]), tonumber(ARGV[2]) do
    local t = {}
    for n = 1, 25 do t[n] = redis.sha1hex(i .. ':' .. n) end
    redis.call('set', 'k:' .. i, table.concat(t))
end
"""


@dataclass
class RedisServer:
    """``options`` are of redis.conf, as words for the command line; more can be given at each start."""

    folder: Path
    options: tuple[str, ...] = DISKLESS
    password: str = ""
    _process: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def socket(self) -> Path:
        return self.folder / "s"

    @property
    def file(self) -> Path:
        return self.data / "dump.rdb"

    @property
    def process(self) -> subprocess.Popen[bytes]:
        assert self._process
        return self._process

    def start(self, *more: str, loaded: bool = True, **how: Any) -> None:
        self.data.mkdir(exist_ok=True)
        argv = ["redis-server", "--port", "0", "--dir", str(self.data), "--unixsocket", str(self.socket),
                "--save", "3600", "1", "--enable-debug-command", "yes", *self.options, *more]  # fmt: skip
        with (self.folder / "log").open("ab") as log:
            self._process = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, **how)
        deadline = time.monotonic() + _UP_S
        while (said := self._cli("PING")) != "PONG" and not (said.startswith("LOADING") and not loaded):
            if "NOAUTH" in said or "NOPERM" in said:
                break
            assert time.monotonic() < deadline and self._process.poll() is None, (self.folder / "log").read_text()
            time.sleep(0.02)

    def end(self, how: signal.Signals = signal.SIGKILL) -> None:
        """As a power cut; with SIGTERM it saves before."""
        if self._process:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(how)
            self._process.wait()
            self._process = None
        self.socket.unlink(missing_ok=True)

    @property
    def _environ(self) -> dict[str, str] | None:
        return {"PATH": "/usr/bin:/bin", "REDISCLI_AUTH": self.password} if self.password else None

    def _argv(self) -> list[str]:
        return ["redis-cli", "-s", str(self.socket)]

    def _cli(self, *words: str, stdin: str = "") -> str:
        done = subprocess.run([*self._argv(), *words], input=stdin, capture_output=True, text=True, env=self._environ)
        return done.stdout.strip() or done.stderr.strip()

    def cli(self, *words: str, stdin: str = "") -> str:
        said = self._cli(*words, stdin=stdin)
        assert not said.startswith(("ERR", "NOAUTH", "NOPERM", "WRONGPASS", "Could not")), said
        return said

    def fill(self, number: int) -> None:
        """About a kilobyte a key, and some of each other type, in several databases."""
        for begin in range(1, number + 1, 10_000):
            self.cli("EVAL", _FILL, "0", str(begin), str(min(begin + 9_999, number)))
        self.cli(
            stdin="""
            RPUSH list a b c
            SADD set 1 2 three
            ZADD sorted 1.5 a 2.5 b
            HSET hash name "größe\\x00\\xff" other value
            XADD stream 1-1 field value
            SET fleeting soon EX 100000
            PFADD counts a b c
            SELECT 3
            SET elsewhere yes
        """
        )

    def everything(self) -> dict[str, tuple[str, str]]:
        """By database and key Redis' own digest of the value, which tells no order, and when it expires."""
        found = {}
        databases = [line.partition(":")[0] for line in self.cli("INFO", "keyspace").splitlines() if "keys=" in line]
        for number in (database.removeprefix("db") for database in databases):
            keys = self.cli("-n", number, "--scan").splitlines()
            for begin in range(0, len(keys), 1000):
                some = keys[begin : begin + 1000]
                digests = self.cli("-n", number, "DEBUG", "DIGEST-VALUE", *some).splitlines()
                expires = self.cli("-n", number, "EVAL", _EXPIRES, str(len(some)), *some).splitlines()
                found.update({f"{number}/{k}": (d, e) for k, d, e in zip(some, digests, expires, strict=True)})
        return found

    @contextmanager
    def written_to(self) -> Iterator[None]:
        """By a client that adds key after key, and in the same transaction writes down how many they are."""
        over = threading.Event()
        client = subprocess.Popen(
            self._argv(), stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True, env=self._environ
        )
        assert client.stdin

        def write() -> None:
            number = 0
            while not over.is_set():
                number += 1
                client.stdin.write(f"MULTI\nSET n:{number} {number}\nSET number {number}\nEXEC\n")  # type: ignore[union-attr]

        thread = threading.Thread(target=write)
        thread.start()
        try:
            while not self.cli("GET", "number").isdecimal():
                time.sleep(0.01)
            yield
        finally:
            over.set()
            thread.join()
            client.stdin.close()
            client.wait()


@contextmanager
def a_server(*options: str, password: str = "", data: Path | None = None) -> Iterator[RedisServer]:
    """Not started yet."""
    if shutil.which("redis-server") is None:
        pytest.skip("needs Debian's redis-server")
    folder = Path(tempfile.mkdtemp(prefix="mr-"))  # short: a socket's path holds 107 bytes
    server = RedisServer(folder, options or DISKLESS, password)
    try:
        yield server
    finally:
        server.end()
        shutil.rmtree(folder)


def source(server: RedisServer, *, silent_s: float = 30, preparing_s: float = 60, **more: Any) -> RedisSource:
    told = {"kind": "redis", "unixsocket": server.socket, "path": server.file, **more}
    return RedisSource("cache", RedisSettings.model_validate(told), silent_s=silent_s, preparing_s=preparing_s)


async def refused(taken: RedisSource, stage: Path) -> SourceError:
    with pytest.raises(SourceError) as met:
        async with taken.capture(stage):
            pass
    assert "cannot be backed up" in str(met.value) and "\n" not in str(met.value)
    return met.value


@asynccontextmanager
async def listening(
    at: Path, talk: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
) -> AsyncIterator[None]:
    """Something that is no server of Redis, at a socket. Whatever it talks has ended afterwards."""
    talks = []

    async def begun(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        talks.append(asyncio.current_task())
        try:
            with suppress(OSError, EOFError):
                await talk(reader, writer)
        finally:
            writer.transport.abort()
            with suppress(OSError):
                await writer.wait_closed()

    async with await asyncio.start_unix_server(begun, at):
        yield
    running = [task for task in talks if task]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)


async def until(found: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not found():
            await asyncio.sleep(0.02)

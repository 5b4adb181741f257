"""The API under load: 50 who ask for the status each second, and 4 slow downloads, while a backup is made."""

from __future__ import annotations

import argparse
import asyncio
import json
import shutil
import subprocess
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import datetime
from pathlib import Path
from statistics import median, quantiles

import aiohttp

from memu_backup.postgres.server import PostgresServer
from tests.bench import corpus
from tests.bench.corpus import CACHE, MB
from tests.bench.table import mark
from tests.bench.tools import MEMU
from tests.web.site import free_port

READERS, DOWNLOADS = 50, 4
SLOW_BYTES_A_S = 2 * MB
P95_S, SLOWER = 0.1, 1.2
"""What the specification asks for."""


class Place:
    """A household with a service that listens, and a backup to download."""

    def __init__(self, work: Path, household: Path, history: str) -> None:
        self.config = work / "config.toml"
        self.port = free_port()
        self.config.write_text(
            f'backup_dir = "backups"\nstate_dir = "state"\nhost = "bench"\ntimezone = "UTC"\n'
            f'[history]\nurl = "{history}"\n[usb]\noverdue_days = 0\n[drill]\nenabled = false\n'
            f'[sources.photos]\nkind = "directory"\npath = "{household}"\n[jobs.nightly]\nfull = true\n'
            f"retention = {{ keep_last = 2 }}\n[web]\nenabled = true\nport = {self.port}\n"
        )
        self.url = f"http://127.0.0.1:{self.port}"

    def run(self, *words: str) -> str:
        argv = [str(MEMU), "--config", str(self.config), *words]
        return subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()


async def _backup(session: aiohttp.ClientSession, url: str) -> float:
    """How long one takes, from the row of its run."""
    async with session.post(f"{url}/api/v1/backup/create", json={}) as answer:
        key = (await answer.json())["run_id"]
    while True:
        await asyncio.sleep(0.5)
        async with session.get(f"{url}/api/v1/activities") as answer:
            mine = [a for a in (await answer.json())["activities"] if a["id"] == key]
        if mine and mine[0]["outcome"]:
            assert mine[0]["outcome"] == "done", mine
            begun, ended = (_time(mine[0][name]) for name in ("begun_at", "ended_at"))
            return ended - begun


def _time(text: str) -> float:
    return datetime.fromisoformat(text).timestamp()


async def _reads(session: aiohttp.ClientSession, url: str, first_s: float, waits: list[float]) -> None:
    await asyncio.sleep(first_s)
    while True:
        begun = time.monotonic()
        async with session.get(f"{url}/api/v1/status") as answer:
            await answer.read()
            assert answer.status == 200
        took = time.monotonic() - begun
        waits.append(took)
        await asyncio.sleep(max(0.0, 1 - took))


async def _downloads(session: aiohttp.ClientSession, url: str, name: str) -> None:
    """Again and again, as slowly as a telephone."""
    while True:
        async with session.get(f"{url}/api/v1/backup/download/{name}") as answer:
            async for block in _blocks(answer):
                await asyncio.sleep(len(block) / SLOW_BYTES_A_S)


async def _blocks(answer: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    async for block in answer.content.iter_chunked(256 * 1024):
        yield block


async def _measured(place: Place, rounds: int) -> tuple[list[float], list[float], list[float]]:
    """Seconds of backups alone and under load, by turns; and how long each status took."""
    headers = {"Authorization": f"Bearer {place.run('token', 'create', 'bench', '--role', 'operator')}"}
    alone, loaded, waits = list[float](), list[float](), list[float]()
    connector = aiohttp.TCPConnector(limit=0)
    async with AsyncExitStack() as held:
        timeout = aiohttp.ClientTimeout(total=None)
        session = await held.enter_async_context(
            aiohttp.ClientSession(headers=headers, connector=connector, timeout=timeout, read_bufsize=2**16)
        )
        await _backup(session, place.url)
        for _ in range(rounds):
            alone.append(await _backup(session, place.url))
            name = json.loads(place.run("list", "--json"))[0]["name"]
            others = [
                *(asyncio.create_task(_reads(session, place.url, n / READERS, waits)) for n in range(READERS)),
                *(asyncio.create_task(_downloads(session, place.url, name)) for _ in range(DOWNLOADS)),
            ]
            try:
                loaded.append(await _backup(session, place.url))
            finally:
                for task in others:
                    task.cancel()
                await asyncio.gather(*others, return_exceptions=True)
    return alone, loaded, waits


def main() -> int:
    parser = argparse.ArgumentParser(prog="make bench-web", description=__doc__)
    corpus.add_options(parser)
    parser.add_argument("--rounds", type=int, default=3, help="how many backups of each kind (default: 3)")
    options, _ = parser.parse_known_args()
    household, size = corpus.made(options)
    work = (CACHE / "web").absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    server = PostgresServer(work / "server")
    asyncio.run(server.start())
    place = Place(work, household, server.url())
    service = subprocess.Popen([MEMU, "--config", place.config, "run"], stderr=subprocess.DEVNULL)
    try:
        time.sleep(3)
        alone, loaded, waits = asyncio.run(_measured(place, options.rounds))
    finally:
        service.terminate()
        service.wait()
        asyncio.run(server.stop())
        shutil.rmtree(work, ignore_errors=True)
    p95 = quantiles(waits, n=20)[-1]
    slower = median(loaded) / median(alone)
    print(f"\n{size}; {READERS} ask for the status each second, {DOWNLOADS} download at {SLOW_BYTES_A_S / MB:.0f} MB/s")
    print(f"  a backup alone {median(alone):.1f} s, meanwhile {median(loaded):.1f} s")
    print(f"  status, {len(waits)} times: median {median(waits) * 1000:.0f} ms, p95 {p95 * 1000:.0f} ms")
    print(f"  p95 of the status below {P95_S * 1000:.0f} ms: {mark(p95 < P95_S)}")
    print(f"  the backup takes {slower:.2f} × as long, at most {SLOWER} ×: {mark(slower <= SLOWER)}")
    return 0 if p95 < P95_S and slower <= SLOWER else 1


if __name__ == "__main__":
    raise SystemExit(main())

"""``make bench-chat``: how soon the bot answers, how soon the service is ready, and what it costs all day.

Somebody else's encrypted client asks, in a room of a real homeserver on this machine: both take their share of it.
"""

from __future__ import annotations

import argparse
import asyncio
import shutil
import sys
import time
from asyncio.subprocess import DEVNULL
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Self

import psutil

from memu_backup import lock
from memu_backup.chat.account import Safe
from memu_backup.chat.login import log_in
from memu_backup.postgres.server import PostgresServer
from tests.bench import corpus, measure
from tests.bench.corpus import MB, Size
from tests.bench.table import mark
from tests.bench.tools import MEMU
from tests.human import Human, signed_in
from tests.service import Service
from tests.synapse import Synapse

CACHE = Path(".bench")
PASSWORD = "correct horse battery staple"

_ANSWER_MS, _SPEC_S = 300, 5
_REST_MB, _REST_PERCENT = 100, 0.1
_SETTLES_S = 10.0
"""Until a service that has started, or has worked, is at rest."""
_WATCHDOG_S = 120.0
"""As in deploy/memu-backup.service."""


def main() -> int:
    options = _options()
    size = Size(options.size_mb * MB, options.small, options.small_bytes)
    household = corpus.build((CACHE / f"corpus-{options.size_mb}-{options.small}").absolute(), size)
    work = (CACHE / "chat").absolute()
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    print(
        f"\nThe chat and the service at rest ({size}; {measure.machine()})\n"
        f"answers: from before the question is encrypted until it is read; the specification allows {_SPEC_S} s\n"
        "memory: PSS, in which what is shared with others counts in parts\n",
        flush=True,
    )
    try:
        asyncio.run(_measure(work, household, options))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="make bench-chat", description=__doc__)
    corpus.add_options(parser)
    parser.add_argument("--questions", type=int, default=60, help="how often the bot is asked each time (default: 60)")
    parser.add_argument("--starts", type=int, default=5, help="how often the service is started (default: 5)")
    parser.add_argument("--rest-s", type=int, default=600, help="how long it is watched at rest, in s (default: 600)")
    return parser.parse_args()


@dataclass(frozen=True)
class Family:
    """Who asks, whom, and where; and where the household lies that is backed up."""

    anna: Human
    bot: str
    room: str
    work: Path
    household: Path

    @property
    def backups(self) -> Path:
        return self.work / "backups"

    def service(self, *, job: str = 'at = "02:00"', history: str = "") -> Service:
        config = self.work / "config.toml"
        config.write_text(
            f'backup_notification_room = "{self.room}"\n'
            f'backup_dir = "{self.backups}"\nstate_dir = "{self.work / "state"}"\n{history}'
            f'[chat]\nadmins = ["{self.anna.user_id}"]\n'
            f'[sources.household]\nkind = "directory"\npath = "{self.household}"\n'
            f"[jobs.nightly]\n{job}\nretention.keep_last = 1\n"
        )
        return Service(config, watchdog_s=_WATCHDOG_S)

    async def is_answered(self) -> float:
        """In how many ms, from before the question is encrypted until the answer is read."""
        begun = time.monotonic()
        await self.anna.say(self.room, "!backup status")
        while not (await self.anna.next(self.room, sender=self.bot, timeout_s=30)).body.startswith("Backup Status:"):
            pass  # an alert, as when the pause between two of our backups was too long for its job
        return (time.monotonic() - begun) * 1000


async def _measure(work: Path, household: Path, options: argparse.Namespace) -> None:
    with Synapse(work / "synapse") as synapse:
        bot = await synapse.register("backup", PASSWORD)
        user = await synapse.register("anna", PASSWORD)
        async with signed_in(synapse, user, PASSWORD, work / "phone") as anna:
            room = await anna.create_room(invite=[bot])
            await log_in(Safe(work / "state"), synapse.url, bot, PASSWORD)
            family = Family(anna, bot, room, work, household)
            await _ready(family, options.starts)
            await _idle(family, options.questions, options.rest_s)
            await _busy(family, options.questions)
            await _without_postgres(family, options.questions)


async def _ready(family: Family, starts: int) -> None:
    seconds = []
    for _ in range(starts):
        async with family.service() as service:
            await service.ready()
            seconds.append(service.said("READY=1")[0] - service.begun)
            await service.stop()
    how = f"{median(seconds):.2f} s (median of {starts}, {min(seconds):.2f} to {max(seconds):.2f})"
    _tell("from start to ready", how)


async def _idle(family: Family, questions: int, rest_s: int) -> None:
    async with family.service() as service:
        await family.is_answered()
        start = await asyncio.create_subprocess_exec(
            MEMU, "-c", family.work / "config.toml", "start", stdout=DEVNULL, stderr=DEVNULL
        )
        assert await start.wait() == 0
        _tell_answers("idle", [await family.is_answered() for _ in range(questions)])
        await asyncio.sleep(_SETTLES_S)
        before = Cost.of(service)
        await asyncio.sleep(rest_s)
        after = Cost.of(service)
        _tell_memory("memory at rest", after)
        _tell_cpu(before, after, rest_s)
        await service.stop()


async def _busy(family: Family, questions: int) -> None:
    """The service makes the backups itself, as at night, one each minute."""

    async def until(condition: Callable[[], bool]) -> None:
        while not condition():
            await asyncio.sleep(0.05)

    answers: list[float] = []
    async with family.service(job='cron = "* * * * *"') as service:
        while len(answers) < questions:
            await until(lambda: lock.taken(family.backups))
            took_ms = await family.is_answered()
            if lock.taken(family.backups):
                answers.append(took_ms)
        _tell_answers("backing up", answers)
        await until(lambda: not lock.taken(family.backups))
        await asyncio.sleep(_SETTLES_S)
        _tell_memory("memory after backups of its own", Cost.of(service))
        await service.stop()


async def _without_postgres(family: Family, questions: int) -> None:
    async with (
        PostgresServer(family.work / "postgres") as server,
        family.service(history=f'[history]\nurl = "{server.url()}"\n') as service,
    ):
        await family.is_answered()
        await server.stop()
        _tell_answers("Postgres away", [await family.is_answered() for _ in range(questions)])
        await service.stop()


@dataclass(frozen=True)
class Cost:
    """What a service takes: memory with its share of what others use too (PSS), and what it took of the processor."""

    daemon_bytes: int
    daemon_cpu_s: float
    postgres_bytes: int
    postgres_cpu_s: float

    @classmethod
    def of(cls, service: Service) -> Self:
        """Nothing but Postgres is among its children, as long as no backup is made."""
        daemon = psutil.Process(service.process.pid)
        servers = [_taken(child) for child in daemon.children(recursive=True)]
        return cls(*_taken(daemon), sum(b for b, _ in servers), sum(s for _, s in servers))


def _taken(process: psutil.Process) -> tuple[int, float]:
    """Bytes now and seconds until now; with those of its children that have ended: Postgres has one a connection, which
    may end while we look.
    """
    with suppress(psutil.NoSuchProcess):
        times = process.cpu_times()
        seconds = times.user + times.system + times.children_user + times.children_system
        return int(process.memory_full_info().pss), float(seconds)
    return 0, 0.0


def _tell(what: str, how: str, judged: str = "") -> None:
    print(f"  {what:34}{how:52}{judged}".rstrip(), flush=True)


def _tell_answers(when: str, answers_ms: list[float]) -> None:
    cuts = quantiles(answers_ms, n=20, method="inclusive")
    half, most = cuts[9], cuts[18]
    how = f"p50 {half:.0f} ms, p95 {most:.0f} ms, longest {max(answers_ms):.0f} ms"
    _tell(f"!backup status, {when}", how, f"p95 at most {_ANSWER_MS} ms: {mark(most <= _ANSWER_MS)}")


def _tell_memory(when: str, cost: Cost) -> None:
    how = f"{cost.daemon_bytes / MB:.0f} MB, its Postgres {cost.postgres_bytes / MB:.0f} MB more"
    _tell(when, how, f"below {_REST_MB} MB: {mark(cost.daemon_bytes < _REST_MB * MB)}")


def _tell_cpu(before: Cost, after: Cost, seconds: int) -> None:
    daemon = (after.daemon_cpu_s - before.daemon_cpu_s) / seconds * 100
    postgres = (after.postgres_cpu_s - before.postgres_cpu_s) / seconds * 100
    how = f"{daemon:.3f} % over {seconds} s, its Postgres {postgres:.3f} % more"
    _tell("of a core, at rest", how, f"below {_REST_PERCENT:g} %: {mark(daemon < _REST_PERCENT)}")


if __name__ == "__main__":
    sys.exit(main())

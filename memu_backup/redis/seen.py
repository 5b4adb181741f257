"""What a server tells of itself: whether a snapshot can be had of it now, and what would be lost if it ended.

The fields of INFO are described at https://redis.io/docs/latest/commands/info/.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass

from memu_backup import words
from memu_backup.errors import DatabaseAway, DatabaseError
from memu_backup.redis.connection import Connection, Server

_RARELY_S = 3600
"""By its own defaults it saves a single change within an hour."""

_TODO = "Where it is more than a cache, write save 3600 1 or appendonly yes into its settings."


@dataclass(frozen=True, slots=True)
class Seen:
    """What INFO tells, and of ``config`` what we are let see."""

    info: Mapping[str, str]
    config: Mapping[str, str]

    @property
    def program(self) -> str:
        """Redis 7.0.15, Valkey 8.0.1"""
        if version := self.info.get("valkey_version"):
            return f"Valkey {version}"
        return f"Redis {self.info.get('redis_version', '')}"

    @property
    def keys(self) -> dict[str, int]:
        """How many by database: ``db0:keys=3,expires=0``."""
        told = {name: value.partition("keys=")[2].partition(",")[0] for name, value in self.info.items()}
        return {name: int(n) for name, n in told.items() if name[:2] == "db" and name[2:].isdecimal() and n.isdecimal()}

    @property
    def kept_at(self) -> str:
        """Its own file, as it sees it; empty where it does not tell."""
        folder, file = self.config.get("dir"), self.config.get("dbfilename")
        return f"{folder}/{file}" if folder and file else ""

    @property
    def append_only(self) -> bool:
        return self.info.get("aof_enabled") == "1"

    @property
    def major(self) -> int:
        """Of the Redis whose files it writes; Valkey began with those of 7."""
        first = self.info.get("redis_version", "").partition(".")[0]
        return int(first) if first.isdecimal() else 0

    def number(self, name: str) -> int:
        found = self.info.get(name, "")
        return int(found) if found.isdecimal() else 0


async def look_at(connection: Connection, server: Server) -> Seen:
    """Raises DatabaseError, DatabaseAway where no snapshot can be had of it, or not now."""
    told = await connection.call("INFO")
    lines = told.decode(errors="replace").splitlines() if isinstance(told, bytes) else []
    info = dict(line.split(":", 1) for line in lines if ":" in line)
    called, unable = server.called, server.unable
    if info.get("redis_mode") == "sentinel":
        raise DatabaseError(f"{called} is a sentinel and holds no data, {unable}. Name the server that it watches.")
    if info.get("loading") == "1":
        raise DatabaseAway(
            f"{called} still reads its data from its disk, {unable}. It is worth another try in a minute."
        )
    if info.get("master_link_status") == "down":
        raise DatabaseAway(
            f"{called} is a copy of another server and has lost its link to it, {unable}. See to the link."
        )
    await connection.call("REPLCONF", "capa", "eof")  # who may not do this may not have a snapshot either
    config = {}
    for name in ("save", "dir", "dbfilename", "appenddirname", "appendfilename"):
        match await connection.allowed("CONFIG", "GET", name):
            case [bytes(), bytes(value)]:
                config[name] = value.decode(errors="replace")
    return Seen(info, config)


def losses(seen: Seen, called: str) -> list[str]:
    """What would be gone if it ended now, a sentence each, as far as it keeps less than by its own defaults."""
    if seen.info.get("rdb_last_bgsave_status") == "err":
        return [
            f"{called} could not write its last snapshot to its own disk, and what came since is lost if it ends. See "
            "its log: is its disk full, or its memory short?"
        ]
    if seen.append_only:
        if "err" in (seen.info.get("aof_last_write_status"), seen.info.get("aof_last_bgrewrite_status")):
            return [f"{called} could not write to its append-only file. See its log: is its disk full?"]
        return []
    rules = seen.config.get("save")
    if rules == "":
        return [
            f"{called} keeps nothing on its own disk (no save, no appendonly): if it ends, what it holds is gone, but "
            f"for the last backup. {_TODO}"
        ]
    how = _unsaved(seen) if rules is None else _rarely(rules)
    return [f"{called} {how}: if it ends, that is gone, but for the last backup. {_TODO}"] if how else []


def _rarely(rules: str) -> str:
    """How rules such as ``3600 1 300 100`` (seconds, changes) save a single change; empty where often enough."""
    numbers = [int(n) for n in rules.split() if n.isdecimal()]
    alone = [after_s for after_s, changes in zip(numbers[::2], numbers[1::2], strict=False) if changes <= 1]
    soonest_s = min(alone, default=math.inf)
    if soonest_s <= _RARELY_S:
        return ""
    when = f"after {words.duration(soonest_s)}" if alone else f"together with others (save {rules})"
    return f"saves a change only {when}"


def _unsaved(seen: Seen) -> str:
    """The same where it does not tell its rules, by what it has not saved."""
    changes, since_s = seen.number("rdb_changes_since_last_save"), time.time() - seen.number("rdb_last_save_time")
    if not changes or since_s <= _RARELY_S or seen.info.get("rdb_bgsave_in_progress") == "1":
        return ""
    return f"has not saved what was changed in the last {words.duration(since_s)} ({changes:,} times)"

"""A homeserver that is brought back from an older backup hands out no key of a phone twice.

See element-hq/synapse, docs/usage/administration/backups.md.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

from memu_backup import exchange
from memu_backup.postgres.server import PostgresServer
from tests.archives import archive_store, back_up, returning
from tests.sources.dumps import execute, source
from tests.synapse import Synapse

CHANGE = {"sql": "TRUNCATE e2e_one_time_keys_json", "why": "so that phones make new keys"}
PASSWORD = "of the family"


@pytest.fixture
async def chat(postgres: PostgresServer) -> str:
    """As Synapse wants its database."""
    made = "CREATE DATABASE chat ENCODING 'UTF8' LC_COLLATE 'C' LC_CTYPE 'C' TEMPLATE template0"
    await execute(postgres.url(), "DROP DATABASE IF EXISTS chat WITH (FORCE)", made)
    return postgres.url("chat")


@pytest.fixture
def synapse(chat: str, tmp_path: Path) -> Iterator[Synapse]:
    url = urlsplit(chat)
    where = {"host": unquote(url.query.partition("host=")[2].partition("&")[0]), "port": url.port or 5432}
    args = {"user": url.username, "password": url.password or "", "dbname": "chat", **where, "cp_min": 1, "cp_max": 3}
    with Synapse(tmp_path / "synapse", {"database": {"name": "psycopg2", "args": args}}) as made:
        yield made


class Phone:
    """One that has an account and hands in keys, by the requests of Matrix' client API."""

    def __init__(self, synapse: Synapse, name: str) -> None:
        self._synapse, self.name = synapse, name
        self.token, self.device = "", ""

    async def log_in(self) -> None:
        user = await self._synapse.register(self.name, PASSWORD)
        wish = {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": user}, "password": PASSWORD}
        said = await self._synapse.ask("POST", "/_matrix/client/v3/login", wish)
        self.user, self.token, self.device = user, said["access_token"], said["device_id"]

    async def hand_in(self, *keys: str) -> int:
        """Returns how many the homeserver has then."""
        told = {f"signed_curve25519:{key}": {"key": key, "signatures": {}} for key in keys}
        said = await self._synapse.ask(
            "POST", "/_matrix/client/v3/keys/upload", {"one_time_keys": told} if told else {}, token=self.token
        )
        return int(said["one_time_key_counts"].get("signed_curve25519", 0))

    async def claim(self, other: Phone) -> set[str]:
        """One key of the other's, with which this one begins to speak to it."""
        wish = {"one_time_keys": {other.user: {other.device: "signed_curve25519"}}}
        said: dict[str, Any] = await self._synapse.ask("POST", "/_matrix/client/v3/keys/claim", wish, token=self.token)
        return {key.partition(":")[2] for key in said["one_time_keys"].get(other.user, {}).get(other.device, {})}


@pytest.mark.slow
@pytest.mark.parametrize("handled", [True, False])
async def test_no_key_is_handed_out_that_was_used_since_the_backup(
    synapse: Synapse, chat: str, tmp_path: Path, handled: bool
) -> None:
    """Without the statement it is: that is why Memu's settings have it."""
    anna, ben = Phone(synapse, "anna"), Phone(synapse, "ben")
    await anna.log_in()
    await ben.log_in()
    assert await anna.hand_in("AAAA") == 1
    taken = source(url=chat, globals=False, when_restored=[CHANGE] if handled else [])
    (tmp_path / "stage").mkdir(mode=0o700)
    async with taken.capture(tmp_path / "stage") as captured:
        archive = back_up(archive_store(tmp_path / "store"), captured)
    assert await ben.claim(anna) == {"AAAA"} and await ben.claim(anna) == set()

    synapse.stop()
    back = await returning(archive, {taken.name: taken}, tmp_path / "scratch")
    assert await back.all_there() == ()
    synapse.start()
    assert await anna.hand_in() == (0 if handled else 1)
    assert await ben.claim(anna) == (set() if handled else {"AAAA"})
    await anna.hand_in("BBBB")  # as a phone does that is told that there are few
    if handled:
        assert await ben.claim(anna) == {"BBBB"}
    synapse.stop()
    await exchange.release(back.house, None)

"""A sample household: photos, a live chat database that is written to, Synapse's folder, settings."""

from __future__ import annotations

import asyncio
import io
import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

from memu_backup.postgres.server import PostgresServer

PHOTOS = 120
_NAMES = ("anna", "ben", "grandma", "tim")
_WORDS = ("who is", "buying bread", "today", "the photos", "from the lake", "are lovely", "pick up tim", "at five")


class Household:
    """Lies in one folder; made once and used again. ``async with`` starts its database."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.photos = folder / "photos"
        self.database = PostgresServer(folder / "database")
        self.url = self.database.url("chat")

    async def __aenter__(self) -> Household:
        self.folder.mkdir(parents=True, exist_ok=True)
        self._make_photos()
        self._make_synapse()
        self._make_settings()
        await self.database.start()
        await self._make_tables()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.database.stop()

    def _make_photos(self) -> None:
        if self.photos.exists():
            return
        from PIL import Image, ImageFilter

        random.seed(2026)
        noise = Image.frombytes("RGB", (2048, 1536), random.randbytes(2048 * 1536 * 3)).filter(
            ImageFilter.GaussianBlur(1)
        )
        taken = datetime(2025, 5, 1, 9, 30, tzinfo=UTC)
        for number in range(PHOTOS):
            taken += timedelta(days=random.random() * 6)
            sky, grass = ((random.randrange(256), random.randrange(256), 230), (40, random.randrange(90, 200), 60))
            picture = Image.new("RGB", (1600, 1200), sky)
            picture.paste(grass, (0, random.randrange(500, 900), 1600, 1200))
            left, top = random.randrange(440), random.randrange(330)
            picture = Image.blend(picture, noise.crop((left, top, left + 1600, top + 1200)), 0.4)
            jpeg = io.BytesIO()
            picture.save(jpeg, "JPEG", quality=88)
            file = self.photos / f"{taken:%Y}" / f"{taken:%m}" / f"IMG_{taken:%Y%m%d_%H%M%S}_{number:03}.jpg"
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_bytes(jpeg.getvalue())
            os.utime(file, (taken.timestamp(), taken.timestamp()))

    def _make_synapse(self) -> None:
        media = self.folder / "synapse" / "media_store" / "local_content" / "aB" / "cD"
        media.mkdir(parents=True, exist_ok=True)
        (media / "voice_message").write_bytes(random.Random(1).randbytes(400_000))
        (self.folder / "synapse" / "homeserver.yaml").write_text("server_name: family.example\n" * 40)
        (self.folder / "synapse" / "family.example.signing.key").write_text("ed25519 a_1 not-a-real-key\n")

    def _make_settings(self) -> None:
        (self.folder / "nginx").mkdir(exist_ok=True)
        (self.folder / ".env").write_text("DOMAIN=family.example\n")
        (self.folder / "element-config.json").write_text('{"brand": "Memu"}\n')
        (self.folder / "nginx" / "nginx.conf").write_text("events {}\nhttp { server { listen 80; } }\n")

    async def _make_tables(self) -> None:
        import asyncpg

        server = await asyncpg.connect(self.database.url())
        try:
            with suppress(asyncpg.DuplicateDatabaseError):
                await server.execute("CREATE DATABASE chat")
        finally:
            await server.close()
        chat = await asyncpg.connect(self.url)
        try:
            await chat.execute(
                "CREATE TABLE IF NOT EXISTS rooms (id serial PRIMARY KEY, name text UNIQUE);"
                "CREATE TABLE IF NOT EXISTS messages (id serial PRIMARY KEY, room int REFERENCES rooms, sender text,"
                " body text, sent_at timestamptz DEFAULT now());"
                "INSERT INTO rooms (name) VALUES ('Family'), ('Groceries') ON CONFLICT DO NOTHING;"
            )
            if await chat.fetchval("SELECT EXISTS (SELECT FROM messages)"):
                return
            await chat.executemany(
                "INSERT INTO messages (room, sender, body) VALUES ($1, $2, $3)", [_message() for _ in range(20_000)]
            )
        finally:
            await chat.close()

    @asynccontextmanager
    async def chatting(self) -> AsyncIterator[list[int]]:
        """While this lasts the family goes on writing. Gives a list whose length is the messages written."""
        written: list[int] = []

        async def write() -> None:
            import asyncpg

            chat = await asyncpg.connect(self.url)
            try:
                while True:
                    query = "INSERT INTO messages (room, sender, body) VALUES ($1, $2, $3) RETURNING id"
                    written.append(await chat.fetchval(query, *_message()))
                    await asyncio.sleep(0.002)
            finally:
                await chat.close()

        task = asyncio.create_task(write())
        try:
            yield written
        finally:
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task

    def config(self, backups: Path, state: Path) -> str:
        """A config.toml for this household."""
        return f"""\
backup_dir = "{backups}"
state_dir = "{state}"
host = "family-server"

[sources.photos]
kind = "directory"
path = "{self.photos}"

[sources.pgdata]
kind = "postgres"
url = "{self.url}"

[sources.synapse]
kind = "directory"
path = "{self.folder / "synapse"}"

[sources.config]
kind = "files"
paths = ["{self.folder / ".env"}", "{self.folder / "element-config.json"}", "{self.folder / "nginx"}"]

[jobs.nightly]
at = "02:00"
"""


def _message() -> tuple[int, str, str]:
    sender = random.choice(_NAMES)
    return random.randint(1, 2), f"@{sender}:family.example", " ".join(random.choices(_WORDS, k=random.randint(3, 14)))

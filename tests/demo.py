"""``make demo``: the main job on a sample household, with the very commands that a person would type."""

from __future__ import annotations

import asyncio
import filecmp
import json
import os
import shutil
import sys
import time
from pathlib import Path

from memu_backup import words
from memu_backup.postgres.connection import count_rows
from memu_backup.postgres.server import PostgresServer
from memu_backup.postgres.tools import put_back
from tests.household import Household

DEMO = Path(".demo").absolute()
PROGRAM = str(Path(sys.executable).with_name("memu-backup"))


class DemoError(Exception):
    """Something that should be the same is not; the demo ends here, loudly."""


def say(text: str = "") -> None:
    print(text, flush=True)


def step(text: str) -> None:
    say(f"\n\033[1m{text}\033[0m" if sys.stdout.isatty() else f"\n== {text}")


async def typed(*argv: str, quiet: bool = False) -> bytes:
    """Run a command of ours as a person would, its output to the terminal; returns what it printed where ``quiet``."""
    if not quiet:
        say(f"$ memu-backup {' '.join(argv)}".replace(f"{DEMO}", ".demo"))
    child = await asyncio.create_subprocess_exec(
        PROGRAM, "--config", str(DEMO / "config.toml"), *argv, stdout=asyncio.subprocess.PIPE if quiet else None
    )
    printed, _ = await child.communicate()
    if child.returncode != 0:
        raise DemoError(f"memu-backup {argv[0]} ended with {child.returncode}")
    return printed or b""


async def main() -> None:
    begun = time.monotonic()
    os.umask(0o077)
    for old in ("one-photo", "database"):
        shutil.rmtree(DEMO / old, ignore_errors=True)

    step("1. A family's server: photos, a chat database in use, Synapse's folder, settings")
    async with Household(DEMO / "household") as household:
        (DEMO / "config.toml").write_text(household.config(DEMO / "backups", DEMO / "state"))
        say("   lies in .demo/household; the settings in .demo/config.toml")

        step("2. The nightly backup, while the family goes on chatting")
        async with household.chatting() as written:
            await typed("start", "nightly")
        say(f"   {len(written)} messages were written meanwhile.")

        step("3. Is it good? Every byte is read again")
        await typed("verify", "latest")

        step("4. What the family sees when it asks in the chat")
        await typed("status")

        await one_photo(household)
    await whole_database()

    step(f"Everything came back, in {words.duration(time.monotonic() - begun)}.")
    say("   Backups:   .demo/backups     (any tar reads them: tar -tzf .demo/backups/*.tar.gz)")
    say("   Restored:  .demo/one-photo   .demo/database")
    say("   Settings:  .demo/config.toml")
    say("\nNow yours:")
    say("   .venv/bin/memu-backup init --preset memu     writes a config.toml to look over")
    say("   .venv/bin/memu-backup check                  says what is still missing")
    say("   .venv/bin/memu-backup start                  makes the first backup")


async def one_photo(household: Household) -> None:
    photo = sorted(household.photos.rglob("*.jpg"))[17]
    inside = str(Path("photos") / photo.relative_to(household.photos))
    step("5. One photo, please")
    await typed("restore", "latest", "--path", inside, "--to", str(DEMO / "one-photo"), "--yes")
    if not filecmp.cmp(photo, DEMO / "one-photo" / inside, shallow=False):
        raise DemoError(f"{inside} is not the photo that was backed up")
    say("   It is the same, byte by byte.")


async def whole_database() -> None:
    step("6. The database: restored, loaded into an empty server, and counted")
    await typed("restore", "latest", "--source", "pgdata", "--to", str(DEMO / "database"), "--yes")
    shown = json.loads(await typed("show", "latest", "--json", quiet=True))
    details = next(s["details"] for s in shown["metadata"]["sources"] if s["name"] == "pgdata")
    shutil.rmtree(DEMO / "scratch", ignore_errors=True)
    async with PostgresServer(DEMO / "scratch") as server:
        for dump in details["databases"]:
            await put_back(DEMO / "database" / dump["file"], server.url(), major=details["pg_restore_major"])
            counted = await count_rows(server.url())
            for table, rows in dump["tables"].items():
                say(f"   {table}: {rows:,} rows when it was backed up, {counted.get(table, 0):,} now")
            if counted != dump["tables"]:
                raise DemoError(f"the rows of {dump['name']} are not those of the snapshot")
    shutil.rmtree(DEMO / "scratch", ignore_errors=True)


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except DemoError as error:
        say(f"\nThe demo failed: {error}.")
        sys.exit(1)

"""``make demo-chat``: a family's room on this machine, with the bot in it, until Ctrl-C; then nothing of it is left.

All of it lies in .demo-chat/, and each process that belongs to it carries MARK, by which those are found that a killed
demo left behind.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import psutil

from memu_backup import lock
from memu_backup.chat.account import Safe
from memu_backup.errors import MemuError
from memu_backup.lock import NAME as LOCK
from memu_backup.postgres.server import PostgresServer
from tests.chat_client import DEMO, Login
from tests.demo import PROGRAM, DemoError, say, step
from tests.household import Household
from tests.human import signed_in
from tests.synapse import Synapse

MARK = "MEMU_DEMO_CHAT"
ANNA, ANNAS_PASSWORD = "anna", "photos-from-the-lake"
BOT, BOTS_PASSWORD = "backup", "nobody-has-to-type-this"
ROOM = "Family"

_CONFIG = DEMO / "config.toml"
_STATE = DEMO / "state"
_HOUSEHOLD = DEMO / "household"
_LOG = DEMO / "service.log"
_PATIENCE_S = 15.0


async def main() -> None:
    _end_once_when_told()
    os.umask(0o077)
    os.environ[MARK] = str(DEMO)
    DEMO.mkdir(exist_ok=True)
    with lock.held(DEMO, "the demo of the chat", "End it with Ctrl-C where it runs, or go on with that one."):
        _end_all()
        _clear()
        try:
            await _demonstrate()
        finally:
            _end_all()
            for server in (Household(_HOUSEHOLD).database, PostgresServer(_STATE / "postgres")):
                shutil.rmtree(server.socket_folder, ignore_errors=True)  # elsewhere, where this path is too long
            shutil.rmtree(DEMO)
            say("Nothing of it is left.")


def _end_once_when_told() -> None:
    """What is on its way to its end is not to be disturbed by whoever presses Ctrl-C once more."""
    task, loop = asyncio.current_task(), asyncio.get_running_loop()
    assert task

    def end() -> None:
        for number in numbers:
            loop.add_signal_handler(number, lambda: None)
        task.cancel()
        say("\nEnding …")

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    for number in numbers:
        loop.add_signal_handler(number, end)


async def _demonstrate() -> None:
    step("1. A family's server: photos, a chat database, Synapse's folder, settings")
    async with Household(_HOUSEHOLD) as household:
        step("2. A homeserver of their own; Anna makes a room and invites the bot")
        async with _homeserver() as synapse:
            bot = await synapse.register(BOT, BOTS_PASSWORD)
            anna = await synapse.register(ANNA, ANNAS_PASSWORD)
            async with signed_in(synapse, anna, ANNAS_PASSWORD, DEMO / "devices" / "first") as human:
                room = await human.create_room(name=ROOM, invite=[bot])
            _CONFIG.write_text(
                f'backup_notification_room = "{room}"\n'
                + household.config(DEMO / "backups", _STATE)
                + f'\n[chat]\nadmins = ["{anna}"]\n'
            )
            step("3. The bot signs in, and comes once the service runs")
            await _sign_in(synapse.url, bot)
            async with _service() as service:
                await _joined(synapse)
                step("4. The first backup")
                await _typed("start")
                Login(synapse.url, anna, ANNAS_PASSWORD, room, bot).keep()
                _tell(synapse.url)
                await service.wait()
                raise DemoError(f"The service ended by itself; it said:\n{_said()}")


@asynccontextmanager
async def _homeserver() -> AsyncIterator[Synapse]:
    synapse = Synapse(DEMO / "synapse")
    try:
        # In a thread, so that we hear of Ctrl-C at once: it ends Synapse too, which would else look like an error.
        await asyncio.to_thread(synapse.start)
        yield synapse
    finally:
        synapse.kill()


async def _sign_in(homeserver: str, bot: str) -> None:
    password = DEMO / "password"
    password.write_text(BOTS_PASSWORD)
    await _typed("chat", "login", "--homeserver", homeserver, "--user", bot, "--password-file", str(password))
    password.unlink()


def _tell(homeserver: str) -> None:
    python, program = _short(Path(sys.executable)), _short(Path(PROGRAM))
    photos, config = _short(_HOUSEHOLD / "photos"), _short(_CONFIG)
    step("The family's room is open.")
    say(f"   Homeserver:  {homeserver}    (only on this machine; in Element: Sign in, Edit the homeserver)")
    say(f"   Anna:        {ANNA}, password {ANNAS_PASSWORD}    (a parent, an admin of the backup)")
    say(f"   The bot:     {BOT}, password {BOTS_PASSWORD}    (is signed in already: not for Element)")
    say(f"   Room:        {ROOM}, encrypted")
    say("\n   Sign in as Anna, open the room, and write:  !backup status   (or !backup now, !backup help)")
    say("\nWithout Element, in another terminal:")
    say(f"   {python} -m tests.chat_client say '!backup status'")
    say(f"   {python} -m tests.chat_client listen")
    say("\nTo see an alert, take the photos away and make a backup:")
    say(f"   mv {photos} {photos}-gone; {program} --config {config} start")
    say("   It is told in the room by itself; once they are back, so is that all is well again:")
    say(f"   mv {photos}-gone {photos}; {program} --config {config} start")
    say(f"\nWhat the service says: {_short(_LOG)}")
    say("Ctrl-C ends all of it.")


def _short(path: Path) -> str:
    """As one types it in this folder."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


async def _typed(*argv: str) -> None:
    """Run a command of ours as a person would."""
    say(f"$ memu-backup {' '.join(argv)}".replace(f"{DEMO}", DEMO.name))
    child = await asyncio.create_subprocess_exec(PROGRAM, "--config", _CONFIG, *argv, start_new_session=True)
    try:
        status = await child.wait()
    finally:
        await _end(child)
    if status != 0:
        raise DemoError(f"memu-backup {argv[0]} ended with {status}.")


@asynccontextmanager
async def _service() -> AsyncIterator[asyncio.subprocess.Process]:
    say("$ memu-backup run")
    with _LOG.open("wb") as log:
        # In a session of its own: Ctrl-C is for us, and we end everything in its order.
        service = await asyncio.create_subprocess_exec(
            PROGRAM, "--config", _CONFIG, "run", stdout=log, stderr=log, start_new_session=True
        )
    try:
        yield service
    finally:
        await _end(service)


async def _end(child: asyncio.subprocess.Process) -> None:
    if child.returncode is None:
        child.terminate()
        try:
            await asyncio.wait_for(child.wait(), _PATIENCE_S)
        except TimeoutError:
            child.kill()
            await child.wait()


def _said() -> str:
    return _LOG.read_text()[-2000:]


async def _joined(synapse: Synapse) -> None:
    account = Safe(_STATE).account()
    assert account
    with suppress(TimeoutError):
        async with asyncio.timeout(_PATIENCE_S):
            path = "/_matrix/client/v3/joined_rooms"
            while not (await synapse.ask("GET", path, token=account.token))["joined_rooms"]:
                await asyncio.sleep(0.1)
            return
    raise DemoError(f"The bot did not come into the room; the service said:\n{_said()}")


def _end_all() -> None:
    """Whatever was started for a demo in this folder and is still there."""
    left = [process for process in psutil.process_iter() if _is_marked(process)]
    for process in left:
        with suppress(psutil.NoSuchProcess):
            process.send_signal(signal.SIGINT)  # what Postgres, too, takes for: now, but in order
    _, late = psutil.wait_procs(left, _PATIENCE_S)
    for process in late:
        with suppress(psutil.NoSuchProcess):
            process.kill()
    psutil.wait_procs(late, _PATIENCE_S)


def _is_marked(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return process.pid != os.getpid() and process.environ().get(MARK) == str(DEMO)
    return False


def _clear() -> None:
    """Where a killed demo left something."""
    for found in DEMO.iterdir():
        if found.is_dir():
            shutil.rmtree(found)
        elif found.name != LOCK:
            found.unlink()


if __name__ == "__main__":
    try:
        asyncio.run(main())
    except asyncio.CancelledError:
        pass
    except (DemoError, MemuError) as error:
        say(f"\n{error}")
        sys.exit(1)

"""``make demo-chat`` as somebody runs it who tries the chat: what it prints is true, and nothing of it stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import pytest

from tests.demo_chat import MARK
from tests.home import PROGRAM, wait_until
from tests.human import signed_in
from tests.synapse import Homeserver

ROOT = Path(__file__).parent.parent
DEMO, CLIENT = "tests.demo_chat", "tests.chat_client"


class Demo:
    """Runs in ``folder``, in a session of its own, as in a terminal."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.place = folder / ".demo-chat"
        self._environ = {**os.environ, "PYTHONPATH": str(ROOT)}

    @contextmanager
    def started(self, module: str = DEMO, *argv: str) -> Iterator[subprocess.Popen[bytes]]:
        """What it says is ``out`` of the module."""
        with (self.folder / module).open("wb") as out:
            child = subprocess.Popen(
                [sys.executable, "-m", module, *argv],
                cwd=self.folder,
                env=self._environ,
                stdout=out,
                stderr=out,
                start_new_session=True,
            )
        try:
            yield child
        finally:
            child.kill()
            child.wait()
            for left in self.alive():
                left.kill()

    def ran(self, *argv: str) -> tuple[int, str]:
        done = subprocess.run(argv, cwd=self.folder, env=self._environ, capture_output=True, text=True, timeout=60)
        return done.returncode, done.stdout + done.stderr

    def client(self, *argv: str) -> tuple[int, str]:
        return self.ran(sys.executable, "-m", CLIENT, *argv)

    def out(self, of: str = DEMO) -> str:
        return (self.folder / of).read_text()

    def waits_for(self, text: str, of: str = DEMO) -> None:
        try:
            wait_until(lambda: text in self.out(of), 60)
        except AssertionError as error:
            raise AssertionError(f"it did not say {text!r}:\n{self.out(of)}") from error

    def alive(self) -> list[psutil.Process]:
        found = []
        for process in psutil.process_iter():
            with suppress(psutil.Error):
                if process.environ().get(MARK) == str(self.place) and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
        return found


@pytest.mark.slow
async def test_the_demo_answers_all_who_come_in_and_leaves_nothing_behind(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    assert demo.client("listen")[0] == 1
    with demo.started() as running:
        demo.waits_for("Ctrl-C ends all of it.")
        again = demo.ran(sys.executable, "-m", DEMO)
        assert again[0] == 1 and "the demo of the chat" in again[1] and "Traceback" not in again[1]

        login = re.search(r"Homeserver: +(\S+) [^$]*Anna: +(\w+), password (\S+)", demo.out())
        assert login
        async with signed_in(Homeserver(login[1]), login[2], login[3], tmp_path / "element") as element:
            (room,) = element.rooms("Family")
            await element.say(room, "!backup status")
            while not (heard := await element.next(room, sender="@backup:family.test")).decrypted:
                pass  # of the time before it was there
            assert heard.body.startswith("Backup Status:\nLast backup: Today ")

        with demo.started(CLIENT, "listen") as listening:
            demo.waits_for("Listening", CLIENT)
            status, said = demo.client("say", "!backup status")
            assert status == 0 and said.startswith("Backup Status:\nLast backup: Today "), said
            photos = demo.place / "household" / "photos"
            photos.rename(photos.with_name("gone"))
            assert demo.ran(PROGRAM, "--config", str(demo.place / "config.toml"), "start")[0] == 1
            demo.waits_for("backup:\n  Backup Alert\n", CLIENT)
            assert "anna:\n  !backup status\nbackup:\n  Backup Status:\n" in demo.out(CLIENT)

            assert {"synapse.app.homeserver", "run"} <= {word for p in demo.alive() for word in p.cmdline()}
            os.killpg(running.pid, signal.SIGINT)
            assert running.wait(20) == 0, demo.out()
            assert listening.wait(20) == 0, demo.out(CLIENT)
    assert not demo.alive() and not demo.place.exists()
    assert "Traceback" not in demo.out() + demo.out(CLIENT)


@pytest.mark.slow
def test_a_demo_that_is_killed_is_cleared_away_by_the_next_which_may_be_stopped_at_its_start(tmp_path: Path) -> None:
    demo = Demo(tmp_path)
    with demo.started() as running:
        demo.waits_for("4. The first backup")
        running.kill()
        running.wait()
        before = {process.pid for process in demo.alive()}
        assert before
        with demo.started() as other:
            demo.waits_for("2. A homeserver")
            assert not before & {process.pid for process in demo.alive()}
            other.terminate()
            assert other.wait(20) == 0, demo.out()
    assert not demo.alive() and not demo.place.exists()
    assert "Traceback" not in demo.out()

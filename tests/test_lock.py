"""One at a time for a directory, across processes, and free again however the holder ends."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from memu_backup import lock
from memu_backup.errors import LockHeld, StoreError

HOLD = "import sys, time, pathlib; from memu_backup import lock\nwith lock.held(pathlib.Path(sys.argv[1]), 'a test'):\n    print('held', flush=True); time.sleep(60)"  # noqa: E501


def test_a_killed_holder_lets_go_at_once(tmp_path: Path) -> None:
    assert not lock.taken(tmp_path)
    with subprocess.Popen([sys.executable, "-c", HOLD, tmp_path], stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout and holder.stdout.readline() == "held\n"
        assert lock.taken(tmp_path)
        with pytest.raises(LockHeld, match=rf"\(a test, process {holder.pid}\)"), lock.held(tmp_path, "b"):
            pass
        holder.send_signal(signal.SIGKILL)
    assert not lock.taken(tmp_path)
    with lock.held(tmp_path, "b"):
        assert lock.taken(tmp_path)
        with pytest.raises(LockHeld, match=r"\(b, process"), lock.held(tmp_path, "c"):
            pass
    assert not lock.taken(tmp_path)


def test_a_lock_file_that_was_removed_keeps_nobody_out_and_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody takes the file for a leftover just when it goes from one holder to the next."""
    monkeypatch.setattr(lock, "_SECOND_LOOK_S", 0.5)
    inside, leave = threading.Event(), threading.Event()

    def next_one() -> None:
        with lock.held(tmp_path, "the next"):
            inside.set()
            leave.wait(10)

    thread = threading.Thread(target=next_one)
    with lock.held(tmp_path, "the first"):
        thread.start()
        time.sleep(0.1)  # it has opened the file and will look a second time
        (tmp_path / lock.NAME).unlink()
    try:
        assert inside.wait(10)
        assert lock.taken(tmp_path)
        with pytest.raises(LockHeld, match="the next"), lock.held(tmp_path, "a third"):
            pass
    finally:
        leave.set()
        thread.join()


def test_who_comes_second_hears_what_to_do(tmp_path: Path) -> None:
    with lock.held(tmp_path, "a"):
        with (
            pytest.raises(LockHeld, match=r"nothing was started\. Wait until it is done, or"),
            lock.held(tmp_path, "b"),
        ):
            pass
        with pytest.raises(LockHeld, match=r"nothing was started\. Go away\.$"), lock.held(tmp_path, "c", "Go away."):
            pass


def test_a_lock_file_that_is_a_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "target").write_text("precious")
    (tmp_path / lock.NAME).symlink_to("target")
    with pytest.raises(StoreError), lock.held(tmp_path, "a"):
        pass
    assert (tmp_path / "target").read_text() == "precious"


def test_there_is_no_lock_in_a_folder_that_is_not_there(tmp_path: Path) -> None:
    assert not lock.taken(tmp_path / "gone")
    with pytest.raises(StoreError, match="is not there"), lock.held(tmp_path / "gone", "a"):
        pass

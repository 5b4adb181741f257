"""One at a time for a directory, across processes, and free again however the holder ends."""

from __future__ import annotations

import signal
import subprocess
import sys
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

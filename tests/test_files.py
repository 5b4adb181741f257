"""Files are written whole or not at all, nothing is replaced unasked, and trouble with our own disk is one sentence."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from memu_backup import files
from memu_backup.errors import DiskFull, QuotaUsedUp, StoreError, WriteFailed


def test_writing_atomically_never_leaves_half_a_file(tmp_path: Path) -> None:
    path = tmp_path / "state"
    files.write_atomically(path, b"old")
    stop = threading.Event()

    def rewrite() -> None:
        while not stop.is_set():
            files.write_atomically(path, b"new" * 1000)

    writer = threading.Thread(target=rewrite)
    writer.start()
    try:
        seen = {path.read_bytes() for _ in range(300)}
    finally:
        stop.set()
        writer.join()
    assert seen <= {b"old", b"new" * 1000}
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_writing_can_be_told_not_to_replace(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.write_bytes(b"old")
    with pytest.raises(FileExistsError):
        files.write_atomically(path, b"new", replace=False)
    assert path.read_bytes() == b"old"
    assert [p.name for p in tmp_path.iterdir()] == ["state"]


def test_a_rename_never_replaces(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    with pytest.raises(FileExistsError):
        files.rename_without_replacing(tmp_path / "a", tmp_path / "b")
    assert (tmp_path / "b").read_text() == "b"
    files.rename_without_replacing(tmp_path / "a", tmp_path / "c")
    assert (tmp_path / "c").read_text() == "a"
    folder = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(FileExistsError):
            files.rename_without_replacing("c", "b", folder=folder)
        files.rename_without_replacing("c", "d", folder=folder)
    finally:
        os.close(folder)
    assert {p.name: p.read_text() for p in tmp_path.iterdir()} == {"b": "b", "d": "a"}


@pytest.mark.parametrize(
    ("number", "kind", "words"),
    [
        (errno.ENOSPC, DiskFull, "is full"),
        (errno.EDQUOT, QuotaUsedUp, "quota"),
        (errno.EROFS, StoreError, "read-only"),
        (errno.EACCES, StoreError, "cannot be written by this user"),
        (errno.EIO, WriteFailed, "reports an error"),
    ],
)
def test_trouble_with_our_own_disk_is_one_sentence(
    tmp_path: Path, number: int, kind: type[StoreError], words: str
) -> None:
    told = files.storing(OSError(number, os.strerror(number)), tmp_path)
    assert type(told) is kind
    assert words in str(told)
    assert str(tmp_path) in str(told)


def test_names_inside_sentences_stay_on_one_line() -> None:
    unknown = "\N{REPLACEMENT CHARACTER}"
    assert files.shown("a\nb\x1b[31m\udcff\u202e") == f"a{unknown}b{unknown}[31m{unknown}{unknown}"
    assert len(files.shown("x" * 5000)) <= 200


def test_holes_are_found_and_a_map_of_them_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "holes"
    with path.open("wb") as file:
        for start in range(0, 400 << 20, 1 << 20):
            file.seek(start)
            file.write(b"x")
        file.truncate(401 << 20)
        extents = files.data_extents(file.fileno(), 401 << 20)
    assert len(extents) == 400
    assert all(start % (1 << 20) == 0 and 0 < length < 1 << 16 for start, length in extents)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
@pytest.mark.parametrize(("rights", "may"), [("-all,+dac_override", "False"), ("-all,+dac_override,+chown", "True")])
def test_an_account_that_was_given_the_right_may_set_owners(rights: str, may: str) -> None:
    asked = [sys.executable, "-c", "from memu_backup import files; print(files.may_give_away())"]
    drop = ["setpriv", "--reuid=12345", f"--inh-caps={rights}", f"--ambient-caps={rights}"]
    said = subprocess.run([*drop, *asked], capture_output=True, text=True)
    assert said.stdout == f"{may}\n", said
    assert files.may_give_away()

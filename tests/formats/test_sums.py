"""Lines that sha256sum(1) takes for its own, for any file name."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from memu_backup.formats import sums

HASH = "0123456789abcdef" * 4
ODD_NAMES = [b"plain", b"zeilen\numbruch", b"wagen\rruecklauf", b"back\\slash", b"\\n", b"\\\\\n", b"\xff", b" ", b"*"]


@given(st.binary(min_size=1).filter(lambda n: b"\0" not in n).map(os.fsdecode))
def test_any_name_comes_back(path: str) -> None:
    assert sums.parse(sums.line(HASH, path)) == (HASH, path)


@given(st.binary(max_size=100))
def test_noise_is_no_line_and_no_crash(noise: bytes) -> None:
    assert sums.parse(noise) is None or len(noise) > 65


def test_sha256sum_checks_our_lines_and_we_read_its(tmp_path: Path) -> None:
    for name in ODD_NAMES:
        Path(os.fsdecode(os.fsencode(tmp_path) + b"/" + name)).write_bytes(name)
    ours = b"".join(sums.line(sums.of(name), os.fsdecode(name)) for name in ODD_NAMES)
    (tmp_path / "SUMS").write_bytes(ours)
    subprocess.run(["sha256sum", "--quiet", "--strict", "-c", "SUMS"], cwd=tmp_path, check=True)
    theirs = subprocess.run(["sha256sum", "--", *ODD_NAMES], cwd=tmp_path, check=True, capture_output=True).stdout
    assert theirs == ours
    assert [sums.parse(line) for line in theirs.splitlines()] == [(sums.of(n), os.fsdecode(n)) for n in ODD_NAMES]


@pytest.mark.parametrize("text", [b"", b"photo.jpg", b"0" * 63 + b"  photo.jpg", b"0" * 64, b"0" * 64 + b" x"])
def test_what_is_no_line_is_none(text: bytes) -> None:
    assert sums.parse(text) is None

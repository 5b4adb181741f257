"""A drive with restore.py on it, and that program as somebody starts it who has nothing else."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from memu_backup.formats import sums

PROGRAM = Path(__file__).parent.parent.parent / "memu_backup" / "rescue" / "restore.py"

ISOLATED = (sys.executable, "-I", "-W", "error")
"""Python without anything that is installed for somebody, or named in the environment."""


@dataclass(frozen=True)
class Said:
    status: int
    out: str
    err: str

    @property
    def all(self) -> str:
        return self.out + self.err


def put_program(drive: Path) -> None:
    shutil.copy(PROGRAM, drive)


def in_parts(archive: Path, part_bytes: int) -> int:
    """Cut an archive as it lies on a drive with FAT; returns how many parts it makes."""
    content = archive.read_bytes()
    lines = []
    for number, start in enumerate(range(0, len(content), part_bytes), 1):
        part = archive.with_name(f"{archive.name}.part{number:03d}")
        part.write_bytes(content[start : start + part_bytes])
        lines.append(sums.line(hashlib.sha256(part.read_bytes()).hexdigest(), part.name))
    archive.with_name(f"{archive.name}.pieces.sha256").write_bytes(b"".join(lines))
    archive.unlink()
    return len(lines)


def rescue(
    drive: Path, *argv: str | bytes | Path, python: tuple[str, ...] = ISOLATED, environ: Mapping[str, str] | None = None
) -> Said:
    """``restore.py`` of the drive, started in its folder."""
    done = subprocess.run(
        [*python, "restore.py", *argv],
        cwd=drive,
        env={**os.environ, **(environ or {})},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=120,
    )
    return Said(done.returncode, done.stdout.decode("utf-8", "replace"), done.stderr.decode("utf-8", "replace"))

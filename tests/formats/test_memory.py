"""A film and a thousand notes must not end up in memory: small machines have two gigabytes and other things to do."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ALLOWED_MB = 120

CODE = """
import resource, sys
from pathlib import Path
from memu_backup.model import Level
from memu_backup.work import Stop
from tests.archives import archive_store, give_back, ignore, tree, write

def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024

before = peak()
store = archive_store(Path(sys.argv[1]))
written = write(store, tree(Path(sys.argv[2])))
after_writing = peak()
assert store.prove(written.partial_path, Level.FULL, ignore, Stop()).good
after_proving = peak()
give_back(written.partial_path, Path(sys.argv[3]))
print(after_writing - before, after_proving - before, peak() - before)
"""


def test_memory_does_not_grow_with_what_is_backed_up(tmp_path: Path) -> None:
    source = tmp_path / "source"
    source.mkdir()
    block = os.urandom(1 << 20)
    with (source / "film").open("wb") as film:
        for _ in range(200):
            film.write(block)
    for number in range(4_000):
        if number % 1000 == 0:
            (source / f"{number}").mkdir()
        (source / f"{number // 1000 * 1000}" / f"{number}.txt").write_bytes(b"a note\n" * 20)
    argv = [sys.executable, "-c", CODE, *(str(tmp_path / name) for name in ("store", "source", "target"))]
    told = subprocess.run(argv, capture_output=True, text=True)
    assert told.stderr == ""
    for megabytes in map(int, told.stdout.split()):
        assert megabytes < ALLOWED_MB

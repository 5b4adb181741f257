"""What the presets' months are tried in."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.home import query

MEMORY = Path("/dev/shm")


@pytest.fixture
def folder() -> Iterator[Path]:
    """In memory where there is such a place, as hundreds of nights are synced to it; for all to enter."""
    made = Path(tempfile.mkdtemp(prefix="months-", dir=MEMORY if MEMORY.is_dir() else None))
    made.chmod(0o755)
    yield made
    shutil.rmtree(made)


@pytest.fixture
async def history(database: str) -> str:
    """Of which a power cut would cost the last moments: nobody waits for a disk."""
    await query(
        database,
        f'ALTER DATABASE "{database.partition("?")[0].rpartition("/")[2]}" SET synchronous_commit = off',
        "SELECT 1",
    )
    return database

"""Files that a database should name, and rows of which the file should be there: are they the same, as they live?"""

from __future__ import annotations

import stat
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from memu_backup.checks import Finding
from memu_backup.config import Config
from memu_backup.crosscheck import CrossCheck, Unlike, counted
from memu_backup.errors import MemuError, SourceError
from memu_backup.model import Root
from memu_backup.sources import Names, crosscheck
from memu_backup.walk import walk
from memu_backup.work import Stop, in_thread

_TOLD = 100


async def listed(config: Config, name: str) -> list[Finding]:
    """Nothing for a source of which the settings name no such rows. Files without a row are told and are no trouble;
    rows without their file are.
    """
    with tempfile.TemporaryDirectory() as folder:
        check = crosscheck(config.source(name), Path(folder))
        if check is None:
            return []
        what = f"rows of {name}"
        try:
            with check:
                unlike = await _compared(config, check, Path(folder))
        except MemuError as error:
            return [Finding(what, False, str(error))]
    says = [
        counted(unlike.without_row, "file", f"that no row of {check.source} names", unlike.first_without_row),
        counted(unlike.without_file, "row", f"of {check.source} whose file is missing", unlike.first_without_file),
    ]
    says_all = "; ".join(filter(None, says)) or "each file has its row, and each row its file"
    return [Finding(what, not unlike.without_file, says_all)]


async def _compared(config: Config, check: CrossCheck, stage: Path) -> Unlike:
    """Raises SourceError."""
    asked = config.source(check.source)
    if not isinstance(asked, Names):
        raise SourceError(
            f"Source {check.source} cannot be asked which files it names. Correct sources.{check.of}.listed_by.source; "
            "a postgres can be asked."
        )
    await asked.answer([check])
    stop = Stop()
    async with config.source(check.of).capture(stage) as captured:
        unlike = await in_thread(lambda: _seen(check, captured.roots, stop), stop)
    assert unlike  # it was answered, or has failed
    return unlike


def _seen(check: CrossCheck, roots: Sequence[Root], stop: Stop) -> Unlike | None:
    """Folders, links and what could not be looked at are there all the same. Blocks. Raises SourceError."""
    for root in roots:
        for entry in walk(replace(root, place=""), frozenset(), lambda other: check.see(other.place, is_file=False)):
            stop.check()
            is_file, changed_ns = stat.S_ISREG(entry.status.st_mode), entry.status.st_ctime_ns
            check.see(entry.place, is_file=is_file, changed_ns=changed_ns)
    return check.unlike(_TOLD, stop.check)

"""In its container: does the service answer? Whether the backups are good is another question: memu-backup status."""

import asyncio
import sys
from pathlib import Path

from memu_backup import bell
from memu_backup.errors import MemuError

_PATIENCE_S = 10

try:
    # Any answer is one: this is no question that it knows.
    answer = asyncio.run(bell.ask(Path("/var/lib/memu-backup/service"), "are you well", _PATIENCE_S))
except (MemuError, OSError) as error:
    sys.exit(str(error))
sys.exit("No service answers." if answer is None else 0)

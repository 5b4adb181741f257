"""udev's own rules for drives that were approved: desktops leave them alone, and no others.

deploy/99-memu-usb.rules says what is done with a drive that these mark. They lie under /run and go with a restart, so
the service writes them anew when it starts.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from memu_backup.files import write_atomically
from memu_backup.model import Drive

log = logging.getLogger(__name__)

FILE = Path("/run/udev/rules.d/98-memu-backup-drives.rules")
_UUID = re.compile(r"[0-9A-Za-z-]{4,64}")


def publish(drives: Iterable[Drive]) -> None:
    """Mark those that are trusted. Where there is no udev, or we may not, that is no more than a line in the log."""
    uuids = sorted({d.fs_uuid for d in drives if d.trusted_at and _UUID.fullmatch(d.fs_uuid)})
    lines = [f'ENV{{ID_FS_UUID}}=="{uuid}", ENV{{MEMU_BACKUP_DRIVE}}="1"\n' for uuid in uuids]
    content = "".join(["# Written by memu-backup: the drives that get copies of backups.\n", *lines]).encode()
    if not FILE.parent.parent.is_dir():
        return
    try:
        if FILE.exists() and FILE.read_bytes() == content:
            return
        FILE.parent.mkdir(mode=0o755, exist_ok=True)
        write_atomically(FILE, content, 0o644)  # udevd looks for new ones by itself
    except OSError as error:
        log.info("%s cannot be written (%s): a desktop may open the drives, too.", FILE, error.strerror)

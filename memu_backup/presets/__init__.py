"""One TOML a system: the settings that ``init`` writes for it to be looked over."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path

from memu_backup import files
from memu_backup.errors import StoreError, UsageError


def names() -> list[str]:
    return sorted(f.name.removesuffix(".toml") for f in resources.files(__name__).iterdir() if f.name.endswith(".toml"))


def write(name: str, to: Path) -> None:
    """Write the preset to a new file (0600: it may come to hold a password). Raises UsageError, StoreError."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no preset {name}; there are: {', '.join(names())}.{hint}")
    content = resources.files(__name__).joinpath(f"{name}.toml").read_bytes()
    try:
        files.write_atomically(to, content, 0o600, replace=False)
    except FileExistsError as error:
        raise UsageError(f"{to} is there already and was left as it is. Write to another file with --to.") from error
    except OSError as error:
        raise StoreError(f"{to} cannot be written ({error.strerror}). Write to another file with --to.") from error

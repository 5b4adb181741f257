"""One TOML a system: the settings that ``init`` writes for it to be looked over."""

from __future__ import annotations

import difflib
import os
from importlib import resources
from pathlib import Path

from memu_backup.errors import StoreError, UsageError


def names() -> list[str]:
    return sorted(f.name.removesuffix(".toml") for f in resources.files(__name__).iterdir() if f.name.endswith(".toml"))


def write(name: str, to: Path) -> None:
    """Write the preset to a new file (0600: it may come to hold a password). Raises UsageError, StoreError."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no preset {name}; there are: {', '.join(names())}.{hint}")
    text = resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
    try:
        descriptor = os.open(to, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError as error:
        raise UsageError(f"{to} is there already and was left as it is. Write to another file with --to.") from error
    except OSError as error:
        raise StoreError(f"{to} cannot be written ({error.strerror}).") from error
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)

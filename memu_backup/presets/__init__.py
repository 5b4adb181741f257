"""One TOML a system: the settings that ``init`` writes for it to be looked over."""

from __future__ import annotations

import difflib
import os
import tomllib
from importlib import resources
from pathlib import Path

from memu_backup import files
from memu_backup.errors import UsageError


def names() -> list[str]:
    return sorted(f.name.removesuffix(".toml") for f in resources.files(__name__).iterdir() if f.name.endswith(".toml"))


def write(name: str, to: Path, home: Path) -> list[Path]:
    """Write the preset, for a system that lies in ``home``, to a new file (0600: it may come to hold a password).

    Both paths are absolute. Returns what it names to be backed up or read and what is not there; nothing more than a
    look. Raises UsageError.
    """
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no preset {name}; there are: {', '.join(names())}.{hint}")
    content = resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")
    for mark, folder in (("{home}", home), ("{here}", to.parent)):
        content = content.replace(mark, _in_quotes(folder))
    try:
        files.write_atomically(to, content.encode(), 0o600, replace=False)
    except FileExistsError as error:
        raise UsageError(f"{to} is there already and was left as it is. Write to another file with --to.") from error
    except OSError as error:
        raise UsageError(f"{to} cannot be written ({error.strerror}). Write to another file with --to.") from error
    return [path for path in _named(content) if not os.path.lexists(path)]


def _in_quotes(folder: Path) -> str:
    """As it stands between the quotes of a TOML text; ``/`` as nothing, for the ``/`` that follows."""
    text = str(folder).rstrip("/")
    if not text.isprintable():
        raise UsageError(f"{text!r} has characters in its name that a settings file cannot hold. Name another folder.")
    return text.replace("\\", "\\\\").replace('"', '\\"')


def _named(content: str) -> list[Path]:
    sources = tomllib.loads(content)["sources"].values()
    found = [path for s in sources for path in (s.get("path"), s.get("url_file"), *s.get("paths", ())) if path]
    return [Path(path) for path in found]

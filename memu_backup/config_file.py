"""Finds the settings file and reads it, and says what is wrong with it as a text."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from memu_backup.environment import CONFIG_VARIABLE
from memu_backup.errors import SettingsError

SYSTEM_FILE = Path("/etc/memu-backup/config.toml")


def find(path: Path | None, environ: Mapping[str, str]) -> Path:
    """``path``, else $MEMU_BACKUP_CONFIG, ./config.toml or the system's. Raises SettingsError where there is none."""
    if path is not None or environ.get(CONFIG_VARIABLE):
        named = path or Path(environ[CONFIG_VARIABLE])
        if not _is_there(named):
            said = "" if path else f" ({CONFIG_VARIABLE} names it)"
            raise SettingsError([f"there is no such file{said}"], str(named))
        return named
    for usual in (Path("config.toml"), SYSTEM_FILE):
        if _is_there(usual):
            return usual
    raise SettingsError(
        [f"there is neither ./config.toml nor {SYSTEM_FILE}; make one with: memu-backup init --preset memu"],
        "config.toml",
    )


def _is_there(file: Path) -> bool:
    try:
        file.stat()
    except PermissionError:
        raise _closed(file) from None  # nobody can tell: passing it over could mean other settings than the owner's
    except OSError:
        return False
    return True


def _closed(file: Path) -> SettingsError:
    return SettingsError(
        ["this user may not read it; type the same with sudo, or as the user it belongs to"], str(file)
    )


_SYNTAX = {
    "Expected '=' after a key": "there is no = after the name of a setting",
    "Invalid value": "the value cannot be read; texts, paths and times stand in quotes",
    "Expected newline": "something is left over after the value; texts, paths and times stand in quotes",
    "Illegal character": "a quotation mark is not closed",
    "Unterminated": "a quotation mark is not closed",
    "Unclosed": "a bracket is not closed",
    "Cannot": "this name stands there twice",
}


def parse(file: Path) -> dict[str, Any]:
    """The tables of a TOML file. Raises SettingsError, which never quotes what may be a secret."""
    try:
        return tomllib.loads(file.read_text("utf-8-sig"))
    except PermissionError:
        raise _closed(file) from None
    except OSError as error:
        raise SettingsError([f"the file cannot be read ({error.strerror})"], str(file)) from error
    except UnicodeDecodeError as error:
        raise SettingsError(["the file is not a text in UTF-8"], str(file)) from error
    except tomllib.TOMLDecodeError as error:
        at = re.search(r"line (\d+), column (\d+)", str(error))
        where = f"line {at[1]}, column {at[2]}" if at else "at its end"
        # The parser's own words are not repeated: they may hold a piece of a secret.
        plain = [words for start, words in _SYNTAX.items() if str(error).startswith(start)]
        if at is None and str(error).startswith("Invalid value"):
            plain = [_SYNTAX["Unclosed"]]
        raise SettingsError([f"{where}: {(plain or ['this is not TOML'])[0]}"], str(file)) from None

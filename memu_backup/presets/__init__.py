"""What ``init`` knows of a system, in one TOML: its settings, with places such as {photos} for what is looked for on
the machine. What that is, and how it is told there, says NAME.host.toml beside it, if anything is looked for.
"""

from __future__ import annotations

import difflib
import tomllib
from importlib import resources

from pydantic import BaseModel, ConfigDict

from memu_backup.errors import UsageError

_RULES = ".host.toml"


class _Rule(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Setting(_Rule):
    """A setting, written as ``key`` (its own name), out of ``variable`` in .env; else a ``folder`` below the system's
    own, a ``number``, a ``flag``, or a ``text``, which may be empty. An ``example`` alone stays a comment. ``says`` is
    what it is for. What .env names ``not_below`` this machine's folders but inside a container is passed over.
    """

    variable: str
    says: str
    folder: str | None = None
    number: int | None = None
    text: str | None = None
    flag: bool | None = None
    key: str | None = None
    not_below: str | None = None
    example: str | None = None


class Data(_Rule):
    """What a service that matches ``of`` has mounted at one of ``inside``; each in order of preference. Else where
    ``variable`` in .env says; else a ``volume`` of the project or a ``folder`` of the system, and a ``container``.
    ``databases`` are what SQLite databases in there are called; then they alone are meant.
    """

    of: tuple[str, ...] = ()
    inside: tuple[str, ...] = ()
    databases: tuple[str, ...] = ()
    variable: str | None = None
    volume: str | None = None
    folder: str | None = None
    container: str | None = None


class Server(_Rule):
    """The server, of a source of this ``kind``, in the container of a service that matches ``of``. Without one, where
    anything listens at ``port`` of this machine, the settings ``here``, with its {port}; else in ``container``.
    ``password_file`` is a file of the system that may hold its password.
    """

    kind: str
    of: tuple[str, ...]
    container: str
    port: Setting | None = None
    here: str = ""
    password_file: str | None = None


class Files(_Rule):
    """Files and folders by ``names`` in the system's folder, ``compose_files`` with them."""

    names: tuple[str, ...]
    compose_files: bool = False


class Rules(_Rule):
    """What is looked for. ``of``, ``looks_like`` and the keys of ``left_out`` (with the reason) are globs in lower
    case, for the name of a compose service or of its image without registry and tag, ``looks_like`` for the name of the
    project, too. A system that looks like nothing does not live in containers. ``home`` is its folder where nobody says
    otherwise.
    """

    system: str = "the system"
    home: str | None = None
    looks_like: tuple[str, ...] = ()
    at_least: int = 1
    settings: dict[str, Setting] = {}
    data: dict[str, Data] = {}
    servers: dict[str, Server] = {}
    files: dict[str, Files] = {}
    left_out: dict[str, str] = {}


def names() -> list[str]:
    files = (f.name for f in resources.files(__name__).iterdir())
    return sorted(f.removesuffix(".toml") for f in files if f.endswith(".toml") and not f.endswith(_RULES))


def template(name: str) -> str:
    """The settings, with their places. Raises UsageError where there is no such preset."""
    if name not in names():
        close = difflib.get_close_matches(name, names(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        raise UsageError(f"There is no preset {name}; there are: {', '.join(names())}.{hint}")
    return resources.files(__name__).joinpath(f"{name}.toml").read_text("utf-8")


def rules(name: str) -> Rules:
    """What is looked for, for a preset that is there."""
    file = resources.files(__name__).joinpath(f"{name}{_RULES}")
    return Rules.model_validate(tomllib.loads(file.read_text("utf-8"))) if file.is_file() else Rules()

"""Which compose projects this machine has, and where their containers keep what they write: as the Docker Engine tells,
or as a compose file does; and what else takes connections.

Of a compose file so much is understood as tells that: names, images, volumes in both forms, and variables out of
``.env`` (https://docs.docker.com/reference/compose-file/).
"""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any

from memu_backup import docker_engine
from memu_backup.compose import FILES, FOLDER, ONE_TASK, PROJECT, SERVICE
from memu_backup.docker_engine import answer
from memu_backup.errors import UsageError

if TYPE_CHECKING:
    from aiodocker import Docker

_COMPOSE_FILES = ("compose.yaml", "compose.yml", "docker-compose.yml", "docker-compose.yaml")
_ANSWERS_WITHIN_S = 2.0
_VARIABLE = re.compile(r"\$(?:(\$)|(\w+)|\{(\w+)(?:(:?[-+?])([^}]*))?\})")


@dataclass(frozen=True, slots=True)
class Mount:
    """``source`` is a volume's name, or a path of this machine; ``inside`` where the container has it."""

    source: str
    inside: str
    is_volume: bool
    read_only: bool = False

    @property
    def nameless(self) -> bool:
        """A volume that Docker has named by itself, which belongs to this container alone."""
        return self.is_volume and re.fullmatch("[0-9a-f]{64}", self.source) is not None


@dataclass(frozen=True, slots=True)
class Part:
    """One service of a project. ``container`` is its name, empty where only a compose file is known."""

    service: str
    image: str
    container: str
    mounts: tuple[Mount, ...]

    @property
    def names(self) -> tuple[str, str]:
        """By which it is known: its service, and its image without registry and tag."""
        return self.service.lower(), PurePosixPath(self.image.partition("@")[0]).name.partition(":")[0].lower()


@dataclass(frozen=True, slots=True)
class Project:
    name: str
    folder: Path
    files: tuple[Path, ...]
    parts: tuple[Part, ...]


# --- as the engine tells ---------------------------------------------------------------------------------------------


async def of_docker(unable: str) -> list[Project]:
    """Every compose project that has containers, running or not. Raises EngineError, whose sentence ends in
    ``unable``.
    """
    found: dict[str, list[tuple[Mapping[str, str], Part]]] = {}
    async with docker_engine.engine(None, unable) as docker:
        for c in await answer(docker.containers.list(all=True)):
            labels = c["Labels"] or {}
            if labels.get(PROJECT) and labels.get(ONE_TASK, "").lower() != "true":
                found.setdefault(labels[PROJECT], []).append((labels, await _part(docker, c, labels)))
    return [_project(name, found[name]) for name in sorted(found)]


async def _part(docker: Docker, told: Any, labels: Mapping[str, str]) -> Part:
    name = min(told["Names"], key=lambda name: name.count("/")).removeprefix("/")
    image = told["Image"]
    if image.startswith("sha256:"):  # its name belongs to a newer one now; the container knows it still
        seen = await docker_engine.container(docker, told["Id"])
        image = seen["Config"]["Image"] if seen else image
    mounts = [
        Mount(m["Name"] if m["Type"] == "volume" else m["Source"], m["Destination"], m["Type"] == "volume", not m["RW"])
        for m in told["Mounts"] or ()
        if m["Type"] in ("volume", "bind")
    ]
    return Part(labels.get(SERVICE, name), image, name, tuple(sorted(mounts, key=lambda m: m.inside)))


def _project(name: str, told: list[tuple[Mapping[str, str], Part]]) -> Project:
    labels = told[0][0]
    folder = Path(labels.get(FOLDER) or "/")
    files = tuple(folder / file for file in labels.get(FILES, "").split(",") if file)
    return Project(name, folder, files, tuple(sorted((part for _, part in told), key=lambda p: p.container)))


def listens(port: int) -> bool:
    """Whether anything takes connections at a port of this machine. Blocks."""
    try:
        with socket.create_connection(("localhost", port), _ANSWERS_WITHIN_S):
            return True
    except (OSError, OverflowError):
        return False


# --- as its files tell -----------------------------------------------------------------------------------------------


def variables(folder: Path) -> dict[str, str]:
    """What ``.env`` in the folder of a project says; nothing where nobody may read it. Never shown whole: it holds
    passwords.
    """
    from dotenv import dotenv_values

    try:
        with (folder / ".env").open(encoding="utf-8") as file:
            return {name: value for name, value in dotenv_values(stream=file).items() if value}
    except (OSError, ValueError):
        return {}


def compose_files(folder: Path) -> tuple[Path, ...]:
    """The one that compose takes, and the one that it lays over it."""
    first = next((folder / name for name in _COMPOSE_FILES if (folder / name).is_file()), None)
    if first is None:
        return ()
    over = (folder / f"{Path(name).stem}.override{Path(name).suffix}" for name in _COMPOSE_FILES)
    return (first, *[file for file in over if file.is_file()][:1])


def of_files(folder: Path) -> Project | None:
    """The project whose compose file lies in ``folder``; None where there is none. Raises UsageError where it cannot be
    understood.
    """
    files, known = compose_files(folder), variables(folder)
    if not files:
        return None
    name, parts = "", dict[str, Part]()
    documents = [_document(file, known) for file in files]
    for document in documents:
        name = str(document.get("name") or name)
    name = name or known.get("COMPOSE_PROJECT_NAME") or usual_name(folder)
    volumes = {key: told for document in documents for key, told in _table(document, "volumes").items()}
    for document in documents:
        for service, told in _table(document, "services").items():
            if isinstance(told, dict):
                part, before = _service(str(service), told, name, volumes, folder), parts.get(str(service))
                parts[part.service] = _over(before, part) if before else part
    return Project(name, folder, files, tuple(parts[service] for service in sorted(parts)))


def usual_name(folder: Path) -> str:
    """What compose calls the project of a folder unless told otherwise."""
    return re.sub(r"[^a-z0-9_-]", "", folder.name.lower()).lstrip("_-")


def _document(file: Path, known: Mapping[str, str]) -> dict[str, Any]:
    import yaml  # slow, and seldom needed

    try:
        told = yaml.safe_load(file.read_text("utf-8"))
    except OSError as error:
        raise UsageError(f"{file} cannot be read ({error.strerror}).") from error
    except (ValueError, yaml.YAMLError, RecursionError) as error:
        raise UsageError(f"{file} is not a compose file that can be read.") from error
    filled = _filled(told, known)
    return filled if isinstance(filled, dict) else {}


def _filled(told: Any, known: Mapping[str, str]) -> Any:
    match told:
        case dict():
            return {key: _filled(value, known) for key, value in told.items()}
        case list():
            return [_filled(value, known) for value in told]
        case str():
            return _VARIABLE.sub(lambda found: _value(found, known), told)
        case _:
            return told


def _value(found: re.Match[str], known: Mapping[str, str]) -> str:
    dollar, plain, braced, sign, other = found.groups()
    if dollar:
        return "$"
    value = known.get(plain or braced, "")
    if sign in ("-", ":-"):
        return value or other
    return (other if value else "") if sign in ("+", ":+") else value


def _table(document: Mapping[str, Any], key: str) -> dict[Any, Any]:
    told = document.get(key)
    return told if isinstance(told, dict) else {}


def _service(service: str, told: Mapping[str, Any], project: str, volumes: Mapping[Any, Any], folder: Path) -> Part:
    listed = told.get("volumes")
    mounts = tuple(_mounts(listed if isinstance(listed, list) else [], project, volumes, folder))
    return Part(service, str(told.get("image") or ""), str(told.get("container_name") or ""), mounts)


def _over(below: Part, above: Part) -> Part:
    mounts = {m.inside: m for m in (*below.mounts, *above.mounts)}
    image, container = above.image or below.image, above.container or below.container
    return Part(below.service, image, container, tuple(mounts[inside] for inside in sorted(mounts)))


def _mounts(listed: list[Any], project: str, volumes: Mapping[Any, Any], folder: Path) -> Iterator[Mount]:
    for one in listed:
        if isinstance(one, dict):
            source, inside = str(one.get("source") or ""), str(one.get("target") or "")
            is_path, read_only = one.get("type") == "bind", bool(one.get("read_only"))
        else:
            source, _, rest = str(one).partition(":")
            inside, _, mode = rest.partition(":")
            is_path, read_only = source.startswith((".", "/", "~")), "ro" in mode.split(",")
        if source and inside and is_path:
            yield Mount(os.path.normpath(folder / os.path.expanduser(source)), inside, False, read_only)  # noqa: PTH111
        elif source and inside:
            yield Mount(_volume_name(source, project, volumes.get(source)), inside, True, read_only)


def _volume_name(volume: str, project: str, told: Any) -> str:
    told = told if isinstance(told, dict) else {}
    outside = told.get("external")
    if isinstance(outside, dict):
        return str(outside.get("name") or volume)
    return str(told.get("name") or (volume if outside else f"{project}_{volume}"))

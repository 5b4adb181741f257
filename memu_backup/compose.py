"""What compose writes on its containers: whose they are, and what of them depends on what.

The order comes from the label in which compose v2 keeps ``depends_on``: ``db:service_healthy:false,redis:…``, a name of
a service, then what of it is waited for (https://github.com/docker/compose, pkg/api/labels.go and
pkg/compose/compose.go); names alone, as older ones wrote it, are understood too. Where there is no such label, from the
compose file that the labels name. Where that says nothing either, what was made earlier counts as needed by what was
made later: so compose makes them.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

PROJECT, SERVICE, _NEEDS, ONE_TASK, FILES, FOLDER = (
    f"com.docker.compose.{label}"
    for label in ("project", "service", "depends_on", "oneoff", "project.config_files", "project.working_dir")
)


@dataclass(frozen=True, slots=True)
class Container:
    """``state`` is the engine's word, ``made`` in seconds since 1970."""

    id: str
    name: str
    state: str
    made: int
    labels: Mapping[str, str]

    @property
    def needs(self) -> list[str] | None:
        """The services of its project that it depends on; None where nothing tells."""
        told = self.labels.get(_NEEDS)
        if told is None:
            return _told_in_files(self.labels).get(self.labels.get(SERVICE, ""))
        return [name for one in told.split(",") if (name := one.partition(":")[0].strip())]


def ranks(containers: Iterable[Container]) -> dict[str, int]:
    """By id: each has a higher rank than all that it depends on, and those of one rank do not need each other.

    Of a circle nothing more is known. One of which nobody tells needs those that were made before it.
    """
    by_age = sorted(containers, key=lambda c: (c.made, c.name))
    of_service: dict[tuple[str | None, str | None], list[Container]] = {}
    for c in by_age:
        of_service.setdefault((c.labels.get(PROJECT), c.labels.get(SERVICE)), []).append(c)
    needed, before = dict[str, list[Container]](), list[Container]()
    for c in by_age:
        services = c.needs
        if services is None:
            needed[c.id] = before[-1:]
            before.append(c)
        else:
            needed[c.id] = [n for service in services for n in of_service.get((c.labels.get(PROJECT), service), ())]
    found: dict[str, int] = {}

    def rank(container: Container, above: frozenset[str]) -> int:
        if container.id not in found:
            inner = above | {container.id}
            found[container.id] = max(
                (rank(n, inner) + 1 for n in needed[container.id] if n.id not in inner), default=0
            )
        return found[container.id]

    return {c.id: rank(c, frozenset()) for c in by_age}


def _told_in_files(labels: Mapping[str, str]) -> dict[str, list[str]]:
    """What each service of a project depends on, by the compose files that made it; nothing where they cannot be read:
    they may lie on the machine of whoever made it.
    """
    folder, needs = labels.get(FOLDER, ""), dict[str, list[str]]()
    for name in filter(None, labels.get(FILES, "").split(",")):
        for service, told in _services(Path(folder, name)).items():
            needs[service] = [*needs.get(service, []), *told]
    return needs


def _services(file: Path) -> dict[str, list[str]]:
    import yaml  # slow, and seldom needed

    try:
        services = yaml.safe_load(file.read_text("utf-8"))["services"]
        return {str(name): [*_names(told.get("depends_on")), *_linked(told)] for name, told in services.items()}
    except (OSError, ValueError, yaml.YAMLError, KeyError, TypeError, AttributeError) as error:
        log.debug("%s does not tell what depends on what (%s).", file, type(error).__name__)
        return {}


def _names(told: Any) -> list[str]:
    """A list of names, or a table by them."""
    return [str(name) for name in told] if isinstance(told, list | dict) else []


def _linked(service: Mapping[str, Any]) -> list[str]:
    return [name.partition(":")[0] for name in _names(service.get("links"))]

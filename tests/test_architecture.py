"""Holds the floors: imports run down only, siblings among kinds do not know each other, the drawing is true."""

from __future__ import annotations

import ast
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "memu_backup"
DRAWING = PACKAGE.parent / "docs" / "architecture.md"

FLOORS = (
    # The ground: nouns and what has no opinion about backups.
    {"", "clock", "errors", "model", "paths", "cron", "words", "messages", "logs", "systemd"},
    # Machinery.
    {
        "work",
        "process",
        "walk",
        "beside",
        "descent",
        "files",
        "lock",
        "mark",
        "moving",
        "replacing",
        "sqlite",
        "swap",
        "docker_engine",
        "compose",
        "crosscheck",
        "survey",
    }
    | {"postgres", "redis", "rescue"},
    {"formats"},
    {"rights", "trees", "unpack", "pack"},
    # What there are several kinds of, and the history.
    {"sources", "services", "stores", "history", "alerts", "drives", "rescue"},
    # Settings, and the verbs.
    {"config", "config_file", "config_shown", "config_tables", "environment", "mistakes", "presets"}
    | {
        "afterwards",
        "alarms",
        "anywhere",
        "backup",
        "as_json",
        "brief",
        "check",
        "checks",
        "checklist",
        "clean",
        "copy_to_drive",
        "coverage",
        "digest",
        "draft",
        "drill",
        "guard",
        "layout",
        "outlook",
        "exchange",
        "put_back",
        "nested",
        "place",
        "rebuild",
        "report",
        "reread",
        "recover",
        "restore",
        "restores",
        "retention",
        "retention_settings",
        "rotation",
        "schedule",
        "share",
        "standstill",
        "status",
        "troubles",
        "verify",
    }
    | {"catalog", "feed", "find", "verify", "whole"},
    {
        "access",
        "manager",
        "audit",
        "drills",
        "nights",
        "passports",
        "plugged",
        "pulse",
        "rereading",
        "returns",
        "teller",
        "standing",
        "under_way",
        "visits",
    }
    | {"weekly"},
    # Front ends.
    {"bell", "chat", "cli", "console", "daemon", "web"},
)
KINDS = ("sources", "services", "stores", "alerts")


def modules() -> dict[str, Path]:
    """Dotted names below the package (``sources.files``), a folder's own module by the folder's name."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(p for p in parts if p != "__init__")] = path
    return found


def imports(path: Path, known: dict[str, Path]) -> set[str]:
    """The modules of ours that a file imports, anywhere in it, other than for its types alone."""
    tree = ast.parse(path.read_text())
    for_types = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for inner in ast.walk(node)
    }
    found = set()
    for node in ast.walk(tree):
        if id(node) in for_types:
            continue
        if isinstance(node, ast.Import):
            found |= {a.name.removeprefix("memu_backup.") for a in node.names if a.name.startswith("memu_backup")}
        elif isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "memu_backup":
            base = node.module.removeprefix("memu_backup").removeprefix(".")
            for alias in node.names:
                inner = f"{base}.{alias.name}" if base else alias.name
                found.add(inner if inner in known else base)
    return found


def floor(module: str) -> int:
    top = module.split(".")[0]
    return next(number for number, rooms in enumerate(FLOORS) if top in rooms)


KNOWN = modules()


def test_every_module_has_a_floor() -> None:
    placed = set().union(*FLOORS)
    assert {m.split(".")[0] for m in KNOWN} == placed


@pytest.mark.parametrize("module", sorted(KNOWN))
def test_imports_run_down_only(module: str) -> None:
    up = {other for other in imports(KNOWN[module], KNOWN) if floor(other) > floor(module)}
    assert not up, f"{module} imports from above: {up}"


@pytest.mark.parametrize("module", sorted(m for m in KNOWN if m.split(".")[0] in KINDS and "." in m))
def test_kinds_do_not_know_their_siblings(module: str) -> None:
    folder = module.split(".")[0]
    siblings = {o for o in imports(KNOWN[module], KNOWN) if o.startswith(f"{folder}.") and o != module}
    assert not siblings


def test_no_two_modules_need_each_other() -> None:
    graph = {m: imports(p, KNOWN) - {m, ""} for m, p in KNOWN.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(f"these import each other: {error.args[1]}")


def test_the_drawing_names_every_file() -> None:
    drawing = DRAWING.read_text()
    missing = [
        str(path.relative_to(PACKAGE))
        for path in KNOWN.values()
        if path.name != "__init__.py" and path.name not in drawing
    ]
    assert not missing, f"docs/architecture.md does not name {missing}"


def test_every_module_says_why_it_exists() -> None:
    assert [m for m, p in KNOWN.items() if not ast.get_docstring(ast.parse(p.read_text()))] == []

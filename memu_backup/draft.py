"""Makes a first settings file out of a preset and of what this machine shows. Each value says where it is known from;
what was assumed says CHECK.
"""

from __future__ import annotations

import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from glob import escape, has_magic
from pathlib import Path

from memu_backup import docker_engine, files, presets, survey, words
from memu_backup.errors import EngineError, UsageError
from memu_backup.presets import Data, Files, Rules, Server, Setting
from memu_backup.survey import Mount, Part, Project

_WIDTH = 118
_SPECIAL = '"\\'
_FLAGS = dict.fromkeys(("true", "yes", "on", "1"), True) | dict.fromkeys(("false", "no", "off", "0"), False)
_VOLUME = "/var/lib/docker/volumes/{}/_data"
"""Where Docker has a volume, unless somebody has moved its folder."""

_INLINE = re.compile(r"\{(home|\w+\.container)\}")


@dataclass(frozen=True, slots=True)
class Value:
    """What the draft says of one thing, in words, and where it is known from; else it was assumed."""

    name: str
    value: str
    says: str
    known: bool


@dataclass(slots=True)
class Draft:
    """The text of a settings file. ``looked`` are sentences about where it was looked; ``not_found`` are phrases."""

    home: Path
    text: str = ""
    looked: list[str] = field(default_factory=list)
    values: list[Value] = field(default_factory=list)
    left_out: list[Value] = field(default_factory=list)
    not_found: list[str] = field(default_factory=list)


async def draft(preset: str, home: Path | None, otherwise: Path) -> Draft:
    """For the system in the folder ``home``; without one, for the compose project that looks like it, else for what is
    in its usual folder or in ``otherwise``. Both are absolute. Nothing is changed, and nothing needs to be there.

    Raises UsageError for a preset that is none, and where several projects could be meant.
    """
    template, rules = presets.template(preset), presets.rules(preset)
    usual = [Path(rules.home)] if rules.home and Path(rules.home).is_dir() else []
    made = Draft(home or next(iter(usual), otherwise))
    project = None
    if rules.looks_like:
        project = await _project(rules, home, made)
    else:
        made.looked.append(f"Looked for {rules.system} in {made.home}. Another folder is named with --home FOLDER.")
    return _Filling(made, rules, project).fill(template)


def write(text: str, to: Path) -> None:
    """To a new file (0600: it may come to hold a password). Raises UsageError."""
    try:
        files.write_atomically(to, text.encode(), 0o600, replace=False)
    except FileExistsError as error:
        raise UsageError(f"{to} is there already and was left as it is. Write to another file with --to.") from error
    except OSError as error:
        raise UsageError(f"{to} cannot be written ({error.strerror}). Write to another file with --to.") from error


# --- which project ---------------------------------------------------------------------------------------------------


async def _project(rules: Rules, home: Path | None, made: Draft) -> Project | None:
    """The system's own; ``made`` is told where it was looked, and gets its folder where none was named."""
    try:
        projects = await survey.of_docker("so only the compose file was looked at")
    except EngineError as error:
        made.looked.append(str(error))
        projects = []
    else:
        mine = _of_home(projects, home) if home else [p for p in projects if _looks_like(rules, p)]
        if len(mine) > 1 and not home:
            raise UsageError(
                f"Several compose projects look like {rules.system}: {_listed(mine)}. Say which one with --home FOLDER."
            )
        if mine:
            found = max(mine, key=lambda p: _looks_like(rules, p))
            made.home = home or found.folder
            made.looked.append(f"Docker has {rules.system} as compose project {found.name}, in {found.folder}.")
            return found
        there = f"it has {_listed(projects)}" if projects else "it has none"
        which = f"in {home}" if home else f"that looks like {rules.system}"
        made.looked.append(f"Docker has no compose project {which} ({there}), so only the compose file was looked at.")
    return _by_files(made)


def _by_files(made: Draft) -> Project | None:
    try:
        project = survey.of_files(made.home)
    except UsageError as error:
        made.looked.append(str(error))
        return None
    if project:
        made.looked.append(f"{project.files[0]} tells of compose project {project.name}.")
    else:
        made.looked.append(
            f"There is no compose file in {made.home}. Is it another folder? Name it with --home FOLDER."
        )
    return project


def _of_home(projects: Iterable[Project], home: Path) -> list[Project]:
    there = os.path.realpath(home)
    return [p for p in projects if os.path.realpath(p.folder) == there]


def _looks_like(rules: Rules, project: Project) -> bool:
    name, globs = project.name.lower(), rules.looks_like
    met = [glob for glob in globs if fnmatchcase(name, glob) or any(_fits(part, glob) for part in project.parts)]
    return len(met) >= rules.at_least


def _listed(projects: Iterable[Project]) -> str:
    return ", ".join(f"{p.name} in {p.folder}" for p in projects)


def _fits(part: Part, *globs: str) -> bool:
    return any(fnmatchcase(name, glob) for name in part.names for glob in globs)


# --- what stands where -----------------------------------------------------------------------------------------------


class _Filling:
    """Fills the places of one template."""

    def __init__(self, made: Draft, rules: Rules, project: Project | None) -> None:
        self._made = made
        self._rules = rules
        self._project = project
        self._parts = project.parts if project else ()
        self._variables = survey.variables(made.home)
        self._taken: set[str] = set()
        self._containers: dict[str, str] = {}

    def fill(self, template: str) -> Draft:
        rules = self._rules
        blocks = {"project": self._services()} if "{project}" in template else {}
        blocks |= {name: self._setting(name, rule) for name, rule in rules.settings.items()}
        blocks |= {name: self._data(name, rule) for name, rule in rules.data.items()}
        blocks |= {name: self._server(name, rule) for name, rule in rules.servers.items()}
        blocks |= {name: self._files(name, rule) for name, rule in rules.files.items()}
        blocks["left_out"] = self._left_out()
        lines = [blocks[line[1:-1]] if line[1:-1] in blocks else self._inline(line) for line in template.splitlines()]
        self._made.text = re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"
        return self._made

    def _inline(self, line: str) -> str:
        def value(found: re.Match[str]) -> str:
            name = found[1].removesuffix(".container")
            return _shown(str(self._made.home)) if name == "home" else toml(self._containers.get(name, ""))

        return _INLINE.sub(value, line)

    def _value(self, name: str, value: str, says: str, *, known: bool) -> list[str]:
        """Noted, and as the comment above it."""
        self._made.values.append(Value(name, value, says, known))
        return _comment(says if known else f"CHECK: {says}")

    def _services(self) -> str:
        known = self._project is not None
        name = self._project.name if self._project else survey.usual_name(self._made.home)
        says = "Named so by compose." if known else "The name that compose gives by the folder: docker compose ls"
        comment = self._value("services", f"project {name}", says, known=known)
        return "\n".join(['kind = "docker"', *comment, f"project = {toml(name)}", *_socket()])

    def _setting(self, name: str, rule: Setting) -> str:
        given, key = self._given(rule), rule.key or name
        known, where = bool(given), f" From {rule.variable} in .env." if given else ""
        value: str | int
        if rule.folder is not None:
            value = self._path(given or rule.folder)
            self._taken.add(value)
        elif rule.number is not None:
            value, known = int(given or rule.number), True
        elif rule.flag is not None:
            value, known = _FLAGS[given.lower()] if given else rule.flag, True
        elif given or rule.text:
            value, known = given or rule.text or "", True
        elif rule.text is not None:
            value = ""
            self._made.not_found.append(f"{name} ({rule.variable} in .env)")
        else:
            self._made.not_found.append(f"{name} ({rule.variable} in .env)")
            return "\n".join([*_comment(rule.says), f"# {key} = {toml(rule.example or '')}"])
        shown = toml(value) if rule.flag is not None else str(value)
        return "\n".join([*self._value(name, shown, f"{rule.says}{where}", known=known), f"{key} = {toml(value)}"])

    def _given(self, rule: Setting) -> str:
        """What .env says, as far as that can be meant."""
        given = self._variables.get(rule.variable, "")
        if rule.number is not None and not re.fullmatch("[1-9][0-9]{0,5}", given):
            return ""
        if rule.flag is not None and given.lower() not in _FLAGS:
            return ""
        inside = rule.not_below and Path(given).is_relative_to(rule.not_below)
        return "" if inside else given

    def _server(self, name: str, rule: Server) -> str:
        called = rule.kind.capitalize()
        found = [part for glob in rule.of for part in self._parts if _fits(part, glob)]
        names = list(dict.fromkeys(part.container for part in found if part.container))
        says, known = "Docker knows it by this name.", len(names) == 1
        container = names[0] if names else rule.container
        what, where = f"{called} in container {container}", [f"container = {toml(container)}", *_socket()]
        if len(names) > 1:
            says = f"It is not the only one: {', '.join(names[1:])}."
        elif not names and rule.port and survey.listens(port := int(self._given(rule.port) or rule.port.number or 0)):
            says, what = rule.port.says, f"{called} at port {port} of this machine"
            where = rule.here.replace("{port}", str(port)).splitlines()
        elif not names:
            says = f"No container with {called} was found; this is the usual name."
            self._made.not_found.append(f"sources.{name}: no container with {called}")
        comment = self._value(f"sources.{name}", what, says, known=known)
        return "\n".join([f"kind = {toml(rule.kind)}", *comment, *where, *self._password(rule)])

    def _password(self, rule: Server) -> list[str]:
        """Where it is, never what it is."""
        if rule.password_file is None:
            return []
        file = self._path(rule.password_file)
        if os.path.lexists(file):
            return [*_comment("Its password is read from there each time."), f"password_file = {toml(file)}"]
        how = "Should check say that it asks for a password: a file that holds it, for root alone to read."
        return [*_comment(how), f"# password_file = {toml(file)}"]

    def _data(self, name: str, rule: Data) -> str:
        found = list(self._mounts(rule))
        self._containers[name] = next((part.container for part, _ in found if part.container), rule.container or "")
        if found:
            part, mount = found[0]
            says, known = self._said(part, mount, found)
            source, is_volume = mount.source, mount.is_volume
        elif rule.variable and (given := self._variables.get(rule.variable)):
            source, is_volume, says, known = self._path(given), False, f"{rule.variable} in .env.", True
        else:
            source, is_volume = self._usual(name, rule)
            says, known = self._assumed(name, rule, source)
        if rule.databases:
            return self._databases(name, rule, _VOLUME.format(source) if is_volume else source, says, known=known)
        self._taken.add(source)
        if not is_volume and not os.path.lexists(source):
            self._made.not_found.append(source)
        what = "Docker volume" if is_volume else "folder"
        comment = self._value(f"sources.{name}", f"{what} {source}", says, known=known)
        if is_volume:
            return "\n".join(['kind = "volume"', *comment, f"volume = {toml(source)}", *_socket()])
        return "\n".join(['kind = "directory"', *comment, f"path = {toml(source)}"])

    def _assumed(self, name: str, rule: Data, source: str) -> tuple[str, bool]:
        if not rule.inside:
            there = os.path.lexists(source)
            return "It is there." if there else "Nothing is there; this is the usual place.", there
        if self._project:
            self._made.not_found.append(f"sources.{name}: no container that keeps {' or '.join(rule.inside)}")
        return f"No container was found that keeps {rule.inside[0]}; this is the usual place.", False

    def _databases(self, name: str, rule: Data, folder: str, says: str, *, known: bool) -> str:
        """What else lies in the folder is not in it, and so may be told of as left out."""
        missing = [one for one in rule.databases if not any(Path(folder).glob(one))]
        self._made.not_found += [str(Path(folder) / one) for one in missing]
        paths = [str(Path(escape(folder) if has_magic(one) else folder) / one) for one in rule.databases]
        if missing:
            says, known = f"Not found: {', '.join(missing)}. {says}", False
        comment = self._value(f"sources.{name}", f"SQLite databases {', '.join(paths)}", says, known=known)
        return "\n".join(['kind = "sqlite"', *comment, "paths = [", *(f"    {toml(path)}," for path in paths), "]"])

    def _usual(self, name: str, rule: Data) -> tuple[str, bool]:
        """Where the system has it unless somebody has changed that, and whether that is a volume."""
        if rule.volume is None:
            return self._path(rule.folder or name), False
        project = self._project.name if self._project else survey.usual_name(self._made.home)
        return f"{project}_{rule.volume}", True

    def _mounts(self, rule: Data) -> Iterator[tuple[Part, Mount]]:
        """What fits, the best first; each source once."""
        met = set()
        for glob in rule.of:
            for inside in rule.inside:
                for part in self._parts:
                    for mount in part.mounts if _fits(part, glob) else ():
                        if mount.inside.rstrip("/") == inside and mount.source not in met:
                            met.add(mount.source)
                            yield part, mount

    def _said(self, part: Part, mount: Mount, found: Sequence[tuple[Part, Mount]]) -> tuple[str, bool]:
        says = f"{_who(part)} keeps its {mount.inside} there."
        if len(found) > 1:
            others = ", ".join(f"{other.source} ({_who(p)})" for p, other in found[1:])
            return f"{says} It is not the only one: {others}. Add a source for what is missing.", False
        if mount.nameless:
            says += " The volume has no name of its own, and goes with the container: name one in the compose file."
        return says, not mount.nameless

    def _files(self, name: str, rule: Files) -> str:
        wanted = [self._path(one) for one in rule.names]
        if rule.compose_files:
            of_compose = (self._project.files if self._project else ()) or survey.compose_files(self._made.home)
            wanted += [str(path) for path in of_compose or (self._made.home / "docker-compose.yml",)]
        there = {Path(path).name: path for path in reversed(wanted) if os.path.lexists(path)}
        missing = [path for path in wanted if Path(path).name not in there]
        self._made.not_found += missing
        paths = [there[Path(path).name] for path in wanted if there.get(Path(path).name) == path]
        says = "All of them are there."
        if missing:
            says = f"Not found: {', '.join(missing)}. Add what lies elsewhere, under its own name."
        paths = paths or missing
        self._taken |= set(paths)
        comment = self._value(f"sources.{name}", ", ".join(paths), says, known=not missing)
        return "\n".join(['kind = "files"', *comment, "paths = [", *(f"    {toml(path)}," for path in paths), "]"])

    def _left_out(self) -> str:
        """What containers write to, or have from the system's folder, and no source names."""
        lines = []
        for part in self._parts:
            for mount in part.mounts:
                if mount.source in self._taken or mount.nameless or self._is_covered(mount):
                    continue
                self._taken.add(mount.source)
                known = next((why for glob, why in self._rules.left_out.items() if _fits(part, glob)), None)
                says = f"{_who(part)} has it at {mount.inside}; {known or 'whether it can be made anew, nobody knows'}."
                left = Value("left_out", mount.source, says, known is not None)
                self._made.left_out.append(left)
                lines += _comment(f"{'' if known else 'CHECK: '}{mount.source}: {says}", "#   ")
        return "\n".join(["# Not in the backup:", *lines]) if lines else ""

    def _is_covered(self, mount: Mount) -> bool:
        if mount.is_volume:
            return False
        path, home = Path(mount.source), self._made.home
        if any(path.is_relative_to(taken) for taken in self._taken if taken.startswith("/")):
            return True
        return home.is_relative_to(path) or path.is_socket() or (mount.read_only and not path.is_relative_to(home))

    def _path(self, given: str) -> str:
        return os.path.normpath(self._made.home / os.path.expanduser(given))  # noqa: PTH111  which never fails


def _who(part: Part) -> str:
    return f"Container {part.container}" if part.container else f"Service {part.service}"


def _socket() -> list[str]:
    """Where Docker was found, if that is not where everybody looks."""
    scheme, _, path = docker_engine.address(None).partition("://")
    if scheme != "unix" or path == docker_engine.SOCKET:
        return []
    return [f"socket = {toml(path)}"]


# --- as it is written ------------------------------------------------------------------------------------------------


def toml(value: str | int) -> str:
    """As a TOML value. Raises UsageError for a name that is no text: TOML holds nothing else."""
    if isinstance(value, int):
        return str(value).lower()
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise UsageError(f"{value!r} has characters in its name that a settings file cannot hold. Name another folder.")
    return f'"{"".join(c if c.isprintable() and c not in _SPECIAL else _escaped(c) for c in value)}"'


def _escaped(char: str) -> str:
    if char in _SPECIAL:
        return f"\\{char}"
    return f"\\u{ord(char):04x}" if ord(char) < 0x10000 else f"\\U{ord(char):08x}"


def _comment(text: str, begin: str = "# ") -> list[str]:
    return textwrap.wrap(_shown(text), _WIDTH, initial_indent=begin, subsequent_indent="# ".ljust(len(begin)),
                         break_long_words=False, break_on_hyphens=False)  # fmt: skip


def _shown(text: str) -> str:
    return words.printable(text).replace("\n", "\N{REPLACEMENT CHARACTER}")

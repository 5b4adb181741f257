"""What lies beside the copies on a drive, for the day on which nobody who knows memu-backup is there: a page in plain
words, and a program that needs nothing but Python. ``restore.py`` is copied as it is and never imported.
"""

from __future__ import annotations

import html
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, tzinfo
from importlib import resources
from posixpath import basename, dirname
from string import Template

from memu_backup import words

PAGE = "README.html"
PROGRAM = "restore.py"


@dataclass(frozen=True, slots=True)
class Copy:
    """A backup on the drive. ``path`` is that of the ``.tar.gz``, as seen from the page's folder, also where it lies in
    ``parts`` (``path`` + ``.part001`` …); these are 0 for one whole file. ``created_at`` is aware.
    """

    path: str
    created_at: datetime
    size_bytes: int
    parts: int
    job: str
    host: str
    sources: tuple[str, ...]


def kit(drive_name: str, copies: Sequence[Copy], made_at: datetime, zone: tzinfo) -> dict[str, bytes]:
    """The files of the kit by name, for one folder of the drive. ``made_at`` is aware; times are shown in ``zone``."""
    here = resources.files(__name__)
    page = Template(here.joinpath(PAGE).read_text("utf-8"))
    newest_first = sorted(copies, key=lambda copy: copy.created_at, reverse=True)
    filled = page.substitute(
        drive=_text(drive_name),
        made_at=_text(_moment(made_at, zone)),
        copies="\n".join(_row(copy, zone) for copy in newest_first) or _NONE,
        **{name: html.escape(command) for name, command in _commands(newest_first).items()},
    )
    return {PAGE: filled.encode("utf-8", "replace"), PROGRAM: here.joinpath(PROGRAM).read_bytes()}


_NONE = '<tr><td colspan="4">none yet</td></tr>'


def _row(copy: Copy, zone: tzinfo) -> str:
    lies = f"in {copy.parts} parts" if copy.parts else "one file"
    what = f"{', '.join(copy.sources)} ({copy.job} of {copy.host})"
    name = f"<code>{_text(copy.path)}</code>"
    size = f"{_text(words.size(copy.size_bytes))}, {lies}"
    return f"<tr><td>{_text(_moment(copy.created_at, zone))}<br>{name}</td><td>{size}</td><td>{_text(what)}</td></tr>"


def _commands(copies: Sequence[Copy]) -> dict[str, str]:
    """What the page says to type, for the newest backup; with one that stands for it where there is none."""
    path = copies[0].path if copies else "NAME.tar.gz"
    whole = shlex.quote(f"./{path}" if path.startswith("-") else path)
    in_parts = bool(copies) and copies[0].parts > 0
    unpack = f"cat {whole}.part* | tar -xpz -C ~/found" if in_parts else f"tar -xpzf {whole} -C ~/found"
    folder = shlex.quote(f"./{dirname(path)}")
    sums = shlex.quote(f"./{basename(path)}{'.pieces' if in_parts else ''}.sha256")
    return {
        "by_memu_backup": f"memu-backup restore {whole} --to ~/found",
        "check_by_python": f"python3 {PROGRAM} check {whole}",
        "list_by_python": f"python3 {PROGRAM} list {whole}",
        "by_python": f"python3 {PROGRAM} restore {whole} ~/found",
        "some_by_python": f"python3 {PROGRAM} restore {whole} ~/pictures '*.jpg'",
        "by_tar": f"mkdir ~/found\n{unpack}\n(cd ~/found && sha256sum --quiet -c SHA256SUMS)",
        "check_by_sums": f"(cd {folder} && sha256sum -c {sums})",
    }


def _moment(at: datetime, zone: tzinfo) -> str:
    local = at.astimezone(zone)
    return f"{local.day} {words.MONTHS[local.month - 1]} {local.year} {words.time_of_day(local)}"


def _text(hostile: str) -> str:
    """A name as a page may show it: on one line, with nothing in it that a browser takes for more than text."""
    return html.escape(" ".join(words.printable(hostile).split()))

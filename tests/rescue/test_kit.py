"""The page on the drive: plain, escaped, complete by itself, and what it says to type does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest

from memu_backup.rescue import PAGE, PROGRAM, Copy, kit
from tests.archives import TAKEN_AT, snapshot
from tests.home import PROGRAM as MEMU_BACKUP
from tests.home import on_a_terminal
from tests.rescue.drive import in_parts

ROOT = Path(__file__).parent.parent.parent
EVIL = "</td><script>alert(1)</script><img src=x onerror=alert(1)>\"'&${drive}$$\u202e\x1b[31m\udcff\n"
VOID = {"meta", "br"}


def put_kit(drive: Path, *copies: Copy) -> None:
    for file, content in kit("blue drive", copies, TAKEN_AT, UTC).items():
        (drive / file).write_bytes(content)


def copy_of(path: str, drive: Path, parts: int = 0) -> Copy:
    pieces = drive.glob(f"{path}.part*") if parts else (drive / path,)
    size = sum(piece.stat().st_size for piece in pieces)
    return Copy(path, TAKEN_AT, size, parts, "nightly", "attic", ("photos", "pgdata"))


class Page(HTMLParser):
    """Holds each tag to what was opened, and gathers what a person sees and types."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.tags: set[str] = set()
        self.attributes: set[str] = set()
        self.links: list[str] = []
        self.text = ""
        self.blocks: dict[str, list[str]] = {}
        self._runs = ""
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.attributes |= {name for name, _ in attrs}
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]
        if tag == "pre":
            self._runs = dict(attrs).get("data-run") or "example"
            self.blocks.setdefault(self._runs, []).append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text += data
        if "pre" in self.open:
            self.blocks[self._runs][-1] += data


def page_of(drive: Path) -> Page:
    return Page((drive / PAGE).read_text("utf-8"))


def test_the_page_needs_nothing_but_itself() -> None:
    text = kit("blue drive", [], TAKEN_AT, UTC)[PAGE].decode()
    page = Page(text)
    assert not page.tags & {"script", "link", "img", "iframe", "object", "base", "form"}
    assert page.links == [] and "url(" not in text and "@import" not in text and "http:" not in text
    assert not [name for name in page.attributes if name.startswith("on")]
    assert "color-scheme: light dark" in text and "width=device-width" in text
    assert "$" not in page.text  # every place was filled


def test_it_tells_what_is_on_the_drive_the_newest_first() -> None:
    then, now = TAKEN_AT - timedelta(days=62), datetime(2026, 3, 5, 8, tzinfo=UTC)
    older = Copy("old/memu_backup_20260101_020000.tar.gz", then, 2_100_000_000, 3, "nightly", "attic", ("photos",))
    newer = Copy("memu_backup_20260304_020000.tar.gz", TAKEN_AT, 312_000_000, 0, "nightly", "attic", ("photos", "db"))
    page = Page(kit("blue drive", [older, newer], now, ZoneInfo("Europe/Berlin"))[PAGE].decode())
    for told in (
        "“blue drive”",
        "This drive is not locked.",
        "4 Mar 2026 2:00 AM",
        "1 Jan 2026 2:00 AM",
        "312 MB, one file",
        "2.1 GB, in 3 parts",
        "photos, db (nightly of attic)",
        "written on 5 Mar 2026 9:00 AM",
        "pg_restore --exit-on-error -d chat",
    ):
        assert told in page.text
    assert page.text.index(newer.path) < page.text.index(older.path)
    assert all(newer.path in block for block in page.blocks["sh"][:2])
    assert not [block for blocks in page.blocks.values() for block in blocks if older.path in block]


def test_hostile_names_are_nothing_but_text() -> None:
    copies = [Copy(f"{EVIL}.tar.gz", TAKEN_AT, 1, parts, EVIL, EVIL, (EVIL, "b")) for parts in (0, 2)]
    plain = Page(kit("x", [copies[0]], TAKEN_AT, UTC)[PAGE].decode())
    for copy in copies:
        raw = kit(EVIL, [copy], TAKEN_AT, UTC)[PAGE].decode()
        page = Page(raw)
        assert (page.tags, page.attributes) == (plain.tags, plain.attributes)
        assert "script" not in page.tags and "<script" not in raw and "<img" not in raw
        assert page.text.count("<script>alert(1)</script>") > 5
        assert "\x1b" not in raw.split("<pre")[0] and "\u202e" not in raw.split("<pre")[0]


def test_no_backup_yet_is_said() -> None:
    page = Page(kit("blue drive", [], TAKEN_AT, UTC)[PAGE].decode())
    assert "none yet" in page.text and "NAME.tar.gz" in page.text


def typed(lines: str, drive: Path, home: Path) -> None:
    """Type them on a terminal as they stand on the page, with our program to be found, and say yes where it asks."""
    home.mkdir()
    found = f"{Path(MEMU_BACKUP).parent}:{os.environ['PATH']}"
    done = on_a_terminal(["sh", "-euc", lines], drive, {**os.environ, "HOME": str(home), "PATH": found}, "y\n", 100)
    assert done.status == 0, (lines, done)


@pytest.mark.parametrize("in_how_many", ["one", "parts"])
@pytest.mark.parametrize("folder", ["", "it's the attic $HOME"])
def test_every_command_of_the_page_does_what_it_says(
    drive: Path, name: str, source: Path, tmp_path: Path, in_how_many: str, folder: str
) -> None:
    where = drive / folder
    where.mkdir(exist_ok=True)
    if folder:
        for file in drive.glob("memu*"):
            shutil.move(file, where)
    parts = in_parts(where / name, 3_000_000) if in_how_many == "parts" else 0
    path = f"{folder}/{name}" if folder else name
    put_kit(drive, copy_of(path, drive, parts))
    page = page_of(drive)
    typed("\n".join(page.blocks["sh"]), drive, tmp_path / "by python")
    assert snapshot(tmp_path / "by python" / "found" / "photos") == snapshot(source)
    pictures = [p.name for p in (tmp_path / "by python" / "pictures").rglob("*") if p.is_file()]
    assert pictures == ["IMG_0001.jpg"]
    (tar,) = page.blocks["tar"]
    typed(tar, drive, tmp_path / "by tar")
    assert snapshot(tmp_path / "by tar" / "found" / "photos") == snapshot(source)
    (ours,) = page.blocks["memu-backup"]
    assert ours.startswith("memu-backup restore ")
    if not parts:  # parts are joined by those who read them
        typed(ours, drive, tmp_path / "by memu-backup")
        assert snapshot(tmp_path / "by memu-backup" / "found" / "photos") == snapshot(source)


def test_a_damaged_copy_is_told_by_the_commands_of_the_page(drive: Path, name: str) -> None:
    content = bytearray((drive / name).read_bytes())
    content[len(content) // 2] ^= 1
    (drive / name).write_bytes(content)
    put_kit(drive, copy_of(name, drive))
    for line in "\n".join(page_of(drive).blocks["sh"]).splitlines():
        if " check " in line or "sha256sum" in line:
            assert subprocess.run(["sh", "-c", line], cwd=drive, capture_output=True).returncode == 1, line


def test_the_kit_is_in_what_gets_installed(tmp_path: Path) -> None:
    """By the same tool that makes the wheel, of a copy of the sources."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, tmp_path)
    shutil.copytree(ROOT / "memu_backup", tmp_path / "memu_backup", ignore=shutil.ignore_patterns("__pycache__"))
    build = "import setuptools; setuptools.setup(script_args=['-q', 'build', '--build-lib', 'built'])"
    done = subprocess.run([sys.executable, "-c", build], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done
    assert (tmp_path / "built" / "memu_backup" / "history").is_dir()
    for name in (PAGE, PROGRAM, "__init__.py"):
        built = tmp_path / "built" / "memu_backup" / "rescue" / name
        assert built.read_bytes() == (ROOT / "memu_backup" / "rescue" / name).read_bytes()
    made = subprocess.run(
        [sys.executable, "-I", "-c", WRITES, str(tmp_path / "built"), sysconfig.get_paths()["purelib"]],
        capture_output=True,
    )
    assert made.returncode == 0 and made.stdout == (ROOT / "memu_backup" / "rescue" / PROGRAM).read_bytes()


WRITES = """
import sys
sys.path[:0] = sys.argv[1:2]
import memu_backup
assert memu_backup.__file__.startswith(sys.argv[1])
from datetime import datetime, UTC
from memu_backup.rescue import kit
sys.stdout.buffer.write(kit("x", [], datetime.now(UTC), UTC)["restore.py"])
"""


def test_the_program_says_where_it_lies_on_the_page() -> None:
    page = Page(kit("x", [], TAKEN_AT, UTC)[PAGE].decode())
    assert re.findall(r"\S+\.py\b", "".join(page.blocks["sh"])) == [PROGRAM] * 4

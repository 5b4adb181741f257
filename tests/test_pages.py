"""The pages are typed by people: each command of ours in them is one that there is, and each link leads somewhere."""

from __future__ import annotations

import re
import shlex
from functools import cache
from pathlib import Path

import typer

import memu_backup.cli
from memu_backup.cli.shell import app
from tests.pages import ROOT, blocks, ours

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
MESSAGES = (ROOT / "tests" / "messages.txt").read_text()
OF_INSTALLER = (ROOT / "deploy" / "install.sh").read_text()


@cache
def _the_command() -> typer.core.TyperGroup:
    assert memu_backup.cli  # which gives it its commands
    made = typer.main.get_command(app)
    assert isinstance(made, typer.core.TyperGroup)
    return made


def refused(command: str) -> str:
    """Why our command line does not take this; empty where it does. Nothing is carried out."""
    words = shlex.split(re.sub(r" …\]|[\[\]…]", "", command))
    found: object = _the_command()
    while isinstance(found, typer.core.TyperGroup):
        if not words or words[0] not in found.commands:
            return f"there is no {' '.join(words[:1]) or 'command'}"
        found = found.commands[words.pop(0)]
    assert isinstance(found, typer.core.TyperCommand)
    try:
        found.make_context("memu-backup", list(words))
    except Exception as error:
        only_named = not words and "Missing" in str(error)
        return "" if only_named else str(error) or type(error).__name__
    return ""


def test_each_command_of_each_page_is_there_with_its_options() -> None:
    named = [(page.name, command) for page in PAGES for command in sorted(ours(page.read_text()))]
    assert len(named) > 60
    assert [(*one, why) for one in named if (why := refused(one[1]))] == []


def test_each_command_that_the_bot_names_is_there_with_its_options() -> None:
    named = {line.strip() for line in re.findall(r"memu-backup ([a-z][^\n)]*)", MESSAGES)}
    assert {"services recover", "chat login", "drill"} <= named
    assert {command: why for command in named if (why := refused(command))} == {}


def test_what_is_not_there_would_be_told() -> None:
    for wrong in ("restore --in-plac", "usb trust --nam x", "usb trst x", "start a b", "verify --due=1", "recover"):
        assert refused(wrong), wrong


def test_each_option_of_the_installer_is_there() -> None:
    typed = [line for page in PAGES for block in blocks(page.read_text(), "sh") for line in block.splitlines()]
    lines = [line.partition("#")[0] for line in typed if "deploy/install.sh" in line]
    used = {word for line in lines for word in line.split() if word.startswith("--")}
    assert "--uninstall" in used
    assert [option for option in used if f"        {option})" not in OF_INSTALLER] == []


def test_what_a_page_links_to_is_there() -> None:
    missing = []
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            file, _, heading = target.partition("#")
            if target.startswith("https:"):
                continue
            there = (page.parent / file) if file else page
            if not there.exists() or (heading and heading not in _headings(there)):
                missing.append((page.name, target))
    assert missing == []


@cache
def _headings(page: Path) -> set[str]:
    """As GitHub makes anchors of them."""
    found = re.findall(r"^#+ (.*)$", page.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}

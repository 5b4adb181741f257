"""docs/admin.md and README.md are typed by people: each command in them is one that there is."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from typer.testing import CliRunner

from memu_backup.cli.shell import app

ROOT = Path(__file__).parent.parent
OF_INSTALLER = (ROOT / "deploy" / "install.sh").read_text()


def _lines() -> list[list[str]]:
    """What is typed in the blocks of both pages, as words, without sudo and comments."""
    blocks = re.findall(
        r"```sh\n(.*?)```", "".join((ROOT / p).read_text() for p in ("docs/admin.md", "README.md")), re.S
    )
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line[1:] if line[:1] == ["sudo"] else line for line in lines]


def _of_ours() -> set[tuple[str, ...]]:
    """Our own commands in them, up to the first option; also those that are typed into the container."""
    found = set()
    for line in _lines():
        inside = line[:3] == ["docker", "compose", "exec"]
        words = line[4:] if inside else line
        if words[:1] == ["memu-backup"]:
            found.add(tuple(words[1:]))
    return found


@pytest.mark.parametrize("words", sorted(_of_ours()), ids=" ".join)
def test_each_command_of_the_pages_is_there_with_its_options(words: tuple[str, ...]) -> None:
    command = [word for word in words if re.fullmatch("[a-z]+", word)]
    options = [word for word in words if word.startswith("--")]
    help_ = CliRunner().invoke(app, [*command, "--help"], env={"COLUMNS": "200"})
    assert help_.exit_code == 0, help_.output
    assert [option for option in options if option not in help_.output] == []


def test_the_pages_name_enough_of_them() -> None:
    assert len(_of_ours()) > 10


def test_each_option_of_the_installer_is_there() -> None:
    used = {word for line in _lines() if line[:1] == ["deploy/install.sh"] for word in line if word.startswith("--")}
    assert "--uninstall" in used
    assert [option for option in used if f"        {option})" not in OF_INSTALLER] == []


def test_what_the_page_links_to_is_there() -> None:
    page = (ROOT / "docs" / "admin.md").read_text()
    headings = {re.sub(r"[^a-z -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"^## (.*)$", page, re.M)}
    for target in re.findall(r"\]\(([^)]+)\)", page):
        file, _, heading = target.partition("#")
        if file:
            assert (ROOT / "docs" / file).exists(), target
        else:
            assert heading in headings, target

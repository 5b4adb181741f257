"""What the pages tell a person to type."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).parent.parent


def section(page: str, letter: str) -> str:
    """The part of a page below the heading that begins with this letter."""
    found = re.search(rf"^## {letter}\. .*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    assert found, letter
    return found[0]


def blocks(text: str, *kinds: str) -> list[str]:
    """The fenced blocks of these kinds (``sh``), in their order."""
    return re.findall(rf"^```(?:{'|'.join(kinds)})\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def lines(text: str, stands_for: Mapping[str, str]) -> str:
    """What is typed: all ``sh`` blocks, with what is the household's own in place of what stands for it."""
    words = "|".join(map(re.escape, stands_for))
    return re.sub(rf"\b({words})\b", lambda found: stands_for[found[0]], "".join(blocks(text, "sh")))


def ours(text: str) -> set[str]:
    """Each command of ours that a page names, without sudo and comments: in its blocks, and between backticks."""
    said = [line for block in blocks(text, "sh", "console") for line in block.splitlines()]
    prose = re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL)
    said += [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    found = (re.search(r"(?:^|sudo |exec memu-backup )memu-backup ([^#&|<>]+)", line) for line in said)
    return {match[1].strip() for match in found if match}

"""docs/troubleshooting.md quotes what people read: word for word, and all of it that the bot can say of a trouble."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache

from memu_backup.words import REASONS, UNKNOWN_REASON
from tests.pages import ROOT

MESSAGES = (ROOT / "tests" / "messages.txt").read_text()
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text()
FAMILY = (ROOT / "docs" / "family.md").read_text()
_GAP = "\0"


def quoted(page: str) -> list[str]:
    """What stands in quotation marks in the first column of its tables."""
    return [quote for row in re.findall(r"^\| (.*?) \|", page, re.MULTILINE) for quote in re.findall(r'"([^"]+)"', row)]


def pattern(quote: str) -> re.Pattern[str]:
    """A … stands for anything within one message."""
    return re.compile(".*".join(re.escape(part.strip()) for part in quote.split("…")))


@cache
def sentences() -> str:
    """All text of the program, a line each; where an f-string has something else, there is a gap."""
    return "\n".join(
        " ".join(text.split()) for file in (ROOT / "memu_backup").rglob("*.py") for text in _texts(file.read_text())
    )


def _texts(code: str) -> Iterator[str]:
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.JoinedStr):
            yield "".join(str(p.value) if isinstance(p, ast.Constant) else _GAP for p in node.values)
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value


def test_what_it_quotes_is_said_so() -> None:
    quotes = quoted(PAGE)
    assert len(quotes) > 50
    nowhere = [q for q in quotes if not pattern(q).search(MESSAGES) and not pattern(q).search(sentences())]
    assert nowhere == []


def test_each_reason_for_which_a_backup_fails_is_explained() -> None:
    quotes = quoted(PAGE)
    assert [r.what for r in (*REASONS.values(), UNKNOWN_REASON) if r.what not in quotes] == []


def test_each_alert_is_explained() -> None:
    """By its line below the title, or the one that says why."""
    alerts = re.findall(r"^(?:Backup Alert|Backup Question|USB Backup Failed)[^\n]*\n([^\n]+)", MESSAGES, re.MULTILINE)
    assert len(alerts) > 25
    assert [line for line in alerts if not any(pattern(quote).search(line) for quote in quoted(PAGE))] == []


def test_each_word_of_health_is_explained_to_the_family() -> None:
    told = re.findall(r"^\| ([^|]+) \|", FAMILY, re.MULTILINE)
    health = re.findall(r"^Health: (.*)", MESSAGES, re.MULTILINE)
    assert len(health) > 15
    assert [line for line in health if not any(pattern(row).match(line) for row in told)] == []

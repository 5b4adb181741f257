"""docs/faults.md names the test for each case: what it names has to be there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent


def test_every_test_that_the_page_of_faults_names_is_there() -> None:
    page = (ROOT / "docs" / "faults.md").read_text()
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", page)
    missing = [f"{file}::{name}" for file, name in named if f"def {name}(" not in (ROOT / file).read_text()]
    assert missing == []
    cases = [row for row in page.splitlines() if re.match(r"\| (?!case \|)\w", row)]
    assert len(cases) > 50
    assert [row for row in cases if "::" not in row] == []

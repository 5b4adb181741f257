"""Runs the tests; what failed among thousands that share two cores is looked at once more, alone.

What fails again has failed. What holds alone is named all the same: it asks too much of a busy machine, or rests on
another test, and has to be mended. Of more than a few failures none is asked twice.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

FEW = 4

_SOME_FAILED = 1
"""What pytest ends with then; whatever else it ends with counts at once."""


def main(argv: list[str]) -> int:
    pytest = [sys.executable, "-m", "pytest"]
    status = subprocess.run([*pytest, "--cache-clear", *argv]).returncode
    failed = _failed() if status == _SOME_FAILED else []
    if not 0 < len(failed) <= FEW:
        return status
    print(f"\nA second look at what failed, alone: {len(failed)} of them.", flush=True)
    status = subprocess.run([*pytest, "-n", "0", *failed]).returncode
    if status == 0:
        print("\nAlone they hold, beside others they do not. Mend them:\n  " + "\n  ".join(failed), flush=True)
    return status


def _failed() -> list[str]:
    try:
        return sorted(json.loads(Path(".pytest_cache/v/cache/lastfailed").read_text("utf-8")))
    except (OSError, ValueError):
        return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

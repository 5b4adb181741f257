"""The OpenAPI document tells the truth: schemathesis asks for everything in it, in ways that nobody thought of."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.home import Home
from tests.web.site import Site

PROGRAM = Path(sys.executable).with_name("schemathesis")

LEFT_OUT = ("/api/v1/events", "/api/v1/backup/upload-restore")
"""One that never ends, and one that wants a whole backup, which no schema can tell of."""


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_it_is_true(tmp_path: Path, database: str) -> None:
    home = Home(tmp_path / "home", database)
    assert home.run("start").status == 0
    site = Site(home)
    try:
        left_out = [word for path in LEFT_OUT for word in ("--exclude-path", path)]
        ways = ["--checks", "all", "--phases", "examples,coverage,fuzzing", "--max-examples", "15", "--seed", "1"]
        quiet = ["--suppress-health-check", "all", "--generation-database", "none", "--request-timeout", "20"]
        token = ["-H", f"Authorization: Bearer {site.token('admin')}"]
        argv = [str(PROGRAM), "run", f"{site.url}/api/openapi.json", *token, *ways, *quiet, *left_out]
        ran = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
        assert ran.returncode == 0, ran.stdout[-6000:]
        assert "Traceback" not in site.log()
    finally:
        site.stop()


def test_whoever_asks_is_told_what_can_go_wrong_and_what_it_takes(site: Site) -> None:
    document = site.client().get("/api/openapi.json").json()
    for path, operations in document["paths"].items():
        for operation in operations.values():
            assert operation["responses"].keys() >= {"4XX", "5XX"}, path
            open_to_all = path in ("/healthz", "/readyz")
            assert ("security" in operation) is not open_to_all, path
    assert not [path for path in document["paths"] if path in ("/", "/enter", "/backups")]

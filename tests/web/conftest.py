from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from memu_backup.postgres.server import PostgresServer
from tests.home import a_database
from tests.web.site import Site, a_site


@pytest.fixture(scope="package")
def site(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    """One for all tests that leave it as it is, or do not mind what others did there."""
    with a_database(postgres) as database, a_site(tmp_path_factory.mktemp("site"), database) as site:
        yield site


@pytest.fixture(scope="package")
def viewer(site: Site) -> httpx.Client:
    return site.of("viewer")


@pytest.fixture(scope="package")
def operator(site: Site) -> httpx.Client:
    return site.of("operator")


@pytest.fixture(scope="package")
def admin(site: Site) -> httpx.Client:
    return site.of("admin")


@pytest.fixture
def certificate(tmp_path: Path) -> tuple[Path, Path]:
    """For 127.0.0.1, with its key."""
    made, key = tmp_path / "web.crt", tmp_path / "web.key"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    names = ["-subj", "/CN=backup.example.org", "-addext", "subjectAltName=IP:127.0.0.1"]
    argv = ["openssl", "req", "-x509", *kind, *names, "-keyout", str(key), "-out", str(made)]
    subprocess.run(argv, check=True, capture_output=True)
    return made, key

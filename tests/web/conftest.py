from __future__ import annotations

from collections.abc import Iterator

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

"""What several rooms test against: one real PostgreSQL for the whole session, and a fresh database of it for a test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from uuid import uuid4

import asyncpg
import pytest

from memu_backup.postgres.server import PostgresServer
from tests import docker_engine
from tests.docker_engine import Engine
from tests.home import in_a_loop_of_its_own
from tests.receiver import Receiver, receiving


@pytest.fixture(scope="session")
def postgres(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PostgresServer]:
    """A running server that all tests share: leave it running, and make databases and roles with names of your own."""
    server = PostgresServer(tmp_path_factory.mktemp("postgres") / "server")
    in_a_loop_of_its_own(server.start())
    yield server
    in_a_loop_of_its_own(server.stop())


@pytest.fixture
async def database(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL of an empty database that is this test's alone and goes away with it."""
    name = f"test_{uuid4().hex}"
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute(f"CREATE DATABASE {name}")
        yield postgres.url(name)
        await connection.execute(f"DROP DATABASE {name} WITH (FORCE)")
    finally:
        await connection.close()


@pytest.fixture(scope="session")
def engine() -> Iterator[Engine]:
    """A Docker Engine that all tests of a process share: give containers and volumes names of your own."""
    with docker_engine.engine() as found:
        found.make_busybox()
        yield found


@pytest.fixture(scope="session")
def postgres_image(engine: Engine) -> str:
    """An image that behaves as the official one does."""
    engine.make_postgres()
    engine.docker("network", "create", "family")
    return docker_engine.POSTGRES


@pytest.fixture(scope="session")
def redis_image(engine: Engine) -> str:
    """The same of Redis."""
    engine.make_redis()
    return docker_engine.REDIS


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made

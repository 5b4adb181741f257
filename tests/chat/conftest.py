"""One Synapse for all tests of a worker, and for each test people whom no other test knows."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from tests.chat.family import PASSWORD, Family, settled
from tests.home import Home
from tests.human import Human
from tests.synapse import Synapse

Account = Callable[[str], Awaitable[str]]
Person = Callable[[str], Awaitable[Human]]


@pytest.fixture(scope="session")
def synapse(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Synapse]:
    """Shared: leave it running, or start it again; who needs other limits makes one of their own."""
    with Synapse(tmp_path_factory.mktemp("synapse")) as server:
        yield server


@pytest.fixture
def account(synapse: Synapse) -> Account:
    """Registers somebody new with PASSWORD, by a name that is made unique; gives the user id."""
    synapse.start()  # whatever the test before did to it

    async def register(name: str) -> str:
        return await synapse.register(f"{name}-{uuid4().hex[:8]}", PASSWORD)

    return register


@pytest.fixture
async def person(synapse: Synapse, account: Account, tmp_path: Path) -> AsyncIterator[Person]:
    """Registers somebody new and logs them in; their errors fail the test at its end."""
    people: list[Human] = []

    async def arrive(name: str) -> Human:
        human = await Human.login(synapse, await account(name), PASSWORD, tmp_path / f"{name}-{len(people)}")
        people.append(human)
        return human

    yield arrive
    wrong: list[Exception] = []
    for human in people:
        try:
            await human.close()
        except Exception as error:
            wrong.append(error)
    if wrong:
        raise ExceptionGroup("people who could not listen", wrong)


@pytest.fixture
async def family(synapse: Synapse, account: Account, person: Person, tmp_path: Path, database: str) -> Family:
    return await settled(synapse, Home(tmp_path / "home", database), await person("anna"), await account("bot"))

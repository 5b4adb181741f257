"""A household with a backup, and a hub to plug drives into."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.drives.guests import House
from tests.home import Home
from tests.usb import Hub, hub


@pytest.fixture
def ports(tmp_path: Path) -> Iterator[Hub]:
    with hub(tmp_path / "hub") as made:
        yield made


@pytest.fixture
def house(tmp_path: Path, database: str, ports: Hub) -> House:
    made = House(Home(tmp_path / "home", database), ports)
    made.configure()
    made.back_up()
    return made

"""A command rings for the service that runs, and is told when none does."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from memu_backup import bell
from memu_backup.errors import ChatError, MemuError


async def hello() -> Any:
    return {"hello": "Anna"}


async def no() -> Any:
    raise ChatError("The bot is not in the room.")


async def slow() -> Any:
    await asyncio.sleep(60)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    deep = tmp_path / ("deep" * 30)  # longer than a socket's path may be
    deep.mkdir(mode=0o700)
    return deep


async def test_who_rings_is_answered(folder: Path) -> None:
    async with bell.answering(folder, {"hello": hello, "no": no, "slow": slow}):
        assert await bell.ask(folder, "hello", 5) == {"says": {"hello": "Anna"}}
        assert await bell.ask(folder, "no", 5) == {"error": {"code": "chat", "message": "The bot is not in the room."}}
        assert (await bell.ask(folder, "what?", 5) or {})["error"]["code"] == "usage"
        with pytest.raises(MemuError, match="did not answer"):
            await bell.ask(folder, "slow", 0.1)


async def test_where_no_service_runs_that_is_told(folder: Path) -> None:
    assert await bell.ask(folder, "hello", 5) is None
    assert await bell.ask(folder / "missing", "hello", 5) is None
    async with bell.answering(folder, {}):
        pass
    assert await bell.ask(folder, "hello", 5) is None


async def test_a_socket_that_a_killed_service_left_is_no_service_and_no_hindrance(folder: Path) -> None:
    import socket

    left = socket.socket(socket.AF_UNIX)
    with bell._short(folder) as path:
        left.bind(path)
    left.close()
    assert await bell.ask(folder, "hello", 5) is None
    async with bell.answering(folder, {"hello": hello}):
        assert await bell.ask(folder, "hello", 5) == {"says": {"hello": "Anna"}}


async def test_rubbish_harms_nobody(folder: Path) -> None:
    async with bell.answering(folder, {"hello": hello}):
        for rubbish in (b"", b"\n", b"[]\n", b"{}\n", b'{"ask": []}\n', b"\xff" * 100_000 + b"\n"):
            with bell._short(folder) as path:
                reader, writer = await asyncio.open_unix_connection(path)
            writer.write(rubbish)
            if not rubbish:
                writer.write_eof()
            assert await reader.read() == b""
            writer.close()
        assert await bell.ask(folder, "hello", 5) == {"says": {"hello": "Anna"}}

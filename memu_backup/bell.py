"""By which a command rings for the service that runs: a socket in a folder that only its user may enter.

One line of JSON each way: ``{"ask": "..."}``, and ``{"says": ...}`` or ``{"error": {"code": ..., "message": ...}}``.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any

from memu_backup.errors import MemuError

_NAME = "bell"
_LONGEST = 65536

Answers = Mapping[str, Callable[[], Awaitable[Any]]]
"""What may be asked for; the outcome is fit for JSON."""


@asynccontextmanager
async def answering(folder: Path, answers: Answers) -> AsyncIterator[None]:
    """Answer whoever rings in ``folder``, which is there. Raises OSError."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            asked = json.loads(await reader.readline())["ask"]
            writer.write(json.dumps(await _answered(answers, asked)).encode() + b"\n")
            await writer.drain()
        except (OSError, ValueError, KeyError, TypeError):
            return  # whoever rang is gone, or no command of ours
        finally:
            writer.close()

    with _short(folder) as path:
        server = await asyncio.start_unix_server(answer, path, limit=_LONGEST)
    try:
        yield
    finally:
        server.close()
        with suppress(OSError):
            (folder / _NAME).unlink()


async def _answered(answers: Answers, asked: str) -> dict[str, Any]:
    if asked not in answers:
        return {"error": {"code": "usage", "message": "The service that runs is of another version: start it anew."}}
    try:
        return {"says": await answers[asked]()}
    except MemuError as error:
        return {"error": {"code": error.code, "message": str(error)}}


async def ask(folder: Path, question: str, timeout_s: float) -> dict[str, Any] | None:
    """What the service of ``folder`` answers; None where none runs. Raises MemuError where it says nothing in time."""
    try:
        async with asyncio.timeout(timeout_s):
            with _short(folder) as path:
                reader, writer = await asyncio.open_unix_connection(path, limit=_LONGEST)
            try:
                writer.write(json.dumps({"ask": question}).encode() + b"\n")
                answer = json.loads(await reader.readline())
            finally:
                writer.close()
    except (FileNotFoundError, ConnectionRefusedError):
        return None
    except (OSError, ValueError) as error:
        raise MemuError(f"The service that runs did not answer ({type(error).__name__}). Look into its log.") from error
    return dict(answer)


@contextmanager
def _short(folder: Path) -> Iterator[str]:
    """The socket's path, however long that of the folder is: the kernel takes some hundred characters."""
    descriptor = os.open(folder, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{descriptor}/{_NAME}"
    finally:
        os.close(descriptor)

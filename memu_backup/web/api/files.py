"""What is in the backups: looked into, searched, and one file of it brought along."""

from __future__ import annotations

import asyncio
import mimetypes
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import PurePosixPath
from typing import Annotated, Any
from urllib.parse import parse_qs, quote

from fastapi import APIRouter, Depends, Query, Request, Response
from fastapi.responses import StreamingResponse
from typing_extensions import TypedDict

from memu_backup import as_json
from memu_backup.access import Role
from memu_backup.errors import NotThere
from memu_backup.formats.index import Entry
from memu_backup.formats.reader import is_own
from memu_backup.formats.tar import Type
from memu_backup.model import Backup
from memu_backup.stores import Store
from memu_backup.web.api.backups import Name
from memu_backup.web.who import OPERATOR, Operator, TheDesk, asker
from memu_backup.work import Stop, in_thread

router = APIRouter(tags=["files"])

MOST = 2_000
OPENS = Role.OPERATOR
"""Whoever may see what is in a backup."""


def inner(request: Request, path: Annotated[str, Query(max_length=4096, description="in the backup")] = "") -> str:
    """The path that is asked for, byte for byte: names of files need not be text."""
    asked = parse_qs(request.scope["query_string"].decode("latin-1"), errors="surrogateescape")
    return str(asked.get("path", [path])[-1])


Inner = Annotated[str, Depends(inner)]


class FileJson(TypedDict):
    name: str
    path: str
    type: str
    size_bytes: int
    mtime_ns: int


class Folder(TypedDict):
    """What lies in one folder of a backup; ``more`` where that is more than is told."""

    backup: str
    path: str
    entries: list[FileJson]
    more: bool


@router.get("/api/v1/backup/files/{name}", dependencies=OPERATOR)
async def look_into(desk: TheDesk, name: Name, path: Inner) -> Folder:
    """What lies in one folder of a backup, or at its top."""
    store, stored = await desk.manager.find(name)
    stop = Stop()
    there = await in_thread(lambda: folder(store, stored, path, stop), stop)
    return {"backup": stored.name, "path": path.strip("/"), "entries": there[:MOST], "more": len(there) > MOST}


def folder(store: Store, stored: Backup, path: str, stop: Stop) -> list[FileJson]:
    """Folders first, then by name. Blocks. Raises UsageError, DamagedArchive."""
    above = f"{path.strip('/')}/" if path.strip("/") else ""
    found: dict[str, FileJson] = {}
    with store.open(stored.path, stop) as reader:
        made = reader.manifest()
        for entry in reader.index():
            if not entry.path.startswith(above) or entry.path.rstrip("/") == above.rstrip("/"):
                continue
            if not above and is_own(entry.path, made):
                continue
            first, slash, rest = entry.path[len(above) :].partition("/")
            if slash and rest:
                found.setdefault(first, _folder(first, above))
            else:
                found[first] = _file(entry, first)
    if not found and above:
        raise NotThere("There is no such folder in this backup, or it is empty.")
    return sorted(found.values(), key=lambda one: (one["type"] != Type.DIRECTORY, one["name"].casefold()))


def _folder(name: str, above: str) -> FileJson:
    return {"name": name, "path": above + name, "type": Type.DIRECTORY.value, "size_bytes": 0, "mtime_ns": 0}


def _file(entry: Entry, name: str) -> FileJson:
    return {
        "name": name,
        "path": entry.path.rstrip("/"),
        "type": entry.type.value,
        "size_bytes": entry.size_bytes,
        "mtime_ns": entry.mtime_ns,
    }


@router.get("/api/v1/search", dependencies=OPERATOR)
async def search(desk: TheDesk, pattern: Annotated[str, Query(min_length=1, max_length=4096)]) -> dict[str, Any]:
    """In which backups a file is, and which versions of it, as ``memu-backup find`` has it."""
    _, found = await desk.manager.search(pattern)
    return as_json.found(pattern, found)


@router.get("/api/v1/backup/file/{name}", response_class=Response)
async def one_file(desk: TheDesk, who: Operator, name: Name, path: Inner) -> Response:
    """One file out of a backup."""
    store, stored = await desk.manager.find(name)
    content = store.content(stored.path, path)
    first = await asyncio.to_thread(next, content, b"")  # whatever is wrong with it is said before anything is sent
    await desk.manager.note(asker(who), "fetch file", f"{path} of {stored.name}", "begun")
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    called = PurePosixPath(path).name
    headers = {"Content-Disposition": f"attachment; filename*=UTF-8''{quote(called, safe='', errors='replace')}"}
    return StreamingResponse(blocks(first, content), media_type=kind, headers=headers)


async def blocks(first: bytes, content: Iterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    with suppress(StopIteration):
        while (block := await asyncio.to_thread(next, content, None)) is not None:
            yield block

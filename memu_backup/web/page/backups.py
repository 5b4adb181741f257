"""The backups: listed, looked into, searched, downloaded, proved, kept, and put back."""

from __future__ import annotations

import asyncio
from pathlib import PurePosixPath
from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse, StreamingResponse

from memu_backup.errors import MemuError, UsageError
from memu_backup.model import Backup, Level
from memu_backup.stores import Store
from memu_backup.web.api import backups as api
from memu_backup.web.api import files, restores
from memu_backup.web.desk import Desk
from memu_backup.web.page.guest import HELPER, Guest, Head, Helper
from memu_backup.web.page.shown import page
from memu_backup.web.who import TheDesk
from memu_backup.work import Stop, in_thread

router = APIRouter()

PICTURES = {
    ".jpg": "image/jpeg",
    ".jpeg": "image/jpeg",
    ".png": "image/png",
    ".gif": "image/gif",
    ".webp": "image/webp",
}
"""Those that browsers show and that carry no script."""

_MOST_FOUND = 200

Inner = files.Inner


@router.get("/backups")
async def backups(request: Request, desk: TheDesk, who: Guest) -> Response:
    listed = await desk.manager.listing()
    nothing = "" if listed else str(await desk.manager.none_yet())
    return page(request, "backups.html", who, listed=listed, nothing=nothing)


@router.get("/backups/{name}")
async def backup(request: Request, desk: TheDesk, who: Guest, name: str, path: Inner) -> Response:
    store, stored = await desk.manager.find(name)
    stop = Stop()
    there: list[files.FileJson] = []
    wrong = ""
    if who.role.includes(files.OPENS):
        try:
            there = await in_thread(lambda: files.folder(store, stored, path, stop), stop)
        except MemuError as error:
            wrong = str(error)
    return page(
        request,
        "backup.html",
        who,
        there=stored,
        state=next((one.state for one in await desk.manager.listing() if one.backup.path == stored.path), "unreadable"),
        path=path.strip("/"),
        above=path.strip("/").rpartition("/")[0],
        entries=there[: files.MOST],
        more=len(there) > files.MOST,
        pictures=PICTURES,
        suffix=lambda one: PurePosixPath(one).suffix.lower(),
        wrong=wrong,
    )


@router.get("/backups/{name}/download")
async def download(desk: TheDesk, who: Helper, name: str) -> Response:
    return await api.download(desk, who, name)


@router.get("/backups/{name}/file")
async def one_file(desk: TheDesk, who: Helper, name: str, path: Inner) -> Response:
    return await files.one_file(desk, who, name, path)


@router.get("/backups/{name}/picture", dependencies=HELPER)
async def picture(desk: TheDesk, name: str, path: Inner) -> Response:
    """For an img: nothing but what browsers show as a picture."""
    kind = PICTURES.get(PurePosixPath(path).suffix.lower())
    if kind is None:
        raise HTTPException(404)
    store, stored = await desk.manager.find(name)
    content = store.content(stored.path, path)
    first = await asyncio.to_thread(next, content, b"")
    return StreamingResponse(files.blocks(first, content), media_type=kind)


@router.post("/backups/{name}/verify")
async def verify(desk: TheDesk, who: Helper, name: str) -> Response:
    await api.verify(desk, who, name, api.Which(level=Level.FULL))
    return RedirectResponse(f"/backups/{name}", 303)


@router.post("/backups/{name}/keep")
async def keep(desk: TheDesk, who: Helper, name: str, keep: Annotated[bool, Form()]) -> Response:
    await api.keep(desk, who, name, api.Keeping(keep=keep))
    return RedirectResponse(f"/backups/{name}", 303)


@router.get("/backups/{name}/restore")
async def plan(
    request: Request,
    desk: TheDesk,
    who: Head,
    name: str,
    source: Annotated[list[str], Query(max_length=100)] = [],  # noqa: B006
) -> Response:
    """What it would do; nothing is changed."""
    store, stored = await desk.manager.find(name)
    return await shown_plan(request, desk, who, store, stored, source, action=f"/backups/{stored.name}/restore")


async def shown_plan(
    request: Request, desk: Desk, who: Head, store: Store, stored: Backup, sources: list[str], *, action: str
) -> Response:
    trusted = desk.manager.is_ours(stored.path)
    planned = await desk.manager.returns.plan(store, stored, sources, trusted=trusted)
    made = stored.manifest.sources if stored.manifest else ()
    chosen = {step.source.name for step in planned.steps}
    return page(request, "restore.html", who, planned=planned, there=stored, sources=made, chosen=chosen, action=action)


@router.post("/backups/{name}/restore")
async def restore(
    desk: TheDesk,
    who: Head,
    name: str,
    typed: Annotated[str, Form(max_length=100)] = "",
    source: Annotated[list[str], Form(max_length=100)] = [],  # noqa: B006
) -> Response:
    must_be_typed(typed)
    await restores.restore(desk, who, name, restores.Restoring(sources=source))
    return RedirectResponse("/", 303)


def must_be_typed(typed: str) -> None:
    """Raises UsageError where the word was not typed."""
    if typed.strip().casefold() != "restore":
        raise UsageError("Type the word restore to do this; nothing was changed.")


@router.get("/search")
async def search(
    request: Request, desk: TheDesk, who: Helper, q: Annotated[str, Query(max_length=4096)] = ""
) -> Response:
    found, wrong, looked = [], "", 0
    if q.strip():
        try:
            among, result = await desk.manager.search(q.strip())
            found, looked = list(result.findings), len(among)
        except MemuError as error:
            wrong = str(error)
    return page(
        request,
        "search.html",
        who,
        q=q,
        found=found[:_MOST_FOUND],
        more=len(found) > _MOST_FOUND,
        looked=looked,
        wrong=wrong,
    )

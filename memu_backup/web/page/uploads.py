"""A backup that is uploaded: taken in, compared, its plan shown; and only then, when that was typed, put back."""

from __future__ import annotations

import asyncio
from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from memu_backup import anywhere, words
from memu_backup.web.api import restores
from memu_backup.web.page.backups import must_be_typed, shown_plan
from memu_backup.web.page.guest import Head
from memu_backup.web.page.shown import page
from memu_backup.web.uploading import Waiting
from memu_backup.web.who import TheDesk, asker

router = APIRouter()


@router.get("/upload")
async def upload(request: Request, who: Head) -> Response:
    return page(request, "upload.html", who)


@router.post("/upload")
async def uploaded(request: Request, desk: TheDesk, who: Head) -> Response:
    waiting = Waiting(await restores.upload_place(desk))
    key, file = await waiting.take_in(request, desk.manager.config.web.upload_gb * restores.GB)
    await desk.manager.note(asker(who), "upload", file.name, words.size(file.stat().st_size))
    try:
        await asyncio.to_thread(anywhere.look, file)
    except BaseException:
        waiting.let_go(key)
        raise
    return RedirectResponse(f"/upload/{key}", 303)


@router.get("/upload/{key}")
async def plan(request: Request, desk: TheDesk, who: Head, key: str) -> Response:
    store, stored = await asyncio.to_thread(anywhere.look, Waiting(await restores.upload_place(desk)).file(key))
    return await shown_plan(request, desk, who, store, stored, [], action=f"/upload/{key}")


@router.post("/upload/{key}")
async def restore(
    desk: TheDesk,
    who: Head,
    key: str,
    typed: Annotated[str, Form(max_length=100)] = "",
    source: Annotated[list[str], Form(max_length=100)] = [],  # noqa: B006
) -> Response:
    must_be_typed(typed)
    waiting = Waiting(await restores.upload_place(desk))
    store, stored = await asyncio.to_thread(anywhere.look, waiting.file(key))
    restores.begin_with_upload(desk, who, store, stored, source, then=lambda: waiting.let_go(key))
    return RedirectResponse("/", 303)

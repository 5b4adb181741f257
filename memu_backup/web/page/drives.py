"""The drives: which get copies, what they are called, and where they are kept."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Request, Response
from fastapi.responses import RedirectResponse

from memu_backup import words
from memu_backup.web.page.guest import Guest, Head, Helper
from memu_backup.web.page.shown import page
from memu_backup.web.who import TheDesk, asker

router = APIRouter()

Words = Annotated[str, Form(max_length=100)]


@router.get("/drives")
async def drives(request: Request, desk: TheDesk, who: Guest) -> Response:
    now, zone = desk.clock(), desk.manager.config.zone
    known = desk.manager.passports.known.drives()
    return page(request, "drives.html", who, drives=[(d, words.days_ago(d.last_copied_at, now, zone)) for d in known])


@router.post("/drives/trust")
async def trust(
    desk: TheDesk, who: Head, drive: Annotated[str, Form(max_length=255)], name: Words = "", kept_at: Words = ""
) -> Response:
    await desk.manager.passports.trust(drive, asker(who), called=name.strip(), kept_at=kept_at.strip())
    desk.glance.forget()
    return RedirectResponse("/drives", 303)


@router.post("/drives/rename")
async def rename(
    desk: TheDesk, who: Helper, drive: Annotated[str, Form(max_length=255)], name: Words = "", kept_at: Words = ""
) -> Response:
    await desk.manager.passports.rename(drive, asker(who), called=name.strip() or None, kept_at=kept_at.strip())
    return RedirectResponse("/drives", 303)

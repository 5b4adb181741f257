"""What the buttons of the overview do: a backup, cancelled, accepted; a restore undone, and what it kept removed."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from fastapi import APIRouter, Form, Response
from fastapi.responses import RedirectResponse

from memu_backup.access import Who
from memu_backup.errors import UsageError
from memu_backup.under_way import Note
from memu_backup.web.api import backups as api
from memu_backup.web.api import restores
from memu_backup.web.desk import Desk
from memu_backup.web.page.guest import Head, Helper
from memu_backup.web.who import TheDesk, asker

router = APIRouter()

Words = Annotated[str, Form(max_length=100)]


@router.post("/start")
async def start(desk: TheDesk, who: Helper, job: Annotated[str, Form(max_length=255)], called: Words = "") -> Response:
    api.begin(desk, who, desk.manager.config.job(job).name, api.fit(called.strip()) if called.strip() else "")
    return RedirectResponse("/", 303)


@router.post("/accept")
async def accept(desk: TheDesk, who: Head, backup: Annotated[str, Form(max_length=255)]) -> Response:
    await desk.manager.accept(*await desk.manager.find(backup), asker(who))
    desk.glance.forget()
    return RedirectResponse("/", 303)


@router.post("/undo")
async def undo(desk: TheDesk, who: Head) -> Response:
    """In the background, as services stop and start for it."""
    undoing = partial(_undone, desk, who)
    restores.begin(desk, who, "the last restore, the other way round", undoing)
    return RedirectResponse("/", 303)


async def _undone(desk: Desk, who: Who, note: Note) -> None:
    done = await desk.manager.returns.undo(None, asker(who), note.step)
    note.step(" ".join(["All of it is exchanged.", *(ran.problem for ran in done.ran if ran.problem)]))


@router.post("/release")
async def release(desk: TheDesk, who: Head, stamp: Annotated[str, Form(max_length=64)], typed: Words = "") -> Response:
    if typed.strip().casefold() != "remove":
        raise UsageError("Type the word remove to do this; nothing was changed.")
    await desk.manager.returns.release(stamp, asker(who))
    return RedirectResponse("/", 303)


@router.post("/cancel")
async def cancel(desk: TheDesk, who: Helper, activity: Annotated[str, Form(max_length=64)]) -> Response:
    ended = desk.manager.under_way.cancel(activity, asker(who))
    await desk.manager.note(asker(who), "cancel", f"{ended.what} {ended.subject}", "asked")
    return RedirectResponse("/", 303)

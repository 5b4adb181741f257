"""Put back where it lives: what lies here, or a backup that is uploaded; undone, finished and released."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Query, Request
from pydantic import Field
from typing_extensions import TypedDict

from memu_backup import anywhere, as_json, place, words
from memu_backup.access import Who
from memu_backup.errors import DamagedArchive, MemuError, RestoreError
from memu_backup.model import Backup, Level
from memu_backup.stores import Store
from memu_backup.under_way import Note
from memu_backup.web.api.backups import Begun, Body, Name
from memu_backup.web.desk import Desk
from memu_backup.web.uploading import FIELD, Waiting
from memu_backup.web.who import ADMIN, VIEWER, Admin, TheDesk, asker

router = APIRouter(tags=["putting back"])

GB = 1_000_000_000

Sources = Annotated[list[str], Query(max_length=100, alias="source", description="only these; all unless given")]


class Restoring(Body):
    sources: list[Annotated[str, Field(max_length=255)]] = Field(default=[], max_length=100)


class Kept(TypedDict):
    restores: list[as_json.RestoreJson]


class Settled(TypedDict):
    restore: as_json.RestoreJson
    problems: list[str]


@router.get("/api/v1/backup/plan/{name}", dependencies=ADMIN)
async def plan(desk: TheDesk, name: Name, sources: Sources = []) -> as_json.PlannedJson:  # noqa: B006  pydantic copies it
    """What putting a backup back would replace, stop and need. Changes nothing."""
    store, stored = await desk.manager.find(name)
    return as_json.planned(
        await desk.manager.returns.plan(store, stored, sources, trusted=desk.manager.is_ours(stored.path))
    )


@router.post("/api/v1/backup/restore/{name}", status_code=202)
async def restore(desk: TheDesk, who: Admin, name: Name, wanted: Restoring = Restoring()) -> Begun:  # noqa: B008
    """Put a backup back to where it lives. What is there is kept, and can be had again by undoing it."""
    store, stored = await desk.manager.find(name)

    async def work(note: Note) -> None:
        await put_back(desk, who, store, stored, wanted.sources, note)

    return begin(desk, who, stored.name, work)


@router.post(
    "/api/v1/backup/upload-restore",
    status_code=202,
    openapi_extra={
        "requestBody": {
            "required": True,
            "content": {
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": [FIELD],
                        "properties": {FIELD: {"type": "string", "format": "binary"}},
                    }
                }
            },
        }
    },
)
async def upload_restore(request: Request, desk: TheDesk, who: Admin) -> Begun:
    """Upload a backup and put it back: taken in, compared byte by byte, and only then put in place of what is there."""
    waiting = Waiting(await upload_place(desk))
    key, file = await waiting.take_in(request, desk.manager.config.web.upload_gb * GB)
    try:
        await desk.manager.note(asker(who), "upload", file.name, words.size(file.stat().st_size))
        store, stored = await asyncio.to_thread(anywhere.look, file)
    except BaseException:
        waiting.let_go(key)
        raise
    return begin_with_upload(desk, who, store, stored, (), then=lambda: waiting.let_go(key))


async def upload_place(desk: Desk) -> Path:
    """Where uploads wait: on the disk of the backups, as no other is as large. Raises StoreError where that is away,
    UsageError where there is none.
    """
    manager = desk.manager
    manager.config.must_have_jobs()
    store = manager.stores()[0]
    await place.found(store, manager.config.host, manager.history)
    return store.directory


def begin_with_upload(
    desk: Desk, who: Who, store: Store, stored: Backup, sources: Sequence[str], *, then: Callable[[], None]
) -> Begun:
    """Compare every byte of what was uploaded, and put it back; ``then`` is called when it is not needed any more."""

    async def work(note: Note) -> None:
        try:
            note.step("Comparing every byte of it.")
            verdict = await anywhere.prove(store, stored, Level.FULL, note.progress)
            if not verdict.good:
                why = " ".join(verdict.problems[:1]) or "not all of it could be looked at"
                raise DamagedArchive(f"What was uploaded is damaged, so nothing was changed: {why}")
            await put_back(desk, who, store, stored, sources, note)
        finally:
            await asyncio.to_thread(then)

    return begin(desk, who, stored.name, work)


def begin(desk: Desk, who: Who, subject: str, work: Callable[[Note], Awaitable[None]]) -> Begun:
    """Let it go on by itself, as what is under way."""
    key = str(uuid4())

    async def alone() -> None:
        try:
            await desk.manager.under_way.carry_out("restore", subject, asker(who), work, activity_id=key)
        except MemuError:
            return  # what is under way says so

    desk.start(alone(), f"restore of {subject}")
    return {"run_id": key, "job": "", "status": "in_progress"}


async def put_back(desk: Desk, who: Who, store: Store, stored: Backup, sources: Sequence[str], note: Note) -> None:
    """As ``memu-backup restore --in-place`` does it; what came of it is the last step. Raises as ``put_back``."""
    returns = desk.manager.returns
    planned = await returns.plan(store, stored, sources, trusted=desk.manager.is_ours(stored.path))
    if planned.hindrances:
        raise RestoreError(" ".join(planned.hindrances))
    done = await returns.put_back(planned, asker(who), note.step, note.progress)
    note.step("Looking at what is back.")
    told = {step.source.name: step.summary for step in planned.steps}
    amiss = [f"{f.what}: {f.says}" async for f in returns.look(told, done.restore, planned.stops) if not f.good]
    warnings = [sentence for sentences in done.warnings.values() for sentence in sentences]
    problems = [ran.problem for ran in done.ran if ran.problem]
    back = f"Back: {words.files(done.files)} ({words.size(done.size_bytes)}). What was there before is kept."
    note.step(" ".join([back, *planned.left_out, *warnings, *problems, *amiss]))


@router.get("/api/v1/restores", dependencies=VIEWER)
async def kept(desk: TheDesk) -> Kept:
    """Restores of which what they replaced is kept, newest first."""
    return {"restores": [as_json.restore(one) for one in await desk.manager.returns.kept()]}


@router.post("/api/v1/restores/undo")
async def undo(desk: TheDesk, who: Admin) -> Settled:
    """Have all as it was before the newest restore; once more, and what was given back is there again."""
    return _settled(await desk.manager.returns.undo(None, asker(who), lambda _: None))


@router.post("/api/v1/restores/resume")
async def resume(desk: TheDesk, who: Admin) -> Settled:
    """Finish a restore that was interrupted."""
    return _settled(await desk.manager.returns.resume(asker(who), lambda _: None))


@router.post("/api/v1/restores/{stamp}/release")
async def release(desk: TheDesk, who: Admin, stamp: str) -> as_json.RestoreJson:
    """Remove for good what a restore has replaced."""
    return as_json.restore(await desk.manager.returns.release(stamp, asker(who)))


def _settled(done: Any) -> Settled:
    return {"restore": as_json.restore(done.made), "problems": [ran.problem for ran in done.ran if ran.problem]}

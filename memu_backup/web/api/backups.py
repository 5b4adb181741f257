"""The backups themselves: made, listed, downloaded, proved, kept, let go."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator
from typing import Annotated, Any
from uuid import uuid4

from fastapi import APIRouter, Path, Response
from fastapi.responses import FileResponse, StreamingResponse
from pydantic import BaseModel, ConfigDict, Field, StrictBool
from typing_extensions import TypedDict

from memu_backup import as_json
from memu_backup.config import Config
from memu_backup.errors import MemuError, NotThere, UsageError
from memu_backup.files import shown
from memu_backup.model import Backup, Level, Trigger
from memu_backup.stores import Store
from memu_backup.web.desk import Desk
from memu_backup.web.who import VIEWER, Admin, Operator, TheDesk, asker
from memu_backup.work import Stop

router = APIRouter(tags=["backups"])

_BLOCK = 1024 * 1024
_NAME = re.compile(r"[\w][\w .,()+@-]{0,99}")

Name = Annotated[str, Path(min_length=1, max_length=255, description="of a backup, or the beginning of one; latest")]


def fit(name: str) -> str:
    """What somebody calls a backup. Raises UsageError."""
    if not _NAME.fullmatch(name):
        raise UsageError(
            "What a backup is called has to begin with a letter or digit, and to be of letters, digits, spaces and "
            ". , ( ) + @ - _, a hundred at most; nothing was done."
        )
    return name


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", hide_input_in_errors=True)


class Create(Body):
    """``include_storage``: with files, or databases alone, as the jobs of the settings have it."""

    backup_name: str | None = Field(default=None, min_length=1, max_length=100, description="what you call it")
    include_storage: StrictBool = Field(default=True, description="false: a job that backs up no folders of files")
    job: str | None = Field(
        default=None, min_length=1, max_length=255, description="the job to run, instead of include_storage"
    )


class Begun(TypedDict):
    """``run_id`` is that of the run, and of the activity that can be looked at and cancelled meanwhile."""

    run_id: str
    job: str
    status: str


class Backups(TypedDict):
    backups: list[as_json.ListedJson]


class Which(Body):
    level: Level = Level.FULL


class Keeping(Body):
    keep: StrictBool = Field(default=True, description="false: let it go again when its time comes")


class Cleaning(Body):
    job: str = Field(max_length=255)
    dry_run: StrictBool = Field(default=True, description="false: remove what the answer says")


class Decided(TypedDict):
    name: str
    keep: bool
    reason: str


class Cleaned(TypedDict):
    removed: bool
    backups: list[Decided]


class Accepted(TypedDict):
    accepted: list[str]


@router.post("/api/v1/backup/create", status_code=202)
async def create(desk: TheDesk, who: Operator, wanted: Create = Create()) -> Begun:  # noqa: B008
    """Begin a backup. It goes on by itself: how far it is, tell the activities and the events."""
    config = desk.manager.config
    config.must_have_jobs()
    job = wanted.job or job_for(config, with_files=wanted.include_storage)
    return begin(desk, who, config.job(job).name, fit(wanted.backup_name) if wanted.backup_name else "")


@router.post("/api/backup/run", status_code=202)
async def run(desk: TheDesk, who: Admin) -> Begun:
    """As Sound Box's administrator asks for it: the backup that the settings name first."""
    desk.manager.config.must_have_jobs()
    return begin(desk, who, next(iter(desk.manager.config.jobs)))


def job_for(config: Config, *, with_files: bool) -> str:
    """The job that is meant: of those with folders of files the one with most sources, or the first without. Raises
    UsageError where there is none.
    """
    files = {name for name, settings in config.sources.items() if settings.keeps_files}
    jobs = {name: set(config.job(name).sources) for name in config.jobs}
    if with_files:
        return max(jobs, key=lambda name: (bool(jobs[name] & files), len(jobs[name])))
    without = next((name for name, sources in jobs.items() if not sources & files), None)
    if without is None:
        raise NotThere(
            "Each job of these settings backs up files too, so there is no backup of databases alone; nothing was "
            'done. Ask for it with "include_storage": true, or add a job without folders.'
        )
    return without


def begin(desk: Desk, who: Any, job: str, called: str = "") -> Begun:
    """Let a backup run on its own."""
    run_id = str(uuid4())

    async def work() -> None:
        try:
            await desk.manager.back_up(job, Trigger.MANUAL, asker(who), called=called, run_id=run_id)
        except MemuError:
            return  # what is under way says so

    desk.start(work(), f"backup job {job}")
    return {"run_id": run_id, "job": job, "status": "in_progress"}


@router.get("/api/v1/backup/list", dependencies=VIEWER)
async def list_backups(desk: TheDesk) -> Backups:
    """Those that are stored, newest first."""
    return {"backups": [as_json.listed(one) for one in await desk.manager.listing()]}


@router.get("/api/v1/backup/download/{name}", response_class=Response)
async def download(desk: TheDesk, who: Operator, name: Name) -> Response:
    """A backup as one file: a tar.gz. One that lies as an archive can be had from any byte on (Range)."""
    store, stored = await desk.manager.find(name)
    await desk.manager.note(asker(who), "download", stored.name, "begun")
    return sent(store, stored)


def sent(store: Store, stored: Backup) -> Response:
    if stored.path.is_file():
        return FileResponse(stored.path, media_type="application/gzip", filename=stored.path.name)
    archive = store.copied_as(stored)
    headers = {"Content-Disposition": f'attachment; filename="{archive.name}"'}
    return StreamingResponse(_packed(store, stored), media_type="application/gzip", headers=headers)


async def _packed(store: Store, stored: Backup) -> AsyncIterator[bytes]:
    """A tree is packed on the way."""
    stop = Stop()
    held = store.stream(stored.path, stop)
    descriptor = await asyncio.to_thread(held.__enter__)
    try:
        while block := await asyncio.to_thread(os.read, descriptor, _BLOCK):
            yield block
    finally:
        stop.set()
        await asyncio.to_thread(held.__exit__, None, None, None)


@router.post("/api/v1/backup/verify/{name}", status_code=202)
async def verify(desk: TheDesk, who: Operator, name: Name, wanted: Which = Which()) -> Begun:  # noqa: B008
    """Re-read a backup: quick for what it says of itself, full for every byte."""
    store, stored = await desk.manager.find(name)

    async def work() -> None:
        try:
            await desk.manager.verify(store, stored, wanted.level, asker(who), activity_id=key)
        except MemuError:
            return

    key = str(uuid4())
    desk.start(work(), f"verification of {stored.name}")
    job = stored.manifest.job if stored.manifest else ""
    return {"run_id": key, "job": job, "status": "in_progress"}


@router.post("/api/v1/backup/keep/{name}")
async def keep(
    desk: TheDesk,
    who: Operator,
    name: Name,
    wanted: Keeping = Keeping(),  # noqa: B008
) -> as_json.ListedJson:
    """Pin a backup, so that it is never removed, or let it go again."""
    store, stored = await desk.manager.find(name)
    await desk.manager.keep(store, stored, asker(who), release=not wanted.keep)
    return await _listed(desk, stored)


@router.post("/api/v1/backup/accept/{name}")
async def accept(desk: TheDesk, who: Admin, name: Name) -> Accepted:
    """Say that a suspicious backup is as it should be."""
    store, stored = await desk.manager.find(name)
    return {"accepted": [one.name for one in await desk.manager.accept(store, stored, asker(who))]}


@router.post("/api/v1/clean")
async def clean(desk: TheDesk, who: Admin, wanted: Cleaning) -> Cleaned:
    """Which backups of a job go by its rules, and why; with ``dry_run`` false they are removed."""
    decided = await desk.manager.clean(wanted.job, asker(who), dry_run=wanted.dry_run)
    told: list[Decided] = [
        {"name": one.backup.name, "keep": one.verdict.keep, "reason": one.verdict.reason} for one in decided
    ]
    return {"removed": not wanted.dry_run, "backups": told}


async def _listed(desk: Desk, stored: Backup) -> as_json.ListedJson:
    for one in await desk.manager.listing():
        if one.backup.path == stored.path:
            return as_json.listed(one)
    raise NotThere(f"{shown(stored.name)} went meanwhile.")

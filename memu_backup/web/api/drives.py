"""The drives that copies go to."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Path
from pydantic import Field
from typing_extensions import TypedDict

from memu_backup import as_json
from memu_backup.web.api.backups import Body
from memu_backup.web.who import VIEWER, Admin, Operator, TheDesk, asker

router = APIRouter(tags=["drives"])

Drive = Annotated[str, Path(min_length=1, max_length=255, description="its name, label or UUID")]
Words = Annotated[str, Field(max_length=100)]


class Drives(TypedDict):
    drives: list[as_json.DriveJson]


class Trusted(Body):
    name: Words = Field(default="", description="what you call it")
    kept_at: Words = Field(default="", description="where it is kept")


class Renamed(Body):
    name: Words | None = None
    kept_at: Words | None = None


@router.get("/api/v1/drives", dependencies=VIEWER)
async def drives(desk: TheDesk) -> Drives:
    """All that were seen, approved or not."""
    return {"drives": [as_json.drive(drive) for drive in desk.manager.passports.known.drives()]}


@router.post("/api/v1/drives/{drive}/trust")
async def trust(desk: TheDesk, who: Admin, drive: Drive, wanted: Trusted) -> as_json.DriveJson:
    """Approve a drive. What is copied to it, keys and chats too, lies there readable."""
    passports = desk.manager.passports
    return as_json.drive(await passports.trust(drive, asker(who), called=wanted.name, kept_at=wanted.kept_at))


@router.post("/api/v1/drives/{drive}/rename")
async def rename(desk: TheDesk, who: Operator, drive: Drive, wanted: Renamed) -> as_json.DriveJson:
    """Say what a drive is called, and where it is kept."""
    passports = desk.manager.passports
    return as_json.drive(await passports.rename(drive, asker(who), called=wanted.name, kept_at=wanted.kept_at))


@router.post("/api/v1/drives/{drive}/forget")
async def forget(desk: TheDesk, who: Admin, drive: Drive) -> as_json.DriveJson:
    """Write nothing on it any more; what is on it stays."""
    return as_json.drive(await desk.manager.passports.forget(drive, asker(who)))

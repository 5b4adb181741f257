"""How things stand: for people, for programs that watch, and in the few keys of Sound Box's status."""

from __future__ import annotations

import ipaddress
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Request, Response
from fastapi.responses import PlainTextResponse
from fastapi.security import HTTPAuthorizationCredentials
from typing_extensions import TypedDict

from memu_backup import as_json, brief, words
from memu_backup.access import Who
from memu_backup.model import Health, Problem
from memu_backup.web import metrics
from memu_backup.web.who import BEARER, COOKIE_OF_PAGE, VIEWER, TheDesk, address_of, who_asks

router = APIRouter(tags=["how things stand"])

_UNSAFE = frozenset(
    {Problem.NO_BACKUP, Problem.NOTHING_GOOD, Problem.OVERDUE, Problem.BACKUP_GONE, Problem.CANNOT_LOOK}
)

PROXIED = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"})


class Well(TypedDict):
    status: str


class Safe(TypedDict):
    safe: bool


class Status(TypedDict):
    """``says`` is what the room would be told, by job."""

    health: str
    says: dict[str, str]
    jobs: dict[str, as_json.ReportJson]


async def _or_from_here(
    request: Request,
    desk: TheDesk,
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    cookie: Annotated[str | None, Depends(COOKIE_OF_PAGE)],
) -> Who | None:
    """None for whoever is on this machine, where the settings let it in; a proxy tells for whom it asks."""
    here = desk.manager.config.web.open_status and _is_loopback(address_of(request))
    if here and not bearer and not cookie and not PROXIED & set(request.headers):
        return None
    return await who_asks(request, desk, bearer, cookie)


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


@router.get("/healthz")
async def healthz() -> Well:
    """Whether the service is well: it answers. Nothing about backups; needs no token."""
    return {"status": "ok"}


@router.get("/readyz", responses={503: {"model": Safe}})
async def readyz(desk: TheDesk, response: Response) -> Safe:
    """Whether the data is safe: each job has a good backup that lies there and is not overdue. 503 where not; needs no
    token.
    """
    reports = await desk.glance.reports()
    safe = bool(reports) and all(r.last_good and not _UNSAFE & set(r.problems) for r in reports.values())
    response.status_code = 200 if safe else 503
    return {"safe": safe}


@router.get("/metrics", dependencies=VIEWER, response_class=PlainTextResponse)
async def prometheus(desk: TheDesk) -> PlainTextResponse:
    """For Prometheus (https://prometheus.io/docs/instrumenting/exposition_formats/)."""
    content = await metrics.exposition(desk)
    return PlainTextResponse(content, media_type=metrics.CONTENT_TYPE)


@router.get("/api/v1/status", dependencies=VIEWER)
async def status(desk: TheDesk) -> Status:
    """How things stand, job by job."""
    reports = await desk.glance.reports()
    at, zone = desk.clock(), desk.manager.config.zone
    worst = max((report.health for report in reports.values()), key=list(Health).index, default=Health.CRITICAL)
    return {
        "health": worst.value,
        "says": {job: words.status_message(report, at, zone) for job, report in reports.items()},
        "jobs": {job: as_json.report(report) for job, report in reports.items()},
    }


@router.get("/api/backup/status", dependencies=[Depends(_or_from_here)])
async def briefly(desk: TheDesk) -> dict[str, Any]:
    """Sound Box's status. With ``web.open_status`` a program on this machine needs no token for it."""
    return brief.brief(desk.manager.config, await desk.glance.reports())

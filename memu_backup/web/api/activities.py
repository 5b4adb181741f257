"""What is being done, what was done, and by whom."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from typing import Annotated

from fastapi import APIRouter, Path, Query
from fastapi.responses import StreamingResponse
from typing_extensions import TypedDict

from memu_backup import as_json
from memu_backup.under_way import Activity, UnderWay
from memu_backup.web.who import OPERATOR, VIEWER, Operator, TheDesk, asker

router = APIRouter(tags=["activities"])

Limit = Annotated[int, Query(ge=1, le=1000, description="how many at most, newest first")]


class Activities(TypedDict):
    activities: list[as_json.ActivityJson]


class Runs(TypedDict):
    """With ``history_away`` some may be missing."""

    history_away: bool
    runs: list[as_json.RunJson]


class Events(TypedDict):
    events: list[as_json.EventJson]


@router.get("/api/v1/activities", dependencies=VIEWER)
async def activities(desk: TheDesk) -> Activities:
    """What this service does right now, and what has ended lately."""
    return _told(desk.manager.under_way.all())


@router.post("/api/v1/activities/{activity_id}/cancel", status_code=202)
async def cancel(
    desk: TheDesk, who: Operator, activity_id: Annotated[str, Path(max_length=64)]
) -> as_json.ActivityJson:
    """Have it end; it tidies up first, and older backups are untouched."""
    activity = desk.manager.under_way.cancel(activity_id, asker(who))
    await desk.manager.note(asker(who), "cancel", f"{activity.what} {activity.subject}".strip(), "asked")
    return as_json.activity(activity)


@router.get("/api/v1/events", dependencies=VIEWER, response_class=StreamingResponse)
async def events(desk: TheDesk) -> StreamingResponse:
    """The activities as server-sent events: at once, and again whenever something has changed.

    https://html.spec.whatwg.org/multipage/server-sent-events.html
    """
    return StreamingResponse(_stream(desk.manager.under_way), media_type="text/event-stream")


@router.get("/api/v1/runs", dependencies=VIEWER)
async def runs(desk: TheDesk, limit: Limit = 50) -> Runs:
    """The rows of the history of this machine."""
    found, away = await desk.manager.history.known_runs(host=desk.manager.config.host, quiet=True)
    return {"history_away": away, "runs": [as_json.run(row) for row in found[:limit]]}


@router.get("/api/v1/audit", dependencies=OPERATOR)
async def audit(desk: TheDesk, limit: Limit = 50) -> Events:
    """Who did what, and when."""
    return {"events": [as_json.event(one) for one in await desk.manager.history.audit_log(limit)]}


def _told(there: tuple[Activity, ...]) -> Activities:
    return {"activities": [as_json.activity(one) for one in there]}


async def _stream(under_way: UnderWay) -> AsyncIterator[str]:
    async for there in under_way.watch():
        yield f"data: {json.dumps(_told(there))}\n\n"

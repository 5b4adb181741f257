"""What was done, by whom, and by which settings."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response

from memu_backup import config_shown
from memu_backup.web.page.guest import Helper
from memu_backup.web.page.shown import page
from memu_backup.web.who import TheDesk

router = APIRouter()


@router.get("/activity")
async def activity(request: Request, desk: TheDesk, who: Helper) -> Response:
    manager = desk.manager
    runs, away = await manager.history.known_runs(host=manager.config.host, quiet=True)
    events = [] if away else await manager.history.audit_log(50)
    return page(request, "activity.html", who, runs=runs[:50], events=events, away=away)


@router.get("/settings")
async def settings(request: Request, desk: TheDesk, who: Helper) -> Response:
    shown = json.dumps(config_shown.show(desk.manager.config), indent=2, ensure_ascii=False, default=str)
    return page(request, "settings.html", who, settings=shown, file=str(desk.manager.config.path))

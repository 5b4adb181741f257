"""How the page looks: its templates (Jinja2), filled with the words of the chat."""

from __future__ import annotations

from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import quote

from fastapi import Request
from fastapi.responses import HTMLResponse
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from memu_backup import messages, words
from memu_backup.access import Role, Who
from memu_backup.config import Config
from memu_backup.under_way import Activity
from memu_backup.web.desk import Desk


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader(__name__.rpartition(".")[0]),
        autoescape=select_autoescape(),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"size": words.size, "files": words.files, "duration": words.duration, "inner": _inner}
    environment.globals |= {"Role": Role}
    return environment


def _inner(path: str) -> str:
    """A path in a backup, for an address: its very bytes, as ``files.inner`` reads them."""
    return quote(path, safe="/", errors="surrogateescape")


def page(request: Request, template: str, who: Who | None, status: int = 200, **values: Any) -> HTMLResponse:
    """A whole page. ``who`` is None for whoever is not signed in."""
    desk: Desk = request.app.state.desk
    config: Config = desk.manager.config
    now, zone = desk.clock(), config.zone

    def moment(at: datetime) -> str:
        return words.moment(at, now, zone)

    content = (
        _environment()
        .get_template(template)
        .render(
            who=who,
            may=lambda role: who is not None and who.role.includes(role),
            host=config.host,
            moment=moment,
            here=request.url.path,
            activities=[line(one) for one in desk.manager.under_way.all() if one.outcome is None] if who else [],
            **values,
        )
    )
    return HTMLResponse(content.encode("utf-8", "replace"), status)  # a file's name may be no text


def line(activity: Activity) -> dict[str, Any]:
    """One activity as the page shows it, and as its script is told of it."""
    at = activity.progress
    part = at.done_bytes * 100 // at.total_bytes if at and at.total_bytes else None
    if activity.outcome:
        says = f"{activity.outcome.capitalize()}. {activity.step}".strip()
    else:
        says = " ".join(filter(None, (activity.step, messages.progress(at) if at else "")))
    return {
        "id": activity.id,
        "what": f"{activity.what.capitalize()} of {activity.subject}",
        "by": activity.asker.actor,
        "says": says,
        "part": None if part is None else min(part, 100),
        "outcome": activity.outcome.value if activity.outcome else None,
    }

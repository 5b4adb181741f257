"""The application: what may be asked, and what is answered where that goes wrong."""

from __future__ import annotations

import json
import logging
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from typing_extensions import TypedDict

from memu_backup import __version__, errors
from memu_backup.web import api
from memu_backup.web.desk import Desk
from memu_backup.web.page import router as page_router
from memu_backup.web.page.shown import page
from memu_backup.web.uploading import CutOff, TooLarge

log = logging.getLogger(__name__)

_STATUS: dict[type[errors.MemuError], int] = {
    errors.UnknownBackup: 404,
    errors.NotThere: 404,
    errors.UsageError: 400,
    errors.LockHeld: 409,
    errors.RestoreError: 409,
    errors.Interrupted: 409,
    errors.NotAnArchive: 422,
    errors.DamagedArchive: 422,
    errors.DiskFull: 507,
    errors.HistoryAway: 503,
    errors.StoreError: 503,
    errors.DriveError: 409,
    errors.AccessError: 503,
    errors.NotAllowed: 401,
    TooLarge: 413,
    CutOff: 400,
}
"""By the nearest class; whatever else goes wrong is ours: 500."""

_CODES = {400: "usage", 401: "not_allowed", 403: "forbidden", 404: "not_found", 405: "method", 413: "too_long",
          429: "too_often"}  # fmt: skip


class _Json(JSONResponse):
    """In ASCII: a file's name may be bytes that are no text, and goes as it is."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content, separators=(",", ":"), allow_nan=False).encode()


class Problem(TypedDict):
    code: str
    message: str


class ProblemJson(TypedDict):
    """What went wrong: a code that stays as it is, and a sentence for a person."""

    error: Problem


def make(desk: Desk) -> FastAPI:
    app = FastAPI(
        title="memu-backup",
        version=__version__,
        description="The backups of a household: how they stand, made, looked into and put back.",
        openapi_url="/api/openapi.json",
        docs_url=None,  # its page would bring along scripts of others
        redoc_url=None,
        default_response_class=_Json,
        responses={"4XX": {"model": ProblemJson}, "5XX": {"model": ProblemJson}},
    )
    app.state.desk = desk
    app.include_router(api.router)
    app.include_router(page_router)
    app.add_exception_handler(errors.MemuError, _known)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broke)
    return app


def _told(request: Request, status: int, code: str, message: str, headers: dict[str, str] | None = None) -> Response:
    """To a person as a page, to a program as JSON."""
    if "text/html" not in request.headers.get("accept", "") or request.url.path.startswith("/api/"):
        return JSONResponse({"error": {"code": code, "message": message}}, status, headers)
    answer = page(request, "wrong.html", None, status, says=message)
    answer.headers.update(headers or {})
    return answer


async def _known(request: Request, error: Exception) -> Response:
    assert isinstance(error, errors.MemuError)
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    return _told(request, status, error.code, str(error))


async def _not_understood(request: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    return _told(request, 422, "usage", f"{where or 'What you sent'}: {first['msg']}; nothing was done.")


async def _refused(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    if error.status_code == 303:
        return Response(status_code=303, headers=error.headers)
    said = error.detail if error.detail != "Not Found" else "There is nothing at this address."
    return _told(request, error.status_code, _CODES.get(error.status_code, "http"), said, dict(error.headers or {}))


async def _broke(request: Request, error: Exception) -> Response:
    log.error("Something that was asked over HTTP broke (%s).", type(error).__name__, exc_info=error)
    return _told(request, 500, "unexpected", "Something unexpected happened, so this ended early. The log tells more.")

"""The application: what may be asked, and what is answered where that goes wrong."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from typing_extensions import TypedDict

from memu_backup import __version__, errors
from memu_backup.web import api
from memu_backup.web.desk import Desk

log = logging.getLogger(__name__)

_STATUS: dict[type[errors.MemuError], int] = {
    errors.UnknownBackup: 404,
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
}
"""By the nearest class; whatever else goes wrong is ours: 500."""

_CODES = {400: "usage", 401: "not_allowed", 403: "forbidden", 404: "not_found", 405: "method", 413: "too_long",
          429: "too_often"}  # fmt: skip


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
        responses={"4XX": {"model": ProblemJson}, "5XX": {"model": ProblemJson}},
    )
    app.state.desk = desk
    app.include_router(api.router)
    app.add_exception_handler(errors.MemuError, _known)
    app.add_exception_handler(RequestValidationError, _not_understood)
    app.add_exception_handler(HTTPException, _refused)
    app.add_exception_handler(Exception, _broke)
    return app


def problem(status: int, code: str, message: str, headers: dict[str, str] | None = None) -> JSONResponse:
    return JSONResponse({"error": {"code": code, "message": message}}, status, headers)


async def _known(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, errors.MemuError)
    status = next((_STATUS[kind] for kind in type(error).__mro__ if kind in _STATUS), 500)
    return problem(status, error.code, str(error))


async def _not_understood(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"] if part not in ("body", "query", "path", "header"))
    return problem(422, "usage", f"{where or 'What you sent'}: {first['msg']}; nothing was done.")


async def _refused(_: Request, error: Exception) -> JSONResponse:
    assert isinstance(error, HTTPException)
    said = error.detail if error.detail != "Not Found" else "There is nothing at this address."
    return problem(error.status_code, _CODES.get(error.status_code, "http"), said, dict(error.headers or {}))


async def _broke(_: Request, error: Exception) -> JSONResponse:
    log.error("Something that was asked over HTTP broke (%s).", type(error).__name__, exc_info=error)
    return problem(500, "unexpected", "Something unexpected happened, so this ended early. The log tells more.")

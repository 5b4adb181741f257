"""Signed in by a link, once; and signed out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, HTTPException, Query, Request, Response
from fastapi.responses import RedirectResponse

from memu_backup.errors import NotAllowed
from memu_backup.web.page.guest import GUEST
from memu_backup.web.page.shown import page
from memu_backup.web.who import COOKIE, TheDesk, address_of

router = APIRouter()

_DAYS_S = 30 * 24 * 3600

Code = Annotated[str, Query(max_length=200)]


@router.get("/enter")
async def enter(request: Request, code: Code = "") -> Response:
    """Does not use up the link: whoever shows a preview of it in a chat asks for it, too."""
    return page(request, "enter.html", None, code=code, wrong="")


@router.post("/enter")
async def entered(request: Request, desk: TheDesk, code: Annotated[str, Form(max_length=200)] = "") -> Response:
    address = address_of(request)
    if (wait_s := desk.patience.must_wait_s(address)) > 0:
        raise HTTPException(429, f"Too many attempts from your address. Try again in {wait_s:.0f} s.")
    try:
        cookie = desk.manager.access.redeem(code.strip())
    except NotAllowed as error:
        desk.patience.failed(address)
        return page(request, "enter.html", None, 401, code="", wrong=str(error))
    desk.patience.succeeded(address)
    answer = RedirectResponse("/", 303)
    https = request.url.scheme == "https"
    answer.set_cookie(COOKIE, cookie, max_age=_DAYS_S, httponly=True, samesite="strict", secure=https)
    return answer


@router.post("/leave", dependencies=GUEST)
async def leave(request: Request, desk: TheDesk) -> Response:
    desk.manager.access.end_session(request.cookies.get(COOKIE, ""))
    answer = RedirectResponse("/enter", 303)
    answer.delete_cookie(COOKIE)
    return answer

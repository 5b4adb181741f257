"""Signed in by a link, once; and signed out."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Form, Query, Request, Response
from fastapi.responses import RedirectResponse

from memu_backup.errors import NotAllowed
from memu_backup.web.page.guest import GUEST
from memu_backup.web.page.shown import page
from memu_backup.web.who import COOKIE, TheDesk, address_of, asker, must_not_guess

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
    try:
        cookie = desk.manager.access.redeem(code.strip())
    except NotAllowed as error:
        must_not_guess(desk, address)
        return page(request, "enter.html", None, 401, code="", wrong=str(error))
    desk.patience.succeeded(address)
    who = desk.manager.access.by_session(cookie)
    await desk.manager.note(asker(who), "sign in", f"as {who.role}", "done")
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

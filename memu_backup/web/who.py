"""Who asks, and whether they may: by a token that a program sends, or the cookie of a page that was signed in."""

from __future__ import annotations

import logging
from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyCookie, HTTPAuthorizationCredentials, HTTPBearer

from memu_backup.access import Role, Who
from memu_backup.audit import Asker
from memu_backup.errors import NotAllowed
from memu_backup.web.desk import Desk

log = logging.getLogger(__name__)

COOKIE = "memu_backup"

BEARER = HTTPBearer(auto_error=False, bearerFormat="JWT", description="made by: memu-backup token create")
COOKIE_OF_PAGE = APIKeyCookie(name=COOKIE, auto_error=False, description="of the page, once it was signed in by a link")

_NOBODY = (
    "Say who you are: a program by Authorization: Bearer and a token (memu-backup token create), a person by a link"
)


def the_desk(request: Request) -> Desk:
    desk: Desk = request.app.state.desk
    return desk


def address_of(request: Request) -> str:
    return request.client.host if request.client else ""


async def who_asks(
    request: Request,
    desk: Annotated[Desk, Depends(the_desk)],
    bearer: Annotated[HTTPAuthorizationCredentials | None, Depends(BEARER)],
    cookie: Annotated[str | None, Depends(COOKIE_OF_PAGE)],
) -> Who:
    """Raises HTTPException: 401 for nobody we know, 429 for whoever has guessed too often."""
    address = address_of(request)
    try:
        if bearer:
            who = desk.manager.access.by_token(bearer.credentials)
        elif cookie:
            who = desk.manager.access.by_session(cookie)
        else:
            raise HTTPException(401, f"{_NOBODY} (memu-backup page).", {"WWW-Authenticate": "Bearer"})
    except NotAllowed as error:
        must_not_guess(desk, address)
        raise HTTPException(401, str(error), {"WWW-Authenticate": "Bearer"}) from error
    desk.patience.succeeded(address)
    return who


def must_not_guess(desk: Desk, address: str) -> None:
    """Another failure of an address; who has something that is good is never made to wait for others of the same house.
    Raises HTTPException.
    """
    if (wait_s := desk.patience.must_wait_s(address)) > 0:
        said = f"Too many attempts from your address. Try again in {wait_s:.0f} s."
        raise HTTPException(429, said, {"Retry-After": str(max(1, round(wait_s)))})
    log.warning("Somebody at %s sent a token, a link or a cookie that is not good.", address)
    desk.patience.failed(address)


class Needs:
    """A dependency: somebody of that role, or of one that includes it."""

    def __init__(self, role: Role) -> None:
        self._role = role

    async def __call__(self, who: Annotated[Who, Depends(who_asks)]) -> Who:
        if not who.role.includes(self._role):
            raise HTTPException(403, f"That needs the role {self._role}, and {who.name} has {who.role}.")
        return who


TheDesk = Annotated[Desk, Depends(the_desk)]
Viewer = Annotated[Who, Depends(Needs(Role.VIEWER))]
Operator = Annotated[Who, Depends(Needs(Role.OPERATOR))]
Admin = Annotated[Who, Depends(Needs(Role.ADMIN))]

VIEWER = [Depends(Needs(Role.VIEWER))]
OPERATOR = [Depends(Needs(Role.OPERATOR))]
ADMIN = [Depends(Needs(Role.ADMIN))]


def asker(who: Who) -> Asker:
    return Asker(who.name, "web")

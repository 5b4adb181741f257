"""Who looks at the page: signed in, or sent to where that is done."""

from __future__ import annotations

from typing import Annotated

from fastapi import Depends, HTTPException, Request
from fastapi.security import APIKeyCookie

from memu_backup.access import Role, Who
from memu_backup.web.who import COOKIE, Needs, the_desk, who_asks

_cookie = APIKeyCookie(name=COOKIE, auto_error=False)


async def _guest(request: Request, cookie: Annotated[str | None, Depends(_cookie)]) -> Who:
    """Raises HTTPException: whoever only looks is sent to the door, and what somebody wanted to do is not done."""
    try:
        return await who_asks(request, the_desk(request), None, cookie)
    except HTTPException as refused:
        if refused.status_code == 401 and request.method == "GET":
            raise HTTPException(303, headers={"Location": "/enter"}) from refused
        raise


class _Guest(Needs):
    async def __call__(self, who: Annotated[Who, Depends(_guest)]) -> Who:
        return await super().__call__(who)


GUEST = [Depends(_guest)]
HELPER = [Depends(_Guest(Role.OPERATOR))]

Guest = Annotated[Who, Depends(_guest)]
Helper = Annotated[Who, Depends(_Guest(Role.OPERATOR))]
Head = Annotated[Who, Depends(_Guest(Role.ADMIN))]

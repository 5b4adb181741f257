"""The page in the browser: made on the server, so that it is there at once on any phone; a script keeps it live."""

from __future__ import annotations

from importlib import resources

from fastapi import APIRouter, HTTPException, Response

from memu_backup.web.page import backups, deeds, drives, entering, overview, records, uploads

router = APIRouter(include_in_schema=False)
for part in (entering, overview, deeds, backups, uploads, drives, records):
    router.include_router(part.router)

_KINDS = {
    "style.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}


@router.get("/static/{name}")
async def static(name: str) -> Response:
    if name not in _KINDS:
        raise HTTPException(404)
    content = resources.files(__name__).joinpath("static", name).read_bytes()
    return Response(content, media_type=_KINDS[name], headers={"Cache-Control": "private, max-age=3600"})

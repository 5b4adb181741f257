"""What programs ask: Kuroibara's paths and Sound Box's as their documents have them, and the rest in their manner."""

from __future__ import annotations

from fastapi import APIRouter

from memu_backup.web.api import activities, backups, drives, files, restores, standing

router = APIRouter()
for part in (backups, files, restores, activities, drives, standing):
    router.include_router(part.router)

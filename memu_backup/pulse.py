"""Tells a dead-man's switch outside of each backup that begins and ends, from the rows."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta

from memu_backup.alerts.heartbeat import Beat, beat
from memu_backup.errors import AlertError
from memu_backup.model import Run, Status
from memu_backup.words import reason, size

log = logging.getLogger(__name__)

_FRESH = timedelta(hours=6)
"""What happened longer ago is not told as if it were now."""


async def tell(
    urls: Mapping[str, str], runs: Sequence[Run], before: Mapping[str, str], now: datetime, unheard: set[str]
) -> Mapping[str, str]:
    """Tell what is new of each job that has one of ``urls``; ``runs`` are newest first, ``before`` says by job what was
    told last. What is told now: what could not be is told by the next call. ``unheard`` holds the jobs of which that
    was said already.
    """
    told = dict(before)
    for job, url in urls.items():
        run = next((run for run in runs if run.job == job), None)
        what = _what(run) if run else None
        if run is None or what is None:
            continue
        at = run.created_at.astimezone(UTC).isoformat(timespec="microseconds")
        state = f"{at} {run.run_id} {run.status}"
        last = told.get(job, "")
        if state == last or at < last.partition(" ")[0]:  # with the history away, an older one may seem the newest
            continue
        if now - (run.finished_at or run.created_at) < _FRESH:
            try:
                await beat(url, what, _text(run))
                unheard.discard(job)
            except AlertError as error:
                log.log(logging.DEBUG if job in unheard else logging.WARNING, "%s", error)
                unheard.add(job)
                continue
        told[job] = state
    return told


def _what(run: Run) -> Beat | None:
    """None for what is about to be tried again. An incomplete backup is none that a family can rely on."""
    if run.status is Status.IN_PROGRESS:
        return Beat.START
    if run.status is Status.SUCCESS:
        return Beat.SUCCESS
    return None if run.retry_at else Beat.FAIL


def _text(run: Run) -> str:
    match run.status:
        case Status.IN_PROGRESS:
            return "The backup has begun."
        case Status.SUCCESS:
            return f"{run.filename}, {size(run.size_bytes)}"
        case Status.PARTIAL:
            return "The backup looks wrong." if run.suspicious else "The backup is incomplete."
    return f"The backup failed: {reason(run.error_code).what}"

"""Where a household's backups stand, in the few keys that Sound Box's own script has for it. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import tzinfo
from typing import Any

from memu_backup.config import Config, Job
from memu_backup.model import Run, StatusReport
from memu_backup.retention import Policy, described

_MONTH_DAYS = 30


def brief(config: Config, reports: Mapping[str, StatusReport]) -> dict[str, Any]:
    """All jobs in one, fit for JSON: the keys stay as they are. ``reports`` are those of the jobs that are on.

    ``enabled`` is False where none is. Times are the household's and carry no zone, ``size_mb`` counts 1,000,000 bytes.
    ``backup_time`` is a time of day or a crontab line, None for backups by hand; ``latest_backup_date`` is that of the
    newest good one, ``last_backup`` the newest run that has ended, however it did.
    """
    planned = config.planned()
    good = [r.last_good.created_at for r in reports.values() if r.last_good]
    ended = [r.last for r in reports.values() if r.last]
    return {
        "enabled": any(job.enabled for job in config.jobs.values()),
        "backup_dir": str(config.backup_dir) if config.backup_dir else None,
        "retention_policy": _together({job.name: policy_words(job.retention) for job in planned}),
        "backup_time": _time(planned),
        "backup_count": sum(r.stored_count for r in reports.values()),
        "latest_backup_date": max(good).astimezone(config.zone).date().isoformat() if good else None,
        "last_backup": _run(max(ended, key=lambda run: run.created_at), config.zone) if ended else None,
    }


def policy_words(policy: Policy) -> str:
    """14 days daily, then weekly for 2 months; one a day for 7 days and one a week for 4 weeks. Sound Box counts how
    old a day may be, and so not the day itself.
    """
    others = policy.keep_last or policy.daily or policy.weekly or policy.monthly
    if not policy.within_days or policy.then_weekday is None or others:
        return described(policy)
    more = policy.until_days - policy.within_days
    number, unit = (more // _MONTH_DAYS, "month") if more % _MONTH_DAYS == 0 else (more, "day")
    return f"{_count(policy.within_days - 1, 'day')} daily, then weekly for {_count(number, unit)}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _together(texts: Mapping[str, str]) -> str | None:
    if len(set(texts.values())) <= 1:
        return next(iter(texts.values()), None)
    return "; ".join(f"{job}: {text}" for job, text in texts.items())


def _time(jobs: Sequence[Job]) -> str | None:
    """Of the first job that has one."""
    line = next((job.cron for job in jobs if job.cron), None)
    if line is None:
        return None
    minute, hour, *days = line.split()
    if minute.isdigit() and hour.isdigit() and days == ["*", "*", "*"]:
        return f"{int(hour):02}:{int(minute):02}"
    return line


def _run(run: Run, zone: tzinfo) -> dict[str, Any]:
    at = (run.finished_at or run.created_at).astimezone(zone).replace(tzinfo=None)
    return {
        "time": at.isoformat(timespec="seconds"),
        "status": run.status.value,
        "size_mb": round(run.size_bytes / 1e6, 1),
        "error": run.error,
    }

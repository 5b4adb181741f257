"""Where backups are kept, and whether the next one has room there; copies on drives."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from memu_backup import place, words
from memu_backup.checks import Finding, found
from memu_backup.clock import Clock
from memu_backup.config import Config
from memu_backup.drives import udev
from memu_backup.errors import DiskFull, StoreError
from memu_backup.history import History
from memu_backup.model import Problem, StatusReport
from memu_backup.stores import Store


def writable(directory: Path, no: str) -> str:
    """How much is free in the folder, or in the nearest one above it that is there, since the first backup makes it.

    Raises StoreError, whose sentence ends in ``no``.
    """
    there = next(f for f in (directory, *directory.parents) if os.path.lexists(f))
    if not there.is_dir():
        raise StoreError(f"{there} is a file and not a folder, {no}.")
    if not os.access(there, os.W_OK | os.X_OK):
        raise StoreError(f"{there} cannot be written to, {no}.")
    free = os.statvfs(there)
    will = "" if there == directory else "will be made by the first backup; "
    return f"{will}{words.size(free.f_bavail * free.f_frsize)} free"


async def store(store: Store, host: str, history: History, reports: Mapping[str, StatusReport]) -> Finding:
    """``reports`` are those of the jobs whose backups are kept there."""
    return await found(f"backups in {store.directory}", _store(store, host, history, reports))


async def _store(store: Store, host: str, history: History, reports: Mapping[str, StatusReport]) -> str:
    no = f"so no backup can be stored in {store.directory}"
    told = [await place.asked(store, lambda: writable(store.directory, no))]
    await place.found(store, host, history)
    for job, report in reports.items():
        told += _room(store, job, report)
    return "; ".join(told)


def _room(store: Store, job: str, report: StatusReport) -> list[str]:
    """Raises DiskFull where the next backup of the job has no room, or soon will have none."""
    advice = "Free up space or add storage, or let fewer backups stay (backup_retention_count)."
    last = report.last_good
    if last is None:
        return [f"how much one of {job} takes is known after the first"]
    took = f"the last of {job} took {words.size(last.size_bytes)}"
    if Problem.NO_ROOM in report.problems:
        raise DiskFull(f"{store.directory} has no room for the next backup: {took}. {advice}")
    if Problem.SPACE_SHORT in report.problems and report.days_left is not None:
        soon = words.about_days(report.days_left)
        raise DiskFull(f"The disk that holds {store.directory} will be full in {soon}: {took}. {advice}")
    return [took]


def drive(config: Config, reports: Mapping[str, StatusReport], clock: Clock) -> list[Finding]:
    """Nothing where none is expected."""
    if not config.usb.overdue_days:
        return []
    copied = max((r.usb_copied_at for r in reports.values() if r.usb_copied_at), default=None)
    overdue = any(Problem.USB_OVERDUE in r.problems for r in reports.values())
    says = f"last copy {words.days_ago(copied, clock(), config.zone)}" if copied else "no copy on a drive yet"
    drives = next((report.drives for report in reports.values()), ())
    known = [words.drive_age(drive, clock(), config.zone) for drive in drives] or ["none is approved yet"]
    todo = "; plug in your backup drive" if overdue else ""
    findings = [Finding("drive", not overdue, f"{says} ({'; '.join(known)}){todo}")]
    try:
        udev.present()
    except ImportError:
        lacking = "there is no libudev, so nobody hears of a drive; copy by hand: memu-backup usb copy --to FOLDER"
        findings.append(Finding("udev", False, lacking))
    return findings

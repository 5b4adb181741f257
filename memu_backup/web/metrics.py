"""What Prometheus reads: numbers by job and by drive, as of the moment in which they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, generate_latest
from prometheus_client.core import GaugeMetricFamily, Metric

from memu_backup.clock import Clock
from memu_backup.model import Health, StatusReport
from memu_backup.web.desk import Desk

CONTENT_TYPE = CONTENT_TYPE_LATEST

_PREFIX = "memu_backup_"


async def exposition(desk: Desk) -> bytes:
    """In the text format of Prometheus."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Told(await desk.glance.reports(), desk.clock))
    return generate_latest(registry)


class _Told:
    def __init__(self, reports: Mapping[str, StatusReport], clock: Clock) -> None:
        self._reports = reports
        self._clock = clock

    def collect(self) -> Iterator[Metric]:
        yield from self._of_jobs()
        yield from self._of_drives()
        coverage = next((r.coverage for r in self._reports.values() if r.coverage), None)
        if coverage and coverage.total_bytes:
            covered = GaugeMetricFamily(
                f"{_PREFIX}verification_coverage_ratio", "Part of what is stored that was re-read in time"
            )
            covered.add_metric([], coverage.read_bytes / coverage.total_bytes)
            yield covered

    def _of_jobs(self) -> Iterator[Metric]:
        now = self._clock()
        told: dict[str, tuple[str, Callable[[StatusReport], float | None]]] = {
            "healthy": ("1 where all is well", lambda r: float(r.health is Health.HEALTHY)),
            "last_good_age_seconds": (
                "Age of the newest good backup",
                lambda r: (now - r.last_good.created_at).total_seconds() if r.last_good else None,
            ),
            "last_good_size_bytes": (
                "Size of the newest good backup",
                lambda r: float(r.last_good.size_bytes) if r.last_good else None,
            ),
            "last_duration_seconds": (
                "How long the newest run took",
                lambda r: r.last.duration_seconds if r.last else None,
            ),
            "last_downtime_seconds": (
                "How long services stood still for it",
                lambda r: r.last.downtime_seconds if r.last else None,
            ),
            "last_failed": (
                "1 where the newest run failed",
                lambda r: float(r.last.status.value == "failed") if r.last else None,
            ),
            "in_progress": ("1 while a backup is made", lambda r: float(r.in_progress is not None)),
            "stored_count": ("Backups that are stored", lambda r: float(r.stored_count)),
            "stored_bytes": ("Their size", lambda r: float(r.stored_bytes)),
            "free_bytes": (
                "What is free where they lie",
                lambda r: float(r.free_bytes) if r.free_bytes is not None else None,
            ),
            "days_left": (
                "Days until that is full",
                lambda r: float(r.days_left) if r.days_left is not None else None,
            ),
        }
        for name, (says, number) in told.items():
            family = GaugeMetricFamily(_PREFIX + name, says, labels=["job"])
            for job, report in self._reports.items():
                if (value := number(report)) is not None:
                    family.add_metric([job], value)
            yield family

    def _of_drives(self) -> Iterator[Metric]:
        drives = next((r.drives for r in self._reports.values()), ())
        family = GaugeMetricFamily(
            f"{_PREFIX}drive_copy_age_seconds", "Age of the newest whole copy on a drive", labels=["drive"]
        )
        for drive in drives:
            if drive.last_copied_at:
                family.add_metric([drive.called], (self._clock() - drive.last_copied_at).total_seconds())
        yield family

"""Turns a job's crontab line into moments, so that a night with a change of clocks still has exactly one backup.

APScheduler's own CronTrigger counts in the household's zone: it fires twice in the doubled hour of autumn, and a
daemon started just after the missing hour of spring skips that night. Here it counts on a wall clock that never
changes, and each wall time is turned into one moment: the first of two where it is doubled, and an hour later by the
clock where it is missing. So nothing has to be remembered from one run to the next.

APScheduler is imported when the first timetable is made: most commands need none.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING
from zoneinfo import ZoneInfo

from memu_backup import cron

if TYPE_CHECKING:
    from apscheduler.triggers.cron import CronTrigger

_LONGEST_CHANGE = timedelta(hours=3)
_INSTANT = timedelta(microseconds=1)

SLACK = timedelta(hours=12)
"""A clock that is put back by less changes nothing, so that no backup is made twice in a night. What is dated further
ahead was dated by a clock that was wrong."""

_BELIEVED = timedelta(days=183)
"""Who finds that a backup was due longer ago than this waits for the next time: perhaps the clock has jumped, and a
backup of such a date would push a real one out."""

PAUSES = (timedelta(minutes=5), timedelta(minutes=15), timedelta(minutes=45))
"""Before a failed backup is tried again. A database that restarts or a disk that is being connected is there in five
minutes, a machine that is being updated in an hour; and the family still sleeps when the last attempt ends."""

ON_TIME = timedelta(minutes=5)
"""A backup that begins later than this is one that catches up."""

_LONGEST_LOOK_BACK = timedelta(days=7)
"""Runs that were missed longer ago are passed over: after a clock that jumped by years there would be a million."""


class Timetable:
    """The moments at which a job is due; made by ``timetable``. An APScheduler trigger, to be given to ``add_job``."""

    def __init__(self, walls: CronTrigger, zone: ZoneInfo, line: str) -> None:
        self._walls = walls
        self._zone = zone
        self._line = line

    def __str__(self) -> str:
        return self._line

    def next_after(self, moment: datetime) -> datetime | None:
        """The first moment strictly after ``moment`` (aware) at which the job is due, in UTC; None for never again.

        A run was missed when this, asked with the time of the last one, lies in the past.
        """
        # Just after a change of clocks a wall time that was skipped may still be due: take the slower offset.
        wall = moment.astimezone(UTC) + min(self._offset(moment), self._offset(moment - _LONGEST_CHANGE))
        while True:
            following: datetime | None = self._walls.get_next_fire_time(None, wall + _INSTANT)
            if following is None:
                return None
            due = following.replace(tzinfo=self._zone, fold=0).astimezone(UTC)
            if due > moment:
                return due
            wall = following

    def missed(self, last_attempt: datetime | None, now: datetime) -> datetime | None:
        """The first moment since the last attempt at which the job was due, if that has come; however many followed it.

        None where nobody ever tried: a new household waits for its first night. None, too, where that moment is more
        than half a year back, or the last attempt lies ahead of now.
        """
        due = self.next_after(last_attempt) if last_attempt else None
        return due if due and timedelta() <= now - due <= _BELIEVED else None

    def get_next_fire_time(self, previous_fire_time: datetime | None, now: datetime) -> datetime | None:
        """What APScheduler calls: with a previous time, those missed since (in the last 7 days) one by one."""
        if previous_fire_time is None:
            return self.next_after(now - _INSTANT)
        return self.next_after(max(min(previous_fire_time, now), now - _LONGEST_LOOK_BACK))

    def interval(self, now: datetime) -> timedelta | None:
        """The longest wait between two runs in the coming days; None where fewer than two are to come.

        Looks at 8 days and at least 3 runs, so that "weekdays at 2" gives the weekend's three days.
        """
        longest = None
        last = self.next_after(now)
        for number in range(1, 1000):
            following = self.next_after(last) if last else None
            if last is None or following is None or (number > 2 and last - now > timedelta(days=8)):
                break
            longest = max(following - last, longest or timedelta())
            last = following
        return longest

    def _offset(self, moment: datetime) -> timedelta:
        return moment.astimezone(self._zone).utcoffset() or timedelta()


class Watch:
    """Says of a job when its backup is to be made, once each time, whatever sleep, restarts and clocks do.

    ``last`` is the last attempt that is known of, or the moment from which it watches.
    """

    def __init__(self, table: Timetable, since: datetime) -> None:
        self._table = table
        self.last = since

    def due(self, now: datetime) -> datetime | None:
        """The moment whose backup is to be begun now, which counts as attempted from here on."""
        due = self._table.missed(self.last, now)
        following = self._table.next_after(self.last)
        if following and following <= now:
            self.last = now  # also where the clock is not believed: from here on it counts anew
        return due

    def is_ahead(self, now: datetime) -> bool:
        """Whether the clock has been put back so far that nothing would be due for long."""
        return self.last > now + SLACK


def pause_after(attempt: int) -> timedelta | None:
    """How long to wait after this attempt (1: the first) has failed; None where it was the last."""
    return PAUSES[attempt - 1] if attempt <= len(PAUSES) else None


def is_over(pause_until: datetime, now: datetime) -> bool:
    """Whether a pause has ended; also where a clock that was put back would make it endless."""
    return not now < pause_until <= now + PAUSES[-1]


def usual_wait(line: str, zone: ZoneInfo, now: datetime) -> timedelta | None:
    """``Timetable.interval`` of a crontab line; a day for one that names a time of day, whatever the clocks do.

    Nearly every job is of that kind, and the status is asked too often to wait for APScheduler each time.
    """
    minute, hour, *days = cron.normal(line).split()
    if minute.isdigit() and hour.isdigit() and days == ["*", "*", "*"]:
        return timedelta(days=1)
    return timetable(line, zone).interval(now)


def timetable(line: str, zone: ZoneInfo) -> Timetable:
    """When a job with this crontab line is due, by the clocks of ``zone``.

    Raises ValueError, with the phrase of ``cron.normal``, when the line can't be read.
    """
    from apscheduler.triggers.base import BaseTrigger
    from apscheduler.triggers.cron import CronTrigger

    # Not a subclass, since its base would have to be imported at each start of the program.
    BaseTrigger.register(Timetable)
    # Written out anew here, since APScheduler alone takes weekday 0 for Monday.
    return Timetable(CronTrigger.from_crontab(cron.normal(line), timezone=UTC), zone, line)

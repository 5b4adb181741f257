"""Every sentence that a person reads in the status, in one place, to be read and translated in one sitting; what the
bot says besides stands in ``messages``.

The wording is that of the Memu specification where it gives one. Times are shown in the household's zone, which is
handed in with the present moment (aware); sizes are decimal: 1 MB is 1,000,000 bytes.
"""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from memu_backup.model import (
    Backup,
    Copying,
    Coverage,
    Doubt,
    Drill,
    Drive,
    Loss,
    Phase,
    Problem,
    Run,
    SourceSummary,
    Status,
    StatusReport,
    Tried,
)

WEEKDAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")

PHASES: Mapping[Phase, str] = {
    Phase.WAITING: "Waiting",
    Phase.CAPTURING: "Collecting",
    Phase.WRITING: "Saving",
    Phase.VERIFYING: "Checking",
    Phase.PUBLISHING: "Finishing",
    Phase.RESTORING: "Bringing back",
    Phase.SEARCHING: "Looking",
    Phase.COPYING: "Copying",
    Phase.COMPARING: "Reading the copy back",
    Phase.REHEARSING: "Trying it out",
}


@dataclass(frozen=True, slots=True)
class Reason:
    """Why a backup failed, and the one thing to do about it. No full stops: both stand inside longer lines."""

    what: str
    todo: str


REASONS: Mapping[str, Reason] = {
    "disk_full": Reason("Disk full", "Free up space or add storage"),
    "no_inodes": Reason("The disk has no room for more files", "Remove files that are not needed, small ones too"),
    "quota": Reason("The quota for the backups is used up", "Raise the quota or free up space"),
    "write_failed": Reason("The disk did not keep what was written", "Check the backup disk, it may be failing"),
    "store": Reason("The backup folder cannot be used", "Check that the backup disk is connected"),
    "not_mounted": Reason("The backup disk is not there", "Connect the backup disk"),
    "source": Reason("Something to back up cannot be read", "Check that all disks and folders are there"),
    "database": Reason("The database refused to be copied", "Check its password and rights in the settings"),
    "database_away": Reason("The database did not answer", "Check that the database is running"),
    "service": Reason("A service could not be stopped for it", "Look at that service"),
    "engine": Reason("Docker refused to help with it", "Check Docker, and whether memu-backup may speak to it"),
    "engine_away": Reason("Docker did not answer", "Check that Docker is running"),
    "disturbed": Reason("Something was started in the middle of it", "Start it again or wait for the next one"),
    "archive": Reason("The backup could not be read back", "Start a new backup"),
    "damaged": Reason("The backup is damaged", "Start a new backup and check the disk it lies on"),
    "interrupted": Reason("It was interrupted", "Start it again or wait for the next one"),
    "half_way": Reason("A restore was interrupted half-way", "Finish or undo it"),
    "lock_held": Reason("Another backup was still running", "Wait for the next one"),
    "settings": Reason("The settings have a mistake", "Correct the settings"),
}
"""By the ``code`` of ``errors``: those with which a backup can end."""

_SOURCES_LISTED = 50
_LONGEST_NAME = 60
_LONGEST_ERROR = 400

Tell = Callable[[SourceSummary, datetime, tzinfo], str]
"""The phrase for what a backup holds of one source, ``now`` (aware), in the household's zone: ``sources.told``."""

UNKNOWN_REASON = Reason("Something unexpected happened", "Ask whoever looks after the server to read the log")


def reason(code: str | None) -> Reason:
    """The reason for an error code, or for one that is missing or unknown."""
    return REASONS.get(code or "", UNKNOWN_REASON)


def size(count_bytes: int) -> str:
    """13 kB, 312 MB, 2.1 GB, 41 GB."""
    if count_bytes < 1000:
        return f"{count_bytes} byte{'' if count_bytes == 1 else 's'}"
    for unit, name, below_ten in ((10**3, "kB", 0), (10**6, "MB", 0), (10**9, "GB", 1)):
        decimals = below_ten if round(count_bytes / unit, 1) < 10 else 0
        # What rounds up to 1000 belongs to the next unit.
        if round(count_bytes / unit, decimals) < 1000:
            return f"{count_bytes / unit:.{decimals}f} {name}"
    return f"{count_bytes / 10**12:.1f} TB"


def files(number: int) -> str:
    """1 file, 1,234 files."""
    return _counted(number, "file")


def files_and_links(files_number: int, links: int) -> str:
    """1 file, 1 link, 2 files and 3 links: what is not there is left out, unless nothing is."""
    linked = _counted(links, "link")
    return files(files_number) if not links else f"{files(files_number)} and {linked}" if files_number else linked


def _counted(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'' if number == 1 else 's'}"


def printable(text: str) -> str:
    """Text that no terminal takes for a command: everything but letters, signs and line ends is shown as a mark."""
    return "".join(c if c.isprintable() or c == "\n" else "\N{REPLACEMENT CHARACTER}" for c in text)


def duration(seconds: float) -> str:
    """9 s, 2 min 5 s, 1 h 3 min: the two largest parts, those of nothing left out."""
    total = max(0, round(seconds))
    if total >= 3600:
        parts = ((total // 3600, "h"), (total % 3600 // 60, "min"))
    else:
        parts = ((total // 60, "min"), (total % 60, "s"))
    return " ".join(f"{number} {unit}" for number, unit in parts if number) or "0 s"


def moment(at: datetime, now: datetime, zone: tzinfo) -> str:
    """Today 2:05 AM, Yesterday 2:05 AM, Monday 2:05 AM, 12 Jan 2:05 AM, 12 Jan 2025 2:05 AM.

    Names of days are for the past; what lies ahead of today is told by its date.
    """
    return f"{_day(at, now, zone)} {time_of_day(at.astimezone(zone))}"


def _day(at: datetime, now: datetime, zone: tzinfo) -> str:
    local = at.astimezone(zone)
    days = (now.astimezone(zone).date() - local.date()).days
    if days == 0:
        return "Today"
    if days == 1:
        return "Yesterday"
    return WEEKDAYS[local.weekday()] if 1 < days < 7 else date(at, now, zone)


def date(at: datetime, now: datetime, zone: tzinfo) -> str:
    """12 Jan, 12 Jan 2025."""
    local = at.astimezone(zone)
    year = "" if local.year == now.astimezone(zone).year else f" {local.year}"
    return f"{local.day} {MONTHS[local.month - 1]}{year}"


def days_ago(at: datetime | None, now: datetime, zone: tzinfo) -> str:
    """never, today, yesterday, 2 days ago; counted in nights, as people do."""
    if at is None:
        return "never"
    days = (now.astimezone(zone).date() - at.astimezone(zone).date()).days
    if days < 2:
        return "yesterday" if days == 1 else "today"
    return f"{days} days ago"


def unread(files: int) -> str:
    """What a partial run says of the files it had to leave out; meant for its row's ``error``."""
    return f"{files} file{'' if files == 1 else 's'} could not be read"


def doubted(doubts: Collection[Doubt]) -> str:
    """photos: 4,012 of 4,020 files are gone; chat: 12 GB of 20 GB are gone"""
    return "; ".join(f"{_one_line(d.source)}: {_loss(d)}" if d.source else _loss(d) for d in doubts)


def _loss(doubt: Doubt) -> str:
    match doubt.what:
        case Loss.FILES:
            return f"{doubt.lost:,} of {files(doubt.before)} are gone"
        case Loss.BYTES:
            return f"{size(doubt.lost)} of {size(doubt.before)} are gone"
        case Loss.EVERYTHING:
            return f"nothing is left of {files(doubt.before)}"
        case Loss.ENTRIES:
            return f"nothing is left of {doubt.before:,} entries"
        case Loss.CONTENT:
            return f"{doubt.lost:,} of {files(doubt.before)} are not what they were"
        case Loss.UNTOLD:
            return "somebody noted that it looks wrong"


def question(doubts: Collection[Doubt]) -> str:
    """Did someone remove 4,012 files?"""
    asked = {
        Loss.FILES: lambda d: f"Did someone remove {files(d.lost)}?",
        Loss.BYTES: lambda d: f"Did someone remove {size(d.lost)}?",
        Loss.EVERYTHING: lambda d: f"Did someone remove {'all ' if d.lost > 1 else ''}{files(d.lost)}?",
        Loss.ENTRIES: lambda d: f"Did someone remove all {d.lost:,} entries?",
        Loss.CONTENT: lambda d: f"Did someone change {files(d.lost)}?",
    }
    worst = max((d for d in doubts if d.what in asked), key=lambda d: d.lost / max(1, d.before), default=None)
    return asked[worst.what](worst) if worst else "Is it as it should be?"


def status_message(report: StatusReport, now: datetime, zone: tzinfo) -> str:
    """The answer to ``/backup-status``, in lines. Who is healthy hears how much is stored, who is not what to do."""
    lines = ["Backup Status:"]
    if report.in_progress and report.last:
        lines.append(f"Running now: a backup since {inline(moment(report.in_progress.created_at, now, zone))}")
    if report.copying:
        lines.append(f"Running now: {copying(report.copying)}")
    lines.append(f"Last backup: {_last(report, now, zone)}")
    if report.last and report.last != report.last_good:
        lines.append(f"Last good backup: {_good(report.last_good, now, zone)}")
    if not report.problems:
        lines.append(f"Local backups: {report.stored_count} stored ({size(report.stored_bytes)} total)")
    if report.usb_expected:
        unknown = report.history_away and report.usb_copied_at is None
        lines.append(f"USB backup: {'not known right now' if unknown else days_ago(report.usb_copied_at, now, zone)}")
    if len(report.drives) > 1:
        lines += [f"- {drive_age(drive, now, zone)}" for drive in report.drives]
    if report.free_bytes is not None and {Problem.NO_ROOM, Problem.SPACE_SHORT} & set(report.problems):
        lines.append(f"Space: {_space(report.free_bytes, report.days_left or 0, report.problems)}")
    lines.append(f"Health: {_health(report)}")
    if report.last and report.last.retry_at and report.last.retry_at > now and not report.in_progress:
        lines.append(f"It is tried again at {time_of_day(report.last.retry_at.astimezone(zone))}.")
    if report.elsewhere:
        lines.append("Note: this is what that machine wrote down itself; its backups cannot be looked at from here.")
    if report.history_away:
        lines.append("Note: the backup history cannot be reached right now; this is told from the backups on disk.")
    return "\n".join(lines)


def details(report: StatusReport, tell: Tell, now: datetime, zone: tzinfo) -> list[str]:
    """What somebody may want to know beyond the status, in lines of printable text: why the last backup failed, in the
    words of its error, what the last good one holds, by ``tell``, and how that was made.
    """
    lines = []
    if report.last and report.last.status is Status.FAILED and report.last.error:
        lines.append(f"What went wrong: {error_line(report.last.error)}")
    run = report.last_good
    lines += [f"Drive {drive_age(drive, now, zone)}" for drive in report.drives]
    read = covered(report.coverage, now, zone) if report.coverage else []
    if run is None:
        return lines + read
    lines += [of_source(s, tell(s, now, zone)) for s in report.sources[:_SOURCES_LISTED]]
    if (more := len(report.sources[_SOURCES_LISTED:])) > 0:
        lines.append(f"… and {more:,} more")
    lines += [f"Last checked: {_checked(run, report.history_away, now, zone)}", *read]
    if report.drill:
        lines.append(restore_test(report.drill, now, zone))
    if report.drill_late:
        last = "The last restore test is too long ago" if report.drill else "No backup was ever brought back to try it"
        lines.append(f"{last}; to make one, type: memu-backup drill")
    if report.free_bytes is not None:
        lines.append(f"Space: {size(report.free_bytes)} left for backups")
    if run.downtime_seconds:
        lines.append(f"Services stood still for {duration(run.downtime_seconds)}")
    return lines


def covered(coverage: Coverage, now: datetime, zone: tzinfo) -> list[str]:
    """Re-read within 30 days: 97 % of 1.2 TB; longest unread: 2026-10-30 02:04"""
    if not (coverage.total_bytes and coverage.oldest_at):
        return []
    part = coverage.read_bytes * 100 // coverage.total_bytes
    oldest = f"; longest unread: {moment(coverage.oldest_at, now, zone)}" if part < 100 else ""
    lines = [f"Re-read within {coverage.every_days} days: {part} % of {size(coverage.total_bytes)}{oldest}"]
    if coverage.behind:
        lines.append(
            "Re-reading is far behind: it goes on each night after the backup, for as long as the machine is on. To do "
            "it now, type: memu-backup verify --due"
        )
    return lines


def restore_test(drill: Drill, now: datetime, zone: tzinfo) -> str:
    """Restore tested: Sunday, everything came back (312 MB in 9 s)"""
    day = _day(drill.created_at, now, zone)
    of = f" of the copy {_lay_at(drill.lay_at)}" if drill.lay_at else ""
    why = _cut(_one_line(" ".join(drill.problems[:1])), _LONGEST_ERROR).removesuffix(".")
    if drill.outcome is Tried.UNTRIED:
        return f"Restore test: {day} it could not be made{of} - {inline(why)}"
    came = f"everything{of} came back ({size(drill.size_bytes)} in {duration(max(1, drill.seconds))})"
    if drill.outcome is Tried.FAILED:
        whole = f"; it is whole in {_one_line(drill.whole_in)}" if drill.whole_in else ""
        came = f"NOT everything{of} came back - {inline(why)}{whole}"
    part = f"; {_counted(len(drill.unchecked), 'part')} could only be compared" if drill.unchecked else ""
    return f"Restore tested: {day}, {came}{part}"


def _lay_at(where: str) -> str:
    return f"in {_one_line(where)}" if where.startswith("/") else f"on {the_drive(where)}"


def copying(at: Copying) -> str:
    """Copying to 'blue drive': 41 % (5.1 GB of 12 GB)"""
    moment, total = at.progress, at.progress.total_bytes
    what = "reading back the copy on" if moment.phase is Phase.COMPARING else "copying to"
    done = f": {moment.done_bytes * 100 // total} % ({size(moment.done_bytes)} of {size(total)})" if total else ""
    return f"{what} {the_drive(at.called)}{done}"


def the_drive(called: str) -> str:
    """'SanDisk_Family' drive, 'blue drive'"""
    return f"'{called}'" if called.casefold().endswith("drive") else f"'{called}' drive"


def drive_age(drive: Drive, now: datetime, zone: tzinfo) -> str:
    """'blue drive' (at grandma's): 12 days ago, 3 backups"""
    kept = f" ({drive.kept_at})" if drive.kept_at else ""
    copies = f", {_counted(drive.copies, 'backup')}" if drive.last_copied_at else ""
    return f"{the_drive(drive.called)}{kept}: {days_ago(drive.last_copied_at, now, zone)}{copies}"


def of_source(summary: SourceSummary, told: str) -> str:
    """Photos: 12,431 files, newest from yesterday; ``told`` is the phrase of its kind.

    Names come out of an archive that may be a stranger's, and have to fit on a line and into a message."""
    name = _one_line(summary.name.replace("-", " ").replace("_", " "))
    name = _cut(name, _LONGEST_NAME)
    # Sockets, which every running service has, are counted but not warned of: nobody needs to hear of them alone.
    left_out = f"; {summary.skipped:,} left out" if summary.skipped and summary.warnings else ""
    lacks = "; something is missing" if summary.missing else ""
    return f"{name[:1].upper()}{name[1:]}: {_one_line(told)}{left_out}{lacks}"


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]}…"


def error_line(error: str) -> str:
    """The sentence of a row on one line of bearable length."""
    return _cut(_one_line(error), _LONGEST_ERROR)


def _one_line(text: str) -> str:
    return " ".join(printable(text).split())


def _checked(run: Run, history_away: bool, now: datetime, zone: tzinfo) -> str:
    if run.verified_at is None:
        return "not known right now" if history_away else "never in full"
    return f"{moment(run.verified_at, now, zone)} - every byte was read back"


def _last(report: StatusReport, now: datetime, zone: tzinfo) -> str:
    run = report.last
    if run is None:
        if report.in_progress is None:
            return "not known" if Problem.CANNOT_LOOK in report.problems else "none yet"
        return f"the first one is running since {inline(moment(report.in_progress.created_at, now, zone))}"
    when = moment(run.created_at, now, zone)
    if run.status is Status.FAILED:
        return f"FAILED {inline(when)} - {reason(run.error_code).what}"
    if run.suspicious:
        return f"SUSPICIOUS {inline(when)} ({size(run.size_bytes)}) - {what_lacks(run)}"
    if run.status is Status.PARTIAL:
        return f"INCOMPLETE {inline(when)} ({size(run.size_bytes)}) - {what_lacks(run)}"
    return f"{when} ({size(run.size_bytes)})"


def _good(run: Run | None, now: datetime, zone: tzinfo) -> str:
    return f"{moment(run.created_at, now, zone)} ({size(run.size_bytes)})" if run else "none"


def what_lacks(run: Run) -> str:
    """What an incomplete backup lacks, inside a sentence."""
    said = " ".join((run.error or "").split()).removesuffix(".")
    return said or "something could not be read"


def _space(free_bytes: int, days_left: int, problems: Collection[Problem]) -> str:
    if Problem.NO_ROOM in problems:
        until = "the next backup does not fit"
    else:
        until = f"at the present growth it will be full in {about_days(days_left)}"
    return (
        f"The backup disk has {size(free_bytes)} left for backups; {until}. "
        "Free up space, add storage, or keep fewer backups."
    )


def about_days(days: int) -> str:
    """about 9 days, less than a day"""
    return f"about {days} day{'' if days == 1 else 's'}" if days else "less than a day"


def _health(report: StatusReport) -> str:
    """One line for the most pressing problem: the one thing to do now."""
    if not report.problems:
        return "All systems healthy"
    match report.problems[0]:
        case Problem.SERVICES_DOWN:
            return "Not everything runs again after a backup - on the server, type: memu-backup services recover"
        case Problem.LAST_FAILED:
            todo = reason(report.last.error_code if report.last else None).todo
            return f"Last backup failed - {inline(todo)}"
        case Problem.CANNOT_LOOK:
            return "The backups cannot be looked at from here - check that the backup disk is connected, or ask as root"
        case Problem.BACKUP_GONE:
            return "Backups are missing from their place - check that the backup disk is connected"
        case Problem.NOT_MARKED:
            if report.last is None and report.in_progress is None:
                return "No backup here - connect the backup disk, or start the first backup by hand if there is none"
            return "The backup disk is not in its place - connect it, or start a backup by hand if this is a new one"
        case Problem.SUSPICIOUS:
            return "The last backup looks wrong - is it as it should be? !backup accept, or: memu-backup accept"
        case Problem.NOTHING_GOOD:
            return "There is no good backup - start one now"
        case Problem.OVERDUE:
            return "Backup overdue - start one now"
        case Problem.NO_ROOM:
            return "The backup disk is too full for the next backup - free up space or add storage"
        case Problem.LAST_PARTIAL:
            return "Last backup is incomplete - look at what could not be read"
        case Problem.NO_BACKUP:
            if report.in_progress:
                return "No backup yet - the first one is being made"
            return "No backup yet - start one now or wait for the first night"
        case Problem.OLDER_DAMAGED:
            return "An older backup is damaged - check the disk it lies on, newer backups are whole"
        case Problem.SPACE_SHORT:
            return "The backup disk will soon be full - free up space or add storage"
        case Problem.HISTORY_AWAY:
            return "Backup history out of reach - check that the database is running"
        case Problem.CHAT_ENDED:
            return "The bot was signed out of the chat - on the server, type: memu-backup chat login"
        case Problem.CHAT_BROKEN:
            return "The chat does not work - read the service's log, or sign the bot in anew: memu-backup chat login"
        case Problem.USB_OVERDUE:
            return "USB backup overdue - plug in your backup drive!"


def time_of_day(local: datetime) -> str:
    """2:05 AM"""
    # Not strftime: what %p gives depends on the machine's language.
    return f"{local.hour % 12 or 12}:{local.minute:02} {'AM' if local.hour < 12 else 'PM'}"


def inline(text: str) -> str:
    """For use inside a sentence: days of the week keep their capital, everything else loses it."""
    return text if text.startswith(WEEKDAYS) else text[:1].lower() + text[1:]


# --- which backup to take ---------------------------------------------------------------------------------------------

_STATES: Mapping[str, str] = {
    "good": "whole",
    "incomplete": "NOT COMPLETE: something could not be read when it was made",
    "damaged": "DAMAGED: what can be read of it goes into a folder",
    "unreadable": "does not tell what it holds: another program made it, or it is damaged",
}


def how_good(
    state: str, backup: Backup, verified_at: datetime | None, tried: Drill | None, now: datetime, zone: tzinfo
) -> str:
    """whole, read back today 2:09 AM; tried Sunday, and everything came back; pinned

    ``state`` is one of ``catalog``, ``tried`` the newest restore test that came to an end.
    """
    what = f"LOOKS WRONG: {doubted(backup.doubts)}" if state == "suspicious" else _STATES[state]
    read = f", read back {inline(moment(verified_at, now, zone))}" if verified_at and state != "damaged" else ""
    came = ""
    if tried:
        all_of_it = "and everything" if tried.outcome is Tried.WHOLE else "and NOT everything"
        came = f"; tried {inline(_day(tried.created_at, now, zone))}, {all_of_it} came back"
    return f"{what}{read}{came}{'; pinned' if backup.pinned else ''}"


# --- what a backup holds ---------------------------------------------------------------------------------------------


def database_in_the_way(name: str, tables: int) -> str:
    """database immich with 61 tables"""
    return f"database {printable(name)} with {tables:,} table{'' if tables == 1 else 's'}"


def tree(summary: SourceSummary, now: datetime, zone: tzinfo) -> str:
    """12,431 files, newest from yesterday: a source of which nothing is known but its files."""
    counts = files_and_links(summary.files, summary.links)
    if summary.newest_mtime is None:
        return counts
    try:
        return f"{counts}, newest from {inline(_day(summary.newest_mtime, now, zone))}"
    except OverflowError:  # it may lie on the last of all days, which has no local time east of Greenwich
        return counts


def databases(number: int, rows: int | None) -> str:
    """2 databases, 12,034 rows; ``rows`` is None where nobody counted them."""
    return _counted(number, "database") + (f", {_counted(rows, 'row')}" if rows is not None else "")


def databases_checked(number: int, *, damaged: int, in_part: int) -> str:
    """3 databases, all whole; 1 database, whole; with those that are damaged, or could only be checked in part."""
    counted = _counted(number, "database")
    if damaged:
        return f"{counted}, damaged" if number == 1 else f"{counted}, {damaged:,} of them damaged"
    whole = "whole" if number == 1 else "all whole"
    return f"{counted}, {whole} as far as can be told here" if in_part else f"{counted}, {whole}"


def recalled(tables: int, rows: int, told: int | None) -> str:
    """What is in databases that were put back, beside how many rows were backed up, as far as that is known."""
    there = f"{_counted(tables, 'table')} and {_counted(rows, 'row')}"
    return there if told is None else f"{there}, {_beside(rows, told)}"


def keys_recalled(number: int, told: int | None) -> str:
    return keys(number) if told is None else f"{keys(number)}, {_beside(number, told)}"


def _beside(number: int, told: int) -> str:
    return "as in the backup" if number == told else f"in the backup {told:,}"


def keys(number: int) -> str:
    """1 key, 1,204 keys."""
    return _counted(number, "key")


def database_server(major: int, size_bytes: int) -> str:
    """the whole database server (PostgreSQL 16, 2.1 GB)"""
    return f"the whole database server (PostgreSQL {major}, {size(size_bytes)})"


# --- a file that was found -------------------------------------------------------------------------------------------


def changed(mtime_ns: int, now: datetime, zone: tzinfo) -> str:
    """When a file was changed: as ``moment``, inside a sentence."""
    try:
        return inline(moment(datetime.fromtimestamp(mtime_ns // 10**9, UTC), now, zone))
    except (ValueError, OverflowError, OSError):  # filesystems hold times that no calendar has
        return "at an odd time"


def held(rows: Sequence[Sequence[datetime]], now: datetime, zone: tzinfo) -> str:
    """in 1 backup, 12 Jan; in 12 backups, 2 Mar to 13 Mar; and 1 more: those in a row, newest first, and the others."""
    first, last = (date(rows[0][end], now, zone) for end in (-1, 0))
    count, more = len(rows[0]), sum(map(len, rows[1:]))
    days = first if first == last else f"{first} to {last}"
    return f"in {count} backup{'' if count == 1 else 's'}, {days}{f'; and {more} more' if more else ''}"


def bring_back(path: str, backup: str) -> str:
    """How to have a file back out of a ``backup``, as a command to be copied: nothing in it is cut."""
    wanted = shlex.quote(as_pattern(path))
    return f"To bring one back: memu-backup restore {shlex.quote(backup)} --path {wanted} --to FOLDER"


def as_pattern(path: str) -> str:
    """A path in a backup, as it can be typed for ``--path``."""
    # What cannot be shown cannot be typed either; a question mark fits it.
    return path if path.isprintable() else "".join(c if c.isprintable() else "?" for c in glob.escape(path))


def nothing_found(pattern: str, backups: int) -> str:
    """What to try next. ``pattern`` as it was typed."""
    where = "the backup" if backups == 1 else f"any of {backups} backups"
    stem = re.sub(r"[*?\[\]\\]", "", pattern.rstrip("/").rpartition("/")[2]).partition(".")[0]
    wider = f"*{stem}*"
    if not stem or wider == pattern:
        return f"Nothing in {where} fits {pattern}. Try less of the name, between stars: memu-backup find '*part*'"
    return f"Nothing in {where} fits {pattern}. Try a part of the name: memu-backup find {shlex.quote(wider)}"

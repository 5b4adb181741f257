"""Every message that the bot can send, in one place, to be read and translated in one sitting; the status itself stands
in ``words``.

Alert and reminder are worded as in the Memu specification. The first line is a title where a message goes by mail. Of
several jobs each message names its own, ``job``; empty where there is only one.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, tzinfo

from memu_backup.model import Copied, Doubt, Drill, Drive, Loss, Progress, Run, Status, Trigger
from memu_backup.words import (
    PHASES,
    about_days,
    doubted,
    error_line,
    inline,
    moment,
    question,
    reason,
    restore_test,
    size,
    the_drive,
    time_of_day,
    what_lacks,
)

_LISTED = 10
_NAMED = 3

# --- what it says by itself ------------------------------------------------------------------------------------------


def failed(run: Run, now: datetime, zone: tzinfo, job: str = "") -> str:
    """``run`` has failed."""
    why = reason(run.error_code)
    return _alert(f"{_which(run, now, zone)} failed: {why.what}{_lost(run)}", why.todo, job)


def _lost(run: Run) -> str:
    """Of a damaged backup what it lost, and where that is whole: a line of its own."""
    return f"\n{error_line(run.error)}" if run.error_code == "damaged" and run.error else ""


def incomplete(run: Run, now: datetime, zone: tzinfo, job: str = "") -> str:
    """``run`` made a backup that lacks something."""
    what = f"{_which(run, now, zone)} is incomplete: {what_lacks(run)}"
    return _alert(what, "To see what it lacks, on the server, type: memu-backup show latest", job)


def suspicious(
    run: Run, doubts: Sequence[Doubt], last_good: Run | None, now: datetime, zone: tzinfo, job: str = ""
) -> str:
    """``run`` made a backup for which there are ``doubts``, compared with the ``last_good`` one; a question."""
    more = f"; and {len(doubts) - _NAMED} more" if len(doubts) > _NAMED else ""
    what = f"{doubted(doubts[:_NAMED])}{more}" if doubts else what_lacks(run)
    since = f", compared with {inline(moment(last_good.created_at, now, zone))}" if last_good else ""
    return (
        f"{_titled('Backup Question', job)}\n"
        f"{_which(run, now, zone)} looks wrong{since}. {_capital(what)}. {question(doubts)}\n"
        "If so, an admin puts a 👍 under this message, or writes !backup accept "
        "(on the server: memu-backup accept)\n"
        f"If not, {_if_not(doubts)}\n\n"
        "All older backups are safe: until this is settled none of them is removed."
    )


def _if_not(doubts: Sequence[Doubt]) -> str:
    if any(doubt.what is Loss.CONTENT for doubt in doubts):
        return "something may be destroying them right now: turn the server off, and ask whoever looks after it."
    return "look for them now; their disk may be away. Once all is back, the next backup is good without an answer."


def overdue(last_good: Run, now: datetime, zone: tzinfo, job: str = "") -> str:
    """No good backup came since, though none failed."""
    since = inline(moment(last_good.created_at, now, zone))
    return _alert(f"There is no good backup since {since}", "Start one now, and look why none was made", job)


def damaged(runs: Sequence[Run], now: datetime, zone: tzinfo, job: str = "") -> str:
    """Older backups, at least one, were found damaged; ``runs`` are theirs, newest first."""
    times = [inline(moment(run.created_at, now, zone)) for run in runs[:_NAMED]]
    more = len(runs) - len(times)
    if len(runs) == 1:
        what = f"The older backup of {times[0]} is damaged{_lost(runs[0])}"
        return _alert(what, "Check the disk it lies on", job)
    what = f"{len(runs)} older backups are damaged: {', '.join(times)}{f' and {more} more' if more else ''}"
    return _alert(f"{what}{_lost(runs[0])}", "Check the disk they lie on", job)


def space_short(free_bytes: int, days_left: int) -> str:
    what = f"The backup disk will be full in {about_days(days_left)} ({size(free_bytes)} left)"
    return _alert(what, "Free up space, add storage, or keep fewer backups")


def no_room(free_bytes: int) -> str:
    what = f"The next backup does not fit on the backup disk ({size(free_bytes)} left)"
    return _alert(what, "Free up space, add storage, or keep fewer backups")


def drill_failed(drill: Drill, now: datetime, zone: tzinfo, job: str = "") -> str:
    """A backup was brought back to try it, and not all of it came back."""
    of = f", on {the_drive(drill.lay_at)}," if drill.lay_at else ""
    which = f"the backup of {inline(moment(drill.made_at, now, zone))}{of}"
    more = f" (and {len(drill.problems) - 1} more)" if len(drill.problems) > 1 else ""
    why = " ".join(" ".join(drill.problems[:1]).split()).removesuffix(".")
    what = f"A restore test found that not all of {which} comes back: {why}{more}"
    if drill.whole_in:
        return _alert(
            f"{what}\nAll of that is whole in {drill.whole_in}",
            f"Start a new backup. What is needed now comes out of that one: memu-backup restore {drill.whole_in}",
            job,
        )
    if drill.lay_at:
        return _alert(
            f"{what}\nWhat lies on the server is not concerned",
            "Plug that drive in again for a new copy, or use another drive",
            job,
        )
    return _alert(
        f"{what}\nNo other backup was found in which it is whole",
        "Start a new backup, and when it is done, on the server, type: memu-backup drill",
        job,
    )


def services_down(names: Sequence[str]) -> str:
    """What was stopped for a backup did not come up again; ``names`` are at least one."""
    more = len(names) - _NAMED
    listed = ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return _alert(
        f"After a backup not everything came up again: {listed}", "On the server, type: memu-backup services recover"
    )


def history_away() -> str:
    what = "The backup history has been out of reach for an hour; backups go on, and nothing is lost"
    return _alert(what, "Check that the database is running")


def signed_out() -> str:
    """Never in the room, where nothing can be said any more."""
    return (
        "Backup Alert\n"
        "The bot was signed out of the family's room and can tell nobody there; backups go on\n"
        "Action needed: On the server, type: memu-backup chat login"
    )


def chat_broken() -> str:
    """Never in the room, either."""
    return (
        "Backup Alert\n"
        "The bot does not work and can tell nobody in the family's room; backups go on\n"
        "Action needed: On the server, read the service's log, or type: memu-backup chat login"
    )


def well(run: Run, now: datetime, zone: tzinfo, job: str = "") -> str:
    """After an alert: ``run`` made a good backup."""
    return f"{_titled('All well again', job)}\n{_which(run, now, zone)} worked ({size(run.size_bytes)})."


def well_space(free_bytes: int | None) -> str:
    left = "" if free_bytes is None else f" ({size(free_bytes)} left)"
    return f"All well again\nThe backup disk has room again{left}."


def well_drill(drill: Drill, now: datetime, zone: tzinfo, job: str = "") -> str:
    """After a restore test that failed."""
    return f"{_titled('All well again', job)}\n{restore_test(drill, now, zone)}."


def well_services() -> str:
    return "All well again\nWhat the backup had stopped runs again."


def well_history() -> str:
    return "All well again\nThe backup history can be reached again."


def well_chat() -> str:
    return "All well again\nThe bot is back in the family's room."


def completed(run: Run, now: datetime, zone: tzinfo, job: str = "") -> str:
    """Only where the settings ask for it."""
    return f"{_titled('Backup Complete', job)}\n{_which(run, now, zone)} worked ({size(run.size_bytes)})."


def reminder(usb_copied_at: datetime | None, size_bytes: int, now: datetime, zone: tzinfo) -> str:
    """Each week while the copy on a drive is old; ``size_bytes`` is what the next copy will write, 0 if not known."""
    if usb_copied_at is None:
        since = "You have no USB backup yet."
    else:
        days = (now.astimezone(zone).date() - usb_copied_at.astimezone(zone).date()).days
        since = f"It's been {days} days since your last USB backup."
    lines = [
        "Weekly Backup Reminder",
        since,
        "",
        "Plug in your backup drive to save a copy of your family's data.",
    ]
    return "\n".join([*lines, *([f"Current backup size: ~{size(size_bytes)}"] if size_bytes else [])])


# --- drives ----------------------------------------------------------------------------------------------------------

_DRIVE_TODO = {
    "drive_gone": "Plug it in again, and leave it until you are told that it may be removed",
    "drive_full": "Delete something from it, or use a larger drive",
    "drive_read_only": "Use another drive, or let it be written to: some have a little switch",
    "drive_unfit": "Use another drive, or have this one formatted as exFAT",
    "drive_broken": "Have it checked on a computer, or use another drive",
    "copy_differs": "Use another drive",
    "damaged": "Start a new backup and check the disk it lies on",
}


def drive_new(drive: Drive) -> str:
    """A drive that nobody approved; asked once."""
    size_and_kind = f"{size(drive.size_bytes)}, {drive.filesystem}"
    return (
        f"A new drive '{drive.called}' ({size_and_kind}) was plugged in. Use it for backups? "
        f"An admin can answer `!backup trust {drive.called}`\n"
        "The copies are not encrypted: whoever holds the drive can read keys, .env and chats on it."
    )


def drive_unfit(drive: Drive, why: str) -> str:
    """One that could not get copies, even if somebody approved it; told once."""
    return f"A new drive '{drive.called}' was plugged in, and cannot get backups. {why}"


def drive_trusted(drive: Drive) -> str:
    """The answer to whoever approved it."""
    return f"{_capital(the_drive(drive.called))} gets the latest backup whenever it is plugged in."


def drive_copying(drive: Drive, size_bytes: int, seconds: float) -> str:
    """At the start; ``seconds`` is a guess."""
    minutes = max(1, round(seconds / 60))
    about = (
        f"about {minutes} minute{'' if minutes == 1 else 's'}"
        if minutes < 100
        else f"about {round(minutes / 60)} hours"
    )
    return f"{_capital(drive.name or the_drive(drive.called))} seen. Copying {size(size_bytes)}, {about}."


def drive_done(drive: Drive, copied: Sequence[Copied], there: Sequence[Copied], held_by: Sequence[str]) -> str:
    """All that was to be copied lies there. ``held_by`` are the places where somebody else still has it."""
    if copied:
        what = f"Copied latest backup to {the_drive(drive.called)}."
    else:
        what = f"The latest backup lies on {the_drive(drive.called)} already."
    return "\n".join(["USB Backup Complete", what, *_files(copied or there), "", may_be_pulled(held_by)])


def drive_more(drive: Drive, copied: Sequence[Copied], there: Sequence[Copied]) -> str:
    """The newest is on it, and a newer one is just being made."""
    more = "A new backup is being made right now and follows; leave the drive plugged in."
    what = f"The latest backup lies on {the_drive(drive.called)}."
    return "\n".join(["USB Backup", what, *_files(copied or there), "", more])


def drive_free(drive: Drive) -> str:
    """Nobody has it any more."""
    return f"{_capital(the_drive(drive.called))} is not in use any more.\n\n{may_be_pulled(())}"


def drive_failed(drive: Drive, why: str, code: str) -> str:
    """``why`` is a sentence about "it", ``code`` one of ``errors``."""
    todo = _DRIVE_TODO.get(code, "Plug it in again")
    if code == "drive_unknown":
        todo = f"If it is to be used, an admin answers !backup trust {drive.called}"
    older = " The older copies that lie on it are untouched." if drive.copies else ""
    return f"USB Backup Failed\n{_capital(the_drive(drive.called))}: {why}{older}\nAction needed: {todo}"


def drive_twice(drive: Drive) -> str:
    return (
        "USB Backup Failed\n"
        f"Two drives are plugged in that both say they are {the_drive(drive.called)}: one is a copy of the other, so "
        "neither gets anything.\n"
        "Action needed: Pull one of them out"
    )


def _files(archives: Sequence[Copied]) -> list[str]:
    return [f"File: {archive.name} ({size(archive.size_bytes)})" for archive in archives]


def may_be_pulled(held_by: Sequence[str]) -> str:
    """Whether, by the places where somebody still has it."""
    if not held_by:
        return "Safe to remove the drive."
    where = " and ".join(filter(None, held_by))
    at = f"at {where}" if where else "elsewhere on the server"
    return f"Do not remove the drive yet: it is still open {at}. Eject it there first."


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def another_way(text: str) -> str:
    """A message that could not be said in the room, as it goes by mail or the like."""
    return f"{text}\n\nThe family's room cannot be reached right now, so this comes another way."


def test(host: str) -> str:
    """What is sent to see whether it arrives."""
    return f"Backup Test\nThis is a test from {host}. Nothing has happened; if something does, you are told here."


def _alert(what: str, todo: str, job: str = "") -> str:
    return f"{_titled('Backup Alert', job)}\n{what}\nAction needed: {todo}\n\nUse /backup-status for details"


def _titled(title: str, job: str) -> str:
    return f"{title} ({job})" if job else title


def _which(run: Run, now: datetime, zone: tzinfo) -> str:
    """Last night's is only what the timetable began in the night that just was."""
    local, today = run.created_at.astimezone(zone), now.astimezone(zone).date()
    days = (today - local.date()).days
    last_night = (days == 0 and local.hour < 6) or (days == 1 and local.hour >= 20)
    if run.trigger is Trigger.SCHEDULE and last_night:
        return "Last night's backup"
    if days == 0:
        return f"The backup at {time_of_day(local)}"
    return f"The backup of {inline(moment(run.created_at, now, zone))}"


# --- what it answers -------------------------------------------------------------------------------------------------


def help() -> str:
    """What the bot can be asked, and how."""
    return (
        "I can tell how the backups of this family stand. Write:\n"
        "!backup status - is everything safe?\n"
        "!backup list - which backups are there?\n"
        "!backup page - a link to the page in the browser\n"
        "!backup help - this text\n"
        "Admins can also write:\n"
        "!backup now - make a backup now\n"
        "!backup verify - read the newest backup back, every byte\n"
        "!backup snooze - no reminders for a week\n"
        "!backup accept - what I asked about a backup is as it should be\n"
        "!backup trust NAME - use this drive for copies\n"
        "\n"
        "/backup-status works too; in Element press Enter twice."
    )


def page(link: str) -> str:
    """The answer to whoever asked for it."""
    return f"This signs in whoever opens it first, within ten minutes, to look:\n{link}"


def no_page() -> str:
    return "The page is off. Whoever looks after the server can turn it on: enabled = true below [web] in its settings."


def slip(meant: str | None) -> str:
    """What somebody hears who meant the bot and mistyped."""
    return (
        f"Did you mean !backup {meant}?"
        if meant
        else "I did not understand that. Write !backup help to see what I can."
    )


def no_list(status: str) -> str:
    """The answer where no backup is to be seen: ``status`` tells whether there never was one, or its disk is away."""
    return f"No backup can be seen right now.\n\n{status}"


def listing(backups: Sequence[tuple[datetime, int, str]], now: datetime, zone: tzinfo) -> str:
    """The newest of at least one backup, each with when it was made, its size in bytes and its state."""
    shown = [f"{moment(at, now, zone)} - {size(size_bytes)}, {state}" for at, size_bytes, state in backups[:_LISTED]]
    more = len(backups) - len(shown)
    return "\n".join(["Backups:", *shown, *([f"… and {more} older"] if more > 0 else [])])


def which_job(jobs: Sequence[str]) -> str:
    """Several jobs, and none was named, or one that is not there."""
    return "\n".join(["Which backup? Write one of these:", *(f"!backup now {job}" for job in jobs)])


def which_drive(drives: Sequence[Drive]) -> str:
    """None was named, and there is not just one that was not approved."""
    if not drives:
        return "No drive waits to be approved. Plug it in first; I ask about each new one."
    return "\n".join(["Which drive? Write one of these:", *(f"!backup trust {drive.called}" for drive in drives)])


def another_one(run: Run, now: datetime, zone: tzinfo) -> str:
    """A backup was asked for, and there is a good one of today."""
    when = inline(moment(run.created_at, now, zone))
    return (
        f"There is a good backup of {when} ({size(run.size_bytes)}). Make another one now?\n"
        "Put a 👍 under this message, or write !backup yes."
    )


def nothing_asked() -> str:
    return "There is nothing to say yes to right now."


def nothing_waits() -> str:
    """Somebody accepts a backup, and none is suspicious, or not that one."""
    return "No backup waits for an answer like that right now."


def which_backup(names: Sequence[str]) -> str:
    """Several are suspicious, and none was named."""
    return "\n".join(["Which backup? Write one of these:", *(f"!backup accept {name}" for name in names)])


def accepted(made_at: Sequence[datetime], still_asks: str, now: datetime, zone: tzinfo) -> str:
    """The backups of these moments, newest first, count as good; ``still_asks`` is what is said of a newer one."""
    times = " and ".join(inline(moment(at, now, zone)) for at in made_at)
    said = f"Good. The backup of {times} is as it should be, and the next ones are compared with it."
    if len(made_at) > 1:
        said = f"Good. The backups of {times} are as they should be, and the next ones are compared with them."
    return f"{said} A newer one still looks wrong: {still_asks}." if still_asks else said


def running(since: datetime, now: datetime, zone: tzinfo) -> str:
    return f"A backup is being made already, since {inline(moment(since, now, zone))}. Ask again when it is done."


def begun() -> str:
    return "The backup has begun. I will tell here how it goes."


def broke() -> str:
    return (
        "Something unexpected happened, so this ended early; older backups are untouched. The server's log tells more."
    )


def checking(run_at: datetime, now: datetime, zone: tzinfo) -> str:
    return f"I am reading back the backup of {inline(moment(run_at, now, zone))}. I will tell here how it goes."


def progress(at: Progress) -> str:
    """How long work goes, in a message that is put anew."""
    done = PHASES[at.phase]
    if not at.done_bytes:
        return f"{done} …"
    if not at.total_bytes or at.done_bytes >= at.total_bytes:  # there is more than was thought
        return f"{done}: {size(at.done_bytes)} so far"
    percent = at.done_bytes * 100 // at.total_bytes
    return f"{done}: {percent} % ({size(at.done_bytes)} of {size(at.total_bytes)})"


def ended(run: Run, now: datetime, zone: tzinfo) -> str:
    """What became of the backup that somebody asked for."""
    if run.status is Status.SUCCESS:
        return f"The backup is done: {moment(run.created_at, now, zone)} ({size(run.size_bytes)})."
    if run.suspicious:
        return f"The backup is done ({size(run.size_bytes)}), but looks wrong: {what_lacks(run)}."
    if run.status is Status.PARTIAL:
        return f"The backup is done ({size(run.size_bytes)}), but incomplete: {what_lacks(run)}."
    why = reason(run.error_code)
    return f"The backup failed: {why.what}\nAction needed: {why.todo}"


def checked(run_at: datetime, problems: Sequence[str], unchecked: Sequence[str], now: datetime, zone: tzinfo) -> str:
    """What the reading back came to."""
    which = f"The backup of {inline(moment(run_at, now, zone))}"
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        return f"{which} is damaged: {problems[0]}{more}\nAction needed: {reason('damaged').todo}"
    if unchecked:
        return f"{which} was read back, every byte as it was written. Not all could be checked: {unchecked[0]}"
    return f"{which} is good: every byte was read back and compared."


def snoozed(until: datetime, now: datetime, zone: tzinfo) -> str:
    day = inline(moment(until, now, zone))
    return f"No reminders until {day}, nor alerts that you have had already. What is new I tell at once."

"""Everything that can go wrong, as one tree. Foreign exceptions are translated into it once, at the boundary.

    MemuError                  1   code "error"
    ├── UsageError             2   what was typed cannot be done as typed
    │   └── NotThere           2   …of that name there is none, or not any more
    │   ├── SettingsError      2   config.toml or the environment; holds every mistake found
    │   ├── UnknownBackup      2   no backup of that name
    │   └── BackupsMissing     2   by hand, into an empty folder in which backups were made: mount its disk, or say so
    ├── Declined               1   somebody who was asked said no, or stopped (130)
    ├── LockHeld              75   another run holds the backup directory
    ├── Interrupted            1   cancelled, or the daemon is stopping
    ├── SourceError            1   something to back up is not there or cannot be read
    │   └── DatabaseError      1   a database refuses, is too new, or is away
    ├── ServiceError           1   what should be stopped for a backup does not stop, or does not come up again
    │   ├── EngineError        1   Docker refuses; also a SourceError, as volumes and databases are reached by it
    │   │   └── EngineAway     1   …it does not answer now
    │   └── Disturbed          1   somebody started what stood still while its data was read
    ├── StoreError             1   the place for backups cannot be used
    │   ├── NotMounted         1   the folder does not carry our mark, so nothing is written there
    │   ├── DiskFull           1
    │   │   ├── NoInodes       1   it has room, but not for more files
    │   │   └── QuotaUsedUp    1
    │   └── WriteFailed        1   the disk took the data and then said no
    ├── ArchiveError           1
    │   ├── NotAnArchive       2   the file is something else
    │   ├── DamagedArchive     1   bytes differ from what was written
    │   │   └── SharedDamage   1   …in a backup that shares blocks with an older one: those may be the damaged ones
    │   └── HostileArchive     1   an entry that would write outside its folder
    ├── CannotCheck            1   a part of a backup could not be looked at, which says nothing about the part
    ├── RestoreError           1   target not empty, not enough space
    │   ├── HalfWay            1   …one was interrupted while names were exchanged: settle it first
    │   └── Stays              1   …what is there is never replaced, and nothing is lacking for it
    ├── DriveError             1   a drive cannot be copied to; what lies on it already is untouched
    │   ├── DriveGone          1   …it was pulled out, or does not answer any more
    │   ├── DriveFull          1
    │   ├── DriveReadOnly      1   …it cannot be written to
    │   ├── DriveUnfit         1   …its filesystem is none of those that copies go to
    │   ├── DriveUnknown       1   …nobody approved it, or it is not the one that it looks like
    │   ├── DriveBroken        1   …it gives errors
    │   └── CopyDiffers        1   …what was read back from it is not what was written
    ├── AccessError            1   who may use the page and the API is not to be had; backups are made all the same
    │   └── NotAllowed         1   …a token, a link or a session is not good, or not any more
    ├── ChatError              1   the chat cannot be used as it is; backups are made all the same
    │   ├── ChatAway           1   the homeserver does not answer, or asks for patience
    │   └── ChatRefused        1   the homeserver says no: waiting alone will not help
    │       └── LoginEnded     1   …as somebody has ended the bot's login: it has to be signed in again
    ├── AlertError             1   somebody outside could not be told; backups are made all the same
    └── HistoryAway            1   Postgres cannot be reached; nothing is lost, rows are spooled
        └── HistoryRefused     1   it answers, but waiting alone will not help (password, rights, newer schema)

The number is the exit status of the command line. ``str(error)`` is one sentence for the person who meets it:
what happened, what it means for their data, what to do. ``code`` never changes once it is released.
"""

from collections.abc import Sequence


class MemuError(Exception):
    """Root of the tree. ``retryable`` says whether waiting alone may help."""

    code: str = "error"
    retryable: bool = False
    exit_status: int = 1


class UsageError(MemuError):
    code = "usage"
    exit_status = 2


class NotThere(UsageError):
    """Of that name there is none, or not any more."""


class SettingsError(UsageError):
    """``problems`` holds one sentence a mistake, each with its path in the file."""

    code = "settings"

    def __init__(self, problems: Sequence[str], origin: str = "the settings") -> None:
        self.problems = tuple(problems)
        count = len(self.problems)
        head = f"{origin} has {count} mistake{'' if count == 1 else 's'}; nothing was started."
        super().__init__("\n".join([head, *(f"  {p}" for p in self.problems)]))


class UnknownBackup(UsageError):
    code = "unknown_backup"


class BackupsMissing(UsageError):
    code = "backups_missing"


class Declined(MemuError):
    """Before anything began; ``interrupted`` says that it was by Ctrl-C."""

    code = "declined"

    def __init__(self, *, interrupted: bool = False) -> None:
        super().__init__("Nothing was changed.")
        if interrupted:
            self.code, self.exit_status = "interrupted", 130


class LockHeld(MemuError):
    code = "lock_held"
    retryable = True
    exit_status = 75


class Interrupted(MemuError):
    code = "interrupted"
    retryable = True


class SourceError(MemuError):
    code = "source"


class DatabaseError(SourceError):
    code = "database"


class DatabaseAway(DatabaseError):
    """Cannot be reached now; may be back in a minute."""

    code = "database_away"
    retryable = True


class ServiceError(MemuError):
    code = "service"


class EngineError(ServiceError, SourceError):
    code = "engine"


class EngineAway(EngineError):
    code = "engine_away"
    retryable = True


class Disturbed(ServiceError):
    code = "disturbed"
    retryable = True


class StoreError(MemuError):
    code = "store"


class NotMounted(StoreError):
    code = "not_mounted"
    retryable = True


class DiskFull(StoreError):
    code = "disk_full"


class NoInodes(DiskFull):
    code = "no_inodes"


class QuotaUsedUp(DiskFull):
    code = "quota"


class WriteFailed(StoreError):
    code = "write_failed"


class ArchiveError(MemuError):
    code = "archive"


class NotAnArchive(ArchiveError):
    code = "not_an_archive"
    exit_status = 2


class DamagedArchive(ArchiveError):
    code = "damaged"


class SharedDamage(DamagedArchive):
    pass


class HostileArchive(ArchiveError):
    code = "hostile"


class CannotCheck(MemuError):
    """Nobody could look; whoever catches it must not take the backup for damaged, nor for proven."""

    code = "cannot_check"


class RestoreError(MemuError):
    code = "restore"


class HalfWay(RestoreError):
    code = "half_way"


class Stays(RestoreError):
    code = "stays"


class DriveError(MemuError):
    code = "drive"


class DriveGone(DriveError):
    code = "drive_gone"


class DriveFull(DriveError):
    code = "drive_full"


class DriveReadOnly(DriveError):
    code = "drive_read_only"


class DriveUnfit(DriveError):
    code = "drive_unfit"


class DriveUnknown(DriveError):
    code = "drive_unknown"


class DriveBroken(DriveError):
    code = "drive_broken"


class CopyDiffers(DriveBroken):
    code = "copy_differs"


class HistoryAway(MemuError):
    code = "history_away"
    retryable = True


class HistoryRefused(HistoryAway):
    code = "history_refused"
    retryable = False


class AccessError(MemuError):
    code = "access"


class NotAllowed(AccessError):
    code = "not_allowed"


class ChatError(MemuError):
    code = "chat"


class ChatAway(ChatError):
    """``wait_s`` is how long the homeserver asks to wait, 0 where it says nothing."""

    code = "chat_away"
    retryable = True

    def __init__(self, sentence: str, wait_s: float = 0.0) -> None:
        super().__init__(sentence)
        self.wait_s = wait_s


class ChatRefused(ChatError):
    """``session`` continues a request for which the homeserver wants the password once more, empty for any other."""

    code = "chat_refused"

    def __init__(self, sentence: str, session: str = "") -> None:
        super().__init__(sentence)
        self.session = session


class LoginEnded(ChatRefused):
    code = "chat_login_ended"


class AlertError(MemuError):
    code = "alert"
    retryable = True

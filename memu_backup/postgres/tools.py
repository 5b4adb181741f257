"""PostgreSQL's own programs: which of those on this machine fit a server, and what we ask of them.

A pg_dump refuses a server newer than itself, and a dump wants a pg_restore no older than the pg_dump that made it. A
machine may hold several versions; the newest is not the best one, the nearest is.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memu_backup import process
from memu_backup.errors import CannotCheck, DatabaseError, RestoreError
from memu_backup.postgres.connection import Address
from memu_backup.postgres.programs import programs

_NEEDED = ("pg_dump", "pg_dumpall", "pg_restore", "psql")
_CUSTOM_MAGIC = b"PGDMP"
_ASK_TIMEOUT_S = 20.0


@dataclass(frozen=True, slots=True)
class Tools:
    """pg_dump, pg_dumpall, pg_restore and psql of one version (``15.18``) in one folder."""

    folder: Path
    version: str

    @property
    def major(self) -> int:
        return int(self.version.split(".")[0])

    def program(self, name: str) -> str:
        return str(self.folder / name)


def tool_folders() -> list[Path]:
    """Where programs may lie, the system's before those of the wheel."""
    return [
        *sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True),
        *sorted(Path("/usr").glob("pgsql-*/bin"), reverse=True),
        *(Path(p) for p in os.environ.get("PATH", "").split(os.pathsep) if p),
        *_of_the_wheel(),
    ]


def _of_the_wheel() -> list[Path]:
    with suppress(DatabaseError):  # it may be missing where the system has programs of its own
        return sorted(programs().parent.parent.glob("pginstall*/bin"))
    return []


async def find_tools(major: int, folders: Iterable[Path] | None = None) -> Tools:
    """The programs that fit version ``major``: the same, else the nearest newer one. Of equals the first folder wins.

    Raises DatabaseError when there are only older ones or none.
    """
    found = [t for f in (tool_folders() if folders is None else folders) if (t := await _ask(f)) is not None]
    fitting = [t for t in found if t.major >= major]
    if fitting:
        return min(fitting, key=lambda t: t.major)
    there = f"the newest here is {max(found, key=lambda t: t.major).version}" if found else "there is none here"
    raise DatabaseError(
        f"This database needs pg_dump and pg_restore of PostgreSQL {major} or newer, and {there}; nothing was started. "
        f"Install them, on Debian with: apt install postgresql-client-{major}"
    )


_answers: dict[tuple[Path, int], Tools] = {}


async def _ask(folder: Path) -> Tools | None:
    """What lies in ``folder``, asked from pg_dump itself once a version of the file; None without all programs."""
    # Debian's /usr/bin/pg_dump is a script that picks a version by rules of its own: only real programs count.
    real = [(folder / name).resolve() for name in _NEEDED]
    if not all(p.is_file() and os.access(p, os.X_OK) and p.name != "pg_wrapper" for p in real):
        return None
    key = (real[0], real[0].stat().st_mtime_ns)
    if key not in _answers:
        try:
            done = await process.run([str(real[0]), "--version"], timeout_s=_ASK_TIMEOUT_S)
        except (OSError, TimeoutError):  # made for another machine, or hanging: not a program that can be used
            return None
        version = re.search(rb"\(PostgreSQL\) (\d+[.\d]*)", done.stdout)
        if done.returncode != 0 or version is None:
            return None
        _answers[key] = Tools(real[0].parent, version[1].decode())
    return _answers[key]


def reason(done: process.Completed) -> str:
    """Why a program failed: the line of its stderr that tells most, for use inside a sentence."""
    if done.returncode < 0:
        return f"it was ended by signal {-done.returncode}; the machine may be short of memory"
    lines = done.stderr.decode(errors="replace").splitlines()
    for mark in ("Error message from server: ", "error: ", "ERROR:  ", "FATAL:  "):
        for line in lines:
            if mark in line:
                return line.partition(mark)[2].strip().rstrip(".:")
    return done.last_error_line.rstrip(".")


_OWN_ERRORS = ("pg_restore: error: ", "pg_restore: [")  # the second until version 11
_NOT_OF_THE_DUMP = ("unsupported version", "out of memory", "not enough memory")


async def list_dump(blocks: Iterator[bytes], major: int) -> list[str]:
    """What ``pg_restore --list`` says of a dump in custom format, line by line. Reads no more of it than that needs.

    ``major`` is that of the pg_dump that made it. Raises DatabaseError with what pg_restore has against the dump,
    CannotCheck when it could not look, and what ``blocks`` raises. When cancelled, pg_restore and the thread that
    feeds it have ended before this returns.
    """
    try:
        tools = await find_tools(major)
    except DatabaseError as error:
        raise CannotCheck(f"The dump could not be looked at, which says nothing against it. {error}") from error
    try:
        argv = [tools.program("pg_restore"), "--list"]
        done = await process.run_fed(argv, blocks, env={"LC_ALL": "C"}, gentle=True)
    except OSError as error:
        raise CannotCheck(
            f"The dump could not be looked at, which says nothing against it: pg_restore {tools.version} did not run "
            f"({error.strerror}). Try again when the machine is less busy, or install that program anew."
        ) from error
    if done.returncode == 0:
        return done.stdout.decode(errors="replace").splitlines()
    told, why = done.stderr.decode(errors="replace"), reason(done)
    if not any(mark in told for mark in _OWN_ERRORS) or any(words in told for words in _NOT_OF_THE_DUMP):
        raise CannotCheck(
            f"The dump could not be looked at, which says nothing against it: pg_restore {tools.version} gave up "
            f"({why}). Try again, if need be with a newer postgresql-client and more free memory."
        )
    raise DatabaseError(f"pg_restore {tools.version} cannot read the dump: {why}.")


async def put_back(dump: Path, url: str, *, major: int, called: str = "") -> list[str]:
    """Load one dump, custom or plain, into the existing, empty database at ``url``, ``called`` otherwise later on.

    ``major`` is that of the pg_dump that made it (``pg_restore_major`` in the details). Owners and rights come back
    where their roles exist on the server; where not, what was left out is returned, a sentence each. Raises
    RestoreError when anything else fails; a plain dump then leaves the database empty, a custom one partly filled.
    """
    address = Address.parse(url)
    tools = await find_tools(major)
    with dump.open("rb") as file:
        custom = file.read(len(_CUSTOM_MAGIC)) == _CUSTOM_MAGIC
    if custom:
        argv = [tools.program("pg_restore"), "--no-password", f"--jobs={_JOBS}", f"--dbname={address.url}", str(dump)]
    else:
        argv = [
            tools.program("psql"), "--no-password", "--no-psqlrc", "--quiet", "--output=/dev/null",
            "--single-transaction", "--set=ON_ERROR_STOP=1", f"--file={dump}", f"--dbname={address.url}",
        ]  # fmt: skip
    done = await process.run(argv, env=address.environment)
    if done.returncode == 0:
        return []
    left_out = _rights_left_out(done.stderr.decode(errors="replace")) if custom else None
    if left_out is None:
        why = address.without_secret(reason(done))
        raise RestoreError(
            f"{dump.name} could not be put back as database {called or address.database}: {why}. The one that is there "
            "is as it was, and so is the backup."
        )
    return left_out


_JOBS = max(1, min(4, os.cpu_count() or 1))

_RIGHTS = re.compile(r"ALTER .* OWNER TO |GRANT |REVOKE |ALTER DEFAULT PRIVILEGES ")


def _rights_left_out(stderr: str) -> list[str] | None:
    """Sentences for what pg_restore skipped if that was only owners and rights, None if data may lack.

    pg_restore goes on after an error and prints the error and, if it was one of SQL, a line with the command.
    """
    errors = re.findall(r"^pg_restore: error: ", stderr, re.MULTILINE)
    commands = re.findall(r"^Command was: (.*)$", stderr, re.MULTILINE)
    if not errors or len(errors) > len(commands):
        return None
    # A server before 17 does not know this one; it only says that the restore may take its time.
    commands = [c for c in commands if not c.startswith("SET transaction_timeout")]
    if not all(_RIGHTS.match(c) for c in commands):
        return None
    return [f"Could not be put back: {c.rstrip(';')}." for c in commands]

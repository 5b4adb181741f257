"""PostgreSQL's own programs: which of those on this machine fit a server, and what we ask of them.

A pg_dump refuses a server newer than itself, and a dump wants a pg_restore no older than the pg_dump that made it. A
machine may hold several versions; the newest is not the best one, the nearest is.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from memu_backup import process
from memu_backup.errors import DatabaseError, RestoreError
from memu_backup.postgres_connection import Address
from memu_backup.postgres_server import programs

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
        *sorted(programs().parent.parent.glob("pginstall*/bin")),
    ]


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


async def list_dump(blocks: Iterator[bytes], major: int) -> list[str]:
    """What ``pg_restore --list`` says of a dump in custom format, line by line. Reads no more of it than that needs.

    ``major`` is that of the pg_dump that made it. Raises DatabaseError when it cannot be listed, and what ``blocks``
    raises. Cancelling ends pg_restore.
    """
    tools = await find_tools(major)
    child = await asyncio.create_subprocess_exec(
        tools.program("pg_restore"), "--list",
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "LC_ALL": "C"}, start_new_session=True,
    )  # fmt: skip
    assert child.stdin and child.stdout and child.stderr
    feeding = asyncio.create_task(_feed(child.stdin, blocks))
    try:
        stdout, stderr = await asyncio.gather(child.stdout.read(), child.stderr.read())
        returncode = await child.wait()
        await feeding
    finally:
        feeding.cancel()
        if child.returncode is None:
            child.kill()
            await child.wait()
    if returncode != 0:
        why = reason(process.Completed((), returncode, stdout, stderr))
        raise DatabaseError(f"pg_restore {tools.version} cannot read the dump: {why}.")
    return stdout.decode(errors="replace").splitlines()


async def _feed(stdin: asyncio.StreamWriter, blocks: Iterator[bytes]) -> None:
    try:
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            stdin.write(block)
            await stdin.drain()
    except (BrokenPipeError, ConnectionResetError):
        return  # it has read the list, which stands at the head, and left
    finally:
        stdin.close()
        with suppress(BrokenPipeError, ConnectionResetError):  # looked at, or asyncio before 3.11.3 complains of it
            await stdin.wait_closed()


async def put_back(dump: Path, url: str, *, major: int) -> list[str]:
    """Load one dump, custom or plain, into the existing, empty database at ``url``.

    ``major`` is that of the pg_dump that made it (``pg_restore_major`` in the details). Owners and rights come back
    where their roles exist on the server; where not, what was left out is returned, a sentence each. Raises
    RestoreError when anything else fails; a plain dump then leaves the database empty, a custom one partly filled.
    """
    address = Address.parse(url)
    tools = await find_tools(major)
    with dump.open("rb") as file:
        custom = file.read(len(_CUSTOM_MAGIC)) == _CUSTOM_MAGIC
    if custom:
        argv = [tools.program("pg_restore"), "--no-password", f"--dbname={address.url}", str(dump)]
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
            f"{dump.name} could not be put back into database {address.database}: {why}. The backup itself is "
            "unchanged; make the database anew before the next attempt."
        )
    return left_out


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

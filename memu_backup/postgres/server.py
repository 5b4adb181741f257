"""A private PostgreSQL out of a wheel: the history when no URL is set, and the scratch server for trying dumps.

The wheel's own Python is not used, only its programs: as root it would open every parent folder to everyone, make a
system user and listen with ``trust`` in a folder anyone may enter. Here the server lies in one folder of mode 0700
and listens on a socket in it, so that file rights are the authentication.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import hashlib
import logging
import os
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Self
from urllib.parse import quote

from memu_backup import process
from memu_backup.clock import now
from memu_backup.errors import DatabaseAway, DatabaseError
from memu_backup.postgres.programs import as_another_user, programs

log = logging.getLogger(__name__)

_SOCKET_PATH_LIMIT = 100
"""A unix socket's path holds 107 bytes; ``.s.PGSQL.5432`` is added to the folder's."""

_START_TIMEOUT_S = 30.0
_STOP_TIMEOUT_S = 3.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0)
_POLL_S = 0.005

_ASIDE = "data-set-aside-"
_KEPT_ASIDE = 2
_YOUNG_S = 3600.0
_LONGEST_LOG_BYTES = 4_000_000

_ANOTHER = (b" is still in use", b'.pid" already exists', b'.lock" already exists')
"""One that was killed, or whose start was cancelled, has not ended yet."""

_PASSING = (
    *_ANOTHER,
    b"No space left on device",
    b"Cannot allocate memory",
    b"Too many open files",
)
"""What keeps a server from starting with good data, too."""

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


class PostgresServer:
    """One server in one folder, shared by all processes that name the folder; the last to leave stops it.

    Who uses it holds a shared lock on ``users.lock``; the kernel drops it even after kill -9, so a crash leaves at
    worst a server running that the next user finds and adopts.
    """

    def __init__(self, folder: Path, options: Mapping[str, str] = MappingProxyType({})) -> None:
        """``options`` are settings of its own, beside ours."""
        self.folder = folder.absolute()
        self._options = {**_OPTIONS, **options}
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

        Data that cannot be opened (another major version's, damaged, incomplete) is set aside and an empty cluster
        takes its place, once it is certain that a new one can be made here. Raises DatabaseAway when it does not come
        up within 30 s and DatabaseError when it cannot be made.
        """
        if self._lock is not None:
            return
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self.folder.chmod(0o700)
        self._private_socket_folder()
        async with self._gate():  # one process at a time decides whether to start or stop
            if not self.data.exists():
                (await self._new_data()).rename(self.data)
            if not self.running():
                await self._end()  # one that lives without its socket, which somebody tidied away, serves nobody
                try:
                    await self._launch()
                except _Unusable as error:
                    await self._replace(error.why)
            self._lock = os.open(self.folder / "users.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            fcntl.flock(self._lock, fcntl.LOCK_SH)

    def identity(self) -> object:
        """What tells this data from other data in its place; None where there is none."""
        try:
            found = self.data.stat()
        except FileNotFoundError:
            return None
        return found.st_dev, found.st_ino

    async def replace(self, found: object) -> bool:
        """Set the data aside that had this ``identity``, though the server opens it: what is in it cannot be read.

        Whoever else uses the server loses the connection. Nothing happens where another process was quicker. False for
        data that was made within the last hour: it is something else that is wrong, and new data would be no better.
        Raises as ``start``.
        """
        async with self._gate():
            if self.identity() == found:
                with contextlib.suppress(FileNotFoundError):
                    if 0 <= time.time() - (self.data / "PG_VERSION").stat().st_mtime < _YOUNG_S:
                        return False
                await self._end()
                await self._replace("damaged")
        return True

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
            await self._end()

    async def _end(self) -> None:
        pid = self._pid()
        if pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)  # "fast" shutdown: sessions end, data is flushed
            deadline = time.monotonic() + _STOP_TIMEOUT_S
            while self._is_ours(pid) and time.monotonic() < deadline:
                await asyncio.sleep(_POLL_S)

    def _pid(self) -> int | None:
        """The server's process. After a crash its number may be anybody's, even that of the family's own Postgres."""
        try:
            pid = int((self.data / "postmaster.pid").read_bytes().split(b"\n", 1)[0])
        except (OSError, ValueError):
            return None
        return pid if self._is_ours(pid) else None

    def _is_ours(self, pid: int) -> bool:
        """Every Postgres works in its data folder, and no other program does in ours."""
        try:
            return Path(f"/proc/{pid}/cwd").samefile(self.data)
        except OSError:
            return False

    @contextlib.asynccontextmanager
    async def _gate(self) -> AsyncIterator[None]:
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)  # somebody may have removed it all under us
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

    async def _new_data(self) -> Path:
        """An empty cluster that has no name yet."""
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
        return half_made

    async def _replace(self, why: str) -> None:
        """Killed anywhere in here, the next ``start`` ends it: it finds either the old data or none."""
        if self._pid() is not None:  # it did not end when it was told to, and would go on in what is set aside
            raise DatabaseAway(self._not_started())
        # Made before anything is touched: it proves that disk, memory and programs are not what is wrong.
        half_made = await self._new_data()
        aside = self.folder / f"{_ASIDE}{now():%Y%m%d-%H%M%S}-{why}"
        self.data.rename(aside)
        half_made.rename(self.data)
        try:
            await self._launch()
        except _Unusable as error:
            shutil.rmtree(self.data, ignore_errors=True)
            aside.rename(self.data)
            raise DatabaseAway(self._not_started()) from error
        log.warning(
            "The history database in %s could not be used any more (%s); it was set aside as %s, and a new one was "
            "made. No backup is touched by this.", self.folder, why.replace("-", " "), aside.name,
        )  # fmt: skip
        for older in sorted(self.folder.glob(f"{_ASIDE}*"))[:-_KEPT_ASIDE]:
            shutil.rmtree(older, ignore_errors=True)

    async def _launch(self) -> None:
        """Raises _Unusable where the data is to blame, DatabaseAway where it may come up later."""
        if self._pid() is None:
            # After a power cut Postgres would refuse to start while any process of ours has the old one's number.
            for left_over in (self.data / "postmaster.pid", self.socket_folder / ".s.PGSQL.5432.lock"):
                left_over.unlink(missing_ok=True)
        if self._log.exists() and self._log.stat().st_size > _LONGEST_LOG_BYTES:
            self._log.replace(self.folder / "server.log.1")
        said = b""
        for pause_s in (*_PAUSES_S, None):
            told_before = self._log.stat().st_size if self._log.exists() else 0
            if await self._up():
                return
            said = self._log.read_bytes()[told_before:]
            if pause_s is None or not any(sign in said for sign in _ANOTHER):
                break
            await asyncio.sleep(pause_s)
        if b"unshare: unshare failed" in said:
            raise DatabaseError(self._forbidden())
        if any(passing in said for passing in _PASSING):
            raise DatabaseAway(self._not_started())
        raise _Unusable(await self._what_is_wrong())

    async def _up(self) -> bool:
        """Start the server and wait until it lets us in; False where it ended instead. Cancelled, it ends it."""
        child = self._spawn()
        deadline = time.monotonic() + _START_TIMEOUT_S
        try:
            while not self._ready(child.pid):
                if child.returncode is not None:
                    return False
                if time.monotonic() > deadline:
                    raise DatabaseAway(self._not_started())
                await asyncio.sleep(_POLL_S)
        except asyncio.CancelledError:
            child.send_signal(signal.SIGINT)
            raise
        return True

    def _spawn(self) -> subprocess.Popen[bytes]:
        """Not by pg_ctl, which looks ten times a second only, and makes a line for the shell of all this.

        Nor by asyncio, which ends its children with the loop: others may be using the server then.
        """
        sockets = '"' + str(self.socket_folder).replace('"', '""') + '"'  # a list of folders, each in quotes
        options = [f"--{name}={value}" for name, value in {**self._options, "unix_socket_directories": sockets}.items()]
        argv = [*as_another_user(), str(programs() / "postgres"), "-D", self.data.name, *options]
        with open(self._log, "ab", opener=lambda name, flags: os.open(name, flags, 0o600)) as log_file:
            child = subprocess.Popen(
                argv,
                cwd=self.folder,
                start_new_session=True,
                stdin=subprocess.DEVNULL,
                stdout=log_file,
                stderr=log_file,
            )
        # Buries it, whenever it ends.
        threading.Thread(target=child.wait, name="memu-postgres", daemon=True).start()
        return child

    def _ready(self, pid: int) -> bool:
        """Whether ``postmaster.pid`` says so, in its eighth line."""
        try:
            lines = (self.data / "postmaster.pid").read_bytes().split(b"\n")  # one of them is our path
        except OSError:
            return False
        return lines[0] == str(pid).encode() and lines[7:8] == [b"ready   "]

    async def _what_is_wrong(self) -> str:
        """In words that also do for the name of a folder."""
        done = await process.run([str(programs() / "postgres"), "--version"], timeout_s=_START_TIMEOUT_S)
        here = done.stdout.decode().split()[-1].partition(".")[0] if done.returncode == 0 else ""
        try:
            made_by = (self.data / "PG_VERSION").read_text("ascii", "replace").strip()
        except OSError:
            made_by = ""
        return f"made-by-PostgreSQL-{made_by}" if made_by.isdecimal() and made_by != here else "damaged"

    @property
    def _log(self) -> Path:
        return self.folder / "server.log"

    def _not_started(self) -> str:
        return f"The embedded database in {self.folder} did not start; its reasons are in {self._log}."

    def _forbidden(self) -> str:
        return (
            f"This machine does not let root run the embedded database in {self.folder} without root's rights: it "
            "forbids user namespaces. Allow them, set history.url to a Postgres of your own, or run memu-backup as "
            "an ordinary user."
        )

    async def _run(self, program: str, *argv: str) -> process.Completed:
        done = await process.run(
            [*as_another_user(), str(programs() / program), *argv],
            folder=self.folder,
            timeout_s=_START_TIMEOUT_S + 5,
        )
        if done.returncode != 0 and done.last_error_line.startswith("unshare: unshare failed"):
            raise DatabaseError(self._forbidden())
        return done


class _Unusable(Exception):
    """The programs are well, and this data is not. ``why`` also does for the name of a folder."""

    def __init__(self, why: str) -> None:
        super().__init__(why)
        self.why = why

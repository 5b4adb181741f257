"""A small household to back up, and the program as a person starts it: in a pipe, or on a terminal."""

from __future__ import annotations

import asyncio
import json
import os
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from threading import Thread
from typing import Any, TypeVar
from uuid import uuid4

import asyncpg

from memu_backup.clock import now
from memu_backup.config import load
from memu_backup.lock import NAME as LOCK
from memu_backup.manager import Manager, history_of, places
from memu_backup.mark import NAME as MARK
from memu_backup.postgres.programs import programs
from memu_backup.postgres.server import PostgresServer
from tests import warm

PROGRAM = str(Path(sys.executable).with_name("memu-backup"))
PHOTO = b"\xff\xd8\xff\xe0" + os.urandom(60_000)
ODD_NAMES = ("[bold red]sale[bold].jpg", "two\nlines.jpg", "\x1b[31mred\x07.jpg", ":smile:.jpg", "long" * 60 + ".jpg")

T = TypeVar("T")


def in_a_loop_of_its_own(work: Coroutine[Any, Any, T]) -> T:
    """Run ``work`` without touching the event loop that pytest-asyncio keeps for this thread."""
    outcome: list[T] = []
    failure: list[BaseException] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(work))
        except BaseException as error:
            failure.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    if failure:
        raise failure[0]
    return outcome[0]


async def query(url: str, *statements: str) -> list[dict[str, Any]]:
    """Run the statements; returns the rows of the last."""
    connection = await asyncpg.connect(url)
    try:
        for statement in statements[:-1]:
            await connection.execute(statement)
        return [dict(row) for row in await connection.fetch(statements[-1])]
    finally:
        await connection.close()


@contextmanager
def a_database(postgres: PostgresServer) -> Iterator[str]:
    """An empty database of the shared server, for fixtures that outlive one test."""
    name = f"test_{uuid4().hex}"
    in_a_loop_of_its_own(query(postgres.url(), f"CREATE DATABASE {name}"))
    try:
        yield postgres.url(name)
    finally:
        in_a_loop_of_its_own(query(postgres.url(), f"DROP DATABASE {name} WITH (FORCE)"))


@dataclass(frozen=True)
class Ran:
    """What a command did. ``seconds`` is wall-clock time."""

    status: int
    out: str
    err: str
    seconds: float

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Home:
    """A folder with photos, settings and a config.toml; backups go to ``backups``."""

    folder: Path
    history: str
    environ: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.photos.mkdir(parents=True)
        (self.photos / "2026").mkdir()
        (self.photos / "2026" / "lake.jpg").write_bytes(PHOTO)
        os.utime(self.photos / "2026" / "lake.jpg", ns=(1_750_000_000_123_456_789,) * 2)
        (self.photos / "2026" / "tent.jpg").write_bytes(PHOTO[::-1])
        (self.folder / ".env").write_text("DOMAIN=family.example\n")
        (self.folder / "nginx").mkdir()
        (self.folder / "nginx" / "nginx.conf").write_text("events {}\n")
        self.configure()

    @property
    def photos(self) -> Path:
        return self.folder / "photos"

    @property
    def backups(self) -> Path:
        return self.folder / "backups"

    @property
    def archives(self) -> list[Path]:
        """By name, the oldest first."""
        return sorted(self.backups.glob("*.tar.gz")) if self.backups.exists() else []

    def leftovers(self) -> list[str]:
        """What lies among the backups and is neither an archive, its checksum, the lock nor the mark."""
        if not self.backups.exists():
            return []
        ours = f"{re.escape(LOCK)}|{re.escape(MARK)}"
        known = re.compile(r"memu_backup_\d{8}_\d{6}(_\d+)?\.tar\.gz(\.sha256|\.keep|\.damaged)?|" + ours)
        return [p.name for p in self.backups.iterdir() if not known.fullmatch(p.name)]

    def configure(
        self, more: str = "", *, top: str = "", sources: str | None = None, history: str | None = None
    ) -> None:
        (self.folder / "config.toml").write_text(
            f'host = "family-server"\ntimezone = "Europe/Berlin"\nstate_dir = "state"\n{top}\n'
            f'[history]\nurl = "{history or self.history}"\n'
            f"[usb]\noverdue_days = 0\n"
            + (
                '[sources.photos]\nkind = "directory"\npath = "photos"\n'
                '[sources.config]\nkind = "files"\npaths = [".env", "nginx"]\n'
                if sources is None
                else sources
            )
            + '[jobs.nightly]\nat = "02:00"\n'
            + more
        )

    def mark(self, environ: Mapping[str, str] | None = None) -> None:
        """What ``init`` does, or a first backup by hand: scheduled runs go to no other place."""
        config = load(self.folder / "config.toml", environ or {})
        for store in places(config):
            store.mark(config.host, now())

    def _environ(self, more: Mapping[str, str] | None) -> dict[str, str]:
        plain = {k: v for k, v in os.environ.items() if not k.startswith(("MEMU_", "BACKUP_", "SUDO_"))}
        return plain | {"TERM": "xterm", "LANG": "C.UTF-8"} | self.environ | dict(more or {})

    def argv(self, *argv: str) -> list[str]:
        return [PROGRAM, "--config", str(self.folder / "config.toml"), *argv]

    def run(
        self,
        *argv: str,
        prefix: tuple[str, ...] = (),
        before: tuple[str, ...] = (),
        environ: Mapping[str, str] | None = None,
        inside: int = 0,
    ) -> Ran:
        """The command in a pipe, in the household's folder, with nobody to be asked.

        ``prefix`` runs the program, ``before`` are options that stand before the command, ``inside`` is a process whose
        network and mounts it is to share.
        """
        return ran([*prefix, *self.argv(*before, *argv)], self.folder, self._environ(environ), inside)

    def started(self, *argv: str) -> subprocess.Popen[str]:
        """The command under way."""
        return subprocess.Popen(
            self.argv(*argv),
            cwd=self.folder,
            env=self._environ(None),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def rows(self) -> list[dict[str, Any]]:
        """backup_history, the newest first."""
        return in_a_loop_of_its_own(query(self.history, "SELECT * FROM backup_history ORDER BY id DESC"))

    def audit(self) -> list[dict[str, Any]]:
        return in_a_loop_of_its_own(query(self.history, "SELECT * FROM backup_audit ORDER BY created_at DESC"))

    def on_a_terminal(self, *argv: str, answer: str | None = None, columns: int = 100) -> Ran:
        """The command on a real terminal; of ``answer`` a line is typed for each question. All output is ``out``."""
        return on_a_terminal(self.argv(*argv), self.folder, self._environ(None), answer, columns)


@asynccontextmanager
async def managed(home: Home, at: list[datetime]) -> AsyncIterator[Manager]:
    """Its manager, with ``at[0]`` for a clock."""
    config = load(home.folder / "config.toml", {})
    async with history_of(config) as history:
        yield Manager(config, history, lambda: at[0])


def ran(argv: list[str], folder: Path, environ: Mapping[str, str], inside: int = 0) -> Ran:
    """Any command in a pipe; ours is there sooner, as it is loaded already."""
    begun = time.monotonic()
    if argv[0] == PROGRAM:
        status, out, err = warm.run(argv, folder, environ, inside)
    else:
        done = subprocess.run(argv, cwd=folder, env=environ, stdin=subprocess.DEVNULL, capture_output=True, timeout=60)
        status, out, err = done.returncode, done.stdout, done.stderr
    return Ran(status, _text(out), _text(err), time.monotonic() - begun)


def _text(written: bytes) -> str:
    return written.decode("utf-8", "surrogateescape")


def on_a_terminal(argv: list[str], folder: Path, environ: Mapping[str, str], answer: str | None, columns: int) -> Ran:
    ours, theirs = pty.openpty()
    begun = time.monotonic()
    child = subprocess.Popen(
        argv,
        cwd=folder,
        env={**environ, "COLUMNS": str(columns), "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        # The terminal is the child's own, so that what is typed into it as Ctrl-C becomes a signal.
        preexec_fn=_own_terminal,
    )
    os.close(theirs)
    shown, asked = b"", 0
    lines = (answer or "").splitlines(keepends=True)
    try:
        while True:
            if time.monotonic() - begun > 60:
                raise TimeoutError(f"still running: {shown!r}")
            if not select.select([ours], [], [], 0.2)[0]:
                continue
            try:
                block = os.read(ours, 65536)
            except OSError:  # the other end is closed
                break
            if not block:
                break
            shown += block
            if lines and shown[asked:].endswith((b"[y/N] ", b": ")):
                asked = len(shown)
                os.write(ours, lines.pop(0).encode())
        status = child.wait(10)
    finally:
        child.kill()
        child.wait()
        os.close(ours)
    return Ran(status, shown.decode(errors="replace"), "", time.monotonic() - begun)


def _own_terminal() -> None:
    import fcntl
    import termios

    os.setsid()
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)


def children(pid: int) -> list[int]:
    """All processes below ``pid``, whatever group or session they are in."""
    below: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        below.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found = list(below.get(pid, []))
    for child in found:
        found += below.get(child, [])
    return found


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def command_of(pid: int) -> str:
    """The name of a process, empty where it is gone."""
    try:
        return Path(f"/proc/{pid}/comm").read_text().strip()
    except OSError:
        return ""


@contextmanager
def locked_table(url: str) -> Iterator[None]:
    """While this lasts, whoever dumps the database waits for one table."""
    psql = shutil.which("psql") or str(programs() / "psql")
    holder = subprocess.Popen(
        [psql, "-q", url],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PGPORT": "5432"},
    )
    assert holder.stdin and holder.stdout
    try:
        holder.stdin.write("BEGIN; LOCK TABLE messages IN ACCESS EXCLUSIVE MODE;\n\\echo locked\n")
        holder.stdin.flush()
        assert holder.stdout.readline().strip() == "locked"
        yield
    finally:
        holder.kill()
        holder.communicate()


@contextmanager
def frozen(server: PostgresServer) -> Iterator[None]:
    """The server and its sessions stand still while this lasts, and every connection to it with them."""
    main = int((server.data / "postmaster.pid").read_text().split()[0])
    stopped = [main, *children(main)]
    for pid in stopped:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in stopped:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


def stop_immediately(server: PostgresServer) -> None:
    """As ``pg_ctl stop -m immediate``, or a power cut: no session gets a word."""
    os.kill(int((server.data / "postmaster.pid").read_text().split()[0]), signal.SIGQUIT)
    wait_until(lambda: not server.running())


def wait_until(what: Any, patience_s: float = 20.0) -> Any:
    """Poll ``what`` until it gives something true."""
    deadline = time.monotonic() + patience_s
    while not (found := what()):
        assert time.monotonic() < deadline, "it never happened"
        time.sleep(0.01)
    return found


def end(child: subprocess.Popen[str], number: int = signal.SIGKILL) -> Ran:
    """Send the signal and wait for the end."""
    begun = time.monotonic()
    child.send_signal(number)
    out, err = child.communicate(timeout=30)
    return Ran(child.returncode, out, err, time.monotonic() - begun)


def fingerprints(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}

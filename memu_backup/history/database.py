"""The way to the Postgres that holds the history, and what its refusals mean in words.

One connection a question: a household asks a few times a day, and a connection that is not kept cannot go stale,
half-open or through a PgBouncer that forgets it.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import parse_qs, unquote, urlsplit

from memu_backup.errors import DatabaseError, HistoryAway, HistoryRefused
from memu_backup.history import schema
from memu_backup.history.schema import Connection
from memu_backup.postgres.server import PostgresServer

log = logging.getLogger(__name__)

T = TypeVar("T")

_CLOSE_TIMEOUT_S = 2.0
_STOP_TIMEOUT_S = 6.0

_LONGEST_PAUSE_S = 60.0
_PAUSE_FACTOR = 10
"""After a failure, nobody asks again for ten times as long as it took: waiting costs a backup a tenth at the most."""


class Database:
    """The family's Postgres at ``url``, or where that is None our own under ``folder``, started on first use.

    ``fill`` puts into the tables of our own, once they are made, what is known already.
    """

    def __init__(
        self,
        url: str | None,
        folder: Path,
        host: str,
        *,
        fill: schema.Fill,
        connect_timeout_s: float,
        command_timeout_s: float,
    ) -> None:
        self._url = url
        self._fill = fill
        self._server = PostgresServer(folder) if url is None else None
        self._host = host
        self._connect_timeout_s = connect_timeout_s
        self._command_timeout_s = command_timeout_s
        self._turn = asyncio.Lock()
        self._ask_again_at = 0.0
        self._last_failure: HistoryAway | None = None

    async def ask(
        self,
        work: Callable[[Connection], Awaitable[T]],
        *,
        insist: bool = False,
        in_passing: bool = False,
        budget_s: float | None = None,
    ) -> T:
        """Run ``work`` with a connection to tables of the right version. Cancelling closes the connection at once.

        Raises HistoryAway when there is no answer in time (of each command, and of all within ``budget_s``), or at
        once when that happened a moment ago, unless ``insist``, or ever since the last answer, where it is asked only
        ``in_passing`` and others will find out that it is back; HistoryRefused when waiting alone will not help.
        ``work`` may let every error through, and is asked once more where our own server found its data damaged and
        got new. The budget counts the wait for whoever asks just now, and leaves out the start of the embedded server
        and its filling.
        """
        called = time.monotonic()
        if in_passing:
            self._raise_last_failure()  # nor does it wait for who finds out just now
        async with self._its_turn(budget_s):
            if budget_s is not None:
                budget_s = max(0.0, budget_s - (time.monotonic() - called))
            if in_passing or (not insist and time.monotonic() < self._ask_again_at):
                self._raise_last_failure()
            started = time.monotonic()
            try:
                result = await self._ask(work, budget_s)
            except HistoryAway as error:
                now = time.monotonic()
                self._ask_again_at = now + min(_PAUSE_FACTOR * (now - started), _LONGEST_PAUSE_S)
                self._last_failure = error
                raise
            self._last_failure = None
            return result

    def _raise_last_failure(self) -> None:
        if self._last_failure:
            raise type(self._last_failure)(str(self._last_failure))

    async def listen(self, channel: str, heard: Callable[[], None]) -> None:
        """Call ``heard`` once we listen and at each notification, until the connection is lost. Raises HistoryAway."""
        lost = asyncio.Event()
        try:
            async with self._its_turn(None):
                url = self._url if self._server is None else await self._start(self._server)
            connection = await self._connect(url)
        except HistoryAway:
            raise
        except Exception as error:
            raise self._translated(error) from error
        try:
            connection.add_termination_listener(lambda _: lost.set())
            await connection.add_listener(channel, lambda *_: heard())
            self._last_failure = None
            heard()
            await lost.wait()
        except Exception as error:
            raise self._translated(error) from error
        finally:
            connection.terminate()

    @asynccontextmanager
    async def _its_turn(self, budget_s: float | None) -> AsyncIterator[None]:
        try:
            async with asyncio.timeout(budget_s):
                await self._turn.acquire()
        except TimeoutError as error:
            raise HistoryAway(
                "The history database is busy with what was noted before. If this stays so, look at the database's log."
            ) from error
        try:
            yield
        finally:
            self._turn.release()

    @property
    def embedded(self) -> bool:
        return self._server is not None

    @property
    def unmade(self) -> bool:
        """Whether it is our own, and nobody has made it yet. Where that cannot be seen it is taken to be there."""
        try:
            return self._server is not None and not self._server.data.exists()
        except OSError:
            return False

    async def close(self) -> None:
        """Stop the embedded server if we started it and nobody else uses it. Bounded; never raises."""
        if self._server is None:
            return
        try:
            async with asyncio.timeout(_STOP_TIMEOUT_S):
                await self._server.stop()
        except Exception as error:
            log.warning("The embedded history database did not stop in time and is left running: %s.", _reason(error))

    async def describe(self, connection: Connection) -> str:
        """What ``History.check`` says."""
        version = f"PostgreSQL {connection.get_server_version().major}"
        if self._server:
            return f"embedded {version}"
        return f"{version} at {self._place() or 'the address in history.url'}"

    async def _ask(
        self, work: Callable[[Connection], Awaitable[T]], budget_s: float | None, once_more: bool = True
    ) -> T:
        url = self._url if self._server is None else await self._start(self._server)
        found = self._server.identity() if self._server else None
        try:
            return await self._ask_at(url, work, budget_s)
        except HistoryAway:
            raise
        except Exception as error:  # also what a stranger on that port makes asyncpg stumble over
            if self._server is None or not once_more or not _is_damage(error):
                raise self._translated(error) from error
            log.debug("The data of the embedded history database is damaged.", exc_info=error)
            if not await self._replaced(self._server, found):
                raise self._translated(error) from error
        return await self._ask(work, budget_s, once_more=False)

    async def _ask_at(self, url: str | None, work: Callable[[Connection], Awaitable[T]], budget_s: float | None) -> T:
        async with asyncio.timeout(budget_s) as limit:

            async def fill(connection: Connection) -> None:
                limit.reschedule(None)
                await self._fill(connection)
                limit.reschedule(None if budget_s is None else asyncio.get_running_loop().time() + budget_s)

            connection = await self._connect(url)
            try:
                await schema.migrate(connection, fill if self._server else None)
                result = await work(connection)
                await _say_goodbye(connection)
                return result
            finally:
                connection.terminate()  # does nothing after a goodbye

    async def _connect(self, url: str | None) -> Connection:
        import asyncpg

        options: dict[str, Any] = {"port": 5432} if self._server else {}  # whatever PGPORT says
        try:
            return await asyncpg.connect(
                url,
                timeout=self._connect_timeout_s,
                command_timeout=self._command_timeout_s,
                statement_cache_size=0,  # PgBouncer hands out another server for each transaction
                server_settings={"application_name": f"memu-backup {self._host}"},
                **options,
            )
        except ValueError:
            pass
        # Outside of the except: the foreign error quotes the address, and with it perhaps the password.
        raise HistoryRefused(
            "history.url cannot be read as the address of a Postgres database. Write "
            "postgresql://user:password@host:5432/database, and in the password %40 for @, %2F for /, %3A for :, %23 "
            "for # and %3F for ?."
        )

    async def _start(self, server: PostgresServer) -> str:
        with _starting(server):
            if not server.running():
                await server.stop()  # counts us out of one that has died under us
            await server.start()
        return server.url()

    async def _replaced(self, server: PostgresServer, found: object) -> bool:
        with _starting(server):
            return await server.replace(found)

    def _place(self) -> str:
        """Host and database without user and password; empty where the address is too odd to be sure of that."""
        try:
            parts = urlsplit(self._url or "")
            odd = "@" in parts.path + parts.fragment or (parts.port or 0) < 0
        except ValueError:
            return ""
        host = parts.hostname or parse_qs(parts.query).get("host", ["/"])[0]
        return "" if odd else ("this machine" if host.startswith("/") else host) + unquote(parts.path).rstrip("/")

    def _translated(self, error: Exception) -> HistoryAway:
        import asyncpg  # 0.1 s that only those pay who ask

        place = self._place()
        name = "The embedded history database" if self._server else "The history database"
        name += f" at {place}" if self._url and place else ""
        if not isinstance(error, asyncpg.PostgresError | asyncpg.InterfaceError):
            remedy = "Check that it is running and that history.url is right."
            if self._server:
                remedy = f"Its reasons are in {self._server.folder}/server.log."
            log.debug("What went wrong with the history database:", exc_info=error)
            return HistoryAway(f"{name} cannot be reached: {_reason(error)}. {remedy}")
        state = getattr(error, "sqlstate", None) or ""
        if state in _REFUSALS:
            what, remedy = _REFUSALS[state]
            return HistoryRefused(f"{name} {what}. {remedy}")
        kind = HistoryAway if state[:2] in _PASSING or state in _PASSING else HistoryRefused
        return kind(f"{name} said: {str(error.args[0]).rstrip('.')}. If this stays so, look at the database's log.")


_PASSING = ("", "08", "25P03", "40", "53", "55P03", "57", "58")
"""Classes and codes of Postgres that waiting may cure: lost connections, full disks, ended or clashing sessions."""

_REFUSALS = {
    "28P01": (
        "does not accept the user name and password of history.url",
        "Correct them there, or set the password anew in the database.",
    ),
    "28000": (
        "does not let the user of history.url in from this machine",
        "Correct the user name, or allow it in the server's pg_hba.conf.",
    ),
    "3D000": ("is not there: the server knows no database of that name", "Create it, or correct history.url."),
    "42501": (
        "does not allow our user to create or change its tables",
        "Make that user the owner of the database, or of the tables if they are there already.",
    ),
}


@contextmanager
def _starting(server: PostgresServer) -> Iterator[None]:
    try:
        yield
    except Exception as error:
        why = str(error)
        if not isinstance(error, DatabaseError):
            why = f"The embedded history database in {server.folder} cannot be started: {_reason(error)}."
        raise HistoryAway(why) from error


def _is_damage(error: Exception) -> bool:
    """Whether our own Postgres says that its files are damaged, or not there, or does not know its user any more."""
    state = getattr(error, "sqlstate", None) or ""
    return state.startswith("XX") or state in ("58P01", "28000", "3D000")


async def _say_goodbye(connection: Connection) -> None:
    """Close in the way the server's log likes. Once the work is done, nothing that goes wrong here matters.

    Not by ``wait_for``: before Python 3.12 it forgets that somebody cancelled it, where the close ends just then.
    """
    with suppress(Exception):
        async with asyncio.timeout(_CLOSE_TIMEOUT_S):
            await connection.close()


def _reason(error: Exception) -> str:
    """An error of the network or the disk, or one that nobody thought of, as half a sentence for people."""
    if not isinstance(error, OSError):
        return f"something unexpected happened ({type(error).__name__})"  # its own words may quote a password
    if isinstance(error, TimeoutError):
        return "it does not answer in time"
    if isinstance(error, socket.gaierror):
        return "nobody knows a machine of that name"
    if isinstance(error, ConnectionRefusedError) or error.errno is None:  # asyncpg sums up several as one without
        return "nothing answers there"
    return os.strerror(error.errno).lower()

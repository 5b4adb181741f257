"""How a Postgres is reached and, in plain words, why it is not; its password stays out of all that is shown."""

from __future__ import annotations

import asyncio
import getpass
import os
import re
import socket
import ssl
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from memu_backup.errors import DatabaseAway, DatabaseError

if TYPE_CHECKING:
    import asyncpg

ANSWER_TIMEOUT_S = 10.0
"""How long a server may take to let us in."""

_CLOSE_TIMEOUT_S = 2.0
_OLDEST_MAJOR = 10
_OWN_PARAMETERS = frozenset({"host", "port", "user", "password", "dbname"})
_PASSED_ON = frozenset({"sslmode", "sslrootcert", "sslcert", "sslkey"})
_UNREADABLE = (
    "cannot be read as an address; it looks like postgresql://user@host:5432/database, with special characters "
    "percent-encoded (a password is better kept in password_file)"
)


@dataclass(frozen=True, slots=True)
class Address:
    """Where one database is and who asks for it. ``host`` is a name, an address or the folder of a socket.

    Every part is explicit, so that asyncpg and PostgreSQL's own programs, whose defaults differ, reach the same server.
    ``owner`` says in sentences whose address it is ("source chat").
    """

    host: str
    port: int
    user: str
    database: str
    password: str | None = field(default=None, repr=False)
    parameters: tuple[tuple[str, str], ...] = ()
    owner: str = ""

    @classmethod
    def parse(cls, url: str, password: str | None = None, owner: str = "") -> Address:
        """Read ``postgresql://…``; ``password`` wins over one in the URL. What is left out is as for psql.

        Raises ValueError with a phrase that fits behind the name of a setting and holds nothing of the URL.
        """
        try:
            parts = urlsplit(url)
            given = dict(parse_qsl(parts.query, keep_blank_values=True, strict_parsing=True)) if parts.query else {}
            port = int(given.get("port") or parts.port or os.environ.get("PGPORT") or 5432)
        except ValueError:
            raise ValueError(_UNREADABLE) from None
        if parts.scheme not in ("postgresql", "postgres"):
            raise ValueError("must begin with postgresql://")
        # A password with a bare / ? # or @ shifts the parts: whatever would then stand in a message is refused here.
        if parts.fragment or set("@/") & set(parts.path[1:]) or "," in parts.netloc:
            raise ValueError(_UNREADABLE)
        if unknown := given.keys() - _OWN_PARAMETERS - _PASSED_ON:
            known = ", ".join(sorted(_OWN_PARAMETERS | _PASSED_ON))
            # Behind a ? or & in a password, what looks like a name is a piece of it.
            plain = not {"@", "password"} & {*parts.query, *given} and all(map(_PLAIN_NAME.fullmatch, unknown))
            which = ", ".join(sorted(unknown)) if plain else "a parameter"
            raise ValueError(f"holds {which}, which is not known here; known are {known}")
        if not (parts.netloc or parts.path.strip("/") or given):
            raise ValueError("says of no database where it is; write postgresql://USER@HOST:5432/DATABASE")
        netloc_host = parts.hostname or ""
        if "%" in netloc_host:  # a socket's folder; .hostname has put it into lower case
            netloc_host = unquote(parts.netloc.rpartition("@")[2].partition(":")[0])
        user = given.get("user") or unquote(parts.username or "") or os.environ.get("PGUSER") or getpass.getuser()
        return cls(
            host=given.get("host") or netloc_host or os.environ.get("PGHOST") or _local_host(port),
            port=port,
            user=user,
            database=given.get("dbname") or unquote(parts.path[1:]) or user,
            password=password or given.get("password") or unquote(parts.password or "") or None,
            parameters=tuple(sorted((k, v) for k, v in given.items() if k in _PASSED_ON)),
            owner=owner,
        )

    def of(self, database: str) -> Address:
        """The same server and user, another database."""
        return replace(self, database=database)

    @property
    def url(self) -> str:
        """For a program's argv: everything but the password."""
        query = urlencode([("host", self.host), ("port", self.port), *self.parameters], quote_via=quote)
        return f"postgresql://{quote(self.user, safe='')}@/{quote(self.database, safe='')}?{query}"

    @property
    def secret_url(self) -> str:
        """With the password: for ``parse``, and nothing that is shown or run."""
        return self.url + (f"&password={quote(self.password, safe='')}" if self.password else "")

    @property
    def environment(self) -> Mapping[str, str]:
        """For a program that gets ``url``: the password, a bounded wait, and messages in the one language we read."""
        secret = {"PGPASSWORD": self.password} if self.password else {}
        return {**secret, "PGCONNECT_TIMEOUT": str(int(ANSWER_TIMEOUT_S)), "LC_ALL": "C"}

    @property
    def server(self) -> str:
        """The subject of a sentence: ``Postgres on db.home:5432 (source chat)``."""
        place = self.host if self.host.startswith("/") else f"{self.host}:{self.port}"
        return f"Postgres on {place}" + (f" ({self.owner})" if self.owner else "")

    def without_secret(self, text: str) -> str:
        """``text`` from outside, fit to be shown."""
        return text.replace(self.password, "***") if self.password else text


def _local_host(port: int) -> str:
    for folder in ("/run/postgresql", "/tmp"):  # noqa: S108  where Debian's and PostgreSQL's own builds listen
        if Path(folder, f".s.PGSQL.{port}").exists():
            return folder
    return "localhost"


@asynccontextmanager
async def connect(
    address: Address, *, timeout_s: float = ANSWER_TIMEOUT_S, command_timeout_s: float | None = None
) -> AsyncIterator[asyncpg.Connection]:
    """A connection that is closed at the end, within 2 s also when cancelled.

    Raises DatabaseAway for what may pass (refused, too slow, starting up, full, gone in the middle) and DatabaseError
    for the rest, also for errors of the server inside the block.
    """
    import asyncpg

    try:
        connection = await asyncpg.connect(
            address.url,
            host=address.host,
            port=address.port,
            password=address.password,
            timeout=timeout_s,
            command_timeout=command_timeout_s,
            statement_cache_size=0,  # behind PgBouncer a prepared statement may meet another server
            server_settings={"application_name": "memu-backup"},
        )
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError) as error:
        raise explain(error, address) from error
    try:
        if connection.get_server_version().major < _OLDEST_MAJOR:
            raise DatabaseError(
                f"{address.server} is older than version {_OLDEST_MAJOR}, which cannot be backed up here. "
                "Upgrade it, or dump it by hand and back up the file."
            )
        yield connection
    except (ConnectionError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        if isinstance(error, asyncpg.InterfaceError) and connection.is_closed():  # it went between two questions
            raise _gone(address, "the connection is closed") from error
        raise explain(error, address) from error
    finally:
        await _close(connection)


async def _close(connection: asyncpg.Connection) -> None:
    import asyncpg

    closing = asyncio.ensure_future(connection.close(timeout=_CLOSE_TIMEOUT_S))
    try:
        await asyncio.wait({closing})
        # What was interrupted in a question may end as if it had been cancelled, which only we may be.
        if not closing.cancelled() and (error := closing.exception()):
            raise error
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return
    finally:
        closing.cancel()
        connection.terminate()  # where it is still open; it was only read from: nothing is lost with it


def explain(error: Exception, address: Address) -> DatabaseError:
    """The sentence for an error of asyncpg or of the network, as an error of ours."""
    state = getattr(error, "sqlstate", None) or ""
    told = address.without_secret(str(error)).rstrip(".")
    server, user, database = address.server, address.user, address.database
    if state == "28P01":
        if address.password is None:
            return DatabaseError(f"{server} asks user {user} for a password; nothing was read. Set password_file.")
        return DatabaseError(
            f"{server} refused the password of user {user}; nothing was read. "
            "Correct the password in password_file or in the url."
        )
    if state == "28000":
        return DatabaseError(f"{server} does not let user {user} in ({told}); nothing was read. Correct the url.")
    if state == "3D000":
        return DatabaseError(f"{server} has no database {database}; nothing was read. Correct its name.")
    if state == "42501":
        return DatabaseError(f"{server} does not let user {user} do this ({told}). Give the user the right to read it.")
    if state in ("53300", "57P03"):
        return DatabaseAway(f"{server} takes no connection just now ({told}); nothing was read. Try again in a minute.")
    if state in ("57P01", "57P02", "57P05") or state.startswith("08"):
        return _gone(address, told)
    if state:
        return DatabaseError(f"{server} reports for database {database}: {told}.")
    return _explain_network(error, address, told)


def _gone(address: Address, told: str) -> DatabaseAway:
    return DatabaseAway(f"{address.server} went away in the middle ({told}). Try again when it is back.")


def _explain_network(error: Exception, address: Address, told: str) -> DatabaseError:
    server = address.server
    if isinstance(error, ssl.SSLError) or "SSL" in told:
        return DatabaseError(
            f"{server} and this machine do not agree on a secure connection ({told}); nothing was read. "
            "Correct sslmode and sslrootcert in the url, or the server's certificate."
        )
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return DatabaseError(
            f"There is no machine named {address.host}; nothing was read. Correct the host in the url."
        )
    if isinstance(error, PermissionError):
        return DatabaseError(
            f"{server} may not be reached by this user ({told}); nothing was read. Run as another user."
        )
    if isinstance(error, TimeoutError):
        return DatabaseAway(f"{server} did not answer in time; nothing was read. Is the machine on, and its network?")
    if isinstance(error, ConnectionRefusedError | FileNotFoundError):
        return DatabaseAway(f"{server} does not answer; nothing was read. Is it running?")
    if isinstance(error, OSError):
        return DatabaseAway(f"{server} cannot be reached ({told}); nothing was read. Is it running?")
    return DatabaseError(f"{server} could not be read: {told}.")


_PLAIN_NAME = re.compile(r"[a-z_][a-z0-9_]*")

_OURS_TO_DUMP = """
    FROM pg_catalog.pg_class c JOIN pg_catalog.pg_namespace n ON n.oid = c.relnamespace
    WHERE c.relpersistence <> 't' AND n.nspname !~ '^pg_' AND n.nspname <> 'information_schema'
      AND NOT EXISTS (SELECT FROM pg_catalog.pg_depend d
                      WHERE d.classid = 'pg_catalog.pg_class'::pg_catalog.regclass AND d.objid = c.oid
                        AND d.deptype = 'e')"""
"""What pg_dump dumps: neither system nor temporary tables, nor those that an extension brings along."""


def qualified(schema: str, table: str) -> str:
    """``schema.table``, each part in double quotes where SQL needs them. The same for every version of the server."""
    return ".".join(n if _PLAIN_NAME.fullmatch(n) else _quoted(n) for n in (schema, table))


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'


async def list_tables(connection: asyncpg.Connection) -> list[tuple[str, str]]:
    """Schema and name of each table that holds rows itself: ordinary ones and partitions, not partitioned parents."""
    query = f"SELECT n.nspname, c.relname {_OURS_TO_DUMP} AND c.relkind = 'r' ORDER BY 1, 2"
    return [(row[0], row[1]) for row in await connection.fetch(query)]


async def count_tables(connection: asyncpg.Connection) -> dict[str, int]:
    """Rows a table, in the snapshot of the open transaction; names as in ``qualified``. Each row is counted once."""
    # With row security on, hidden rows would silently be missing from the count; off, they are an error.
    await connection.execute("SET LOCAL row_security = off")
    counts = {}
    for schema, table in await list_tables(connection):
        query = f"SELECT count(*) FROM ONLY {_quoted(schema)}.{_quoted(table)}"  # noqa: S608  names cannot be parameters
        counts[qualified(schema, table)] = await connection.fetchval(query)
    return counts


async def count_rows(url: str) -> dict[str, int]:
    """Rows a table of the database at ``url``, in one snapshot, to compare with ``details`` of a backup.

    Raises DatabaseError; ValueError for what is no URL.
    """
    async with connect(Address.parse(url)) as connection, connection.transaction(isolation="repeatable_read"):
        return await count_tables(connection)


async def refused_tables(connection: asyncpg.Connection) -> tuple[list[str], list[str]]:
    """What keeps pg_dump from a whole dump: tables and sequences we may not read, tables with rows hidden from us.

    Materialized views are not among them: pg_dump reads their definition only.
    """
    query = f"""
        SELECT n.nspname, c.relname,
               has_schema_privilege(n.oid, 'USAGE') AND has_table_privilege(c.oid, 'SELECT') AS readable,
               c.relkind = 'r' AND row_security_active(c.oid) AS hidden
        {_OURS_TO_DUMP} AND c.relkind IN ('r', 'p', 'S') ORDER BY 1, 2"""
    rows = await connection.fetch(query)
    # NULL means that it was dropped while we asked.
    unreadable = [qualified(r["nspname"], r["relname"]) for r in rows if r["readable"] is False]
    return unreadable, [qualified(r["nspname"], r["relname"]) for r in rows if r["readable"] and r["hidden"]]

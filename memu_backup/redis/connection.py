"""Redis' protocol as far as a backup needs it: questions, their answers, and the snapshot that a replica is given.

Libraries know questions and answers, and none the snapshot. It comes as to ``redis-cli --rdb``: see getRDB in
redis-cli.c and syncCommand in replication.c, https://redis.io/docs/latest/operate/oss_and_stack/management/replication/
and https://redis.io/docs/latest/develop/reference/protocol-spec/ (RESP2). Valkey speaks the same.
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn, TypeAlias, TypeVar

from memu_backup.errors import DatabaseAway, DatabaseError
from memu_backup.files import shown

ANSWER_S = 30.0
_GREETING_S = 0.1
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 16 << 20
_DEEPEST = 4

T = TypeVar("T")

Reply: TypeAlias = "str | int | bytes | list[Reply] | None"

_PASSING = {
    "LOADING": "still reads its data from its disk",
    "BUSY": "is busy with a script",
    "MASTERDOWN": "is a copy of another server and has lost its link to it",
    "NOMASTERLINK": "is a copy of another server and has lost its link to it",
}
"""Errors that pass by themselves, by their first word."""


@dataclass(frozen=True, slots=True)
class Server:
    """Where a server listens, at ``unixsocket`` if that is given, and who we are there.

    People know it as ``called``; ``unable`` ends what is said of an error: "so source cache cannot be backed up".
    """

    called: str
    unable: str
    host: str = ""
    port: int = 0
    unixsocket: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)


class _Refused(Exception):
    """An answer that is an error. What it says may quote what was asked, so it never leaves this file by itself."""

    def __init__(self, said: str) -> None:
        super().__init__()
        self.said = said


@asynccontextmanager
async def connect(server: Server) -> AsyncIterator[Connection]:
    """A connection, signed in. What is under way when the block ends is given up: the server sends no further.

    Raises DatabaseAway, also for what a server that starts anew would mend, and DatabaseError.
    """
    try:
        reader, writer = await _opened(server)
    except OSError as error:
        raise _unreached(server, error) from error
    try:
        connection = Connection(server, reader, writer)
        await connection.sign_in()
        yield connection
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def listens(server: Server) -> bool:
    """Whether anything listens there. Raises DatabaseAway, DatabaseError where nobody can tell."""
    try:
        _, writer = await _opened(server)
    except (ConnectionRefusedError, FileNotFoundError):
        return False
    except OSError as error:
        raise _unreached(server, error) from error
    writer.transport.abort()
    with suppress(OSError):
        await writer.wait_closed()
    return True


async def _opened(server: Server) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Raises OSError, TimeoutError among them."""
    async with asyncio.timeout(ANSWER_S):
        if server.unixsocket:
            return await asyncio.open_unix_connection(server.unixsocket, limit=_BLOCK_BYTES)
        return await asyncio.open_connection(server.host, server.port, limit=_BLOCK_BYTES)


class Connection:
    """See ``connect``. Everything raises DatabaseAway and DatabaseError."""

    def __init__(self, server: Server, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader = reader
        self._writer = writer

    async def sign_in(self) -> None:
        """Without a password this only hears whether we are welcome."""
        s = self._server
        try:
            await self._greeted()
            if s.password is not None:
                await self._asked("AUTH", *filter(None, (s.username,)), s.password)
        except _Refused as refused:
            said = refused.said.lower()
            if said.startswith("denied "):
                self._fail("takes nobody from another machine as long as it has no password (protected-mode)",
                           "Give it a password, and name a file that holds it in password_file.")  # fmt: skip
            if "max number of clients" in said:
                self._away("takes no more connections just now", "Is something using up all of them?")
            if "without any password" in said or "no password is set" in said:
                self._fail("asks for no password, and one is set", "Remove password_file, or is this another server?")
            user = f" of user {s.username}" if s.username else ""
            self._fail(f"does not take the password{user}", "Correct what is in the file that password_file names.")

    async def _greeted(self) -> None:
        """Whom it does not want it tells so before he has said a word, and hangs up. Raises _Refused."""
        with suppress(TimeoutError):
            async with asyncio.timeout(_GREETING_S):
                await self._met(self._reply())

    async def call(self, *words: str | bytes) -> Reply:
        """The answer to a command."""
        try:
            return await self._asked(*words)
        except _Refused as refused:
            self._explain(refused.said, words[0])

    async def allowed(self, *words: str) -> Reply:
        """As ``call``; None where the server does not know the command or does not let us."""
        try:
            return await self._asked(*words)
        except _Refused:
            return None

    async def snapshot(self, write: Callable[[bytes], Awaitable[None]], *, silent_s: float, preparing_s: float) -> None:
        """Hand all that the server holds, as of one moment, to ``write`` in blocks of at most about 1 MB, as an RDB.

        It is given up when no byte has come for ``silent_s``, or when the server still prepares after ``preparing_s``:
        it says so once a second until then. What ``write`` raises comes out. Nothing can be asked afterwards.
        """
        await self.allowed("REPLCONF", "capa", "eof")  # it may send while it writes, of a length not known before
        await self.allowed("REPLCONF", "rdb-only", "1")  # and need not keep for us what changes meanwhile (Redis 7)
        self._writer.write(_packed(["SYNC"]))
        try:
            async with asyncio.timeout(preparing_s):
                length = await self._prepared(silent_s)
        except TimeoutError:
            self._away("has prepared its snapshot for too long", "Does its disk hang? See its log.")
        if length.startswith(b"EOF:"):
            await self._until(length.removeprefix(b"EOF:"), write, silent_s)
            return
        left = int(length)
        while left:
            block = await self._more(min(left, _BLOCK_BYTES), silent_s)
            await write(block)
            left -= len(block)

    async def _prepared(self, silent_s: float) -> bytes:
        """What it says of the length when its snapshot comes. Until then it sends empty lines."""
        line = b""
        while not line:
            line = await self._met(self._within(silent_s, self._line()))
        if line.startswith(b"-"):
            self._explain(line[1:].decode(errors="replace"), "SYNC")
        length = line.removeprefix(b"$")
        if length == line or not (length.isdigit() or (length.startswith(b"EOF:") and len(length) == 44)):
            self._no_redis()
        return length

    async def _until(self, mark: bytes, write: Callable[[bytes], Awaitable[None]], silent_s: float) -> None:
        rest = await self._more(_BLOCK_BYTES, silent_s)
        while (end := rest.find(mark)) < 0:
            sure = max(0, len(rest) - len(mark) + 1)
            await write(rest[:sure])
            rest = rest[sure:] + await self._more(_BLOCK_BYTES, silent_s)
        await write(rest[:end])

    async def _more(self, most_bytes: int, silent_s: float) -> bytes:
        block = await self._met(self._within(silent_s, self._reader.read(most_bytes)))
        if not block:
            self._broke_off()
        return block

    async def _within(self, silent_s: float, waiting: Awaitable[bytes]) -> bytes:
        limit = asyncio.timeout(silent_s)
        try:
            async with limit:
                return await waiting
        except TimeoutError:
            if limit.expired():
                self._away(f"has sent nothing more for {silent_s:g} s", "Does it hang? See its log.")
            raise

    # --- questions and answers ----------------------------------------------------------------------------------------

    async def _asked(self, *words: str | bytes) -> Reply:
        """Raises _Refused."""
        try:
            async with asyncio.timeout(ANSWER_S):
                self._writer.write(_packed(words))
                return await self._met(self._reply())
        except TimeoutError:
            self._away(f"has not answered for {ANSWER_S:g} s", "Does it hang? See its log, or restart it.")

    async def _met(self, waiting: Awaitable[T]) -> T:
        """What is wrong with the connection, in words."""
        try:
            return await waiting
        except (OSError, EOFError):
            self._broke_off()
        except (ValueError, asyncio.LimitOverrunError):
            self._no_redis()

    async def _reply(self, depth: int = 0) -> Reply:
        """Raises _Refused, ValueError, OSError, EOFError."""
        line = await self._line()
        kind, rest = line[:1], line[1:]
        if kind == b"+":
            return rest.decode()
        if kind == b"-":
            raise _Refused(rest.decode(errors="replace"))
        number = int(rest)
        if kind == b":":
            return number
        if kind not in (b"$", b"*") or number > _MOST_BYTES or depth > _DEEPEST:
            raise ValueError
        if number < 0:
            return None
        if kind == b"$":
            return (await self._reader.readexactly(number + 2))[:-2]
        return [await self._reply(depth + 1) for _ in range(number)]

    async def _line(self) -> bytes:
        return (await self._reader.readuntil(b"\n")).rstrip(b"\r\n")

    # --- what it means ------------------------------------------------------------------------------------------------

    def _away(self, what: str, todo: str) -> NoReturn:
        raise DatabaseAway(f"{self._server.called} {what}, {self._server.unable}. {todo}") from None

    def _fail(self, what: str, todo: str) -> NoReturn:
        raise DatabaseError(f"{self._server.called} {what}, {self._server.unable}. {todo}") from None

    def _broke_off(self) -> NoReturn:
        self._away("has ended the connection", "Was it stopped, or did its memory or its disk run out? See its log.")

    def _no_redis(self) -> NoReturn:
        self._fail("does not speak as Redis does", "Is it another program that listens there? Correct its address.")

    def _explain(self, said: str, asked: str | bytes) -> NoReturn:
        """What the error means with which the server answered ``asked``."""
        code, low = said.partition(" ")[0], said.lower()
        command = asked.decode() if isinstance(asked, bytes) else asked
        if code in _PASSING:
            self._away(_PASSING[code], "It is worth another try in a minute.")
        if code == "NOAUTH":
            self._fail("asks for a password", "Write it into a file, and name that in password_file.")
        if code == "NOPERM":
            user = self._server.username or "default"
            self._fail(f"does not let user {user} use {command}",
                       f"Give the user this right: ACL SETUSER {user} +info +replconf +sync +config|get")  # fmt: skip
        if "unknown command" in low:
            self._fail(f"does not know {command}", f"Was it renamed or disabled in its settings? {command} is needed.")
        if "bgsave failed" in low:
            self._away("could not begin a snapshot", "Is its memory short, or full its disk? See its log.")
        self._fail(f"says: {shown(said.rstrip('.'))}", "See its log.")


def _packed(words: list[str] | tuple[str | bytes, ...]) -> bytes:
    packed = [f"*{len(words)}\r\n".encode()]
    for word in words:
        plain = word.encode() if isinstance(word, str) else word
        packed += [f"${len(plain)}\r\n".encode(), plain, b"\r\n"]
    return b"".join(packed)


def _unreached(server: Server, error: OSError) -> DatabaseError:
    if isinstance(error, PermissionError):
        return DatabaseError(
            f"{server.called} may not be reached by this user, {server.unable}. Run memu-backup as root, or put its "
            "user into the group that may use the socket."
        )
    if isinstance(error, socket.gaierror) and error.errno != socket.EAI_AGAIN:
        return DatabaseError(f"There is no machine named {server.host}, {server.unable}. Correct host in its settings.")
    how = "did not answer in time" if isinstance(error, TimeoutError) else "does not answer"
    return DatabaseAway(f"{server.called} {how}, {server.unable}. Is it running?")

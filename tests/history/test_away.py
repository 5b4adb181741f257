"""Postgres away, slow, half-open or unwilling: a backup goes on, nothing is lost, and the sentence says what to do."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import time
import traceback
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import asyncpg
import pytest

from memu_backup.errors import HistoryAway, HistoryRefused
from memu_backup.history import History
from memu_backup.history.database import Database
from memu_backup.history.schema import Connection
from memu_backup.model import Status
from memu_backup.postgres import server as postgres_server
from memu_backup.postgres.server import PostgresServer
from tests.history.samples import a_drill, a_drive, a_good_run, a_run, an_event
from tests.history.test_history import connected

CANARY = "canary/se@cr#et"


class Wire:
    """A TCP way to a Postgres on a unix socket, which goes dead when the client sends ``cut_at``.

    Without a Postgres behind it, it takes connections and never says a word.
    """

    def __init__(self, behind: Path | None = None, cut_at: bytes | None = None) -> None:
        self.behind, self.cut_at = behind, cut_at
        self._writers: list[asyncio.StreamWriter] = []
        self._serving: set[asyncio.Task[None]] = set()

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[int]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        try:
            yield server.sockets[0].getsockname()[1]
        finally:
            server.close()
            await asyncio.sleep(0.1)  # a connection that was just accepted is served a moment later, and closed below
            for task in self._serving:
                task.cancel()
            await asyncio.gather(*self._serving, return_exceptions=True)
            for writer in self._writers:
                writer.transport.abort()
            await asyncio.gather(*(w.wait_closed() for w in self._writers), return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task
        self._serving.add(task)
        self._writers.append(writer)
        if self.behind is None:
            return
        to_us, to_server = await asyncio.open_unix_connection(self.behind)
        self._writers.append(to_server)
        await asyncio.gather(self._pump(reader, to_server), self._pump(to_us, writer))

    async def _pump(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while data := await reader.read(65536):
                if self.cut_at and self.cut_at in data:
                    return
                writer.write(data)
            writer.close()
        except ConnectionError:
            return


class Pooler(Wire):
    """As PgBouncer pools transactions: between two of them the server has served somebody else.

    Here that is a question in the simple protocol, at which a server forgets the statement that was prepared last.
    asyncpg flushes between Parse and Bind and does not sync, so a pooler keeps them together without a transaction.
    """

    QUESTION = b"SELECT 1\0"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert self.behind
        self._serving.add(asyncio.current_task())  # type: ignore[arg-type]
        to_us, to_server = await asyncio.open_unix_connection(self.behind)
        self._writers += [writer, to_server]
        await asyncio.gather(self._pump(reader, to_server), self._pump_answers(to_us, to_server, writer))

    async def _pump_answers(
        self, to_us: asyncio.StreamReader, to_server: asyncio.StreamWriter, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                message = await self._message(to_us)
                if message == self.IDLE:
                    to_server.write(b"Q" + (len(self.QUESTION) + 4).to_bytes(4) + self.QUESTION)
                    while await self._message(to_us) != self.IDLE:
                        pass
                writer.write(message)
        except (ConnectionError, asyncio.IncompleteReadError):
            writer.close()

    IDLE = b"Z\0\0\0\x05I"
    """Ready for the next question, outside of any transaction."""

    async def _message(self, to_us: asyncio.StreamReader) -> bytes:
        head = await to_us.readexactly(5)
        return head + await to_us.readexactly(int.from_bytes(head[1:]) - 4)


class Stranger(Wire):
    """Something on that port that is no Postgres."""

    def __init__(self, says: bytes) -> None:
        super().__init__()
        self.says = says

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await super()._serve(reader, writer)
        await reader.read(8)
        writer.write(self.says)


def impatient(url: str, state_dir: Path) -> History:
    return History(url, state_dir, "nas", connect_timeout_s=0.3, command_timeout_s=0.3)


async def replayed(history: History) -> int:
    """Replay as soon as the server has given up the session that went dead while it held the lock."""
    for _ in range(20):
        try:
            return await history.replay()
        except HistoryAway:
            continue
    raise AssertionError("the server never gave up the dead session")


async def test_a_postgres_that_stops_in_mid_life_costs_no_row(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = PostgresServer(tmp_path / "server")
    await server.start()
    history = History(server.url(), tmp_path / "state", "nas")
    started, ended = a_run("r", status=Status.IN_PROGRESS), a_good_run("r")
    assert await history.record(started)

    await server.stop()
    assert not server.running()
    with pytest.raises(HistoryAway, match="cannot be reached: ") as away:
        await history.runs()
    assert "noted down" not in str(away.value) and "noted down" not in caplog.text  # nothing was
    assert await history.record(a_run("r", status=Status.PARTIAL)) is False
    assert "cannot be reached: " in caplog.text
    assert caplog.messages[-1].endswith(" Backups go on and are noted down on this machine meanwhile.")
    assert await history.record(ended) is False
    assert await history.record(a_run("later")) is False
    assert await history.audit(an_event()) is False
    assert await history.know(a_drive()) is False
    assert await history.tried(a_drill()) is False
    assert await history.drills() == ([a_drill()], True)
    assert history.spooled() == [ended, a_run("later")]

    await server.start()
    try:
        assert await history.replay() == 5
        assert await history.replay() == 0
        assert history.spooled() == []
        assert [run for run in await history.runs() if run.run_id == "r"] == [ended]
        assert await history.audit_log() == [an_event()]
        assert await history.drives() == [a_drive()]
        assert await history.drills() == ([a_drill()], False)
        async with connected(server.url()) as connection:
            assert await connection.fetchval("SELECT count(*) FROM backup_history WHERE run_id = 'r'") == 1
    finally:
        await server.stop()


async def test_the_embedded_server_is_started_again_when_it_was_killed(tmp_path: Path) -> None:
    async with History(None, tmp_path, "nas") as history:
        await history.record(a_run("before"))
        other = PostgresServer(tmp_path / "postgres")
        pid = int((other.data / "postmaster.pid").read_text().split()[0])
        async with connected(other.url()) as connection:
            await connection.execute("CHECKPOINT")
        os.kill(pid, signal.SIGQUIT)
        while other.running():
            await asyncio.sleep(0.01)
        assert await history.record(a_run("after"))
        assert {run.run_id for run in await history.runs()} == {"before", "after"}


async def test_a_row_spooled_before_goes_in_with_the_next_one(database: str, tmp_path: Path) -> None:
    assert await impatient("postgresql://127.0.0.1:1/x", tmp_path).record(a_run("first")) is False
    history = History(database, tmp_path, "nas")
    assert await history.record(a_run("second"))
    assert history.spooled() == []
    async with connected(database) as connection:
        rows = await connection.fetch("SELECT run_id FROM backup_history ORDER BY id")
    assert [row["run_id"] for row in rows] == ["first", "second"]


async def test_a_server_that_never_answers_costs_one_bounded_wait(tmp_path: Path) -> None:
    async with Wire().listening() as port:
        address = f"postgresql://memu@127.0.0.1:{port}/memu"
        history = History(address, tmp_path, "nas", connect_timeout_s=1, command_timeout_s=1)
        began = time.monotonic()
        assert await history.record(a_run("one")) is False
        assert 1 <= time.monotonic() - began < 4
        began = time.monotonic()
        assert await history.record(a_run("two")) is False
        with pytest.raises(HistoryAway, match="does not answer in time"):
            await history.runs()
        assert time.monotonic() - began < 1
        assert [run.run_id for run in history.spooled()] == ["one", "two"]


async def test_a_connection_that_dies_silently_in_a_command_costs_one_bounded_wait(
    database: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    name = database.partition("?")[0].rpartition("/")[2]
    wire = Wire(postgres.socket_folder / ".s.PGSQL.5432", cut_at=b"INSERT INTO backup_history ")
    async with wire.listening() as port:
        history = impatient(f"postgresql://postgres@127.0.0.1:{port}/{name}", tmp_path)
        await history.check()
        began = time.monotonic()
        assert await history.record(a_run()) is False
        assert 0.3 <= time.monotonic() - began < 2.5
        wire.cut_at = None
        assert await replayed(history) == 1
        assert await history.runs() == [a_run()]


@pytest.mark.parametrize(
    "says",
    [
        b"S garbage",
        b"NR\0\0\0\x0c\0\0\0\x63\0\0\0\0",
        b"NR\0\0\0\x08\0\0\0\0T\0\0\0\x06\0\x09",
        b"NR\0\0\0\x08\0\0\0\0S\0\0\0\x0bxxxxxxxZ\0\0\0\x05ID\0\0\0\x06\0\x09",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
async def test_whatever_a_stranger_on_that_port_says_the_history_is_away(says: bytes, tmp_path: Path) -> None:
    async with Stranger(says).listening() as port:
        history = impatient(f"postgresql://memu@127.0.0.1:{port}/memu", tmp_path)
        assert await history.record(a_run()) is False
        with pytest.raises(HistoryAway):
            await history.replay()
        assert await history.known_runs() == ([a_run()], True)


async def test_an_error_that_nobody_thought_of_is_the_history_being_away(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where our own server cannot be started for a reason of its own, such as a machine without user nobody."""

    async def odd(*_: object, **__: object) -> None:
        raise asyncpg.InternalClientError("postgresql://memu:canary@db/memu")

    def no_such_user(name: str) -> None:
        raise KeyError(name)

    monkeypatch.setattr(asyncpg, "connect", odd)
    monkeypatch.setattr(postgres_server, "as_another_user", lambda: no_such_user("nobody"))
    for history in (History(database, tmp_path / "a", "nas"), History(None, tmp_path / "b", "nas")):
        assert await history.record(a_run()) is False
        with pytest.raises(HistoryAway, match=r"something unexpected happened \((InternalClient|Key)Error\)") as caught:
            await history.check()
        assert "canary" not in str(caught.value)
        await history.aclose()


async def test_a_write_waits_no_longer_for_a_replay_than_for_postgres(database: str, tmp_path: Path) -> None:
    """While many notes trickle into a slow database."""
    away = impatient("postgresql://127.0.0.1:1/x", tmp_path)
    for number in range(12):
        await away.record(a_run(f"r{number}"))
    async with History(database, tmp_path / "other", "nas") as other:
        await other.check()
    async with connected(database) as connection:
        await connection.execute(
            "CREATE FUNCTION slow() RETURNS trigger LANGUAGE plpgsql AS "
            "'BEGIN PERFORM pg_sleep(0.4); RETURN NEW; END';"
            "CREATE TRIGGER slow BEFORE INSERT ON backup_history FOR EACH ROW EXECUTE FUNCTION slow()"
        )
    history = History(database, tmp_path, "nas", connect_timeout_s=0.3, command_timeout_s=0.7)
    replaying = asyncio.create_task(history.replay())
    await asyncio.sleep(0.1)
    began = time.monotonic()
    assert await history.record(a_run("meanwhile")) is False
    assert 0.9 < time.monotonic() - began < 3 and not replaying.done()
    assert await replaying >= 12


async def test_a_pooler_of_transactions_may_stand_between(
    database: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    name = database.partition("?")[0].rpartition("/")[2]
    async with Pooler(postgres.socket_folder / ".s.PGSQL.5432").listening() as port:
        history = History(f"postgresql://postgres@127.0.0.1:{port}/{name}?sslmode=disable", tmp_path, "nas")
        for _ in range(2):
            assert await history.record(a_good_run())
            assert await history.audit(an_event())
            assert await history.runs() == [a_good_run()]
            assert await history.backup_count() == 1
            assert await history.audit_log() == [an_event()]


@pytest.mark.parametrize(("state", "passes"), [("25P03", True), ("40P01", True), ("55P03", True), ("0A000", False)])
async def test_a_clash_or_a_session_that_was_ended_passes_and_is_no_refusal(
    database: str, tmp_path: Path, state: str, passes: bool
) -> None:
    """25P03 comes to a machine that was too busy, or asleep, in the middle of a transaction."""

    async def clash(connection: Connection) -> None:
        await connection.execute(f"DO $$ BEGIN RAISE 'no' USING ERRCODE = '{state}'; END $$")

    with pytest.raises(HistoryAway) as caught:
        await Database(database, tmp_path, "nas", fill=clash, connect_timeout_s=5, command_timeout_s=5).ask(clash)
    assert (type(caught.value) is HistoryAway, caught.value.retryable) == (passes, passes)


async def test_cancelling_a_write_that_hangs_is_quick_and_keeps_the_row(tmp_path: Path) -> None:
    async with Wire().listening() as port:
        history = History(f"postgresql://memu@127.0.0.1:{port}/memu", tmp_path, "nas")
        task = asyncio.create_task(history.record(a_run()))
        while not history.spooled():
            await asyncio.sleep(0.01)
        task.cancel()
        began = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert time.monotonic() - began < 2
        assert history.spooled() == [a_run()]


async def test_a_row_that_the_database_refuses_does_not_hold_up_the_next(database: str, tmp_path: Path) -> None:
    history = History(database, tmp_path, "nas")
    too_large = a_run("too large", size_bytes=2**70, deleted_at=None)
    assert await history.record(too_large) is False
    assert await history.record(a_good_run("fine"))
    assert history.spooled() == [too_large]
    assert {run.run_id for run in await history.runs()} == {"too large", "fine"}
    assert await history.backup_count() == 2


async def test_a_run_in_the_spool_is_newer_than_its_row(database: str, tmp_path: Path) -> None:
    history = History(database, tmp_path, "nas")
    await history.record(a_run("r", job="a", status=Status.IN_PROGRESS))
    newer = a_good_run("r", job="a", size_bytes=2**70)
    assert await history.record(newer) is False
    assert await history.runs() == [newer]
    assert await history.runs(job="b") == []
    assert await history.backup_count() == 1


async def test_a_full_spool_disk_does_not_keep_a_row_from_postgres(database: str, tmp_path: Path) -> None:
    (tmp_path / "spool").write_text("a file where the folder should be")
    assert await History(database, tmp_path, "nas").record(a_run())
    assert await History(database, tmp_path, "nas").runs() == [a_run()]
    with pytest.raises(HistoryAway):
        await impatient("postgresql://127.0.0.1:1/x", tmp_path).record(a_run())


@pytest.fixture
async def guarded(postgres: PostgresServer) -> AsyncIterator[str]:
    """The URL, up to the password, of a role that needs one; right to everything but the making of tables."""
    async with connected(postgres.url()) as connection:
        await connection.execute("CREATE ROLE family LOGIN PASSWORD 'right'")
        rules = postgres.data / "pg_hba.conf"
        before = rules.read_text()
        rules.write_text(f"local all family scram-sha-256\n{before}")
        await connection.execute("SELECT pg_reload_conf()")
        with pytest.raises(asyncpg.InvalidPasswordError):
            for _ in range(500):  # the server reads it a moment later
                await (await asyncpg.connect(postgres.url(), user="family", password="wrong")).close()
                await asyncio.sleep(0.01)
        yield "postgresql://family:{}@/{}?host=" + quote(str(postgres.socket_folder), safe="")
        rules.write_text(before)
        await connection.execute("SELECT pg_reload_conf()")
        await connection.execute("DROP ROLE family")


async def test_each_refusal_has_its_sentence_and_none_has_the_password(
    guarded: str, database: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name = database.partition("?")[0].rpartition("/")[2]
    for url, sentence in [
        (guarded.format(quote(CANARY, safe=""), name), "does not accept the user name and password"),
        (guarded.format("right", "nowhere"), "no database of that name"),
        (guarded.format("right", name), "does not allow our user to create"),
        (f"postgresql://family:{CANARY}@localhost/{name}", "cannot be read as the address"),
        (f"mysql://family:{CANARY}@localhost/{name}", "cannot be read as the address"),
    ]:
        history = History(url, tmp_path / "state", "nas")
        with pytest.raises(HistoryRefused, match=sentence) as caught:
            await history.check()
        assert not caught.value.retryable
        assert await history.record(a_run()) is False
        told = "".join(traceback.format_exception(caught.value)) + caplog.text + repr(history)
        assert CANARY not in told and quote(CANARY, safe="") not in told
        chain: BaseException | None = caught.value
        while chain is not None:
            assert not any(part in str(chain) for part in ("canary", "se@cr", "#et", "right"))
            chain = chain.__cause__ or chain.__context__
    assert history.spooled() == [a_run()]


async def test_an_address_is_named_without_user_and_password(tmp_path: Path) -> None:
    for url, sentence in [
        (
            f"postgresql://family:{quote(CANARY, safe='')}@127.0.0.1:1/memu",
            "at 127.0.0.1/memu cannot be reached: nothing",
        ),
        (
            "postgresql://family:canary@no-such-machine.invalid/memu",
            "at no-such-machine.invalid/memu cannot be reached",
        ),
    ]:
        with pytest.raises(HistoryAway, match=sentence) as caught:
            await impatient(url, tmp_path).check()
        assert "canary" not in "".join(traceback.format_exception(caught.value))


async def test_check_names_version_machine_and_database(database: str, tmp_path: Path) -> None:
    name = database.partition("?")[0].rpartition("/")[2]
    assert await History(database, tmp_path, "nas").check() == f"PostgreSQL 18 at this machine/{name}"


async def test_who_asks_in_passing_waits_once_for_a_server_that_never_says_a_word(tmp_path: Path) -> None:
    """As the chat does: the service itself asks anew each minute."""
    async with Wire().listening() as port:
        silent = f"postgresql://u@127.0.0.1:{port}/d"
        async with History(silent, tmp_path, "nas", connect_timeout_s=0.2, command_timeout_s=0.2) as history:
            assert (await history.known_runs(quiet=True))[1]
            await asyncio.sleep(3)  # more than ten times as long: others would ask again
            begun = time.monotonic()
            assert (await history.known_runs(quiet=True))[1]
            assert time.monotonic() - begun < 0.1
            with pytest.raises(HistoryAway):
                await history.runs()
            assert time.monotonic() - begun > 0.2


async def test_who_asks_in_passing_does_not_wait_for_another_who_waits(tmp_path: Path) -> None:
    """Once a minute somebody looks whether it is back; whoever writes to the bot just then is answered all the same."""
    async with Wire().listening() as port:
        url = f"postgresql://nobody@127.0.0.1:{port}/nothing?sslmode=disable"
        async with History(url, tmp_path / "state", "host", connect_timeout_s=1.5) as history:
            with pytest.raises(HistoryAway):
                await history.runs()
            looks = asyncio.create_task(history.replay())
            await asyncio.sleep(0.2)
            begun = time.monotonic()
            assert await history.known_runs(quiet=True) == ([], True)
            assert time.monotonic() - begun < 0.3 and not looks.done()
            with pytest.raises(HistoryAway):
                await looks


async def test_who_asks_in_passing_knows_that_it_is_back_once_somebody_was_answered(
    database: str, postgres: PostgresServer, tmp_path: Path
) -> None:
    name = database.partition("?")[0].rpartition("/")[2]
    wire = Wire()
    async with wire.listening() as port:
        history = impatient(f"postgresql://postgres@127.0.0.1:{port}/{name}", tmp_path)
        assert await history.record(a_run()) is False
        wire.behind = postgres.socket_folder / ".s.PGSQL.5432"
        assert await history.known_runs(quiet=True) == ([a_run()], True)
        assert await replayed(history) == 1
        assert await history.known_runs(quiet=True) == ([a_run()], False)


@pytest.mark.slow
async def test_who_is_cancelled_at_whatever_moment_of_a_question_ends(database: str, tmp_path: Path) -> None:
    """Before Python 3.12 asyncio.wait_for forgets a cancellation now and then: one in twenty-five, of these."""
    async with History(database, tmp_path, "nas") as history:
        begun = time.monotonic()
        await history.check()
        usual_s = time.monotonic() - begun

        async def forever() -> None:
            while True:
                await history.news.rows()

        chance = random.Random(1)
        for _ in range(150):
            task = asyncio.create_task(forever())
            await asyncio.sleep(chance.uniform(0, usual_s))
            task.cancel()
            _, pending = await asyncio.wait({task}, timeout=2)
            assert not pending

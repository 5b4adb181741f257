"""What dumps are tested with, first a second server: Debian's, older than the embedded one, on TCP, with passwords."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from memu_backup.postgres.server import PostgresServer
from tests.sources.dumps import execute
from tests.sources.redis_servers import RedisServer, a_server


@dataclass(frozen=True)
class DebianServer:
    """A server of Debian's that asks for passwords; ``postgres`` is its superuser."""

    programs: Path
    port: int
    password: str = "c4n4ry p@ss/w0rd"

    @property
    def major(self) -> int:
        return int(self.programs.parent.name)

    def url(self, database: str = "postgres", user: str = "postgres") -> str:
        return f"postgresql://{user}@127.0.0.1:{self.port}/{database}"

    def url_with_password(self, database: str = "postgres") -> str:
        return f"postgresql://postgres:c4n4ry%20p%40ss%2Fw0rd@127.0.0.1:{self.port}/{database}"


@pytest.fixture(scope="session")
def debian() -> Iterator[DebianServer]:
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/postgres"))
    if not found:
        pytest.skip("needs Debian's postgresql package")
    # Not below pytest's folder: only root may enter that, and the server refuses to be root.
    folder = Path(tempfile.mkdtemp(prefix="memu-backup-debian-"))
    (folder / "password").write_text(DebianServer.password)
    as_user = []
    if os.geteuid() == 0:
        as_user = ["runuser", "-u", "postgres", "--"]
        for path in (folder, folder / "password"):
            shutil.chown(path, "postgres", "postgres")

    def run(program: str, *argv: str) -> None:
        # Not capture_output: the server would inherit the pipe and keep it open.
        whole = [*as_user, str(found[-1].parent / program), "-D", str(folder / "data"), *argv]
        subprocess.run(whole, check=True, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, cwd="/")

    try:
        run("initdb", "-U", "postgres", "--auth=scram-sha-256", f"--pwfile={folder / 'password'}",
            "--no-sync", "--locale=C.UTF-8")  # fmt: skip
        with socket.socket() as free:  # only now: making the files takes a while
            free.bind(("127.0.0.1", 0))
            server = DebianServer(found[-1].parent, free.getsockname()[1])
        run("pg_ctl", "start", "-w", "-s", "-l", str(folder / "log"),
            "-o", f"-k {folder} -p {server.port} -c listen_addresses=127.0.0.1 -c fsync=off")  # fmt: skip
        yield server
        run("pg_ctl", "stop", "-w", "-s", "-m", "immediate")
    finally:
        shutil.rmtree(folder)


@pytest.fixture
async def copy(postgres: PostgresServer) -> str:
    """A second empty database, to restore into."""
    await execute(postgres.url(), "DROP DATABASE IF EXISTS copy WITH (FORCE)", "CREATE DATABASE copy")
    return postgres.url("copy")


@pytest.fixture
def secret(debian: DebianServer, tmp_path: Path) -> Path:
    file = tmp_path / "password"
    file.write_text(debian.password + "\n")
    return file


@pytest.fixture
def stage(tmp_path: Path) -> Path:
    folder = tmp_path / "stage"
    folder.mkdir(mode=0o700)
    return folder


@pytest.fixture
async def bob(debian: DebianServer, tmp_path: Path) -> Path:
    """An ordinary user of a database ``bobs``; gives the file with the password."""
    setup = ("DROP DATABASE IF EXISTS bobs", "DROP ROLE IF EXISTS bob", "CREATE ROLE bob LOGIN PASSWORD 'b0b-s3cret'")
    await execute(debian.url(), *setup, "CREATE DATABASE bobs OWNER bob", password=debian.password)
    file = tmp_path / "bob"
    file.write_text("b0b-s3cret")
    return file


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that any user may enter, which pytest's is not."""
    with TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        (Path(folder) / "home").mkdir()
        yield Path(folder) / "home"


@pytest.fixture
def server() -> Iterator[RedisServer]:
    with a_server() as made:
        made.start()
        yield made


@pytest.fixture
def other() -> Iterator[RedisServer]:
    """A second one, not started yet."""
    with a_server() as made:
        yield made

"""A real Docker Engine for the tests, with a data root and a socket of its own, and images made of Debian's programs.

Nothing of it is reached from outside, and nothing of this machine's own Docker, if it has one, is touched.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

_UP_S = 60.0
_POSTGRES, _REDIS = 999, 999
"""The users in the images of Postgres and Redis, as in the official ones."""

BUSYBOX, POSTGRES, REDIS = "busybox:1", "postgres:15", "redis:7"

_ENTRYPOINT = """#!/bin/sh
set -e
if [ ! -s "$PGDATA/PG_VERSION" ]; then
    echo "${POSTGRES_PASSWORD:-$(cat "$POSTGRES_PASSWORD_FILE")}" > /tmp/password
    initdb --username="${POSTGRES_USER:-postgres}" --pwfile=/tmp/password --no-sync --locale=C.UTF-8 \\
        --auth-local=trust --auth-host=scram-sha-256 > /dev/null
    echo "host all all all scram-sha-256" >> "$PGDATA/pg_hba.conf"
    if [ -n "$POSTGRES_DB" ] && [ "$POSTGRES_DB" != postgres ]; then
        pg_ctl --silent --wait --options="-c listen_addresses=''" start > /dev/null
        createdb --username="${POSTGRES_USER:-postgres}" "$POSTGRES_DB"
        pg_ctl --silent --wait --mode=fast stop > /dev/null
    fi
fi
exec postgres -c 'listen_addresses=*' -c fsync=off "$@"
"""


@dataclass
class Engine:
    """``docker`` asks it by Debian's client; the product asks its ``socket``."""

    folder: Path
    _below: subprocess.Popen[bytes] | None = field(default=None, init=False)
    _daemon: subprocess.Popen[bytes] | None = field(default=None, init=False)

    @property
    def socket(self) -> Path:
        return self.folder / "d.sock"

    def start(self) -> None:
        """containerd beside it, as Debian has it: it outlives a dockerd that is killed."""
        there = self.folder / "containerd.sock"
        if self._below is None:
            root, state = self.folder / "containerd", self.folder / "state"
            self._below = self._begun(["containerd", "--root", root, "--state", state, "--address", there])
        self._daemon = self._begun(
            ["dockerd", "--data-root", self.folder / "data", "--exec-root", self.folder / "exec",
             "--pidfile", self.folder / "pid", "-H", f"unix://{self.socket}", "--containerd", there,
             "--bridge=none", "--iptables=false", "--ip-forward=false", "--ip-masq=false"]
        )  # fmt: skip
        deadline = time.monotonic() + _UP_S
        while subprocess.run([*self._client, "version"], capture_output=True).returncode != 0:
            if self._daemon.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"dockerd did not start: {(self.folder / 'log').read_text()[-2000:]}")
            time.sleep(0.05)

    def _begun(self, argv: Sequence[str | Path]) -> subprocess.Popen[bytes]:
        with (self.folder / "log").open("ab") as log:
            return subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    def kill(self) -> None:
        """As a power cut would, but for what runs in containers."""
        assert self._daemon
        self._daemon.kill()
        self._daemon.wait()
        self.socket.unlink(missing_ok=True)
        (self.folder / "pid").unlink(missing_ok=True)

    def stop(self) -> None:
        """With all that runs in it."""
        if self._daemon and self._daemon.poll() is None:
            for container in self.docker("ps", "--quiet").split():
                self.docker("rm", "--force", container)
            self.docker("network", "prune", "--force")  # dockerd leaves their bridges behind, and addresses run out
        for daemon in filter(None, (self._daemon, self._below)):
            daemon.terminate()
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()

    @property
    def _client(self) -> list[str]:
        return ["docker", "-H", f"unix://{self.socket}"]

    def docker(self, *argv: str | os.PathLike[str], stdin: bytes | None = None) -> str:
        done = subprocess.run([*self._client, *argv], input=stdin, capture_output=True)
        if done.returncode != 0:
            raise RuntimeError(f"docker {' '.join(map(str, argv))}: {done.stderr.decode()}")
        return done.stdout.decode().strip()

    def inspect(self, name: str) -> Any:
        return json.loads(self.docker("inspect", name))[0]

    def runs(self, name: str) -> bool:
        return bool(self.inspect(name)["State"]["Running"])

    def mountpoint(self, volume: str) -> Path:
        return Path(json.loads(self.docker("volume", "inspect", volume))[0]["Mountpoint"])

    def sql(self, container: str, statement: str, *, user: str = "postgres", database: str = "postgres") -> str:
        return self.docker("exec", container, "psql", "-XAtq", "-U", user, "-d", database, "-c", statement)

    def until_postgres_answers(self, container: str) -> None:
        """By TCP: while it is set up it listens on its socket alone."""
        deadline = time.monotonic() + _UP_S
        argv = [*self._client, "exec", container, "pg_isready", "-q", "-h", "127.0.0.1"]
        while subprocess.run(argv, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, self.docker("logs", container)
            time.sleep(0.05)

    # --- images ------------------------------------------------------------------------------------------------------

    def make_busybox(self) -> None:
        self._make(BUSYBOX, _Root().with_busybox(), ['CMD ["/bin/sh"]'])

    def make_postgres(self) -> None:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1]
        root = _Root().with_busybox()
        for program in sorted(programs.iterdir()):
            root.program(program.resolve(), f"usr/bin/{program.name}", inside=programs)
        for folder in (programs.parent / "lib", Path("/usr/share/postgresql") / programs.parent.name):
            root.tree(folder)
        root.tree(Path("/usr/share/zoneinfo"), only=("UTC", "Etc", "Europe"))
        root.tree(Path("/usr/lib/locale/C.utf8"))
        root.text("etc/passwd", f"root:x:0:0::/:/bin/sh\npostgres:x:{_POSTGRES}:{_POSTGRES}::/tmp:/bin/sh\n")
        root.text("entrypoint", _ENTRYPOINT, 0o755)
        root.folder("var/lib/postgresql/data", 0o700, _POSTGRES)
        for place in ("run/postgresql", "var/run/postgresql"):
            root.folder(place, 0o775, _POSTGRES)
        self._make(
            POSTGRES,
            root,
            [
                f"ENV PATH={programs}:/bin:/usr/bin PGDATA=/var/lib/postgresql/data LC_ALL=C.UTF-8",
                f"USER {_POSTGRES}:{_POSTGRES}",
                'ENTRYPOINT ["/entrypoint"]',
                "VOLUME /var/lib/postgresql/data",
                "EXPOSE 5432",
            ],
        )

    def make_redis(self) -> None:
        """As the official one: its data in /data, which belongs to its user, and open to other machines."""
        root = _Root().with_busybox()
        for name in ("redis-server", "redis-cli"):
            root.program(Path(f"/usr/bin/{name}").resolve(), f"usr/bin/{name}", inside=Path("/usr/bin"))
        root.text("etc/passwd", f"root:x:0:0::/:/bin/sh\nredis:x:{_REDIS}:{_REDIS}::/data:/bin/sh\n")
        root.folder("data", 0o755, _REDIS)
        self._make(
            REDIS,
            root,
            [
                "ENV PATH=/bin:/usr/bin",
                f"USER {_REDIS}:{_REDIS}",
                "WORKDIR /data",
                'ENTRYPOINT ["redis-server", "--bind", "*"]',
                'CMD ["--protected-mode", "no"]',
                "VOLUME /data",
                "EXPOSE 6379",
            ],
        )

    def make_system(self, name: str, files: Mapping[str, str]) -> None:
        """What is to have this machine's /usr mounted, with these ``files`` besides."""
        root = _Root(("etc", "dev", "proc", "sys", "tmp", "run", "usr", "var", "root"))
        for link in ("bin", "sbin", "lib", "lib64"):
            root.link(link, f"usr/{link}")
        root.text("etc/passwd", "root:x:0:0::/root:/bin/sh\n")
        root.text("etc/group", "root:x:0:\n")
        root.text("etc/machine-id", "")
        for path, text in files.items():
            root.text(path, text)
        self._make(name, root, [])

    def _make(self, name: str, root: _Root, changes: Sequence[str]) -> None:
        argv = [word for change in changes for word in ("--change", change)]
        self.docker("import", *argv, "-", name, stdin=root.packed())


class _Root:
    """A root filesystem made of files of this machine, with the libraries that its programs ask for."""

    def __init__(self, folders: Sequence[str] = ("tmp", "etc", "bin", "usr/bin", "dev", "proc", "sys")) -> None:
        self._content = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._content, mode="w")  # noqa: SIM115  until it is packed
        self._there: set[str] = set()
        for folder in folders:
            self.folder(folder, 0o1777 if folder == "tmp" else 0o755)

    def folder(self, path: str, mode: int, owner: int = 0) -> None:
        told = tarfile.TarInfo(path)
        told.type, told.mode, told.uid, told.gid = tarfile.DIRTYPE, mode, owner, owner
        self._tar.addfile(told)

    def text(self, path: str, text: str, mode: int = 0o644) -> None:
        told = tarfile.TarInfo(path)
        told.size, told.mode = len(text.encode()), mode
        self._tar.addfile(told, io.BytesIO(text.encode()))

    def link(self, path: str, to: str) -> None:
        told = tarfile.TarInfo(path)
        told.type, told.linkname = tarfile.SYMTYPE, to
        self._tar.addfile(told)

    def file(self, path: Path, at: str) -> None:
        if at not in self._there:
            self._there.add(at)
            self._tar.add(path.resolve(), at, recursive=False)

    def tree(self, folder: Path, only: Sequence[str] = ()) -> None:
        for path in [folder / name for name in only] or [folder]:
            if path.exists():
                self._tar.add(path, str(path).lstrip("/"))
        for library in folder.rglob("*.so") if not only else ():
            self._libraries(library)

    def program(self, path: Path, at: str, inside: Path) -> None:
        self.file(path, f"{str(inside).lstrip('/')}/{Path(at).name}")
        self._libraries(path)

    def _libraries(self, path: Path) -> None:
        told = subprocess.run(["ldd", path], capture_output=True, text=True).stdout
        for word in told.split():
            if word.startswith("/"):
                self.file(Path(word), word.lstrip("/"))

    def with_busybox(self) -> _Root:
        found = shutil.which("busybox", path="/bin:/usr/bin")
        assert found
        self.file(Path(found), "bin/busybox")
        for applet in subprocess.run([found, "--list"], capture_output=True, text=True, check=True).stdout.split():
            if applet != "busybox":
                self.link(f"bin/{applet}", "busybox")
        return self

    def packed(self) -> bytes:
        self._tar.close()
        return self._content.getvalue()


@contextmanager
def engine() -> Iterator[Engine]:
    if os.geteuid() != 0 or shutil.which("dockerd") is None or shutil.which("docker") is None:
        pytest.skip("needs root and Debian's docker.io")
    found = Engine(Path(tempfile.mkdtemp(prefix="md-")))  # short: a socket's path holds 107 bytes
    try:
        found.start()
        yield found
    finally:
        found.stop()
        for mount in reversed(_mounted_below(found.folder)):
            subprocess.run(["umount", "--lazy", mount], check=False)
        shutil.rmtree(found.folder, ignore_errors=True)


def _mounted_below(folder: Path) -> list[str]:
    mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
    return [mount for mount in mounts if Path(mount).is_relative_to(folder)]


def compose(project: str, service: str, needs: str = "") -> list[str]:
    """The labels that compose v2 gives a container, as words for ``docker run``."""
    labels: Mapping[str, str] = {
        "com.docker.compose.project": project,
        "com.docker.compose.service": service,
        "com.docker.compose.depends_on": needs,
        "com.docker.compose.oneoff": "False",
    }
    return [word for name, value in labels.items() for word in ("--label", f"{name}={value}")]

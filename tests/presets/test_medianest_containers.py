"""MediaNest in containers, as its compose file for production has it: what ``init`` writes serves as it is."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.archives import snapshot
from tests.docker_engine import Engine
from tests.home import wait_until
from tests.presets.months import Box, dated
from tests.presets.test_medianest import CANARIES, SCHEMA, TABLES, leaks

SERVER = 999
"""Who the servers are in their images."""

FILL = "for i = 1, 500 do redis.call('set', 'k:' .. i, redis.sha1hex(i), 'ex', 100000) end"
EVERYTHING = (
    "local t, keys = {}, redis.call('keys', '*') table.sort(keys) for _, k in ipairs(keys) do"
    " t[#t + 1] = k .. ' ' .. redis.sha1hex(redis.call('dump', k)) .. ' ' .. redis.call('pexpiretime', k) end return t"
)


class Composed(Box):
    """Volumes bound to folders, secrets as files, an append-only Redis, and no port open to this machine."""

    def __init__(self, folder: Path, history: str, engine: Engine) -> None:
        super().__init__(folder, "medianest", history)
        self.engine = engine
        self.environ = {"DOCKER_HOST": f"unix://{engine.socket}"}
        self.backups, self.data, self.secrets = (self.home / n for n in ("backups", "data", "secrets"))

    def set_up(self) -> None:
        self.secrets.mkdir()
        for name in ("postgres_password", "redis_password", "jwt_secret"):
            (self.secrets / name).write_text(CANARIES[name])
            (self.secrets / name).chmod(0o400)
            os.chown(self.secrets / name, SERVER, SERVER)
        for name in (".env", "config/prometheus.yml", "infrastructure/nginx/nginx-prod.conf", "docker-compose.yml"):
            (self.home / name).parent.mkdir(parents=True, exist_ok=True)
            (self.home / name).write_text(f"# {name}\n")

    def create(self) -> None:
        """docker compose create"""
        for name in ("postgres", "redis", "uploads"):
            (self.data / name).mkdir(parents=True)
            os.chown(self.data / name, SERVER, SERVER)
            bound = ["--opt", "type=none", "--opt", "o=bind", "--opt", f"device={self.data / name}"]
            self.engine.docker("volume", "create", *bound, f"medianest_{name}")
        self._make("postgres", "postgres:15", ["medianest_postgres:/var/lib/postgresql/data",
                   f"{self.secrets}/postgres_password:/run/secrets/postgres_password:ro"],
                   env=("POSTGRES_DB=medianest", "POSTGRES_USER=medianest",
                        "POSTGRES_PASSWORD_FILE=/run/secrets/postgres_password"))  # fmt: skip
        self._make("redis", "redis:7", ["medianest_redis:/data"],
                   "--requirepass", CANARIES["redis_password"], "--appendonly", "yes")  # fmt: skip
        self._make("backend", "medianest/backend:latest", ["medianest_uploads:/app/uploads"], "sleep", "infinity")

    def _make(self, service: str, image: str, volumes: list[str], *command: str, env: tuple[str, ...] = ()) -> None:
        labels = {
            "project": "medianest", "service": service, "oneoff": "False", "project.working_dir": self.home,
            "project.config_files": self.home / "docker-compose.yml",
        }  # fmt: skip
        words = [w for key, value in labels.items() for w in ("--label", f"com.docker.compose.{key}={value}")]
        words += [w for volume in volumes for w in ("--volume", volume)] + [w for one in env for w in ("--env", one)]
        name = f"medianest-{service}"
        self.engine.docker("create", "--name", name, "--network", "family", *words, image, *command)

    def start(self, *services: str) -> None:
        for service in services:
            self.engine.docker("start", f"medianest-{service}")
        if "postgres" in services:
            self.engine.until_postgres_answers("medianest-postgres")
        if "redis" in services:
            wait_until(lambda: self.redis("PING") == "PONG")

    def redis(self, *words: str, container: str = "medianest-redis", password: str = CANARIES["redis_password"]) -> str:
        env = ("--env", f"REDISCLI_AUTH={password}") if password else ()
        return self.engine.docker("exec", *env, container, "sh", "-c", 'redis-cli "$@" || true', "sh", *words)

    def sql(self, statement: str) -> str:
        return self.engine.sql("medianest-postgres", statement, user="medianest", database="medianest")

    def held(self) -> tuple[object, ...]:
        rows = [self.sql(f"SELECT t FROM {table} t ORDER BY id") for table in TABLES]
        files = [(self.home / n).read_bytes() for n in (".env", "docker-compose.yml")]
        folders = [self.home / "config", self.home / "infrastructure", self.secrets, self.data / "uploads"]
        return rows, self.redis("EVAL", EVERYTHING, "0"), files, [snapshot(one) for one in folders]

    def lose(self) -> None:
        """The disk died; the backups are on another."""
        for container in self.engine.docker("ps", "--all", "--quiet", "--filter", "name=medianest-").split():
            self.engine.docker("rm", "--force", container)
        for volume in self.engine.docker("volume", "ls", "--quiet", "--filter", "name=medianest_").split():
            self.engine.docker("volume", "rm", volume)
        for path in self.home.iterdir():
            if path != self.backups:
                shutil.rmtree(path) if path.is_dir() else path.unlink()


@pytest.fixture
def box(folder: Path, history: str, engine: Engine, postgres_image: str, redis_image: str) -> Iterator[Composed]:
    assert (postgres_image, redis_image) == ("postgres:15", "redis:7")
    engine.docker("tag", "busybox:1", "medianest/backend:latest")
    made = Composed(folder, history, engine)
    yield made
    made.lose()


@pytest.mark.slow
def test_it_is_found_backed_up_lost_and_back_by_the_lines_of_the_manual(box: Composed, redis_image: str) -> None:
    box.set_up()
    box.create()
    box.start("postgres", "redis", "backend")
    for statement in SCHEMA:
        box.sql(statement)
    box.redis("EVAL", FILL, "0")
    for number in range(5):
        (box.data / "uploads" / f"{number} ä.webp").write_bytes(os.urandom(3000))
    told = [box.init()]
    assert told[0].out.startswith(f"Docker has MediaNest as compose project medianest, in {box.home}.")
    assert [line for line in box.file.read_text().splitlines() if line.startswith("# CHECK: ")] == [
        "# CHECK: Best a disk of its own, and encrypted (see above); mount it before the first backup."
    ]
    told.append(box.run("check"))
    lacking = {line[5:].split(":")[0] for line in told[-1].out.splitlines() if line.startswith(" NO")}
    assert lacking == {"the service", "alerts"}, told[-1].out
    told.append(box.fine("start"))
    assert all(box.engine.runs(f"medianest-{name}") for name in ("postgres", "redis", "backend"))
    before = box.held()
    (night,) = dated(box.backups)

    box.lose()
    told.append(box.fine("restore", "--in-place", "--yes", "--source", "config", "--source", "secrets"))
    box.create()
    box.start("postgres")
    rest = ("--source", "database", "--source", "redis", "--source", "uploads")
    told.append(box.fine("restore", night, "--in-place", "--yes", *rest))
    box.start("redis", "backend")
    assert box.held() == before

    # The database alone: the others go on meanwhile.
    box.sql("UPDATE users SET email = id::text")
    box.engine.docker("exec", "medianest-postgres", "dropdb", "--force", "--username", "medianest", "medianest")
    told.append(box.fine("restore", night, "--in-place", "--yes", "--source", "database"))
    assert box.held() == before
    assert not {canary for done in told for canary in leaks(done.out + done.err)}

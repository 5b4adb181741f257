"""What ``init`` sees on a machine: compose projects of a real Docker Engine, compose files, and nothing at all."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from memu_backup import presets
from memu_backup.config import load
from memu_backup.survey import of_files
from tests.docker_engine import BUSYBOX, Engine
from tests.home import PROGRAM, Ran, ran

GOLDEN = Path(__file__).with_name("memu.config.toml")

IMAGES = {
    "memu_postgres": "tensorchord/pgvecto-rs:pg14",
    "memu_synapse": "matrixdotorg/synapse:latest",
    "memu_brain": "ollama/ollama:latest",
    "memu_photos": "ghcr.io/immich-app/immich-server:release",
    "memu_photos_ml": "ghcr.io/immich-app/immich-machine-learning:release",
    "memu_redis": "redis:7-alpine",
    "memu_proxy": "nginx:alpine",
    "memu_calendar": "ckulka/baikal:nginx",
    "memu_photos_db": "ghcr.io/immich-app/postgres:14",
    "memu_backend": "medianest/backend:latest",
}

Compose = Callable[..., None]


@pytest.fixture
def folder() -> Iterator[Path]:
    """Of a length that is always the same, as comments are wrapped."""
    made = Path(tempfile.mkdtemp(prefix="i-", dir="/tmp"))
    yield made
    shutil.rmtree(made)


@pytest.fixture
def memu(folder: Path) -> Path:
    """Memu's folder, as its installer leaves it."""
    home = folder / "memu"
    for name in ("photos", "synapse", "nginx"):
        (home / name).mkdir(parents=True)
    (home / ".env").write_text("DB_PASSWORD=s3cret\nUPLOAD_LOCATION=./photos\nBACKUP_RETENTION_COUNT=9\n")
    for name in ("docker-compose.yml", "element-config.json"):
        (home / name).write_text("{}")
    return home


@pytest.fixture
def compose(engine: Engine) -> Iterator[Compose]:
    """Make one container of a project, as compose v2 labels it."""
    made = []

    def service(project: str, home: Path, name: str, *volumes: str) -> None:
        image = IMAGES[name]
        engine.docker("tag", BUSYBOX, image)
        labels = {
            "project": project, "service": name.removeprefix("memu_"), "oneoff": "False",
            "project.working_dir": home, "project.config_files": home / "docker-compose.yml",
        }  # fmt: skip
        words = [w for key, value in labels.items() for w in ("--label", f"com.docker.compose.{key}={value}")]
        words += [w for volume in volumes for w in ("--volume", volume)]
        called = name if project == "memu" else f"{project}_{name}"
        engine.docker("create", "--name", called, *words, image, "true")
        made.append(called)

    yield service
    for called in made:
        engine.docker("rm", "--force", "--volumes", called)
    for volume in engine.docker("volume", "ls", "--quiet").split():
        engine.docker("volume", "rm", volume)


def up(compose: Compose, home: Path, project: str = "memu") -> None:
    compose(project, home, "memu_postgres", f"{project}_pgdata:/var/lib/postgresql/data")
    compose(project, home, "memu_synapse", f"{home}/synapse:/data")
    compose(project, home, "memu_brain", f"{project}_ollama_data:/root/.ollama")
    compose(project, home, "memu_photos", f"{home}/photos:/usr/src/app/upload", "/etc/localtime:/etc/localtime:ro")
    compose(project, home, "memu_photos_ml", f"{project}_model_cache:/cache")
    compose(project, home, "memu_redis", f"{project}_redisdata:/data")
    compose(project, home, "memu_proxy", f"{home}/nginx:/etc/nginx/conf.d:ro")
    compose(project, home, "memu_calendar", f"{project}_baikal:/var/www/baikal/Specific")


def init(cwd: Path, *argv: str, engine: Engine | None = None, socket: Path | None = None) -> Ran:
    at = socket or (engine.socket if engine else cwd / "nobody.sock")
    path = "/usr/local/bin:/usr/bin:/bin"
    environ = {"DOCKER_HOST": f"unix://{at}", "MEMU_BACKUP_STATE_DIR": f"{cwd}/state", "PATH": path}
    return ran([PROGRAM, "init", *argv], cwd, environ)


def test_memu_is_found_by_its_containers_and_written_down_with_comments(
    engine: Engine, compose: Compose, folder: Path, memu: Path
) -> None:
    up(compose, memu)
    done = init(folder, engine=engine)
    assert (done.status, done.err) == (0, "")
    text = (folder / "config.toml").read_text()
    plain = text.replace(str(folder), "/srv").replace(str(engine.socket), "/run/docker.sock")
    assert plain == GOLDEN.read_text()
    assert (folder / "config.toml").stat().st_mode & 0o777 == 0o600
    config = load(folder / "config.toml", {})
    job = config.job("nightly")
    assert job.needs_stop == {"pgdata", "synapse", "config"} and job.services == ("memu",)
    lines = done.out.splitlines()
    assert lines[0] == f"Docker has Memu as compose project memu, in {memu}."
    assert "  sources.pgdata: Docker volume memu_pgdata" in lines
    assumed = lines[lines.index("Assumed, as nothing here tells:") :]
    assert assumed[1] == f"  backup_dir: {memu}/backups" and assumed[2] == "Not in the backup:"
    assert lines[-1] == "  memu-backup check"
    assert "s3cret" not in text + done.out


def test_from_there_the_first_backup_holds_what_the_specification_names(
    engine: Engine, compose: Compose, folder: Path, memu: Path
) -> None:
    up(compose, memu)
    for volume, name in (("memu_pgdata", "PG_VERSION"), ("memu_ollama_data", "models"), ("memu_redisdata", "dump.rdb")):
        (engine.mountpoint(volume) / name).write_text(volume)
    assert init(folder, engine=engine).status == 0
    environ = {"MEMU_BACKUP_STATE_DIR": f"{folder}/state", "PATH": "/usr/bin:/bin"}
    made = ran([PROGRAM, "start"], folder, environ)
    assert made.status == 0, made.err
    (archive,) = (memu / "backups").glob("memu_backup_*.tar.gz")
    with tarfile.open(archive) as tar:
        names = tar.getnames()
    places = {name.partition("/")[0] for name in names}
    specified = {"pgdata", "ollama", "photos", "synapse", "config", "metadata.json"}
    assert places == specified | {"SHA256SUMS", "index.jsonl", "memu-backup"}
    assert {"pgdata/PG_VERSION", "ollama/models", "config/.env", "config/element-config.json"} <= set(names)
    assert "config/nginx" in names and not any("dump.rdb" in name for name in names)


def test_nothing_is_written_in_a_dry_run_and_json_tells_it_all(
    engine: Engine, compose: Compose, folder: Path, memu: Path
) -> None:
    up(compose, memu)
    shown = init(folder, "--dry-run", engine=engine)
    assert tomllib.loads(shown.out)["sources"]["ollama"]["volume"] == "memu_ollama_data"
    assert "Now look at each line" in shown.err and not (folder / "config.toml").exists()
    assert not (memu / "backups").exists()
    told = init(folder, "--dry-run", "--json", engine=engine).json
    assert (told["text"], told["file"]) == (shown.out, None)
    told = init(folder, "--json", engine=engine).json
    assert told["file"] == f"{folder}/config.toml" and told["next"] == "memu-backup check" and "text" not in told
    values = {value["name"]: value for value in told["values"]}
    assert values["backup_retention_count"]["value"] == "9" and not values["backup_dir"]["known"]
    assert {left["value"]: left["known"] for left in told["left_out"]} == {
        "memu_baikal": False, "memu_model_cache": True, "memu_redisdata": True
    }  # fmt: skip


def test_of_several_that_fit_one_has_to_be_named(engine: Engine, compose: Compose, folder: Path, memu: Path) -> None:
    other = folder / "test"
    shutil.copytree(memu, other)
    up(compose, memu)
    up(compose, other, "memu-test")
    asked = init(folder, engine=engine)
    assert asked.status == 2 and f"memu in {memu}, memu-test in {other}. Say which one with --home" in asked.err
    assert not (folder / "config.toml").exists()
    assert init(folder, "--home", str(other), engine=engine).status == 0
    raw = tomllib.loads((folder / "config.toml").read_text())
    assert raw["services"]["memu"]["project"] == "memu-test"
    assert raw["sources"]["pgdata"]["volume"] == "memu-test_pgdata"


def test_a_folder_that_docker_does_not_know_is_told_with_those_that_it_knows(
    engine: Engine, compose: Compose, folder: Path, memu: Path
) -> None:
    compose("other", folder / "other", "memu_redis", "other_redis:/data")
    done = init(folder, "--home", str(memu), engine=engine)
    assert done.status == 0
    assert f"no compose project in {memu} (it has other in {folder}/other), so only the compose file" in done.out
    none = init(folder, "--to", "b.toml", engine=engine)
    assert none.status == 0 and "no compose project that looks like Memu" in none.out


def test_what_is_mounted_from_elsewhere_is_a_folder_whatever_its_name(
    engine: Engine, compose: Compose, folder: Path, memu: Path
) -> None:
    up_to = folder / 'an "odd" \\ {home} größe'
    up_to.mkdir()
    compose("memu", memu, "memu_postgres", f"{up_to}:/var/lib/postgresql/data")
    compose("memu", memu, "memu_synapse", "memu_synapse:/data")
    compose("memu", memu, "memu_photos", "/var/lib/postgresql/data", f"{memu}/photos:/data")
    assert init(folder, engine=engine).status == 0
    raw = tomllib.loads((folder / "config.toml").read_text())["sources"]
    assert raw["pgdata"]["path"] == str(up_to) and raw["pgdata"]["kind"] == "directory"
    assert raw["synapse"]["volume"] == "memu_synapse"
    assert "CHECK" not in (folder / "config.toml").read_text().split("[sources.pgdata]")[1].split("needs_stop")[0]


def test_two_databases_are_not_taken_for_one(engine: Engine, compose: Compose, folder: Path, memu: Path) -> None:
    up(compose, memu)
    compose("memu", memu, "memu_photos_db", "memu_immich_db:/var/lib/postgresql/data")
    assert init(folder, engine=engine).status == 0
    part = (folder / "config.toml").read_text().split("[sources.pgdata]")[1].split("needs_stop")[0]
    assert "CHECK" in part and "It is not the only one: " in part


def test_medianest_is_found_with_its_redis_and_the_files_that_hold_passwords(
    engine: Engine, compose: Compose, folder: Path
) -> None:
    """And a Redis of another system is not its own."""
    home = folder / "medianest"
    (home / "secrets").mkdir(parents=True)
    (home / "secrets" / "redis_password").write_text("s3cret")
    compose("other", folder / "other", "memu_redis", "other_redis:/data")
    compose("medianest", home, "memu_postgres", "medianest_postgres_data:/var/lib/postgresql/data")
    compose("medianest", home, "memu_redis", "medianest_redis_data:/data")
    compose("medianest", home, "memu_backend", "medianest_app_uploads:/app/uploads", "medianest_logs:/app/logs")
    done = init(folder, "--preset", "medianest", engine=engine)
    assert (done.status, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == f"Docker has MediaNest as compose project medianest, in {home}."
    found = lines[: lines.index("Assumed, as nothing here tells:")]
    assert "  sources.redis: Redis in container medianest_memu_redis" in found
    assert any("medianest_redis_data" in line and "as a snapshot" in line for line in lines)
    text = (folder / "config.toml").read_text()
    raw = tomllib.loads(text)["sources"]
    server = {"kind": "redis", "container": "medianest_memu_redis", "socket": str(engine.socket)}
    assert raw["redis"] == server | {"password_file": f"{home}/secrets/redis_password"}
    assert (raw["database"]["kind"], raw["database"]["container"]) == ("postgres", "medianest_memu_postgres")
    assert "password_file" not in raw["database"] and f'# password_file = "{home}/secrets/postgres_password"' in text
    assert raw["uploads"]["volume"] == "medianest_app_uploads"
    assert "s3cret" not in text + done.out


@pytest.mark.parametrize("denied", [False, True])
def test_without_docker_the_compose_file_tells(folder: Path, memu: Path, denied: bool) -> None:
    (memu / "docker-compose.yml").write_text(
        "services:\n"
        "  postgres: {image: 'pgvector/pgvector:pg15', volumes: ['pgdata:/var/lib/postgresql/data']}\n"
        "  synapse: {image: matrixdotorg/synapse, container_name: chat, volumes: ['./synapse:/data:rw']}\n"
        "  photos: {image: 'ghcr.io/immich-app/immich-server', volumes: ['${UPLOAD_LOCATION:?}:/data']}\n"
        "  ollama:\n    image: ollama/ollama\n"
        "    volumes: [{type: volume, source: models, target: /root/.ollama}]\n"
        "volumes: {pgdata: , models: {name: shared-models}}\n"
    )
    argv = ["init", "--home", str(memu)]
    if denied:
        listening = folder / "closed.sock"
        import socket as sockets

        with sockets.socket(sockets.AF_UNIX) as server:
            server.bind(str(listening))
            server.listen()
            listening.chmod(0o600)
            folder.chmod(0o777)
            nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
            environ = {"DOCKER_HOST": f"unix://{listening}", "PATH": "/usr/bin:/bin", "HOME": str(folder)}
            done = ran([*nobody, PROGRAM, *argv], folder, environ)
        assert "This user may not speak to Docker" in done.out
    else:
        done = init(folder, *argv[1:])
        assert "Docker does not answer at" in done.out
    assert done.status == 0 and f"{memu}/docker-compose.yml tells of compose project memu." in done.out
    raw = tomllib.loads((folder / "config.toml").read_text())["sources"]
    assert raw["pgdata"]["volume"] == "memu_pgdata" and raw["ollama"]["volume"] == "shared-models"
    assert raw["photos"]["path"] == f"{memu}/photos" and raw["synapse"]["path"] == f"{memu}/synapse"
    assert "# Container chat keeps its /data there.\n" in (folder / "config.toml").read_text()


def test_a_compose_file_that_is_none_costs_nothing_but_its_knowledge(folder: Path, memu: Path) -> None:
    (memu / "docker-compose.yml").write_text("services: [")
    done = init(folder, "--home", str(memu))
    assert done.status == 0 and "is not a compose file that can be read." in done.out
    assert tomllib.loads((folder / "config.toml").read_text())["sources"]["pgdata"]["volume"] == "memu_pgdata"


def test_the_forms_of_a_compose_file(folder: Path) -> None:
    (folder / ".env").write_text("A=/data/a\nEMPTY=\nCOMPOSE_PROJECT_NAME=ignored\n")
    (folder / "compose.yaml").write_text(
        "name: fam\nservices:\n  app:\n    image: ${REGISTRY-docker.io}/app:1\n    volumes:\n"
        "      - $A:/a\n      - ${EMPTY:-./b}:/b\n      - $$x:/c\n      - /only\n      - ext:/d:ro\n"
        "      - {type: bind, source: ../e, target: /e, read_only: true}\n      - {type: tmpfs, target: /f}\n"
        "volumes:\n  ext: {external: true}\n"
    )
    (folder / "compose.override.yaml").write_text("services: {app: {volumes: ['g:/a']}, new: {image: n}}\n")
    project = of_files(folder)
    assert project and project.name == "fam" and len(project.files) == 2
    app, new = project.parts
    assert (app.names, new.service) == (("app", "app"), "new")
    assert [(m.source, m.inside, m.is_volume, m.read_only) for m in app.mounts] == [
        ("fam_g", "/a", True, False),
        (f"{folder}/b", "/b", False, False),
        ("fam_$x", "/c", True, False),
        ("ext", "/d", True, True),
        (f"{folder.parent}/e", "/e", False, True),
    ]


@pytest.mark.parametrize("name", presets.names())
def test_each_preset_fills_all_of_its_places(name: str, folder: Path) -> None:
    assert init(folder, "--preset", name, "--home", str(folder)).status == 0
    rules = presets.rules(name)
    places = {"home}", "project}", "left_out", *rules.settings, *rules.data, *rules.servers, *rules.files}
    text = (folder / "config.toml").read_text()
    assert not [place for place in places if f"{{{place}" in text]


def test_bad_input_is_said_and_nothing_written(folder: Path) -> None:
    for argv, says in (
        (("--preset", "meu"), f"There is no preset meu; there are: {', '.join(presets.names())}. Did you mean memu?"),
        (("--home", "~nobody-at-all/memu"), "~nobody-at-all is the home folder of nobody on this machine."),
        (("--to", "missing/config.toml"), "cannot be written"),
    ):
        done = init(folder, *argv)
        assert done.status == 2 and says in done.err
    assert not list(folder.iterdir())

"""Containers of a real Docker Engine: stopped in their order, started again just as they were, and never by mistake."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from pydantic import ValidationError

from memu_backup.errors import EngineAway, EngineError, ServiceError
from memu_backup.services import Unit
from memu_backup.services.docker import DockerService, DockerSettings
from tests.docker_engine import BUSYBOX, Engine, compose

FOREVER = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")

Run = Callable[..., str]


def service(engine: Engine, project: str | None = None, **more: object) -> DockerService:
    told = {"kind": "docker", "socket": engine.socket, "healthy_within_s": 10, "stop_timeout_s": 2, **more}
    if project:
        told["project"] = project
    return DockerService("memu", DockerSettings.model_validate(told))


@pytest.fixture
def project(engine: Engine) -> Iterator[str]:
    name = f"p{uuid4().hex[:8]}"
    yield name
    found = engine.docker("ps", "--all", "--quiet", "--filter", f"label=com.docker.compose.project={name}").split()
    for container in found:
        engine.docker("rm", "--force", container)


@pytest.fixture
def run(engine: Engine, project: str) -> Run:
    """Run a container of the project; returns its name."""

    def started(name: str, *argv: str, needs: str = "", flags: tuple[str, ...] = ()) -> str:
        called = f"{project}-{name}"
        words = ["run", "--detach", "--name", called, *compose(project, name, needs), *flags, BUSYBOX]
        engine.docker(*words, *(argv or FOREVER))
        return called

    return started


async def names(found: DockerService) -> list[str]:
    return [unit.name.partition("-")[2] for unit in await found.running()]


async def unit_of(found: DockerService, name: str) -> Unit:
    return next(unit for unit in await found.running() if unit.name == name)


async def test_what_needs_others_is_stopped_before_them(engine: Engine, project: str, run: Run) -> None:
    run("web", needs="server:service_started:false")
    run("redis")
    run("server", needs="db:service_healthy:true,redis:service_started:false")
    run("db")
    run("alone")
    found = await names(service(engine, project))
    assert set(found) == {"web", "redis", "server", "db", "alone"}
    assert found.index("web") < found.index("server") < min(found.index("db"), found.index("redis"))
    rank = {unit.name.partition("-")[2]: unit.rank for unit in await service(engine, project).running()}
    assert rank == {"web": 2, "server": 1, "db": 0, "redis": 0, "alone": 0}


async def test_without_such_a_label_the_compose_file_tells(engine: Engine, project: str, tmp_path: Path) -> None:
    (tmp_path / "docker-compose.yml").write_text(
        "services:\n  z_db: {image: x}\n  server: {image: x, depends_on: [z_db]}\n"
        "  a_web: {image: x, depends_on: {server: {condition: service_started}}, links: ['z_db:database']}\n"
    )
    for name in ("a_web", "server", "z_db"):  # neither age nor name would tell
        labels = {
            "project": project, "service": name, "project.working_dir": tmp_path,
            "project.config_files": "docker-compose.yml",
        }  # fmt: skip
        words = [word for key, value in labels.items() for word in ("--label", f"com.docker.compose.{key}={value}")]
        engine.docker("run", "--detach", "--name", f"{project}-{name}", *words, BUSYBOX, *FOREVER)
    assert await names(service(engine, project)) == ["a_web", "server", "z_db"]
    (tmp_path / "docker-compose.yml").write_text("services: [")
    assert set(await names(service(engine, project))) == {"a_web", "server", "z_db"}


async def test_a_circle_of_needs_is_no_reason_to_hang(engine: Engine, project: str, run: Run) -> None:
    run("a", needs="b:service_started:false")
    run("b", needs="a:service_started:false")
    assert set(await names(service(engine, project))) == {"a", "b"}


async def test_only_what_runs_is_stopped_and_just_that_runs_again(engine: Engine, project: str, run: Run) -> None:
    on, off = run("on"), run("off")
    other = engine.docker("run", "--detach", "--name", f"{project}-other", BUSYBOX, *FOREVER)
    engine.docker("stop", "--time", "0", off)
    memu = service(engine, project)
    (unit,) = await memu.running()
    assert unit.name == on
    await memu.stop(unit)
    assert not engine.runs(on) and not await memu.runs(unit)
    await memu.stop(unit)  # off already
    await memu.start(unit)
    assert engine.runs(on) and await memu.runs(unit) and not engine.runs(off) and engine.runs(other)
    began = engine.inspect(on)["State"]["StartedAt"]
    await memu.start(unit)  # runs already
    assert engine.inspect(on)["State"]["StartedAt"] == began
    engine.docker("rm", "--force", other)


async def test_by_labels_instead_of_a_project(engine: Engine, project: str, run: Run) -> None:
    run("yes", flags=("--label", "backup.stop=yes", "--label", f"of={project}"))
    run("no", flags=("--label", "backup.stop=no", "--label", f"of={project}"))
    assert await names(service(engine, labels=["backup.stop=yes", f"of={project}"])) == ["yes"]
    assert set(await names(service(engine, labels=["backup.stop", f"of={project}"]))) == {"yes", "no"}


async def test_what_would_not_come_back_as_it_was_is_left_alone_and_named(
    engine: Engine, project: str, run: Run
) -> None:
    run("plain")
    paused = run("paused")
    engine.docker("pause", paused)
    passing = run("passing", flags=("--rm",))
    task = ["--label", f"com.docker.compose.project={project}", "--label", "com.docker.compose.oneoff=True"]
    engine.docker("run", "--detach", "--name", f"{project}-task", *task, BUSYBOX, *FOREVER)
    memu = service(engine, project)
    assert await names(memu) == ["plain"]
    warnings = "\n".join(await memu.check())
    for name, why in ((paused, "paused"), (passing, "--rm"), (f"{project}-task", "one task")):
        assert any(name in line and why in line for line in warnings.splitlines()), warnings
    engine.docker("unpause", paused)


async def test_one_that_is_just_being_restarted_runs(engine: Engine, project: str, run: Run) -> None:
    restless = run("restless", "sh", "-c", "sleep 0.2; exit 1", flags=("--restart", "always"))
    deadline = time.monotonic() + 20
    while engine.inspect(restless)["State"]["Status"] != "restarting":
        assert time.monotonic() < deadline
    memu = service(engine, project)
    (unit,) = await memu.running()
    while "ends again and again" not in " ".join(await memu.check()):  # it runs for moments
        assert time.monotonic() < deadline
    await memu.stop(unit)
    assert not engine.runs(restless)


async def test_its_health_is_waited_for(engine: Engine, project: str, run: Run) -> None:
    slow = run("slow", "sh", "-c", "rm -f /tmp/well; sleep 1.5; touch /tmp/well; sleep 1000",
               flags=("--health-cmd", "test -e /tmp/well", "--health-interval", "100ms"))  # fmt: skip
    memu = service(engine, project)
    unit = Unit(engine.inspect(slow)["Id"], slow)
    await memu.stop(unit)
    await memu.start(unit)
    assert engine.inspect(slow)["State"]["Health"]["Status"] == "healthy"


async def test_one_that_never_gets_well_is_told_with_what_its_check_says_and_is_left_to_run(
    engine: Engine, project: str, run: Run
) -> None:
    ill = run(
        "ill", flags=("--health-cmd", "echo 'the database is being mended'; exit 1", "--health-interval", "100ms")
    )
    memu = service(engine, project, healthy_within_s=2)
    unit = await unit_of(memu, ill)
    await memu.stop(unit)
    with pytest.raises(ServiceError, match=r"did not come up again: after 2 s its health check still fails.*mended"):
        await memu.start(unit)
    assert engine.runs(ill)


async def test_one_that_ends_at_once_is_tried_a_second_time(
    engine: Engine, project: str, run: Run, tmp_path: Path
) -> None:
    flaky = run("flaky", "sh", "-c", "echo x >> /data/tries; [ $(wc -l < /data/tries) != 2 ] && sleep 1000",
                flags=("--volume", f"{tmp_path}:/data"))  # fmt: skip
    memu = service(engine, project)
    unit = await unit_of(memu, flaky)
    await memu.stop(unit)
    await memu.start(unit)
    assert engine.runs(flaky) and (tmp_path / "tries").read_text() == "x\n" * 3


async def test_one_that_always_ends_is_told_with_its_exit_code(engine: Engine, project: str, run: Run) -> None:
    broken = run("broken", "sh", "-c", "test -e /tmp/first && exit 7; touch /tmp/first; sleep 1000")
    memu = service(engine, project)
    unit = await unit_of(memu, broken)
    await memu.stop(unit)
    with pytest.raises(ServiceError, match=f"ended with exit code 7. Look at what it says: docker logs {broken}"):
        await memu.start(unit)


async def test_one_that_was_made_anew_meanwhile_is_started_under_its_name(
    engine: Engine, project: str, run: Run
) -> None:
    name = run("made")
    memu = service(engine, project)
    unit = await unit_of(memu, name)
    await memu.stop(unit)
    engine.docker("rm", name)
    with pytest.raises(ServiceError, match=r"is not there any more, .*docker compose up -d"):
        await memu.start(unit)
    engine.docker("create", "--name", name, *compose(project, "made"), BUSYBOX, *FOREVER)
    await memu.start(unit)
    assert engine.runs(name)


async def test_one_that_does_not_end_by_itself_is_killed_after_its_time(
    engine: Engine, project: str, run: Run, caplog: pytest.LogCaptureFixture
) -> None:
    stubborn = run("stubborn", "sh", "-c", "trap '' TERM; while :; do sleep 0.1; done")
    patient = run("patient", "sh", "-c", "trap 'sleep 1; exit 0' TERM; while :; do sleep 0.1; done",
                  flags=("--stop-timeout", "20"))  # fmt: skip
    memu = service(engine, project, stop_timeout_s=1)
    for name in (stubborn, patient):
        await memu.stop(await unit_of(memu, name))
        assert not engine.runs(name)
    killed = [record.getMessage() for record in caplog.records if "has killed" in record.getMessage()]
    assert len(killed) == 1 and stubborn in killed[0] and "stop_timeout_s" in killed[0]


@pytest.mark.slow
async def test_a_stop_that_nobody_waits_for_any_more_ends_before_the_start(
    engine: Engine, project: str, run: Run
) -> None:
    slow = run("slow", "sh", "-c", "trap 'sleep 4; exit 0' TERM; while :; do sleep 0.1; done")
    memu = service(engine, project, stop_timeout_s=20)
    unit = await unit_of(memu, slow)
    stopping = asyncio.create_task(memu.stop(unit))
    await asyncio.sleep(0.7)
    stopping.cancel()
    await asyncio.wait({stopping})
    assert engine.runs(slow), "it has ended already, so this proves nothing"
    began = engine.inspect(slow)["State"]["StartedAt"]
    await memu.start(unit)
    assert engine.runs(slow) and engine.inspect(slow)["State"]["StartedAt"] != began


async def test_a_project_that_is_not_there_is_named_with_those_that_are(engine: Engine, project: str, run: Run) -> None:
    run("a")
    with pytest.raises(ServiceError, match=rf"no container of a compose project mem \(it has .*{project}.*\)"):
        await service(engine, "mem").check()
    assert await service(engine, "mem").running() == []
    with pytest.raises(ServiceError, match="no container with the label backup=no"):
        await service(engine, labels=["backup=no"]).check()


async def test_without_docker_it_is_said_and_tried_again_later(engine: Engine, tmp_path: Path) -> None:
    with pytest.raises(EngineAway, match="service memu can be neither stopped nor started") as met:
        await service(engine, "x", socket=tmp_path / "nobody.sock").running()
    assert met.value.retryable


async def test_an_address_that_is_none_is_a_sentence(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_HOST", "ssh://somebody")
    with pytest.raises(EngineError, match="DOCKER_HOST does not say where Docker listens"):
        await service(engine, "x", socket=None).running()


@pytest.mark.parametrize("told", [{}, {"project": "a", "labels": ["b"]}, {"project": ""}])
def test_settings_that_cannot_be_meant_are_refused(told: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        DockerSettings.model_validate({"kind": "docker", **told})

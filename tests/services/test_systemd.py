"""Units of a real systemd, which runs as PID 1 of a container: what ran runs again, and what was off stays off."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from memu_backup.errors import ServiceError
from memu_backup.services.systemd import SystemdService, SystemdSettings
from tests.docker_engine import Engine

ROOT = Path(__file__).parent.parent.parent
NAME = "memu-systemd"

RIGHTS = ("--cap-add", "SYS_ADMIN", "--security-opt", "seccomp=unconfined", "--volume", "/sys/fs/cgroup:/sys/fs/cgroup")
"""What systemd needs to be PID 1; not all of them, which a machine for tests may not have to give."""

UNITS = {
    "media.service": "[Service]\nExecStart=/bin/sleep 1000\n",
    "idle.service": "[Service]\nExecStart=/bin/sleep 1000\n",
    "slow.service": "[Service]\nType=notify\nNotifyAccess=all\n"
    "ExecStart=/bin/sh -c 'sleep 1; systemd-notify --ready; touch /tmp/ready; exec sleep 1000'\n",
    "broken.service": "[Service]\n"
    "ExecStart=/bin/sh -c 'test -e /tmp/once && exit 7; touch /tmp/once; exec sleep 1000'\n",
    "failing.service": "[Service]\nType=oneshot\nExecStart=/bin/false\n",
    "stubborn.service": "[Service]\nExecStart=/bin/sh -c 'trap : TERM; while :; do sleep 1; done'\nTimeoutStopSec=60\n",
}

INSIDE = """
import asyncio, json, sys
from memu_backup.errors import MemuError
from memu_backup.services import Unit
from memu_backup.services.systemd import SystemdService, SystemdSettings

async def main():
    units, timeout_s, deeds = json.loads(sys.argv[1])
    service = SystemdService("home", SystemdSettings(kind="systemd", units=units, timeout_s=timeout_s))
    told = []
    for deed, *words in deeds:
        try:
            answer = await getattr(service, deed)(*(Unit(word, word) for word in words))
        except MemuError as error:
            answer = {"error": str(error)}
        names = [getattr(one, "name", one) for one in answer] if isinstance(answer, list) else answer
        told.append(names)
    print(json.dumps(told))

asyncio.run(main())
"""


@pytest.fixture(scope="module")
def machine(engine: Engine) -> Iterator[Engine]:
    """This machine's programs, read-only, with a systemd, an /etc and a /var of their own."""
    if not Path("/lib/systemd/systemd").exists():
        pytest.skip("needs Debian's systemd package")
    engine.make_system(NAME, {f"etc/systemd/system/{name}": text for name, text in UNITS.items()})
    folders = {"/usr", str(ROOT), sys.base_prefix, sys.prefix}
    mounts = [word for folder in sorted(folders) for word in ("--volume", f"{folder}:{folder}:ro")]
    engine.docker("run", "--detach", *RIGHTS, "--name", NAME, "--tmpfs", "/run", "--tmpfs", "/tmp",
                  "--env", "container=docker", *mounts,
                  NAME, "/lib/systemd/systemd")  # fmt: skip
    deadline = time.monotonic() + 30
    while "running" not in (state := _systemctl(engine, "is-system-running")) and "degraded" not in state:
        assert time.monotonic() < deadline, engine.docker("logs", NAME)
        time.sleep(0.1)
    yield engine
    engine.docker("rm", "--force", NAME)


def _systemctl(engine: Engine, *words: str) -> str:
    argv = ["docker", "-H", f"unix://{engine.socket}", "exec", NAME, "systemctl", *words]
    return subprocess.run(argv, capture_output=True, text=True).stdout


def told(engine: Engine, units: list[str], *deeds: tuple[str, ...], timeout_s: int = 10) -> list[Any]:
    asked = json.dumps([units, timeout_s, deeds])
    python = ["env", f"PYTHONPATH={ROOT}", sys.executable, "-c", INSIDE, asked]
    return list(json.loads(engine.docker("exec", NAME, *python)))


def on(engine: Engine, unit: str) -> bool:
    return _systemctl(engine, "is-active", unit).strip() == "active"


def test_what_runs_is_stopped_and_runs_again_and_what_is_off_stays_off(machine: Engine) -> None:
    _systemctl(machine, "start", "media.service")
    units = ["media.service", "idle.service"]
    running, stopped, runs = told(machine, units, ("running",), ("stop", "media.service"), ("runs", "media.service"))
    assert (running, stopped, runs) == (["media.service"], None, False)
    assert not on(machine, "media.service")
    assert told(machine, units, ("start", "media.service"), ("runs", "media.service")) == [None, True]
    assert on(machine, "media.service") and not on(machine, "idle.service")


def test_one_that_tells_when_it_is_ready_is_waited_for(machine: Engine) -> None:
    began = time.monotonic()
    assert told(machine, ["slow.service"], ("start", "slow.service")) == [None]
    assert on(machine, "slow.service") and time.monotonic() - began > 1


def test_one_that_ends_at_once_is_told(machine: Engine) -> None:
    _systemctl(machine, "start", "broken.service")
    (_, answer) = told(machine, ["broken.service"], ("stop", "broken.service"), ("start", "broken.service"))
    assert "did not come up again: it ended at once. Look at what it says: journalctl" in answer["error"]


def test_one_that_does_not_stop_is_given_up_after_its_time(machine: Engine) -> None:
    _systemctl(machine, "start", "stubborn.service")
    (answer,) = told(machine, ["stubborn.service"], ("stop", "stubborn.service"), timeout_s=1)
    assert "systemctl stop stubborn.service was not done after 1 s" in answer["error"]
    _systemctl(machine, "kill", "--signal=KILL", "stubborn.service")


def test_a_unit_that_is_not_there_is_named_and_one_that_failed_warned_of(machine: Engine) -> None:
    (answer,) = told(machine, ["nobody.service"], ("check",))
    assert "systemd knows no unit nobody.service" in answer["error"]
    assert told(machine, ["media.service"], ("check",)) == [[]]
    _systemctl(machine, "start", "failing.service")
    ((warning,),) = told(machine, ["failing.service"], ("check",))
    assert "failing.service (service home) has failed" in warning


async def test_without_systemd_it_is_a_sentence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    service = SystemdService("home", SystemdSettings(kind="systemd", units=("a.service",)))
    if not Path("/run/systemd/system").exists():
        with pytest.raises(ServiceError, match="systemd does not tell of unit"):
            await service.running()
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ServiceError, match="systemctl cannot be run"):
        await service.running()


@pytest.mark.parametrize("unit", ["", "--all", "a b", "a;b"])
def test_a_name_that_is_none_is_refused(unit: str) -> None:
    with pytest.raises(ValidationError):
        SystemdSettings(kind="systemd", units=(unit,))

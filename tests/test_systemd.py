"""Holds what we tell systemd to sd_notify(3), and the unit to what systemd itself says of it."""

from __future__ import annotations

import configparser
import os
import re
import shutil
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from memu_backup import systemd

UNIT = Path(__file__).parent.parent / "deploy" / "memu-backup.service"


@pytest.mark.parametrize("abstract", [False, True])
def test_a_message_arrives_on_the_socket_that_systemd_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, abstract: bool
) -> None:
    name = f"@memu-backup-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(name.replace("@", "\0") if abstract else name)
        listening.settimeout(2)
        monkeypatch.setenv("NOTIFY_SOCKET", name)
        systemd.notify("STATUS=the next backup is due")
        assert listening.recv(1000) == b"STATUS=the next backup is due"


def test_outside_of_systemd_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NOTIFY_SOCKET", raising=False)
    descriptors = sorted(p.name for p in Path("/proc/self/fd").iterdir())
    systemd.notify("READY=1")
    assert sorted(p.name for p in Path("/proc/self/fd").iterdir()) == descriptors


def test_a_systemd_that_does_not_listen_any_more_is_no_reason_to_fail(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listening:
        listening.bind(str(tmp_path / "gone"))
    descriptors = sorted(p.name for p in Path("/proc/self/fd").iterdir())
    for name in ("gone", "never there", "x" * 200):
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / name))
        systemd.notify("READY=1")
    assert sorted(p.name for p in Path("/proc/self/fd").iterdir()) == descriptors


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "120000000"}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": str(os.getpid())}, 60.0),
        ({"WATCHDOG_USEC": "120000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
    ],
)
def test_the_watchdog_is_fed_twice_as_often_as_it_asks(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], expected: float | None
) -> None:
    for name in ("WATCHDOG_USEC", "WATCHDOG_PID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert systemd.watchdog_interval_s() == expected


def _unit() -> configparser.SectionProxy:
    parsed = configparser.ConfigParser(interpolation=None)
    parsed.optionxform = str  # type: ignore[assignment, method-assign]
    parsed.read_string(UNIT.read_text())
    return parsed["Service"]


needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="needs Debian's systemd package")


@needs_systemd
def test_systemd_finds_no_mistake_in_the_unit(tmp_path: Path) -> None:
    # It also looks for the program, which is installed elsewhere here.
    command = _unit()["ExecStart"]
    ours = Path(sys.executable).with_name("memu-backup")
    (tmp_path / UNIT.name).write_text(UNIT.read_text().replace(command.split()[0], str(ours)))
    done = subprocess.run(["systemd-analyze", "verify", tmp_path / UNIT.name], capture_output=True, text=True)
    assert (done.stdout + done.stderr, done.returncode) == ("", 0)


def _exposure(unit: Path) -> float:
    """From 0, of no danger to anything, to 10, as systemd counts it."""
    argv = ["systemd-analyze", "security", "--offline=true", "--no-pager", str(unit)]
    said = subprocess.run(argv, capture_output=True, text=True, env={**os.environ, "LC_ALL": "C.UTF-8"})
    found = re.search(r"exposure level for .*: ([0-9.]+) ", said.stdout)
    assert found, said
    return float(found[1])


@needs_systemd
def test_the_service_may_do_no_more_than_it_has_to(tmp_path: Path) -> None:
    limit = 4.6  # with nothing of all that it is 9.6
    assert _exposure(UNIT) <= limit
    # What holds it down has to be seen to be missed. What is not listed here counts a tenth or less.
    for option in ("CapabilityBoundingSet", "SystemCallFilter", "RestrictAddressFamilies", "NoNewPrivileges"):
        without = tmp_path / UNIT.name
        without.write_text(re.sub(rf"^{option}=.*\n", "", UNIT.read_text(), flags=re.MULTILINE))
        assert _exposure(without) > limit, option


def test_the_service_may_do_what_it_is_for() -> None:
    unit = _unit()
    may = unit["CapabilityBoundingSet"].split()
    assert {"CAP_DAC_READ_SEARCH", "CAP_SYS_ADMIN", "CAP_SETFCAP"} <= set(may)
    assert "@mount" in unit["SystemCallFilter"].split() and unit["RestrictNamespaces"] == "user"
    no_mounts = {"PrivateDevices", "DevicePolicy", "DeviceAllow", "ProtectClock"}
    assert not no_mounts & set(unit)


def test_each_option_that_is_left_out_has_a_reason() -> None:
    left_out = re.findall(
        r"^# ([\w=, ]+=[^:]*): \S", UNIT.read_text().partition("Left out on purpose")[2], re.MULTILINE
    )
    names = [name for line in left_out for name in re.findall(r"(\w+)=", line)]
    assert len(names) > 12
    assert [name for name in names if name in _unit() and name != "ProtectSystem"] == []


def test_the_unit_runs_a_command_that_there_is_and_gives_it_time_to_stop() -> None:
    unit = _unit()
    program, *arguments = unit["ExecStart"].split()
    assert Path(program).name == "memu-backup"
    ours = str(Path(sys.executable).with_name(Path(program).name))
    for words in (arguments, unit["ExecStopPost"].split()[1:]):
        subprocess.run([ours, *words, "--help"], check=True, stdout=subprocess.DEVNULL)
    # Whatever ended it: what it had stopped runs again. That has as much time as the service itself.
    assert unit["ExecStopPost"] == f"-{program} services recover"
    assert unit["TimeoutStopSec"] == "3min"
    assert (unit["Type"], unit["UMask"], unit["KillMode"]) == ("notify", "0077", "mixed")

"""The service as systemd runs it, in the sandbox of its unit: installed on a fresh Debian, killed, hung and stopped."""

from __future__ import annotations

import tarfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from tests.debian import INSTALL, SETTINGS, Machine, machine, until

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

# A dump is made in the sandbox too: of the only Postgres there is, the one with the history.
PORT = 18472
EACH_MINUTE = f"""{SETTINGS.replace('at = "02:00"', 'cron = "* * * * *"')}
[sources.database]
kind = "postgres"
url = "postgresql://postgres@/postgres?host=/var/lib/memu-backup/postgres"
[web]
enabled = true
port = {PORT}
"""

# Runs before the service, with the rights of the service.
PROBE = r"""
may() { name=$1; shift; if "$@" >/dev/null 2>&1; then echo "$name"; fi >>/var/lib/memu-backup/probe; }
rm -f /var/lib/memu-backup/probe
may "read the files of others" cat /srv/memu/photos/lake.jpg
may "give files away" chown 1000:1000 /srv/memu/probe
may "be another user" setpriv --reuid=1000 --clear-groups cat /srv/memu/probe
may "mount a drive" mount -t ext4 /dev/drive /mnt
may "write on it" touch /mnt/lost+found/written
may "set the clock" date -s 12:00
may "write in /usr" touch /usr/probe
may "write in /etc" touch /etc/probe
may "make device nodes" mknod /srv/memu/node b 7 0
may "change the kernel's settings" sh -c 'echo 1 >/proc/sys/kernel/sysrq'
may "have a network of its own" unshare --net true
may "name the machine" hostname probed
may "look into others" readlink /proc/1/exe
"""
MAY = ["read the files of others", "give files away", "be another user", "mount a drive", "write on it"]


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        made.clone()
        made.make_photos()
        made.good(INSTALL, "--with-packages", "--home", "/srv/memu")
        made.path("/etc/memu-backup/config.toml").write_text(EACH_MINUTE)
        yield made


def _shown(debian: Machine, name: str) -> str:
    return debian.good("systemctl", "show", "-p", name, "--value", "memu-backup")


def _drop_in(debian: Machine, lines: str) -> None:
    file = debian.path("/etc/systemd/system/memu-backup.service.d/test.conf")
    file.parent.mkdir(exist_ok=True)
    file.write_text(f"[Service]\n{lines}\n")
    debian.good("systemctl", "daemon-reload")


def _brought_back(debian: Machine) -> bool:
    """Whether what ExecStopPost names was run since the last start, and ended well."""
    told = _shown(debian, "ExecStopPost")
    return "pid=0 ;" not in told and "status=0 }" in told


def test_systemd_runs_it_and_brings_it_back(debian: Machine) -> None:
    # The sandbox gives it what it needs, and nothing else.
    debian.path("/srv/memu/probe").write_text("probe")
    debian.path("/root/probe.sh").write_text(PROBE)
    _drop_in(debian, "ExecStartPre=sh /root/probe.sh")
    debian.good("systemctl", "enable", "-q", "--now", "memu-backup")
    assert debian.path("/var/lib/memu-backup/probe").read_text().splitlines() == MAY
    assert "/mnt" not in debian.good("cat", "/proc/self/mounts").split()
    assert _shown(debian, "ActiveState") == "active"

    # It makes a backup by itself, of a file that nobody else may read, and of a database.
    until(lambda: list(debian.path("/srv/memu/backups").glob("*.tar.gz")), 130)
    status = debian.run("memu-backup", "status", "--json")
    assert status.status == 0, status
    assert debian.good("memu-backup", "verify").endswith("as it was written.")
    with tarfile.open(next(debian.path("/srv/memu/backups").glob("*.tar.gz"))) as archive:
        assert {"photos/lake.jpg", "database/postgres.dump", "database/globals.sql"} <= set(archive.getnames())

    # Programs and browsers are answered, and somebody is signed in by a link; what is uploaded may be written.
    token = debian.good("memu-backup", "token", "create", "test", "--role", "admin").splitlines()[0]
    with httpx.Client(base_url=f"http://127.0.0.1:{PORT}", trust_env=False) as browser:
        told = browser.get("/api/v1/status", headers={"Authorization": f"Bearer {token}"})
        assert told.json()["health"] == "healthy", told.text
        code = debian.good("memu-backup", "page").splitlines()[0].partition("code=")[2]
        origin = {"Origin": f"http://127.0.0.1:{PORT}"}
        assert browser.post("/enter", data={"code": code}, headers=origin).status_code == 303
        assert "<h1>Safe</h1>" in browser.get("/").text
        wrong = browser.post("/upload", files={"backup_file": ("a", b"no archive")}, headers=origin)
        assert wrong.status_code == 422, wrong.text

    # Killed, or hanging: what it had stopped is brought back at once, and it runs again.
    _drop_in(debian, "WatchdogSec=3")
    debian.good("systemctl", "restart", "memu-backup")
    for signal, result in (("KILL", "signal"), ("STOP", "watchdog")):
        killed = _shown(debian, "MainPID")
        debian.good("sh", "-c", f"kill -{signal} {killed}")
        until(lambda: _shown(debian, "SubState") == "auto-restart", 20)
        assert _brought_back(debian) and _shown(debian, "Result") == result
        assert debian.run("sh", "-c", "grep -l [b]in/postgres /proc/[0-9]*/cmdline").out == ""
        until(lambda: _shown(debian, "SubState") == "running", 20)
        assert _shown(debian, "MainPID") != killed
        until(lambda: debian.run("memu-backup", "status").status == 0, 20)

    # Wrong settings do not mend themselves.
    debian.path("/etc/memu-backup/config.toml").write_text("backup_dri = 1\n")
    assert debian.run("systemctl", "restart", "memu-backup").status == 1
    assert (_shown(debian, "ActiveState"), _shown(debian, "ExecMainStatus")) == ("failed", "2")
    debian.path("/etc/memu-backup/config.toml").write_text(EACH_MINUTE)

    # Stopped, it ends in order, and in time.
    debian.good("systemctl", "restart", "memu-backup")
    stopped = debian.run("systemctl", "stop", "memu-backup")
    assert stopped.status == 0 and stopped.seconds < 12
    assert _brought_back(debian) and _shown(debian, "Result") == "success"
    assert debian.run("sh", "-c", "grep -l [b]in/postgres /proc/[0-9]*/cmdline").out == ""

"""The installer: what it refuses and what it would do here, and all that it does on a fresh Debian."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.debian import INSTALL, ROOT, SETTINGS, Machine, machine, signal_all, until

INSTALLER = ROOT / "deploy" / "install.sh"
OPT, LINK = "/opt/memu-backup", "/opt/memu-backup/venv"
RULES = "/etc/udev/rules.d/99-memu-usb.rules"


# --- here: nothing is changed ----------------------------------------------------------------------------------------


def _ask(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([INSTALLER, *argv], capture_output=True, text=True, stdin=subprocess.DEVNULL)


def test_shellcheck_finds_nothing() -> None:
    if shutil.which("shellcheck") is None:
        pytest.skip("needs Debian's shellcheck package")
    assert subprocess.run(["shellcheck", INSTALLER, ROOT / "tests" / "boot.sh"], capture_output=True).stdout == b""


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--hoem", "/srv"), "There is no --hoem here."),
        (("install",), "There is no install here."),
        (("--home",), "--home needs a folder."),
        (("--preset",), "--preset needs the name of a system, such as soundbox."),
        (("--uninstall", "--preset", "memu"), "--preset, --home and --with-packages are for installing"),
        (("--home", ""), "--home needs a folder."),
        (("--purge",), "--purge removes; it goes with --uninstall."),
        (("--uninstall", "--yes"), "--yes goes with --purge"),
        (("--uninstall", "--home", "/srv"), "--preset, --home and --with-packages are for installing"),
        (("--dry-run", "--home", "/nowhere"), "/nowhere is not there."),
    ],
)
def test_what_makes_no_sense_is_told_in_one_sentence(argv: tuple[str, ...], says: str) -> None:
    asked = _ask(*argv)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert asked.stderr.startswith(says) and asked.stderr.count("\n") == 1


def test_help_names_each_option() -> None:
    said = _ask("--help")
    assert said.returncode == 0
    for option in ("--preset", "--home", "--with-packages", "--uninstall", "--purge", "--yes", "--dry-run"):
        assert f"  {option}" in said.stdout


def test_a_dry_run_tells_each_step_and_does_none(tmp_path: Path) -> None:
    if Path(OPT).exists():
        pytest.skip("memu-backup is installed on this machine")
    said = _ask("--dry-run", "--home", str(tmp_path))
    if "virtual environments" in said.stderr:
        pytest.skip("needs Debian's python3-venv package")
    assert (said.returncode, said.stderr) == (0, "")
    for made in (OPT, LINK, "/usr/local/bin/memu-backup", "/etc/systemd/system/memu-backup.service", RULES):
        assert made in said.stdout
    assert said.stdout.endswith("Nothing was changed.\n")
    assert not Path(OPT).exists() and not Path("/etc/systemd/system/memu-backup.service").exists()


# --- on a Debian -----------------------------------------------------------------------------------------------------


@pytest.fixture
def debian(tmp_path: Path) -> Iterator[Machine]:
    with machine(tmp_path) as made:
        made.clone()
        yield made


def _files(debian: Machine) -> set[str]:
    """All that was made or changed since the machine was new, without what a Debian that runs writes by itself."""
    upper = debian.folder.parent / "upper"
    own = ("/var/log/", "/var/lib/systemd/", "/var/lib/dbus", "/etc/.pwd.lock", "/var/cache/ldconfig")
    found = {f"/{p.relative_to(upper)}" for p in upper.rglob("*") if not p.is_dir() or p.is_symlink()}
    return {path for path in found if not path.startswith(own)}


def _running(debian: Machine) -> tuple[str, str]:
    """The service's process, and the version that is in use."""
    assert debian.good("systemctl", "is-active", "memu-backup") == "active"
    return debian.good("systemctl", "show", "-p", "MainPID", "--value", "memu-backup"), debian.good("readlink", LINK)


def _versions(debian: Machine) -> list[str]:
    return [f"{OPT}/versions/{p.name}" for p in debian.path(f"{OPT}/versions").iterdir()]


def _break(debian: Machine, file: str, old: str, new: str) -> Callable[[], None]:
    """Make a version that does not work; returns what mends it."""
    path = debian.path(f"/root/memu-backup/memu_backup/{file}")
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new, 1))

    def mend() -> None:
        path.write_text(text)

    return mend


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_fresh_debian_is_installed_upgraded_and_left_as_it_was(debian: Machine) -> None:
    # Refusals, each of which changes nothing.
    new = _files(debian)
    ran = debian.run(INSTALL, "--home", "/srv/memu")
    assert (ran.status, ran.out) == (2, "") and ran.err.startswith("/srv/memu is not there.")
    debian.make_photos()
    new |= {"/srv/memu/photos/lake.jpg"}
    ran = debian.run(INSTALL)
    assert (ran.status, ran.out) == (1, "") and "sudo apt install python3.11-venv" in ran.err
    ran = debian.run(INSTALL, "--with-packages", "--dry-run")
    assert ran.status == 0 and "Installing the Debian package python3.11-venv." in ran.out, ran
    assert _files(debian) == new

    # Killed in the middle of building, it is typed again. What an older README had people make by hand makes way.
    debian.good("sh", "-c", "apt-get update -qq && apt-get install -y -qq --no-install-recommends python3.11-venv")
    new = _files(debian)
    debian.good("python3", "-m", "venv", "--without-pip", LINK)
    debian.good("ln", "-s", f"{LINK}/bin/memu-backup", "/usr/local/bin/")
    killed = debian.start(INSTALL, "--home", "/srv/memu")
    until(lambda: list(debian.path(f"{OPT}/versions").glob("*/bin/pip")))
    signal_all(killed, signal.SIGKILL)
    killed.wait()
    assert not debian.path(LINK).is_symlink()
    installed = debian.good(INSTALL, "--home", "/srv/memu")
    assert "memu-backup 0.1.0 is installed." in installed and "sudo memu-backup start" in installed
    assert debian.good("memu-backup", "--version") == "memu-backup 0.1.0"
    assert _versions(debian) == [debian.good("readlink", LINK)]
    made = {f for f in _files(debian) - new if not f.startswith(f"{OPT}/")}
    assert made == {
        "/usr/local/bin/memu-backup",
        "/etc/systemd/system/memu-backup.service",
        RULES,
        "/etc/memu-backup/config.toml",
        "/srv/memu/backups/.memu-backup.json",
    }
    assert oct(debian.path("/etc/memu-backup").stat().st_mode & 0o777) == "0o700"
    assert debian.run("systemctl", "is-enabled", "memu-backup").out.strip() == "disabled"

    # An upgrade leaves the settings alone, and the service runs on with the new version.
    debian.path("/etc/memu-backup/config.toml").write_text(SETTINGS)
    debian.good("memu-backup", "start")
    debian.good("systemctl", "enable", "-q", "--now", "memu-backup")
    before = _running(debian)
    upgraded = debian.good(INSTALL)
    assert "Leaving the settings" in upgraded and upgraded.endswith("is at work.")
    after = _running(debian)
    assert after[0] != before[0] and after[1] != before[1] and _versions(debian) == [after[1]]
    assert debian.path("/etc/memu-backup/config.toml").read_text() == SETTINGS

    # Versions that do not work are not put in use.
    mend = _break(debian, "__init__.py", "import os\n", "This is not Python.\n")
    ran = debian.run(INSTALL)
    assert ran.status == 1 and "does not run, so nothing was changed" in ran.err, ran
    assert _running(debian) == after
    mend()
    mend = _break(debian, "daemon.py", '        systemd.notify("READY=1")\n', '        raise OSError("broken")\n')
    ran = debian.run(INSTALL)
    assert ran.status == 1 and "the one before is at work again" in ran.err, ran
    assert _running(debian)[1] == after[1] and _versions(debian) == [after[1]]
    mend()

    # No upgrade while a backup is made.
    debian.path("/srv/memu/photos/film.mp4").write_bytes(os.urandom(400 << 20))
    backup = debian.start("memu-backup", "start")
    until(lambda: json.loads(debian.run("memu-backup", "status", "--json").out)["nightly"]["in_progress"])
    signal_all(backup, signal.SIGSTOP)
    ran = debian.run(INSTALL)
    assert ran.status == 75 and ran.err.startswith("A backup is being made just now"), ran
    while backup.poll() is None:  # nsenter, which stops with what it runs, may stop once more
        signal_all(backup, signal.SIGCONT)
        time.sleep(0.05)
    assert backup.returncode == 0
    assert debian.run("memu-backup", "status").status == 0

    _uninstall(debian, new)


def _uninstall(debian: Machine, before: set[str]) -> None:
    backups = {f for f in _files(debian) if f.startswith("/srv/memu/backups/memu_backup_")}
    assert len(backups) == 4  # two, each with its checksum
    dry = debian.good(INSTALL, "--uninstall", "--purge", "--dry-run")
    assert "Removing /var/lib/memu-backup." in dry and debian.path(LINK).is_symlink()
    stopped = debian.path("/var/lib/memu-backup/stopped/run.json")
    stopped.parent.mkdir()
    stopped.write_text("{}")
    ran = debian.run(INSTALL, "--uninstall")
    assert ran.status == 1 and "sudo memu-backup services recover" in ran.err and debian.path(LINK).is_symlink()
    shutil.rmtree(stopped.parent)
    said = debian.good(INSTALL, "--uninstall")
    assert "/etc/memu-backup was left as it is." in said
    assert debian.run("systemctl", "status", "memu-backup").status == 4  # there is no such unit
    assert not debian.path(OPT).exists() and debian.run("memu-backup", "--version").status == 127
    debian.good(INSTALL, "--uninstall")

    ran = debian.run(INSTALL, "--uninstall", "--purge")
    assert ran.status == 2 and "Add --yes" in ran.err
    among_settings = debian.path("/etc/memu-backup/backups/memu_backup_20260101_020000.tar.gz")
    among_settings.parent.mkdir()
    among_settings.write_bytes(b"a backup")
    ran = debian.run(INSTALL, "--uninstall", "--purge", "--yes")
    assert ran.status == 1 and ran.err.startswith("Backups lie in /etc/memu-backup/backups,")
    assert among_settings.exists() and debian.path("/etc/memu-backup/config.toml").exists()
    shutil.rmtree(among_settings.parent)
    debian.good(INSTALL, "--uninstall", "--purge", "--yes")
    left = _files(debian) - before
    assert backups <= left
    assert {f for f in left if not f.startswith("/srv/memu/")} == set()

"""A Debian of its own, with systemd as its process 1, to install into: debootstrap once, then a layer for each use.

It has processes, a file tree, a host name and control groups of its own, and the network of this machine. Needs root.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import psutil
import pytest

from memu_backup import lock
from memu_backup.errors import LockHeld
from tests.home import Ran

ROOT = Path(__file__).parent.parent
BASE = ROOT / ".debian"
"""Made once and kept; ``make clean`` removes it."""

CLONE = "/root/memu-backup"
INSTALL = f"{CLONE}/deploy/install.sh"
SETTINGS = """
backup_dir = "/srv/memu/backups"
[sources.photos]
kind = "directory"
path = "/srv/memu/photos"
[usb]
overdue_days = 0
[jobs.nightly]
at = "02:00"
"""

_SUITE = "bookworm"
_PACKAGES = "systemd,systemd-sysv,dbus,python3,ca-certificates"  # and no python3-venv: to miss it is part of the test
_BOOT_S = 60.0
_ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "HOME": "/root",
    "LANG": "C.UTF-8",
}


@dataclass(frozen=True)
class Machine:
    """A Debian that runs. ``folder`` is its file tree as seen from here; /run and /tmp in it are the machine's own."""

    folder: Path
    pid: int

    @property
    def _enter(self) -> list[str]:
        return ["nsenter", f"--target={self.pid}", "-m", "-p", "-u", "-i", "-C", "--root", "--wd"]

    def run(self, *argv: str, timeout_s: float = 120.0) -> Ran:
        """A command as its root."""
        begun = time.monotonic()
        done = subprocess.run(
            [*self._enter, *argv],
            env=_ENVIRONMENT,
            capture_output=True,
            text=True,
            timeout=timeout_s,
            stdin=subprocess.DEVNULL,
        )
        return Ran(done.returncode, done.stdout, done.stderr, time.monotonic() - begun)

    def start(self, *argv: str) -> subprocess.Popen[bytes]:
        """A command as its root that is not waited for."""
        nowhere = subprocess.DEVNULL
        return subprocess.Popen([*self._enter, *argv], env=_ENVIRONMENT, stdin=nowhere, stdout=nowhere, stderr=nowhere)

    def good(self, *argv: str) -> str:
        """What a command says that has to go well."""
        ran = self.run(*argv)
        assert ran.status == 0, ran
        return ran.out.strip()

    def path(self, absolute: str) -> Path:
        """Where a file of the machine lies, seen from here."""
        return self.folder / absolute.lstrip("/")

    def clone(self, to: str = CLONE) -> None:
        """Put there what a `git clone` would."""
        folder = self.path(to)
        for name in ("deploy", "memu_backup"):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
        for name in ("pyproject.toml", "README.md"):
            shutil.copy(ROOT / name, folder)

    def make_photos(self) -> None:
        """One, of somebody who lets nobody look."""
        photos = self.path("/srv/memu/photos")
        photos.mkdir(parents=True)
        (photos / "lake.jpg").write_bytes(os.urandom(60_000))
        os.chown(photos / "lake.jpg", 1000, 1000)
        for path, mode in ((photos / "lake.jpg", 0o600), (photos, 0o700)):
            path.chmod(mode)


def until(condition: Callable[[], object], patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"did not happen in {patience_s} s"
        time.sleep(0.05)


def signal_all(started: subprocess.Popen[bytes], number: signal.Signals) -> None:
    """To a process and all that comes of it."""
    family = psutil.Process(started.pid)
    for process in (*family.children(recursive=True), family):
        with suppress(psutil.NoSuchProcess):
            process.send_signal(number)


def _base() -> Path:
    """The tree that all machines have below; several test processes may ask for it at once."""
    finished = BASE / "root"
    BASE.mkdir(exist_ok=True)
    while not finished.exists():
        try:
            with lock.held(BASE, "debootstrap"):
                half_made = BASE / "half-made"
                shutil.rmtree(half_made, ignore_errors=True)
                argv = ["debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(half_made)]
                done = subprocess.run(argv, capture_output=True, text=True)
                assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
                half_made.rename(finished)
        except LockHeld:
            time.sleep(1)
    return finished


@contextmanager
def machine(folder: Path, image: Path | None = None) -> Iterator[Machine]:
    """Boot one whose changes are kept in ``folder`` and go with it. It has a drive on /dev/drive: a small, empty ext4,
    or the one whose bytes ``image`` keeps.
    """
    if os.geteuid() != 0 or shutil.which("debootstrap") is None:
        pytest.skip("needs root, and Debian's debootstrap package")
    base, tree = _base(), folder / "tree"
    for name in ("upper", "work", "tree", "groups"):
        (folder / name).mkdir()
    layers = f"lowerdir={base},upperdir={folder}/upper,workdir={folder}/work"
    with _mounted(tree, "-t", "overlay", "-o", layers, "overlay"), _drive(image or empty_drive(folder, 16)) as drive:
        _network(tree)
        with _mounted(folder / "groups", "-t", "cgroup2", "cgroup2"), _booted(tree, drive, folder / "groups") as pid:
            yield Machine(tree, pid)


@contextmanager
def _mounted(place: Path, *argv: str) -> Iterator[None]:
    subprocess.run(["mount", *argv, place], check=True)
    try:
        yield
    finally:
        subprocess.run(["umount", place], check=True)


def empty_drive(folder: Path, size_mib: int) -> Path:
    """The image of an ext4 with nothing on it."""
    image = folder / "drive.image"
    with image.open("xb") as file:
        file.truncate(size_mib << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True)
    return image


@contextmanager
def _drive(image: Path) -> Iterator[str]:
    argv = ["losetup", "--find", "--show", str(image)]
    device = subprocess.run(argv, check=True, capture_output=True, text=True).stdout.strip()
    try:
        yield device
    finally:
        subprocess.run(["losetup", "--detach", device], check=True)


def _network(tree: Path) -> None:
    """Names and certificates as they are on this machine, for apt and pip."""
    for file in ("/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"):
        if Path(file).exists():
            shutil.copy(file, tree / file[1:])
    (tree / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")


@contextmanager
def _booted(tree: Path, drive: str, groups: Path) -> Iterator[int]:
    """The process that is its process 1."""
    group = groups / f"memu-test-{uuid4().hex[:8]}"
    group.mkdir()
    enter = 'echo $$ > "$0"/cgroup.procs; exec unshare -m -p -f -u -i -C --kill-child "$@"'
    argv = ["sh", "-c", enter, str(group), "sh", str(ROOT / "tests" / "boot.sh"), str(tree), drive]
    booting = subprocess.Popen(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    try:
        yield _process_one(booting)
    finally:
        booting.kill()
        booting.communicate()
        deadline = time.monotonic() + 10
        while group.exists():
            for inner in sorted(group.rglob("*/"), reverse=True):
                with suppress(OSError):
                    inner.rmdir()
            with suppress(OSError):
                group.rmdir()
            assert time.monotonic() < deadline, f"{group} is still in use"
            time.sleep(0.05)


def _process_one(booting: subprocess.Popen[bytes]) -> int:
    children = Path(f"/proc/{booting.pid}/task/{booting.pid}/children")
    deadline = time.monotonic() + _BOOT_S
    while time.monotonic() < deadline and booting.poll() is None:
        with suppress(OSError, IndexError):
            pid = int(children.read_text().split()[0])
            if Path(f"/proc/{pid}/comm").read_text() == "systemd\n" and Machine(Path(), pid).run(
                "systemctl", "is-system-running", "--wait"
            ).out.strip() in ("running", "degraded"):
                return pid
        time.sleep(0.1)
    booting.send_signal(signal.SIGKILL)
    raise AssertionError(f"the machine did not boot: {booting.communicate()[1].decode()}")

"""memu-backup and its peers, each with the commands that its users type."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol

from tests.bench.measure import Sample, run

MEMU = Path(sys.executable).with_name("memu-backup")


class Tool(Protocol):
    """One way to back up ``household`` into the folder ``place``, which is there and empty at first."""

    name: str

    def __init__(self, household: Path, place: Path) -> None: ...

    def version(self) -> str: ...

    def back_up(self) -> Sample:
        """The first time all of it, later what the tool thinks is needed."""
        ...

    def one_file(self, inner: str, target: Path) -> Sample: ...

    def everything(self, target: Path) -> Sample: ...

    def verify(self) -> Sample | None:
        """Compare every byte with what it was; None where the tool has nothing to compare with."""
        ...


def _first_line(*argv: str) -> str:
    return subprocess.run(argv, capture_output=True, text=True, check=True).stdout.splitlines()[0]


class Memu:
    name = "memu-backup"

    def __init__(self, household: Path, place: Path) -> None:
        self.household, self.place = household, place
        self.archives = place / "backups"
        self._config = place / "config.toml"
        self._config.write_text(
            f'backup_dir = "{self.archives}"\nstate_dir = "{place / "state"}"\n'
            f'[sources.household]\nkind = "directory"\npath = "{household}"\n'
            '[jobs.nightly]\nat = "02:00"\nsources = ["household"]\n'
        )

    def version(self) -> str:
        return _first_line(str(MEMU), "--version")

    def _run(self, *argv: str | Path, writes: Path | None = None) -> Sample:
        return run([MEMU, "-c", self._config, *argv], cwd=self.place, writes=writes)

    @contextmanager
    def service(self) -> Iterator[None]:
        """The daemon, as it runs on a real machine all day; it holds the history's server, which commands else start.

        What it needs itself is not measured.
        """
        with (self.place / "log").open("wb") as log:
            daemon = subprocess.Popen([MEMU, "-c", self._config, "run"], stdout=log, stderr=log)
            try:
                self._wait_for(daemon)
                yield
            finally:
                daemon.send_signal(signal.SIGTERM)
                daemon.wait()

    def _wait_for(self, daemon: subprocess.Popen[bytes]) -> None:
        while b"history is kept" not in (self.place / "log").read_bytes():
            if daemon.poll() is not None:
                raise RuntimeError((self.place / "log").read_text())

    def back_up(self, days_later: int = 0) -> Sample:
        """``days_later`` is how far ahead its clock goes."""
        if days_later == 0:
            return self._run("start", "--json", writes=self.place)
        night: list[str | Path] = [sys.executable, "-m", "tests.bench.another_day", self._config, str(days_later)]
        return run(night, cwd=Path.cwd(), writes=self.place)

    def one_file(self, inner: str, target: Path) -> Sample:
        return self._run("restore", "--path", f"household/{inner}", "--to", target, "--yes", writes=target.parent)

    def everything(self, target: Path) -> Sample:
        return self._run("restore", "--to", target, "--yes", writes=target.parent)

    def verify(self) -> Sample:
        return self._run("verify", "latest", "--level", "full")

    def help(self) -> Sample:
        return self._run("--help")

    def status(self) -> Sample:
        return self._run("status")


def prove_seconds(sample: Sample) -> float:
    """How long a backup was re-read, as the run itself tells it."""
    return float(json.loads(sample.output)["prove_seconds"])


class PlainTar:
    name = "tar"
    compressor: tuple[str, ...] = ()
    opener: tuple[str, ...] = ()

    def __init__(self, household: Path, place: Path) -> None:
        self.household, self.place = household, place
        self.archive = place / "backup.tar"

    def version(self) -> str:
        return _first_line("tar", "--version")

    def back_up(self) -> Sample:
        source = ("-C", str(self.household.parent), self.household.name)
        return run(["tar", *self.compressor, "-cf", self.archive, *source], cwd=self.place, writes=self.place)

    def _unpack(self, target: Path, *members: str) -> Sample:
        target.mkdir()
        return run(["tar", *self.opener, "-xpf", self.archive, *members], cwd=target, writes=target)

    def one_file(self, inner: str, target: Path) -> Sample:
        return self._unpack(target, f"{self.household.name}/{inner}")

    def everything(self, target: Path) -> Sample:
        return self._unpack(target)

    def verify(self) -> None:
        return None


class TarGzip(PlainTar):
    name = "tar | gzip"
    compressor = opener = ("-z",)

    def version(self) -> str:
        return _first_line("gzip", "--version")


class TarPigz(PlainTar):
    name = "tar | pigz"
    compressor = opener = ("-I", "pigz")

    def version(self) -> str:
        return subprocess.run(["pigz", "--version"], capture_output=True, text=True, check=True).stdout.strip()


class Restic:
    name = "restic"

    def __init__(self, household: Path, place: Path) -> None:
        self.household, self.place = household, place
        (place / "password").write_text("not secret")
        self._run("init")

    def version(self) -> str:
        return _first_line("restic", "version").partition(" compiled")[0]

    def _run(self, *argv: str | Path, writes: Path | None = None) -> Sample:
        env = {
            "RESTIC_REPOSITORY": str(self.place / "repository"),
            "RESTIC_PASSWORD_FILE": str(self.place / "password"),
            "RESTIC_CACHE_DIR": str(self.place / "cache"),
        }
        return run(["restic", "--quiet", *argv], cwd=self.household.parent, writes=writes, env=env)

    def back_up(self) -> Sample:
        return self._run("backup", self.household.name, writes=self.place)

    def one_file(self, inner: str, target: Path) -> Sample:
        inside = f"/{self.household.name}/{inner}"
        return self._run("restore", "latest", "--include", inside, "--target", target, writes=target.parent)

    def everything(self, target: Path) -> Sample:
        return self._run("restore", "latest", "--target", target, writes=target.parent)

    def verify(self) -> Sample:
        return self._run("check", "--read-data")


class Borg:
    name = "borg"

    def __init__(self, household: Path, place: Path) -> None:
        self.household, self.place = household, place
        self._repository = place / "repository"
        self._number = 0
        self._run("init", "--encryption", "none", self._repository)

    def version(self) -> str:
        return _first_line("borg", "--version")

    def _run(self, *argv: str | Path, cwd: Path | None = None, writes: Path | None = None) -> Sample:
        env = {"BORG_BASE_DIR": str(self.place), "BORG_UNKNOWN_UNENCRYPTED_REPO_ACCESS_IS_OK": "yes"}
        return run(["borg", *argv], cwd=cwd or self.household.parent, writes=writes, env=env)

    def _archive(self) -> str:
        return f"{self._repository}::{self._number}"

    def back_up(self) -> Sample:
        self._number += 1
        return self._run("create", self._archive(), self.household.name, writes=self.place)

    def one_file(self, inner: str, target: Path) -> Sample:
        return self._extract(target, f"{self.household.name}/{inner}")

    def everything(self, target: Path) -> Sample:
        return self._extract(target)

    def _extract(self, target: Path, *members: str) -> Sample:
        target.mkdir()
        return self._run("extract", self._archive(), *members, cwd=target, writes=target)

    def verify(self) -> Sample:
        return self._run("check", "--verify-data", self._repository)


PEERS: tuple[type[Tool], ...] = (TarGzip, TarPigz, PlainTar, Restic, Borg)


def lacking(*more: str) -> bool:
    """Whether Debian packages of the peers are not installed, or programs of the same name as theirs; says which."""
    packages = missing() + [package for package in more if shutil.which(package) is None]
    if packages:
        print(f"Missing: {', '.join(packages)}. To have them:  sudo apt install {' '.join(packages)}")
    return bool(packages)


def missing() -> list[str]:
    """Debian packages of the peers that are not installed."""
    path = os.environ.get("PATH", "").split(os.pathsep)
    wanted = {"pigz": "pigz", "restic": "restic", "borg": "borgbackup"}
    return [package for tool, package in wanted.items() if not any((Path(p) / tool).is_file() for p in path)]

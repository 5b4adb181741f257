"""The doctor: each line is ok or says what to do, and nothing is changed by looking."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest

from memu_backup import __version__
from tests.docker_engine import BUSYBOX, Engine, compose
from tests.home import Home, Ran
from tests.service import Service

NOBODY = " NO  alerts: nobody hears of it when a backup fails; type: memu-backup chat login, or set fallback below"
AWAY = " NO  the service: does not run, so no backup is made by itself; type: systemctl enable --now memu-backup"


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


@pytest.fixture
def project(engine: Engine) -> Iterator[str]:
    """Two servers that need a database, and what nobody has switched on."""
    name = f"c{uuid4().hex[:8]}"
    called = [f"{name}-{service}" for service in ("db", "server", "web", "off")]
    forever = ("sh", "-c", "trap 'exit 0' TERM; while :; do sleep 0.1; done")
    for service, needs in (("db", ""), ("server", "db:service_started:false"), ("web", "db"), ("off", "")):
        engine.docker("create", "--name", f"{name}-{service}", *compose(name, service, needs), BUSYBOX, *forever)
    engine.docker("start", *called[:3])
    yield name
    engine.docker("rm", "--force", *called)


def line(checked: Ran, what: str) -> str:
    (found,) = [line for line in checked.out.splitlines() if line[5:].startswith(f"{what}: ")]
    return found


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    return {str(p): (p.lstat().st_mtime_ns, p.lstat().st_size) for p in [folder, *folder.rglob("*")]}


async def test_all_is_well_where_the_service_runs_and_somebody_is_told(home: Home) -> None:
    home.mark()
    home.configure(more='[alerts]\nfallback = ["json://127.0.0.1:9"]\n')
    async with Service(home.folder / "config.toml") as service:
        await service.ready()
        checked = await asyncio.to_thread(home.run, "check")
        told = await asyncio.to_thread(home.run, "check", "--json")
    assert (checked.status, checked.err) == (0, "")
    *lines, summary = checked.out.splitlines()
    assert all(line.startswith(" ok  ") for line in lines)
    assert summary == f"All is well: {len(lines)} things were looked at."
    assert line(checked, "memu-backup").startswith(f" ok  memu-backup: {__version__}, with Python 3.")
    assert line(checked, "the service") == " ok  the service: runs"
    due = line(checked, "job nightly")
    assert due.startswith(" ok  job nightly: due ") and due.endswith(" 2:00 AM (Europe/Berlin)")
    assert (told.status, told.json["good"], told.json["says"]) == (0, True, summary)
    assert [f["what"] for f in told.json["findings"]] == [line[5:].partition(": ")[0] for line in lines]


def test_each_thing_that_is_not_well_says_what_to_do_and_nothing_is_changed(home: Home) -> None:
    before = everything(home.folder)
    checked = home.run("check")
    assert everything(home.folder) == before
    assert checked.status == 1
    assert line(checked, "the service") == AWAY and line(checked, "alerts").startswith(NOBODY)
    assert "does not carry the mark" in line(checked, f"backups in {home.backups}")
    number = len(checked.out.splitlines())
    assert checked.err == (
        f"3 of {number} things are not as they should be. Mend what says NO, then type the same again.\n"
    )
    told = home.run("check", "--json")
    assert (told.status, told.err) == (1, "") and sum(not f["good"] for f in told.json["findings"]) == 3
    home.configure(more='[jobs.other]\nsources = ["photos"]\n')
    assert line(home.run("check"), "job other") == " ok  job other: only by hand: memu-backup start other"
    both = [re.sub(r"\d+ GB free", "", home.run(*words).out) for words in (("check",), ("config", "check"))]
    assert both[0] == both[1]


def test_a_service_that_hangs_is_told_from_one_that_runs(home: Home) -> None:
    from memu_backup.daemon import alone

    with alone(home.folder / "state"):
        said = line(home.run("check"), "the service")
    assert said == " NO  the service: runs, and does not answer; start it anew: systemctl restart memu-backup"


def test_somebody_who_may_not_look_is_told_so(home: Home) -> None:
    for folder in (home.folder, *home.folder.parents):
        if folder.is_relative_to("/tmp") and folder != Path("/tmp"):
            folder.chmod(0o755)
    (home.folder / "config.toml").chmod(0o644)
    (home.folder / "state").mkdir(mode=0o700)
    nobody = ("setpriv", "--reuid=65534", "--regid=65534", "--clear-groups")
    checked = home.run("check", prefix=nobody)
    assert checked.status == 1
    assert line(checked, "rights").startswith(f" NO  rights: {home.folder}/state cannot be written to, so neither keys")
    assert "may not see whether it runs; type the same with sudo" in line(checked, "the service")
    (home.folder / "state").rmdir()
    home.folder.chmod(0o777)
    assert (
        "looked at as nobody, who is not root; is that the user of the service, too?"
        in home.run("check", prefix=nobody).out
    )


def test_what_would_be_stopped_in_which_order_and_what_is_read_then(home: Home, engine: Engine, project: str) -> None:
    engine.docker("volume", "create", project)
    home.mark()
    home.configure(
        sources=f'[sources.models]\nkind = "volume"\nvolume = "{project}"\nsocket = "{engine.socket}"\n'
        '[sources.photos]\nkind = "directory"\npath = "photos"\nneeds_stop = true\n'
        '[sources.config]\nkind = "files"\npaths = [".env"]\nneeds_stop = true\n',
        more='consistency = "stop"\n'
        f'[services.memu]\nkind = "docker"\nproject = "{project}"\nsocket = "{engine.socket}"\n',
    )
    checked = home.run("check")
    order = f"{project}-server and {project}-web, then {project}-db"
    assert line(checked, "service memu") == (f" ok  service memu: runs now, and is stopped in this order: {order}")
    assert line(checked, "window of nightly") == (
        " ok  window of nightly: memu stands still for photos and config; read while all runs: models"
    )
    version = engine.docker("version", "--format", "{{.Server.Version}}")
    assert line(checked, "programs") == f" ok  programs: Docker Engine {version} at {engine.socket}"
    assert engine.runs(f"{project}-server") and not engine.runs(f"{project}-off")
    left = home.folder / "state" / "stopped"
    left.mkdir(parents=True)
    (left / "run.json").write_text('{"units": [{"service": "memu", "id": "x", "name": "memu_db", "rank": 0}]}')
    assert line(home.run("check"), "services left down").endswith(
        "memu_db had been stopped for a backup and may not run; type: memu-backup services recover"
    )
    engine.docker("volume", "rm", project)


def test_the_programs_for_a_database_are_told(home: Home, database: str) -> None:
    home.configure(sources=f'[sources.pgdata]\nkind = "postgres"\nurl = "{database}"\n')
    said = line(home.run("check"), "programs")
    assert said.startswith(" ok  programs: pg_dump and pg_restore 1") and said.endswith("(source pgdata)")


def test_the_last_backup_tells_how_much_the_next_one_takes(home: Home) -> None:
    (home.photos / "film.mp4").write_bytes(os.urandom(3_000_000))
    assert home.run("start").status == 0
    assert "; the last of nightly took 3" in line(home.run("check"), f"backups in {home.backups}")
    home.backups.rename(home.folder / "made")
    home.backups.mkdir()
    size = sum(p.stat().st_size for p in (home.folder / "made").iterdir()) + 1_000_000
    fill = (
        f'mount -t tmpfs -o size={size} none "{home.backups}" && cp -a "{home.folder}/made/." "{home.backups}" && "$@"'
    )
    wrapped = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", fill, "sh")
    said = line(home.run("check", prefix=wrapped), f"backups in {home.backups}")
    assert said.startswith(f" NO  backups in {home.backups}: {home.backups} has no room for the next backup: the last")
    assert "Free up space or add storage" in said


def test_a_copy_on_a_drive_is_asked_for_only_where_one_is_expected(home: Home) -> None:
    assert "  drive: " not in home.run("check").out
    config = home.folder / "config.toml"
    config.write_text(config.read_text().replace("overdue_days = 0", "overdue_days = 7"))
    assert line(home.run("check"), "drive") == " ok  drive: no copy on a drive yet (none is approved yet)"


def test_a_unit_that_is_not_enabled_is_named(home: Home, tmp_path: Path) -> None:
    """With a systemctl of the test's own: no test machine has a systemd that may be asked."""
    stub = tmp_path / "bin" / "systemctl"
    stub.parent.mkdir()
    stub.write_text("#!/bin/sh\necho disabled\nexit 1\n")
    stub.chmod(0o755)
    script = 'mount -t tmpfs none /run && mkdir -p /run/systemd/system && "$@"'
    wrapped = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh")

    async def checked() -> Ran:
        async with Service(home.folder / "config.toml") as service:
            await service.ready()
            path = f"{stub.parent}:{os.environ['PATH']}"
            return await asyncio.to_thread(home.run, "check", prefix=wrapped, environ={"PATH": path})

    assert line(asyncio.run(checked()), "the service") == (
        " NO  the service: runs, but will not after the next start of the machine; type: systemctl enable memu-backup"
    )


def test_a_page_that_everybody_can_read_on_its_way_is_said(home: Home) -> None:
    for web, says in (
        ("", " ok  page: http://127.0.0.1:8470, for this machine alone"),
        ('url = "https://backup.example.org"', " ok  page: https://backup.example.org"),
        ('host = "0.0.0.0"', " NO  page: it listens on 0.0.0.0 without TLS"),
        ('host = "0.0.0.0"\ncertificate_file = "c"\nkey_file = "k"', " ok  page: https://"),
    ):
        home.configure(more=f"[web]\nenabled = true\n{web}\n")
        assert line(home.run("check"), "page").startswith(says)

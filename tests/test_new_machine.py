"""A machine that is set up anew becomes the one that was lost: settings, secrets and history, out of one backup."""

from __future__ import annotations

import json
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest

from memu_backup.chat.account import Account, Safe
from memu_backup.history import History
from memu_backup.model import Run, Status
from tests.history.samples import a_run
from tests.home import Ran, in_a_loop_of_its_own
from tests.service import PROGRAM, archives, settings
from tests.sources.test_itself import CANARY, make_store

SOURCES = (
    '[sources.ours]\nkind = "self"\n'
    '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    '[sources.diary]\nkind = "command"\ndump = ["sh", "-c", "echo $DIARY_PASSWORD | sha256sum"]\n'
    'env_file = "diary.env"\n'
)
ALERTS = '[alerts]\nfallback_file = "fallback"\n'


class Machine:
    """Its history is our own; the chat's login is made up."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "photos").mkdir(parents=True)
        (folder / "photos" / "lake.jpg").write_bytes(b"lake")
        self.secret("diary.env", f"DIARY_PASSWORD={CANARY}1\n")
        self.secret("fallback", f"ntfys://{CANARY}2\n")
        self.config = settings(folder, SOURCES, history=None, jobs=f'{ALERTS}[jobs.nightly]\nat = "02:00"\n')
        safe = Safe(folder / "state")
        make_store(safe.keys("DEVICE"))
        safe.keep_account(Account("http://127.0.0.1:1", "@bot:family.test", "DEVICE", f"{CANARY}3", f"{CANARY}4"))

    def secret(self, name: str, content: str) -> None:
        (self.folder / name).write_text(content)
        (self.folder / name).chmod(0o600)

    def run(self, *argv: str, config: Path | None = None) -> Ran:
        told = subprocess.run(
            [PROGRAM, "--config", str(config or self.config), *argv], capture_output=True, text=True, cwd=self.folder
        )
        return Ran(told.returncode, told.stdout, told.stderr, 0)

    def is_lost(self, usb: Path) -> Path:
        """Nothing is left but the last backup, on a drive."""
        archive = Path(shutil.copy2(archives(self.folder)[-1], usb))
        shutil.rmtree(self.folder)
        self.folder.mkdir()
        return archive

    def runs(self) -> list[Run]:
        async def asked() -> list[Run]:
            async with History(None, self.folder / "state", "homeserver") as history:
                return await history.runs()

        return in_a_loop_of_its_own(asked())


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    made = Machine(tmp_path / "machine")
    for _ in range(2):
        ran = made.run("start")
        assert ran.status == 0, ran
    return made


@pytest.fixture
def usb(tmp_path: Path) -> Path:
    (tmp_path / "usb").mkdir()
    return tmp_path / "usb"


def test_step_by_step_it_becomes_the_old_one(machine: Machine, usb: Path, tmp_path: Path) -> None:
    """As docs/recovery.md tells it."""
    before = {p: (machine.folder / p).read_bytes() for p in ("config.toml", "diary.env", "fallback")}
    earlier = [run for run in machine.runs() if run.filename == archives(machine.folder)[0].name]
    archive = machine.is_lost(usb)
    found = tmp_path / "found"
    ran = machine.run("restore", str(archive), "--source", "ours", "--to", str(found), "--yes")
    assert ran.status == 0, ran
    shutil.copy2(found / "ours" / "config.toml", machine.config)
    ran = machine.run("restore", str(archive), "--in-place", "--dry-run")
    assert ran.status == 0 and "left out: Source diary names no program that would put it back" in ran.out
    ran = machine.run("restore", str(archive), "--in-place", "--source", "ours", "--source", "photos", "--yes")
    assert ran.status == 0, ran
    assert f"ours is back at {machine.config} and {machine.folder / 'state'}" in ran.out
    assert "others are here" not in ran.err and "could not" not in ran.err
    assert {p: (machine.folder / p).read_bytes() for p in before} == before
    account = Safe(machine.folder / "state").account()
    assert account and (account.device_id, account.token) == ("DEVICE", f"{CANARY}3")
    assert any(Safe(machine.folder / "state").kept_keys("DEVICE").iterdir())
    for path in (machine.folder / "state" / "chat").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    for name in ("diary.env", "fallback"):
        assert stat.S_IMODE((machine.folder / name).stat().st_mode) == 0o600
    rows = machine.runs()
    assert {run.run_id: run.status for run in rows}[earlier[0].run_id] is Status.SUCCESS
    assert all(run.status is not Status.IN_PROGRESS for run in rows)  # how the last one ended is told by its file
    told = json.loads(machine.run("log", "--json").out)
    assert {"backup", "put back"} <= {line["action"] for line in told}
    ran = machine.run("restore", str(archive), "--in-place", "--source", "ours", "--yes")
    assert ran.status == 1 and "the bot is signed in here" in ran.err and "a login is never replaced" in ran.err
    ran = machine.run("restore", str(archive), "--in-place", "--dry-run")
    assert ran.status == 0 and "Source ours stays as it is" in ran.out and "left out: Source ours" not in ran.out
    (machine.folder / "backups").mkdir(exist_ok=True)
    assert machine.run("start", "--new-place").status == 0


@pytest.mark.slow
def test_other_settings_and_secrets_stay_and_those_of_the_backup_are_put_beside(machine: Machine, usb: Path) -> None:
    archive = machine.is_lost(usb)
    (machine.folder / "config.toml").write_text(
        f'state_dir = "state"\nhost = "homeserver"\n{ALERTS}[sources.ours]\nkind = "self"\n[jobs.nightly]\n'
    )
    used = machine.config.read_bytes()
    machine.secret("fallback", "ntfys://another")
    ran = machine.run("restore", str(archive), "--in-place", "--source", "ours", "--yes")
    assert ran.status == 0, ran
    aside = machine.folder / "config.toml.from-backup"
    assert (
        "config.toml, secrets/alerts.fallback_file, secrets/sources.diary.env_file: others are here, or no setting "
        f"says where it belongs. Nothing was replaced; what the backup has lies in {aside}"
    ) in ran.err
    assert machine.config.read_bytes() == used and (machine.folder / "fallback").read_text() == "ntfys://another"
    assert 'env_file = "diary.env"' in (aside / "config.toml").read_text()
    assert (aside / "secrets" / "alerts.fallback_file").read_text() == f"ntfys://{CANARY}2\n"
    assert (aside / "secrets" / "sources.diary.env_file").read_text() == f"DIARY_PASSWORD={CANARY}1\n"
    for path in (aside, *aside.rglob("*")):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)
    assert Safe(machine.folder / "state").account()
    shutil.rmtree(machine.folder / "state" / "chat")
    ran = machine.run("restore", str(archive), "--in-place", "--source", "ours", "--yes")
    assert ran.status == 0 and "config.toml.from-backup-2" in ran.err


@pytest.mark.slow
def test_a_history_that_takes_nothing_costs_nothing_else(machine: Machine, usb: Path, tmp_path: Path) -> None:
    earlier = {archives(machine.folder)[0].name}
    archive = machine.is_lost(usb)
    machine.run("restore", str(archive), "--source", "ours", "--to", str(tmp_path / "found"), "--yes")
    shutil.copy2(tmp_path / "found" / "ours" / "config.toml", machine.config)
    (machine.folder / "state").mkdir()
    (machine.folder / "state" / "postgres").write_text("in the way of a database")
    ran = machine.run("restore", str(archive), "--in-place", "--source", "ours", "--yes")
    assert ran.status == 0, ran
    saved = machine.folder / "config.toml.from-backup" / "backup_history_homeserver.jsonl.gz"
    assert "What the history knew could not be taken in" in ran.err and f"Copy {saved} beside the backups" in ran.err
    assert Safe(machine.folder / "state").account()
    (machine.folder / "state" / "postgres").unlink()
    for name in ("backups", "photos"):
        (machine.folder / name).mkdir()
    shutil.copy2(saved, machine.folder / "backups")
    ran = machine.run("start", "--new-place")
    assert ran.status == 0, ran
    assert earlier <= {run.filename for run in machine.runs()}


@pytest.mark.slow
def test_secrets_are_in_the_files_of_their_own_and_nowhere_else(machine: Machine) -> None:
    archive = archives(machine.folder)[-1]
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    holding = set()
    with tarfile.open(archive) as tar:
        for entry in tar:
            content = tar.extractfile(entry)
            if content and CANARY.encode() in content.read():
                holding.add(entry.name)
            if entry.name.startswith("ours/"):
                assert entry.mode == (0o700 if entry.isdir() else 0o600), entry.name
    assert holding == {
        "ours/secrets/alerts.fallback_file",
        "ours/secrets/sources.diary.env_file",
        "ours/chat/account.json",
    }
    told = machine.run("--debug", "start")
    assert told.status == 0
    shown = [machine.run(*words) for words in (("config", "show"), ("config", "check"), ("show", "latest"), ("log",))]
    for ran in (told, *shown):
        assert ran.out + ran.err and CANARY not in ran.out + ran.err, ran
    assert CANARY not in json.dumps([run.error for run in machine.runs()])


@pytest.mark.slow
def test_a_strangers_backup_with_links_in_it_is_not_put_back_and_its_rights_do_not_count(
    machine: Machine, tmp_path: Path
) -> None:
    elsewhere, unpacked = tmp_path / "elsewhere", tmp_path / "unpacked"
    elsewhere.mkdir(mode=0o755)
    with tarfile.open(archives(machine.folder)[-1]) as tar:
        tar.extractall(unpacked)
    shutil.rmtree(machine.folder / "state" / "chat")
    chat = unpacked / "ours" / "chat"

    def put_back(name: str) -> Ran:
        with tarfile.open(tmp_path / name, "w:gz") as tar:
            tar.add(unpacked, arcname=".")
        return machine.run("restore", str(tmp_path / name), "--in-place", "--source", "ours", "--yes")

    for path in (chat, *chat.rglob("*")):
        path.chmod(0o777)
    chat.rename(tmp_path / "chat")
    chat.symlink_to(elsewhere)
    ran = put_back("links.tar.gz")
    assert ran.status == 1 and "In the backup chat (source ours) is a link" in ran.err, ran
    assert not (machine.folder / "state" / "chat").is_symlink()
    assert stat.S_IMODE(elsewhere.stat().st_mode) == 0o755
    chat.unlink()
    (tmp_path / "chat").rename(chat)
    assert put_back("wide.tar.gz").status == 0
    for path in (machine.folder / "state" / "chat").rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) == (0o700 if path.is_dir() else 0o600)


@pytest.mark.slow
def test_a_history_that_is_away_is_a_warning_of_the_backup(machine: Machine) -> None:
    shutil.rmtree(machine.folder / "state" / "postgres")
    (machine.folder / "state" / "postgres").write_text("in the way of a database")
    ran = machine.run("start")
    assert ran.status == 0, ran
    assert "The history is not in the backup (source ours)." in ran.out + ran.err
    with tarfile.open(archives(machine.folder)[-1]) as tar:
        assert not any("backup_history" in name for name in tar.getnames())


def test_of_a_history_at_a_url_no_dump_is_taken(tmp_path: Path, database: str) -> None:
    async def dumped() -> Path | None:
        async with History(database, tmp_path / "state", "homeserver") as history:
            await history.record(a_run())
            return await history.dump_into(tmp_path)

    assert in_a_loop_of_its_own(dumped()) is None

"""Settings: what counts, what is a mistake and in which words, and that no secret is ever in them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from pydantic import BaseModel

from memu_backup import config_tables, cron, services, sources, stores
from memu_backup.config import Config, load
from memu_backup.config_shown import show
from memu_backup.errors import SettingsError, UsageError
from memu_backup.retention import Policy
from memu_backup.retention_settings import RetentionSettings
from tests.home import PROGRAM

ROOT = Path(__file__).parents[1]
CANARY = "canary-Xq7-secret"

GOOD = """
timezone = "Europe/Berlin"
[sources.photos]
kind = "directory"
path = "photos"
[sources.settings]
kind = "files"
paths = [".env", "nginx"]
[jobs.nightly]
at = "02:00"
"""

Write = Callable[[str], Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(text: str) -> Path:
        file = tmp_path / "config.toml"
        file.write_text(text)
        return file

    return write


def problems(file: Path | None, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(SettingsError) as caught:
        load(file, environ or {})
    assert CANARY not in str(caught.value)
    return list(caught.value.problems)


def test_a_small_file_is_enough_and_the_rest_has_defaults(write: Write, tmp_path: Path) -> None:
    config = load(write(GOOD), {"XDG_STATE_HOME": "/somewhere", "STATE_DIRECTORY": "/state:/other"})
    assert config.backup_dir == tmp_path / "backups"
    assert config.state_dir == Path("/state")
    assert config.host
    assert config.usb.overdue_days == 7
    assert config.path == tmp_path / "config.toml"
    assert config.zone.key == "Europe/Berlin"
    assert config.history_url() is None
    job = config.job("nightly")
    assert (job.cron, job.sources, job.store, job.retention) == (
        "0 2 * * *",
        ("photos", "settings"),
        "local",
        Policy(keep_last=7),
    )
    assert config.store_of(job).dir == tmp_path / "backups"
    assert config.source("photos").place == "photos/"


def test_what_the_file_says_is_what_counts(write: Write, tmp_path: Path) -> None:
    text = """
    backup_dir = "/mnt/backups"
    state_dir = "~/state"
    host = "attic"
    [usb]
    overdue_days = 0
    [sources.photos]
    kind = "directory"
    path = "photos"
    exclude = ["*.tmp"]
    [sources.letters]
    kind = "directory"
    path = "letters"
    [stores.near]
    kind = "archive"
    [stores.far]
    kind = "archive"
    dir = "far"
    prefix = "family"
    [jobs.weekly]
    cron = "30 4 * * 0"
    sources = ["letters"]
    store = "far"
    retention = { keep_last = 3 }
    [jobs.by-hand]
    store = "near"
    """
    config = load(write(text), {})
    weekly, by_hand = config.job("weekly"), config.job("by-hand")
    assert (weekly.cron, weekly.sources, weekly.retention) == ("30 4 * * sun", ("letters",), Policy(3))
    assert (by_hand.cron, by_hand.sources, by_hand.retention) == (None, ("photos", "letters"), Policy(7))
    assert config.store_of(weekly).dir == tmp_path / "far"
    assert config.store_of(by_hand).dir == Path("/mnt/backups")
    assert config.state_dir == Path.home() / "state"
    assert (config.host, config.usb.overdue_days) == ("attic", 0)


def test_settings_cannot_be_changed_afterwards(write: Write) -> None:
    config = load(write(GOOD), {})
    with pytest.raises(ValueError, match="frozen"):
        config.host = "other"


def test_asking_for_a_job_or_source_that_is_not_there_names_the_nearest(write: Write) -> None:
    config = load(write(GOOD), {})
    with pytest.raises(UsageError, match="no job called nigthly; did you mean nightly"):
        config.job("nigthly")
    with pytest.raises(UsageError, match="no source called zzz; there are: photos, settings"):
        config.source("zzz")


def wrong(text: str, instead_of: str = "", by: str = "") -> str:
    return (GOOD.replace(instead_of, by) if instead_of else GOOD) + text


PHOTOS = 'kind = "directory"\npath = "photos"\n'

MISTAKES = {
    "a misspelt setting": (
        wrong("", PHOTOS, PHOTOS + 'exlude = ["*.tmp"]\n'),
        ["sources.photos.exlude: is not a setting; did you mean exclude?"],
    ),
    "a misspelt setting at the top": (
        "backup_dri = '/x'\n" + GOOD,
        ["backup_dri: is not a setting; did you mean backup_dir?"],
    ),
    "a misspelt section": (
        wrong("[histroy]\nurl = 'x'\n"),
        ["histroy: is not a setting; did you mean history?"],
    ),
    "an option of the library below": ("_env_file = 'x'\n" + GOOD, ["_env_file: is not a setting"]),
    "a setting of a job": (
        wrong("retention = { keep_lst = 3, keep_last = 2 }\n"),
        ["jobs.nightly.retention.keep_lst: is not a setting; did you mean keep_last?"],
    ),
    "a misspelt kind": (
        wrong("", '"directory"', '"directry"'),
        ["sources.photos.kind: 'directry' is not a kind of source; did you mean directory?"],
    ),
    "a misspelt kind of store": (
        wrong("[stores.local]\nkind = 'archiv'\n"),
        ["stores.local.kind: 'archiv' is not a kind of store; did you mean archive?"],
    ),
    "no kind of store": (
        wrong("[stores.local]\n"),
        ['stores.local.kind: is missing; the kinds are archive, tree'],
    ),
    "something that is missing": (wrong("", 'path = "photos"\n'), ["sources.photos.path: is missing"]),
    "a text for a number": (
        f"backup_retention_count = '{CANARY}'\n" + GOOD,
        ["backup_retention_count: must be a whole number"],
    ),
    "retention of nothing": ("backup_retention_count = 0\n" + GOOD, ["backup_retention_count: must be at least 1"]),
    "a text for a list": (
        wrong("", '[".env", "nginx"]', '".env"'),
        ['sources.settings.paths: must be a list, such as ["a", "b"]'],
    ),
    "a number among the names of databases": (
        wrong("[sources.db]\nkind = 'postgres'\nurl_file = 'u'\ndatabases = ['a', 5]\n"),
        ["sources.db.databases[2]: must be a text in quotes"],
    ),
    "a number for the names of databases": (
        wrong("[sources.db]\nkind = 'postgres'\nurl_file = 'u'\ndatabases = 5\n"),
        ['sources.db.databases: must be a list, such as ["a", "b"]'],
    ),
    "what is no SQL, and no list of programs, for what comes back of it": (
        wrong(
            "[sources.db]\nkind = 'postgres'\nurl_file = 'u'\nwhen_restored = [{ sq = 'TRUNCATE a' }]\n"
            "after_restore = ['docker', 'restart', 'a']\n"
        ),
        [
            'sources.db.after_restore[1]: must be a list, such as ["a", "b"]',
            'sources.db.after_restore[2]: must be a list, such as ["a", "b"]',
            'sources.db.after_restore[3]: must be a list, such as ["a", "b"]',
            "sources.db.when_restored[1].sql: is missing",
            "sources.db.when_restored[1].sq: is not a setting",
        ],
    ),
    "SQL for a server that comes back as its files": (
        wrong(
            "[sources.db]\nkind = 'postgres'\nurl_file = 'u'\nmode = 'basebackup'\nwhen_restored = [{ sql = 'A' }]\n"
        ),
        ['sources.db: when_restored has no effect with mode = "basebackup", which copies it all'],
    ),
    "a database without its address": (
        wrong("[sources.db]\nkind = 'postgres'\n"),
        ["sources.db: does not say where it is; add url, url_file or container"],
    ),
    "a number in a list of paths": (
        wrong("", '[".env", "nginx"]', '[".env", 5]'),
        ["sources.settings.paths[2]: must be a path in quotes"],
    ),
    "what would leave nothing out": (
        wrong("", PHOTOS, PHOTOS + "exclude = ['*.tmp', '[', '!', '#recycle', 'a[z-a]', '[abc]', '\\#recycle']\n"),
        [
            f"sources.photos.exclude[{n}]: leaves nothing out; "
            "write it as in .gitignore, with a \\ before # or [ that begins a name"
            for n in (2, 3, 4, 5)
        ],
    ),
    "a text for a table": (
        "history = 'x'\n" + GOOD,
        ["history: must be a table of its own, with its settings below it"],
    ),
    "a source that is no table": (
        wrong("[sources]\nletters = './letters'\n"),
        ["sources.letters: must be a table of its own, with its settings below it"],
    ),
    "the home folder of nobody": (
        "backup_dir = '~nouser/x'\n" + wrong("", '"photos"', '"~nouser/photos"'),
        [
            "backup_dir: ~nouser is the home folder of nobody on this machine",
            "sources.photos.path: ~nouser is the home folder of nobody on this machine",
        ],
    ),
    "a bad time": (
        wrong("", '"02:00"', '"25:00"'),
        ['jobs.nightly.at: is not a time of day; write hours and minutes, such as "02:00"'],
    ),
    "a bad cron line": (
        wrong("", 'at = "02:00"', 'cron = "0 24 * * *"'),
        ["jobs.nightly.cron: is not a cron line; its hour goes from 0 to 23"],
    ),
    "two times": (wrong('cron = "0 2 * * *"\n'), ["jobs.nightly: has both at and cron; keep one of them"]),
    "a number for the retention": (
        wrong("retention = 3\n"),
        ["jobs.nightly.retention: is a table; for a number of backups write retention = { keep_last = 3 }"],
    ),
    "an unknown source in a job": (
        wrong('sources = ["phtos", "settings"]\n'),
        ["jobs.nightly.sources: there is no source called phtos; did you mean photos?"],
    ),
    "a source twice in a job": (
        wrong('sources = ["photos", "photos"]\n'),
        ["jobs.nightly.sources: names photos twice"],
    ),
    "a job without sources": (wrong("sources = []\n"), ["jobs.nightly.sources: must not be empty"]),
    "an unknown store": (
        wrong('store = "locale"\n'),
        ["jobs.nightly.store: there is no store called locale; did you mean local?"],
    ),
    "no store of several": (
        wrong("[stores.a]\nkind = 'archive'\n[stores.b]\nkind = 'archive'\ndir = 'b'\n"),
        ["jobs.nightly.store: is missing; choose one of a, b"],
    ),
    "two sources at one place": (
        wrong("", 'kind = "files"', 'kind = "files"\nplace = "photos/old/"'),
        [
            "jobs.nightly.sources: photos and settings would both be stored at photos/old/; "
            "give one of them another place"
        ],
    ),
    "two sources at one place, and another mistake": (
        wrong("", 'kind = "files"', 'kind = "files"\noptoinal = true\nplace = "photos/"'),
        [
            "sources.settings.optoinal: is not a setting; did you mean optional?",
            "jobs.nightly.sources: photos and settings would both be stored at photos/; give one of them another place",
        ],
    ),
    "a name that every backup needs": (
        wrong("", "[sources.photos]", "[sources.SHA256SUMS]"),
        ["sources.SHA256SUMS: SHA256SUMS/ is a name that every backup needs for itself; choose another"],
    ),
    "a name with a space": (
        wrong("", "[sources.photos]", '[sources."my photos"]'),
        ["sources.my photos: a name is made of letters, digits, - and _, and begins with a letter or digit"],
    ),
    "an unknown time zone": (
        GOOD.replace("Europe/Berlin", "Europe/Berln"),
        ["timezone: is not a time zone that this machine knows; did you mean Europe/Berlin?"],
    ),
    "a room by its name": (
        f"backup_notification_room = '#{CANARY}:example.org'\n" + GOOD,
        [
            "backup_notification_room: is not the id of a room, such as !abcdef:example.org "
            "(Element: room settings, Advanced)"
        ],
    ),
    "no job": (
        GOOD.partition("[jobs")[0],
        ['jobs: there is no job, so nothing would ever be backed up; add [jobs.nightly] with at = "02:00"'],
    ),
    "no source": (
        "[jobs.nightly]\nat = '02:00'\n",
        ["sources: there is nothing to back up; add a table such as [sources.photos]"],
    ),
    "a URL of something else": (
        wrong(f"[history]\nurl = 'mysql://me:{CANARY}@host/db'\n"),
        ["history.url: must begin with postgresql://"],
    ),
    "a URL with nothing in it": (
        wrong("[history]\nurl = 'postgresql://'\n[sources.db]\nkind = 'postgres'\nurl = 'postgres:///'\n"),
        [
            "history.url: says of no database where it is; write postgresql://USER@HOST:5432/DATABASE",
            "sources.db.url: says of no database where it is; write postgresql://USER@HOST:5432/DATABASE",
        ],
    ),
    "a parameter of a URL": (
        wrong(f"[sources.db]\nkind = 'postgres'\nurl = 'postgresql://h/db?connect_timeout={CANARY}'\n"),
        [
            "sources.db.url: holds connect_timeout, which is not known here; "
            "known are dbname, host, password, port, sslcert, sslkey, sslmode, sslrootcert, user"
        ],
    ),
    "what may be a piece of a password": (
        wrong("[sources.db]\nkind = 'postgres'\nurl = 'postgresql://h/db?password=x&rest=y'\n"),
        [
            "sources.db.url: holds a parameter, which is not known here; "
            "known are dbname, host, password, port, sslcert, sslkey, sslmode, sslrootcert, user"
        ],
    ),
    "a URL that is a list": (wrong(f"[history]\nurl = ['{CANARY}']\n"), ["history.url: must be a text in quotes"]),
    "two URLs": (
        wrong(f"[history]\nurl = 'postgresql://me:{CANARY}@h/db'\nurl_file = 'x'\n"),
        ["history: has both url and url_file; keep one of them"],
    ),
    "a misspelt setting of the chat": (
        wrong("[chat]\nadmin = []\n"),
        ["chat.admin: is not a setting; did you mean admins?"],
    ),
    "a misspelt setting of the alerts": (
        wrong("[alerts]\nfalback = []\n"),
        ["alerts.falback: is not a setting; did you mean fallback?"],
    ),
    "a misspelt setting of a heartbeat": (
        wrong("heartbeat_fiel = 'x'\n"),
        ["jobs.nightly.heartbeat_fiel: is not a setting; did you mean heartbeat_file?"],
    ),
    "a fallback that is no URL": (
        wrong(f"[alerts]\nfallback = ['ntfys://h/x', 'anna@{CANARY}', '{CANARY}://', 5]\n"),
        [
            "alerts.fallback[2]: is no URL; write it as in ntfys://ntfy.example.org/family "
            "or mailtos://USER:PASSWORD@HOST",
            "alerts.fallback[3]: is no URL; write it as in ntfys://ntfy.example.org/family "
            "or mailtos://USER:PASSWORD@HOST",
            "alerts.fallback[4]: must be a text in quotes",
        ],
    ),
    "one fallback that is no list": (
        wrong(f"[alerts]\nfallback = 'ntfys://{CANARY}'\n"),
        ['alerts.fallback: must be a list, such as ["a", "b"]'],
    ),
    "fallbacks in two places": (
        wrong("[alerts]\nfallback = []\nfallback_file = 'x'\n"),
        ["alerts: has both fallback and fallback_file; keep one of them"],
    ),
    "a heartbeat of something else": (
        wrong(f"heartbeat = 'hc-ping.com/{CANARY}'\n"),
        ["jobs.nightly.heartbeat: must begin with https:// or http://"],
    ),
    "a page that is none": (
        GOOD + "[web]\nurl = 'https://backup.example.org/deep'\nport = 0\n",
        [
            "web.port: must be at least 1",
            "web.url: is not where a page begins; write it as in https://backup.example.org",
        ],
    ),
    "half of TLS": (
        GOOD + "[web]\nkey_file = 'key.pem'\n",
        ["web: has one of certificate_file and key_file; TLS needs both"],
    ),
    "half a heartbeat": (
        wrong(f"heartbeat = 'https:///{CANARY}'\n[jobs.b]\nheartbeat = 'https://h:{CANARY}/x'\n"),
        [
            f"jobs.{job}.heartbeat: is not a whole URL; copy it once more from where the heartbeat is expected"
            for job in ("nightly", "b")
        ],
    ),
    "two heartbeats": (
        wrong("heartbeat = 'https://hc-ping.com/x'\nheartbeat_file = 'x'\n"),
        ["jobs.nightly: has both heartbeat and heartbeat_file; keep one of them"],
    ),
    "names of variables for nothing": (
        wrong(
            "[environment]\n'A-B' = 'host'\nBACKUP_DIR = 'host'\nMEMU_BACKUP_X = 'host'\nA = 'hosst'\n"
            "B = 'jobs.nightli.enabled'\nC = 'jobs.nightly.enabld'\nD = 'environment.A'\nE = 3\n"
        ),
        [
            "environment.E: must be a text in quotes",
            "environment.A-B: is no name of a variable; it is made of letters, digits and _, and begins with no digit",
            "environment.BACKUP_DIR: is a name that has its meaning already; choose another",
            "environment.MEMU_BACKUP_X: is a name that has its meaning already; choose another",
            "environment.A: stands for hosst, which is not a setting; did you mean host?",
            "environment.B: stands for jobs.nightli.enabled, and the file has no job called nightli; did you mean "
            "nightly?",
            "environment.C: stands for jobs.nightly.enabld, which is not a setting; did you mean enabled?",
            "environment.D: stands for environment.A, which is not a setting",
        ],
    ),
    "a password for nothing": (
        wrong("[history]\npassword_file = 'x'\n"),
        ["history.password_file: has no effect without url or url_file"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", MISTAKES)
def test_each_mistake_has_its_sentence(case: str, write: Write) -> None:
    text, expected = MISTAKES[case]
    assert problems(write(text)) == expected


def test_a_source_among_the_backups_or_around_them_is_a_mistake(write: Write, tmp_path: Path) -> None:
    def with_path(path: str, more: str = "") -> Path:
        return write(GOOD.replace('"photos"', f'"{path}"{more}').replace("[sources.photos]", "[sources.pictures]"))

    assert problems(with_path("backups/old")) == [
        f"sources.pictures.path: {tmp_path}/backups/old lies inside {tmp_path}/backups, where the backups are kept"
    ]
    assert problems(with_path("x/../backups")) == [
        f"sources.pictures.path: {tmp_path}/backups lies inside {tmp_path}/backups, where the backups are kept"
    ]
    assert problems(with_path("state/postgres"), {"STATE_DIRECTORY": str(tmp_path / "state")}) == [
        f"sources.pictures.path: {tmp_path}/state/postgres lies inside {tmp_path}/state, "
        "where memu-backup keeps its own state"
    ]
    assert problems(with_path(".")) == [
        f"sources.pictures.path: {tmp_path} holds {tmp_path}/backups, where the backups are kept, "
        "so each would hold all earlier ones; exclude that folder or keep the backups elsewhere"
    ]
    assert load(with_path(".", '\nexclude = ["/backups/"]'), {})


def test_all_mistakes_of_a_file_come_at_once(write: Write) -> None:
    text = f"""
    backup_retention_count = 0
    [history]
    url = "{CANARY}"
    [sources.photos]
    kind = "directory"
    path = "photos"
    exlude = []
    [sources.letters]
    kind = "directory"
    path = "backups"
    [jobs.nightly]
    at = "2 o'clock"
    sources = ["fotos", "letters"]
    """
    found = problems(write(text), {"BACKUP_RETENTION_COUNTS": "3"})
    assert [p.partition(":")[0] for p in found] == [
        "BACKUP_RETENTION_COUNTS",
        "backup_retention_count",
        "history.url",
        "sources.photos.exlude",
        "jobs.nightly.at",
        "jobs.nightly.sources",
        "sources.letters.path",
    ]


def test_the_report_says_which_file_and_how_many(write: Write) -> None:
    file = write("x = 1\ny = 2\n" + GOOD)
    with pytest.raises(SettingsError) as caught:
        load(file, {})
    assert str(caught.value).splitlines()[0] == f"{file} has 2 mistakes; nothing was started."
    assert caught.value.exit_status == 2


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"host {CANARY}", "line 1, column 6: there is no = after the name of a setting"),
        ("\nhost = attic", "line 2, column 8: the value cannot be read; texts, paths and times stand in quotes"),
        (f'host = "{CANARY}\nx = 1', f"line 1, column {9 + len(CANARY)}: a quotation mark is not closed"),
        ('host = ["a",', "at its end: a bracket is not closed"),
        ("host = 'a'\nhost = 'b'\n", "line 2, column 11: this name stands there twice"),
        ("[jobs.nightly]\nat = 02:00\n", "line 2, column 7: something is left over after the value; "
         "texts, paths and times stand in quotes"),
    ],
)  # fmt: skip
def test_a_slip_in_the_grammar_is_told_by_line_and_column(text: str, expected: str, write: Write) -> None:
    assert problems(write(text)) == [expected]


def test_a_file_that_cannot_be_read_is_a_mistake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    binary = tmp_path / "binary.toml"
    binary.write_bytes(b"\xff\xfe\x00")
    assert problems(binary) == ["the file is not a text in UTF-8"]
    assert problems(tmp_path) == ["the file cannot be read (Is a directory)"]
    assert problems(tmp_path / "none.toml") == ["there is no such file"]
    assert problems(None, {"MEMU_BACKUP_CONFIG": "/nowhere.toml"}) == [
        "there is no such file (MEMU_BACKUP_CONFIG names it)"
    ]
    monkeypatch.chdir(tmp_path)
    assert problems(None) == [
        "there is neither ./config.toml nor /etc/memu-backup/config.toml; make one with: memu-backup init --preset memu"
    ]


AS_NOBODY = """
import importlib, os, sys
from pathlib import Path
from tests.warm import LOADED
for name in LOADED:
    importlib.import_module(name)
from memu_backup import config_file
from memu_backup.cli import main
config_file.SYSTEM_FILE = Path(sys.argv.pop(1))
os.setgroups([]), os.setgid(65534), os.setuid(65534), os.chdir("/")
main()
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_a_file_that_this_user_may_not_read_is_told_as_such(write: Write) -> None:
    folder = Path(tempfile.mkdtemp(prefix="memu-backup-test-"))
    closed = folder / "closed" / "config.toml"
    closed.parent.mkdir(mode=0o700)
    closed.write_text(GOOD)
    for_root = folder / "config.toml"
    for_root.write_text(GOOD)
    for_root.chmod(0o600)
    folder.chmod(0o755)
    try:
        for file, options, environ in [
            (closed, [], {}),  # as /etc/memu-backup is closed to all but root
            (closed, [], {"MEMU_BACKUP_CONFIG": str(closed)}),
            (closed, ["-c", str(closed)], {}),
            (for_root, ["-c", str(for_root)], {}),
        ]:
            argv = [sys.executable, "-W", "error", "-c", AS_NOBODY, str(closed), *options, "status"]
            done = subprocess.run(argv, cwd=ROOT, env={**os.environ, **environ}, capture_output=True, text=True)
            assert (done.returncode, done.stdout) == (2, "")
            assert done.stderr == (
                f"{file} has 1 mistake; nothing was started.\n"
                "  this user may not read it; type the same with sudo, or as the user it belongs to\n"
            )
    finally:
        shutil.rmtree(folder)


def test_a_working_folder_that_is_gone_is_told_as_such(write: Write, tmp_path: Path) -> None:
    write(GOOD)
    script = f"mkdir here && cd here && rmdir ../here && {PROGRAM}"
    for argv in ("-c ../config.toml status", "init", "show ./x.tar.gz"):
        done = subprocess.run(f"{script} {argv}", cwd=tmp_path, capture_output=True, text=True, shell=True)
        assert done.returncode == 2
        assert done.stderr.endswith(
            "The folder in which you are has been deleted. Go to another one first, such as: cd /\n"
        )


def test_the_file_is_found_in_the_order_that_is_promised(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    here = write(GOOD)
    named = tmp_path / "named.toml"
    named.write_text(GOOD)
    given = tmp_path / "given.toml"
    given.write_text("\ufeff" + GOOD)
    assert load(environ={}).path == here
    assert load(environ={"MEMU_BACKUP_CONFIG": "named.toml"}).path == named
    assert load(given, {"MEMU_BACKUP_CONFIG": str(named)}).path == given


def test_variables_count_more_than_the_file(write: Write, tmp_path: Path) -> None:
    text = GOOD.replace("[jobs.nightly]", "[jobs.Nightly-Run]") + "[history]\nurl_file = 'x'\n[usb]\noverdue_days = 3\n"
    config = load(
        write(text),
        {
            "MEMU_BACKUP_HOST": "12345",
            "MEMU_BACKUP_USB__OVERDUE_DAYS": "9",
            "MEMU_BACKUP_SOURCES__PHOTOS__PATH": "pictures",
            "MEMU_BACKUP_SOURCES__PHOTOS__EXCLUDE": '["*.tmp", "*.bak"]',
            "MEMU_BACKUP_SOURCES__PHOTOS__CROSS_FILESYSTEMS": "true",
            "MEMU_BACKUP_JOBS__NIGHTLY_RUN__AT": "03:30",
            "MEMU_BACKUP_JOBS__NIGHTLY_RUN__RETENTION__KEEP_LAST": "4",
            "MEMU_BACKUP_JOBS__NIGHTLY_RUN__RETENTION__MAX_SIZE": "1.5 TB",
            "MEMU_BACKUP_STORES__LOCAL__PREFIX": "family",
            "MEMU_BACKUP_LOG_FILE": "",
        },
    )
    shown = show(config)
    assert config.host == "12345"
    assert config.usb.overdue_days == 9
    assert config.log_file is None
    assert shown["sources"]["photos"] | {"kind": ""} == {
        "kind": "",
        "path": str(tmp_path / "pictures"),
        "place": "photos/",
        "before_start": [],
        "after_restore": [],
        "look_yourself": [],
        "exclude": ["*.tmp", "*.bak"],
        "cross_filesystems": True,
        "listed_by": None,
        "guard": 0.5,
        "needs_stop": False,
    }
    assert (config.job("Nightly-Run").cron, config.job("Nightly-Run").retention) == (
        "30 3 * * *",
        Policy(4, max_bytes=1_500_000_000_000),
    )
    assert shown["stores"]["local"]["prefix"] == "family"


def test_memus_own_names_work(write: Write, tmp_path: Path) -> None:
    config = load(
        write("backup_retention_count = 2\n" + GOOD),
        {
            "BACKUP_DIR": "./elsewhere",
            "BACKUP_RETENTION_COUNT": "14",
            "BACKUP_NOTIFICATION_ROOM": "!family:example.org",
        },
    )
    assert config.backup_dir == tmp_path / "elsewhere"
    assert config.job("nightly").retention == Policy(14)
    assert config.backup_notification_room == "!family:example.org"


NAMES = """[environment]
ARCHIVES = "backup_dir"
NIGHTLY_ENABLED = "jobs.nightly.enabled"
MOST = "stores.local.max_backups"
KEPT = "jobs.nightly.retention.keep_last"
"""


def test_variables_of_another_programs_names_set_what_the_file_says(write: Write, tmp_path: Path) -> None:
    text = GOOD + '[stores.local]\nkind = "archive"\nmax_backups = 12\n' + NAMES
    plain = load(write(text), {"NIGHTLY_ENABLED": ""})
    assert plain.job("nightly").cron == "0 2 * * *" and plain.stores["local"].max_backups == 12
    said = {"ARCHIVES": "./there", "NIGHTLY_ENABLED": "false", "MOST": "30", "KEPT": "4"}
    for environ in (said, said | {"MEMU_BACKUP_JOBS__NIGHTLY__ENABLED": "false"}):
        config = load(write(text), environ)
        assert config.backup_dir == tmp_path / "there"
        assert config.job("nightly").cron is None
        assert config.job("nightly").retention == Policy(4, max_in_place=30)


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"NIGHTLY_ENABLED": "maybe"}, ["NIGHTLY_ENABLED: must be true or false"]),
        ({"MOST": "many"}, ["MOST: must be a whole number"]),
        ({"MOST": "0"}, ["MOST: must be at least 1"]),
        ({"NIGHTLY_ENABLD": "true"}, ["NIGHTLY_ENABLD: is not a setting; did you mean NIGHTLY_ENABLED?"]),
        ({"ARCHIVES": "/a", "BACKUP_DIR": "/b"}, ["BACKUP_DIR: says something else than ARCHIVES; keep one of them"]),
        (
            {"MOST": "3", "MEMU_BACKUP_STORES__LOCAL__MAX_BACKUPS": "4"},
            ["MOST: says something else than MEMU_BACKUP_STORES__LOCAL__MAX_BACKUPS; keep one of them"],
        ),
        (
            {"MEMU_BACKUP_ENVIRONMENT__MOST": "backup_dir"},
            ["MEMU_BACKUP_ENVIRONMENT__MOST: is not a setting; variables are named in the file alone"],
        ),
    ],
)  # fmt: skip
def test_what_is_wrong_with_such_a_variable_is_told_by_its_own_name(
    environ: dict[str, str], expected: list[str], write: Write
) -> None:
    assert problems(write(GOOD + NAMES), environ) == expected


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({"MEMU_BACKUP_HSOT": "a"}, ["MEMU_BACKUP_HSOT: is not a setting; did you mean MEMU_BACKUP_HOST?"]),
        (
            {"MEMU_BACKUP_HISTROY__URL": CANARY},
            ["MEMU_BACKUP_HISTROY__URL: is not a setting; did you mean MEMU_BACKUP_HISTORY__URL?"],
        ),
        (
            {"MEMU_BACKUP_DIR": "/mnt/disk"},
            ["MEMU_BACKUP_DIR: is not a setting; did you mean BACKUP_DIR or MEMU_BACKUP_BACKUP_DIR?"],
        ),
        (
            {"MEMU_BACKUP_JOBS__NIGHTLY__RETENTION": "3"},
            [
                "MEMU_BACKUP_JOBS__NIGHTLY__RETENTION: is a table; "
                "for a number of backups set MEMU_BACKUP_JOBS__NIGHTLY__RETENTION__KEEP_LAST"
            ],
        ),
        ({"MEMU_BACKUP_PHOTOS__PATH": "a"}, ["MEMU_BACKUP_PHOTOS__PATH: is not a setting"]),
        ({"MEMU_BACKUP_COLOUR": "a"}, ["MEMU_BACKUP_COLOUR: is not a setting"]),
        (
            {"MEMU_BACKUP_HISTORY_URL": CANARY},
            ["MEMU_BACKUP_HISTORY_URL: is not a setting; did you mean MEMU_BACKUP_HISTORY__URL?"],
        ),
        (
            {"MEMU_BACKUP_HISTORY__ULR": CANARY},
            ["MEMU_BACKUP_HISTORY__ULR: is not a setting; did you mean MEMU_BACKUP_HISTORY__URL?"],
        ),
        (
            {"MEMU_BACKUP_ALERTS_FALLBACK": CANARY},
            ["MEMU_BACKUP_ALERTS_FALLBACK: is not a setting; did you mean MEMU_BACKUP_ALERTS__FALLBACK?"],
        ),
        (
            {"MEMU_BACKUP_CHAT_ADMINS": "[]"},
            ["MEMU_BACKUP_CHAT_ADMINS: is not a setting; did you mean MEMU_BACKUP_CHAT__ADMINS?"],
        ),
        (
            {"MEMU_BACKUP_ALERTS__FALLBACK": f"ntfys://{CANARY}"},
            ['MEMU_BACKUP_ALERTS__FALLBACK: must be a list, such as ["a", "b"]'],
        ),
        ({"MEMU_BACKUP_HISTORY__URL": CANARY}, ["MEMU_BACKUP_HISTORY__URL: must begin with postgresql://"]),
        (
            {"MEMU_BACKUP_JOBS__NIGTHLY__AT": "03:00"},
            ["MEMU_BACKUP_JOBS__NIGTHLY__AT: the file has no job of this name; did you mean nightly?"],
        ),
        (
            {"MEMU_BACKUP_SOURCES__PHOTOS__EXLUDE": "[]"},
            [
                "MEMU_BACKUP_SOURCES__PHOTOS__EXLUDE: is not a setting; "
                "did you mean MEMU_BACKUP_SOURCES__PHOTOS__EXCLUDE?"
            ],
        ),
        (
            {"MEMU_BACKUP_SOURCES__PHOTOS__EXCLUDE": "*.tmp"},
            ['MEMU_BACKUP_SOURCES__PHOTOS__EXCLUDE: must be a list, such as ["a", "b"]'],
        ),
        ({"MEMUBACKUP_HOST": "a"}, ["MEMUBACKUP_HOST: is not a setting; did you mean MEMU_BACKUP_HOST?"]),
        (
            {"BACKUP_RETENTION_COUNTS": "3"},
            ["BACKUP_RETENTION_COUNTS: is not a setting; did you mean BACKUP_RETENTION_COUNT?"],
        ),
        ({"BACKUP_DRI": "/x"}, ["BACKUP_DRI: is not a setting; did you mean BACKUP_DIR?"]),
        ({"backup_dir": "/x"}, ["backup_dir: is not a setting; did you mean BACKUP_DIR?"]),
        ({"BACKUP_RETENTION": "3"}, ["BACKUP_RETENTION: is not a setting; did you mean BACKUP_RETENTION_COUNT?"]),
        ({"BACKUP_RETENTION_COUNT": "many"}, ["BACKUP_RETENTION_COUNT: must be a whole number"]),
        (
            {"BACKUP_DIR": "/a", "MEMU_BACKUP_BACKUP_DIR": "/b"},
            ["BACKUP_DIR: says something else than MEMU_BACKUP_BACKUP_DIR; keep one of them"],
        ),
    ],
)  # fmt: skip
def test_a_mistyped_variable_is_a_mistake(environ: dict[str, str], expected: list[str], write: Write) -> None:
    assert problems(write(GOOD), environ) == expected


def test_variables_of_other_programs_are_left_alone(write: Write) -> None:
    others = {"BACKUP_PASSWORD": CANARY, "BACKUP_HOST": "x", "BACKUP_DB": "x", "RESTIC_BACKUP": "x", "MEMU_HOME": "x"}
    assert load(write(GOOD), others)


def test_a_backup_dir_that_no_store_uses_is_a_mistake(write: Write) -> None:
    text = GOOD + "[stores.local]\nkind = 'archive'\ndir = 'here'\n"
    assert problems(write(text), {"BACKUP_DIR": "/mnt/disk"}) == [
        "BACKUP_DIR: has no effect, for every store in the file names a dir of its own"
    ]


def test_systemd_credentials_are_settings_too(write: Write, tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    (credentials / "memu_backup_history__url").write_text(f"postgresql://me:{CANARY}@h/db\n")
    (credentials / "memu_backup_host").write_text("from-credential")
    (credentials / "other").write_bytes(b"\xff")
    environ = {"CREDENTIALS_DIRECTORY": str(credentials), "MEMU_BACKUP_HOST": "from-variable"}
    config = load(write(GOOD), environ)
    assert config.history_url() == f"postgresql://me:{CANARY}@h/db"
    assert config.host == "from-variable"
    (credentials / "memu_backup_histroy__url").write_text(CANARY)
    assert problems(write(GOOD), environ) == [
        "memu_backup_histroy__url: is not a setting; did you mean MEMU_BACKUP_HISTORY__URL?"
    ]


def test_secrets_of_the_history_may_lie_in_files(write: Write, tmp_path: Path) -> None:
    (tmp_path / "url").write_text("postgresql://me@h/db?sslmode=require\n")
    (tmp_path / "password").write_text("p@ss/word&\n")
    file = write(GOOD + "[history]\nurl_file = 'url'\npassword_file = 'password'\n")
    assert load(file, {}).history_url() == "postgresql://me@h/db?sslmode=require&password=p%40ss%2Fword%26"
    (tmp_path / "password").unlink()
    config = load(file, {})
    with pytest.raises(SettingsError) as caught:
        config.history_url()
    assert caught.value.problems == (f"history.password_file: {tmp_path}/password is not there",)
    (tmp_path / "url").write_text(CANARY)
    with pytest.raises(SettingsError) as caught:
        config.history_url()
    assert caught.value.problems == ("history.url_file: what it holds must begin with postgresql://",)
    (tmp_path / "url").write_text("postgresql://\n")
    with pytest.raises(SettingsError, match="url_file: what it holds says of no database where it is"):
        config.history_url()


def test_ways_to_tell_somebody_come_from_the_file_from_variables_and_from_files_of_their_own(
    write: Write, tmp_path: Path
) -> None:
    plain = load(write(GOOD), {})
    assert (plain.fallback_urls(), plain.heartbeat_of("nightly"), plain.alerts.completed) == ((), None, False)
    ntfy, mail, beat = f"ntfys://{CANARY}", f"mailtos://me:{CANARY}@h?to=a@b.org", f"https://hc-ping.com/{CANARY}"
    file = write(f"{GOOD}heartbeat = '{beat}'\n[alerts]\nfallback = ['{ntfy}', '{mail}']\ncompleted = true\n")
    told = load(file, {})
    assert (told.fallback_urls(), told.heartbeat_of("nightly"), told.alerts.completed) == ((ntfy, mail), beat, True)
    environ = {"MEMU_BACKUP_ALERTS__FALLBACK": json.dumps([mail]), "MEMU_BACKUP_JOBS__NIGHTLY__HEARTBEAT": beat + "2"}
    told = load(file, environ)
    assert (told.fallback_urls(), told.heartbeat_of("nightly")) == ((mail,), beat + "2")
    (tmp_path / "urls").write_text(f"\n# the family\n  {ntfy}\n\n{mail}")
    (tmp_path / "beat").write_text(f"{beat}\n")
    told = load(write(f"{GOOD}heartbeat_file = 'beat'\n[alerts]\nfallback_file = 'urls'\n"), {})
    assert (told.fallback_urls(), told.heartbeat_of("nightly")) == ((ntfy, mail), beat)
    with pytest.raises(UsageError, match="no job called nigthly; did you mean nightly"):
        told.heartbeat_of("nigthly")


def test_files_with_ways_to_tell_somebody_are_read_when_they_are_needed(write: Write, tmp_path: Path) -> None:
    config = load(write(f"{GOOD}heartbeat_file = 'beat'\n[alerts]\nfallback_file = 'urls'\n"), {})
    urls, beat = tmp_path / "urls", tmp_path / "beat"

    def problems_of(ask: Callable[[], object]) -> tuple[str, ...]:
        with pytest.raises(SettingsError) as caught:
            ask()
        assert CANARY not in str(caught.value)
        return caught.value.problems

    assert problems_of(config.fallback_urls) == (f"alerts.fallback_file: {urls} is not there",)
    assert problems_of(lambda: config.heartbeat_of("nightly")) == (f"jobs.nightly.heartbeat_file: {beat} is not there",)
    urls.write_text("# none\n")
    beat.write_text("\n")
    assert problems_of(config.fallback_urls) == (f"alerts.fallback_file: {urls} holds no URL",)
    assert problems_of(lambda: config.heartbeat_of("nightly")) == (f"jobs.nightly.heartbeat_file: {beat} is empty",)
    urls.write_text(f"\nntfys://{CANARY}\n{CANARY}\n")
    beat.write_text(CANARY)
    assert problems_of(config.fallback_urls) == (
        f"alerts.fallback_file: line 3 of {urls} is no URL; write it as in ntfys://ntfy.example.org/family "
        "or mailtos://USER:PASSWORD@HOST",
    )
    assert problems_of(lambda: config.heartbeat_of("nightly")) == (
        "jobs.nightly.heartbeat_file: what it holds must begin with https:// or http://",
    )


def test_of_the_ways_to_tell_somebody_nothing_is_shown(write: Write) -> None:
    text = (
        f"heartbeat = 'https://hc-ping.com/{CANARY}'\n[alerts]\nfallback = ['ntfys://{CANARY}', 'tgram://{CANARY}/1']"
    )
    config = load(write(f"{GOOD}{text}\n"), {})
    shown = show(config)
    assert (shown["alerts"]["fallback"], shown["alerts"]["fallback_file"]) == (["********", "********"], None)
    assert shown["jobs"]["nightly"]["heartbeat"] == "********"
    assert CANARY not in json.dumps(shown) + repr(config) + str(config)


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"postgresql://me:{CANARY}@db.local:5432/memu", "postgresql://me:********@db.local:5432/memu"),
        ("postgresql://me@db.local/memu", "postgresql://me@db.local/memu"),
        (f"postgresql://db/memu?password={CANARY}", "postgresql://db/memu?********"),
        (f"postgresql://me:12/{CANARY}@db/memu", "********"),
        (f"postgresql://me:12?{CANARY}@db/memu", "********"),
        (f"postgresql://me:12#{CANARY}@db/memu", "********"),
    ],
)
def test_what_is_shown_hides_every_secret(url: str, expected: str, write: Write) -> None:
    config = load(write(f"{GOOD}[history]\nurl = '{url}'\n"), {})
    shown = json.loads(json.dumps(show(config)))
    assert shown["history"]["url"] == expected
    assert CANARY not in json.dumps(shown) + repr(config) + str(config)


def test_what_is_shown_is_complete(write: Write, tmp_path: Path) -> None:
    shown = show(load(write(GOOD), {}))
    assert shown["file"] == str(tmp_path / "config.toml")
    assert set(shown) == {"file", *Config.model_fields}
    assert shown["jobs"]["nightly"] == {
        "enabled": True,
        "at": "02:00",
        "cron": None,
        "sources": ["photos", "settings"],
        "store": "local",
        "consistency": "hot",
        "services": [],
        "window": "short",
        "full": False,
        "to_drives": True,
        "retention": {"keep_last": 7},
        "heartbeat": None,
        "heartbeat_file": None,
    }
    assert shown["stores"]["local"]["dir"] == str(tmp_path / "backups")
    assert shown["history"]["where"] == f"embedded in {shown['state_dir']}/postgres"
    assert "where" not in show(load(write(GOOD + "[history]\nurl_file = 'x'\n"), {}))["history"]


def test_what_is_shown_of_a_database_is_what_will_be_done(write: Write) -> None:
    def shown(more: str) -> dict[str, object]:
        db = show(load(write(f"{GOOD}[sources.db]\nkind = 'postgres'\n{more}\n"), {}))["sources"]["db"]
        return {key: db[key] for key in ("place", "databases", "format", "globals")}

    url = f"url = 'postgresql://me:{CANARY}@h/memu'"
    everything = {"place": "db/", "databases": ["memu"], "format": "custom", "globals": True}
    assert shown(url) == everything
    assert shown(url + "\nplace = 'memu.sql'") == {
        "place": "memu.sql",
        "databases": ["memu"],
        "format": "plain",
        "globals": False,
    }
    assert shown(url + "\ndatabases = ['a', 'b']") == everything | {"databases": ["a", "b"]}
    assert shown("url_file = 'x'") == everything | {"databases": "the one it names itself"}


def test_a_folder_has_its_slash_without_being_told(write: Write) -> None:
    config = load(write(GOOD.replace('"photos"', '"photos"\nplace = "pictures"')), {})
    assert config.source("photos").place == "pictures/"
    assert show(config)["sources"]["photos"]["place"] == "pictures/"


def test_the_example_loads_and_names_every_setting() -> None:
    example = ROOT / "config.example.toml"
    assert load(example, {}).job("nightly").cron == "0 2 * * *"
    text = example.read_text()
    models: list[type[BaseModel]] = [
        Config,
        config_tables.HistorySettings,
        config_tables.UsbSettings,
        config_tables.ChatSettings,
        config_tables.AlertSettings,
        config_tables.JobSettings,
        RetentionSettings,
        *(kind.Settings for kind in sources.kinds().values()),
        *(kind.Settings for kind in stores.kinds().values()),
        *(kind.Settings for kind in services.kinds().values()),
    ]
    fields = {name for model in models for name in model.model_fields}
    missing = {f for f in fields if not re.search(rf"^(# *)?{f} *=|[\[.]{f}[\].]|\{{ {f} =", text, re.MULTILINE)}
    assert missing == set()
    for kind in [*sources.kinds(), *stores.kinds()]:
        assert f'kind = "{kind}"' in text


def test_what_the_example_calls_defaults_are_the_defaults(write: Write) -> None:
    told = ROOT / "config.example.toml"
    defaults = dict(re.findall(r"^# (\w+) = ([\d.]+|true|false)\b", told.read_text(), re.MULTILINE))
    shown = show(load(write(GOOD), {}))
    flat = {**shown, **shown["usb"], **shown["alerts"], **shown["sources"]["photos"], **shown["sources"]["settings"]}
    for name, value in defaults.items():
        if name in flat:
            assert flat[name] == json.loads(value), name


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("0 2 * * *", "0 2 * * *"),
        ("*/15 2-4 * * *", "0,15,30,45 2,3,4 * * *"),
        ("0 2 * * 0", "0 2 * * sun"),
        ("0 2 * * 7", "0 2 * * sun"),
        ("0 2 * * 6-7", "0 2 * * sat,sun"),
        ("0 2 * * FRI-SUN", "0 2 * * fri,sat,sun"),
        ("0 2 * * 1-7", "0 2 * * *"),
        ("5/20 2 1 jan,7 *", "5,25,45 2 1 1,7 *"),
        ("0 2 29 2 *", "0 2 29 2 *"),
    ],
)
def test_cron_lines_mean_what_cron_means(line: str, expected: str) -> None:
    assert cron.normal(line) == expected
    assert cron.normal(expected) == expected


@pytest.mark.parametrize(
    "line",
    ["", "0 2 * *", "60 2 * * *", "0 2 0 * *", "0 2 * 13 *", "0 2 * * 8", "0 2 * * */0", "a b c d e", "0 2 30 2 *",
     "0 2 31 4,6 *", "0 2 1 * mon", "5-1 2 * * *", "0 2 * * mo", "1,, 2 * * *", "@daily"],
)  # fmt: skip
def test_cron_lines_that_never_or_doubtfully_come_are_refused(line: str) -> None:
    with pytest.raises(ValueError, match=r"^(is|names) "):
        cron.normal(line)

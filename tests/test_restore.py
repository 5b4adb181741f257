"""The way back: everything, one source, one file; and that nothing is written where it should not be."""

from __future__ import annotations

import json
import os
import signal
import stat
import struct
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from memu_backup import restore
from memu_backup.anywhere import look
from memu_backup.errors import Interrupted, RestoreError
from memu_backup.formats import gzip
from memu_backup.formats.reader import ArchiveReader
from memu_backup.postgres.connection import count_rows
from memu_backup.postgres.server import PostgresServer
from memu_backup.postgres.tools import put_back
from memu_backup.work import Stop
from tests.archives import needs_root
from tests.home import (
    ODD_NAMES,
    PHOTO,
    Home,
    Ran,
    a_database,
    end,
    fingerprints,
    in_a_loop_of_its_own,
    query,
    wait_until,
)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Home]:
    """A household with everything in it, backed up once; tests restore from it and leave it as it is."""
    with a_database(postgres) as url:
        home = Home(tmp_path_factory.mktemp("restore") / "home", url)
        in_a_loop_of_its_own(
            query(
                url,
                "CREATE TABLE messages (id serial PRIMARY KEY, body text)",
                "INSERT INTO messages (body) SELECT 'message ' || n FROM generate_series(1, 1234) n",
                "SELECT 1",
            )
        )
        for name in ODD_NAMES:
            (home.photos / name).write_bytes(name.encode() + PHOTO[:500])
        os.link(home.photos / "2026" / "lake.jpg", home.photos / "zz_again.jpg")
        (home.photos / "newest").symlink_to("2026/tent.jpg")
        (home.folder / "photos2").mkdir()
        (home.folder / "photos2" / "other.jpg").write_bytes(PHOTO[:700])
        (home.folder / "sql").mkdir()
        (home.folder / "sql" / "old").write_text("not the database\n")
        home.configure(
            sources='[sources.photos]\nkind = "directory"\npath = "photos"\n'
            '[sources.photos2]\nkind = "directory"\npath = "photos2"\n'
            '[sources.notes]\nkind = "directory"\npath = "sql"\nplace = "database.sql.d/"\n'
            f'[sources.chat]\nkind = "postgres"\nurl = "{url}"\nplace = "database.sql"\n'
            f'[sources.pgdata]\nkind = "postgres"\nurl = "{url}"\nglobals = false\n'
        )
        ran = home.run("start")
        assert ran.status == 0, ran.err
        yield home


@pytest.fixture
def to(tmp_path: Path) -> Path:
    return tmp_path / "back"


async def test_everything_comes_back_into_a_folder(home: Home, to: Path, postgres: PostgresServer) -> None:
    """Files byte by byte with modes, times and links, and the database's rows as the snapshot counted."""
    ran = home.run("restore", "latest", "--to", str(to), "--yes")
    assert ran.status == 0, ran.err
    assert fingerprints(to / "photos") == fingerprints(home.photos)
    assert fingerprints(to / "photos2") == fingerprints(home.folder / "photos2")
    for path in home.photos.rglob("*"):
        then, now = path.lstat(), (to / "photos" / path.relative_to(home.photos)).lstat()
        assert (then.st_mode, then.st_uid, then.st_mtime_ns) == (now.st_mode, now.st_uid, now.st_mtime_ns), path
    assert str((to / "photos" / "newest").readlink()) == "2026/tent.jpg"
    assert (to / "photos" / "zz_again.jpg").samefile(to / "photos" / "2026" / "lake.jpg")
    assert not (to / "metadata.json").exists() and not (to / "SHA256SUMS").exists()

    metadata = home.run("show", "latest", "--json").json["metadata"]
    (dump,) = next(s["details"]["databases"] for s in metadata["sources"] if s["name"] == "pgdata")
    assert dump["tables"]["public.messages"] == 1234
    await query(postgres.url(), "DROP DATABASE IF EXISTS again", "CREATE DATABASE again")
    await put_back(to / dump["file"], postgres.url("again"), major=18)
    assert await count_rows(postgres.url("again")) == dump["tables"]
    rows = await query(postgres.url("again"), "SELECT body FROM messages WHERE id = 1234")
    assert rows == [{"body": "message 1234"}]
    audited = home.audit()[0]
    assert (audited["action"], audited["outcome"]) == ("restore", "done") and str(to) in audited["subject"]


def test_one_photo_comes_back_alone(home: Home, to: Path) -> None:
    ran = home.run("restore", "latest", "--path", "photos/2026/tent.jpg", "--to", str(to), "--yes")
    assert ran.status == 0
    assert ran.out == f"Restored 1 file (60 kB) to {to} in less than a second.\n"
    assert fingerprints(to) == {"photos/2026/tent.jpg": PHOTO[::-1]}


def test_a_hard_link_brings_the_file_it_shares(home: Home, to: Path) -> None:
    assert home.run("restore", "latest", "--path", "photos/zz_again.jpg", "--to", str(to), "--yes").status == 0
    assert fingerprints(to) == {"photos/zz_again.jpg": PHOTO, "photos/2026/lake.jpg": PHOTO}


def test_globs_and_folders_name_what_they_look_like(home: Home, to: Path) -> None:
    ran = home.run("restore", "-p", "*tent*", "-p", "./photos2/", "--to", str(to), "--yes", "--json")
    assert (ran.status, ran.json["files"]) == (0, 2)
    assert sorted(fingerprints(to)) == ["photos/2026/tent.jpg", "photos2/other.jpg"]


@pytest.mark.parametrize("name", ["te*.jpg", "tent.jpg"])
def test_a_photo_is_found_by_its_name_alone(home: Home, to: Path, name: str) -> None:
    assert home.run("restore", "-p", name, "--to", str(to), "--yes").status == 0
    assert sorted(fingerprints(to)) == ["photos/2026/tent.jpg"]


def test_sources_whose_places_begin_alike_are_kept_apart(home: Home, to: Path) -> None:
    assert home.run("restore", "-s", "photos", "--to", str(to / "a"), "--yes").status == 0
    assert [p.name for p in (to / "a").iterdir()] == ["photos"]
    assert home.run("restore", "-s", "chat", "--to", str(to / "b"), "--yes").status == 0
    assert [str(p.relative_to(to / "b")) for p in (to / "b").rglob("*")] == ["database.sql"]
    assert "PostgreSQL database dump complete" in (to / "b" / "database.sql").read_text()


def test_a_dry_run_tells_counts_and_bytes_and_changes_nothing(home: Home, to: Path) -> None:
    ran = home.run("restore", "-p", "photos/2026", "--to", str(to), "--dry-run")
    assert ran.status == 0
    assert "Would restore 2 files (120 kB) from memu_backup_" in ran.out and "Nothing was changed." in ran.out
    told = home.run("restore", "-p", "photos/2026", "--to", str(to), "--dry-run", "--json").json
    assert (told["files"], told["size_bytes"], told["in_the_way"]) == (2, 120_008, [])
    assert not to.exists()


def test_files_that_are_there_are_replaced_only_when_told(home: Home, to: Path) -> None:
    (to / "photos" / "2026").mkdir(parents=True)
    mine = to / "photos" / "2026" / "tent.jpg"
    mine.write_text("mine")
    refused = home.run("restore", "-p", "photos/2026", "--to", str(to), "--yes")
    assert refused.status == 1
    assert refused.err == (
        f"{to} already holds photos/2026/tent.jpg; nothing was written. Restore to an empty folder with --to, or add "
        "--overwrite to replace them.\n"
    )
    assert fingerprints(to) == {"photos/2026/tent.jpg": b"mine"}
    dry = home.run("restore", "-p", "photos/2026", "--to", str(to), "--dry-run")
    assert "1 file of these is there already" in dry.out
    assert home.run("restore", "-p", "photos/2026", "--to", str(to), "--yes", "--overwrite").status == 0
    assert mine.read_bytes() == PHOTO[::-1]


def test_what_cannot_be_replaced_is_told_before_anything_is_written(home: Home, to: Path, tmp_path: Path) -> None:
    """Also with --overwrite: files before it would be new, those after it old."""
    (tmp_path / "elsewhere").mkdir()

    def folder_for_a_file(there: Path) -> None:
        (there / "2026" / "tent.jpg").mkdir(parents=True)

    def linked_folder(there: Path) -> None:
        (there / "2026").symlink_to(tmp_path / "elsewhere")

    def file_for_a_folder(there: Path) -> None:
        (there / "2026").write_bytes(b"mine")

    for make, says in (
        (folder_for_a_file, "2026/tent.jpg is a folder, where a file is to stand"),
        (linked_folder, "2026 is a link, where a folder is to stand"),
        (file_for_a_folder, "2026 is a file, where a folder is to stand"),
    ):
        there = to / make.__name__ / "photos"
        there.mkdir(parents=True)
        make(there)
        before = sorted(there.rglob("*"))
        ran = home.run("restore", "--to", str(there.parent), "--yes", "--overwrite")
        assert ran.status == 1
        assert ran.err == f"{there}/{says}; nothing was written. Restore to an empty folder with --to.\n"
        assert sorted(there.rglob("*")) == before and list(there.parent.iterdir()) == [there]
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_a_failure_in_the_middle_tells_how_much_came_back(home: Home, to: Path) -> None:
    """What was not there when it was planned comes in between."""
    to.mkdir()
    planned = restore.plan(*look(home.archives[0]), restore.Wanted(paths=("photos/2026",)), to, Stop())
    (to / "photos" / "2026" / "tent.jpg").mkdir(parents=True)
    with pytest.raises(RestoreError, match=r"tent.jpg is there already .* Before that, 1 file came back\."):
        restore.carry_out(planned, overwrite=False, on_progress=lambda _: None, stop=Stop())
    assert fingerprints(to) == {"photos/2026/lake.jpg": PHOTO}


def test_unless_told_it_goes_to_a_new_folder_here(home: Home) -> None:
    ran = home.run("restore", "-p", "photos/2026/tent.jpg", "--yes")
    (made,) = home.folder.glob("restored_memu_backup_*")
    assert ran.status == 0 and made.name == f"restored_{home.archives[0].name.removesuffix('.tar.gz')}"
    assert stat.S_IMODE(made.stat().st_mode) == 0o700
    assert home.run("restore", "-p", "photos/2026/tent.jpg", "--yes").status == 1  # not over it


@pytest.mark.parametrize("settings", ["none", "broken", "its password file is gone"])
def test_a_file_is_restored_on_the_worst_day(home: Home, tmp_path: Path, settings: str) -> None:
    """On a new machine, where there are no settings, or none that work."""
    there = Home(tmp_path / "new", "postgresql://nobody@127.0.0.1:1/none")
    config = there.folder / "config.toml"
    if settings == "none":
        config.unlink()
    elif settings == "broken":
        config.write_text("[sources\n")
    else:
        there.configure()
        config.write_text(config.read_text().replace("[usb]", 'password_file = "gone"\n[usb]'))
    copy = there.folder / "usb stick.tar.gz"
    copy.write_bytes(home.archives[0].read_bytes())
    ran = there.run("restore", "usb stick.tar.gz", "--to", "back", "--source", "photos", "--yes")
    assert ran.status == 0
    assert ran.err.startswith("There are no usable settings")
    assert fingerprints(there.folder / "back" / "photos") == fingerprints(home.photos)
    assert there.run("verify", "usb stick.tar.gz").status == 0
    shown = there.run("show", "usb stick.tar.gz")
    assert shown.status == 0 and "on family-server, by job nightly" in shown.out
    assert not (there.folder / "state").exists()


def test_an_archive_of_anyones_making_comes_back_whole(home: Home, to: Path, tmp_path: Path) -> None:
    """The names of our own files are the household's in it."""
    mine = {"metadata.json": b'{"timestamp": "now"}', "SHA256SUMS": b"by hand", "index.jsonl": b"mine", "a.txt": b"a"}
    for name, content in mine.items():
        (tmp_path / name).write_bytes(content)
    archive = tmp_path / "mine.tar.gz"
    subprocess.run(["tar", "-C", tmp_path, "-czf", archive, *mine], check=True)
    shown = home.run("show", str(archive))
    assert shown.status == 0 and all(name in shown.out for name in mine)
    assert home.run("verify", str(archive)).status == 0
    ran = home.run("restore", str(archive), "--to", str(to), "--yes")
    assert ran.status == 0, ran.err
    assert fingerprints(to) == mine


def test_links_are_shown_as_links(home: Home, tmp_path: Path) -> None:
    """In our archives and in anyone's."""
    by_hand = tmp_path / "mine.tar.gz"
    subprocess.run(["tar", "-C", home.photos.parent, "-czf", by_hand, "photos"], check=True)
    for archive in ("latest", str(by_hand)):
        lines = home.run("show", archive, "--files").out.splitlines()
        assert any(line.endswith("  photos/newest -> 2026/tent.jpg") for line in lines)
        shared = {"photos/2026/lake.jpg", "photos/zz_again.jpg"}
        assert any(set(line.strip().split(" -> ")) == shared for line in lines)
        files = home.run("show", archive, "--files", "--json").json["files"]
        assert {"2026/tent.jpg"} == {f["link"] for f in files if f["path"] == "photos/newest"}


def test_a_restore_told_to_stop_leaves_no_half_folder(home: Home, tmp_path: Path, database: str) -> None:
    big = Home(tmp_path / "big", database)
    (big.photos / "film.mp4").write_bytes(os.urandom(1_000_000) * 200)
    assert big.run("start").status == 0
    target = big.folder / "new" / "back"
    for number in (signal.SIGINT, signal.SIGTERM):
        child = big.started("restore", "latest", "--to", str(target), "--yes")
        wait_until(lambda: (target / "photos").exists())
        ended = end(child, number)
        assert (ended.status, ended.seconds < 5) == (130, True), ended
        assert ended.err.splitlines()[-1] == "Interrupted; what was finished stays, nothing half-written does."
        assert not target.parent.exists()
    assert [(e["action"], e["outcome"]) for e in big.audit()] == [
        ("restore", "interrupted"),
        ("restore", "interrupted"),
        ("backup", "success"),
    ]


# --- somebody sits there ---------------------------------------------------------------------------------------------


def test_at_a_terminal_it_asks_and_only_yes_is_yes(home: Home, to: Path) -> None:
    command = ("restore", "latest", "-p", "photos/2026", "--to", str(to))
    for answer in ("n\n", "\n", "\x04"):
        ran = home.on_a_terminal(*command, answer=answer)
        assert ran.status == 1, ran.out
        assert "Restore 2 files (120 kB) from memu_backup_" in ran.out and "Nothing was changed." in ran.out
        assert not to.exists()
    interrupted = home.on_a_terminal(*command, answer="\x03")
    assert interrupted.status == 130 and interrupted.seconds < 10
    assert interrupted.out.endswith("\r\nNothing was changed.\r\n")
    assert not to.exists()
    agreed = home.on_a_terminal(*command, answer="y\n")
    assert agreed.status == 0 and "Restored 2 files (120 kB)" in agreed.out
    assert len(fingerprints(to)) == 2


def test_what_is_closed_or_full_is_no_surprise(home: Home, to: Path) -> None:
    """stdin and stdout are whatever a script made of them."""
    command = ("restore", "latest", "-p", "tent.jpg", "--to", str(to))
    asked = home.run(*command, prefix=("sh", "-c", '"$@" <&-', "sh"))
    assert (asked.status, "Add --yes to do it" in asked.err) == (2, True), asked.err
    for more in ((), ("--json",)):
        full = home.run(*command, "--dry-run", *more, prefix=("sh", "-c", '"$@" >/dev/full', "sh"))
        assert full.status == 1
        assert full.err == "What there is to say could not be written (No space left on device).\n"
    done = home.run(*command, "--yes", prefix=("sh", "-c", '"$@" >&- 2>&-', "sh"))
    assert done.status == 0 and sorted(fingerprints(to)) == ["photos/2026/tent.jpg"]


@needs_root
def test_a_folder_closed_to_this_user_is_told(home: Home) -> None:
    with tempfile.TemporaryDirectory() as name:  # nobody may enter pytest's own
        open_to_all = Path(name)
        open_to_all.chmod(0o755)
        closed = open_to_all / "closed"
        closed.mkdir(mode=0o700)
        archive = open_to_all / "a.tar.gz"
        archive.write_bytes(home.archives[0].read_bytes())
        archive.chmod(0o644)
        os.seteuid(65534)
        try:
            with pytest.raises(
                RestoreError, match=r"cannot be written to \(Permission denied\), so nothing was restored"
            ):
                restore.carry_out(
                    restore.plan(*look(archive), restore.Wanted(paths=("photos/2026",)), closed / "x", Stop()),
                    overwrite=False, on_progress=lambda _: None, stop=Stop(),
                )  # fmt: skip
        finally:
            os.seteuid(0)


def test_with_nobody_to_ask_it_refuses(home: Home, to: Path) -> None:
    ran = home.run("restore", "latest", "--to", str(to), "--json")
    assert ran.status == 2
    assert "Add --yes to do it, or --dry-run to look." in ran.err
    assert json.loads(ran.out)["error"]["code"] == "usage"
    assert not to.exists()


# --- what cannot be done ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "says"),
    [
        (("--path", "photos/2026", "--path", "photos/2062"), "Nothing in this backup fits photos/2062"),
        (("--source", "photo"), "There is no source photo in this backup; it has photos, photos2"),
        (("--source", "photos2", "--path", "*tent*"), "Nothing in photos2 of this backup fits *tent*"),
    ],
)
def test_what_is_not_in_it_is_told_before_anything_is_written(
    home: Home, to: Path, argv: tuple[str, ...], says: str
) -> None:
    ran = home.run("restore", "latest", *argv, "--to", str(to), "--yes")
    assert ran.status == 2 and says in ran.err and "Traceback" not in ran.err
    assert not to.exists()


def test_a_file_is_no_folder_to_restore_to(home: Home, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("mine")
    for target in (file, file / "below"):
        ran = home.run("restore", "latest", "--to", str(target), "--yes")
        assert ran.status == 1
        assert ran.err == f"{file} is a file and not a folder, so nothing was restored. Choose another with --to.\n"
    assert file.read_text() == "mine"


def test_folders_that_could_not_all_be_made_are_gone_again(home: Home, tmp_path: Path) -> None:
    name = "n" * 255
    for target in (tmp_path / "a" / "b" / f"{name}n", tmp_path / "c" / "\udcff" / name / f"{name}n"):
        ran = home.run("restore", "latest", "--to", str(target), "--yes")
        assert (ran.status, "cannot be written to (File name too long)" in ran.err) == (1, True), ran.err
        assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("whose", ["the target", "a folder above it"])
def test_what_somebody_else_made_meanwhile_is_not_removed(
    home: Home, to: Path, monkeypatch: pytest.MonkeyPatch, whose: str
) -> None:
    """Between the look and the making, another program makes the same folder and puts something into it."""
    target = to / "photos of Oma" / "2026"
    theirs = target if whose == "the target" else target.parent
    mkdir = Path.mkdir

    def late(folder: Path, mode: int = 0o777, parents: bool = False, exist_ok: bool = False) -> None:
        if folder == theirs:
            mkdir(folder, parents=True)
            (folder / "theirs").write_bytes(b"precious")
        mkdir(folder, mode, parents, exist_ok)

    planned = restore.plan(*look(home.archives[0]), restore.Wanted(), target, Stop())
    stop = Stop()
    stop.set()
    monkeypatch.setattr(Path, "mkdir", late)
    with pytest.raises(Interrupted):
        restore.carry_out(planned, overwrite=False, on_progress=lambda _: None, stop=stop)
    assert fingerprints(to) == {str((theirs / "theirs").relative_to(to)): b"precious"}
    assert target.exists() == (whose == "the target")


def test_too_little_space_is_told_before_anything_is_written(home: Home, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=100k none "{small}" && "$@"; echo "$?"; ls -A "{small}"'
    ran = home.run(
        "restore", "latest", "--to", str(small / "back"), "--yes",
        prefix=("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"),
    )  # fmt: skip
    assert ran.out == "1\n"
    assert ran.err.startswith("Not enough space: ") and f"102 kB free at {small}/back; nothing was written." in ran.err


@pytest.mark.slow
def test_too_few_inodes_are_told_before_anything_is_written(home: Home, tmp_path: Path) -> None:
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o nr_inodes=10 none "{small}" && "$@"; echo "$?"; ls -A "{small}"'
    ran = home.run(
        "restore", "latest", "--to", str(small / "back"), "--yes",
        prefix=("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"),
    )  # fmt: skip
    assert ran.out == "1\n"
    assert ran.err.startswith(f"Not enough room: the disk at {small}/back can take 9 more files and folders (inodes), ")


@pytest.mark.slow
def test_holes_need_no_space(tmp_path: Path, database: str) -> None:
    """A disk image of a virtual machine: larger than any disk, and next to nothing in it."""
    sparse = Home(tmp_path / "sparse", database)
    image = sparse.photos / "disk.img"
    with image.open("wb") as file:
        file.truncate(200_000_000)
        file.write(PHOTO)
    assert sparse.run("start").status == 0
    small = tmp_path / "small"
    small.mkdir()
    script = f'mount -t tmpfs -o size=1m none "{small}" && "$@" && cmp "{small}/back/photos/disk.img" "{image}"'
    ran = sparse.run(
        "restore", "latest", "--to", str(small / "back"), "--yes",
        prefix=("unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"),
    )  # fmt: skip
    assert ran.status == 0, ran.err


@needs_root
def test_special_rights_come_from_our_own_backups_only(tmp_path: Path, database: str) -> None:
    """An archive that somebody handed in must not leave a program on the disk that runs as root."""
    ours = Home(tmp_path / "home", database)
    for name, mode in (("su", 0o4755), ("mail", 0o2755), ("ping", 0o755)):
        (ours.photos / name).write_bytes(b"\x7fELF")
        (ours.photos / name).chmod(mode)
    capability = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)
    os.setxattr(ours.photos / "ping", "security.capability", capability)
    ours.photos.chmod(0o2750)
    assert ours.run("start").status == 0
    elsewhere, (archive,) = tmp_path / "handed in.tar.gz", ours.archives
    elsewhere.write_bytes(archive.read_bytes())
    link = ours.backups / "link.tar.gz"
    link.symlink_to(elsewhere)

    def rights(*argv: str) -> tuple[list[int], bool, str]:
        target = tmp_path / f"back{len(list(tmp_path.iterdir()))}"
        ran = ours.run("restore", *argv, "--to", str(target), "--yes")
        assert ran.status == 0, ran.err
        back = target / "photos"
        assert stat.S_IMODE(back.stat().st_mode) == 0o2750, "which only hands its group down"
        modes = [stat.S_IMODE((back / name).stat().st_mode) for name in ("su", "mail", "ping")]
        return modes, "security.capability" in os.listxattr(back / "ping"), ran.err

    for argv in (("latest",), (str(archive),), (str(elsewhere), "--trust")):
        modes, capable, err = rights(*argv)
        assert (modes, capable) == ([0o4755, 0o2755, 0o755], True) and "--trust" not in err
    for argv in ((str(elsewhere),), (str(link),)):
        modes, capable, err = rights(*argv)
        assert (modes, capable) == ([0o755, 0o755, 0o755], False)
        warned = [line for line in err.splitlines() if line.endswith("see --trust")]
        assert [line.partition(":")[0].strip() for line in warned] == ["photos/mail", "photos/ping", "photos/su"]


# --- what can be had of a damaged backup -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory, postgres: PostgresServer) -> Iterator[Home]:
    """More files than are looked up one by one, among them two films that lie in the archive as they are."""
    with a_database(postgres) as url:
        many = Home(tmp_path_factory.mktemp("many") / "home", url)
        for name in ("a.mp4", "m.mp4"):
            (many.photos / name).write_bytes(os.urandom(9_000_000))
        os.link(many.photos / "a.mp4", many.photos / "b.mp4")
        for number in range(250):
            (many.photos / f"n{number:03}.jpg").write_bytes(os.urandom(20_000))
        many.configure(sources='[sources.photos]\nkind = "directory"\npath = "photos"\n')
        ran = many.run("start")
        assert ran.status == 0, ran.err
        yield many


def damaged(home: Home, folder: Path, *hurt: str) -> Path:
    """A copy of its archive with a flipped bit in the middle of each of these files."""
    archive = bytearray(home.archives[0].read_bytes())
    for name in hurt:
        content = (home.photos / name).read_bytes()
        at = archive.find(content[len(content) // 2 :][:50])
        assert at > 0, "what will not shrink lies there as it is"
        archive[at] ^= 1
    copy = folder / "damaged.tar.gz"
    copy.write_bytes(archive)
    return copy


def said(ran: Ran) -> str:
    """What it complained of, without its progress."""
    return "".join(line for line in ran.err.splitlines(True) if not line.startswith("Bringing back "))


@pytest.mark.slow
def test_one_damaged_file_costs_that_file_alone(many: Home, to: Path, tmp_path: Path) -> None:
    ran = many.run("restore", str(damaged(many, tmp_path, "m.mp4")), "--to", str(to), "--yes")
    whole = fingerprints(many.photos)
    del whole["m.mp4"]
    assert fingerprints(to / "photos") == whole
    assert ran.status == 3
    assert said(ran) == (
        f"damaged.tar.gz is damaged. 1 of {len(whole) + 1} files did not come back. "
        "Try an older backup, or a copy of this one.\n  photos/m.mp4\n"
    )
    assert (to / "photos" / "b.mp4").samefile(to / "photos" / "a.mp4")


def test_a_lost_file_takes_the_links_to_it_along_and_no_other(many: Home, to: Path, tmp_path: Path) -> None:
    copy = damaged(many, tmp_path, "a.mp4", "n200.jpg", "2026/lake.jpg")
    ran = many.run("restore", str(copy), "--to", str(to), "--yes", "--json")
    back = fingerprints(to / "photos")
    whole = fingerprints(many.photos)
    assert ran.status == 3 and back.items() <= whole.items()
    lost = {f"photos/{name}" for name in whole.keys() - back.keys()}
    assert "photos: this folder's owner, rights and time cannot be read any more" in ran.json["warnings"]
    assert stat.S_IMODE((to / "photos").stat().st_mode) == 0o700
    assert lost == set(ran.json["lost"]) and {"photos/a.mp4", "photos/b.mp4", "photos/n200.jpg"} <= lost
    assert len(lost) < 100, "small files beside it share its fate, no others do"
    assert ran.json["files"] == len(back)


@pytest.mark.parametrize("path", ["photos/n1*.jpg", "photos/2026/lake.jpg"])
def test_damage_elsewhere_is_no_matter(many: Home, to: Path, tmp_path: Path, path: str) -> None:
    copy = damaged(many, tmp_path, "m.mp4")
    ran = many.run("restore", str(copy), "--path", path, "--to", str(to), "--yes")
    assert (ran.status, said(ran)) == (0, "")
    assert fingerprints(to)


def test_where_nothing_can_be_read_nothing_is_left(many: Home, to: Path, tmp_path: Path) -> None:
    copy = damaged(many, tmp_path, "m.mp4")
    ran = many.run("restore", str(copy), "--path", "photos/m.mp4", "--to", str(to), "--yes")
    assert ran.status == 1
    assert said(ran).startswith("damaged.tar.gz is damaged: nothing of what was wanted can be read.")
    assert not to.exists()


def test_of_a_cut_archive_everything_before_the_cut_comes_back(many: Home, to: Path, tmp_path: Path) -> None:
    archive = many.archives[0].read_bytes()
    middle = archive.find((many.photos / "m.mp4").read_bytes()[8_000_000:8_000_050])
    assert middle > 0
    cut = tmp_path / "cut.tar.gz"
    cut.write_bytes(archive[:middle])
    whole = {f"photos/{n}": c for n, c in fingerprints(many.photos).items() if n < "m.mp4"}
    dry = many.run("restore", str(cut), "--to", str(to), "--dry-run")
    assert dry.status == 3 and f"Would restore {len(whole) - 1} files and 1 link (" in dry.out, dry.out
    assert "What stood behind the damage cannot be read. Try an older backup" in dry.err
    ran = many.run("restore", str(cut), "--to", str(to), "--yes")
    assert ran.status == 3 and ran.out.startswith(f"Restored {len(whole) - 1} files and 1 link ("), ran.out
    assert said(ran) == dry.err and dry.err.startswith("cut.tar.gz is damaged: it cannot be read from byte ")
    assert fingerprints(to) == whole
    assert stat.S_IMODE((to / "photos").stat().st_mode) == stat.S_IMODE(many.photos.stat().st_mode)


@pytest.mark.slow
@pytest.mark.parametrize("hurt", ["something behind its end", "its index", "its metadata"])
def test_damage_behind_the_last_file_costs_nothing(many: Home, to: Path, tmp_path: Path, hurt: str) -> None:
    archive = bytearray(many.archives[0].read_bytes())
    footer = gzip.read_footer(bytes(archive[-gzip.FOOTER_BYTES :]))
    assert footer
    if hurt == "something behind its end":
        archive += b"something"
    else:
        archive[(footer.index_offset if hurt == "its index" else footer.manifest_offset) + 60] ^= 1
    copy = tmp_path / "copy.tar.gz"
    copy.write_bytes(archive)
    ran = many.run("restore", str(copy), "--to", str(to), "--yes")
    assert fingerprints(to / "photos") == fingerprints(many.photos)
    assert ran.status == 0 and "All of what was wanted can be read" in ran.err, ran.err
    assert [p.name for p in to.iterdir()] == ["photos"]


def test_where_a_stretch_is_missing_what_comes_back_is_doubted(many: Home, to: Path, tmp_path: Path) -> None:
    archive = many.archives[0].read_bytes()
    with ArchiveReader(many.archives[0]) as reader:
        film = next(e for e in reader.index() if e.path == "photos/m.mp4")
    gap = gzip.member_bytes(archive[film.content : film.content + gzip.HEADER_BYTES])
    copy = tmp_path / "copy.tar.gz"
    copy.write_bytes(archive[: film.content] + archive[film.content + (gap or 0) :])
    ran = many.run("restore", str(copy), "--to", str(to), "--yes")
    assert ran.status == 3 and "does not tell which of its files are whole, so look at them" in ran.err, ran.err
    back = fingerprints(to / "photos")
    assert back["a.mp4"] == (many.photos / "a.mp4").read_bytes() and "n000.jpg" not in back


def test_of_anothers_cut_archive_everything_before_the_cut_comes_back(many: Home, to: Path, tmp_path: Path) -> None:
    archive = tmp_path / "mine.tar.gz"
    subprocess.run(["tar", "-C", many.photos, "-czf", archive, "a.mp4", "n000.jpg", "m.mp4"], check=True)
    archive.write_bytes(archive.read_bytes()[:-1_000_000])
    ran = many.run("restore", str(archive), "--to", str(to), "--yes")
    assert ran.status == 3 and "it ends too early; a part of it is missing; it does not tell" in ran.err, ran.err
    assert fingerprints(to) == {n: (many.photos / n).read_bytes() for n in ("a.mp4", "n000.jpg")}


@pytest.mark.slow
def test_of_anothers_damaged_archive_all_of_it_comes_back_with_a_doubt(many: Home, to: Path, tmp_path: Path) -> None:
    """Its one checksum stands at its end; until there nothing tells that bytes are not what they were."""
    archive = tmp_path / "mine.tar.gz"
    subprocess.run(["tar", "-C", many.photos, "-czf", archive, "a.mp4", "n000.jpg", "n001.jpg"], check=True)
    content = bytearray(archive.read_bytes())
    at = content.find((many.photos / "a.mp4").read_bytes()[5_000_000:5_000_050])
    assert at > 0
    content[at] ^= 1
    archive.write_bytes(content)
    ran = many.run("restore", str(archive), "--to", str(to), "--yes")
    assert ran.status == 3 and "does not tell which of its files are whole, so look at them" in ran.err, ran.err
    back = fingerprints(to)
    assert sorted(back) == ["a.mp4", "n000.jpg", "n001.jpg"]
    assert back["n001.jpg"] == (many.photos / "n001.jpg").read_bytes()

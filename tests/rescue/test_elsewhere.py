"""On a machine that has nothing but Debian's Python and the drive: no memu-backup, no network, no home."""

from __future__ import annotations

import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.archives import archive_store, back_up, needs_root, odd_tree, snapshot, tree
from tests.home import fingerprints
from tests.rescue.drive import Said, in_parts, put_program, rescue

PYTHON = "/usr/bin/python3"

EMPTY_MACHINE = """\
set -e
mount -t tmpfs tmpfs "$1"
cd "$1"
mkdir usr drive home dev
touch dev/null
ln -s usr/bin usr/lib usr/lib64 .
mount --bind /usr usr && mount -o remount,bind,ro usr
mount --bind /dev/null dev/null
mount --bind "$2" drive && mount -o remount,bind,ro drive
mount --bind "$3" home
shift 3
exec chroot . /usr/bin/env -i HOME=/home "$@"
"""

pytestmark = [
    needs_root,
    pytest.mark.skipif(shutil.which("unshare") is None, reason="unshare is missing"),
    pytest.mark.skipif(not Path(PYTHON).exists(), reason="this machine has no Python of its own in /usr"),
]


def elsewhere(root: Path, drive: Path, home: Path, *argv: str) -> Said:
    """A command on a machine whose file tree is made for it, with the drive plugged in read-only."""
    for folder in (root, home):
        folder.mkdir(exist_ok=True)
    apart = ("unshare", "--mount", "--net", "--pid", "--fork", "--ipc", "--uts")
    done = subprocess.run(
        [*apart, "sh", "-c", EMPTY_MACHINE, "sh", root, drive, home, *argv],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    return Said(done.returncode, done.stdout, done.stderr)


@pytest.mark.parametrize("part_bytes", [pytest.param(0, marks=pytest.mark.slow), 5_000_000])
def test_the_drive_and_a_python_are_enough(tmp_path: Path, part_bytes: int) -> None:
    source = odd_tree(tmp_path / "source")
    drive, root, home = (tmp_path / name for name in ("drive", "root", "home"))
    name = back_up(archive_store(drive), tree(source)).name
    put_program(drive)
    if part_bytes:
        in_parts(drive / name, part_bytes)
    before = fingerprints(drive)

    nobody = elsewhere(root, drive, home, PYTHON, "-I", "-c", "import memu_backup")
    assert nobody.status == 1 and "No module named 'memu_backup'" in nobody.err
    shown = elsewhere(root, drive, home, PYTHON, "-I", "/drive/restore.py")
    assert shown.status == 0 and name in shown.out and "nightly of attic" in shown.out
    typed = [shlex.split(line) for line in shown.out.splitlines() if line.startswith("  python3 ")]
    (check,) = [words for words in typed if words[2] == "check"]
    assert elsewhere(root, drive, home, "/usr/bin/env", "-C", "/drive", *check).status == 0
    (restore, _) = [words for words in typed if words[2] == "restore"]
    said = elsewhere(root, drive, home, "/usr/bin/env", "-C", "/drive", *restore)
    assert said.status == 0, said

    found, expected = snapshot(home / "found" / "photos"), snapshot(source)
    for odd in (b"werkzeug", b"ping", b"geheim"):  # what only root can give a file is for nobody to bring along
        assert found.pop(odd)[4:7] == expected.pop(odd)[4:7]
    assert found == expected
    assert fingerprints(drive) == before
    # The same as on this machine, to the last attribute.
    assert rescue(drive, "restore", name, tmp_path / "here").status == 0
    assert snapshot(tmp_path / "here") | {b".": ()} == snapshot(home / "found") | {b".": ()}

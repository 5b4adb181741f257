"""Installs the Debian packages that the tests need, as root; else says which are missing and what that leaves out."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

NEEDED = {
    "bsdtar": ("libarchive-tools", "reading archives back with bsdtar"),
    "chromium": ("chromium", "the page in a browser"),
    "busybox": ("busybox-static", "reading archives back with busybox tar"),
    "setfacl": ("acl", "access control lists"),
    "setfattr": ("attr", "extended attributes"),
    "/usr/lib/postgresql/15/bin/postgres": ("postgresql-15", "a second, older Postgres beside the embedded one"),
    "faketime": ("faketime", "the service at two in the night, and when the clocks change"),
    "dockerd": ("docker.io", "containers: their volumes, and that they run again after a backup"),
    "redis-server": ("redis-server", "snapshots of Redis"),
    "systemd-analyze": ("systemd", "the service's unit file"),
    "debootstrap": ("debootstrap", "installing on a fresh Debian, with systemd"),
    "docker-compose": ("docker-compose", "the service in a container"),
    "shellcheck": ("shellcheck", "the installer"),
    "fusermount3": ("fuse3", "a disk that gives errors on demand"),
    "sqlite3": ("sqlite3", "a database that a command of one's own writes out"),
    "rsync": ("rsync", "a tree that rsync brings back"),
    "strace": ("strace", "a run that is killed at an exact moment"),
    "/usr/lib/systemd/systemd-udevd": ("udev", "drives that are plugged in"),
    "nginx": ("nginx-light", "the page behind a reverse proxy"),
    "mkntfs": ("ntfs-3g", "drives that were formatted by Windows"),
    "mkfs.vfat": ("dosfstools", "drives as they were formatted for years"),
    "mkfs.exfat": ("exfatprogs", "drives as they are bought"),
    "mount.exfat-fuse": ("exfat-fuse", "drives as they are bought, where the kernel knows no exFAT"),
    "mkfs.ext4": ("e2fsprogs", "a really full disk"),
    "mkfs.btrfs": ("btrfs-progs", "sharing blocks between archives"),
    "mkfs.xfs": ("xfsprogs", "sharing blocks between archives, on XFS"),
}
"""What is looked for: the package that has it, and what its tests are about."""


def missing() -> dict[str, str]:
    """Package and purpose of everything that is not there."""
    path = os.environ.get("PATH", "") + ":/usr/sbin:/sbin"
    return dict(NEEDED[tool] for tool in NEEDED if shutil.which(tool, path=path) is None)


def main() -> int:
    lacking = missing()
    if not lacking:
        return 0
    if os.geteuid() == 0 and shutil.which("apt-get"):
        print("Installing for the tests:", ", ".join(lacking), flush=True)
        quiet = {"DEBIAN_FRONTEND": "noninteractive", **os.environ}
        subprocess.run(["apt-get", "update", "-qq"], env=quiet, check=True)
        # Postgres is started by the tests themselves, on a port of their own.
        subprocess.run(
            ["apt-get", "install", "-y", "-qq", "--no-install-recommends", *lacking],
            env=quiet,
            check=True,
            stdout=subprocess.DEVNULL,
        )
        return 0
    print(f"Missing: {', '.join(lacking)}. Left out are the tests about: {'; '.join(lacking.values())}.")
    print(f"To have them all:  sudo apt install {' '.join(lacking)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())

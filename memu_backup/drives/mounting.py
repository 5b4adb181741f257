"""Mounts a drive for copies in a folder of ours, and lets go of it; nothing on it is followed, run or trusted.

Mount points are read as proc(5) describes /proc/PID/mountinfo. Formats nothing, ever.
"""

from __future__ import annotations

import asyncio
import errno
import fcntl
import logging
import os
import re
import shutil
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from memu_backup import process
from memu_backup.drives.udev import Plug
from memu_backup.errors import DriveBroken, DriveError, DriveGone, DriveReadOnly, DriveUnfit
from memu_backup.work import Stop, in_thread

log = logging.getLogger(__name__)

_SAFE = ("nosuid", "nodev", "noexec", "nosymfollow")
_PRIVATE = "uid=0,gid=0,umask=0077"
"""For filesystems that know no owners."""

_OPTIONS = {
    "ext2": "noatime",
    "ext3": "noatime",
    "ext4": "noatime",
    "btrfs": "noatime",
    "xfs": "noatime",
    "vfat": f"noatime,{_PRIVATE},utf8",
    "exfat": f"noatime,{_PRIVATE}",
    "ntfs": f"noatime,{_PRIVATE}",
}
"""What copies go to. Any other filesystem is nobody's backup drive, or a trap for a rarely used part of the kernel."""

_HELPERS = {"ntfs": "ntfs-3g", "exfat": "exfat-fuse"}
"""Programs of the same kind, mount.NAME, for kernels that do not know a filesystem themselves."""

_FIRST = {"ntfs": "ntfs3"}
"""What the kernel's own is called where newer ones give the plain name to another, which only reads."""

_MOUNT_S = 60.0
_SYSTEM = tuple(map(Path, ("/usr", "/var", "/home", "/srv", "/boot", "/boot/efi", "/boot/firmware")))
"""What a machine lives on."""

_EJECT = 0x5309
"""CDROMEJECT, which the kernel turns into START STOP UNIT for any disk: Documentation/userspace-api/ioctl/cdrom.rst."""


@dataclass(frozen=True, slots=True)
class Mount:
    """One line of mountinfo; ``device`` is MAJOR:MINOR, which is made up where ``source`` is no device's own."""

    device: str
    root: str
    point: Path
    options: frozenset[str]
    filesystem: str
    source: str


def mounts() -> list[Mount]:
    """All that this process sees."""
    found = []
    for line in Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines():
        head, _, tail = line.partition(" - ")
        _, _, device, root, point, options, *_ = head.split(" ")
        filesystem, source, *_ = tail.split(" ")
        found.append(
            Mount(device, root, Path(_plain(point)), frozenset(options.split(",")), filesystem, _plain(source))
        )
    return found


def _plain(path: str) -> str:
    return re.sub(r"\\([0-7]{3})", lambda octal: chr(int(octal[1], 8)), path)


def mounted_at(node: Path) -> list[Mount]:
    """Where the filesystem on this device is mounted."""
    number = _number(node)
    return [mount for mount in mounts() if number in (mount.device, _number(Path(mount.source)))]


def _number(node: Path) -> str:
    """MAJOR:MINOR of a device; empty for anything else."""
    try:
        found = node.stat()
    except (OSError, ValueError):
        return ""
    return f"{os.major(found.st_rdev)}:{os.minor(found.st_rdev)}" if found.st_rdev else ""


def belongs_to_the_machine(plug: Plug, needed: Iterable[Path]) -> bool:
    """Whether the machine, or what it ``needed``, lives on this disk, or fstab names it: then it is none that comes and
    goes. Where a desktop, or somebody by hand, has mounted it does not count.
    """
    disk, paths = _siblings(plug.node), (*_SYSTEM, *needed)
    points = [m.point for m in mounts() if _number(Path(m.source)) in disk or m.device in disk]
    if any(path.is_relative_to(point) for path in paths for point in points):
        return True
    names = {plug.fs_uuid and f"UUID={plug.fs_uuid}", plug.label and f"LABEL={plug.label}", str(plug.node)} - {""}
    try:
        lines = Path("/etc/fstab").read_text(errors="replace").splitlines()
    except OSError:
        return False
    first = [line.split()[0].replace('"', "") for line in lines if line.strip() and not line.lstrip().startswith("#")]
    return any(name in names or os.path.realpath(name) == str(plug.node) for name in first)


def _disk(node: Path) -> Path:
    """The whole of which ``node`` is a partition; itself where it is none."""
    sys = Path("/sys/class/block", node.name).resolve()
    return node.with_name(sys.parent.name) if (sys / "partition").exists() else node


def _siblings(node: Path) -> set[str]:
    """MAJOR:MINOR of the whole disk and of each partition of it."""
    disk = Path("/sys/class/block", node.name).resolve()
    if (disk / "partition").exists():
        disk = disk.parent
    found = {_read(disk / "dev"), *(_read(part.parent / "dev") for part in disk.glob("*/partition"))}
    return found - {""}


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""


def unfit(plug: Plug) -> str:
    """Why no copies go to such a filesystem, in a sentence; empty where they do."""
    if plug.usage == "crypto":
        return "It is locked (encrypted)."
    if plug.filesystem in _OPTIONS:
        return ""
    return (
        f"Its filesystem ({plug.filesystem or 'unknown'}) is none that copies are written to: exFAT, ext4, NTFS, FAT, "
        "btrfs or XFS."
    )


@asynccontextmanager
async def mounted(plug: Plug, folder: Path, *, reading: bool = False) -> AsyncIterator[int]:
    """The drive, mounted on ``folder``, as a descriptor of its top; it is unmounted at the end, whatever happens.

    ``folder`` is made, and removed at the end. What was written is on the drive after that, unless an error says
    otherwise. Raises DriveUnfit, DriveReadOnly, DriveGone, DriveBroken.
    """
    if why := unfit(plug):
        raise DriveUnfit(why)
    folder = folder.resolve()  # as the kernel names it
    if not reading and _read(Path("/sys/class/block", plug.node.name, "ro")) == "1":
        raise DriveReadOnly("It is write-protected.")
    await _unmount(folder)  # left by one that was killed
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        await _mount(plug, folder, reading=reading)
        top = await in_thread(lambda: _top(folder), Stop())
        try:
            yield top
        finally:
            os.close(top)
    finally:
        await _unmount(folder)
        with suppress(OSError):
            folder.rmdir()


async def _mount(plug: Plug, folder: Path, *, reading: bool) -> None:
    said = ""
    kinds = [_FIRST.get(plug.filesystem), _helper(plug.filesystem), plug.filesystem]
    access = "ro" if reading else "rw"
    for kind in filter(None, kinds):
        options = f"{access},nosuid,nodev,noexec,{_OPTIONS[plug.filesystem]}"
        said = await _run("mount", "-t", kind, "-o", options, str(plug.node), str(folder))
        if not said:
            break
    else:
        # A program that serves a filesystem lets nobody else open its device: what it shows is mounted once more.
        there = next((m for m in mounted_at(plug.node) if m.root == "/"), None)
        if there is None or await _run("mount", "--bind", str(there.point), str(folder)):
            raise _refused(plug, said)
    # As a second step, since programs that serve a filesystem drop some of these without a word, and so does bind.
    said = await _run("mount", "-o", f"remount,bind,{access},{','.join(_SAFE)}", str(folder))
    mine = next((m for m in reversed(mounts()) if m.point == folder), None)
    if mine is None or not mine.options.issuperset(_SAFE):
        raise DriveUnfit(f"It cannot be mounted safely here ({said or 'the kernel does not know how'}).")
    if not reading and await in_thread(lambda: _read_only(folder), Stop()):
        raise DriveReadOnly("It can only be read right now: it is write-protected, or was mounted so by somebody else.")


def _helper(filesystem: str) -> str | None:
    helper = _HELPERS.get(filesystem)
    return helper if helper and shutil.which(f"mount.{helper}", path=_PATH) else None


def _top(folder: Path) -> int:
    try:
        return os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError as error:
        raise _errors(error) from error


def _read_only(folder: Path) -> bool:
    try:
        return bool(os.statvfs(folder).f_flag & os.ST_RDONLY)
    except OSError as error:
        raise _errors(error) from error


def _errors(error: OSError) -> DriveBroken:
    return DriveBroken(f"It gives errors ({error.strerror}): it may be broken.")


_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


async def _run(*argv: str) -> str:
    """What went wrong, empty where nothing did."""
    try:
        done = await process.run(argv, env={"LC_ALL": "C.UTF-8"}, timeout_s=_MOUNT_S)
    except TimeoutError:
        return "it does not answer"
    except OSError as error:
        return f"{argv[0]}: {error.strerror}"
    if not done.returncode:
        return ""
    lines = (line.strip() for line in done.stderr.decode(errors="replace").splitlines())
    # util-linux 2.38 and later end with a hint to dmesg, after what went wrong.
    return " ".join(line for line in lines if line and not line.startswith("dmesg(1)")) or f"status {done.returncode}"


def _refused(plug: Plug, said: str) -> Exception:
    log.info("Mounting %s: %s", plug.node, said)
    if "must be superuser" in said or "permission denied" in said.lower():
        return DriveError("This memu-backup may not mount drives: let the service do it, or type the same with sudo.")
    if not plug.node.exists():
        return DriveGone("It was pulled out.")
    if "write-protected" in said or "read-only" in said:
        return DriveReadOnly("It is write-protected.")
    if "unknown filesystem type" in said:
        helper = _HELPERS.get(plug.filesystem)
        return DriveUnfit(
            f"This server's Linux does not know its filesystem ({plug.filesystem})."
            + (f" Whoever looks after the server can install {helper}." if helper else "")
        )
    if plug.filesystem == "ntfs" and ("hibernat" in said or "unsafe state" in said):
        return DriveReadOnly("Windows did not let go of it properly. Plug it into that computer, and eject it there.")
    return DriveBroken("It cannot be mounted: it may be damaged.")


async def _unmount(folder: Path) -> None:
    """Again and again where somebody mounted over it; where the drive is gone, at once."""
    while any(m.point == folder for m in mounts()):
        said = await asyncio.shield(asyncio.ensure_future(_run("umount", str(folder))))
        if said and (said := await asyncio.shield(asyncio.ensure_future(_run("umount", "-l", str(folder))))):
            log.warning("%s could not be unmounted: %s.", folder, said)
            return


# --- letting go ------------------------------------------------------------------------------------------------------


def holders(plug: Plug) -> list[str]:
    """Where the drive is still in use, all parts of it: mount points, or one empty name where somebody has it who
    cannot be named.
    """
    disk = _siblings(plug.node)
    found = [str(m.point) for m in mounts() if m.device in disk or _number(Path(m.source)) in disk]
    return found or ([""] if _is_held(plug.node) or _is_held(_disk(plug.node)) else [])


def _is_held(node: Path) -> bool:
    """The kernel's own word: only one may have a device for itself, as a mounted filesystem has. open(2), O_EXCL."""
    try:
        os.close(os.open(node, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC))
    except OSError as error:
        return error.errno == errno.EBUSY
    return False


async def power_off(plug: Plug) -> None:
    """Let the drive come to rest, where it can and nobody has another part of it; after this it has to be plugged in
    anew. A drive that cannot is none the worse.
    """
    await in_thread(lambda: _power_off(plug), Stop())


def _power_off(plug: Plug) -> None:
    disk = _disk(plug.node)
    try:
        # With O_EXCL: not while anything on the whole disk is mounted.
        descriptor = os.open(disk, os.O_RDONLY | os.O_EXCL | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        log.debug("%s stays on: %s", disk, error)
        return
    try:
        fcntl.ioctl(descriptor, _EJECT)
    except OSError as error:
        log.debug("%s stays on: %s", disk, error)
    finally:
        os.close(descriptor)

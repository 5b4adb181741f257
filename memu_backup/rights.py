"""Gives an entry the owner, rights, attributes and time that its header says."""

from __future__ import annotations

import os

from memu_backup.files import may_give_away, shown
from memu_backup.formats.tar import Header, Type

_ACL = "system.posix_acl_"
_OF_ROOT = ("security.", "trusted.")
"""Attributes that only root can set, and that the kernel or its programs believe."""
_UNTRUSTED = "it comes without its special rights (setuid, capabilities), as anyone may have packed it; see --trust"


class Rights:
    """For entries below the open folder ``root``. ``warnings`` tell of what could not be set.

    As another user than root, owners stay ours, and files are no longer setuid or setgid; nor are they, nor do they
    keep what only root can give them, where the headers are not ``trusted``.
    """

    def __init__(self, root: int, *, trusted: bool) -> None:
        self.warnings: list[str] = []
        self._trusted = trusted
        self._inherits = _hands_down(root)

    def adorn(self, descriptor: int, header: Header) -> None:
        """A file or folder that is open. Raises OSError."""
        owned = self.own(descriptor, header)
        if self._inherits:
            self._disown(descriptor, header)
        for key, value in header.xattrs.items():
            if key.startswith(_OF_ROOT) and not self._trusted:
                self.warn(f"{shown(header.path)}: {_UNTRUSTED}")
                continue
            try:
                os.setxattr(descriptor, key, value)
            except OSError as error:
                self.warn(f"{shown(header.path)}: its attribute {shown(key)} could not be set ({error.strerror})")
        os.fchmod(descriptor, self._mode(header, owned))  # after the owner: a new owner clears setuid
        os.utime(descriptor, ns=(header.mtime_ns, header.mtime_ns))

    def adorn_link(self, name: str, header: Header, folder: int) -> None:
        """A symbolic link in an open ``folder``. Raises OSError."""
        self.own(name, header, folder)
        os.utime(name, ns=(header.mtime_ns, header.mtime_ns), dir_fd=folder, follow_symlinks=False)

    def own(self, entry: int | str, header: Header, folder: int | None = None) -> bool:
        """Whether its owner and group are those of the header now."""
        if not may_give_away():
            return False
        try:
            # A descriptor is what it is; only a name could be a link.
            os.chown(entry, header.uid, header.gid, dir_fd=folder, follow_symlinks=folder is None)
        except OSError as error:
            self.warn(f"{shown(header.path)}: its owner could not be set ({error.strerror})")
            return False
        return True

    def warn(self, sentence: str) -> None:
        if len(self.warnings) < 100:
            self.warnings.append(sentence)

    def _disown(self, descriptor: int, header: Header) -> None:
        """Take away the rights that the target folder hands down to whatever is made in it (a default ACL)."""
        for key in os.listxattr(descriptor):
            if key.startswith(_ACL) and key not in header.xattrs:
                os.removexattr(descriptor, key)

    def _mode(self, header: Header, owned: bool) -> int:
        """Its rights, without those by which a program would run as somebody it was never meant to run as."""
        # A folder's setgid gives nobody any rights: what is made in it gets the group that the folder has.
        harmless = 0o3777 if header.type is Type.DIRECTORY else 0o1777
        if (owned and self._trusted) or header.mode & harmless == header.mode:
            return header.mode
        why = "it does not run as its owner or group any more, as they could not be set"
        self.warn(f"{shown(header.path)}: {why if self._trusted else _UNTRUSTED}")
        return header.mode & harmless


def _hands_down(folder: int) -> bool:
    try:
        return _ACL + "default" in os.listxattr(folder)
    except OSError:  # a filesystem without them
        return False

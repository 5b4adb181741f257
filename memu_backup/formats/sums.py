"""Lines as sha256sum(1) writes and checks them, for any file name."""

from __future__ import annotations

import hashlib
import os


def line(sha256: str, path: str) -> bytes:
    """``HASH  PATH``; a name with a backslash or a line break is escaped and its line begins with a backslash."""
    escaped = path.replace("\\", "\\\\").replace("\n", "\\n").replace("\r", "\\r")
    mark = "" if escaped == path else "\\"
    return os.fsencode(f"{mark}{sha256}  {escaped}\n")


def parse(text: bytes) -> tuple[str, str] | None:
    """The hash and the path of one line, None where it is not such a line."""
    text = text.removesuffix(b"\n")
    escaped = text.startswith(b"\\")
    sha256, separator, name = text.removeprefix(b"\\").partition(b" ")
    if len(sha256) != 64 or not separator or name[:1] not in (b" ", b"*"):
        return None
    name = name[1:]
    if escaped:
        name = b"\\".join(p.replace(b"\\n", b"\n").replace(b"\\r", b"\r") for p in name.split(b"\\\\"))
    return sha256.decode("ascii", "replace").lower(), os.fsdecode(name)


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()

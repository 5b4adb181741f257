"""The program, loaded once and forked for each command: a process of its own each time, without the wait for imports.

Run as a program it serves; ``run`` asks it. Tests that are about signals, terminals or starting use the real script.
"""

from __future__ import annotations

import atexit
import ctypes
import functools
import importlib
import json
import os
import select
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

LOADED = (
    "memu_backup.backup",
    "memu_backup.cli",
    "memu_backup.console",
    "memu_backup.find",
    "memu_backup.history.database",
    "memu_backup.manager",
    "memu_backup.presets",
    "memu_backup.restore",
    "memu_backup.visits",
    "pyudev",
    "apscheduler.triggers.cron",
    "asyncpg",
    "psutil",
    "rich.progress",
    "rich.table",
)


def run(argv: list[str], folder: Path, environ: Mapping[str, str], inside: int = 0) -> tuple[int, bytes, bytes]:
    """Exit status (negative: the signal), what it wrote to stdout and to stderr; stdin is empty.

    With ``inside`` it runs where that process does, with its network and its mounts.
    """
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as asking,
        tempfile.TemporaryFile() as out,
        tempfile.TemporaryFile() as err,
        Path(os.devnull).open("rb") as nothing,
    ):
        asking.connect(_server())
        asking.settimeout(60)
        request = json.dumps({"argv": argv, "folder": str(folder), "environ": dict(environ), "inside": inside})
        socket.send_fds(asking, [request.encode()], [nothing.fileno(), out.fileno(), err.fileno()])
        status = int(asking.recv(100))
        out.seek(0)
        err.seek(0)
        return status, out.read(), err.read()


@functools.cache
def _server() -> str:
    path = str(Path(tempfile.mkdtemp(prefix="memu-warm-")) / "socket")
    server = subprocess.Popen(
        [sys.executable, "-m", "tests.warm", path],
        cwd=Path(__file__).parent.parent,
        env={**os.environ, "LANG": "C.UTF-8"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert server.stdin and server.stdout
    atexit.register(server.communicate)  # closing its stdin ends it
    assert server.stdout.readline() == b"ready\n"
    return path


def serve(path: str) -> None:
    for name in LOADED:
        importlib.import_module(name)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        listener.bind(path)
        listener.listen()
        print("ready", flush=True)
        while sys.stdin not in select.select([listener, sys.stdin], [], [])[0]:
            asked, _ = listener.accept()
            request, streams, *_ = socket.recv_fds(asked, 1 << 18, 3)
            child = os.fork()
            if child == 0:
                listener.close()
                asked.close()
                _become(json.loads(request), streams)
            for stream in streams:
                os.close(stream)
            _, status = os.waitpid(child, 0)
            asked.send(str(os.waitstatus_to_exitcode(status)).encode())
            asked.close()
    Path(path).unlink()
    Path(path).parent.rmdir()


def _become(request: dict[str, object], streams: list[int]) -> NoReturn:
    from memu_backup.cli import main

    status: object = 70
    try:
        for number, stream in enumerate(streams):
            os.dup2(stream, number)
            os.close(stream)
        if request["inside"]:
            _enter(int(str(request["inside"])))
        os.environ.clear()
        os.environ.update(request["environ"])  # type: ignore[call-overload]
        os.chdir(str(request["folder"]))
        sys.argv = list(request["argv"])  # type: ignore[call-overload]
        main()
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status if isinstance(status, int) else 1)


def _enter(pid: int) -> None:
    """As nsenter(1) does."""
    libc = ctypes.CDLL(None, use_errno=True)
    for kind in ("net", "mnt"):
        with Path(f"/proc/{pid}/ns/{kind}").open() as there:
            if libc.setns(there.fileno(), 0) != 0:
                raise OSError(ctypes.get_errno(), "setns")


if __name__ == "__main__":
    serve(sys.argv[1])

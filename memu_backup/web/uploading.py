"""Takes in a backup that is uploaded: straight to the disk, in large blocks, and nowhere else.

The form is read as it comes (multipart/form-data, RFC 7578): a framework would put all of it into /tmp first.
"""

from __future__ import annotations

import asyncio
import re
import secrets
import shutil
import time
from contextlib import suppress
from email.message import Message
from pathlib import Path

import aiofiles
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser
from starlette.requests import ClientDisconnect, Request

from memu_backup import files, words
from memu_backup.errors import DiskFull, MemuError, NotThere, UsageError

FIELD = "backup_file"

_FOLDER = ".uploads"
_BLOCK = 4 * 1024 * 1024
_SPARE_BYTES = 64 * 1024 * 1024
"""Stays free: a disk that is full to the last byte does nobody any good."""

_KEY = re.compile(r"[0-9a-f]{32}")
_KEPT_S = 24 * 3600

_UNFIT = re.compile(r"[^A-Za-z0-9._-]+")
_LONGEST = 120


class TooLarge(MemuError):
    code = "too_large"


class CutOff(MemuError):
    code = "cut_off"


class Waiting:
    """Uploads below ``place``, each by a key, until somebody lets it go or a day has passed."""

    def __init__(self, place: Path) -> None:
        self._place = place
        self._folder = place / _FOLDER

    async def take_in(self, request: Request, most_bytes: int) -> tuple[str, Path]:
        """The file of the form's field ``FIELD``, and its key.

        Raises UsageError for a form that holds none, TooLarge, DiskFull, CutOff; nothing of it stays then.
        """
        parts = _Parts(_boundary(request))
        await asyncio.to_thread(self._forget_old)
        _must_fit(request, self._place, most_bytes)
        key = secrets.token_hex(16)
        folder = self._folder / key
        try:
            await asyncio.to_thread(folder.mkdir, mode=0o700, parents=True)
            return key, await _written(request, parts, folder, most_bytes)
        except OSError as error:
            self.let_go(key)
            raise files.storing(error, self._place) from error
        except BaseException:
            self.let_go(key)
            raise

    def file(self, key: str) -> Path:
        """Raises UsageError where it is not there any more. Blocks."""
        found = sorted((self._folder / key).glob("*.tar.gz")) if _KEY.fullmatch(key) else []
        if not found:
            raise NotThere("That upload is not here any more. Send it again.")
        return found[0]

    def let_go(self, key: str) -> None:
        """Blocks."""
        shutil.rmtree(self._folder / key, ignore_errors=True)
        with suppress(OSError):
            self._folder.rmdir()

    def _forget_old(self) -> None:
        with suppress(OSError):
            for one in self._folder.iterdir():
                if one.stat().st_mtime < time.time() - _KEPT_S:
                    shutil.rmtree(one, ignore_errors=True)


def sweep(place: Path) -> None:
    """Remove what an earlier service has left. Blocks."""
    shutil.rmtree(place / _FOLDER, ignore_errors=True)


def _must_fit(request: Request, place: Path, most_bytes: int) -> None:
    """As far as it is known before the first byte."""
    length = request.headers.get("content-length", "")
    if not (length.isascii() and length.isdigit()):
        return
    if int(length) > most_bytes + _BLOCK:
        raise TooLarge(_too_large(most_bytes))
    free = shutil.disk_usage(place).free
    if int(length) > free - _SPARE_BYTES:
        raise DiskFull(
            f"There is no room for it: {words.size(int(length))} would come, {words.size(free)} are free in {place}; "
            "nothing was taken in."
        )


def _too_large(most_bytes: int) -> str:
    return f"That is larger than the {words.size(most_bytes)} that web.upload_gb allows; nothing of it was kept."


async def _written(request: Request, parts: _Parts, folder: Path, most_bytes: int) -> Path:
    partial, got_bytes = folder / "partial", 0
    async with aiofiles.open(partial, "xb", buffering=0) as file:

        async def put(block: bytes) -> None:
            await file.write(block)

        try:
            async for chunk in request.stream():
                parts.feed(chunk)
                if len(parts.content) >= _BLOCK:
                    got_bytes += len(parts.content)
                    if got_bytes > most_bytes:
                        raise TooLarge(_too_large(most_bytes))
                    await put(parts.taken())
                    await asyncio.to_thread(_must_have_room, folder)
        except ClientDisconnect as error:
            raise CutOff("The upload was cut off; nothing of it was kept. Send it again.") from error
        except MultipartParseError as error:
            raise UsageError(_NO_FORM) from error
        await put(parts.taken())
    if not parts.ended or parts.filename is None:
        raise UsageError(_NO_FORM)
    named = folder / _name(parts.filename)
    await asyncio.to_thread(partial.rename, named)
    return named


_NO_FORM = (
    f"The request holds no file called {FIELD}, or not all of it; nothing was done. Send it as a form: "
    f"curl -F {FIELD}=@BACKUP.tar.gz …"
)


def _must_have_room(folder: Path) -> None:
    if shutil.disk_usage(folder).free < _SPARE_BYTES:
        raise DiskFull("The disk became full while it was taken in; nothing of it was kept.")


def _name(filename: str) -> str:
    """One that is fit for a file, whatever was sent: it is shown, and written into the audit."""
    plain = _UNFIT.sub("_", filename.replace("\\", "/").rpartition("/")[2]).strip("._") or "upload"
    return plain.removesuffix(".tar.gz")[:_LONGEST] + ".tar.gz"


def _boundary(request: Request) -> bytes:
    """Raises UsageError."""
    told = Message()
    told["content-type"] = request.headers.get("content-type", "")
    boundary = told.get_param("boundary")
    if told.get_content_type() != "multipart/form-data" or not isinstance(boundary, str):
        raise UsageError(_NO_FORM)
    return boundary.encode("latin-1", "replace")


class _Parts:
    """Of the form: the ``content`` of the one file that is asked for, as far as it came and nobody took it; the rest is
    passed over. ``filename`` is None before it begins.
    """

    def __init__(self, boundary: bytes) -> None:
        self.content = bytearray()
        self.filename: str | None = None
        self.ended = False
        self._header = self._value = b""
        self._headers: dict[str, str] = {}
        self._ours = False
        try:
            self._parser = MultipartParser(
                boundary,
                {
                    "on_part_begin": self._begin,
                    "on_part_data": self._data,
                    "on_part_end": self._end,
                    "on_header_field": self._on_field,
                    "on_header_value": self._on_value,
                    "on_header_end": self._on_header,
                    "on_headers_finished": self._on_headers,
                },
            )
        except MultipartParseError as error:
            raise UsageError(_NO_FORM) from error

    def feed(self, chunk: bytes) -> None:
        self._parser.write(chunk)

    def taken(self) -> bytes:
        content = bytes(self.content)
        self.content.clear()
        return content

    def _begin(self) -> None:
        self._headers = {}

    def _on_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header(self) -> None:
        self._headers[self._header.decode("latin-1").lower()] = self._value.decode("utf-8", "replace")
        self._header = self._value = b""

    def _on_headers(self) -> None:
        told = Message()
        told["content-disposition"] = self._headers.get("content-disposition", "")
        name = told.get_param("name", header="content-disposition")
        self._ours = name == FIELD and self.filename is None
        if self._ours:
            self.filename = told.get_filename("upload")

    def _data(self, data: bytes, start: int, end: int) -> None:
        if self._ours:
            self.content += data[start:end]

    def _end(self) -> None:
        self.ended = self.ended or self._ours
        self._ours = False

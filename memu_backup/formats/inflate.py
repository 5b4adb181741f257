"""Inflates what other programs made: gzip of one piece, which can only be read from its beginning to its end."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Generator, Iterator
from contextlib import suppress

from memu_backup.errors import DamagedArchive

_MOST = 4 * 1024 * 1024
_STEP = 64 * 1024
"""A step in which zlib meets damage is gone through byte by byte, to have what stands before it."""


def inflate(read: Callable[[int, int], bytes], start: int, end: int) -> Generator[bytes]:
    """The content of a gzip file, also of several members, and with zeros at its end as tapes and some tools leave
    them. ``read`` gives the bytes at an offset, up to so many. Raises DamagedArchive, and what ``read`` raises.
    """
    inflater = zlib.decompressobj(31)
    offset = start
    while offset < end:
        block = read(offset, min(_STEP, end - offset))
        if not block:
            break
        offset += len(block)
        while block:
            if inflater.eof:
                block = block.lstrip(b"\0")
                if not block:
                    break
                inflater = zlib.decompressobj(31)
            before = inflater.copy()
            try:
                data = inflater.decompress(block, _MOST)
            except zlib.error as error:
                yield from _up_to_damage(before, block)
                raise DamagedArchive(f"its compression is damaged before byte {offset:,}") from error
            yield data
            block = inflater.unused_data if inflater.eof else inflater.unconsumed_tail
    while not inflater.eof and (rest := inflater.decompress(b"", _MOST)):
        yield rest
    if not inflater.eof:
        raise DamagedArchive("it ends too early; a part of it is missing")


def _up_to_damage(inflater: zlib._Decompress, block: bytes) -> Iterator[bytes]:
    """zlib gives nothing at all of a block in which it meets damage."""
    with suppress(zlib.error):
        for at in range(len(block)):
            yield inflater.decompress(block[at : at + 1])

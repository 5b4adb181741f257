"""What a snapshot of Redis looks like on the disk: how it begins and ends, and its checksum.

See rdbSaveRio in rdb.c: ``REDIS`` and four digits (Valkey from 9 on: ``VALKEY`` and three), records, the byte 0xFF, and
the CRC-64 of all before it in eight bytes, the lowest first; zero where the server was told to compute none.
"""

from __future__ import annotations

import re

_BEGINNING = re.compile(rb"REDIS(\d{4})|VALKEY(\d{3})")
_BEGINNING_BYTES = 9
_SUM_BYTES = 8
_END = b"\xff"
_POLYNOMIAL = 0x1AD93D23594C935A9
"""Jones' one, bits reversed, beginning with zero: see crc64.c."""


class Passing:
    """Looks at a snapshot while it passes in blocks, and keeps none of it. ``size_bytes`` is how much has passed."""

    def __init__(self) -> None:
        import crcmod  # only where there is one to look at

        self._add = crcmod.mkCrcFun(_POLYNOMIAL, initCrc=0, xorOut=0, rev=True)
        self._sum = 0
        self._beginning = b""
        self._before = b""
        self._end = b""
        self.size_bytes = 0

    def add(self, block: bytes) -> None:
        """What comes next. Takes 2 ms a MB."""
        self.size_bytes += len(block)
        self._beginning += block[: _BEGINNING_BYTES - len(self._beginning)]
        known = self._end + block
        summed, self._end = known[:-_SUM_BYTES], known[-_SUM_BYTES:]
        self._sum = self._add(summed, self._sum)
        self._before = summed[-1:] or self._before

    @property
    def version(self) -> int:
        """Of the format; 0 where it is none."""
        found = _BEGINNING.fullmatch(self._beginning)
        return int(found[1] or found[2]) if found else 0

    @property
    def summed(self) -> bool:
        """Whether the server computed a checksum."""
        return any(self._end)

    def problem(self) -> str | None:
        """What is wrong with all that has passed, as the rest of a sentence; None where it is whole."""
        if not self.version:
            return "does not begin as a snapshot of Redis does"
        if self._before != _END or len(self._end) < _SUM_BYTES:
            return "breaks off: the end of the snapshot is missing"
        if self.summed and int.from_bytes(self._end, "little") != self._sum:
            return "is damaged: its checksum is another one"
        return None

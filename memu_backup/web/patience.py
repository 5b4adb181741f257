"""Slows down whoever guesses: by address, and by failures alone. Pure, but for the clock that is handed in."""

from __future__ import annotations

import ipaddress
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass

_FREE = 5
_LONGEST_S = 60.0
_FORGOTTEN_S = 600.0
_MOST = 10_000


@dataclass(slots=True)
class _Failures:
    count: int
    last_s: float


class Patience:
    """After five failures each further one makes its address wait, from 1 s on twice as long as before, up to 60 s; ten
    quiet minutes and all is forgotten. ``monotonic`` gives seconds.
    """

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._now = monotonic
        self._failures: OrderedDict[str, _Failures] = OrderedDict()

    def must_wait_s(self, address: str) -> float:
        """How long from now on; 0 where it may try at once."""
        known = self._failures.get(_net(address))
        if known is None or known.count < _FREE:
            return 0.0
        pause = min(_LONGEST_S, 2.0 ** (known.count - _FREE))
        return max(0.0, known.last_s + pause - self._now())

    def failed(self, address: str) -> None:
        key, now = _net(address), self._now()
        known = self._failures.pop(key, None)
        count = known.count if known and now - known.last_s < _FORGOTTEN_S else 0
        self._failures[key] = _Failures(count + 1, now)
        while len(self._failures) > _MOST:
            self._failures.popitem(last=False)

    def succeeded(self, address: str) -> None:
        self._failures.pop(_net(address), None)


def _net(address: str) -> str:
    """Whoever has one address of IPv6 has a whole network of them."""
    try:
        parsed = ipaddress.ip_address(address)
    except ValueError:
        return address
    return str(ipaddress.ip_network((parsed, 64), strict=False)) if parsed.version == 6 else address

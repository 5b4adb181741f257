"""Mends ``time.sleep`` in processes under libfaketime 0.9.10, which fails with EINVAL where only the date is faked."""

import select
import time


def _sleep(seconds: float, /) -> None:
    select.select([], [], [], seconds)


time.sleep = _sleep  # type: ignore[assignment]

"""Paths as settings know them: relative ones are taken from the folder of the settings file, never from luck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated

from pydantic import AfterValidator

_base: ContextVar[Path | None] = ContextVar("_base", default=None)


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """While this lasts, a relative ``LocalPath`` is taken from ``folder``; otherwise from the working directory."""
    token = _base.set(folder)
    try:
        yield
    finally:
        _base.reset(token)


def _resolve(path: Path) -> Path:
    return ((_base.get() or Path.cwd()) / path.expanduser()).absolute()


LocalPath = Annotated[Path, AfterValidator(_resolve)]
"""A path on this machine, absolute after validation, ``~`` expanded, symbolic links left as they are."""

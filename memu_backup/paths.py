"""Paths as settings know them: relative ones are taken from the folder of the settings file, never from luck."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator

from memu_backup.errors import UsageError

_base: ContextVar[Path | None] = ContextVar("_base", default=None)


@contextmanager
def relative_to(folder: Path) -> Iterator[None]:
    """While this lasts, a relative ``LocalPath`` is taken from ``folder``; otherwise from the working directory."""
    token = _base.set(folder)
    try:
        yield
    finally:
        _base.reset(token)


def absolute(path: Path) -> Path:
    """``path`` from the working folder. Raises UsageError where that has been deleted and ``path`` needs it."""
    try:
        return path.absolute()
    except FileNotFoundError as error:
        raise UsageError(
            "The folder in which you are has been deleted. Go to another one first, such as: cd /"
        ) from error


def _resolve(path: Path) -> Path:
    try:
        expanded = path.expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path.parts[0]} is the home folder of nobody on this machine") from error
    return ((_base.get() or Path.cwd()) / expanded).absolute()


def _none_if_empty(text: Any) -> Any:
    return None if text == "" else text


LocalPath = Annotated[Path, AfterValidator(_resolve)]
"""A path on this machine, absolute after validation, ``~`` expanded, symbolic links left as they are."""

PathOrNone = Annotated[LocalPath | None, BeforeValidator(_none_if_empty)]
"""The same; an empty text says that there is none."""

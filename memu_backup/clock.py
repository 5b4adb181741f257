"""The one place that asks what time it is, so that tests can hand in their own."""

from collections.abc import Callable
from datetime import UTC, datetime

Clock = Callable[[], datetime]
"""Returns the present moment as an aware datetime in UTC."""


def now() -> datetime:
    """The present moment, aware, in UTC."""
    return datetime.now(UTC)

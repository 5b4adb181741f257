"""Times at which a job runs, as people write them, brought into one form that no scheduler reads in another way.

Programs differ over crontab lines: whether 0 is Sunday or Monday, and whether a day of the month and a weekday given
together mean "and" or "or". Here 0 and 7 are Sunday as in cron, what comes out names weekdays by name, and the
doubtful combination is refused.
"""

from __future__ import annotations

import re

_WEEKDAYS = ("sun", "mon", "tue", "wed", "thu", "fri", "sat")
_MONTHS = ("jan", "feb", "mar", "apr", "may", "jun", "jul", "aug", "sep", "oct", "nov", "dec")
_LONGEST = (31, 29, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31)

_FIELDS: tuple[tuple[str, int, int, dict[str, int]], ...] = (
    ("minute", 0, 59, {}),
    ("hour", 0, 23, {}),
    ("day of the month", 1, 31, {}),
    ("month", 1, 12, {name: n for n, name in enumerate(_MONTHS, 1)}),
    ("weekday", 0, 7, {name: n for n, name in enumerate(_WEEKDAYS)}),
)


def daily(at: str) -> str:
    """``02:00`` as a crontab line in the form of ``normal``. Raises ValueError with a phrase for people."""
    found = re.fullmatch(r"([01]?\d|2[0-3]):([0-5]\d)", at, re.ASCII)
    if found is None:
        raise ValueError('is not a time of day; write hours and minutes, such as "02:00"')
    return f"{int(found[2])} {int(found[1])} * * *"


def normal(line: str) -> str:
    """A crontab line of five fields with ranges and steps written out and weekdays by name (``0 2 * * sat,sun``).

    Raises ValueError with a phrase for people.
    """
    texts = line.lower().split()
    if len(texts) != len(_FIELDS):
        raise ValueError(
            'is not a cron line; write minute, hour, day of the month, month and weekday, such as "0 2 * * *"'
        )
    sets = [_numbers(text, *field) for text, field in zip(texts, _FIELDS, strict=True)]
    _, _, days, months, weekdays = sets
    if days and weekdays:
        raise ValueError(
            "names a day of the month and a weekday, which programs read in two ways; make two jobs, or drop one"
        )
    if days and all(min(days) > _LONGEST[month - 1] for month in months or {2}):
        raise ValueError("names a day that never comes")
    written = [",".join(map(str, sorted(s))) if s else "*" for s in sets[:4]]
    names = ",".join(_WEEKDAYS[n % 7] for n in sorted(weekdays, key=lambda n: (n + 6) % 7)) if weekdays else "*"
    return " ".join([*written, names])


def _numbers(text: str, what: str, low: int, high: int, names: dict[str, int]) -> frozenset[int]:
    """All numbers that a field means; empty for every one."""
    found: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"(?:\*|(\w+)(?:-(\w+))?)(?:/(\d+))?", part, re.ASCII)
        if match is None:
            raise ValueError(f"is not a cron line; its {what} cannot be read")
        first = _number(match[1], low, names)
        last = _number(match[2], high if match[1] is None or match[3] else first, names)
        if what == "weekday" and last == 0 < first:
            last = 7
        step = int(match[3] or 1)
        if not (low <= first <= last <= high and step):
            raise ValueError(f"is not a cron line; its {what} goes from {low} to {high}")
        found.update(range(first, last + 1, step))
    if what == "weekday":
        found = {n % 7 for n in found}
    complete = len(found) == (7 if what == "weekday" else high - low + 1)
    return frozenset() if complete else frozenset(found)


def _number(text: str | None, otherwise: int, names: dict[str, int]) -> int:
    if text is None:
        return otherwise
    return int(text) if text.isdigit() else names.get(text, -1)

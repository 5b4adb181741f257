"""Reads ``[jobs.NAME.retention]`` as people write it, with sizes and weekdays as words, into a policy."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)

from memu_backup.mistakes import did_you_mean
from memu_backup.retention import Policy
from memu_backup.words import WEEKDAYS

_UNITS = {"kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}

_RULES = ("keep_last", "daily", "weekly", "monthly", "within_days", "then_weekday")
"""Each of them alone says that something stays."""


def _size(text: Any) -> int:
    """100 GB -> 100000000000. Raises ValueError with a phrase for people."""
    written = re.fullmatch(r"(\d+(?:\.\d+)?) *([kMGT]B)", text, re.IGNORECASE) if isinstance(text, str) else None
    if written is None:
        raise ValueError('is not a size; write a number and kB, MB, GB or TB, such as "100 GB"')
    unit = next(count for name, count in _UNITS.items() if name.lower() == written[2].lower())
    size_bytes = int(Decimal(written[1]) * unit)
    if size_bytes == 0:
        raise ValueError("must be more than nothing")
    return size_bytes


def _written(size_bytes: int) -> str:
    """The other way, to the byte: 100 GB, 1.5 TB."""
    unit = next((name for name in reversed(_UNITS) if size_bytes >= _UNITS[name]), "kB")
    number = f"{Decimal(size_bytes) / _UNITS[unit]:f}"
    return f"{number.rstrip('0').rstrip('.') if '.' in number else number} {unit}"


def _weekday(text: Any) -> str:
    """Sun, SUNDAY -> sunday. Raises ValueError with a phrase for people."""
    names = [day.lower() for day in WEEKDAYS]
    word = text.lower() if isinstance(text, str) else ""
    found = [name for name in names if word in (name, name[:3])]
    if not found:
        raise ValueError(f"is not a day of the week{did_you_mean(word, names) or ', such as sunday'}")
    return found[0]


Size = Annotated[int, BeforeValidator(_size), PlainSerializer(_written)]


class RetentionSettings(BaseModel):
    """What stays of a job's backups; ``retention.Policy`` says what each setting means."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    keep_last: int | None = Field(default=None, ge=1, description="the newest so many; backup_retention_count")
    daily: int | None = Field(default=None, ge=1, description="one a day, for so many days")
    weekly: int | None = Field(default=None, ge=1, description="one a week, for so many weeks")
    monthly: int | None = Field(default=None, ge=1, description="one a month, for so many months")
    within_days: int | None = Field(default=None, ge=1, description="all of the last so many days")
    then_weekday: Annotated[str, BeforeValidator(_weekday)] | None = Field(
        default=None, description="after that the one of this day of each week"
    )
    until_days: int | None = Field(default=None, ge=1, validate_default=True, description="until it is so old")
    max_backups: int | None = Field(default=None, ge=1, description="at most so many in all")
    max_size: Size | None = Field(default=None, description="all of them together take at most so much")
    min_free: Size | None = Field(default=None, description="so much of the disk stays free")

    @field_validator("until_days")
    @classmethod
    def _with_a_weekday(cls, until_days: int | None, info: ValidationInfo) -> int | None:
        if "then_weekday" not in info.data:  # it is wrong in itself, and told of already
            return until_days
        weekday, within_days = info.data["then_weekday"], info.data.get("within_days") or 0
        if until_days is None and weekday:
            raise ValueError(f"is missing; it says for how many days each {weekday.capitalize()} stays")
        if until_days is not None and weekday is None:
            raise ValueError('has no effect without then_weekday, such as then_weekday = "sunday"')
        if until_days is not None and until_days <= within_days:
            raise ValueError("must be more than within_days, for all those days stay anyway")
        return until_days

    @field_validator("max_backups")
    @classmethod
    def _not_less_than_the_last(cls, max_backups: int | None, info: ValidationInfo) -> int | None:
        keep_last = info.data.get("keep_last")
        if max_backups is not None and keep_last and max_backups < keep_last:
            raise ValueError("is less than keep_last, so that as many could never stay")
        return max_backups

    @model_validator(mode="after")
    def _with_something_that_stays(self) -> Self:
        if (self.max_backups or self.max_size) and not self._rules():
            raise ValueError("says how much is too much, but not what stays; add keep_last, or daily, weekly, …")
        return self

    def _rules(self) -> bool:
        return any(getattr(self, name) is not None for name in _RULES)

    def in_effect(self, otherwise: int) -> Self:
        """With the last ``otherwise`` to be kept where no rule says what stays."""
        return self if self._rules() else self.model_copy(update={"keep_last": otherwise})

    def policy(self) -> Policy:
        """Raises ValueError where no rule says what stays."""
        days = [day.lower() for day in WEEKDAYS]
        return Policy(
            keep_last=self.keep_last or 0,
            daily=self.daily or 0,
            weekly=self.weekly or 0,
            monthly=self.monthly or 0,
            within_days=self.within_days or 0,
            then_weekday=days.index(self.then_weekday) if self.then_weekday else None,
            until_days=self.until_days or 0,
            max_backups=self.max_backups,
            max_bytes=self.max_size,
            min_free_bytes=self.min_free,
        )

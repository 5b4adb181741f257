"""What stays, as one writes it into config.toml: the five systems' policies, sizes in words, and every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from memu_backup.config import load
from memu_backup.config_shown import show
from memu_backup.errors import SettingsError
from memu_backup.retention import Policy

GOOD = """
timezone = "Europe/Berlin"
[sources.photos]
kind = "directory"
path = "photos"
[jobs.nightly]
at = "02:00"
"""
GB = 10**9


def written(folder: Path, retention: str, top: str = "") -> Path:
    file = folder / "config.toml"
    file.write_text(f"{top}\n{GOOD}{retention}\n")
    return file


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ("", Policy(keep_last=7)),  # Memu
        ("retention = { daily = 7, weekly = 4, monthly = 2 }", Policy(daily=7, weekly=4, monthly=2)),  # Monsterr
        (
            "retention = { daily = 7, weekly = 4, monthly = 12, max_backups = 30 }",  # Kuroibara
            Policy(daily=7, weekly=4, monthly=12, max_backups=30),
        ),
        (
            'retention = { within_days = 14, then_weekday = "sunday", until_days = 74 }',  # Sound Box
            Policy(within_days=14, then_weekday=6, until_days=74),
        ),
        ("retention = { within_days = 30 }", Policy(within_days=30)),  # MediaNest
        ('retention = { then_weekday = "Mon", until_days = 9 }', Policy(then_weekday=0, until_days=9)),
        ('retention = { min_free = "10 GB" }', Policy(keep_last=7, min_free_bytes=10 * GB)),
        ('retention = { keep_last = 2, max_size = "1.5TB" }', Policy(keep_last=2, max_bytes=1500 * GB)),
        ('retention = { keep_last = 2, max_size = "750 kb" }', Policy(keep_last=2, max_bytes=750_000)),
        ("retention = {}", Policy(keep_last=7)),
    ],
)
def test_each_policy_can_be_written(retention: str, expected: Policy, tmp_path: Path) -> None:
    assert load(written(tmp_path, retention), {}).job("nightly").retention == expected


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ("keep_last = 0", ["keep_last: must be at least 1"]),
        ("daily = -1\nweekly = 'four'", ["daily: must be at least 1", "weekly: must be a whole number"]),
        ("dayly = 7", ["dayly: is not a setting; did you mean daily?"]),
        ("max_sise = '1 GB'", ["max_sise: is not a setting; did you mean max_size?"]),
        *(
            (
                f"keep_last = 7\nmax_size = {size}",
                ['max_size: is not a size; write a number and kB, MB, GB or TB, such as "100 GB"'],
            )
            for size in ("100", "'100'", "'100 GiB'", "'1,5 TB'", "'GB'", "'-1 GB'", "true")
        ),
        ("min_free = '0 GB'", ["min_free: must be more than nothing"]),
        (
            "then_weekday = 'sundy'\nuntil_days = 74",
            ["then_weekday: is not a day of the week; did you mean sunday?"],
        ),
        ("then_weekday = 7\nuntil_days = 74", ["then_weekday: is not a day of the week, such as sunday"]),
        (
            "within_days = 14\nthen_weekday = 'sunday'",
            ["until_days: is missing; it says for how many days each Sunday stays"],
        ),
        (
            "within_days = 14\nuntil_days = 74",
            ['until_days: has no effect without then_weekday, such as then_weekday = "sunday"'],
        ),
        (
            "within_days = 74\nthen_weekday = 'sunday'\nuntil_days = 74",
            ["until_days: must be more than within_days, for all those days stay anyway"],
        ),
        (
            "keep_last = 7\nmax_backups = 5",
            ["max_backups: is less than keep_last, so that as many could never stay"],
        ),
    ],
)
def test_each_mistake_has_its_sentence(retention: str, expected: list[str], tmp_path: Path) -> None:
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, f"[jobs.nightly.retention]\n{retention}"), {})
    assert list(caught.value.problems) == [f"jobs.nightly.retention.{sentence}" for sentence in expected]


@pytest.mark.parametrize("maximum", ["max_backups = 30", 'max_size = "1 GB"'])
def test_a_maximum_alone_is_no_policy(maximum: str, tmp_path: Path) -> None:
    """Whoever writes at most 30 does not expect 7."""
    with pytest.raises(SettingsError) as caught:
        load(written(tmp_path, f"retention = {{ {maximum} }}"), {})
    assert caught.value.problems == (
        "jobs.nightly.retention: says how much is too much, but not what stays; add keep_last, or daily, weekly, …",
    )


@pytest.mark.parametrize(
    ("retention", "expected"),
    [
        ("", {"keep_last": 5}),
        ('retention = { min_free = "1500 GB" }', {"keep_last": 5, "min_free": "1.5 TB"}),
        (
            'retention = { within_days = 14, then_weekday = "Sun", until_days = 74, max_size = "100gb" }',
            {"within_days": 14, "then_weekday": "sunday", "until_days": 74, "max_size": "100 GB"},
        ),
        ('retention = { daily = 7, max_size = "1000.5 MB" }', {"daily": 7, "max_size": "1.0005 GB"}),
    ],
)
def test_what_is_in_effect_is_shown_and_could_be_written_so(
    retention: str, expected: dict[str, object], tmp_path: Path
) -> None:
    config = load(written(tmp_path, retention, top="backup_retention_count = 5"), {})
    shown = show(config)["jobs"]["nightly"]["retention"]
    assert shown == expected
    again = "\n".join(f"{key} = {json.dumps(value)}" for key, value in shown.items())
    policy = load(written(tmp_path, f"[jobs.nightly.retention]\n{again}"), {}).job("nightly").retention
    assert policy == config.job("nightly").retention

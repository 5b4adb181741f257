"""The status in the few keys that Sound Box's own script has."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from memu_backup.brief import brief, policy_words
from memu_backup.config import Config, load
from memu_backup.retention import Policy
from tests.monday import FAILED, GOOD, HEALTHY

JOBS = '[jobs.nightly]\nat = "02:00"\n[jobs.weekly]\ncron = "30 4 * * sun"\n[jobs.weekly.retention]\nweekly = 4\n'


def config(folder: Path, jobs: str = JOBS) -> Config:
    source = '[sources.photos]\nkind = "directory"\npath = "photos"\n'
    (folder / "config.toml").write_text(f'timezone = "Europe/Berlin"\n{source}{jobs}')
    return load(folder / "config.toml", {})


def test_several_jobs_are_told_as_one(tmp_path: Path) -> None:
    failed = replace(FAILED, created_at=GOOD.created_at + timedelta(hours=2), error="The disk is full.")
    told = brief(config(tmp_path), {"nightly": HEALTHY, "weekly": replace(HEALTHY, last=failed, stored_count=2)})
    assert told == {
        "enabled": True,
        "backup_dir": str(tmp_path / "backups"),
        "retention_policy": "nightly: the 7 newest; weekly: one a week for 4 weeks",
        "backup_time": "02:00",
        "backup_count": 9,
        "latest_backup_date": "2026-01-26",
        "last_backup": {
            "time": "2026-01-26T04:05:00",
            "status": "failed",
            "size_mb": 0.0,
            "error": "The disk is full.",
        },
    }


def test_before_the_first_backup_and_without_a_time(tmp_path: Path) -> None:
    nothing = replace(HEALTHY, last=None, last_good=None, stored_count=0)
    told = brief(config(tmp_path, "[jobs.nightly]\n"), {"nightly": nothing})
    assert (told["backup_time"], told["latest_backup_date"], told["last_backup"]) == (None, None, None)
    told = brief(config(tmp_path, '[jobs.nightly]\ncron = "30 4 * * sun"\n'), {"nightly": nothing})
    assert told["backup_time"] == "30 4 * * sun"


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (Policy(within_days=15, then_weekday=6, until_days=75), "14 days daily, then weekly for 2 months"),
        (Policy(within_days=7, then_weekday=0, until_days=17), "6 days daily, then weekly for 10 days"),
        (Policy(within_days=2, then_weekday=6, until_days=32), "1 day daily, then weekly for 1 month"),
        (Policy(within_days=30), "all of the last 30 days"),
        (Policy(keep_last=2, within_days=1, then_weekday=6, until_days=9),
         "the 2 newest, all of the last 1 day and one each Sunday of the last 9 days"),
    ],
)  # fmt: skip
def test_rules_in_a_few_words(policy: Policy, words: str) -> None:
    assert policy_words(policy) == words

"""A dead-man's switch outside hears of each beginning and each end, once, and of nothing that is long past."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta

from memu_backup import pulse
from memu_backup.model import Run, Status
from tests.monday import FAILED, GOOD, PARTIAL
from tests.receiver import Receiver

SOON = GOOD.created_at + timedelta(minutes=7)


async def heard(receiver: Receiver, *runs: Run, before: dict[str, str] | None = None, hours: float = 0) -> list[str]:
    """What arrives; ``before`` is carried on."""
    carried = before if before is not None else {}
    urls = {"nightly": f"http://{receiver.at}/uuid?a=b"}
    carried.update(await pulse.tell(urls, runs, dict(carried), SOON + timedelta(hours=hours), set()))
    paths = [request.path for request in receiver.heard]
    receiver.heard.clear()
    return paths


async def test_each_beginning_and_end_is_told_once(receiver: Receiver) -> None:
    told: dict[str, str] = {}
    begun = replace(GOOD, status=Status.IN_PROGRESS)
    assert await heard(receiver, begun, before=told) == ["/uuid/start?a=b"]
    assert await heard(receiver, begun, before=told) == []
    assert await heard(receiver, GOOD, before=told) == ["/uuid?a=b"]
    assert await heard(receiver, GOOD, before=told) == []


async def test_what_failed_or_lacks_something_is_no_good_news(receiver: Receiver) -> None:
    assert await heard(receiver, FAILED) == ["/uuid/fail?a=b"]
    assert await heard(receiver, PARTIAL) == ["/uuid/fail?a=b"]
    assert await heard(receiver, replace(FAILED, retry_at=SOON)) == []  # it is tried again


async def test_only_the_newest_run_counts_and_jobs_without_a_heartbeat_are_silent(receiver: Receiver) -> None:
    other = replace(FAILED, job="weekly", run_id="w")
    assert await heard(receiver, other, GOOD, replace(FAILED, run_id="before")) == ["/uuid?a=b"]


async def test_what_was_not_heard_is_told_again_unless_it_is_long_past(receiver: Receiver) -> None:
    told: dict[str, str] = {}
    receiver.status = 500
    assert await heard(receiver, GOOD, before=told) == ["/uuid?a=b"]
    receiver.status = 200
    assert await heard(receiver, GOOD, before=told) == ["/uuid?a=b"]
    assert await heard(receiver, replace(GOOD, run_id="old"), before=told, hours=7) == []
    assert await heard(receiver, replace(GOOD, run_id="old"), before=told) == []

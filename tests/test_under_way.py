"""What is under way: seen by whoever looks on, cancelled by whoever may, and remembered for a while."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime

import pytest

from memu_backup.audit import Asker
from memu_backup.errors import Interrupted, RestoreError, UsageError
from memu_backup.model import Phase, Progress
from memu_backup.under_way import Activity, Note, Outcome, UnderWay

ANNA = Asker("anna", "web")
AT = datetime(2026, 3, 4, 2, tzinfo=UTC)


@pytest.fixture
def under_way() -> UnderWay:
    return UnderWay(lambda: AT)


async def test_whoever_looks_on_sees_how_far_it_is_and_what_became_of_it(under_way: UnderWay) -> None:
    go = asyncio.Event()

    async def work(note: Note) -> int:
        await asyncio.to_thread(note.progress, Progress(Phase.WRITING, 5, 10))
        await go.wait()
        return 42

    seen: list[tuple[Activity, ...]] = []

    async def look() -> None:
        async for there in under_way.watch():
            seen.append(there)

    looking = asyncio.create_task(look())
    task = asyncio.create_task(under_way.carry_out("backup", "nightly", ANNA, work, activity_id="7"))
    async with asyncio.timeout(10):
        while not any(a.progress for there in seen for a in there):
            await asyncio.sleep(0.01)
        (activity,) = under_way.all()
        assert (activity.id, activity.what, activity.subject, activity.asker) == ("7", "backup", "nightly", ANNA)
        assert activity.progress == Progress(Phase.WRITING, 5, 10) and activity.outcome is None
        go.set()
        assert await task == 42
        while seen[-1][0].outcome is None:
            await asyncio.sleep(0.01)
    looking.cancel()
    assert seen[0] == () and seen[-1] == under_way.all()
    assert (under_way.of("7").outcome, under_way.of("7").ended_at) == (Outcome.DONE, AT)
    with pytest.raises(UsageError, match="has ended already"):
        under_way.cancel("7", ANNA)
    with pytest.raises(UsageError, match="Nothing of that id"):
        under_way.cancel("8", ANNA)


async def test_what_is_cancelled_tidies_up_first_and_whoever_waits_for_it_hears_by_whom(under_way: UnderWay) -> None:
    tidied, begun = False, asyncio.Event()

    async def work(note: Note) -> None:
        nonlocal tidied
        begun.set()
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            tidied = True

    task = asyncio.create_task(under_way.carry_out("backup", "nightly", ANNA, work, activity_id="7"))
    await begun.wait()
    under_way.cancel("7", Asker("ben", "web"))
    with pytest.raises(Interrupted, match="cancelled by ben"):
        await task
    assert tidied and under_way.of("7").outcome is Outcome.CANCELLED and under_way.of("7").step == "Cancelled by ben."


async def test_whoever_waits_for_it_may_be_cancelled_and_it_ends_first(under_way: UnderWay) -> None:
    ended = False

    async def work(note: Note) -> None:
        nonlocal ended
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0.01)
            ended = True

    task = asyncio.create_task(under_way.carry_out("backup", "nightly", ANNA, work))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert ended and under_way.all()[0].outcome is Outcome.CANCELLED


async def test_what_failed_says_why(under_way: UnderWay) -> None:
    async def work(note: Note) -> None:
        note.step("Unpacking photos.")
        raise RestoreError("Not enough space.")

    with pytest.raises(RestoreError):
        await under_way.carry_out("restore", "latest", ANNA, work)
    (activity,) = under_way.all()
    assert (activity.outcome, activity.step) == (Outcome.FAILED, "Not enough space.")

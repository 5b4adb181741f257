"""The dead-man's switch hears each beat where it expects it, and who cannot be told is named without the secret."""

from __future__ import annotations

import time
import traceback

import pytest

from memu_backup.alerts.heartbeat import Beat, beat
from memu_backup.errors import AlertError
from tests.alerts.conftest import CANARY, Told
from tests.receiver import Heard, Receiver


async def test_start_success_and_failure_have_their_own_paths(receiver: Receiver) -> None:
    url = f"http://{receiver.at}/ping/{CANARY}"
    await beat(url, Beat.START, "begun")
    await beat(f"{url}/?create=1&a=%2F#x", Beat.FAIL, "Disk full – free up space")
    await beat(f"{url}?create=1", Beat.SUCCESS, "")
    await beat(f"http://{receiver.at}", Beat.SUCCESS, "well, but for photos/\udcff.jpg")
    assert receiver.heard == [
        Heard("POST", f"/ping/{CANARY}/start", "begun"),
        Heard("POST", f"/ping/{CANARY}/fail?create=1&a=%2F", "Disk full – free up space"),
        Heard("POST", f"/ping/{CANARY}?create=1", ""),
        Heard("POST", "/", "well, but for photos/?.jpg"),
    ]


async def failing(url: str, why: str, told: Told, timeout_s: float = 10.0) -> None:
    with pytest.raises(AlertError) as caught:
        await beat(url, Beat.SUCCESS, "well", timeout_s=timeout_s)
    assert str(caught.value).startswith(f"The heartbeat at {url.partition(':')[0]}://127.0.0.1 was not told: {why}. ")
    assert caught.value.__context__ is None, "it would hold the URL"
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + "".join(told.lines)


@pytest.mark.parametrize(
    ("status", "says", "why"),
    [
        (500, "", "it answered 500"),
        (404, "not found", "it answered 404"),
        (200, "OK (not found)", "it does not know this heartbeat; check the address"),
    ],
)
async def test_an_answer_that_is_none(status: int, says: str, why: str, receiver: Receiver, told: Told) -> None:
    receiver.status, receiver.says = status, says
    await failing(f"http://anna:{CANARY}@{receiver.at}/{CANARY}?a={CANARY}", why, told)


async def test_nobody_there_or_somebody_else(receiver: Receiver, told: Told) -> None:
    await failing(f"http://127.0.0.1:1/{CANARY}", "it cannot be reached", told)
    await failing(f"https://{receiver.at}/{CANARY}", "it cannot be reached", told)


async def test_one_that_never_answers_is_given_up(receiver: Receiver, told: Told) -> None:
    receiver.hangs = True
    begun = time.monotonic()
    await failing(f"http://{receiver.at}/{CANARY}", "no answer within 1 s", told, timeout_s=1)
    assert time.monotonic() - begun < 5


async def test_a_redirect_takes_the_secret_nowhere(receiver: Receiver, other: Receiver, told: Told) -> None:
    receiver.status, receiver.location = 307, f"http://{other.at}/elsewhere"
    why = "it sends us elsewhere; write the address that it really has"
    await failing(f"http://{receiver.at}/{CANARY}", why, told)
    assert other.heard == []

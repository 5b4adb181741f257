"""What is told goes to each URL as it is, it is known who took it, and no secret of a URL is ever said."""

from __future__ import annotations

import json
import time
import traceback

import pytest

from memu_backup.alerts import Notice, named
from memu_backup.alerts.apprise import AppriseChannel
from memu_backup.errors import AlertError
from tests.alerts.conftest import CANARY, MailServer, Told
from tests.receiver import Receiver

TITLE = "Backup Alert <3"
BODY = (
    '*Last* night\'s _backup_ <b>failed</b>: "disk" & more #1 :smile: \\n 50%\n'
    "  Action needed: [free](up) space & wait\n"
    "\n"
    "Use /backup-status for details – ü"
)
NOTICE = Notice("alert-1", f"{TITLE}\n{BODY}")


NOBODY = f"json://anna:{CANARY}@127.0.0.1:1/{CANARY}?+token={CANARY}"


async def test_a_message_arrives_as_it_is(receiver: Receiver, other: Receiver, mail_server: MailServer) -> None:
    json_url, ntfy_url = f"json://{receiver.at}/hook?:a=b,c", f"ntfy://{other.at}/family"
    await AppriseChannel([json_url, ntfy_url, mail_server.url()]).send(NOTICE)
    (heard,) = receiver.heard
    assert {k: json.loads(heard.body)[k] for k in ("title", "message", "a")} == {
        "title": TITLE,
        "message": BODY,
        "a": "b,c",
    }
    (heard,) = other.heard
    said = json.loads(heard.body)
    assert (said["topic"], said["title"], said["message"]) == ("family", TITLE, BODY)
    assert "http" not in (heard.headers + heard.body).lower(), "no phone is sent to fetch pictures from strangers"
    (mail,) = mail_server.mails
    assert (mail["Subject"], mail["To"]) == (TITLE, "anna@example.org")
    plain = mail.get_body(("plain",))
    assert plain and plain.get_content().replace("\r\n", "\n").strip() == BODY.strip()


async def test_one_line_is_enough(receiver: Receiver, other: Receiver, mail_server: MailServer) -> None:
    channel = AppriseChannel([f"json://{receiver.at}/hook", f"ntfy://{other.at}/family", mail_server.url()])
    assert [o.problem for o in await channel.send_to_each(Notice("k", "All is well\n"))] == ["", "", ""]
    assert json.loads(receiver.heard[0].body)["title"] == "All is well"
    assert json.loads(other.heard[0].body)["message"] == "All is well"
    assert mail_server.mails[0]["Subject"] == "All is well"


async def test_a_name_that_is_no_text_keeps_no_message_back(
    receiver: Receiver, other: Receiver, mail_server: MailServer
) -> None:
    channel = AppriseChannel([f"json://{receiver.at}/hook", f"ntfy://{other.at}/family", mail_server.url()])
    await channel.send(Notice("k", "Backup Alert\nphotos/\udcff.jpg cannot be read"))
    told = [json.loads(r.heard[0].body)["message"] for r in (receiver, other)]
    assert told == ["photos/?.jpg cannot be read"] * 2
    assert "photos/?.jpg" in mail_server.mails[0].as_string()


async def test_one_that_took_it_is_enough_and_the_others_are_named_in_the_log(
    receiver: Receiver, mail_server: MailServer, told: Told
) -> None:
    receiver.status = 500
    await AppriseChannel([NOBODY, f"json://{receiver.at}/{CANARY}", mail_server.url()]).send(NOTICE)
    assert len(mail_server.mails) == 1
    assert told.lines == [
        "WARNING Not every fallback channel took the message: json://127.0.0.1 (not reached, or it refused), "
        "json://127.0.0.1 (answered 500). The others did."
    ]


async def test_where_none_took_it_that_is_an_error_that_tells_no_secret(
    receiver: Receiver, mail_server: MailServer, told: Told, capfd: pytest.CaptureFixture[str]
) -> None:
    receiver.status = 401
    urls = [
        NOBODY,
        f"ntfy://anna:{CANARY}@{receiver.at}/{CANARY}",
        mail_server.url(CANARY + "-wrong"),
        f"tgramm://{CANARY}/1",
        f"pover://{CANARY}",
    ]
    with pytest.raises(AlertError) as caught:
        await AppriseChannel(urls).send(NOTICE)
    assert str(caught.value) == (
        "No fallback channel took the message: json://127.0.0.1 (not reached, or it refused), "
        "ntfy://127.0.0.1 (answered 401), mailto://127.0.0.1 (not reached, or it refused), "
        "tgramm://… (Apprise does not understand this URL), pover://… (Apprise does not understand this URL). "
        "To try them: memu-backup alerts test"
    )
    assert caught.value.retryable and caught.value.code == "alert"
    out, err = capfd.readouterr()
    assert CANARY not in "".join(traceback.format_exception(caught.value)) + out + err
    assert told.lines == []
    assert len(receiver.heard) == 1 and mail_server.mails == []


async def test_one_that_never_answers_holds_up_nobody_for_long(receiver: Receiver, other: Receiver) -> None:
    receiver.hangs = True
    begun = time.monotonic()
    urls = [f"json://{receiver.at}/a?rto=2", f"json://{other.at}/b"]
    hanging, good = await AppriseChannel(urls, timeout_s=1).send_to_each(NOTICE)
    assert time.monotonic() - begun < 5
    assert (hanging.problem, good.problem) == ("no answer within 1 s", "")
    assert len(receiver.heard) == len(other.heard) == 1


async def test_what_is_sent_elsewhere_is_not_taken_for_delivered(receiver: Receiver, other: Receiver) -> None:
    receiver.status, receiver.location = 302, f"http://{other.at}/elsewhere"
    (outcome,) = await AppriseChannel([f"json://anna:{CANARY}@{receiver.at}/"]).send_to_each(NOTICE)
    assert outcome.problem == "answered 302"
    assert other.heard == []


async def test_a_url_that_calls_itself_optional_fails_all_the_same(receiver: Receiver) -> None:
    receiver.status = 500
    (outcome,) = await AppriseChannel([f"json://{receiver.at}/?optional=yes"]).send_to_each(NOTICE)
    assert outcome.problem == "answered 500"


async def test_a_check_tells_what_apprise_does_not_understand_and_sends_nothing(receiver: Receiver) -> None:
    good = f"json://{receiver.at}/"
    await AppriseChannel([good]).check()
    with pytest.raises(AlertError, match=r"cannot make anything of tgramm://…, pover://…, so"):
        await AppriseChannel([good, f"tgramm://{CANARY}/1", f"pover://{CANARY}"]).check()
    assert receiver.heard == []


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        (f"ntfys://anna:{CANARY}@ntfy.example.org:8443/{CANARY}?priority={CANARY}", "ntfys://ntfy.example.org"),
        (f"mailtos://anna:{CANARY}@example.org?to=anna@example.org", "mailtos://example.org"),
        (f"HTTPS://hc-ping.com/{CANARY}", "https://hc-ping.com"),
        (f"json://localhost/{CANARY}", "json://localhost"),
        # A topic, a token, an identity in the place of a host.
        (f"ntfy://{CANARY}", "ntfy://…"),
        (f"ntfy://{CANARY}/other?mode=cloud", "ntfy://…"),
        (f"tgram://12345:{CANARY}/1", "tgram://…"),
        (f"sendgrid://SG.{CANARY}.x:me@example.org", "sendgrid://…"),
        # A password that nobody has encoded.
        (f"mailtos://me:a/{CANARY}@example.org", "mailtos://…"),
        (f"mailtos://me:a@{CANARY}.b/c@example.org", "mailtos://…"),
        (f"mailtos://me:a@{CANARY}.b?c@example.org", "mailtos://…"),
        (f"mailtos://me:a#{CANARY}@example.org", "mailtos://…"),
        (f"{CANARY} {CANARY}", "…"),
        (f"{CANARY}/{CANARY}://example.org", "…"),
    ],
)
def test_of_a_url_only_scheme_and_host_are_told(url: str, expected: str) -> None:
    assert named(url) == expected

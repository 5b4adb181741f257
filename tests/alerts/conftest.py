"""Real receivers on this machine: an HTTP server that answers as it is told to, and a mail server."""

from __future__ import annotations

import asyncio
import logging
import warnings
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from email import message_from_bytes
from email.message import EmailMessage
from email.policy import default
from typing import Any

import pytest
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword

from tests.receiver import Receiver, receiving

CANARY = "canary-Xq7-secret"


class Told(logging.Handler):
    """What the log of the whole program would hold at its most talkative.

    Not ``caplog``: that listens to loggers too whose lines go nowhere.
    """

    def __init__(self) -> None:
        super().__init__(logging.DEBUG)
        self.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.name.startswith(("mail.", "aiohttp.server")):  # the receivers' own
            self.lines.append(self.format(record))


@pytest.fixture
def told() -> Iterator[Told]:
    handler, root = Told(), logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield handler
    root.removeHandler(handler)
    root.setLevel(before)


@pytest.fixture
async def other() -> AsyncIterator[Receiver]:
    async with receiving() as made:
        yield made


@dataclass
class MailServer:
    """Takes mail for anybody from who knows the password CANARY."""

    port: int = 0
    mails: list[EmailMessage] = field(default_factory=list)

    def url(self, password: str = CANARY) -> str:
        return f"mailto://backup:{password}@127.0.0.1:{self.port}?from=backup@example.org&to=anna@example.org"

    async def handle_DATA(self, server: Any, session: Any, envelope: Any) -> str:
        mail = message_from_bytes(envelope.content, policy=default)
        assert isinstance(mail, EmailMessage)
        self.mails.append(mail)
        return "250 OK"

    def authenticate(self, server: Any, session: Any, envelope: Any, mechanism: str, data: Any) -> AuthResult:
        good = isinstance(data, LoginPassword) and data.password == CANARY.encode()
        return AuthResult(success=good, handled=False)


@pytest.fixture
async def mail_server() -> AsyncIterator[MailServer]:
    made = MailServer()

    def arrives() -> SMTP:
        with warnings.catch_warnings(action="ignore"):  # that it asks for a password without TLS
            return SMTP(made, authenticator=made.authenticate, auth_require_tls=False, auth_required=True)

    server = await asyncio.get_running_loop().create_server(arrives, "127.0.0.1", 0)
    made.port = server.sockets[0].getsockname()[1]
    yield made
    server.close()
    await server.wait_closed()

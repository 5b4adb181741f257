"""Who is let in: tokens that are good, and all those that are not; links that sign somebody in once."""

from __future__ import annotations

import base64
import json
import stat
from datetime import UTC, datetime, timedelta
from pathlib import Path

import jwt
import pytest

from memu_backup.access import Access, Role
from memu_backup.errors import AccessError, NotAllowed, UsageError


class At:
    def __init__(self) -> None:
        self.now = datetime(2026, 3, 4, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.now

    def passes(self, **time: float) -> None:
        self.now += timedelta(**time)


@pytest.fixture
def at() -> At:
    return At()


@pytest.fixture
def access(tmp_path: Path, at: At) -> Access:
    return Access(tmp_path / "web", at)


def test_a_token_is_good_until_it_expires_or_is_revoked(access: Access, at: At, tmp_path: Path) -> None:
    _, secret = access.create_token("grafana", Role.VIEWER, 30)
    who = access.by_token(secret)
    assert (who.name, who.role, who.via) == ("grafana", Role.VIEWER, "api")
    assert access.tokens()[0].used_at == at.now
    at.passes(days=29)
    access.by_token(secret)
    elsewhere = Access(tmp_path / "web", at)  # the command line, while the service runs
    elsewhere.revoke("grafana")
    with pytest.raises(NotAllowed, match="not good any more"):
        access.by_token(secret)
    _, second = access.create_token("grafana", Role.ADMIN, 1)
    at.passes(days=1)
    with pytest.raises(NotAllowed, match="has expired"):
        access.by_token(second)


def test_nothing_that_would_let_somebody_in_is_kept_but_the_key(access: Access, tmp_path: Path) -> None:
    _, secret = access.create_token("grafana", Role.VIEWER, 30)
    code = access.new_link("anna", Role.ADMIN)
    cookie = access.redeem(code)
    book = (tmp_path / "web" / "access.json").read_text()
    assert not [one for one in (secret, secret.split(".")[2], code, cookie) if one in book]
    for path in (tmp_path / "web").iterdir():
        assert stat.S_IMODE(path.stat().st_mode) == 0o600, path
    assert stat.S_IMODE((tmp_path / "web").stat().st_mode) == 0o700


def test_a_token_that_was_made_by_somebody_else_or_changed_is_none_of_ours(access: Access, tmp_path: Path) -> None:
    token, secret = access.create_token("grafana", Role.VIEWER, 30)
    claims = jwt.decode(secret, options={"verify_signature": False})
    key = (tmp_path / "web" / "key").read_bytes()
    head, body, signature = secret.split(".")
    raised = base64.urlsafe_b64encode(json.dumps({**claims, "role": "admin"}).encode()).decode().rstrip("=")
    none = base64.urlsafe_b64encode(b'{"alg":"none","typ":"JWT"}').decode().rstrip("=")
    for forged in (
        jwt.encode(claims, b"x" * 32, "HS256"),
        jwt.encode(claims, key * 2, "HS512"),
        jwt.encode({**claims, "iss": "another"}, key, "HS256"),
        jwt.encode({k: v for k, v in claims.items() if k != "jti"}, key, "HS256"),
        f"{head}.{raised}.{signature}",
        f"{none}.{body}.",
        f"{none}.{body}.{signature}",
        "", ".", "..", "a.b.c", "x" * 100_000, "é",
    ):  # fmt: skip
        with pytest.raises(NotAllowed, match="none of ours"):
            access.by_token(forged)
    with pytest.raises(NotAllowed, match="not good any more"):
        access.by_token(jwt.encode({**claims, "jti": "another"}, key, "HS256"))
    # What it may do stands in our list, whatever it says of itself.
    assert access.by_token(jwt.encode({**claims, "role": "admin"}, key, "HS256")).role is Role.VIEWER
    assert access.tokens()[0].id == token.id


def test_a_link_signs_in_once_and_within_ten_minutes(access: Access, at: At) -> None:
    code, late = access.new_link("anna", Role.ADMIN), access.new_link("ben", Role.VIEWER)
    who = access.by_session(access.redeem(code))
    assert (who.name, who.role, who.via) == ("anna", Role.ADMIN, "page")
    at.passes(minutes=10)
    for spent in (code, late, "", "nonsense", "é"):
        with pytest.raises(NotAllowed, match="used already, or is older"):
            access.redeem(spent)


def test_a_session_ends_after_a_quiet_week_after_a_month_or_when_it_is_ended(access: Access, at: At) -> None:
    used, quiet, ended = (access.redeem(access.new_link(name, Role.VIEWER)) for name in ("a", "b", "c"))
    access.end_session(ended)
    for _ in range(5):
        at.passes(days=6)
        if at.now < datetime(2026, 4, 3, 12, tzinfo=UTC):
            assert access.by_session(used).name == "a"
    for cookie in (used, quiet, ended, "", "nonsense"):
        with pytest.raises(NotAllowed, match="not signed in here any more"):
            access.by_session(cookie)


def test_two_tokens_of_one_name_and_one_that_is_not_there_are_said(access: Access, at: At) -> None:
    access.create_token("grafana", Role.VIEWER, 1)
    with pytest.raises(UsageError, match="There is a token called grafana already"):
        access.create_token("grafana", Role.VIEWER, 1)
    with pytest.raises(UsageError, match="did you mean grafana"):
        access.revoke("grafanna")
    at.passes(days=1)
    access.create_token("grafana", Role.VIEWER, 1)
    assert access.revoke("grafana").created_at == at.now  # the one that is good
    assert access.revoke("grafana").revoked_at


def test_with_the_list_or_the_key_gone_nobody_is_let_in(access: Access, tmp_path: Path) -> None:
    _, secret = access.create_token("grafana", Role.VIEWER, 1)
    (tmp_path / "web" / "access.json").write_text("{")
    with pytest.raises(AccessError, match="nobody is let in; backups are made all the same"):
        access.by_token(secret)
    (tmp_path / "web" / "access.json").unlink()
    with pytest.raises(NotAllowed):
        access.by_token(secret)
    (tmp_path / "web" / "key").unlink()
    with pytest.raises(NotAllowed):
        access.by_token(secret)
    (tmp_path / "web" / "key").write_bytes(b"")
    with pytest.raises(AccessError, match="is damaged, so no token is good"):
        access.by_token(secret)


def test_roles_include_those_below() -> None:
    assert [[one.includes(other) for other in Role] for one in Role] == [
        [True, False, False],
        [True, True, False],
        [True, True, True],
    ]

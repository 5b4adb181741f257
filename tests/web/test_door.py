"""Who is let in, by what name the machine is called, and what each answer tells the browser."""

from __future__ import annotations

import httpx
import pytest

from memu_backup.web.door import LONGEST_BODY_BYTES
from tests.web.site import Site, said

STATUS, CREATE, UPLOAD = "/api/v1/status", "/api/v1/backup/create", "/api/v1/backup/upload-restore"


def test_without_a_token_or_with_a_strange_one_nobody_is_told_anything(site: Site) -> None:
    for token in ("", "nonsense", "a.b.c", "é"):
        headers = [(b"Authorization", f"Bearer {token}".encode())] if token else []
        answer = site.client().get(STATUS, headers=headers)
        assert answer.status_code == 401 and answer.headers["www-authenticate"] == "Bearer", answer.text
        assert "memu-backup" in said(answer)
    assert site.client().post(UPLOAD, files={"backup_file": ("a", b"x")}).status_code == 401


@pytest.mark.parametrize(
    ("role", "method", "path", "status"),
    [
        ("viewer", "GET", STATUS, 200),
        ("viewer", "POST", CREATE, 403),
        ("viewer", "GET", "/api/v1/backup/download/latest", 403),
        ("viewer", "GET", "/api/v1/audit", 403),
        ("viewer", "GET", "/api/v1/search?pattern=x", 403),
        ("operator", "POST", "/api/v1/backup/restore/latest", 403),
        ("operator", "POST", UPLOAD, 403),
        ("operator", "POST", "/api/v1/clean", 403),
        ("operator", "POST", "/api/backup/run", 403),
        ("operator", "POST", "/api/v1/restores/undo", 403),
        ("operator", "POST", "/api/v1/drives/blue/trust", 403),
        ("operator", "GET", "/api/v1/audit", 200),
        ("admin", "GET", "/api/v1/audit", 200),
    ],
)
def test_each_role_may_do_what_it_may(
    request: pytest.FixtureRequest, role: str, method: str, path: str, status: int
) -> None:
    client: httpx.Client = request.getfixturevalue(role)
    answer = client.request(method, path, json={} if method == "POST" else None)
    assert answer.status_code == status, answer.text
    if status == 403:
        assert f"the {role} has {role}" in said(answer)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8470", "localhost.evil.example", "[", "a b"])
def test_a_name_that_leads_here_and_is_not_ours_is_not_answered(site: Site, host: str) -> None:
    answer = site.client().get("/healthz", headers={"Host": host})
    assert answer.status_code == 421 or (host == "a b" and answer.status_code == 400), answer.text


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1:1", "[::1]:1", "192.168.1.5:8470", "LOCALHOST:80"])
def test_its_addresses_are(site: Site, host: str) -> None:
    assert site.client().get("/healthz", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "null", "http://127.0.0.1", "http://["])
def test_a_page_of_somebody_else_has_nothing_done(site: Site, admin: httpx.Client, origin: str) -> None:
    answer = admin.post(CREATE, json={}, headers={"Origin": origin})
    assert answer.status_code == 403 and "a page of somebody else" in said(answer)


def test_a_cookie_alone_does_nothing_unless_our_page_sends_it(site: Site) -> None:
    answer = site.client().post(CREATE, json={}, headers={"Cookie": "memu_backup=x"})
    assert answer.status_code == 403 and "which page sent this" in said(answer)


def test_what_is_too_long_is_not_read(site: Site, operator: httpx.Client) -> None:
    long = b'{"backup_name": "' + b"x" * LONGEST_BODY_BYTES + b'"}'

    def in_pieces() -> object:
        yield long

    for content in (long, in_pieces()):
        answer = operator.post(CREATE, content=content, headers={"Content-Type": "application/json"})  # type: ignore[arg-type]
        assert answer.status_code == 413 and "nothing was done" in said(answer), answer.text


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({"backup_name": "../../etc"}, "has to begin with a letter or digit"),
        ({"backup_name": "x\n"}, "has to begin"),
        ({"backup_name": "x" * 101}, "at most 100 characters"),
        ({"include_storage": "perhaps"}, "include_storage"),
        ({"job": "nigthly"}, "There is no job called nigthly; did you mean nightly"),
        ({"include_storage": False}, "no backup of databases alone"),
        ({"another": 1}, "another"),
        ([], "nothing was done"),
    ],
)
def test_bad_input_gets_a_sentence(operator: httpx.Client, body: object, words: str) -> None:
    answer = operator.post(CREATE, json=body)
    assert answer.status_code in (400, 404, 422) and words in said(answer), answer.text


def test_what_is_not_there_is_said(operator: httpx.Client) -> None:
    for path in ("/api/v1/backup/download/memu_backup_19990101", "/api/v1/backup/files/..%2f..%2fetc%2fpasswd"):
        answer = operator.get(path)
        assert answer.status_code == 404, (path, answer.text)
    assert said(operator.get("/nowhere")) == "There is nothing at this address."
    assert operator.delete(STATUS).status_code == 405


def test_each_answer_tells_the_browser_to_be_careful(site: Site) -> None:
    for path in ("/healthz", STATUS, "/nowhere"):
        headers = site.client().get(path).headers
        assert "default-src 'none'" in headers["content-security-policy"]
        assert headers["x-content-type-options"] == "nosniff" and headers["cache-control"] == "no-store"
        assert "server" not in headers

"""Over TLS: with a certificate of its own, and behind a proxy that has one."""

from __future__ import annotations

import socket
from pathlib import Path

import httpx
import pytest

from tests.home import Home
from tests.web.site import Site, free_port


def test_with_a_certificate_of_its_own_the_cookie_never_goes_without_it(
    certificate: tuple[Path, Path], tmp_path: Path, database: str
) -> None:
    made, key = certificate
    web = f'certificate_file = "{made}"\nkey_file = "{key}"\n'
    site = Site(Home(tmp_path / "home", database), web=web, scheme="https", verify=str(made))
    try:
        link = site.home.run("page").out.strip()
        assert link.startswith(f"{site.url}/enter?code=")
        answer = site.client().post("/enter", data={"code": link.partition("=")[2]}, headers={"Origin": site.url})
        assert "Secure" in answer.headers["set-cookie"]
        assert answer.headers["strict-transport-security"] == "max-age=31536000"
        with pytest.raises(httpx.TransportError):
            httpx.get(site.url.replace("https", "http"), trust_env=False)
    finally:
        site.stop()


@pytest.mark.parametrize("what", ["certificate", "port"])
def test_where_it_cannot_listen_that_is_said_and_costs_no_backup(tmp_path: Path, database: str, what: str) -> None:
    for name in ("web.crt", "web.key"):
        (tmp_path / name).write_text("nonsense")
    home = Home(tmp_path / "home", database)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1] if what == "port" else free_port()
        tls = f'certificate_file = "{tmp_path}/web.crt"\nkey_file = "{tmp_path}/web.key"\n'
        home.configure(more=f"[web]\nenabled = true\nport = {port}\n{tls if what == 'certificate' else ''}")
        running = home.started("run")
        try:
            assert running.stderr
            said = next(line for line in running.stderr if "The page is not there" in line)
            why = (
                "are no certificate and its key" if what == "certificate" else "cannot be listened on (Address already"
            )
            assert why in said and "Backups are made all the same" in said
            assert home.run("start").status == 0
        finally:
            running.terminate()
            running.communicate(timeout=15)


def test_behind_a_proxy_it_is_known_for_whom_it_asks(tmp_path: Path, database: str) -> None:
    """As its page in the documentation has it: the proxy keeps the name, and tells address and scheme."""
    site = Site(Home(tmp_path / "home", database), web='url = "https://backup.example.org"\n')
    through = {
        "Host": "backup.example.org",
        "X-Forwarded-For": "203.0.113.7",
        "X-Forwarded-Proto": "https",
        "Origin": "https://backup.example.org",
    }
    try:
        link = site.home.run("page").out.strip()
        assert link.startswith("https://backup.example.org/enter?code=")
        signed = site.client().post("/enter", data={"code": link.partition("=")[2]}, headers=through)
        assert signed.status_code == 303 and "Secure" in signed.headers["set-cookie"]
        for _ in range(6):
            answer = site.client().post("/enter", data={"code": "guessed"}, headers=through)
        assert answer.status_code == 429
        mine = site.client().post("/enter", data={"code": "guessed"}, headers={"Origin": site.url})
        assert mine.status_code == 401, "whoever guesses elsewhere makes nobody wait here"
    finally:
        site.stop()

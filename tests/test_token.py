"""The commands that let programs and people in."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.home import Home


@pytest.fixture
def home(tmp_path: Path, database: str) -> Home:
    return Home(tmp_path / "home", database)


def test_a_token_is_made_listed_and_revoked(home: Home) -> None:
    made = home.run("token", "create", "grafana")
    assert made.status == 0 and made.out.count("\n") == 1 and made.out.count(".") == 2
    assert "It is good for 90 days, as viewer." in made.err and "Nobody listens yet: set enabled = true" in made.err
    (listed,) = home.run("token", "list", "--json").json
    assert (listed["name"], listed["role"], listed["revoked_at"]) == ("grafana", "viewer", None)
    assert "grafana" in home.run("token", "list").out
    refused = home.run("token", "revoke", "grafana")
    assert refused.status == 2 and "Add --yes to do it" in refused.err
    assert home.run("token", "revoke", "grafana", "--yes").status == 0
    assert home.run("token", "list", "--json").json[0]["revoked_at"]
    assert [(e["action"], e["subject"]) for e in home.audit()] == [
        ("token revoke", "grafana"),
        ("token create", "grafana (viewer)"),
    ]
    assert made.out.strip() not in str(home.audit())


def test_bad_input_makes_none(home: Home) -> None:
    for words in (("x", "--role", "king"), ("x", "--days", "0"), ("a\nb",), (" ",), ("x" * 101,), ()):
        ran = home.run("token", "create", *words)
        assert ran.status == 2, ran
    assert home.run("token", "list").out == "There is no token yet. To make one: memu-backup token create NAME\n"


def test_a_link_is_given_where_somebody_listens(home: Home) -> None:
    ran = home.run("page")
    assert ran.status == 2 and "The page is off. To have it, set enabled = true below [web]" in ran.err
    home.configure(more="[web]\nenabled = true\nport = 18470\n")
    ran = home.run("page", "--role", "viewer")
    assert ran.status == 0 and ran.out.startswith("http://127.0.0.1:18470/enter?code="), ran
    assert "within ten minutes" in ran.err and "The service does not run" in ran.err
    home.configure(more='[web]\nenabled = true\nurl = "https://backup.example.org"\n')
    assert home.run("page", "--json").json["link"].startswith("https://backup.example.org/enter?code=")

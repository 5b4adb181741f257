"""The page where something is not as it should be: no place for backups, no history, nothing yet."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from tests.home import Home
from tests.web.site import Site, a_site
from tests.web.test_page import signed_in

pytestmark = pytest.mark.slow


def test_with_no_place_for_backups_it_says_so(tmp_path: Path, database: str) -> None:
    home = Home(tmp_path / "home", database)
    site = Site(home)
    site.stop()
    file = home.folder / "config.toml"
    file.write_text('backup_dir = ""\n' + file.read_text())
    site.start()
    try:
        browser = signed_in(site, "admin")
        text = browser.get("/").text
        assert "<h1>Act now</h1>" in text and "backup_dir is empty" in text
        for path in ("/backups", "/search?q=x", "/drives", "/activity", "/settings", "/upload"):
            assert browser.get(path).status_code in (200, 400, 404), path
        assert browser.post("/upload", files={"backup_file": ("a", b"x")}).status_code == 400
        assert site.client().get("/readyz").status_code == 503
        for path in ("/api/v1/status", "/api/v1/backup/list", "/metrics", "/api/backup/status"):
            assert browser.get(path).status_code == 200, path
    finally:
        site.stop()


def test_with_the_history_away_it_tells_from_what_lies_on_disk(tmp_path: Path) -> None:
    away = "postgresql://nobody@127.0.0.1:1/none"
    with a_site(tmp_path / "home", away) as site:
        assert site.home.run("start", "--new-place").status == 0
        browser = signed_in(site, "admin")
        text = browser.get("/").text
        assert "the backup history cannot be reached right now" in text and "Last backup: Today" in text
        assert "some runs may be missing" in browser.get("/activity").text
        assert site.home.archives[-1].name in browser.get("/backups").text
        assert browser.post("/start", data={"job": "nightly"}).status_code == 200
        site.until(lambda: len(site.home.archives) == 2)


def test_with_the_disk_away_it_says_what_to_do(tmp_path: Path, database: str) -> None:
    with a_site(tmp_path / "home", database) as site:
        assert site.home.run("start").status == 0
        site.home.backups.rename(tmp_path / "unplugged")
        browser = signed_in(site, "admin")
        text = browser.get("/").text
        assert "<h1>Act now</h1>" in text and "backup disk" in text
        listed = browser.get("/backups")
        assert "Mount it" in listed.text or "mount" in listed.text
        assert site.client().get("/readyz").json() == {"safe": False}


def test_what_looks_wrong_is_asked_and_answered(tmp_path: Path, database: str) -> None:
    with a_site(tmp_path / "home", database) as site:
        assert site.home.run("start").status == 0
        shutil.rmtree(site.home.photos / "2026")
        assert site.home.run("start").status == 3
        browser = signed_in(site, "admin")
        text = browser.get("/").text
        assert "Did someone remove all 2 files?" in text and "It is as it should be" in text
        viewer = signed_in(site, "viewer")
        assert "Did someone remove" in viewer.get("/").text and "It is as it should be" not in viewer.get("/").text
        name = site.home.archives[-1].name
        assert viewer.post("/accept", data={"backup": name}).status_code == 403
        assert browser.post("/accept", data={"backup": name}).status_code == 200
        assert "<h1>Safe</h1>" in browser.get("/").text

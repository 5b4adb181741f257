"""The page as a browser gets it: signed in by a link, one glance, backups looked into, deeds that have to be meant."""

from __future__ import annotations

import os
import re
import shutil

import httpx
import pytest

from tests.home import PHOTO
from tests.web.site import Site

HTML = {"Accept": "text/html"}


def signed_in(site: Site, role: str) -> httpx.Client:
    """A browser; it sends where each deed came from."""
    link = site.home.run("page", "--role", role).out.strip()
    browser = site.client(follow_redirects=True)
    browser.headers.update({"Accept": "text/html", "Origin": site.url})
    code = link.partition("code=")[2]
    assert "once" in browser.get(f"/enter?code={code}").text
    browser.get(f"/enter?code={code}")  # as a chat does for a preview: it uses up nothing
    answer = browser.post("/enter", data={"code": code})
    assert answer.status_code == 200 and answer.url.path == "/", answer.text
    again = site.client().post("/enter", data={"code": code}, headers={"Origin": site.url})
    assert again.status_code == 401 and "used already" in again.text
    return browser


@pytest.fixture(scope="package")
def boss(site: Site) -> httpx.Client:
    return signed_in(site, "admin")


@pytest.fixture(scope="package")
def made(site: Site, operator: httpx.Client) -> str:
    key = operator.post("/api/v1/backup/create", json={}).json()["run_id"]
    assert site.ended(operator, key)["outcome"] == "done"
    return site.home.archives[-1].name


def test_whoever_is_not_signed_in_is_sent_to_the_door(site: Site) -> None:
    for path in ("/", "/backups", "/settings", "/live"):
        answer = site.client().get(path, headers=HTML)
        assert (answer.status_code, answer.headers["location"]) == (303, "/enter")
    said = site.client().get("/enter").text
    assert "!backup page" in said and "memu-backup page" in said
    refused = site.client().post("/start", data={"job": "nightly"}, headers={"Origin": site.url})
    assert refused.status_code == 401


def test_the_cookie_is_out_of_reach_of_scripts_and_of_other_pages(site: Site) -> None:
    code = site.home.run("page", "--role", "viewer").out.strip().partition("code=")[2]
    answer = site.client().post("/enter", data={"code": code}, headers={"Origin": site.url})
    cookie = answer.headers["set-cookie"]
    assert "HttpOnly" in cookie and "SameSite=strict" in cookie and "Path=/" in cookie
    out = site.client(cookies={"memu_backup": cookie.partition("=")[2].partition(";")[0]})
    assert out.get("/").status_code == 200
    assert out.post("/leave", headers={"Origin": site.url}).status_code == 303
    assert out.get("/").status_code == 303, "what was signed out is good for nothing, whoever has kept it"


def test_one_glance_says_whether_all_is_safe(site: Site, made: str, boss: httpx.Client) -> None:
    text = boss.get("/").text
    verdict = re.search(r"<h1>(.*?)</h1>", text)
    assert verdict and verdict[1] in ("Safe", "Act now")  # what other tests have done to it
    assert "Last backup: Today" in text and "free for backups" in text
    assert '<td class="good" title="a good backup, ' in text and 'class="chart"' in text
    sent = sum(
        len(boss.get(path).content) for path in ("/", "/static/style.css", "/static/page.js", "/static/icon.svg")
    )
    assert sent < 100_000


def test_backups_are_listed_looked_into_and_brought_along(site: Site, made: str, boss: httpx.Client) -> None:
    assert f'href="/backups/{made}"' in boss.get("/backups").text
    inside = boss.get(f"/backups/{made}", params={"path": "photos/2026"}).text
    assert "lake.jpg" in inside and "/picture?path=photos/2026/lake.jpg" in inside
    photo = boss.get(f"/backups/{made}/picture", params={"path": "photos/2026/lake.jpg"})
    assert photo.content == PHOTO and photo.headers["content-type"] == "image/jpeg"
    assert boss.get(f"/backups/{made}/file", params={"path": "photos/2026/lake.jpg"}).content == PHOTO
    assert boss.get(f"/backups/{made}/download").content == (site.home.backups / made).read_bytes()
    assert boss.get(f"/backups/{made}/picture", params={"path": "config/.env"}).status_code == 404
    found = boss.get("/search", params={"q": "lake*"}).text
    assert "photos/2026/lake.jpg" in found
    assert "Nothing called nowhere is in any of the" in boss.get("/search", params={"q": "nowhere"}).text


def test_what_a_stranger_wrote_is_shown_and_does_nothing(
    site: Site, boss: httpx.Client, operator: httpx.Client
) -> None:
    name = "<script>alert(1)</script>.jpg"
    (site.home.photos / name.replace("/", "\N{FRACTION SLASH}")).write_bytes(b"x")
    key = operator.post("/api/v1/backup/create", json={}).json()["run_id"]
    assert site.ended(operator, key)["outcome"] == "done"
    (site.home.photos / name.replace("/", "\N{FRACTION SLASH}")).unlink()
    for path in (f"/backups/{site.home.archives[-1].name}?path=photos", "/search?q=<script>alert(1)*", "/search?q=%00"):
        assert "<script>alert" not in boss.get(path).text


def test_names_that_are_no_text_and_hidden_folders_are_reached_too(
    site: Site, boss: httpx.Client, operator: httpx.Client
) -> None:
    folder = site.home.photos / ".hidden" / "deep"
    folder.mkdir(parents=True)
    odd = os.fsdecode(b"caf\xe9 & 50%#?.jpg")  # as an old camera wrote it
    (folder / odd).write_bytes(PHOTO)
    key = operator.post("/api/v1/backup/create", json={}).json()["run_id"]
    assert site.ended(operator, key)["outcome"] == "done"
    shutil.rmtree(site.home.photos / ".hidden")
    name = site.home.archives[-1].name
    inside = boss.get(f"/backups/{name}", params={"path": "photos/.hidden/deep"}).text
    assert 'href="?path=photos/.hidden#files">One folder up' in inside
    link = re.search(r'href="(/backups/[^"]*/file\?path=[^"]*)" download', inside)
    assert link and boss.get(link[1]).content == PHOTO
    picture = re.search(r'<img[^>]* src="([^"]*)"', inside)
    assert picture and boss.get(picture[1]).content == PHOTO
    told = operator.get(f"/api/v1/backup/files/{name}", params={"path": "photos/.hidden/deep"}).json()
    assert told["entries"][0]["name"] == odd
    assert operator.get("/api/v1/search", params={"pattern": "caf*"}).json()["found"][0]["path"].endswith(odd)
    assert "caf" in boss.get("/search", params={"q": "caf*"}).text


def test_nothing_is_put_back_unless_it_is_typed(site: Site, made: str, boss: httpx.Client) -> None:
    photo = site.home.photos / "2026" / "lake.jpg"
    plan = boss.get(f"/backups/{made}/restore", params={"source": "photos"}).text
    assert f"replaces {site.home.photos}, which is kept" in plan
    photo.write_bytes(b"spoilt")
    refused = boss.post(f"/backups/{made}/restore", data={"source": "photos", "typed": "yes"})
    assert refused.status_code == 400 and "Type the word restore" in refused.text and photo.read_bytes() == b"spoilt"
    assert boss.post(f"/backups/{made}/restore", data={"source": "photos", "typed": "restore"}).status_code == 200
    site.until(lambda: photo.read_bytes() == PHOTO)
    site.until(lambda: "Restore of" in boss.get("/").text and "Running now" not in _visible(boss.get("/").text))
    assert site.home.run("restore", "--release", "--yes").status == 0


def _visible(text: str) -> str:
    return re.sub(r'(?s)<section id="running"[^>]* hidden>.*?</section>', "", text)


def test_an_upload_shows_its_plan_first(site: Site, made: str, boss: httpx.Client) -> None:
    photo = site.home.photos / "2026" / "tent.jpg"
    with (site.home.backups / made).open("rb") as file:
        plan = boss.post("/upload", files={"backup_file": (made, file)})
    assert plan.status_code == 200 and re.fullmatch(r"/upload/[0-9a-f]{32}", plan.url.path) and "The plan" in plan.text
    photo.write_bytes(b"spoilt")
    assert boss.post(plan.url.path, data={"typed": "no"}).status_code == 400 and photo.read_bytes() == b"spoilt"
    assert boss.post(plan.url.path, data={"typed": "restore", "source": "photos"}).status_code == 200
    site.until(lambda: photo.read_bytes() == PHOTO[::-1])
    site.until(lambda: not (site.home.backups / ".uploads").exists())
    assert boss.get(plan.url.path).status_code == 404
    assert site.home.run("restore", "--release", "--yes").status == 0
    assert boss.post("/upload", files={"backup_file": ("a.tar.gz", b"no archive")}).status_code == 422
    assert not (site.home.backups / ".uploads").exists()


def test_a_viewer_sees_how_things_stand_and_no_more(site: Site, made: str) -> None:
    viewer = signed_in(site, "viewer")
    text = viewer.get("/").text
    assert "Make a backup now" not in text and "Upload" not in text
    assert "lake.jpg" not in viewer.get(f"/backups/{made}", params={"path": "photos/2026"}).text
    for path in (
        "/settings",
        "/activity",
        "/search",
        f"/backups/{made}/download",
        f"/backups/{made}/restore",
        "/upload",
    ):
        answer = viewer.get(path)
        assert answer.status_code == 403 and "That needs the role" in answer.text, path
    assert viewer.post("/start", data={"job": "nightly"}).status_code == 403


def test_settings_activity_and_drives_are_shown(site: Site, made: str, boss: httpx.Client) -> None:
    shown = boss.get("/settings").text
    assert "backup_dir" in shown and "They are changed in" in shown
    assert "sign in as admin" in boss.get("/activity").text
    assert "No drive is known yet" in boss.get("/drives").text
    wrong = boss.get("/nowhere")
    assert wrong.status_code == 404 and "There is nothing at this address." in wrong.text
    assert boss.post("/start", data={"job": "nightly", "called": "../x"}).status_code == 400

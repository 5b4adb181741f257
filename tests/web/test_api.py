"""The API, asked of the real service: backups made, looked at, brought along, proved and put back."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import httpx
import pytest

from tests.home import PHOTO, Home
from tests.web.site import Site, events, said

CREATE, LIST = "/api/v1/backup/create", "/api/v1/backup/list"


@pytest.fixture(scope="package")
def made(site: Site, operator: httpx.Client) -> str:
    """The name of a backup that was asked for over the API."""
    begun = operator.post(CREATE, json={"backup_name": "before the holidays"})
    assert begun.status_code == 202, begun.text
    assert site.ended(operator, begun.json()["run_id"])["outcome"] == "done"
    return site.home.archives[-1].name


def test_a_backup_is_made_and_carries_the_name_that_it_was_given(site: Site, made: str, viewer: httpx.Client) -> None:
    (listed,) = [one for one in viewer.get(LIST).json()["backups"] if one["name"] == made]
    assert (listed["state"], listed["job"]) == ("good", "nightly")
    assert site.home.run("show", made, "--json").json["metadata"]["called"] == "before the holidays"
    assert viewer.get("/api/v1/status").json()["health"] == "healthy"
    assert viewer.get("/api/v1/runs").json()["runs"][0]["filename"] == made
    assert ("backup", "web", "the operator") in {(e["action"], e["origin"], e["actor"]) for e in site.home.audit()}


def test_how_far_it_is_is_told_while_it_goes_and_it_can_be_cancelled(site: Site, operator: httpx.Client) -> None:
    big = site.home.photos / "film.mp4"
    with big.open("wb") as file:
        file.truncate(40_000_000_000)  # a hole: hours of reading, and no room on the disk
    try:
        with operator.stream("GET", "/api/v1/events") as stream:
            told = events(stream)
            assert "activities" in next(told)
            key = operator.post(CREATE, json={}).json()["run_id"]
            for there in told:
                (mine,) = [one for one in there["activities"] if one["id"] == key] or [None]
                if mine and mine["progress"] and mine["progress"]["done_bytes"]:
                    break
            asked = operator.post(f"/api/v1/activities/{key}/cancel")
            assert asked.status_code == 202, asked.text
            for there in told:
                (mine,) = [one for one in there["activities"] if one["id"] == key]
                if mine["outcome"]:
                    break
        assert (mine["outcome"], mine["step"]) == ("cancelled", "Cancelled by the operator.")
    finally:
        big.unlink()
    assert [row["status"] for row in site.home.rows() if str(row["run_id"]) == key] == ["failed"]
    assert site.home.leftovers() == []
    again = operator.post(f"/api/v1/activities/{key}/cancel")
    assert again.status_code == 404 and "has ended already" in said(again)


def test_it_is_downloaded_whole_or_from_any_byte_on(site: Site, made: str, operator: httpx.Client) -> None:
    content = (site.home.backups / made).read_bytes()
    whole = operator.get(f"/api/v1/backup/download/{made}")
    assert whole.content == content and f'filename="{made}"' in whole.headers["content-disposition"]
    rest = operator.get(f"/api/v1/backup/download/{made}", headers={"Range": "bytes=1000-"})
    assert (rest.status_code, rest.content) == (206, content[1000:])
    assert operator.get(f"/api/v1/backup/download/{made}", headers={"Range": "bytes=999999999-"}).status_code == 416


def test_one_file_is_found_and_brought_along(site: Site, made: str, operator: httpx.Client) -> None:
    found = operator.get("/api/v1/search", params={"pattern": "lake.jpg"}).json()["found"]
    assert [one["path"] for one in found] == ["photos/2026/lake.jpg"]
    top = operator.get(f"/api/v1/backup/files/{made}").json()
    assert {one["path"]: one["type"] for one in top["entries"]}["photos"] == "directory"
    inner = operator.get(f"/api/v1/backup/files/{made}", params={"path": "photos/2026"}).json()["entries"]
    assert [one["name"] for one in inner] == ["lake.jpg", "tent.jpg"]
    photo = operator.get(f"/api/v1/backup/file/{made}", params={"path": "photos/2026/lake.jpg"})
    assert photo.content == PHOTO and photo.headers["content-type"] == "image/jpeg"
    assert operator.get(f"/api/v1/backup/file/{made}", params={"path": "../../etc/passwd"}).status_code == 404


def test_it_is_proved_and_kept(site: Site, made: str, operator: httpx.Client) -> None:
    key = operator.post(f"/api/v1/backup/verify/{made}", json={}).json()["run_id"]
    assert site.ended(operator, key)["outcome"] == "done"
    assert operator.post(f"/api/v1/backup/keep/{made}", json={}).json()["pinned"] is True
    assert operator.post(f"/api/v1/backup/keep/{made}", json={"keep": False}).json()["pinned"] is False


def test_it_is_put_back_and_that_is_undone(site: Site, made: str, admin: httpx.Client) -> None:
    photo = site.home.photos / "2026" / "lake.jpg"
    planned = admin.get(f"/api/v1/backup/plan/{made}", params={"source": "photos"}).json()
    assert planned["sources"][0]["replaces"] == [str(site.home.photos)]
    photo.write_bytes(b"spoilt")
    key = admin.post(f"/api/v1/backup/restore/{made}", json={"sources": ["photos"]}).json()["run_id"]
    ended = site.ended(admin, key)
    assert ended["outcome"] == "done" and ended["step"].startswith("Back: 2 files ("), ended
    assert photo.read_bytes() == PHOTO
    undone = admin.post("/api/v1/restores/undo").json()
    assert undone["restore"]["state"] == "undone" and photo.read_bytes() == b"spoilt"
    assert admin.post("/api/v1/restores/undo").json()["restore"]["state"] == "done"
    (kept,) = admin.get("/api/v1/restores").json()["restores"]
    assert admin.post(f"/api/v1/restores/{kept['restore']}/release").status_code == 200
    assert photo.read_bytes() == PHOTO and admin.get("/api/v1/restores").json() == {"restores": []}


def test_an_upload_is_compared_and_put_back(site: Site, made: str, admin: httpx.Client) -> None:
    photo, archive = site.home.photos / "2026" / "tent.jpg", site.home.backups / made
    before = photo.read_bytes()
    photo.write_bytes(b"spoilt")
    with archive.open("rb") as file:
        begun = admin.post("/api/v1/backup/upload-restore", files={"backup_file": ("../../étc/passwd", file)})
    assert begun.status_code == 202, begun.text
    ended = site.ended(admin, begun.json()["run_id"])
    assert (ended["outcome"], ended["subject"]) == ("done", "passwd.tar.gz"), ended
    assert photo.read_bytes() == before and site.home.leftovers() == []
    assert site.home.run("restore", "--release", "--yes").status == 0


def test_a_damaged_upload_changes_nothing(site: Site, made: str, admin: httpx.Client) -> None:
    content = bytearray((site.home.backups / made).read_bytes())
    content[len(content) // 3] ^= 0xFF
    begun = admin.post("/api/v1/backup/upload-restore", files={"backup_file": ("a.tar.gz", bytes(content))})
    ended = site.ended(admin, begun.json()["run_id"])
    assert ended["outcome"] == "failed" and "is damaged, so nothing was changed" in ended["step"]
    assert site.home.leftovers() == [] and admin.get("/api/v1/restores").json() == {"restores": []}


def test_what_is_no_backup_is_refused(site: Site, admin: httpx.Client) -> None:
    path = "/api/v1/backup/upload-restore"
    for answer, status, words in (
        (admin.post(path, files={"backup_file": ("a", b"no archive at all")}), 422, "is not a tar.gz archive"),
        (admin.post(path, files={"another": ("a", b"x")}), 400, "holds no file called backup_file"),
        (admin.post(path, content=b"x" * 100), 400, "holds no file called backup_file"),
        (
            admin.post(path, content=b"x", headers=[(b"Content-Type", b"multipart/form-data; boundary=\xe9")]),
            400,
            "holds no",
        ),
        (admin.post(path, content=b"--b", headers={"Content-Type": "multipart/form-data; boundary=b"}), 400, "not all"),
    ):
        assert answer.status_code == status and words in said(answer), (answer.status_code, answer.text)
    assert site.home.leftovers() == []


def test_machines_that_watch_are_told(site: Site, made: str, viewer: httpx.Client) -> None:
    assert site.client().get("/healthz").json() == {"status": "ok"}
    assert site.client().get("/readyz").json() == {"safe": True}
    told = viewer.get("/metrics").text
    assert 'memu_backup_stored_count{job="nightly"} 1.0' in told and "memu_backup_free_bytes" in told


def test_of_a_tree_the_download_is_packed_on_the_way(tmp_path: Path, database: str) -> None:
    site = Site(Home(tmp_path / "home", database), '[stores.local]\nkind = "tree"\n')
    try:
        operator = site.of("operator")
        key = operator.post(CREATE).json()["run_id"]
        assert site.ended(operator, key)["outcome"] == "done"
        (stored,) = operator.get(LIST).json()["backups"]
        whole = operator.get(f"/api/v1/backup/download/{stored['name']}")
        with tarfile.open(fileobj=io.BytesIO(whole.content)) as archive:
            inner = archive.extractfile("photos/2026/lake.jpg")
            assert inner and inner.read() == PHOTO
        with operator.stream("GET", f"/api/v1/backup/download/{stored['name']}") as half:
            next(half.iter_raw())  # and no more of it
        assert operator.get(f"/api/v1/backup/download/{stored['name']}").status_code == 200
        photo = operator.get(f"/api/v1/backup/file/{stored['name']}", params={"path": "photos/2026/lake.jpg"})
        assert photo.content == PHOTO
    finally:
        site.stop()


def test_nothing_is_uploaded_below_an_empty_mount_point(tmp_path: Path, database: str) -> None:
    site = Site(Home(tmp_path / "home", database))
    try:
        admin = site.of("admin")
        site.home.backups.rename(tmp_path / "unplugged")
        site.home.backups.mkdir()
        for path in ("/api/v1/backup/upload-restore", "/upload"):
            answer = admin.post(path, files={"backup_file": ("a.tar.gz", b"x")}, headers={"Origin": site.url})
            assert answer.status_code in (401, 503), answer.text
        assert list(site.home.backups.iterdir()) == []
    finally:
        site.stop()

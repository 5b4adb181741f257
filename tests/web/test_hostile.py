"""Uploads and requests that mean no good, or that nobody could help: nothing of them stays or gets anywhere."""

from __future__ import annotations

import io
import socket
import tarfile
import time
from pathlib import Path

import httpx
import pytest

from tests.archives import needs_root
from tests.disks import loop_disk
from tests.home import Home
from tests.web.site import Site, said

UPLOAD = "/api/v1/backup/upload-restore"


def archive(*entries: tuple[str, bytes, bytes]) -> bytes:
    """A tar.gz of a stranger's: name, kind and content or target of each."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w:gz") as tar:
        for name, kind, content in entries:
            info = tarfile.TarInfo(name)
            info.type, info.mode = kind, 0o644
            if kind == tarfile.REGTYPE:
                info.size = len(content)
            else:
                info.linkname = content.decode()
            tar.addfile(info, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    "entries",
    [
        [("photos/../../evil", tarfile.REGTYPE, b"x")],
        [("/evil", tarfile.REGTYPE, b"x")],
        [("photos/out", tarfile.SYMTYPE, b"/"), ("photos/out/tmp/evil", tarfile.REGTYPE, b"x")],
        [("photos/out", tarfile.LNKTYPE, b"/etc/passwd")],
    ],
)
def test_an_archive_that_leads_outside_changes_nothing(
    site: Site, admin: httpx.Client, entries: list[tuple[str, bytes, bytes]]
) -> None:
    before = sorted(site.home.photos.rglob("*"))
    answer = admin.post(UPLOAD, files={"backup_file": ("a.tar.gz", archive(*entries))})
    if answer.status_code == 202:
        ended = site.ended(admin, answer.json()["run_id"])
        assert ended["outcome"] == "failed" and ended["step"], ended
    else:
        assert answer.status_code in (400, 409, 422) and said(answer)
    assert sorted(site.home.photos.rglob("*")) == before
    assert not any(path.exists() for path in (Path("/evil"), Path("/tmp/evil"), site.home.folder.parent / "evil"))
    assert site.home.leftovers() == [] and admin.get("/api/v1/restores").json() == {"restores": []}


def test_an_upload_that_is_cut_off_leaves_nothing(site: Site) -> None:
    token = site.token("admin", "cut")
    head = (
        f"POST {UPLOAD} HTTP/1.1\r\nHost: 127.0.0.1:{site.port}\r\nAuthorization: Bearer {token}\r\n"
        "Content-Type: multipart/form-data; boundary=b\r\nContent-Length: 50000000\r\n\r\n"
        '--b\r\nContent-Disposition: form-data; name="backup_file"; filename="a.tar.gz"\r\n\r\n'
    ).encode()
    with socket.create_connection(("127.0.0.1", site.port)) as connection:
        connection.sendall(head + b"\x1f\x8b" + b"x" * 6_000_000)
        site.until(lambda: list(site.home.backups.glob(".uploads/*/partial")))
    site.until(lambda: not (site.home.backups / ".uploads").exists())
    assert "Traceback" not in site.log()


def test_one_that_is_too_large_is_refused_before_it_is_sent(site: Site, admin: httpx.Client) -> None:
    for length, status, words in ((10**15, 413, "larger than the"), (10**12, 507, "There is no room for it")):
        request = admin.build_request(
            "POST", UPLOAD, content=b"", headers={"Content-Type": "multipart/form-data; boundary=b"}
        )
        request.headers["Content-Length"] = str(length)
        with socket.create_connection(("127.0.0.1", site.port)) as connection:
            lines = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
            connection.sendall(f"POST {UPLOAD} HTTP/1.1\r\n{lines}\r\n".encode())
            connection.settimeout(10)
            answer = ""
            while "}}" not in answer:
                answer += connection.recv(65536).decode()
        assert f" {status} " in answer.splitlines()[0] and words in answer, answer
    assert site.home.leftovers() == []


@pytest.mark.slow
@needs_root
def test_a_disk_that_fills_up_meanwhile_is_said_and_the_backups_are_untouched(tmp_path: Path, database: str) -> None:
    with loop_disk("ext4", tmp_path, 200 << 20) as disk:
        home = Home(tmp_path / "home", database)
        home.backups.symlink_to(disk)
        site = Site(home)
        try:
            admin = site.of("admin")
            key = admin.post("/api/v1/backup/create", json={}).json()["run_id"]
            assert site.ended(admin, key)["outcome"] == "done"

            def endless() -> object:
                yield b'--b\r\nContent-Disposition: form-data; name="backup_file"; filename="a.tar.gz"\r\n\r\n'
                for _ in range(300):
                    yield b"x" * 1_000_000

            head = {"Content-Type": "multipart/form-data; boundary=b"}
            answer = admin.post(UPLOAD, content=endless(), headers=head)  # type: ignore[arg-type]
            assert answer.status_code == 507 and "nothing of it was kept" in said(answer), answer.text
            assert home.leftovers() == [] or home.leftovers() == ["lost+found"]
            assert home.run("verify", "latest").status == 0
        finally:
            site.stop()


def test_whoever_sends_slowly_or_nonsense_holds_up_nobody(site: Site) -> None:
    held = [socket.create_connection(("127.0.0.1", site.port)) for _ in range(30)]
    try:
        for connection in held:
            connection.sendall(b"GET /healthz HTTP/1.1\r\nHost: ")
        begun = time.monotonic()
        assert site.client().get("/healthz").status_code == 200
        assert time.monotonic() - begun < 10
        for nonsense in (b"\0" * 1000, b"GET / HTTP/9\r\n\r\n", b"\x16\x03\x01\x02\x00", b"A" * 200_000):
            with socket.create_connection(("127.0.0.1", site.port)) as connection:
                connection.sendall(nonsense)
                connection.shutdown(socket.SHUT_WR)
                connection.settimeout(10)
                assert b" 200 " not in connection.recv(4096)
        assert site.client().get("/healthz").status_code == 200
    finally:
        for connection in held:
            connection.close()

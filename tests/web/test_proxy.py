"""Behind a real nginx, by the lines of docs/web.md: signed in over TLS, an upload, and what is shown live."""

from __future__ import annotations

import re
import shutil
import subprocess
from contextlib import ExitStack
from pathlib import Path

import httpx
import pytest

from tests.home import PHOTO, Home
from tests.web.site import Site, events, free_port

ROOT = Path(__file__).parent.parent.parent
NGINX = shutil.which("nginx", path="/usr/sbin:/usr/bin")

pytestmark = pytest.mark.skipif(NGINX is None, reason="needs Debian's nginx-light package")


def test_as_the_page_has_it(certificate: tuple[Path, Path], tmp_path: Path, database: str) -> None:
    port = free_port()
    name = f"backup.example.org:{port}"
    site = Site(Home(tmp_path / "home", database), web=f'url = "https://{name}"\n')
    location = re.search(r"(?s)  location / \{.*?\n  \}", (ROOT / "docs" / "web.md").read_text())
    assert location
    lines = location[0].replace("127.0.0.1:8470", f"127.0.0.1:{site.port}")
    made, key = certificate
    (tmp_path / "nginx.conf").write_text(
        f"daemon off; error_log stderr; pid {tmp_path}/pid; events {{}} http {{ access_log off; "
        f"client_body_temp_path {tmp_path}/b; proxy_temp_path {tmp_path}/p; fastcgi_temp_path {tmp_path}/f; "
        f"uwsgi_temp_path {tmp_path}/u; scgi_temp_path {tmp_path}/s; server {{ listen 127.0.0.1:{port} ssl; "
        f"ssl_certificate {made}; ssl_certificate_key {key};\n{lines}\n}} }}"
    )
    nginx = subprocess.Popen([str(NGINX), "-c", str(tmp_path / "nginx.conf"), "-p", str(tmp_path)])
    with ExitStack() as held:
        held.callback(site.stop)
        held.callback(nginx.wait)
        held.callback(nginx.terminate)
        far = httpx.Client(
            base_url=f"https://127.0.0.1:{port}", verify=False, trust_env=False, timeout=30, follow_redirects=False,
            headers={"Host": name, "Origin": f"https://{name}", "Accept": "text/html"},
        )  # fmt: skip
        held.enter_context(far)
        site.until(lambda: _answers(far))
        code = site.home.run("page").out.strip().partition("code=")[2]
        signed = far.post("/enter", data={"code": code})
        assert signed.status_code == 303 and "Secure" in signed.headers["set-cookie"], signed.text
        far.headers["Cookie"] = signed.headers["set-cookie"].partition(";")[0]
        assert "Look at this" in far.get("/").text
        with far.stream("GET", "/live") as stream:
            news = events(stream)
            assert next(news) == []
            assert far.post("/start", data={"job": "nightly"}).status_code == 303
            assert next(one for one in news if one)[0]["what"] == "Backup of nightly"
        site.until(lambda: site.home.archives)
        site.until(lambda: "<h1>Safe</h1>" in far.get("/").text)
        photo = site.home.photos / "2026" / "lake.jpg"
        photo.write_bytes(b"x" * 3_000_000)
        with site.home.archives[-1].open("rb") as file:
            plan = far.post("/upload", files={"backup_file": ("a.tar.gz", file)})
        assert plan.status_code == 303
        assert far.post(plan.headers["location"], data={"typed": "restore"}).status_code == 303
        site.until(lambda: photo.read_bytes() == PHOTO)


def _answers(client: httpx.Client) -> bool:
    try:
        return client.get("/healthz").status_code == 200
    except httpx.TransportError:
        return False

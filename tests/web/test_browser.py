"""The page driven in a real browser, as somebody uses it: on a computer and on a phone, and without serious findings of
axe (https://github.com/dequelabs/axe-core).
"""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, BrowserContext, Page, expect, sync_playwright

from memu_backup.clock import now
from memu_backup.drives.known import Known
from memu_backup.drives.udev import Plug
from memu_backup.postgres.server import PostgresServer
from tests.home import PHOTO, Home, a_database
from tests.web.site import Site

CHROMIUM = shutil.which("chromium")
CALM = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync"]  # fmt: skip
"""Debian's Chromium as root, and with nothing that it would ask of the world."""

PHONE = {"width": 375, "height": 740}
SHOTS = os.environ.get("MEMU_SCREENSHOTS", "")
"""A folder: pictures of the page are kept there."""

expect.set_options(timeout=20_000)  # beside three other tests on two cores

pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="needs Debian's chromium package"),
    pytest.mark.xdist_group("browser"),
]


@dataclass
class Visit:
    """Somebody of a role, on a page."""

    site: Site
    browser: Browser

    def signs_in(self, role: str, **how: object) -> Page:
        context: BrowserContext = self.browser.new_context(accept_downloads=True, **how)  # type: ignore[arg-type]
        page = context.new_page()
        page.goto(self.site.home.run("page", "--role", role).out.strip())
        page.get_by_role("button", name="Sign in").click()
        page.wait_for_url(f"{self.site.url}/")
        return page


@pytest.fixture(scope="module")
def visit(postgres: PostgresServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Visit]:
    with a_database(postgres) as database, sync_playwright() as playwright:
        site = Site(Home(tmp_path_factory.mktemp("seen"), database))
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=CALM)
        try:
            yield Visit(site, browser)
        finally:
            browser.close()
            site.stop()


def looked_at(page: Page, name: str) -> None:
    """No serious finding; and a picture of it, where somebody wants one."""
    found = Axe().run(page).response["violations"]
    serious = [f"{v['id']}: {v['nodes'][0]['html']}" for v in found if v["impact"] in ("serious", "critical")]
    assert not serious, (page.url, serious)
    if SHOTS:
        page.screenshot(path=str(Path(SHOTS) / f"{name}.png"), full_page=True)


def made(page: Page, called: str) -> None:
    page.goto(page.url.split("/backups")[0].rstrip("/") + "/" if "/backups" in page.url else page.url)
    page.get_by_label("What you call it").fill(called)
    page.get_by_role("button", name="Make a backup").click()


def test_from_the_first_look_to_the_last_byte(visit: Visit, tmp_path: Path) -> None:
    site = visit.site
    page = visit.signs_in("admin")
    expect(page.get_by_role("heading", level=1)).to_have_text("Look at this")  # there is none yet
    looked_at(page, "nothing-yet")

    # A backup is made, and how far it is is seen as it goes; the page tells of its end by itself.
    made(page, "before the holidays")
    expect(page.get_by_text("Done.").first).to_be_visible(timeout=30_000)
    expect(page.get_by_role("heading", level=1)).to_have_text("Safe")
    looked_at(page, "overview")

    # It is looked into, a photo is seen and downloaded, and the whole of it.
    page.get_by_role("link", name="Backups", exact=True).click()
    looked_at(page, "backups")
    page.get_by_role("link", name="before the holidays").click()
    page.get_by_role("link", name="photos/").click()
    page.get_by_role("link", name="2026/").click()
    looked_at(page, "backup")
    assert page.locator("img").count() == 2
    with page.expect_download() as waiting:
        page.get_by_role("link", name="lake.jpg", exact=True).click()
    assert Path(waiting.value.path()).read_bytes() == PHOTO
    with page.expect_download() as waiting:
        page.get_by_role("link", name="Download", exact=True).click()
    (archive,) = site.home.archives
    copy = tmp_path / waiting.value.suggested_filename
    waiting.value.save_as(copy)
    assert copy.name == archive.name and copy.read_bytes() == archive.read_bytes()

    # One photo is searched through all of them.
    page.get_by_role("link", name="Search", exact=True).click()
    page.get_by_role("searchbox").fill("tent*")
    page.get_by_role("button", name="Search").click()
    looked_at(page, "search")
    with page.expect_download() as waiting:
        page.get_by_role("link", name=re.compile(r"^60 kB")).click()
    assert Path(waiting.value.path()).read_bytes() == PHOTO[::-1]

    # What was downloaded is uploaded, its plan is shown, and it is put back once that was typed.
    photo = site.home.photos / "2026" / "lake.jpg"
    photo.write_bytes(b"spoilt")
    page.get_by_role("link", name="Upload", exact=True).click()
    looked_at(page, "upload")
    page.get_by_label("A backup").set_input_files(copy)
    page.get_by_role("button", name="Upload").click()
    expect(page.get_by_text(f"replaces {site.home.photos}, which is kept")).to_be_visible()
    looked_at(page, "plan")
    page.get_by_label("type the word").fill("no")
    page.get_by_role("button", name="Put back").click()
    expect(page.get_by_role("alert")).to_contain_text("Type the word restore to do this; nothing was changed.")
    assert photo.read_bytes() == b"spoilt"
    page.go_back()
    page.get_by_label("type the word").fill("restore")
    page.get_by_role("button", name="Put back").click()
    expect(page.get_by_text("What was there before is kept.").first).to_be_visible(timeout=30_000)
    assert photo.read_bytes() == PHOTO
    looked_at(page, "put-back")
    page.get_by_role("button", name="Have it as it was before").click()
    expect(page.get_by_text("All of it is exchanged.")).to_be_visible(timeout=30_000)
    assert photo.read_bytes() == b"spoilt"
    page.get_by_role("button", name="Have it back again").click()
    expect(page.get_by_text("All of it is exchanged.")).to_have_count(2, timeout=30_000)
    assert photo.read_bytes() == PHOTO
    page.get_by_label("remove for good").fill("remove")
    page.get_by_role("button", name="Remove").click()
    expect(page.get_by_text("Kept of restores")).to_have_count(0)
    assert list(site.home.folder.glob(".*before*")) == []

    # A drive that was plugged in is approved and named.
    known = Known(site.home.folder / "state" / "drives" / "drives.json", "family-server")
    known.seen(
        Plug(Path("/dev/sdx"), "1", "12AB-CD34", "exfat", "filesystem", "SanDisk_Family", "Stick", 64 * 10**9), now()
    )
    page.get_by_role("link", name="Drives", exact=True).click()
    expect(page.get_by_text("Nobody approved it, so it gets nothing.")).to_be_visible()
    looked_at(page, "drives")
    page.get_by_label("What you call it").fill("blue drive")
    page.get_by_label("Where it is kept").fill("grandma's")
    page.get_by_role("button", name="Approve").click()
    expect(page.get_by_text("Kept: grandma's.")).to_be_visible()
    assert [drive.called for drive in known.drives() if drive.trusted_at] == ["blue drive"]

    for name in ("Activity", "Settings"):
        page.get_by_role("link", name=name, exact=True).click()
        looked_at(page, name.lower())
    page.get_by_role("button", name="Sign out").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Sign in")
    looked_at(page, "sign-in")


def test_what_runs_is_seen_and_cancelled_and_a_lost_connection_is_said(visit: Visit) -> None:
    site = visit.site
    page = visit.signs_in("operator")
    with (site.home.photos / "film.mp4").open("wb") as film:
        film.truncate(40_000_000_000)
    try:
        made(page, "too large")
        expect(page.get_by_text(re.compile(r"(Saving|Collecting).*\d+ ([MG]B|%)"))).to_be_visible(timeout=30_000)
        looked_at(page, "running")
        page.get_by_role("button", name="Cancel").click()
        expect(page.get_by_text(re.compile(r"Cancelled\. Cancelled by"))).to_be_visible(timeout=30_000)
    finally:
        (site.home.photos / "film.mp4").unlink()
    expect(page.get_by_role("heading", level=1)).to_have_text("Act now")
    looked_at(page, "act-now")
    site.process.kill()
    site.process.wait()
    expect(page.get_by_text("The connection to family-server is lost.")).to_be_visible(timeout=30_000)
    site.start()
    expect(page.get_by_text("The connection to family-server is lost.")).to_be_hidden(timeout=30_000)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_on_a_phone_all_of_it_fits(visit: Visit, scheme: str) -> None:
    page = visit.signs_in("admin", viewport=PHONE, color_scheme=scheme, has_touch=True)
    for path in ("/", "/backups", "/search?q=lake*", "/drives", "/activity", "/settings", "/upload"):
        page.goto(f"{visit.site.url}{path}")
        wide = page.evaluate("document.documentElement.scrollWidth")
        assert wide <= PHONE["width"], (path, wide)
        looked_at(page, f"phone-{scheme}-{path.strip('/').partition('?')[0] or 'overview'}")


def test_by_the_keyboard_alone_one_gets_everywhere(visit: Visit) -> None:
    page = visit.signs_in("admin")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.textContent") == "To the content"
    seen = set()
    for _ in range(60):
        page.keyboard.press("Tab")
        seen.add(page.evaluate("(document.activeElement.textContent || document.activeElement.name || '').trim()"))
    assert {"Overview", "Backups", "Search", "Drives", "Make a backup", "called"} <= seen

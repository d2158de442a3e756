"""The built site in a real browser, without network: from a local server and from the file system."""

import os
import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "tools"))
import browse
import check_site

REQUIRED = os.environ.get("BOOK_SITE_REQUIRED") == "1"
MISSING = "" if (SITE / "index.html").exists() else "the site is not built: run `make book`"
FIRST = "book/index.html"
START = "index.html"  # only leads to the first page
PAGES = [str(p.relative_to(SITE)) for p in check_site.pages(SITE) if p != SITE / START] if SITE.exists() else []

pytestmark = pytest.mark.skipif(bool(MISSING) and not REQUIRED, reason=MISSING or "-")


@pytest.fixture(scope="session")
def server():
    with browse.served(SITE) as address:
        yield address


@pytest.fixture(params=["http", "file"])
def origin(request, server):
    return address(request.param, server)


def address(kind, server):
    return server if kind == "http" else SITE.resolve().as_uri()


def test_the_site_is_there():
    assert not MISSING, MISSING
    assert FIRST in PAGES


# a listing of source code, or of an index, looks the same from a file: once is enough
BOTH = [("http", name) for name in PAGES] + [
    ("file", name) for name in PAGES if name.startswith(("book/", "notebooks/"))
]


@pytest.mark.parametrize("kind,name", BOTH)
def test_page(browser, server, kind, name):
    """No error, no request elsewhere, mathematics typeset; dark is dark; a phone need not scroll sideways."""
    origin = address(kind, server)
    page, errors = browse.watched(browser, origin, color_scheme="light")
    page.goto(f"{origin}/{name}")
    page.wait_for_load_state("load")
    faults = list(browse.mathematics_faults(page))
    light = browse.brightness(page)
    if browse.sideways(page):
        faults.append(f"wide: {browse.sideways(page)}")
    page.set_viewport_size(browse.PHONE)
    page.wait_for_timeout(50)
    if browse.sideways(page):
        faults.append(f"phone: {browse.sideways(page)}")
    faults += browse.mathematics_faults(page)
    browse.scheme(page, "dark")
    dark = browse.brightness(page)
    page.context.close()
    assert not faults + errors, "\n".join(faults + errors)
    assert light["background"] > 0.85 and light["text"] < 0.4, f"light page: {light}"
    assert not light["faint"] + dark["faint"]
    assert dark["background"] < 0.2 and dark["text"] > 0.6, f"dark page: {dark}"


@pytest.mark.parametrize("name", [p for p in PAGES if 'class="companion-explore"' in (SITE / p).read_text()])
def test_sliders(browser, origin, name):
    """Every slider changes its figure, by mouse and by key."""
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/{name}")
    page.wait_for_load_state("load")
    faults = list(browse.slider_faults(page))
    page.context.close()
    assert not faults + errors, "\n".join(faults + errors)


@pytest.mark.parametrize("word", ["mixture", "posterior"])
def test_search_finds(browser, origin, word):
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/search.html?q={word}")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    links = page.eval_on_selector_all("#search-results li a", "found => found.map((a) => a.href)")
    assert any("01_destruction" in link for link in links), links
    page.wait_for_timeout(300)
    page.context.close()
    assert not errors, "\n".join(errors)


def test_search_from_a_page(browser, origin):
    """The search field that a reader finds leads to results."""
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/{FIRST}")
    page.keyboard.press("Control+k")
    page.keyboard.type("mixture")
    page.keyboard.press("Enter")
    page.wait_for_selector("#search-results li a", timeout=10_000)
    page.context.close()
    assert not errors, "\n".join(errors)


def test_theme_switch(browser, origin):
    """The button switches between light and dark."""
    page, errors = browse.watched(browser, origin, color_scheme="light")
    page.goto(f"{origin}/{FIRST}")
    seen = set()
    for _ in range(3):
        page.locator(".theme-switch-button").locator("visible=true").first.click()
        page.mouse.move(2, 400)
        seen.add(browse.brightness(page)["background"] < 0.5)
    page.context.close()
    assert seen == {True, False}
    assert not errors, "\n".join(errors)


def test_start_page_leads_in(browser, origin):
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/{START}")
    page.wait_for_url(f"**/{FIRST}")
    assert "Reversing the Noise" in page.title()
    page.context.close()
    assert not errors, "\n".join(errors)


def test_progress_is_kept(browser, origin):
    """A chapter marked as read gets its tick beside the page and on the front page, and keeps it."""
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/notebooks/01_destruction_and_reconstruction.html")
    assert not page.locator("a.chapter-read").count()
    page.locator(".chapter-done input").check()
    page.goto(f"{origin}/{FIRST}")
    assert page.locator("table.spine a.chapter-read").count() == 1
    page.goto(f"{origin}/notebooks/01_destruction_and_reconstruction.html")
    page.locator(".chapter-done input").uncheck()
    page.goto(f"{origin}/{FIRST}")
    assert not page.locator("a.chapter-read").count()
    page.context.close()
    assert not errors, "\n".join(errors)

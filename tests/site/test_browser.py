"""The built site in a real browser, without network: from a local server and from the file system."""

import json
import os
import pathlib
import re
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
SITE = ROOT / "_build" / "html"
sys.path.insert(0, str(ROOT / "book" / "tools"))
import browse
import check_site

from companion import drag

REQUIRED = os.environ.get("BOOK_SITE_REQUIRED") == "1"
MISSING = "" if (SITE / "index.html").exists() else "the site is not built: run `make book`"
FIRST = "book/index.html"
CHAPTER = "notebooks/02_forward_process.html"
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


DRAGGED = [p for p in PAGES if p.startswith("notebooks/") and 'class="companion-drag"' in (SITE / p).read_text()]


def numbers(path):
    return [float(v) for v in re.findall(r"-?[0-9.]+", path)]


def dragged(figure):
    """Where the blobs are, and how far the page's arrows are from those that Python draws for the same mixture."""
    state = json.loads(figure.get_attribute("data-state"))
    drawn, wanted = numbers(figure.locator(".arrows").get_attribute("d")), numbers(drag._arrows(state))
    assert len(drawn) == len(wanted)
    return state, max(abs(a - b) for a, b in zip(drawn, wanted, strict=True))


@pytest.mark.parametrize("view", ["wide", "phone"])
@pytest.mark.parametrize("name", DRAGGED)
def test_blobs_can_be_dragged(browser, origin, name, view):
    """By mouse and by keys, weight and noise by sliders; after each the page's score is the package's."""
    page, errors = browse.watched(browser, origin, viewport=browse.WIDE if view == "wide" else browse.PHONE)
    page.goto(f"{origin}/{name}")
    page.wait_for_load_state("load")
    figure = page.locator("figure.companion-drag").first
    figure.scroll_into_view_if_needed()
    page.evaluate("MathJax.startup.promise")
    page.wait_for_timeout(500)
    before, off = dragged(figure)
    assert off < 2e-3
    handle = figure.locator("[data-blob='0']")
    handle.scroll_into_view_if_needed()
    box = handle.bounding_box()
    assert min(box["width"], box["height"]) >= 24  # a finger's width, nearly
    x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x - 60, y + 30, steps=4)
    page.mouse.up()
    after, off = dragged(figure)
    moved = [a - b for a, b in zip(after["means"][0], before["means"][0], strict=True)]
    assert moved[0] < -0.3 and moved[1] < -0.15 and off < 2e-3
    assert after["means"][1:] == before["means"][1:]
    page.mouse.move(x, y)  # let go: it stays
    assert dragged(figure)[0] == after
    handle.press("ArrowUp")
    keyed, off = dragged(figure)
    assert abs(keyed["means"][0][1] - after["means"][0][1] - 0.1) < 1e-9 and off < 2e-3
    for k, part in enumerate(("sigma", "weights")):
        figure.locator("input").nth(k).press("End")
        state, off = dragged(figure)
        assert state[part] != keyed[part] and abs(sum(state["weights"]) - 1) < 1e-9 and off < 2e-3
    assert dragged(figure)[0]["weights"][0] == pytest.approx(0.96)
    assert "blob 1" in figure.locator("label").nth(1).inner_text()
    page.context.close()
    assert not errors, "\n".join(errors)


def test_a_chapter_has_blobs_to_drag():
    assert DRAGGED


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


def test_search_names_the_section(browser, origin):
    """A page that is found says where: the section, as a link, and the words around the find; from a file too."""
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/search.html?q=posterior")
    page.wait_for_selector("#search-results .search-section", timeout=10_000)
    page.wait_for_timeout(300)
    places = page.eval_on_selector_all("#search-results .search-section", "found => found.map((a) => a.href)")
    marked = page.locator("#search-results .search-excerpt mark").all_inner_texts()
    page.goto(next(place for place in places if "01_destruction" in place))
    assert page.evaluate("document.getElementById(location.hash.slice(1)) !== null")
    page.context.close()
    assert marked and all(word.lower().startswith("posterior") for word in marked), marked
    assert not errors, "\n".join(errors)


def test_download_saves_the_notebook(browser, origin):
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/{CHAPTER}")
    page.locator("button[aria-label='Download this page']").click()
    with page.expect_download() as download:
        page.locator("a.btn-download-source-button").click()
    assert download.value.suggested_filename == "02_forward_process.ipynb"
    saved = pathlib.Path(download.value.path()).read_text(encoding="utf-8")
    assert json.loads(saved) == json.loads(
        (SITE / "_sources" / CHAPTER).with_suffix(".ipynb").read_text(encoding="utf-8")
    )
    assert page.url.endswith(CHAPTER)
    page.context.close()
    assert not errors, "\n".join(errors)


def late_equation(page):
    return page.locator("main a[id^='eq-']").last.get_attribute("id")


SETTLED = """async () => {
  let before = -1;
  for (let same = 0; same < 5; ) {
    await new Promise(r => setTimeout(r, 100));
    same = document.body.scrollHeight === before ? same + 1 : 0;
    before = document.body.scrollHeight;
  }
}"""


UNANCHORED = """addEventListener("DOMContentLoaded", () => {
  document.head.append(Object.assign(document.createElement("style"), {textContent: "* { overflow-anchor: none }"}));
})"""


@pytest.mark.parametrize("view", ["wide", "phone"])
@pytest.mark.parametrize("way", ["from elsewhere", "within", "again"])
def test_jump_lands_on_its_equation(browser, origin, view, way):
    """A jump over many formulas that are not typeset yet ends at its equation; then the reader is free to scroll."""
    page, errors = browse.watched(browser, origin, viewport=browse.WIDE if view == "wide" else browse.PHONE)
    if view == "phone":  # some browsers do not hold the place when what is above it grows
        page.add_init_script(UNANCHORED)
    page.goto(f"{origin}/{CHAPTER}")
    name = late_equation(page)
    if way == "from elsewhere":
        page.goto(f"{origin}/{FIRST}")
        page.goto(f"{origin}/{CHAPTER}#{name}")
    else:
        page.evaluate("name => { location.hash = name }", name)
    if way == "again":
        page.evaluate(SETTLED)
        page.mouse.wheel(0, -6000)
        page.evaluate(SETTLED)
        assert page.evaluate("name => document.getElementById(name).getBoundingClientRect().top", name) > 2000
        page.evaluate(
            "name => document.body.append(Object.assign(document.createElement('a'), {href: '#' + name}))", name
        )
        page.evaluate("document.body.lastChild.click()")
    page.evaluate(SETTLED)
    top = page.evaluate("name => document.getElementById(name).getBoundingClientRect().top", name)
    assert 0 <= top <= page.viewport_size["height"] / 3, f"{name} stands {top:.0f} pixels below the window's top"
    at = page.evaluate("scrollY")
    page.evaluate("name => document.getElementById(name).scrollIntoView({behavior: 'instant'})", name)
    assert abs(page.evaluate("scrollY") - at) < 3, "it came to rest beside its place"
    page.mouse.move(200, 400)
    page.mouse.wheel(0, -500)
    page.evaluate(SETTLED)
    assert page.evaluate("scrollY") < at - 300
    page.context.close()
    assert not errors, "\n".join(errors)


@pytest.mark.parametrize("name", [p for p in PAGES if p.startswith("notebooks/")])
def test_on_a_phone_equations_keep_their_numbers(browser, server, name):
    """A wide equation scrolls beside its number, which stays in view and covers none of it."""
    page, errors = browse.watched(browser, server, viewport=browse.PHONE)
    page.goto(f"{server}/{name}")
    faults = list(browse.mathematics_faults(page))
    found = page.evaluate(
        """() => [...document.querySelectorAll("main div.math mjx-labels mjx-mtd")].map((label) => {
          const box = label.getBoundingClientRect();
          const formula = label.closest("mjx-mtable").querySelector("mjx-table").getBoundingClientRect();
          return [label.textContent || label.id, box.left, box.right, formula.left, formula.right];
        })"""
    )
    page.context.close()
    width = browse.PHONE["width"]
    for label, left, right, start, end in found:
        if not (0 <= start and end <= left + 1 and right <= width and left > width / 2):
            faults.append(f"{label}: formula {start:.0f} to {end:.0f}, number {left:.0f} to {right:.0f}")
    assert found and not faults + errors, "\n".join(faults + errors)


def test_on_a_phone_what_scrolls_fades_out(browser, server):
    """A table that is cut says so on the side where it goes on, and its code is not broken."""
    page, errors = browse.watched(browser, server, viewport=browse.PHONE)
    page.goto(f"{server}/book/ledger.html")
    sides = "e => ['left', 'right'].map(s => parseFloat(getComputedStyle(e).getPropertyValue('--more-' + s)))"
    table = page.locator(".ledger-scroll")
    at_start = table.evaluate(sides)
    table.evaluate("e => { e.scrollLeft = e.scrollWidth }")
    page.wait_for_timeout(100)
    at_end = table.evaluate(sides)
    page.context.close()
    assert at_start[0] == 0 < at_start[1] and at_end[0] > 0 == at_end[1], (at_start, at_end)
    assert not errors, "\n".join(errors)


def test_long_checks_are_folded(browser, origin):
    """The check's code opens on a click; its badge shows always."""
    page, errors = browse.watched(browser, origin)
    page.goto(f"{origin}/{CHAPTER}")
    cell = page.locator("div.cell:has(details.hide)").first
    code, badge = cell.locator("details.hide pre"), cell.locator(".companion-verify")
    assert cell.locator("summary").inner_text().strip() == "Show the check"
    assert not code.is_visible() and badge.is_visible()
    cell.locator("summary").scroll_into_view_if_needed()
    page.evaluate("MathJax.startup.promise")  # formulas that grow on the way would move it from under the mouse
    page.wait_for_timeout(300)
    cell.locator("summary").click()
    cell.get_by_text("Hide the check").wait_for(state="visible", timeout=5000)
    code.wait_for(state="visible", timeout=5000)
    assert "verify(" in code.inner_text() and badge.is_visible()
    page.context.close()
    assert not errors, "\n".join(errors)


# All but MJXZERO, which is as wide as nothing and shows nothing.
FONTS = "[...document.fonts].filter(f => f.family.includes('MJXTEX') && f.status === 'loaded').map(f => f.family)"


def test_paper_gets_all_mathematics_and_no_sidebars(browser, origin):
    """Printing typesets what has not been scrolled to, its fonts at hand, and leaves out what is for the screen."""
    page, errors = browse.watched(browser, origin, color_scheme="dark")
    page.goto(f"{origin}/{CHAPTER}")
    page.evaluate("MathJax.startup.promise")
    assert page.locator("main mjx-lazy").count() > 20
    page.wait_for_function(f"{FONTS}.length >= 10", timeout=10_000)
    fonts = set(page.evaluate(FONTS))
    page.pdf()
    page.evaluate(SETTLED)
    assert page.locator("main mjx-lazy").count() == 0
    assert len(fonts) > 5 and set(page.evaluate(FONTS)) <= fonts, "a font came too late for the paper"
    assert browse.brightness(page)["background"] < 0.5, "the page is dark again"
    page.emulate_media(media="print")
    for shown in (".bd-sidebar-primary", ".bd-sidebar-secondary", ".bd-header-article", ".chapter-done", ".copybtn"):
        assert not page.locator(shown).first.is_visible(), shown
    page.context.close()
    assert not errors, "\n".join(errors)


def test_ledger_names_sections(browser, server):
    """A row's label is the number and the section of its equation; the id remains as the row's anchor."""
    page, errors = browse.watched(browser, server)
    page.goto(f"{server}/book/ledger.html#eq-i-mmse")
    row = page.locator("tr#eq-i-mmse")
    text = row.locator("td").first.inner_text()
    page.context.close()
    assert re.fullmatch(r"\(2\.\d+\)\n2\.\d+ .+", text), text
    assert not errors, "\n".join(errors)

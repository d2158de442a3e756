"""The browser's checks find the mistake each of them is there for, on small pages of their own."""

import pathlib
import sys

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "book" / "tools"))
import browse

FIGURE = """<html><body><main><figure class="companion-explore">
<svg width="200" height="100"><circle id="disc" cx="20" cy="50" r="15"/></svg>
<input type="range" min="0" max="10" value="0" {more} oninput="{act}" style="width: 200px">
<figcaption>c</figcaption></figure></main></body></html>"""
MOVES = "document.getElementById('disc').setAttribute('cx', 20 + 16 * this.value)"
WORDS = "this.title = this.value"


def opened(browser, tmp_path, text):
    (tmp_path / "page.html").write_text(text)
    page, errors = browse.watched(browser, tmp_path.as_uri())
    page.goto(f"{tmp_path.as_uri()}/page.html")
    return page, errors


@pytest.mark.parametrize(
    "act,more,words", [(MOVES, "", ""), (WORDS, "", "does not change"), (MOVES, "disabled", "arrow key")]
)
def test_dead_slider(browser, tmp_path, act, more, words):
    page, _ = opened(browser, tmp_path, FIGURE.format(act=act, more=more))
    faults = list(browse.slider_faults(page))
    assert (not faults) if not words else any(words in fault for fault in faults), faults


def test_figure_without_slider(browser, tmp_path):
    page, _ = opened(browser, tmp_path, "<figure class='companion-explore'></figure>")
    assert list(browse.slider_faults(page)) == ["figure 1: no slider"]


def test_request_to_another_host(browser, tmp_path):
    page, errors = opened(browser, tmp_path, "<script src='https://cdn.example.org/x.js'></script>")
    page.wait_for_load_state("load")
    assert any("cdn.example.org" in error for error in errors)


def test_script_that_fails(browser, tmp_path):
    page, errors = opened(browser, tmp_path, "<script>undefinedName()</script>")
    page.wait_for_timeout(100)
    assert any("undefinedName" in error for error in errors)


def test_mathematics_left_as_source(browser, tmp_path):
    page, _ = opened(browser, tmp_path, "<main><div class='math'>\\[ x \\]</div></main>")
    assert list(browse.mathematics_faults(page))


def test_page_that_scrolls_sideways(browser, tmp_path):
    page, _ = opened(browser, tmp_path, "<main><div style='width: 3000px'>wide</div></main>")
    assert "3000" in browse.sideways(page) or browse.sideways(page)
    page, _ = opened(browser, tmp_path, "<main><div>narrow</div></main>")
    assert browse.sideways(page) == ""


def test_faint_text(browser, tmp_path):
    page, _ = opened(browser, tmp_path, "<main><p>x</p><figcaption style='color: #ddd'>pale</figcaption></main>")
    assert browse.brightness(page)["faint"] == ["pale"]

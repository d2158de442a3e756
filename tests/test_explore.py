"""Sliders: what is refused, the static page in a browser, and the live figure under ipywidgets 8 and 7."""

import json
import os
import re
import shutil
import subprocess
import sys
from html import escape
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import pytest

from companion import explore as ex
from companion.explore import build, choice, explore, slider, typed
from companion.figures import figure

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
WORDS = {"caption": "What to see.", "alt": "A line."}


def absent(what):
    """Skip, saying what is missing; fail where everything must run."""
    pytest.fail(what) if os.environ.get("COMPANION_REQUIRE_ALL") else pytest.skip(what)


def bold(w):
    return f"<b>{w}</b>"


def line(w, kind="plain"):
    fig, ax = figure(height=2.0)
    ax.plot([0, 1], [0, w], marker="o" if kind == "dots" else None)
    ax.scatter([0.1, 0.2, 0.3], [w, 1, 2], alpha=0.5)
    ax.set(ylim=(0, 5), ylabel="height")
    return fig


def data_of(page):
    """The JSON that a static page carries."""
    return json.loads(re.search(r'<script type="application/json">(.*?)</script>', page, re.S)[1])


def drawings_of(page):
    """Each frame put together as the page's script does it."""
    data = data_of(page)
    for parts in data["frames"]:
        drawing = "".join(part if isinstance(part, str) else "".join(data["lines"][slice(*part)]) for part in parts)
        yield drawing.replace(data["dot"], ex.figures.BETWEEN_DOTS) if data["dot"] else drawing


# ---------------------------------------------------------------- what is refused


@pytest.mark.parametrize(
    ("args", "kw", "error", "message"),
    [
        ((1, 1), {}, ValueError, "lo must be below hi"),
        ((2, 1), {}, ValueError, "lo must be below hi"),
        ((0, float("inf")), {}, ValueError, "hi must be finite"),
        ((float("nan"), 1), {}, ValueError, "lo must be finite"),
        (("0", 1), {}, TypeError, "lo must be a number"),
        ((0, True), {}, TypeError, "hi must be a number"),
        ((0, 1), {"value": 2}, ValueError, "value must be between"),
        ((0, 1), {"value": float("nan")}, ValueError, "value must be finite"),
        ((0, 1), {"steps": 1}, ValueError, "steps must be"),
        ((0, 1), {"steps": 2.5}, ValueError, "steps must be"),
        ((0, 1), {"step": 0.0}, ValueError, "step must be"),
        ((0, 1), {"step": 5}, ValueError, "step must be"),
        ((0.5, 9), {"step": 1}, ValueError, "whole numbers"),
        ((0, 1), {"format": "{:d}"}, ValueError, "format"),
        ((0, 1), {"format": "{} of {}"}, ValueError, "format"),
        ((0, 1), {"format": "{:.0f}"}, ValueError, "two values read '0'"),
        (([],), {}, ValueError, "at least two"),
        (([1],), {}, ValueError, "at least two"),
        (([1, 2, 2],), {}, ValueError, "two values read '2'"),
        (([1, float("nan")],), {}, ValueError, "finite"),
        (([1, 2],), {"value": 3}, ValueError, "value must be one of"),
        (("ab",), {}, TypeError, "list or a range"),
        ((3,), {}, TypeError, "list or a range"),
    ],
)
def test_slider_refuses(args, kw, error, message):
    with pytest.raises(error, match=message):
        slider(*args, **kw)


@pytest.mark.parametrize("values", [[], ["a"], ["a", "a"]])
def test_choice_refuses(values):
    with pytest.raises(ValueError, match="choice"):
        choice(values)


@pytest.mark.parametrize(
    ("sliders", "error", "message"),
    [
        ({}, TypeError, "at least one slider"),
        ({"v": [1, 2]}, TypeError, "'v'"),
        ({"w": [1, 2], "v": [1, 2]}, TypeError, "'v'"),
        ({"kind": [1, 2]}, TypeError, "'w'"),
        ({"w": []}, ValueError, "slider 'w'.*at least two"),
        ({"w": 3}, TypeError, "slider 'w'"),
        ({"w": slider(0, 1, label="x"), "kind": choice("ab".split() + ["c"], label="x")}, ValueError, "label 'x'"),
        ({"w": range(201)}, ValueError, "201 frames .*w: 201.* frames=200"),
    ],
)
def test_explore_refuses(sliders, error, message):
    with pytest.raises(error, match=message):
        explore(line, **WORDS, **sliders)


def test_words_may_be_left_to_the_values():
    explorer = build(bold, w=slider(0, 1, steps=3, label="scale"))
    assert "<figcaption>" not in explorer.html and 'aria-label="A figure with scale: 0.50"' in explorer.html


def test_words_must_be_words():
    with pytest.raises(TypeError, match="caption"):
        build(bold, caption=3, alt="a", w=[1, 2])
    with pytest.raises(ValueError, match="alt"):
        build(bold, alt=" ", w=[1, 2])


def test_ipywidgets_say_what_they_are():
    import ipywidgets

    of = lambda **spec: next(iter(build(bold, **spec).sliders.values()))  # noqa: E731
    made = of(w=ipywidgets.FloatSlider(value=1, min=0, max=2, description="scale"))
    assert (made.grid[0], made.grid[-1], made.value, made.label) == (0, 2, 1, "scale")
    assert of(w=ipywidgets.IntSlider(value=3, min=0, max=10)).kind == "int"
    assert of(w=ipywidgets.Dropdown(options=[1, 2, 5], value=2)).grid == (1, 2, 5)


def test_alt_of_every_frame_is_required():
    with pytest.raises(ValueError, match="alt"):
        explore(bold, caption="c", alt=lambda w: "" if w == 2 else "text", w=[1, 2])


def test_too_heavy_a_page_says_how_heavy():
    noise = "".join(map(str, range(120_000)))
    with pytest.raises(ValueError, match=r"1\.\d\d MB for 2 frames.*fewer steps"):
        explore(lambda w: f"{w}{noise}", **WORDS, w=[1, 2])


def test_figure_fn_must_draw():
    with pytest.raises(TypeError, match="figure_fn must return"):
        explore(lambda w: None, **WORDS, w=[1, 2])
    with pytest.raises(TypeError, match="figure_fn must be callable"):
        explore("line", **WORDS, w=[1, 2])


def test_an_error_in_a_frame_names_the_values():
    def draw(w):
        raise ZeroDivisionError("planted")

    with pytest.raises(ZeroDivisionError, match="planted") as caught:
        explore(draw, **WORDS, w=[1, 2])
    if sys.version_info >= (3, 11):
        assert "{'w': 1}" in caught.value.__notes__[0]


def test_a_dead_slider_is_found():
    def dead(w, v):
        return line(v)

    with pytest.raises(ValueError, match="slider 'w' changes nothing"):
        explore(dead, **WORDS, w=[1, 2], v=[1, 2])
    with pytest.raises(ValueError, match="slider 'v' changes nothing"):
        explore(lambda w, v: line(w), **WORDS, w=[1, 2], v=[1, 2])
    explore(lambda w, v: bold(w * v), **WORDS, w=[0, 1], v=[1, 2])  # alive for one value of the other is alive


def test_noise_does_not_hide_a_dead_slider():
    import random

    with pytest.raises(ValueError, match="fix its seed"):
        explore(lambda w: bold(random.random()), **WORDS, w=[1, 2])


# ---------------------------------------------------------------- grids


def test_grids():
    assert slider(0, 1, steps=3).grid == (0, 0.5, 1) and slider(0, 1, steps=3).value == 0.5
    assert slider(0, 1, steps=3, value=0.3).grid == (0, 0.3, 0.5, 1)
    whole = slider(1, 50, steps=4, step=1, value=20, format="{:d} steps")
    assert whole.grid == (1, 17, 20, 34, 50) and all(type(v) is int for v in whole.grid)
    assert whole.text(whole.value) == "20 steps"
    assert slider(0, 1, steps=11).step == pytest.approx(0.01)
    assert slider([1, 5, 25]).grid == (1, 5, 25) and slider(range(3)).value == 0
    assert choice(["a", "b"], value="b").start == 1


def test_figure_fn_gets_numbers_of_the_right_kind():
    seen = []
    build(lambda n, t: seen.append((n, t)) or f"{n}{t}", **WORDS, n=slider(1, 9, steps=3, step=1), t=slider(0, 1))
    assert {type(n) for n, _ in seen} == {int} and {type(t) for _, t in seen} == {float}


# ---------------------------------------------------------------- the static page


class Tags(HTMLParser):
    """Every opening tag with its attributes."""

    def __init__(self, page):
        super().__init__()
        self.tags = []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def all(self, name):
        return [attrs for tag, attrs in self.tags if tag == name]


def test_static_page_is_accessible():
    page = build(
        line,
        caption="What <i>to see</i>.",
        alt=lambda w, kind: f"slope {w:g}, {kind} & so on",
        w=slider(0, 5, steps=6, value=2, label="slope w", format="{:.1f} m"),
        kind=choice(["plain", "dots"], label="marks"),
    ).html
    tags = Tags(page)
    (outer,), (range_,), (select,), (output,) = map(tags.all, ["figure", "input", "select", "output"])
    assert outer["class"] == "companion-explore"
    (view,) = [attrs for attrs in tags.all("div") if attrs.get("role") == "img"]
    assert view["aria-label"] == "slope 2, plain & so on"
    assert [attrs["for"] for attrs in tags.all("label")] == [range_["id"], select["id"]]
    assert range_["type"] == "range" and range_["aria-valuetext"] == "slope w: 2.0 m"
    assert (range_["min"], range_["max"], range_["value"]) == ("0", "5", "2")
    assert range_["data-lm-suppress-shortcuts"] == select["data-lm-suppress-shortcuts"] == "true"
    assert output["aria-live"] == "polite" and ">2.0 m</output>" in page
    assert [o["value"] for o in tags.all("option")] == ["0", "1"]
    assert "<figcaption>What <i>to see</i>.</figcaption>" in page
    assert page.index("<svg") < page.index("<script"), "the first frame must not need a script"
    assert "http" not in page.replace("http://www.w3.org/2000/svg", ""), "nothing may be fetched"
    assert ex.figures.to_svg(figure()[0])[:20] in page and ex._IDS not in page


def test_frames_survive_the_packing():
    explorer = build(line, **WORDS, w=slider(0, 5, steps=4), kind=choice(["plain", "dots"]))
    uid = re.search(r'data-explore="([^"]+)"', explorer.html)[1]
    expected = [drawing.replace(ex._IDS, uid) for drawing, _ in explorer.frames.values()]
    assert list(drawings_of(explorer.html)) == expected
    assert len(explorer.html) < 0.5 * sum(map(len, expected))


def test_dedupe_gives_back_what_it_got():
    drawings = ["a\nb\nc\n", "a\nx\nc\n", "c\nx\nb\na\n", "", "only", "a\na\nb\nc\nonly"]
    lines, frames = ex.dedupe(drawings)
    whole = ["".join(p if isinstance(p, str) else "".join(lines[slice(*p)]) for p in parts) for parts in frames]
    assert whole == drawings


def test_ids_differ_between_figures():
    first, second = (re.search(r'data-explore="([^"]+)"', build(bold, **WORDS, w=[1, 2]).html)[1] for _ in range(2))
    assert first != second


# ---------------------------------------------------------------- the static page in a browser


@pytest.fixture(scope="module")
def chromium():
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        absent("playwright is missing")
    if CHROMIUM is None:
        absent("chromium is missing")
    with sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


STYLE = "body{font:16px/1.5 system-ui,sans-serif;margin:24px;max-width:760px;background:%s;color:%s;color-scheme:%s}"
LIGHT, DARK = STYLE % ("#fff", "#14181e", "light"), STYLE % ("#14181e", "#d8dce2", "dark")
NASTY = "<p class='nasty' title='</script><!-- <script> ~^`| \u2028 \\ \"'>{w} &lt;/script> ~ \u2028 \\ \" &lt;!--</p>"


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """A page with three figures in light and in dark, as files."""
    alt = "slope {:g}, {}".format
    one = build(
        line,
        caption="The line's slope is <i>w</i>. Its height at 1 is the value on the slider.",
        alt=lambda w, kind: alt(w, kind),
        w=slider(0, 5, steps=6, value=2, label="slope w", format="{:.1f}"),
        kind=choice(["plain", "dots"], label="marks"),
    )
    two = build(line, **WORDS, w=slider([1, 2, 4], label="number of steps", format="{:d} steps"))
    three = build(lambda w: NASTY.replace("{w}", escape(w)), **WORDS, w=["</script>", "b'\"<", "~"])
    folder = tmp_path_factory.mktemp("pages")
    for name, css in {"light": LIGHT, "dark": DARK}.items():
        body = "\n".join(explorer.html for explorer in (one, two, three))
        head = f'<!doctype html><html lang="en"><meta charset="utf-8"><title>t</title><style>{css}</style>'
        (folder / f"{name}.html").write_text(f"{head}<body>{body}</body></html>", encoding="utf-8")
    (folder / "empty.html").write_text("<!doctype html><title>t</title>")
    return folder


@pytest.fixture
def open_page(chromium, pages):
    """Opens a page from file:// with the network blocked; fails the test on any script error."""
    errors, contexts = [], []

    def open_(name="light", **kw):
        context = chromium.new_context(viewport={"width": 800, "height": 1000}, **kw)
        contexts.append(context)
        context.route("**/*", lambda r: r.continue_() if r.request.url.startswith("file:") else r.abort())
        page = context.new_page()
        page.on("pageerror", lambda error: errors.append(str(error)))
        page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
        page.on("requestfailed", lambda request: errors.append(f"asked for {request.url}"))
        page.goto((pages / f"{name}.html").as_uri())
        return page

    yield open_
    for context in contexts:
        context.close()
    assert errors == []


def parts_of(page, number=0):
    """View and range of one figure."""
    root = page.locator("figure.companion-explore").nth(number)
    return root.locator("[role=img]"), root.locator("input")


def test_keys_move_the_figure(open_page):
    page = open_page()
    view, control = parts_of(page)
    assert control.is_enabled()
    control.focus()
    heard = []
    for key, expected in [("ArrowRight", 3), ("ArrowUp", 4), ("ArrowLeft", 3), ("Home", 0), ("End", 5)]:
        before = view.inner_html()
        page.keyboard.press(key)
        assert view.get_attribute("aria-label") == f"slope {expected}, plain"
        assert control.get_attribute("aria-valuetext") == f"slope w: {expected:.1f}"
        assert page.locator("output").first.inner_text() == f"{expected:.1f}"
        assert view.inner_html() != before
        heard.append(view.inner_html())
    assert heard[0] == heard[2]  # the same values show the same frame


def test_mouse_moves_the_figure(open_page):
    page = open_page()
    view, control = parts_of(page)
    box = control.bounding_box()
    before = view.inner_html()
    page.mouse.move(box["x"] + 0.4 * box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2, steps=4)
    page.mouse.up()
    assert view.get_attribute("aria-label") == "slope 5, plain" and view.inner_html() != before


@pytest.mark.parametrize("height", [0.12, 0.5, 0.88])
def test_a_finger_moves_the_figure(open_page, height):
    page = open_page(has_touch=True, is_mobile=True)
    view, control = parts_of(page)
    control.scroll_into_view_if_needed()
    box = control.bounding_box()
    assert box["height"] >= 24
    page.touchscreen.tap(box["x"] + 0.8 * box["width"], box["y"] + height * box["height"])
    assert view.get_attribute("aria-label") == "slope 4, plain"


def test_choice_moves_the_figure(open_page):
    page = open_page()
    view, _ = parts_of(page)
    page.get_by_label("marks").select_option("dots")
    assert view.get_attribute("aria-label") == "slope 2, dots"
    page.get_by_label("marks").focus()
    page.keyboard.press("ArrowUp")
    assert view.get_attribute("aria-label") == "slope 2, plain"


def test_figures_on_one_page_do_not_meet(open_page):
    page = open_page()
    views, controls = zip(*(parts_of(page, i) for i in range(3)), strict=True)
    before = [view.inner_html() for view in views]
    page.get_by_label("number of steps").press("End")
    after = [view.inner_html() for view in views]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False, True]
    ids = page.evaluate("[...document.querySelectorAll('[id]')].map(e => e.id)")
    assert len(ids) == len(set(ids))


def test_no_globals_leak(open_page, pages):
    page = open_page()
    ours = set(page.evaluate("Object.keys(window)"))
    page.goto((pages / "empty.html").as_uri())
    assert ours <= set(page.evaluate("Object.keys(window)"))


def test_text_that_looks_like_a_script_stays_text(open_page):
    page = open_page()
    view, control = parts_of(page, 2)
    output = page.locator("output").nth(2)
    for key, expected in [("Home", "</script>"), ("ArrowRight", "b'\"<"), ("End", "~")]:
        control.press(key)
        assert output.inner_text() == expected and view.locator(".nasty").count() == 1
        assert view.locator(".nasty").get_attribute("title") == '</script><!-- <script> ~^`| \u2028 \\ "'
    assert page.locator("figure.companion-explore").count() == 3


def test_two_copies_of_one_output_both_work(open_page, pages):
    page = open_page()
    copy = page.locator("figure.companion-explore").nth(1).evaluate("e => e.outerHTML")
    copy = copy.replace(' data-ready=""', "")
    page.evaluate(
        """html => {
          const host = document.createElement("div");
          host.innerHTML = html;
          document.body.append(host);
          const old = host.querySelectorAll("script")[1], fresh = document.createElement("script");
          fresh.textContent = old.textContent;
          old.replaceWith(fresh);
        }""",
        copy,
    )
    for number in (1, 3):
        view, control = parts_of(page, number)
        before = view.inner_html()
        control.press("End")
        assert view.inner_html() != before


def test_without_scripts_the_first_frame_stands(open_page):
    page = open_page(java_script_enabled=False)
    view, control = parts_of(page)
    assert view.locator("svg").is_visible() and control.is_disabled()
    assert view.get_attribute("aria-label") == "slope 2, plain"


@pytest.mark.parametrize(("name", "ink"), [("light", "rgb(20, 24, 30)"), ("dark", "rgb(216, 220, 226)")])
def test_light_and_dark(open_page, name, ink, tmp_path):
    page = open_page(name)
    page.locator("input").first.focus()
    page.screenshot(path=tmp_path / f"{name}.png", full_page=True)
    strokes = page.evaluate(
        "[...document.querySelectorAll('svg path')].map(e => getComputedStyle(e)).map(s => s.stroke + s.fill)"
    )
    assert sum(ink in stroke for stroke in strokes) > 20


def test_a_narrow_page_does_not_scroll_sideways(open_page):
    page = open_page()
    page.set_viewport_size({"width": 340, "height": 900})
    assert page.evaluate("document.documentElement.scrollWidth") <= 340
    assert parts_of(page)[1].bounding_box()["width"] > 150


# ---------------------------------------------------------------- live, under ipywidgets 8 and 7


@pytest.fixture(scope="module")
def ipywidgets7():
    """A folder that holds ipywidgets 7, which Colab ships; installed once."""
    folder = ROOT / "_build" / "ipywidgets7"
    if not (folder / "done").exists():
        wanted = ["ipywidgets==7.8.5", "widgetsnbextension==3.6.10", "jupyterlab_widgets==1.1.11", "ipython_genutils"]
        pip = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--upgrade", "--target", str(folder)]
        ran = subprocess.run(pip + wanted, capture_output=True, text=True)
        if ran.returncode:
            absent(f"ipywidgets 7 cannot be installed: {ran.stderr[-300:]}")
        (folder / "done").touch()
    return folder


@pytest.fixture(params=[8, 7])
def environment(request):
    """The variables of a process that finds ipywidgets 8 or 7, and that number."""
    if request.param == 8 and int(metadata.version("ipywidgets").split(".")[0]) < 8:
        pytest.skip("ipywidgets 8 is not installed")
    paths = [str(ROOT), os.environ.get("PYTHONPATH", "")]
    if request.param == 7:
        paths.insert(0, str(request.getfixturevalue("ipywidgets7")))
    return request.param, {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


def run_cells(folder, env, *cells):
    """Execute a notebook of these cells with a real kernel and return it."""
    nbformat = pytest.importorskip("nbformat")
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(cell) for cell in cells])
    client = NotebookClient(notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": str(folder)}})
    return client.execute(env=env)


DRAW = """
import ipywidgets
from companion import figures
from companion.explore import build, choice, explore, slider, typed

def draw(w, n, kind, size):
    if w == 4.75:
        raise ValueError("planted")
    fig, ax = figures.figure(height=2)
    ax.plot([0, 1], [0, w * n], linewidth=size, marker="o" if kind == "dots" else None)
    return fig

sliders = {"w": slider(0, 5, steps=3, step=0.25, label="slope w"), "n": slider(1, 9, steps=2, step=1),
           "kind": choice(["plain", "dots"]), "size": [1, 2]}
words = {"caption": "The slope.", "alt": lambda w, **_: f"slope {w:g}"}
"""
TURN = """
explorer = build(draw, **words, **sliders)
for name, value in {"w": 3.25, "n": 4, "kind": "dots", "size": 2}.items():
    before = explorer.view.value
    explorer.controls[name].value = value
    assert explorer.view.value != before, name
assert "slope 3.25" in explorer.view.value and "<svg" in explorer.view.value
assert isinstance(explorer.controls["n"].value, int) and explorer.controls["w"].description == "slope w"
"""
BREAK = """
try:
    explorer.controls["w"].value = 4.75
except ValueError as error:
    assert str(error) == "planted" and explorer.error is error
else:
    raise AssertionError("the error was swallowed")
assert "ValueError: planted" in explorer.view.value and "<svg" not in explorer.view.value
explorer.controls["w"].value = 1
assert "<svg" in explorer.view.value and explorer.error is None
"""
SHOW = """
figures.show(figures.figure()[0], "A caption with <i>w</i>.", 'An "alternative" text.')
import matplotlib.pyplot as plt
fig, ax = plt.subplots()
figures.show(fig, "A foreign figure.", "An empty frame.")
"""


def test_live_in_a_kernel(environment, tmp_path):
    version, env = environment
    check = f"assert ipywidgets.__version__.startswith('{version}.'), ipywidgets.__version__"
    shown = run_cells(
        tmp_path, env, DRAW, check, "explore(draw, **words, **sliders)", TURN, BREAK, "explorer.html;", SHOW
    )
    assert [cell.outputs for cell in shown.cells[3:6]] == [[], [], []]
    (output,) = shown.cells[2].outputs
    assert set(output.data) == {"text/html", "text/plain", "application/vnd.jupyter.widget-view+json"}
    assert output.data["text/html"].startswith('<figure class="companion-explore"')
    assert output.data["text/plain"] == "slope 2.5 [slope w: 2.50, n: 9, kind: plain, size: 1]"
    model = output.data["application/vnd.jupyter.widget-view+json"]["model_id"]
    states = shown.metadata["widgets"]["application/vnd.jupyter.widget-state+json"]["state"]
    assert states[model]["model_name"] == "VBoxModel"
    first, second = shown.cells[6].outputs  # and nothing more: pyplot must not show its figure again
    assert 'aria-label="An &quot;alternative&quot; text."' in first.data["text/html"]
    assert "<figcaption" in second.data["text/html"] and second.data["text/plain"] == "An empty frame."


def test_without_ipywidgets_the_static_page_is_left(tmp_path):
    hide = "import sys, importlib.util\nfound = importlib.util.find_spec\n"
    hide += "importlib.util.find_spec = lambda name, *a: None if name == 'ipywidgets' else found(name, *a)"
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    cells = [hide, DRAW.replace("import ipywidgets\n", ""), "explore(draw, **words, **sliders)"]
    (output,) = run_cells(tmp_path, env, *cells).cells[2].outputs
    assert set(output.data) == {"text/html", "text/plain"}


def test_a_reader_may_type():
    """Live any text reaches the figure, and what is wrong with it is said in a sentence; on the page it is a choice."""

    def draw(words, n):
        if "pink" in words:
            raise ValueError("no such colour")
        if "wire" in words:
            raise KeyError("broken")
        return f"<p>{words} {n}</p>"

    words = typed(["a red star", "a blue star"], value="a blue star", label="caption")
    explorer = build(draw, alt="words", words=words, n=slider([1, 2]))
    assert '<select id="' in explorer.html and ">a blue star</option>" in explorer.html
    assert "a blue star 1" in explorer.view.value
    explorer.controls["words"].value = "a green star that nobody listed"
    assert "a green star that nobody listed 1" in explorer.view.value and explorer.error is None
    explorer.controls["words"].value = "a pink star"
    assert re.search(">no such colour</pre>", explorer.view.value) and isinstance(explorer.error, ValueError)
    with pytest.raises(KeyError):
        explorer.controls["words"].value = "a wire"
    assert "Traceback" in explorer.view.value


def test_live_without_a_kernel():
    explorer = build(line, **WORDS, w=slider(0, 5, steps=3))
    before = explorer.view.value
    explorer.controls["w"].value = 1.37  # finer than the page's grid
    assert explorer.view.value != before
    assert set(explorer.bundle()) == {"text/html", "text/plain"}

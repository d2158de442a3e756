"""A slider in a real JupyterLab: run all cells, then move it by keyboard and by mouse."""

import contextlib
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
PATIENCE = 90  # seconds; a warm machine needs a tenth

CELLS = [
    """
from companion.explore import build, choice, explore, slider
from companion.figures import figure

def draw(w, kind):
    fig, ax = figure(height=2)
    ax.plot([0, 1], [0, w], marker="o" if kind == "dots" else None)
    ax.set(ylim=(0, 5))
    return fig

given = dict(caption="The slope is <i>w</i>.", alt=lambda w, kind: f"slope {w:.2f}, {kind}",
             w=slider(0, 5, steps=6, value=2, step=0.25, label="slope w"), kind=choice(["plain", "dots"]))
""",
    "explore(draw, **given)",
    """
from IPython.display import HTML
HTML(build(draw, **given).html)
""",
]


def absent(what):
    """Skip, saying what is missing; fail where everything must run."""
    pytest.fail(what) if os.environ.get("COMPANION_REQUIRE_ALL") else pytest.skip(what)


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextlib.contextmanager
def lab_server(folder, log):
    """The address of a JupyterLab that serves this folder."""
    port = free_port()
    own = {f"JUPYTER_{name}_DIR": str(folder / ".jupyter" / name) for name in ("CONFIG", "DATA", "RUNTIME")}
    own |= {f"JUPYTERLAB_{name}_DIR": str(folder / ".jupyter" / name) for name in ("SETTINGS", "WORKSPACES")}
    own |= {"IPYTHONDIR": str(folder / ".ipython"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "jupyterlab", "--no-browser", "--allow-root", "--IdentityProvider.token="]
    command += [f"--ServerApp.port={port}", "--ServerApp.port_retries=0", "--ServerApp.ip=127.0.0.1"]
    command += [f"--ServerApp.root_dir={folder}", "--LabApp.news_url=", "--LabApp.check_for_updates_class="]
    command[-1] += "jupyterlab.handlers.announcements.NeverCheckForUpdate"
    address = f"http://127.0.0.1:{port}"
    with open(log, "w") as out:
        server = subprocess.Popen(command, env={**os.environ, **own}, stdout=out, stderr=subprocess.STDOUT)
    try:
        wait_for(address, server, log)
        yield address
    finally:
        server.terminate()
        try:
            server.wait(20)
        except subprocess.TimeoutExpired:
            server.kill()


def wait_for(address, server, log):
    """Return when the server answers; fail with its log when it ends or takes too long."""
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end and server.poll() is None:
        with contextlib.suppress(OSError), urllib.request.urlopen(f"{address}/api", timeout=5):
            return
        time.sleep(0.1)
    pytest.fail(f"JupyterLab did not start:\n{Path(log).read_text()[-3000:]}")


@pytest.fixture
def page(tmp_path):
    """The notebook, open in JupyterLab, all its cells run."""
    try:
        import jupyterlab  # noqa: F401
        import nbformat
        from playwright.sync_api import sync_playwright
    except ImportError as error:
        absent(f"{error.name} is missing")
    if CHROMIUM is None:
        absent("chromium is missing")
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    cells = [nbformat.v4.new_code_cell(cell.strip()) for cell in CELLS]
    nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel}), tmp_path / "small.ipynb")
    with lab_server(tmp_path, tmp_path / "server.log") as address, sync_playwright() as p:
        browser = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": 1200, "height": 1500})
        context.route("**/*", lambda r: r.continue_() if r.request.url.startswith(address) else r.abort())
        context.set_default_timeout(PATIENCE * 1000)
        opened = context.new_page()
        opened.errors = []
        opened.on("pageerror", lambda error: opened.errors.append(str(error)))
        opened.goto(f"{address}/lab/tree/small.ipynb?reset")
        run_all(opened)
        yield opened
        browser.close()


def run_all(page):
    """Run all cells through the menu, once the kernel is there, and wait until the last one is done."""
    page.locator(".jp-Notebook .jp-Cell").first.wait_for()
    page.get_by_text("| Idle").first.wait_for()
    page.get_by_role("menuitem", name="Run", exact=True).click()
    page.get_by_text("Run All Cells", exact=True).click()
    page.locator(".companion-explore-live svg").wait_for()
    page.locator("figure.companion-explore svg").wait_for()


def in_place(page):
    """The live figure; found again at each look, since ipywidgets replaces it."""
    return page.locator(".companion-explore-live")


def expect_live(page, label):
    page.locator(f'.companion-explore-live[aria-label="{label}"]').wait_for()


def widget_is_shown(page):
    assert in_place(page).count() == 1 and page.get_by_text("slope w").first.is_visible()
    expect_live(page, "slope 2.00, plain")


def keyboard_moves_the_live_slider(page):
    handle = page.locator(".widget-slider .noUi-handle")
    handle.focus()
    page.keyboard.press("Home")
    expect_live(page, "slope 0.00, plain")
    before = in_place(page).inner_html()
    for key, label in [("ArrowRight", "0.25"), ("ArrowUp", "0.50"), ("ArrowLeft", "0.25"), ("End", "5.00")]:
        page.keyboard.press(key)
        expect_live(page, f"slope {label}, plain")
    assert in_place(page).inner_html() != before


def mouse_moves_the_live_slider(page):
    page.locator(".widget-slider .noUi-handle").focus()
    page.keyboard.press("End")
    expect_live(page, "slope 5.00, plain")
    before = in_place(page).inner_html()
    box = page.locator(".widget-slider .noUi-base").bounding_box()
    page.mouse.move(box["x"] + box["width"], box["y"] + box["height"] / 2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
    page.mouse.up()
    expect_live(page, "slope 2.50, plain")
    assert in_place(page).inner_html() != before


def static_figure_keeps_its_arrow_keys(page):
    root = page.locator("figure.companion-explore")
    root.locator("input").focus()
    page.keyboard.press("Home")
    for key, label in [("ArrowRight", "1.00"), ("ArrowUp", "2.00"), ("ArrowDown", "1.00"), ("ArrowLeft", "0.00")]:
        page.keyboard.press(key)
        assert root.locator("[role=img]").get_attribute("aria-label") == f"slope {label}, plain"
    assert root.locator("input").evaluate("e => e === document.activeElement")


def nothing_went_wrong(page):
    assert page.errors == []
    assert page.locator(".jp-OutputArea-output[data-mime-type*='stderr'], .companion-error").count() == 0
    assert "Error displaying widget" not in page.locator(".jp-Notebook").inner_text()


def test_sliders_in_jupyterlab(page):
    widget_is_shown(page)
    keyboard_moves_the_live_slider(page)
    mouse_moves_the_live_slider(page)
    static_figure_keeps_its_arrow_keys(page)
    nothing_went_wrong(page)

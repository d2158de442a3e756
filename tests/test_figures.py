"""The figures: what the inline SVG holds, that it looks as matplotlib drew it, and what is refused."""

import base64
import io
import itertools
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET

import numpy as np
import pytest
import torch
from PIL import Image

from companion import figures
from companion.figures import COLOURS, DATA, EXACT, INK, MODEL, NOISE, figure, image_grid, show, to_svg

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")


def points(count=60, seed=0):
    return np.random.default_rng(seed).normal(size=(count, 2))


def dots(svg):
    """Centres of the round markers of an SVG, in its order."""
    return [tuple(map(float, pair)) for pair in re.findall(r"M(-?[\d.]+) (-?[\d.]+)h0", svg)]


def on_canvas(ax, xy):
    """Data coordinates as an SVG of this figure has them: points from its upper left corner."""
    height = ax.figure.get_figheight() * 72
    return [(x, height - y) for x, y in ax.transData.transform(xy) * 72 / ax.figure.dpi]


def pictures(svg):
    """The embedded pictures of an SVG as arrays."""
    found = re.findall(r"href='data:image/(?:png|webp);base64,([^']+)'", svg)
    return [np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGBA")) for data in found]


def luminance(colour):
    linear = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in linear]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a, b):
    low, high = sorted((luminance(a), luminance(b)))
    return (high + 0.05) / (low + 0.05)


# ---------------------------------------------------------------- style


@pytest.mark.parametrize("module", ["companion.figures", "companion.explore"])
def test_import_loads_no_plotting(module):
    heavy = ["matplotlib", "ipywidgets", "IPython", "PIL"]
    code = f"import sys, {module}; sys.exit(' '.join(m for m in {heavy} if m in sys.modules) or 0)"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr


@pytest.mark.parametrize("colour", COLOURS)
def test_colours_read_on_light_and_dark(colour):
    assert contrast(colour, "#ffffff") >= 3
    assert contrast(colour, "#14181e") >= 3


def _seen_by(kind):
    """How a colour looks to an eye that lacks one kind of cone (Machado et al. 2009), in linear RGB."""
    return np.array(
        {
            "full": np.eye(3),
            "protan": [
                [0.152286, 1.052583, -0.204868],
                [0.114503, 0.786281, 0.099216],
                [-0.003882, -0.048116, 1.051998],
            ],
            "deutan": [[0.3673, 0.8606, -0.228], [0.2801, 0.6725, 0.0474], [-0.0118, 0.0429, 0.9689]],
            "tritan": [[1.2555, -0.0767, -0.1788], [-0.0784, 0.9308, 0.1476], [0.0047, 0.6914, 0.3039]],
        }[kind]
    )


def _lab(linear):
    xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]) @ linear.clip(0, 1)
    f = xyz / [0.9505, 1, 1.089]
    f = np.where(f > 0.008856, np.cbrt(f), 7.787 * f + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


@pytest.mark.parametrize("kind", ["full", "protan", "deutan", "tritan"])
def test_colours_differ_for_every_eye(kind):
    linear = [np.array([int(c[i : i + 2], 16) / 255 for i in (1, 3, 5)]) ** 2.2 for c in COLOURS]
    lab = [_lab(_seen_by(kind) @ colour) for colour in linear]
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(lab, 2)) > 12  # 2.3 is just noticeable


def test_style_is_left_as_it_was():
    import matplotlib

    before = matplotlib.rcParams["axes.edgecolor"]
    with figures.style():
        assert matplotlib.rcParams["axes.edgecolor"] == INK
    assert matplotlib.rcParams["axes.edgecolor"] == before


def test_figure_is_no_business_of_pyplot():
    ran = subprocess.run(
        [sys.executable, "-c", "import sys; from companion.figures import figure; figure(); print(*sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "matplotlib.pyplot" not in ran.stdout.split()


def test_figure_shapes():
    fig, ax = figure(width=5, height=2)
    assert tuple(fig.get_size_inches()) == (5, 2) and ax.figure is fig
    assert figure(2, 3, sharex=True)[1].shape == (2, 3)


@pytest.mark.parametrize("kw", [{"width": 0}, {"height": -1}, {"width": float("nan")}, {"rows": 0}, {"cols": 0}])
def test_figure_refuses(kw):
    with pytest.raises(ValueError, match=next(iter(kw))):
        figure(**kw)


def test_panels_keep_their_room():
    for rows, cols in [(1, 1), (1, 3), (2, 2)]:
        fig, axes = figure(rows, cols, width=7, height=4)
        boxes = [ax.get_position() for ax in np.ravel(axes)]
        assert all(box.width * 7 > 1 and box.height * 4 > 1 for box in boxes)
        assert all(box.x0 * 7 > 0.6 and box.y0 * 4 > 0.45 and box.x1 < 1 and box.y1 < 1 for box in boxes)


# ---------------------------------------------------------------- inline SVG


def busy():
    """A figure with a bit of everything."""
    fig, axes = figure(2, 3, width=9, height=5)
    a, b, c, d, e, f = axes.flat
    a.scatter(*points().T, s=12, color=DATA, alpha=0.5, label="data")
    a.scatter(*points(40, 1).T, s=20, color=MODEL, edgecolor="white", label="model")
    a.set(title="title", xlabel="x₁", ylabel="x₂")
    a.legend()
    b.scatter(*points().T, c=np.arange(60), s=9)
    b.plot(*points(10, 2).T, "^", color=EXACT)
    b.plot(*points(10, 3).T, "o", color=NOISE, markeredgecolor="black")
    c.hist(points(300)[:, 0], 20, color=NOISE, alpha=0.6)
    c.hist(points(300, 1)[:, 0], 20, color=DATA, histtype="step")
    d.semilogy(np.linspace(0, 1, 50), np.exp(np.linspace(0, 5, 50)), "--", marker=".")
    d.fill_between([0, 1], [1, 1], [10, 90], color=MODEL, alpha=0.2, linewidth=0)
    d.errorbar([0.2, 0.8], [5, 50], yerr=[2, 20], fmt="s", capsize=3)
    e.contourf(np.add.outer(np.linspace(-1, 1, 20) ** 2, np.linspace(-1, 1, 20) ** 2), levels=6)
    e.annotate("here", (10, 10), (3, 15), arrowprops={"arrowstyle": "->"})
    for seed in range(8):
        f.plot(points(9, seed).cumsum(0)[:, 0], color=DATA, alpha=0.4)
    f.imshow(np.arange(12).reshape(3, 4), extent=(0, 4, -4, 4), aspect="auto", interpolation="none", alpha=0.4)
    f.text(2, 0, "black", color="black")
    return fig


def test_svg_is_bare_and_inline():
    svg = to_svg(busy())
    root = ET.fromstring(svg)
    assert svg.startswith("<svg ") and svg.endswith("</svg>\n")
    assert set(root.attrib) == {"viewBox", "style"} and "max-width:100%" in root.attrib["style"]
    assert root.attrib["viewBox"] == "0 0 648 360"
    for unwanted in ["<?xml", "<!DOCTYPE", "<metadata", "<style", "<!--", "xlink", "<text", "font-family", INK, "<g>"]:
        assert unwanted not in svg
    assert svg.count("currentColor") > 40
    assert not re.search(r"(fill|stroke):#(000000|ffffff)[^>]*d='M0 360", svg)


def test_numbers_are_short():
    svg = re.sub(r"base64,[^']+|transform='[^']*'", "", to_svg(busy()))
    assert not re.findall(r"\d\.\d{3,}", re.sub(r"style='[^']*'", "", svg))


def test_ids_are_unique_and_resolve():
    first, second = to_svg(busy()), to_svg(figure()[0])
    for svg in (first, second):
        ids = re.findall(r" id='([^']+)'", svg)
        assert ids and len(ids) == len(set(ids))
        assert set(re.findall(r"(?:href='|url\()#([^')]+)", svg)) == set(ids)
    assert not set(re.findall(r" id='([^']+)'", first)) & set(re.findall(r" id='([^']+)'", second))
    assert all(name.startswith("mine") for name in re.findall(r" id='([^']+)'", to_svg(busy(), prefix="mine")))


def test_same_figure_same_svg():
    fig = busy()
    assert to_svg(fig) == to_svg(fig) == to_svg(busy())


@pytest.mark.parametrize("alpha", [None, 0.5])
@pytest.mark.parametrize("draw", ["scatter", "plot"])
def test_dots_stand_where_the_data_are(draw, alpha):
    xy = points()
    fig, ax = figure()
    ax.scatter(*xy.T, s=9, alpha=alpha) if draw == "scatter" else ax.plot(*xy.T, "o", alpha=alpha)
    svg = to_svg(fig)
    assert np.allclose(dots(svg), on_canvas(ax, xy), atol=0.006)
    assert len(re.findall(r"<path d='M[^']*h0'", svg)) == (60 if alpha else 1)  # one by one, or they would not add up
    width = float(re.search(r"stroke-linecap:round;stroke-width:([\d.]+)", svg)[1])
    assert width == pytest.approx(3 if draw == "scatter" else 5, abs=1.01)  # matplotlib's rim is up to 1 point wide


def test_dots_keep_their_own_colours():
    fig, ax = figure()
    ax.scatter([0, 1, 2], [0, 1, 2], c=["#ff0000", "#00ff00", "#0000ff"])
    assert re.findall(r"h0' stroke='(#\w+)'", to_svg(fig)) == ["#ff0000", "#00ff00", "#0000ff"]


def test_other_markers_stay_markers():
    fig, ax = figure()
    ax.scatter(*points().T, marker="*")
    svg = to_svg(fig)
    assert not dots(svg) and svg.count("<use ") >= 60
    assert svg.count("clip-path='") < 20  # one group for all of them


def test_svg_is_small():
    fig, ax = figure()
    ax.scatter(*points(500).T, s=6, color=DATA)
    raw = io.StringIO()
    with figures.style():
        fig.savefig(raw, format="svg")
    assert len(to_svg(fig)) < 0.3 * len(raw.getvalue())


@pytest.fixture(scope="module")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        if os.environ.get("COMPANION_REQUIRE_ALL"):
            pytest.fail("chromium is missing")
        pytest.skip("chromium is missing")
    with playwright.sync_playwright() as p:
        running = p.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield running
        running.close()


def photograph(browser, svg, ink="#000000", paper="#ffffff"):
    """What a browser shows, as an array of shape (height, width, 3)."""
    page = browser.new_page(viewport={"width": 900, "height": 500}, device_scale_factor=2)
    page.set_content(f'<body style="margin:0;color:{ink};background:{paper}">{svg}')
    picture = Image.open(io.BytesIO(page.screenshot()))
    page.close()
    return np.asarray(picture.convert("RGB")).astype(float)


def test_svg_looks_as_matplotlib_drew_it(browser):
    fig = busy()
    raw = figures._draw(fig).replace(INK, "#000000")
    raw = re.sub(r'(width|height)="([\d.]+)pt"', lambda m: f'{m[1]}="{float(m[2]) * 4 / 3:.0f}px"', raw, count=2)
    difference = np.abs(photograph(browser, raw) - photograph(browser, to_svg(fig)))
    assert photograph(browser, raw).std() > 20
    assert difference.mean() < 0.25 and (difference.max(-1) > 80).mean() < 5e-4


def test_svg_reads_on_a_dark_page(browser):
    svg = to_svg(figure()[0])
    light, dark = photograph(browser, svg), photograph(browser, svg, ink="#ffffff", paper="#000000")
    assert light.min() < 40 and dark.max() > 215
    assert np.abs((255 - light) - dark).mean() < 1


# ---------------------------------------------------------------- tensors as pictures


@pytest.mark.parametrize("channels", [1, 3])
def test_image_grid_keeps_every_pixel(channels):
    images = torch.linspace(-1, 1, 5 * channels * 4 * 6).view(5, channels, 4, 6)
    fig = image_grid(None, images, columns=3).figure
    (picture,) = pictures(to_svg(fig))
    assert picture.shape == (2 * 4 + 2, 3 * 6 + 4, 4)
    for i, image in enumerate(images):
        top, left = i // 3 * 6, i % 3 * 8
        tile = picture[top : top + 4, left : left + 6]
        expected = ((image + 1) * 127.5).round().byte().expand(3, 4, 6).permute(1, 2, 0)
        assert (tile[..., :3] == expected.numpy()).all() and (tile[..., 3] == 255).all()
    assert picture[6:, 16:, 3].max() == 0 and picture[:, 6:8, 3].max() == 0  # the empty place and the gap
    assert "pixelated" in to_svg(fig)


def test_image_grid_clips_and_fits():
    fig, ax = figure()
    assert image_grid(ax, torch.tensor([-3.0, 3.0]).view(2, 1, 1, 1), columns=8) is ax
    (picture,) = pictures(to_svg(fig))
    assert picture[0, :, 0].tolist() == [0, 0, 0, 255] and picture.shape == (1, 4, 4)


def test_lossy_pictures_are_smaller():
    fig = image_grid(None, torch.randn(16, 1, 28, 28, generator=torch.Generator().manual_seed(0)), 8).figure
    assert len(to_svg(fig, quality=40)) < 0.8 * len(to_svg(fig))
    with pytest.raises(ValueError, match="quality"):
        to_svg(fig, quality=0)


@pytest.mark.parametrize(
    ("images", "columns", "message"),
    [
        (torch.zeros(2, 2, 4, 4), 2, "images must have shape"),
        (torch.zeros(4, 4), 2, "images must have shape"),
        (torch.zeros(0, 1, 4, 4), 2, "images must have shape"),
        (torch.full((1, 1, 2, 2), float("nan")), 2, "finite"),
        (torch.zeros(1, 1, 2, 2), 0, "columns"),
        (torch.zeros(1, 1, 2, 2), 1.5, "columns"),
    ],
)
def test_image_grid_refuses(images, columns, message):
    with pytest.raises(ValueError, match=message):
        image_grid(None, images, columns)


def test_density_is_darkest_at_the_mode():
    fig, ax = figure()
    centre = torch.tensor([0.5, -1.0])
    figures.density(ax, lambda xy: -20 * (xy - centre).square().sum(-1), (-1, 1, -2, 2), n=81)
    (drawn,) = ax.images
    row, col = np.unravel_index(drawn.get_array()[..., 3].argmax(), (81, 81))
    assert drawn.get_extent() == [-1, 1, -2, 2]
    assert (-1 + 2 * col / 80, 2 - 4 * row / 80) == pytest.approx((0.5, -1.0), abs=0.03)


def test_density_refuses():
    fig, ax = figure()
    with pytest.raises(ValueError, match="extent"):
        figures.density(ax, lambda xy: xy[:, 0], (1, -1, 0, 1))
    with pytest.raises(ValueError, match="shape"):
        figures.density(ax, lambda xy: xy, (-1, 1, 0, 1))
    with pytest.raises(ValueError, match="NaN"):
        figures.density(ax, lambda xy: xy[:, 0] * float("nan"), (-1, 1, 0, 1))


# ---------------------------------------------------------------- show


def test_show_outside_ipython_only_checks(capsys):
    assert show(figure()[0], "A caption.", "An alternative text.") is None
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        (("", "alt"), ValueError, "caption"),
        (("caption", " "), ValueError, "alt"),
        ((None, "alt"), TypeError, "caption"),
        (("caption", 3), TypeError, "alt"),
    ],
)
def test_show_refuses(args, error, message):
    with pytest.raises(error, match=message):
        show(figure()[0], *args)


def test_show_wants_a_figure():
    with pytest.raises(TypeError, match="fig must be a matplotlib Figure"):
        show(figure()[1], "caption", "alt")

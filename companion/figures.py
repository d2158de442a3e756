"""One figure style for the whole book: colours with a meaning, inline SVG that reads on light and dark pages.

>>> fig, ax = figure()                                      # doctest: +SKIP
>>> ax.plot(t, schedule.alpha(t), color=EXACT)              # doctest: +SKIP
>>> show(fig, "The signal's share.", "A curve falls from 1 to 0.")   # doctest: +SKIP
"""

import base64
import functools
import hashlib
import html
import io
import itertools
import math
import re
import sys

import torch
from jaxtyping import UInt8
from torch import Tensor

# Each colour has one meaning in the whole book; each has a contrast of 3:1 or more on #ffffff and on #14181e.
DATA = "#2b7bdf"  # the data, and what is drawn from it
MODEL = "#dd620a"  # the model, and what it generates
NOISE = "#797e87"  # noise, and what is all noise
EXACT = "#12a672"  # an exact answer to compare with
ACCENT = "#c944a8"  # the one thing to look at
INK = "#010203"  # text and axes; ``to_svg`` writes it as currentColor
COLOURS = (DATA, MODEL, EXACT, ACCENT, NOISE)

_RC = {
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlecolor": INK,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": INK,
    "grid.alpha": 0.12,
    "grid.linewidth": 0.6,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.titlesize": 10,
    "axes.titlelocation": "left",
    "axes.labelsize": 9.5,
    "font.family": ["DejaVu Sans"],
    "font.size": 9,
    "xtick.labelsize": 8.5,
    "ytick.labelsize": 8.5,
    "xtick.major.size": 3,
    "ytick.major.size": 3,
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "lines.linewidth": 1.8,
    "lines.markersize": 4,
    "scatter.edgecolors": "none",
    "image.cmap": "viridis",
    "image.composite_image": False,
    "svg.fonttype": "path",
    "svg.hashsalt": "companion",
    "svg.image_inline": True,
}


def style():
    """The book's matplotlib style as a context manager: ``with style(): …``."""
    import matplotlib

    return matplotlib.rc_context(_settings())


def _settings() -> dict:
    from cycler import cycler

    return {**_RC, "axes.prop_cycle": cycler(color=COLOURS)}


def figure(rows=1, cols=1, width=7.0, height=3.0, **kw):
    """A figure in the book's style, and its axes (an array of axes where there are several).

    ``width`` and ``height`` are in inches; further keywords go to ``Figure.subplots``. pyplot does not know the figure,
    so it needs no backend and no closing. The book's style holds from here on, because matplotlib asks for
    it again when a legend or a title is added. Raises ValueError where a size or a count is not positive.
    """
    import matplotlib
    from matplotlib.figure import Figure

    for name, value in {"rows": rows, "cols": cols, "width": width, "height": height}.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"figure: {name} must be a number above 0; got {value!r}")
    matplotlib.rcParams.update(_settings())
    fig = Figure(figsize=(width, height))
    axes = fig.subplots(rows, cols, **kw)
    _margins(fig, rows, cols, width, height)
    return fig, axes


def _margins(fig, rows, cols, width, height):
    """Leave the same room for labels in inches at every size, so that axes stand still from frame to frame."""
    left, right, bottom, top, gap = 0.78, 0.12, 0.48, 0.3, (0.62, 0.72)
    fig.subplots_adjust(left / width, bottom / height, 1 - right / width, 1 - top / height)
    if cols > 1:
        fig.subplots_adjust(wspace=gap[0] * cols / (width - left - right - gap[0] * (cols - 1)))
    if rows > 1:
        fig.subplots_adjust(hspace=gap[1] * rows / (height - bottom - top - gap[1] * (rows - 1)))


def show(fig, caption, alt):
    """Display a figure as inline SVG with its caption (HTML) and its alternative text (plain).

    Outside IPython it only checks them. Raises TypeError where ``fig`` is no matplotlib figure, ValueError where the
    caption or the alternative text is empty.
    """
    text(caption, "caption", "show")
    text(alt, "alt", "show")
    need_figure(fig, "show")
    if not in_ipython():
        return
    from IPython.display import display

    markup = (
        f'<figure class="companion-figure" style="margin:1em 0"><div role="img" aria-label="{html.escape(alt)}">\n'
        f'{to_svg(fig)}</div><figcaption style="font-size:.92em;max-width:46em">{caption}</figcaption></figure>'
    )
    display({"text/html": markup, "text/plain": alt}, raw=True)


def text(value, name: str, caller: str) -> str:
    """The text itself, where it holds anything; else a TypeError or ValueError naming the argument."""
    if not isinstance(value, str):
        raise TypeError(f"{caller}: {name} must be a str; got {type(value).__name__}")
    if not value.strip():
        raise ValueError(f"{caller}: {name} must not be empty: every figure has one; got {value!r}")
    return value


def need_figure(fig, caller: str):
    """Raise TypeError unless this is a matplotlib figure; take one of pyplot's out of pyplot's hands."""
    from matplotlib.figure import FigureBase

    if not isinstance(fig, FigureBase):
        raise TypeError(f"{caller}: fig must be a matplotlib Figure; got {type(fig).__name__}")
    pyplot = sys.modules.get("matplotlib.pyplot")
    if pyplot is not None and getattr(fig, "number", None) is not None:
        pyplot.close(fig)


def in_ipython() -> bool:
    """Whether an IPython shell runs this code."""
    ipython = sys.modules.get("IPython")
    return ipython is not None and ipython.get_ipython() is not None


# ---------------------------------------------------------------- tensors as pictures


def image_grid(ax, images: Tensor, columns):
    """Draw a batch of images, shape (batch, 1 or 3, height, width), values in [-1, 1], as one grid; return its axes.

    Values outside are clipped. One array cell is one pixel of the embedded picture. ``ax=None`` makes a figure that
    fits. Raises ValueError on another shape, on an empty batch and on values that are not finite.
    """
    if images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        raise ValueError(f"image_grid: images must have shape (batch, 1 or 3, h, w); got {tuple(images.shape)}")
    if not isinstance(columns, int) or columns < 1:
        raise ValueError(f"image_grid: columns must be a positive int; got {columns!r}")
    if not torch.isfinite(images).all():
        raise ValueError("image_grid: images must be finite; got NaN or infinity")
    tiled = _tile(images.detach().float().cpu(), min(columns, len(images)))
    if ax is None:
        ratio = tiled.shape[0] / tiled.shape[1]
        width = min(7.0, max(1.6, 0.55 * columns))
        fig, ax = figure(width=width, height=width * ratio + 0.05)
        fig.subplots_adjust(0.0, 0.0, 1.0, 1.0 - 0.05 / (width * ratio + 0.05))
    ax.imshow(tiled.numpy(), interpolation="none")
    ax.set(xticks=[], yticks=[])
    ax.grid(False)
    ax.spines[:].set_visible(False)
    return ax


def _tile(images: Tensor, columns: int, gap: int = 2) -> UInt8[Tensor, "rows cols 4"]:
    """The grid as an RGBA byte array; the gap between two images is transparent."""
    batch, channel, height, width = images.shape
    rows = math.ceil(batch / columns)
    tiles = torch.zeros(rows * columns, 4, height + gap, width + gap, dtype=torch.uint8)
    tiles[:batch, :3, :height, :width] = ((images.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    tiles[:batch, 3, :height, :width] = 255
    grid = tiles.view(rows, columns, 4, height + gap, width + gap).permute(0, 3, 1, 4, 2)
    return grid.reshape(rows * (height + gap), columns * (width + gap), 4)[:-gap, :-gap]


def density(ax, fn, extent, n: int = 160, color: str = DATA):
    """Shade a two-dimensional density: ``fn`` maps points (n*n, 2) to log-densities (n*n,); opaque where it is highest.

    ``extent`` is (left, right, bottom, top). Raises ValueError on a bad extent, another shape, or NaN.
    """
    left, right, bottom, top = extent
    if not (left < right and bottom < top):
        raise ValueError(f"density: extent must be (left, right, bottom, top), increasing; got {extent}")
    x, y = torch.linspace(left, right, n), torch.linspace(top, bottom, n)
    log_p = fn(torch.cartesian_prod(y, x).flip(1)).detach().double().cpu()
    if log_p.shape != (n * n,):
        raise ValueError(f"density: fn must return shape ({n * n},); got {tuple(log_p.shape)}")
    if log_p.isnan().any():
        raise ValueError("density: fn returned NaN")
    import matplotlib.colors

    picture = torch.tensor(matplotlib.colors.to_rgba(color)).repeat(n, n, 1)
    picture[..., 3] = 0.9 * (log_p - log_p.max()).exp().view(n, n).float()
    ax.imshow((picture * 255).round().byte().numpy(), extent=extent, aspect="auto", interpolation="bilinear")


# ---------------------------------------------------------------- inline SVG

BETWEEN_DOTS = "h0'/><path d='M"  # what stands between two see-through dots
_IDS = "\ue000"  # stands for the figure's own prefix of ids until its content is known
_NUMBER = re.compile(r"-?\d+\.\d+")
_ATTRIBUTE = re.compile(r' (d|x|y|width|height|transform|style|viewBox|points)="([^"]*)"')
_PATH = re.compile(r"<path d='([^']+)'((?: clip-path='[^']+')? style='(?!opacity|[^']*;opacity)[^']+')/>")
_USE = re.compile(r"<use href='#([^']+)' x='([^']+)' y='([^']+)' style='([^']*)'/>")


def to_svg(fig, prefix: str | None = None, quality: int | None = None) -> str:
    """The figure as inline SVG: transparent, text and axes in currentColor, no font needed, two decimals.

    Ids start with ``prefix``, by default a hash of the content, so that figures on one page do not meet. Embedded
    pictures are stored without loss, or as WebP of this ``quality`` (1 to 100). Raises TypeError where ``fig`` is no
    figure, ValueError on another quality.
    """
    need_figure(fig, "to_svg")
    if quality is not None and not 1 <= quality <= 100:
        raise ValueError(f"to_svg: quality must be None or 1 to 100; got {quality!r}")
    svg = _compact(_draw(fig), quality)
    return svg.replace(_IDS, hashlib.sha256(svg.encode()).hexdigest()[:6] if prefix is None else prefix)


def _draw(fig) -> str:
    """What matplotlib writes, from <svg on."""
    buffer = io.StringIO()
    with style():
        fig.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    raw = buffer.getvalue()
    return raw[raw.index("<svg") :]


def _compact(raw: str, quality: int | None) -> str:
    """The same drawing with one element a line, no idle groups, short numbers and grouped markers."""
    raw = re.sub(r"(<!--[^>]*-->\s*<g)(?! style)", rf'\1 style="fill:{INK}"', raw)  # text without a colour is black
    raw = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->|<style type.*?</style>", "", raw, flags=re.S)
    raw = re.sub(r"\s*\n\s*(?=[^<\s])", " ", raw).replace("xlink:href", "href")
    raw = re.sub(r"data:image/png;base64,\s*([^\"]+)", lambda m: _encode(m[1], quality), raw)
    used = set(re.findall(r'(?:href="|url\()#([^")]+)', raw))
    raw = re.sub(r' id="([^"]*)"', lambda m: m[0] if m[1] in used else "", raw)
    raw = re.sub(r'(id="|href="#|url\(#)', r"\1" + _IDS, raw)
    raw = _ATTRIBUTE.sub(_short, raw)
    raw = raw.replace(INK, "currentColor").replace("stroke:#000000", "stroke:currentColor").replace('"', "'")
    return _open(raw) + _prune("".join(_markers(_join(_ungroup(raw)))))


def _open(raw: str) -> str:
    """The <svg> tag: its natural size is the figure's, and a narrow page makes it smaller."""
    width, height = re.search(r"viewBox='0 0 ([\d.]+) ([\d.]+)'", raw).groups()
    css = f"width:{float(width) * 4 / 3:.0f}px;max-width:100%;height:auto;overflow:visible;stroke-linejoin:round"
    return f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' style='{css}'>\n"


def _short(match: re.Match) -> str:
    """One attribute, with numbers rounded to two decimals (those of a transformation to six digits)."""
    name, value = match.groups()
    if name == "style":
        return f' style="{value.replace(": ", ":").replace("; ", ";").rstrip("; ")}"'
    digits = _six if name == "transform" else _two
    value = _NUMBER.sub(digits, value)
    if name == "d":
        value = re.sub(r"\s*([A-Za-z])\s*", r"\1", value).strip().replace(" -", "-")
    return f' {name}="{value}"'


def _two(match: re.Match) -> str:
    number = f"{float(match[0]):.2f}".rstrip("0").rstrip(".")
    return "0" if number == "-0" else number


def _six(match: re.Match) -> str:
    return f"{float(match[0]):.6g}"


def _ungroup(raw: str):
    """The lines after <svg>, without groups that carry nothing and without empty definitions."""
    raw = re.sub(r"<defs>\s*</defs>", "", raw)
    keep = []
    for line in raw.split("\n")[1:]:
        line = line.strip()
        if line.startswith("<g"):
            keep.append(line != "<g>")
            if line == "<g>":
                continue
        elif line == "</g>" and not keep.pop():
            continue
        if line and not line.endswith("style='fill:none'/>"):
            yield line + "\n"


def _join(lines):
    """The lines, with a clipped group that follows one with the same clip as part of it."""
    tags, closed = [], None
    for line in lines:
        if closed is not None:
            if line == closed and line.startswith("<g clip-path="):
                tags.append(line)
                closed = None
                continue
            yield "</g>\n"
            closed = None
        if line == "</g>\n":
            closed = tags.pop()
            continue
        if line.startswith("<g"):
            tags.append(line)
        yield line
    if closed is not None:
        yield "</g>\n"


def _prune(svg: str) -> str:
    """The drawing without definitions of markers that became dots."""
    used = set(re.findall(r"(?:href='|url\()#([^')]+)", svg))
    svg = re.sub(r"<path id='([^']+)'[^>]*/>\n", lambda m: m[0] if m[1] in used else "", svg)
    return svg.replace("<defs>\n</defs>\n", "")


def _markers(lines):
    """Runs of markers, each written once: dots as round caps of lines of no length, others as a group of uses."""
    lines = list(lines)
    circles = {name: r for line in lines if (found := _circle(line)) for name, r in [found]}
    for name, run in itertools.groupby(lines, lambda line: (m := _USE.match(line)) and m[1]):
        if name is None:
            yield from _paths(run)
            continue
        points = [_USE.match(line).groups()[1:] for line in run]
        dots = [(x, y, _dot(css, circles.get(name))) for x, y, css in points]
        if all(dot for *_, dot in dots):
            yield from _dots(dots)
        else:
            yield from _uses(name, points)


def _paths(lines):
    """The lines, with a run of paths that share clip and style (bars, trajectories) as one group."""
    for tail, run in itertools.groupby(lines, lambda line: (m := _PATH.match(line)) and m[2]):
        run = list(run)
        if tail is None or len(run) == 1:
            yield from run
            continue
        drawn = "'/><path d='".join(_PATH.match(line)[1] for line in run)
        yield f"<g{tail}>\n<path d='{drawn}'/>\n</g>\n"


def _circle(line: str) -> tuple[str, float] | None:
    """Name and radius of a marker that is a circle around (0, 0), else None."""
    match = re.match(r"<path id='([^']+)' d='M0 ([\d.]+)((?:C[^'zC]+){8})z'", line)
    if not match:
        return None
    radius = float(match[2])
    ends = [_floats(curve)[4:] for curve in match[3].split("C")[1:]]
    return (match[1], radius) if all(abs(math.hypot(*end) - radius) < 0.02 for end in ends) else None


def _floats(numbers: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?[\d.]+", numbers)]


@functools.lru_cache(256)
def _dot(css: str, radius: float | None) -> tuple[str, str, float] | None:
    """Colour, opacity and width of a round marker whose rim is its fill or nothing, else None."""
    part = dict(item.split(":", 1) for item in css.split(";") if item)
    fill, rim = part.get("fill", "#000000"), part.get("stroke", "none")
    if radius is None or fill == "none" or rim not in ("none", fill):
        return None
    alpha = part.get("fill-opacity", part.get("opacity", "1"))
    return fill, alpha, round(2 * radius + (float(part.get("stroke-width", 1)) if rim != "none" else 0), 2)


def _dots(dots):
    """Opaque dots of one colour in one path; see-through ones each in its own, so that they add up."""
    for width, same_width in itertools.groupby(dots, lambda dot: dot[2][2]):
        yield f"<g style='fill:none;stroke-linecap:round;stroke-width:{width:g}'>\n"
        for (colour, alpha, _), run in itertools.groupby(same_width, lambda dot: dot[2]):
            points = [f"{x} {y}" for x, y, _ in run]
            if alpha == "1":
                yield f"<path d='M{'h0M'.join(points)}h0' stroke='{colour}'/>\n"
            elif len(points) == 1:
                yield f"<path d='M{points[0]}h0' stroke='{colour}' stroke-opacity='{alpha}'/>\n"
            else:
                yield f"<g stroke='{colour}' stroke-opacity='{alpha}'>\n"
                yield f"<path d='M{BETWEEN_DOTS.join(points)}h0'/>\n</g>\n"
        yield "</g>\n"


def _uses(name: str, points):
    for css, run in itertools.groupby(points, lambda point: point[2]):
        run = [f"<use href='#{name}' x='{x}' y='{y}'/>" for x, y, _ in run]
        yield f"<g style='{css}'>\n" + "".join(run) + "\n</g>\n"


@functools.lru_cache(512)
def _encode(png: str, quality: int | None) -> str:
    """The smallest data URI for an embedded picture: PNG, WebP without loss, or WebP of the quality asked for."""
    from PIL import Image, features

    picture = Image.open(io.BytesIO(base64.b64decode(png)))
    candidates = [("png", base64.b64decode(png))]
    if features.check("webp"):
        how = {"lossless": True, "quality": 30, "method": 2} if quality is None else {"quality": quality, "method": 4}
        buffer = io.BytesIO()
        picture.save(buffer, "WEBP", **how)
        candidates.append(("webp", buffer.getvalue()))
    kind, data = min(candidates, key=lambda candidate: len(candidate[1]))
    return f"data:image/{kind};base64,{base64.b64encode(data).decode()}"
